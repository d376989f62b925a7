"""What a BMP, PNG or JPEG file declares, and whether it is whole, read before anything is decoded."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

_PNG_MARK = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {0: "grey", 2: "colour", 3: "palette", 4: "transparent", 6: "transparent"}
# Start-of-frame markers; C4, C8 and CC in their range are something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class ImageHeader:
    """Declared rows, columns, bits a sample, and kind: grey, colour, palette or transparent."""

    rows: int
    columns: int
    bits: int
    kind: str
    whole: bool


def read_header(data: bytes) -> ImageHeader | None:
    """Read the header of a whole file; None when it is no BMP, PNG or JPEG."""
    if data.startswith(b"BM"):
        return _bmp_header(data)
    if data.startswith(_PNG_MARK):
        return _png_header(data)
    if data.startswith(b"\xff\xd8"):
        return jpeg_header(data)
    return None


def _bmp_header(data: bytes) -> ImageHeader | None:
    if len(data) < 54:
        return None
    pixels_at, header_size = struct.unpack_from("<II", data, 10)
    if header_size < 40:
        return None
    columns, rows, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    rows = abs(rows)  # negative: top row first
    row_bytes = (columns * bits + 31) // 32 * 4
    # Run-length rows have no fixed length; the decoder reports those that end early.
    whole = columns > 0 and (compression in (1, 2) or len(data) >= pixels_at + row_bytes * rows)
    return ImageHeader(rows, columns, min(bits, 8), "palette" if bits <= 8 else "colour", whole)


def _png_header(data: bytes) -> ImageHeader | None:
    if len(data) < 33 or data[12:16] != b"IHDR":
        return None
    columns, rows, bits, colour = struct.unpack_from(">IIBB", data, 16)
    return ImageHeader(rows, columns, bits, _PNG_KINDS.get(colour, "colour"), _png_is_whole(data))


def _png_is_whole(data: bytes) -> bool:
    at = len(_PNG_MARK)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if end > len(data):
            return False
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def jpeg_header(data: bytes) -> ImageHeader | None:
    """Read a JPEG stream's frame header; None when it has none."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _JPEG_FRAMES:
            bits, rows, columns, n_components = struct.unpack_from(">BHHB", data, at + 4)
            whole = data.rstrip(b"\x00").endswith(b"\xff\xd9")
            return ImageHeader(rows, columns, bits, "grey" if n_components == 1 else "colour", whole)
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + max(2, length)
    return None
