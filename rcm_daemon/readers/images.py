"""A folder of images, one slice a file, in natural order of their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.image_header import ImageHeader, read_header
from rcm_daemon.readers.recorded_stack import MAX_SLICES, RecordedStack, check_size, stack_id_of
from rcm_daemon.readers.scale import StatedScale, settle_pitch, settle_z
from rcm_daemon.readers.tiff import open_tiff

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

_FORMATS = {
    ".bmp": "BMP", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"
}  # fmt: skip
_MAX_FILE_BYTES = 256 << 20


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder in natural order (slice2 before slice10), without hidden ones.

    Raises
    ------
    StackFileError
        None, too many, or of several formats.
    """
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise StackFileError(f"a stack folder must be readable, got {error.strerror} at {folder}") from error
    files = [entry for entry in entries if entry.suffix.lower() in _FORMATS and entry.is_file()]
    if not files:
        n_folders = sum(entry.is_dir() for entry in entries)
        hint = f" (it holds {n_folders} folders: give one of them)" if n_folders else ""
        raise StackFileError(
            f"a stack folder must hold BMP, PNG, JPEG or TIFF images, found none in {folder}{hint}"
        )
    formats = sorted({_FORMATS[file.suffix.lower()] for file in files})
    if len(formats) > 1:
        raise StackFileError(
            f"a stack folder must hold images of one format, got {', '.join(formats)} in {folder}"
        )
    if len(files) > MAX_SLICES:
        raise StackFileError(
            f"a stack must have 1 to {MAX_SLICES} slices, got {len(files)} files in {folder}"
        )
    return sorted(files, key=lambda file: _natural(file.name))


def open_images(
    folder: Path, files: list[Path], z_step_um: float | None = None, pixel_size_um: float | None = None
) -> RecordedStack:
    """Open a folder of images as a stack; headers are checked now, pixels decoded when read.

    Raises
    ------
    StackFileError
        See `open_stack`.
    """
    if _FORMATS[files[0].suffix.lower()] == "TIFF":
        return _open_tiffs(folder, files, z_step_um, pixel_size_um)
    shape, dtype = check_headers(files, folder)
    return RecordedStack(
        stack_id=stack_id_of(folder.resolve().name),
        path=folder,
        z_um=settle_z(None, len(files), z_step_um, folder),
        pixel_size_um=settle_pitch(StatedScale(), pixel_size_um, folder),
        shape=shape,
        dtype=dtype,
        max_value=0,
        flags=(),
        _read=lambda index: read_image(files[index]),
        _close=lambda: None,
    )


def check_headers(files: list[Path], folder: Path) -> tuple[tuple[int, int], str]:
    """Shape and dtype that all files declare; each must be whole, grey, and like the others."""
    shapes = {file: _checked_header(file) for file in files}
    shape, dtype = _one_kind(
        ((file, (h.rows, h.columns), f"uint{h.bits}") for file, h in shapes.items()), folder
    )
    check_size(*shape, len(files), folder)
    return shape, dtype


def read_image(file: Path) -> npt.NDArray[Any]:
    """Decode one file to uint8 or uint16 [rows, columns]."""
    data = _bytes_of(file)
    _check(read_header(data), file)
    previous = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    finally:
        cv2.utils.logging.setLogLevel(previous)
    if image is None:
        raise StackFileError(f"a slice must be a readable image, but {file} cannot be decoded")
    if image.ndim == 3:  # a palette: OpenCV gives its colours
        if np.any(image != image[:, :, :1]):
            raise StackFileError(
                f"a palette must hold greys only, got colours in {file}: convert colour to grey first"
            )
        image = image[:, :, 0]
    return np.asarray(image)


def _checked_header(file: Path) -> ImageHeader:
    return _check(read_header(_bytes_of(file)), file)


def _check(header: ImageHeader | None, file: Path) -> ImageHeader:
    if header is None:
        raise StackFileError(f"a slice must be a BMP, PNG or JPEG image, got other bytes in {file}")
    if header.kind in ("colour", "transparent"):
        raise StackFileError(
            f"a slice must be grey, got {header.kind} pixels in {file}: convert colour to grey first"
        )
    if header.bits not in (8, 16):
        raise StackFileError(f"a slice must have 8 or 16 bits a pixel, got {header.bits} in {file}")
    check_size(header.rows, header.columns, 1, file)
    if not header.whole:
        raise StackFileError(f"an image must be whole, but {file} is cut short or damaged")
    return header


def _bytes_of(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StackFileError(f"a slice must be readable, got {error.strerror} at {file}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise StackFileError(f"an image file must have at most {_MAX_FILE_BYTES} bytes, got more in {file}")
    return data


def _open_tiffs(
    folder: Path, files: list[Path], z_step_um: float | None, pixel_size_um: float | None
) -> RecordedStack:
    kinds = []
    pitches = set()
    for file in files:
        with open_tiff(file, z_step_um or 1.0, pixel_size_um) as page:
            if page.n_slices != 1:
                raise StackFileError(
                    f"a file of a stack folder must hold one slice, got {page.n_slices} in {file}: give the "
                    "file itself instead of its folder"
                )
            kinds.append((file, page.shape, page.dtype))
            pitches.add(page.pixel_size_um)
    shape, dtype = _one_kind(kinds, folder)
    if len(pitches) > 1:
        low, high = min(pitches), max(pitches)
        raise StackFileError(f"all slices must have one pitch, got {low:g} to {high:g} um in {folder}")
    pitch = pitches.pop()

    def read(index: int) -> npt.NDArray[Any]:
        with open_tiff(files[index], 1.0, pitch) as page:
            return page.read(0)

    return RecordedStack(
        stack_id=stack_id_of(folder.resolve().name),
        path=folder,
        z_um=settle_z(None, len(files), z_step_um, folder),
        pixel_size_um=pitch,
        shape=shape,
        dtype=dtype,
        max_value=0,
        flags=(),
        _read=read,
        _close=lambda: None,
    )


def _one_kind(
    kinds: Iterable[tuple[Path, tuple[int, int], str]], folder: Path
) -> tuple[tuple[int, int], str]:
    (first, shape, dtype), *others = kinds
    for file, other_shape, other_dtype in others:
        if (other_shape, other_dtype) != (shape, dtype):
            raise StackFileError(
                f"all slices must have one size and depth, got {dtype} {list(shape)} in {first.name} and "
                f"{other_dtype} {list(other_shape)} in {file.name} in {folder}"
            )
    return shape, dtype


def _natural(name: str) -> list[tuple[int, int | str]]:
    # Digits compare as numbers; the tag keeps numbers and text apart where names differ in kind.
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.split(r"([0-9]+)", name)]
