"""The pixels of one slice of a checked TIFF series."""

from __future__ import annotations

import contextlib
import logging
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.image_header import jpeg_header
from rcm_daemon.readers.tiff_pages import DEFLATE, JPEG, PALETTE, WHITE_IS_ZERO, has_imagecodecs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from rcm_daemon.readers.directories import Directory


class TiffSlices:
    """Decodes slices of one series; pixels that lie in the file as they are are only read.

    To decode one the library reads all the tags of its page first, which keeps other threads waiting.

    Parameters
    ----------
    series
        tifffile's series.
    pages
        Checked directories, one a slice; a single one where all slices follow the first one's pixels.
    """

    def __init__(self, file: BinaryIO, series: Any, pages: list[Directory], path: Path) -> None:
        self._file = file
        self._series = series
        self._pages = pages
        self._path = path
        self._pixels_at = _pixels_at(series, pages)
        self._dtype = np.dtype(f"{series.parent.byteorder}u{pages[0].bits // 8}")
        self._grey = (
            _grey_palette(series.keyframe.colormap, path) if pages[0].photometric == PALETTE else None
        )

    def read(self, index: int) -> npt.NDArray[Any]:
        """Decode slice `index` to uint8 or uint16 [rows, columns]."""
        with silent_tifffile() as warnings, as_stack_file_error(f"slice {index} of {self._path}"):
            if self._pixels_at is not None:
                image = self._read_pixels(self._pixels_at(index))
            else:
                self._check_streams(self._pages[index])
                image = np.asarray(self._series.pages[index].asarray(maxworkers=1))
        if warnings:
            raise StackFileError(
                f"a slice must decode without faults, got '{warnings[0]}' for slice {index} of {self._path}"
            )
        if self._grey is not None:
            image = self._grey[image]
        return np.invert(image) if self._pages[0].photometric == WHITE_IS_ZERO else image

    def _read_pixels(self, at: int) -> npt.NDArray[Any]:
        page = self._pages[0]
        self._file.seek(at)
        pixels = np.frombuffer(self._file.read(page.n_pixel_bytes), self._dtype)
        return pixels.reshape(page.rows, page.columns)

    def _check_streams(self, page: Directory) -> None:
        """Refuse streams that would unpack to more than the page declares, where the codec does not."""
        if page.compression != JPEG and (page.compression not in DEFLATE or has_imagecodecs()):
            return
        rows, columns = page.tile or (page.rows, page.columns)
        limit = rows * columns * page.bits // 8
        for offset, n_bytes in zip(page.offsets, page.byte_counts, strict=True):
            self._file.seek(offset)
            data = self._file.read(n_bytes)
            if page.compression == JPEG:
                header = jpeg_header(data)
                fits = header is not None and header.rows <= rows and header.columns <= columns
            else:
                fits = len(zlib.decompressobj().decompress(data, limit + 1)) <= limit
            if not fits:
                raise StackFileError(
                    f"a slice must unpack to the {limit} bytes it declares at most, got more in {self._path}"
                )


def _pixels_at(series: Any, pages: list[Directory]) -> Callable[[int], int] | None:
    """Where the pixels of slice i lie as they are, in one run or each page's in its own; else None."""
    if len(series.pages) == 1 and series.dataoffset is not None:
        first, n_bytes = int(series.dataoffset), pages[0].n_pixel_bytes
        return lambda index: first + index * n_bytes
    if series.kind == "lsm":  # beyond 4 GB its offsets have wrapped: the library knows
        return None
    starts = [page.pixels_at for page in pages]
    found = [start for start in starts if start is not None]
    return found.__getitem__ if len(found) == len(starts) else None


def _grey_palette(colours: Any, path: Path) -> npt.NDArray[np.uint8]:
    """Grey level of each palette index, when the palette has only greys."""
    if colours is None or colours.shape != (3, 256) or np.any(colours != colours[0]):
        raise StackFileError(
            f"a palette must hold greys only, got colours in {path}: convert colour to grey first"
        )
    return np.asarray(colours[0] >> 8, dtype=np.uint8)


@contextlib.contextmanager
def silent_tifffile() -> Iterator[list[str]]:
    """Collect what tifffile would log on stderr: it mends what it can and only mentions it there."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(" ".join(record.getMessage().split())[:200])

    log, collector = logging.getLogger("tifffile"), Collector(logging.WARNING)
    propagate = log.propagate
    log.addHandler(collector)
    log.propagate = False
    try:
        yield messages
    finally:
        log.removeHandler(collector)
        log.propagate = propagate


@contextlib.contextmanager
def as_stack_file_error(where: str) -> Iterator[None]:
    """Turn whatever a TIFF library raises on a damaged file into this project's error."""
    try:
        yield
    except StackFileError:
        raise
    except Exception as error:  # tifffile and its codecs raise a dozen classes without a common base
        reason = " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
        raise StackFileError(f"a TIFF must be readable, got '{reason}' for {where}") from error
