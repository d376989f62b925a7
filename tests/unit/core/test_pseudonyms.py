"""Pseudonyms: steady, salted, and nothing of an id left in what is published."""

from __future__ import annotations

import json

from desk import Desk
from hypothesis import given
from hypothesis import strategies as st
from sender import Sender

from rcm_daemon.core.message import Latency, Source, build_message
from rcm_daemon.core.pseudonyms import Pseudonyms, pseudonymised
from rcm_daemon.core.rejection import Rejection
from rcm_daemon.core.wire import parse

SALT = bytes(range(32))


def test_a_pseudonym_is_steady_short_and_depends_on_the_salt():
    assert Pseudonyms(SALT).of("Müller, Anna") == Pseudonyms(SALT).of("Müller, Anna")
    assert Pseudonyms(SALT).of("Müller, Anna") != Pseudonyms(bytes(32)).of("Müller, Anna")
    assert len(Pseudonyms(SALT).of("")) == 17


@given(st.lists(st.text(max_size=20), unique=True, max_size=30))
def test_other_ids_have_other_pseudonyms(ids):
    assert len({Pseudonyms(SALT).of(id_) for id_ in ids}) == len(ids)


def refuse(desk, frames):
    try:
        message = parse(frames)
    except Rejection as rejection:
        desk.ledger.refuse(rejection)
        return
    try:
        desk.ledger.accept(message, 0.0)
    except Rejection as rejection:
        desk.ledger.reports(rejection)


def test_nothing_a_controller_may_name_is_left_in_a_result():
    name, run_id = "Anna Mueller #3", "run of Dr Huber"
    desk, sender = Desk(), Sender(run_id=run_id)
    desk.send(sender.start(name, 4))
    desk.send(sender.slice(name, 0))
    stack = desk.stack
    for frames in (
        sender.slice(name, 1, crc32=1),
        sender.slice(name, 1, shape=[2, 2]),
        sender.slice(name, 2, encoding="Anna Mueller #3"),
        sender.slice(name, 3, pixel_size_um=0.25),
    ):
        refuse(desk, frames)
    source = Source("1", "tiny", "0" * 64, "cpu")
    plain = build_message(stack, source, Latency(), seq=1, time_ns=5, n_lost=0)
    hidden = pseudonymised(plain, Pseudonyms(SALT))
    for word in ("Anna", "Mueller", "Huber"):
        assert word in plain.to_json()
        assert word not in hidden.to_json()
        assert word.encode() not in hidden.topic
    assert hidden.topic.decode() == f"strata.m1.{Pseudonyms(SALT).of(name)}"
    assert hidden.rejected_reason == [
        "R114 crc_mismatch",
        "R113 payload_length",
        "R109 bad_value",
        "R206 pitch_changed",
    ]
    same = json.loads(plain.to_json())
    changed = {key for key, value in json.loads(hidden.to_json()).items() if value != same[key]}
    assert changed == {"stack_id", "run_id", "rejected_reason"}
