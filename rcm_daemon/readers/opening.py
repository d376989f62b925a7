"""The one way to open a recorded stack, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.images import list_images, open_images
from rcm_daemon.readers.scale import check_options
from rcm_daemon.readers.tiff import open_tiff
from rcm_daemon.readers.vivastack import is_vivastack, open_vivastack

if TYPE_CHECKING:
    from rcm_daemon.readers.recorded_stack import RecordedStack


def open_stack(
    path: Path | str,
    *,
    z_step_um: float | None = None,
    pixel_size_um: float | None = None,
    series: int | None = None,
    max_value: int | None = None,
) -> RecordedStack:
    """Open a TIFF file, a folder of images or a VivaStack folder.

    Parameters
    ----------
    z_step_um, pixel_size_um
        Used as given where given; otherwise the file must state them.
    series
        Which series of a TIFF with several, from 0.
    max_value
        Grey level of full scale, where the camera has fewer bits than the file.

    Returns
    -------
    stack
        Close it after use, or use it in a `with` statement.

    Raises
    ------
    StackFileError
        One sentence: not a stack, cut short, colour, another depth than 8 or 16 bits, too large, several
        series, a spacing or pitch that nobody states, or a full scale that is none.
    """
    check_options(z_step_um, pixel_size_um, series)
    stack = _open(Path(path), z_step_um, pixel_size_um, series)
    if max_value is None:
        return stack
    try:
        return stack.with_max_value(max_value)
    except StackFileError:
        stack.close()
        raise


def _open(
    path: Path, z_step_um: float | None, pixel_size_um: float | None, series: int | None
) -> RecordedStack:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise StackFileError(
            f"a stack must be a TIFF file or a folder of images, found nothing at {path}"
        ) from error
    except OSError as error:
        raise StackFileError(f"a stack must be readable, got {error.strerror} at {path}") from error
    if path.is_dir():
        if series:
            raise StackFileError(f"a folder holds one series, got --series {series} for {path}")
        files = list_images(path)
        if is_vivastack(files):
            return open_vivastack(path, files, z_step_um, pixel_size_um)
        return open_images(path, files, z_step_um, pixel_size_um)
    if not path.is_file():
        raise StackFileError(f"a stack must be a TIFF file or a folder of images, found neither at {path}")
    return open_tiff(path, z_step_um, pixel_size_um, series)
