"""Damage for the wire: whole messages, and what turns them into others; no code of the product."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from sender import Sender, picture

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

TOKENS = (
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\\udfff",
        b"\x00",
        b"\xff",
        b"\xc3",
    ),
    *(
        b"null",
        b"true",
        b"false",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0.5",
        b"1e-400",
        b"-0.0",
    ),
    *(b"9" * 400, b"[" * 70, b'{"a":' * 70, b"\xef\xbb\xbf", b"\xe2\x80\xae", "ａ".encode(), "а".encode()),
    *(
        b'"rcm-slice-1"',
        b'"rcm-slice-2"',
        b'"slice"',
        b'"heartbeat"',
        b'"../x"',
        b'"uint16"',
        b"[4,4]",
        b"[]",
    ),
    *(b"[16384,16384]", b" " * 66_000),
)


def whole_messages() -> list[list[bytes]]:
    """Return one message of each kind, and slices of both dtypes, with and without a topic."""
    sender = Sender()
    slice_ = sender.slice("s", 1, picture(1, (4, 4)))
    return [
        slice_,
        [b"topic", *slice_],
        sender.slice("s", 2, picture(2, (2, 3)).astype("uint16"), max_value=4095, crc32=0),
        sender.start("s", 3),
        sender.end("s", 3),
        sender.heartbeat("s"),
    ]


def damaged(random_: random.Random, whole: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Return a message with up to four things done to it."""
    frames = [bytes(frame) for frame in random_.choice(whole)]
    for _ in range(random_.randint(0, 4)):
        _damage(random_, frames, whole)
    return frames


def _damage(random_: random.Random, frames: list[bytes], whole: Sequence[Sequence[bytes]]) -> None:
    how = random_.randrange(10)
    if how == 0 and frames:
        del frames[random_.randrange(len(frames))]
    elif how == 1:
        frames.insert(random_.randint(0, len(frames)), random_.choice(random_.choice(whole)))
    elif how == 2:
        random_.shuffle(frames)
    elif how == 3:
        frames.append(random_.randbytes(random_.randrange(40)))
    elif frames:
        which = random_.randrange(len(frames))
        if how == 4:
            frames[which] = _other_value(random_, frames[which])
        else:
            frames[which] = _other_bytes(random_, frames[which])


def _other_value(random_: random.Random, frame: bytes) -> bytes:
    """Put another JSON value in the place of one, so that the rest stays whole."""
    places = [match.span(1) for match in re.finditer(rb":\s*(\"[^\"]*\"|\[[^\]]*\]|[^,}\s]+)", frame)]
    if not places:
        return frame
    begin, end = random_.choice(places)
    return frame[:begin] + random_.choice(TOKENS) + frame[end:]


def _other_bytes(random_: random.Random, frame: bytes) -> bytes:
    at = random_.randint(0, len(frame))
    how = random_.randrange(5)
    if how == 0:
        return frame[:at] + random_.randbytes(1) + frame[at + 1 :]
    if how == 1:
        return frame[:at] + frame[at + random_.randint(1, 9) :]
    if how == 2:
        return frame[:at] + random_.choice(TOKENS) + frame[at:]
    if how == 3:
        return frame[: len(frame) // 2] if random_.random() < 0.5 else frame * 2
    end = random_.randint(at, len(frame))
    return frame[:at] + frame[at:end][::-1] + frame[end:]


def read_corpus(folder: Path) -> dict[str, list[bytes]]:
    """Return each recorded message by its file's name."""
    return {path.name: _unpack(path.read_bytes()) for path in sorted(folder.glob("*.bin"))}


def pack(frames: Sequence[bytes]) -> bytes:
    """Write frames as one file: each with its length before it (4 bytes, little-endian)."""
    return b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)


def _unpack(data: bytes) -> list[bytes]:
    frames = []
    while data:
        (length,) = struct.unpack("<I", data[:4])
        frames.append(data[4 : 4 + length])
        data = data[4 + length :]
    return frames
