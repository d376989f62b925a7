"""Stacks in one TIFF: ImageJ, OME and plain multi-page files of 8 or 16-bit grey slices."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import zlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import tifffile

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.directories import Directory, DirectoryChain, read_directories
from rcm_daemon.readers.image_header import jpeg_header
from rcm_daemon.readers.recorded_stack import RecordedStack, check_size, stack_id_of
from rcm_daemon.readers.scale import settle_pitch, settle_z
from rcm_daemon.readers.tiff_metadata import n_planes_declared, stated_scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

_NONE, _DEFLATE, _JPEG = 1, (8, 32946), 7
_WITH_IMAGECODECS = {5: "LZW", _JPEG: "JPEG", 32773: "PackBits", 50000: "Zstandard"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE = 0, 1, 3
_DEPTH_AXES = "ZIQ"  # depth as named by ImageJ or OME; pages in file order; unnamed
_AXIS_WORDS = {"T": "time points", "C": "channels", "S": "samples a pixel"}


def open_tiff(
    path: Path, z_step_um: float | None = None, pixel_size_um: float | None = None, series: int | None = None
) -> RecordedStack:
    """Open a TIFF as a stack; nothing is decoded yet.

    Raises
    ------
    StackFileError
        See `open_stack`.
    """
    with ExitStack() as resources:
        try:
            file = resources.enter_context(path.open("rb"))
        except OSError as error:
            raise StackFileError(f"a stack file must be readable, got {error.strerror} at {path}") from error
        chain = read_directories(file, path)
        with _silent_tifffile(), _as_stack_file_error(path):
            tif = resources.enter_context(tifffile.TiffFile(file, _multifile=False))
            _check_whole(chain, n_planes_declared(tif, path), path)
            chosen = _choose_series(tif, series, path)
            n_slices = _n_slices(chosen, path)
            pages = _directories_of(chosen, chain, n_slices, path)
            check_size(pages[0].rows, pages[0].columns, n_slices, path)
            for i, page in enumerate(pages):
                _check_page(page, pages[0], i, path)
            stated = stated_scale(tif, chosen, n_slices, path)
            reader = _SliceReader(file, chosen, pages, n_slices, path)
        stack = RecordedStack(
            stack_id=stack_id_of(path.name.removesuffix(path.suffix).removesuffix(".ome")),
            path=path,
            z_um=settle_z(stated.z_um, n_slices, z_step_um, path),
            pixel_size_um=settle_pitch(stated, pixel_size_um, path),
            shape=(pages[0].rows, pages[0].columns),
            dtype=f"uint{pages[0].bits}",
            max_value=0,
            flags=(),
            _read=reader.read,
            _close=resources.pop_all().close,
        )
    return stack


class _SliceReader:
    """Decodes one slice of a checked series."""

    def __init__(
        self, file: BinaryIO, series: Any, pages: list[Directory], n_slices: int, path: Path
    ) -> None:
        self._file = file
        self._series = series
        self._pages = pages
        self._path = path
        keyframe = series.keyframe
        self._photometric = pages[0].photometric
        self._grey: npt.NDArray[np.uint8] | None = None
        if self._photometric == _PALETTE:
            self._grey = _grey_palette(keyframe.colormap, path)
        self._byte_order = tifffile_order = series.parent.byteorder
        # ImageJ writes stacks over 4 GB with a single directory, the other slices following its pixels.
        self._contiguous_at: int | None = None
        if len(series.pages) < n_slices or len(pages) < n_slices:
            first = pages[0]
            n_bytes = first.rows * first.columns * first.bits // 8
            if series.dataoffset is None or first.compression != _NONE:
                raise _cut_short(len(pages), n_slices, "its directories are too few", path)
            self._contiguous_at, self._n_bytes = int(series.dataoffset), n_bytes
            end = self._contiguous_at + n_slices * n_bytes
            file.seek(0, 2)
            if file.tell() < end:
                n_found = (file.tell() - self._contiguous_at) // n_bytes
                raise _cut_short(n_found, n_slices, "its pixels end early", path)
        del tifffile_order

    def read(self, index: int) -> npt.NDArray[Any]:
        with _silent_tifffile() as messages, _as_stack_file_error(self._path, f"slice {index} of "):
            if self._contiguous_at is not None:
                image = self._read_contiguous(index)
            else:
                self._check_segments(self._pages[index])
                image = self._series.pages[index].asarray(maxworkers=1)
            if messages:
                raise StackFileError(f"slice {index} must decode without faults, got {messages[0]} in {self._path}")
        image = image.reshape(image.shape[-2:])
        if self._grey is not None:
            return self._grey[image]
        return ~image if self._photometric == _WHITE_IS_ZERO else image

    def _read_contiguous(self, index: int) -> npt.NDArray[Any]:
        first = self._pages[0]
        self._file.seek(self._contiguous_at + index * self._n_bytes)
        dtype = np.dtype(f"{self._byte_order}u{first.bits // 8}")
        return np.frombuffer(self._file.read(self._n_bytes), dtype).reshape(first.rows, first.columns)

    def _check_segments(self, page: Directory) -> None:
        """Refuse streams that would unpack to more than the page declares, where the codec itself does not."""
        if page.compression not in (*_DEFLATE, _JPEG):
            return
        rows, columns = page.tile or (page.rows, page.columns)
        limit = rows * columns * page.bits // 8
        for offset, n_bytes in zip(page.offsets, page.byte_counts, strict=True):
            self._file.seek(offset)
            data = self._file.read(n_bytes)
            if page.compression == _JPEG:
                header = jpeg_header(data)
                too_large = header is None or header.rows > rows or header.columns > columns
            else:
                too_large = not _has_imagecodecs() and len(zlib.decompressobj().decompress(data, limit + 1)) > limit
            if too_large:
                raise StackFileError(
                    f"a slice must unpack to at most the {limit} bytes it declares, got more in {self._path}"
                )
