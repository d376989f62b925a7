"""Stacks in one TIFF: ImageJ, OME and plain multi-page files of 8 or 16-bit grey slices."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import tifffile

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.directories import Directory, DirectoryChain, read_directories
from rcm_daemon.readers.recorded_stack import RecordedStack, check_size, stack_id_of
from rcm_daemon.readers.scale import settle_pitch, settle_z
from rcm_daemon.readers.tiff_metadata import n_planes_declared, stated_scale
from rcm_daemon.readers.tiff_pages import check_page, check_whole
from rcm_daemon.readers.tiff_slices import TiffSlices, as_stack_file_error, silent_tifffile

if TYPE_CHECKING:
    from pathlib import Path

_DEPTH_AXES = "ZIQ"  # depth as ImageJ and OME name it; pages in file order; unnamed
_AXIS_WORDS = {"T": "time points", "C": "channels", "S": "samples a pixel (RGB)"}


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
        with silent_tifffile(), as_stack_file_error(str(path)):
            if not chain.directories:
                check_whole(chain, 0, path)
            file.seek(0)  # tifffile takes the file to begin where it stands
            tif = resources.enter_context(tifffile.TiffFile(file, _multifile=False))
            check_whole(chain, n_planes_declared(tif, path), path)
            number = _series_number(tif, series, path)
            chosen = tif.series[number]
            n_slices = _n_slices(chosen, path)
            pages = _pages_of(chosen, chain, n_slices, path)
            check_size(pages[0].rows, pages[0].columns, n_slices, path)
            for i, page in enumerate(pages):
                check_page(page, pages[0], i, path)
            stated = stated_scale(tif, chosen, number, n_slices, path)
            slices = TiffSlices(file, chosen, pages, path)
        return RecordedStack(
            stack_id=stack_id_of(path.name.removesuffix(path.suffix).removesuffix(".ome")),
            path=path,
            z_um=settle_z(stated.z_um, n_slices, z_step_um, path),
            pixel_size_um=settle_pitch(stated, pixel_size_um, path),
            shape=(pages[0].rows, pages[0].columns),
            dtype=f"uint{pages[0].bits}",
            max_value=0,
            flags=(),
            _read=slices.read,
            _close=resources.pop_all().close,
        )


def _series_number(tif: Any, series: int | None, path: Path) -> int:
    shapes = [" x ".join(map(str, one.shape)) for one in tif.series]
    if not shapes:
        raise StackFileError(f"a stack file must hold at least one image, got none in {path}")
    listing = ", ".join(f"{i}: {shape}" for i, shape in enumerate(shapes[:8]))
    if series is None and len(shapes) > 1:
        raise StackFileError(
            f"one series must be chosen, got {len(shapes)} ({listing}) in {path}: give --series 0 to "
            f"{len(shapes) - 1}"
        )
    if series is not None and series >= len(shapes):
        raise StackFileError(f"--series must be 0 to {len(shapes) - 1}, got {series} for {path} ({listing})")
    return series or 0


def _n_slices(series: Any, path: Path) -> int:
    """Length of the depth axis, when it is the only one beside rows and columns."""
    axes = [
        (name, n) for name, n in zip(series.axes, series.shape, strict=True) if name not in "YX" and n > 1
    ]
    wrong = [
        f"{n} {_AXIS_WORDS.get(name, f'planes along {name}')}" for name, n in axes if name not in _DEPTH_AXES
    ]
    if wrong or len(axes) > 1:
        found = wrong or [f"{n} along {name}" for name, n in axes]
        raise StackFileError(
            f"a stack must be grey slices along depth alone, got {', '.join(found)} in {path}: "
            "save depth as the Z axis"
        )
    return int(axes[0][1]) if axes else 1


def _pages_of(series: Any, chain: DirectoryChain, n_slices: int, path: Path) -> list[Directory]:
    if pages := _pages_of_run(series, chain, n_slices):
        return pages
    if len(series.pages) == 1 and n_slices > 1:
        indices = [series.pages[0].index]
        if series.dataoffset is None:
            raise StackFileError(
                f"a stack must have a page for each of its {n_slices} slices, got 1 in {path}"
            )
    else:
        indices = [None if page is None else page.index for page in series.pages]
    if len(indices) not in (1, n_slices) or not all(
        isinstance(index, int) and index < len(chain.directories) for index in indices
    ):
        raise StackFileError(
            f"a stack must have a page for each of its {n_slices} slices, got others in {path}"
        )
    return [chain.directories[index] for index in indices]


def _pages_of_run(series: Any, chain: DirectoryChain, n_slices: int) -> list[Directory]:
    """Find pages whose pixels lie in one run, without the library's reading each; none where they do not."""
    if series.dataoffset is None:
        return []
    starts = {page.pixels_at: page for page in reversed(chain.directories)}
    first = starts.get(int(series.dataoffset))
    index = series.pages[0].index
    if first is None or index >= len(chain.directories) or first is not chain.directories[index]:
        return []
    n_bytes = first.n_pixel_bytes
    found = [starts.get(int(series.dataoffset) + i * n_bytes) for i in range(n_slices)]
    return [page for page in found if page is not None] if None not in found else []
