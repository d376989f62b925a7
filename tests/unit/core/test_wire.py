"""The wire parses, or raises the one error."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sender import Sender

from rcm_daemon.core.records import Heartbeat, Slice, SliceHeader, StackEnd, StackStart
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import MAX_HEADER_BYTES, encode, parse

IMAGE = np.arange(12, dtype=np.uint8).reshape(3, 4)


def slice_frames(**keys: Any) -> list[bytes]:
    header, blob = Sender().slice("s1", 7, IMAGE)
    return [json.dumps(json.loads(header) | keys).encode(), blob]


def without(frames: list[bytes], key: str) -> list[bytes]:
    fields = json.loads(frames[0])
    del fields[key]
    return [json.dumps(fields).encode(), *frames[1:]]


def raw(text: str) -> list[bytes]:
    return [text.encode()]


def test_slice_is_read_without_copying():
    frames = slice_frames()
    message = parse(frames)
    assert isinstance(message, Slice)
    assert message.header.index == 7
    assert message.pixels.tolist() == IMAGE.tolist()
    assert message.blob.obj is frames[1]


@pytest.mark.parametrize("topic", [b"slices", b"", b"m1.s1", b"[1]", b"\xff\xfe"])
def test_one_topic_frame_is_tolerated(topic):
    assert isinstance(parse([topic, *slice_frames()]), Slice)


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b" \r\n\t", b"\xef\xbb\xbf  "])
def test_byte_order_mark_and_white_space_are_no_topic(before):
    frames = slice_frames()
    assert isinstance(parse([before + frames[0], frames[1]]), Slice)


def test_uint16_is_little_endian():
    image = np.array([[1, 256]], np.uint16)
    message = parse(Sender().slice("s", 0, image))
    assert isinstance(message, Slice)
    assert message.pixels.tolist() == [[1, 256]]


@pytest.mark.parametrize("key", ["index", "max_value", "crc32", "time_s", "msg_number"])
def test_integral_floats_are_integers(key):
    frames = slice_frames(crc32=0)
    fields = json.loads(frames[0])
    fields[key] = float(fields[key])
    message = parse([json.dumps(fields).encode(), frames[1]])
    assert isinstance(message, Slice)
    assert type(getattr(message.header, key)) is int


def test_integers_are_numbers_and_extra_keys_are_ignored():
    message = parse(slice_frames(z_um=-12, colour="green"))
    assert isinstance(message, Slice)
    assert message.header.z_um == -12.0


CASES: list[tuple[str, list[bytes], Rule]] = [
    ("no frames", [], Rule.NOT_JSON),
    ("only a topic", [b"topic"], Rule.NOT_JSON),
    ("two topics", [b"topic", b"topic", *slice_frames()], Rule.NOT_JSON),
    ("text", [b"hello", b"world"], Rule.NOT_JSON),
    ("cut JSON", [slice_frames()[0][:-3]], Rule.NOT_JSON),
    ("not UTF-8", [b'{"a": "\xff"}'], Rule.NOT_JSON),
    ("key twice", raw('{"a": 1, "a": 2}'), Rule.NOT_JSON),
    ("no schema", raw("{}"), Rule.WRONG_SCHEMA),
    ("schema of others", slice_frames(schema="stream-1"), Rule.WRONG_SCHEMA),
    ("later version", slice_frames(schema="rcm-slice-2"), Rule.UNKNOWN_VERSION),
    ("unknown htype", slice_frames(htype="picture"), Rule.UNKNOWN_HTYPE),
    ("htype no string", slice_frames(htype=["slice"]), Rule.UNKNOWN_HTYPE),
    ("header too large", slice_frames(note="x" * MAX_HEADER_BYTES), Rule.HEADER_TOO_LARGE),
    ("nested", slice_frames(note=[[[[1]]]]), Rule.NESTED_TOO_DEEPLY),
    ("nested very deeply", raw('{"a":' + "[" * 30_000), Rule.NESTED_TOO_DEEPLY),
    ("no blob", slice_frames()[:1], Rule.FRAME_COUNT),
    ("two blobs", [*slice_frames(), b"more"], Rule.FRAME_COUNT),
    ("blob after start", [*Sender().start("s"), b"more"], Rule.FRAME_COUNT),
    ("no index", without(slice_frames(), "index"), Rule.MISSING_KEY),
    ("null", slice_frames(index=None), Rule.BAD_VALUE),
    ("index a string", slice_frames(index="7"), Rule.BAD_VALUE),
    ("index a truth", slice_frames(index=True), Rule.BAD_VALUE),
    ("index a fraction", slice_frames(index=1.5), Rule.BAD_VALUE),
    ("negative index", slice_frames(index=-1), Rule.BAD_VALUE),
    ("index out of bounds", slice_frames(index=10**9), Rule.BAD_VALUE),
    ("huge z", slice_frames(z_um=10**400), Rule.BAD_VALUE),
    ("NaN z", slice_frames(z_um=float("nan")), Rule.NOT_FINITE),
    ("infinite pitch", slice_frames(pixel_size_um=float("inf")), Rule.NOT_FINITE),
    ("z overflowing", [slice_frames()[0].replace(b'"z_um": 21.0', b'"z_um": 1e999'), b""], Rule.NOT_FINITE),
    ("pitch 0", slice_frames(pixel_size_um=0), Rule.BAD_VALUE),
    ("float32", slice_frames(dtype="float32"), Rule.BAD_DTYPE),
    ("big endian", slice_frames(byte_order="big"), Rule.BAD_VALUE),
    ("compressed", slice_frames(encoding="lz4"), Rule.BAD_VALUE),
    ("three sides", slice_frames(shape=[3, 4, 1]), Rule.BAD_VALUE),
    ("empty", slice_frames(shape=[0, 4]), Rule.BAD_VALUE),
    ("max_value beyond dtype", slice_frames(max_value=4095), Rule.BAD_VALUE),
    ("wrong shape", slice_frames(shape=[4, 4]), Rule.PAYLOAD_LENGTH),
    ("uint16 of uint8 bytes", slice_frames(dtype="uint16"), Rule.PAYLOAD_LENGTH),
    ("cut blob", [slice_frames()[0], IMAGE.tobytes()[:-1]], Rule.PAYLOAD_LENGTH),
    ("trailing bytes", [slice_frames()[0], IMAGE.tobytes() + b"x"], Rule.PAYLOAD_LENGTH),
    ("other bytes", [slice_frames()[0], bytes(12)], Rule.CRC_MISMATCH),
    ("claims 10 GB", slice_frames(shape=[100_000, 100_000]), Rule.BAD_VALUE),
    ("claims 256 MB", slice_frames(shape=[16_384, 16_384]), Rule.TOO_LARGE),
    ("instrument with a dot", slice_frames(instrument="m.1"), Rule.BAD_ID),
    ("instrument with a newline", slice_frames(instrument="m1\n"), Rule.BAD_ID),
    ("no instrument", slice_frames(instrument=""), Rule.BAD_ID),
    ("id empty", slice_frames(stack_id=""), Rule.BAD_ID),
    ("id too long", slice_frames(stack_id="x" * 201), Rule.BAD_ID),
    ("id with NUL", slice_frames(stack_id="a\x00b"), Rule.BAD_ID),
    ("id with a slash", slice_frames(stack_id="../etc"), Rule.BAD_ID),
    ("id with a backslash", slice_frames(stack_id="a\\b"), Rule.BAD_ID),
    ("id with a wide slash", slice_frames(stack_id="a\uff0fb"), Rule.BAD_ID),
    ("id with a division slash", slice_frames(stack_id="a\u2215b"), Rule.BAD_ID),
    ("id with a right-to-left mark", slice_frames(stack_id="a\u202eb"), Rule.BAD_ID),
    ("id with a Cyrillic a", slice_frames(stack_id="st\u0430ck"), Rule.BAD_ID),
    ("id with a lone surrogate", [slice_frames(stack_id="a\ud800b")[0], IMAGE.tobytes()], Rule.BAD_ID),
    ("run_id with a lone surrogate", slice_frames(run_id="\ud800"), Rule.BAD_VALUE),
    ("unknown reason", Sender().end("s", 1, "bored"), Rule.BAD_VALUE),
]


@pytest.mark.hazard("H01")
@pytest.mark.hazard("H02")
@pytest.mark.hazard("H03")
@pytest.mark.hazard("H04")
@pytest.mark.hazard("H05")
@pytest.mark.hazard("H06")
@pytest.mark.hazard("H09")
@pytest.mark.hazard("H10")
@pytest.mark.hazard("H11")
@pytest.mark.hazard("H12")
@pytest.mark.parametrize(("frames", "rule"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused(frames, rule):
    with pytest.raises(Rejection) as caught:
        parse(frames)
    assert caught.value.rule is rule
    assert str(caught.value).startswith(f"R{rule.value} {rule.name.lower()}: ")
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 400


@pytest.mark.hazard("H02")
@pytest.mark.hazard("H04")
def test_refusal_names_expected_and_got():
    with pytest.raises(Rejection, match=r"rcm-slice-9 is not served; versions served: rcm-slice-1"):
        parse(slice_frames(schema="rcm-slice-9"))
    with pytest.raises(Rejection, match=r"slice 7 of 's1' is 4 x 4 uint8 = 16 bytes, got 12"):
        parse(slice_frames(shape=[4, 4]))


def test_refusal_knows_the_sender_as_far_as_it_can_be_read():
    with pytest.raises(Rejection) as caught:
        parse(slice_frames(shape=[4, 4]))
    origin = caught.value.origin
    assert (origin.instrument, origin.run_id, origin.msg_number) == ("m1", "run-1", 0)
    assert (origin.htype, origin.stack_id, origin.index) == ("slice", "s1", 7)


SAID_TWICE = [slice_frames()[0].replace(b"{", b'{"index": 3, ', 1), IMAGE.tobytes()]


@pytest.mark.hazard("H12")
@pytest.mark.parametrize(
    ("frames", "htype", "index"),
    [
        (slice_frames(z_um=float("nan")), "slice", 7),
        (slice_frames(colour=[float("-inf")]), "slice", 7),
        (slice_frames(htype="picture"), "", 7),
        (without(slice_frames(), "htype"), "", 7),
        (SAID_TWICE, "slice", -1),
    ],
    ids=["NaN", "infinite extra", "unknown htype", "no htype", "index twice"],
)
def test_what_is_no_message_is_told_by_its_number_all_the_same(frames, htype, index):
    with pytest.raises(Rejection) as caught:
        parse(frames)
    origin = caught.value.origin
    assert (origin.instrument, origin.run_id, origin.msg_number) == ("m1", "run-1", 0)
    assert (origin.htype, origin.stack_id, origin.index) == (htype, "s1", index)
    assert origin.is_numbered


def test_refusals_name_the_number_that_is_none_and_the_sides_that_are_wanted():
    with pytest.raises(Rejection, match=r"R110 not_finite: numbers are finite, got -Infinity in 'z_um'"):
        parse(slice_frames(z_um=float("-inf")))
    for shape in ([], [4], [3, 4, 1], "3 x 4", 12):
        with pytest.raises(Rejection, match=r"shape of slice 7 of 's1': must be \[rows, columns\], got"):
            parse(slice_frames(shape=shape))


@pytest.mark.parametrize(
    "stack_id", ["s", "Müller #3", "日本", "пациент 7", "β-stack", "5 µm", "a b.c~d%", "x" * 200]
)
def test_printable_ids_are_accepted(stack_id):
    message = parse(slice_frames(stack_id=stack_id))
    assert isinstance(message, Slice)
    assert message.header.stack_id == stack_id


COMMON = {
    "instrument": st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    "run_id": st.text(st.characters(codec="utf-8"), max_size=40),
    "msg_number": st.integers(0, 2**53 - 1),
}
IDS = st.text("abcXYZ 0189.#-_", min_size=1, max_size=30)
DEPTHS = st.floats(-1e6, 1e6)
TIMES = {"time_s": st.integers(0, 2**40), "time_ns": st.integers(0, 999_999_999)}


@st.composite
def slices(draw: st.DrawFn) -> Slice:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    dtype = draw(st.sampled_from(["uint8", "uint16"]))
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    fields = draw(st.fixed_dictionaries(COMMON | TIMES))
    header = SliceHeader(
        **fields,
        stack_id=draw(IDS),
        index=draw(st.integers(0, 9_999)),
        z_um=draw(DEPTHS),
        shape=shape,
        dtype=dtype,
        max_value=draw(st.integers(0, 255)),
        byte_order="little",
        encoding="raw",
        pixel_size_um=draw(st.floats(0.01, 100)),
        crc32=0,
    )
    return Slice(header, memoryview(draw(st.binary(min_size=size, max_size=size))))


MESSAGES = st.one_of(
    slices(),
    st.builds(
        StackStart,
        **COMMON,
        stack_id=IDS,
        n_slices=st.integers(0, 10_000),
        shape=st.tuples(st.integers(1, 16_384), st.integers(1, 16_384)),
        dtype=st.sampled_from(["uint8", "uint16"]),
        pixel_size_um=st.floats(0.01, 100),
        z_start_um=DEPTHS,
        z_step_um=DEPTHS,
    ),
    st.builds(
        StackEnd,
        **COMMON,
        stack_id=IDS,
        n_slices=st.integers(0, 10_000),
        reason=st.sampled_from(["completed", "aborted"]),
    ),
    st.builds(Heartbeat, **COMMON, **TIMES, stack_id=st.one_of(st.just(""), IDS)),
)


@given(MESSAGES)
def test_what_is_encoded_is_parsed_back(message):
    assert parse(encode(message)) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(MESSAGES, st.data())
@settings(max_examples=300)
def test_damaged_messages_parse_or_raise_the_one_error(message, data):
    frames = [bytes(frame) for frame in encode(message)]
    fields = json.loads(frames[0])
    how = data.draw(st.sampled_from(["value", "drop", "bytes", "frames"]))
    key = data.draw(st.sampled_from(sorted(fields)))
    if how == "value":
        fields[key] = data.draw(JSON)
        frames[0] = json.dumps(fields).encode()
    elif how == "drop":
        del fields[key]
        frames[0] = json.dumps(fields).encode()
    elif how == "bytes":
        at = data.draw(st.integers(0, len(frames[0]) - 1))
        frames[0] = frames[0][:at] + data.draw(st.binary(max_size=4)) + frames[0][at + 1 :]
    else:
        frames = data.draw(st.permutations(frames * 2))
    try:
        parse(frames)
    except Rejection as rejection:
        str(rejection).encode("ascii")


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_parse_or_raise_the_one_error(frames):
    with pytest.raises(Rejection):
        parse(frames)
