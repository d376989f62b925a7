"""Frames of `rcm-slice-1` to records and back; bytes in, a record or the one error out."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from isal import isal_zlib
from pydantic import TypeAdapter, ValidationError

from rcm_daemon.core.records import (
    DTYPES,
    SLICE_SCHEMA,
    Count,
    Heartbeat,
    Instrument,
    Message,
    RunId,
    Slice,
    SliceHeader,
    StackEnd,
    StackId,
    StackStart,
)
from rcm_daemon.core.rejection import Origin, Rejection, Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_HEADER_BYTES = 64 * 1024
MAX_DEPTH = 4
MAX_SLICE_BYTES = 64 * 1024 * 1024

_HEADERS: dict[str, type[StackStart | SliceHeader | StackEnd | Heartbeat]] = {
    "stack_start": StackStart,
    "slice": SliceHeader,
    "stack_end": StackEnd,
    "heartbeat": Heartbeat,
}
_STRINGS_AND_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_KEY_RULES = {"stack_id": Rule.BAD_ID, "instrument": Rule.BAD_ID, "dtype": Rule.BAD_DTYPE}
_IDENTITY: dict[str, TypeAdapter[Any]] = {
    "instrument": TypeAdapter(Instrument),
    "run_id": TypeAdapter(RunId),
    "msg_number": TypeAdapter(Count),
    "stack_id": TypeAdapter(StackId),
    "index": TypeAdapter(Count),
}


def parse(frames: Sequence[bytes | bytearray | memoryview]) -> Message:
    """Read one multipart message.

    Parameters
    ----------
    frames
        An optional topic frame, one JSON object, and for a slice its bytes.

    Returns
    -------
    Message
        A frozen record; a slice's blob is a view, nothing is copied.

    Raises
    ------
    Rejection
        For anything else; no other exception leaves this function.
    """
    body = list(frames[1:]) if frames and not _begins_object(frames[0]) else list(frames)
    if not body or not _begins_object(body[0]):
        detail = f"expected a frame with one JSON object, got {len(frames)} frame(s) without"
        raise Rejection(Rule.NOT_JSON, detail)
    fields = _read_json(body[0])
    kind = _check_schema(fields)
    try:
        header = kind.model_validate(fields)
    except ValidationError as error:
        _raise_for(error, fields)
    if isinstance(header, SliceHeader):
        return Slice(header, _check_blob(header, body, fields))
    if len(body) != 1:
        raise Rejection(Rule.FRAME_COUNT, f"a {header.htype} has 1 frame, got {len(body)}", _identify(fields))
    return header


def encode(message: Message) -> list[bytes | memoryview]:
    """Write a record as the frames that `parse` reads back."""
    header = message.header if isinstance(message, Slice) else message
    frame = header.model_dump_json(by_alias=True).encode()
    return [frame, message.blob] if isinstance(message, Slice) else [frame]


def _begins_object(frame: bytes | bytearray | memoryview) -> bool:
    head = bytes(memoryview(frame)[:64]).lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"{")


def _read_json(frame: bytes | bytearray | memoryview) -> dict[str, Any]:
    size = memoryview(frame).nbytes
    if size > MAX_HEADER_BYTES:
        raise Rejection(Rule.HEADER_TOO_LARGE, f"a header has at most {MAX_HEADER_BYTES} bytes, got {size}")
    text = bytes(frame)
    if (deepest := _depth(text)) > MAX_DEPTH:
        raise Rejection(Rule.NESTED_TOO_DEEPLY, f"a header nests at most {MAX_DEPTH} deep, got {deepest}")
    constants: list[str] = []
    repeated: set[str] = set()

    def note_constant(name: str) -> float:
        constants.append(name)
        return float(name)

    def note_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated.update(key for key in fields if keys.count(key) > 1)
        return fields

    try:
        fields: dict[str, Any] = json.loads(
            text.decode("utf-8-sig"), parse_constant=note_constant, object_pairs_hook=note_repeats
        )
    except UnicodeDecodeError as error:
        raise Rejection(Rule.NOT_JSON, f"a header is UTF-8, byte {error.start} is not") from None
    except ValueError as error:
        raise Rejection(Rule.NOT_JSON, f"the header is not JSON ({str(error)[:120]})") from None
    # Neither is JSON, but both say who sent them.
    known = {key: value for key, value in fields.items() if key not in repeated}
    if constants:
        keys = (key for key, value in fields.items() if isinstance(value, float) and not math.isfinite(value))
        where = f" in {_shown(key)}" if (key := next(keys, "")) else ""
        raise Rejection(Rule.NOT_FINITE, f"numbers are finite, got {constants[0]}{where}", _identify(known))
    if repeated:
        detail = f"every key stands once, {_shown(min(repeated))} stands twice"
        raise Rejection(Rule.NOT_JSON, detail, _identify(known))
    return fields


def _depth(text: bytes) -> int:
    """Return how deep a text nests; where it opens no more brackets than are allowed, how many it opens."""
    n_opened = text.count(b"[") + text.count(b"{")
    if n_opened <= MAX_DEPTH:  # a header of any sane sender
        return n_opened
    depth = deepest = 0
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        token = match.group()[:1]
        depth += (token in b"[{") - (token in b"]}")
        deepest = max(deepest, depth)
    return deepest


def _identify(fields: dict[str, Any]) -> Origin:
    """Read who sent a message, key by key, so that even a refused one is accounted to its sender."""
    known: dict[str, Any] = {}
    for key, adapter in _IDENTITY.items():
        try:
            known[key] = adapter.validate_python(fields.get(key), strict=True)
        except ValidationError:
            continue
    htype = fields.get("htype")
    return Origin(**known, htype=htype if isinstance(htype, str) and htype in _HEADERS else "")


def _check_schema(fields: dict[str, Any]) -> type[StackStart | SliceHeader | StackEnd | Heartbeat]:
    schema = fields.get("schema")
    if schema != SLICE_SCHEMA:
        if isinstance(schema, str) and re.fullmatch(r"rcm-slice-[0-9]{1,9}", schema):
            detail = f"{schema} is not served; versions served: {SLICE_SCHEMA}"
            raise Rejection(Rule.UNKNOWN_VERSION, detail, _identify(fields))
        detail = f"schema must be {SLICE_SCHEMA}, got {_shown(schema)}"
        raise Rejection(Rule.WRONG_SCHEMA, detail, _identify(fields))
    htype = fields.get("htype")
    if not isinstance(htype, str) or htype not in _HEADERS:
        detail = f"htype is one of {', '.join(_HEADERS)}, got {_shown(htype)}"
        raise Rejection(Rule.UNKNOWN_HTYPE, detail, _identify(fields))
    return _HEADERS[htype]


def _raise_for(error: ValidationError, fields: dict[str, Any]) -> NoReturn:
    """Name the first broken key, missing ones first, with what was expected and what came."""
    origin = _identify(fields)
    faults = error.errors(include_url=False)
    where = f"{fields['htype']} {origin.index if origin.index >= 0 else ''}".strip()
    if origin.stack_id:
        where += f" of {_shown(origin.stack_id)}"
    missing = [str(fault["loc"][0]) for fault in faults if fault["type"] == "missing"]
    if missing:
        raise Rejection(Rule.MISSING_KEY, f"{where} lacks {', '.join(missing)}", origin)
    fault = faults[0]
    key = str(fault["loc"][0])
    rule = Rule.NOT_FINITE if fault["type"] == "finite_number" else _KEY_RULES.get(key, Rule.BAD_VALUE)
    expected = fault["msg"].removeprefix("Value error, ")
    raise Rejection(rule, f"{key} of {where}: {expected}, got {_shown(fields[key])}", origin)


def _check_blob(header: SliceHeader, body: list[Any], fields: dict[str, Any]) -> memoryview:
    where = f"slice {header.index} of {_shown(header.stack_id)}"

    def refused(rule: Rule, detail: str) -> Rejection:
        return Rejection(rule, detail, _identify(fields))

    if len(body) != 2:
        raise refused(Rule.FRAME_COUNT, f"{where} has 2 frames, JSON and bytes, got {len(body)}")
    blob = memoryview(body[1]).cast("B")
    rows, columns = header.shape
    dtype = DTYPES[header.dtype]
    expected = rows * columns * dtype.itemsize
    if expected > MAX_SLICE_BYTES:
        detail = f"{where} claims {expected} bytes, at most {MAX_SLICE_BYTES} are served"
        raise refused(Rule.TOO_LARGE, detail)
    if blob.nbytes != expected:
        detail = f"{where} is {rows} x {columns} {header.dtype} = {expected} bytes, got {blob.nbytes}"
        raise refused(Rule.PAYLOAD_LENGTH, detail)
    if header.max_value > 2 ** (8 * dtype.itemsize) - 1:
        detail = f"max_value of {where}: at most the largest {header.dtype}, got {header.max_value}"
        raise refused(Rule.BAD_VALUE, detail)
    if header.crc32:
        crc32 = isal_zlib.crc32(blob)  # zlib's own takes five times as long
        if crc32 != header.crc32:
            detail = f"{where} has crc32 {crc32}, its header says {header.crc32}"
            raise refused(Rule.CRC_MISMATCH, detail)
    return blob


def _shown(value: object) -> str:
    """Show a value from outside: escaped, quoted and short."""
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
