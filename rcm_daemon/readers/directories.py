"""The directories (IFDs) of a TIFF, read before anything is decoded and without trusting any number in it.

TIFF 6.0 and BigTIFF. TIFF libraries mend what they can: a stack cut short opens as one page. Here a chain of
directories that leads out of the file, or pixels that would lie past its end, is a fault to report.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.recorded_stack import MAX_SLICES

if TYPE_CHECKING:
    from pathlib import Path

_N_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_LETTER = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_COLUMNS, _ROWS, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES = 273, 277, 279
_TILE_COLUMNS, _TILE_ROWS, _TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT = 322, 323, 324, 325, 339
_HOW_PACKED = {266, 317}  # fill order and predictor
_WANTED = {
    _COLUMNS, _ROWS, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES,
    _TILE_COLUMNS, _TILE_ROWS, _TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT,
}  # fmt: skip
UNCOMPRESSED = 1
_MAX_ENTRIES = 4096
_MAX_VALUES = 1 << 18
MAX_DIRECTORIES = 4 * MAX_SLICES  # thumbnails and masks may lie between the slices


@dataclass(frozen=True)
class Directory:
    """One page as declared: sizes in pixels, segment offsets and lengths in bytes."""

    rows: int
    columns: int
    bits: int
    n_samples: int
    sample_format: int
    compression: int
    photometric: int
    tile: tuple[int, int] | None
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    is_plain: bool
    """Whether bits and differences are as they are, once unpacked."""

    @property
    def n_pixel_bytes(self) -> int:
        """Bytes of the pixels once unpacked."""
        return self.rows * self.columns * self.bits // 8

    @property
    def pixels_at(self) -> int | None:
        """Where the pixels lie, when they lie there one after the other as they are; else None."""
        at = self.offsets[0]
        for offset, n_bytes in zip(self.offsets, self.byte_counts, strict=True):
            if offset != at:
                return None
            at += n_bytes
        as_they_are = self.compression == UNCOMPRESSED and self.is_plain and self.tile is None
        return self.offsets[0] if as_they_are and at - self.offsets[0] == self.n_pixel_bytes else None

    @property
    def end(self) -> int:
        """First byte after the last segment."""
        return max((o + n for o, n in zip(self.offsets, self.byte_counts, strict=False)), default=0)


@dataclass(frozen=True)
class DirectoryChain:
    """All directories found, and why the chain broke off, if it did."""

    directories: tuple[Directory, ...]
    fault: str
    n_bytes: int


class _BrokenError(Exception):
    pass


def read_directories(file: BinaryIO, path: Path) -> DirectoryChain:
    """Walk the chain of directories to its end or to where it breaks.

    Raises
    ------
    StackFileError
        Not a TIFF, or more directories than any stack has.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(order + "H", head[2:4])[0] if order and len(head) >= 8 else 0
    if version not in (42, 43) or (version == 43 and len(head) < 16):
        found = "an empty file" if not head else f"a file that begins with {head[:4].hex(' ')}"
        raise StackFileError(f"a stack file must be a TIFF, got {found} at {path}")
    big = version == 43
    offset = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    walker = _Walker(file, n_bytes, order, big)
    directories: list[Directory] = []
    seen: set[int] = set()
    fault = ""
    while offset:
        if len(directories) >= MAX_DIRECTORIES:
            raise StackFileError(
                f"a stack must have 1 to {MAX_SLICES} slices, got over {MAX_DIRECTORIES} in {path}"
            )
        if offset in seen:
            fault = "its list of pages runs in a circle"
            break
        seen.add(offset)
        try:
            directory, offset = walker.directory(offset)
        except _BrokenError as error:
            fault = str(error)
            break
        directories.append(directory)
    return DirectoryChain(tuple(directories), fault, n_bytes)


class _Walker:
    """Reads numbers of one byte order and offset width, never past the end of the file."""

    def __init__(self, file: BinaryIO, n_bytes: int, order: str, big: bool) -> None:
        self._file = file
        self._n_bytes = n_bytes
        self._order = order
        self._big = big

    def _take(self, offset: int, n: int) -> bytes:
        if offset + n > self._n_bytes:
            raise _BrokenError("its list of pages leads past the end of the file")
        self._file.seek(offset)
        return self._file.read(n)

    def directory(self, offset: int) -> tuple[Directory, int]:
        count_format, entry_size, offset_format = ("Q", 20, "Q") if self._big else ("H", 12, "I")
        count_size = struct.calcsize("<" + count_format)
        n_entries = struct.unpack(self._order + count_format, self._take(offset, count_size))[0]
        if not 1 <= n_entries <= _MAX_ENTRIES:
            raise _BrokenError(f"a page has {n_entries} tags")
        start = offset + count_size
        link_size = struct.calcsize("<" + offset_format)
        block = self._take(start, n_entries * entry_size + link_size)
        tags: dict[int, tuple[int, ...]] = {}
        for i in range(n_entries):
            entry = block[i * entry_size : (i + 1) * entry_size]
            tag, kind = struct.unpack(self._order + "HH", entry[:4])
            how_packed = tag in _HOW_PACKED
            values = self._values(kind, entry[4:], tag in _WANTED or (how_packed and kind in _LETTER))
            if values or how_packed:
                tags[tag] = values or (0,)  # of another type: the library decodes it, whatever it says
        next_offset = struct.unpack(self._order + offset_format, block[-link_size:])[0]
        return _directory(tags), next_offset

    def _values(self, kind: int, rest: bytes, wanted: bool) -> tuple[int, ...]:
        """Integers of a wanted tag; of all others only that they lie within the file."""
        width = 8 if self._big else 4
        letter = "Q" if self._big else "I"
        count = struct.unpack(self._order + letter, rest[:width])[0]
        n = count * _N_BYTES.get(kind, 1)
        offset = struct.unpack(self._order + letter, rest[width:])[0] if n > width else 0
        if offset + n > self._n_bytes:
            raise _BrokenError("the description of a page leads past the end of the file")
        if not wanted:
            return ()
        if kind not in _LETTER or not 1 <= count <= _MAX_VALUES:
            raise _BrokenError("a page has a tag of an impossible type or length")
        data = self._take(offset, n) if n > width else rest[width : width + n]
        return struct.unpack(f"{self._order}{count}{_LETTER[kind]}", data)


def _directory(tags: dict[int, tuple[int, ...]]) -> Directory:
    if _COLUMNS not in tags or _ROWS not in tags:
        raise _BrokenError("a page states no size")
    tiled = _TILE_OFFSETS in tags or _TILE_COLUMNS in tags
    offsets = tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ())
    byte_counts = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ())
    if not byte_counts and len(offsets) == 1 and tags.get(_COMPRESSION, (1,))[0] == UNCOMPRESSED:
        # Optional in old files of one uncompressed strip.
        byte_counts = (tags[_ROWS][0] * tags[_COLUMNS][0] * tags.get(_BITS, (1,))[0] // 8,)
    if not offsets or len(offsets) != len(byte_counts):
        raise _BrokenError("a page does not say where its pixels lie")
    return Directory(
        rows=tags[_ROWS][0],
        columns=tags[_COLUMNS][0],
        bits=tags.get(_BITS, (1,))[0],
        n_samples=tags.get(_SAMPLES, (1,))[0],
        sample_format=tags.get(_SAMPLE_FORMAT, (1,))[0],
        compression=tags.get(_COMPRESSION, (1,))[0],
        photometric=tags.get(_PHOTOMETRIC, (1,))[0],
        tile=(tags.get(_TILE_ROWS, (0,))[0], tags.get(_TILE_COLUMNS, (0,))[0]) if tiled else None,
        offsets=offsets,
        byte_counts=byte_counts,
        is_plain=all(tags.get(tag, (1,))[0] == 1 for tag in _HOW_PACKED),
    )
