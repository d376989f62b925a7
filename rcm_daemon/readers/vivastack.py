"""A VivaStack as VivaScope exports it: v0000000.bmp, v0000001.bmp ..., 8-bit palettised, 0.5 um a pixel.

Frames are 1000 x 1000, or 1045 rows with a caption of 45 rows burned in below the image. Depth stands only in
that caption, as text; it is not read, so the step is asked for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.images import check_headers, read_image
from rcm_daemon.readers.recorded_stack import RecordedStack, stack_id_of
from rcm_daemon.readers.scale import settle_z

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

PIXEL_SIZE_UM = 0.5
"""Pitch of every VivaStack frame: 1000 pixels over the objective's field of 500 um."""
SHAPE = (1000, 1000)
CAPTION_ROWS = 45
_NAME = re.compile(r"v(\d{7})\.bmp", re.IGNORECASE)


def is_vivastack(files: list[Path]) -> bool:
    """Whether all image files of a folder are named like a VivaStack's."""
    return all(_NAME.fullmatch(file.name) for file in files)


def open_vivastack(
    folder: Path, files: list[Path], z_step_um: float | None = None, pixel_size_um: float | None = None
) -> RecordedStack:
    """Open the frames of a VivaStack folder; captions are cropped away.

    Raises
    ------
    StackFileError
        A frame is missing from the sequence, of another size, or see `open_stack`.
    """
    numbers = {int(name[1]) for file in files if (name := _NAME.fullmatch(file.name))}
    missing = sorted(set(range(len(files))) - numbers)
    if missing:
        raise StackFileError(
            f"a VivaStack must have every frame from v0000000.bmp to its last, but v{missing[0]:07d}.bmp is "
            f"missing among {len(files)} frames in {folder}"
        )
    (rows, columns), dtype = check_headers(files, folder)
    if columns != SHAPE[1] or rows not in (SHAPE[0], SHAPE[0] + CAPTION_ROWS) or dtype != "uint8":
        raise StackFileError(
            f"a VivaStack frame must be uint8 [1000, 1000], or [1045, 1000] with its caption, got {dtype} "
            f"[{rows}, {columns}] in {folder}"
        )

    def read(index: int) -> npt.NDArray[Any]:
        return read_image(files[index])[: SHAPE[0]]

    flags = ("caption_cropped",) if rows > SHAPE[0] else ()
    return RecordedStack(
        stack_id=stack_id_of(folder.resolve().name),
        path=folder,
        z_um=settle_z(None, len(files), z_step_um, folder),
        pixel_size_um=PIXEL_SIZE_UM if pixel_size_um is None else pixel_size_um,
        shape=SHAPE,
        dtype=dtype,
        max_value=0,
        flags=flags if pixel_size_um is not None else (*flags, "pitch_assumed"),
        _read=read,
        _close=lambda: None,
    )
