"""No stack id in logs, ever; with --pseudonymise none in anything that leaves the daemon."""

from __future__ import annotations

from pathlib import Path

from faults.sitecustomize import STICKY_ONCE
from harness import Daemon
from sender import Sender, picture
from tiny_bundle import FIELD

NAME = "Anna Mueller #3"
FAULTS = str(Path(__file__).parents[1] / "faults")


def play(daemon):
    """Send a stack with every kind of refusal, and return the raw final message."""
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender(run_id="run of Dr Huber")
    older = Sender(run_id="an older run of Dr Huber")
    for frames in (
        older.start(NAME, 5, FIELD),
        sender.start(NAME, 5, FIELD),
        older.end(NAME, 5),
        sender.slice(NAME, 0, picture(0, FIELD)),
        sender.slice(NAME, 1, picture(1, FIELD), crc32=1),
        sender.slice(NAME, 2, picture(2, FIELD), encoding=NAME),
        sender.slice(NAME + "/", 3, picture(3, FIELD)),
        sender.slice(NAME, 3, picture(3)),
        sender.end(NAME, 5),
        sender.slice(NAME, 4, picture(4, FIELD)),
    ):
        controller.send_multipart(frames)
    while True:
        yield b" ".join(results.socket.recv_multipart()).decode()


def words_in(text):
    return [word for word in ("Anna", "Mueller", "Huber") if word in text]


def until_refused_after_the_end(results):
    for text in results:
        if "R203 stack_ended" in text:
            return text
    raise AssertionError


def test_logs_hold_pseudonyms_only(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle, RCM_LOG_LEVEL="debug")
    assert words_in(until_refused_after_the_end(play(daemon))) == ["Anna", "Mueller", "Huber"]
    assert daemon.stop() == 0
    log = daemon.log.read_text()
    assert words_in(log) == []
    refused = [line for line in log.splitlines() if "message refused" in line]
    rules = [line.partition("rule=")[2].split()[0] for line in refused]
    assert rules == ["old_run", "crc_mismatch", "bad_value", "bad_id", "shape_changed", "stack_ended"]
    stacks = {line.partition("stack=")[2].split()[0] for line in refused if 'stack=""' not in line}
    assert len(stacks) == 1
    assert stacks.pop().startswith("p")


def test_a_device_that_fails_over_a_slice_does_not_tell_its_name(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle, PYTHONPATH=FAULTS, FAULTS=str(tmp_path))
    results, controller = daemon.subscribe(), daemon.controller()
    image = picture(0, FIELD)
    image[0, 0] = STICKY_ONCE
    controller.send_multipart(Sender().slice(NAME, 0, image))
    results.until(n_slices=1)
    assert daemon.stop() == 0
    log = daemon.log.read_text()
    assert "CUDA failure 700" in log
    assert words_in(log) == []


def test_results_hold_pseudonyms_only_where_that_is_asked_for(tmp_path, bundle):
    daemon = Daemon(tmp_path, bundle, "--pseudonymise")
    seen = ""
    for text in play(daemon):
        seen += text
        if "R203 stack_ended" in text and '"n_slices":1' in text:
            break
    assert words_in(seen) == []
    stack_id = seen.partition('"stack_id":"')[2].partition('"')[0]
    assert f"strata.m1.{stack_id}" in seen
    (known,) = [
        s for s in daemon.ask({"htype": "get_state", "stack_id": stack_id})["stacks"] if s["n_slices"]
    ]
    assert known["rejected_reason"][0] == "R114 crc_mismatch"
    assert words_in(str(known)) == []
    assert daemon.ask({"htype": "get_state", "stack_id": NAME})["stacks"] == []
    assert daemon.stop() == 0
