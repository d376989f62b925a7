"""The same small stack in every form a reader takes, and damaged TIFFs built by hand."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import tifffile

if TYPE_CHECKING:
    from pathlib import Path

Z_STEP_UM = 3.0
PITCH_UM = 0.5


def grey_stack(n: int = 6, rows: int = 40, columns: int = 56, dtype: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(n * rows)
    return rng.integers(0, np.iinfo(dtype).max, (n, rows, columns), endpoint=True).astype(dtype)


def write_imagej(
    path: Path, stack: np.ndarray, unit: str = "um", spacing: float = Z_STEP_UM, **options: Any
) -> Path:
    metadata = {"spacing": spacing, "unit": unit, "axes": "ZYX"} | options.pop("metadata", {})
    options.setdefault("resolution", (1 / PITCH_UM, 1 / PITCH_UM))
    tifffile.imwrite(path, stack, imagej=True, metadata=metadata, **options)
    return path


def write_ome(path: Path, stack: np.ndarray, **options: Any) -> Path:
    metadata = {
        "axes": "ZYX", "PhysicalSizeZ": Z_STEP_UM, "PhysicalSizeZUnit": "µm", "PhysicalSizeX": PITCH_UM,
        "PhysicalSizeXUnit": "µm", "PhysicalSizeY": PITCH_UM, "PhysicalSizeYUnit": "µm",
    } | options.pop("metadata", {})  # fmt: skip
    options = {"photometric": "minisblack", "ome": True} | options
    tifffile.imwrite(path, stack, metadata={k: v for k, v in metadata.items() if v is not None}, **options)
    return path


def write_plain(path: Path, stack: np.ndarray, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for image in stack:
            writer.write(image, photometric="minisblack", metadata=None, contiguous=False, **options)
    return path


def write_images(folder: Path, stack: np.ndarray, suffix: str = ".png", pattern: str = "slice{}") -> Path:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(stack):
        data = cv2.imencode(suffix, image)[1].tobytes()
        (folder / (pattern.format(i) + suffix)).write_bytes(data)
    return folder


def bmp(image: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """8-bit palettised BMP, bottom row first; `palette` uint8 [256, 3] (blue, green, red), else grey."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1) if palette is None else palette
    table = np.concatenate([ramp, np.zeros((256, 1), np.uint8)], axis=1).tobytes()
    rows, columns = image.shape
    padded = np.pad(image, ((0, 0), (0, -columns % 4)))[::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, columns, rows, 1, 8, 0, len(padded), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(padded), 0, 0, 54 + 1024) + header + table + padded


def write_vivastack(folder: Path, stack: np.ndarray, caption: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(stack):
        if caption:
            strip = np.zeros((45, image.shape[1]), np.uint8)
            cv2.putText(strip, f"{-i * Z_STEP_UM:.2f} um", (5, 30), cv2.FONT_HERSHEY_PLAIN, 2, 255)
            image = np.concatenate([image, strip])
        (folder / f"v{i:07d}.bmp").write_bytes(bmp(image))
    return folder


def raw_tiff(blob: bytes, *tags: tuple[int, int, int | tuple[int, ...]], next_offset: int = 0) -> bytes:
    """Build a little-endian TIFF of one directory; tags are (number, type, value); pixels at byte 8."""
    blob += bytes(len(blob) % 2)
    entries = b""
    for number, kind, value in sorted(tags):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values).ljust(4, b"\0")
        entries += struct.pack("<HHI", number, kind, len(values)) + packed[:4]
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_offset)
    return struct.pack("<2sHI", b"II", 42, 8 + len(blob)) + blob + directory


def page_tags(
    rows: int, columns: int, n_bytes: int, **other: int
) -> list[tuple[int, int, int | tuple[int, ...]]]:
    return [
        (256, 4, columns),
        (257, 4, rows),
        (258, 3, other.get("bits", 8)),
        (259, 3, other.get("compression", 1)),
        (262, 3, other.get("photometric", 1)),
        (273, 4, 8),
        (277, 3, other.get("samples", 1)),
        (278, 4, rows),
        (279, 4, n_bytes),
        (339, 3, other.get("sample_format", 1)),
    ]
