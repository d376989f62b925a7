"""What is refused costs nothing: no memory for what a header claims, no parsing of what is too large."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from sender import Sender, picture

from rcm_daemon.core import wire
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import MAX_HEADER_BYTES, parse

MAX_GROWTH_BYTES = 500_000


def frames(**keys):
    header, blob = Sender().slice("s", 0, picture(0))
    return [json.dumps(json.loads(header) | keys).encode(), blob]


def refused_cheaply(message):
    tracemalloc.start()
    try:
        with pytest.raises(Rejection) as caught:
            parse(message)
        assert tracemalloc.get_traced_memory()[1] < MAX_GROWTH_BYTES
    finally:
        tracemalloc.stop()
    return caught.value.rule


@pytest.mark.hazard("H04")
@pytest.mark.hazard("H06")
@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ([100_000, 100_000], Rule.BAD_VALUE),
        ([10**18, 10**18], Rule.BAD_VALUE),
        ([16_384, 16_384], Rule.TOO_LARGE),
        ([8_000, 8_000], Rule.PAYLOAD_LENGTH),
        ([64, 65], Rule.PAYLOAD_LENGTH),
    ],
)
def test_a_claimed_shape_allocates_nothing(shape, rule):
    assert refused_cheaply(frames(shape=shape)) is rule


@pytest.mark.hazard("H04")
@pytest.mark.hazard("H05")
def test_a_payload_is_never_copied_to_be_refused():
    header, _ = frames()
    large = bytes(32 * 1024 * 1024)
    assert refused_cheaply([header, large]) is Rule.PAYLOAD_LENGTH
    whole = frames(shape=[4096, 8192], crc32=1)[0]
    assert refused_cheaply([whole, large]) is Rule.CRC_MISMATCH


@pytest.mark.hazard("H09")
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b'{"note": "' + b"x" * MAX_HEADER_BYTES + b'"}', Rule.HEADER_TOO_LARGE),
        (b"{" + b" " * 1_000_000 + b"}", Rule.HEADER_TOO_LARGE),
        (b'{"a":' + b"[" * 60_000 + b"]" * 5_000, Rule.NESTED_TOO_DEEPLY),
        (b'{"a":' * 9_000, Rule.NESTED_TOO_DEEPLY),
        (b'{"a":[[[[1]]]]}', Rule.NESTED_TOO_DEEPLY),
    ],
)
def test_such_a_header_is_never_parsed(monkeypatch, text, rule):
    def parsed(*arguments, **options):
        raise AssertionError("parsed")

    monkeypatch.setattr(wire.json, "loads", parsed)
    assert refused_cheaply([text]) is rule


def test_brackets_in_strings_are_no_nesting():
    with pytest.raises(Rejection) as caught:
        parse([json.dumps({"note": "[[[[[[{{{{", "schema": "rcm-slice-1"}).encode()])
    assert caught.value.rule is Rule.UNKNOWN_HTYPE
