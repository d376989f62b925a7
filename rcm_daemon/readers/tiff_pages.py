"""Whether a TIFF is whole and its pages are grey slices this project reads, from their directories alone."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.directories import UNCOMPRESSED

if TYPE_CHECKING:
    from pathlib import Path

    from rcm_daemon.readers.directories import Directory, DirectoryChain

JPEG = 7
DEFLATE = (8, 32946)
WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE = 0, 1, 3
_CODECS = {5: "LZW", JPEG: "JPEG", 32773: "PackBits", 50000: "Zstandard"}
_FORMATS = {2: "signed integers", 3: "floating point"}


def has_imagecodecs() -> bool:
    """Whether the optional codecs are installed."""
    return importlib.util.find_spec("imagecodecs") is not None


def check_whole(chain: DirectoryChain, n_declared: int, path: Path) -> None:
    """Refuse a file cut short: fewer whole pages than its description declares, or a broken chain."""
    pages = chain.directories
    n_whole = sum(page.end <= chain.n_bytes for page in pages)
    reason = chain.fault or ("the pixels of a page lie past its end" if n_whole < len(pages) else "")
    if len(pages) == 1 and n_declared > 1 and not reason and pages[0].compression == UNCOMPRESSED:
        # ImageJ writes stacks over 4 GB with a single directory, all other pixels following the first page's.
        n_whole = (chain.n_bytes - pages[0].offsets[0]) // max(1, pages[0].n_pixel_bytes)
    if reason or n_whole < n_declared:
        declared = str(n_declared) if n_declared else "an unknown number"
        raise StackFileError(
            f"a TIFF must hold every page it declares, found {n_whole} of {declared}: {path} is cut short or "
            f"damaged ({reason or 'its list of pages ends early'})"
        )


def check_page(page: Directory, first: Directory, index: int, path: Path) -> None:
    """Refuse a page that is no 8 or 16-bit grey slice like the first, or that needs a missing codec."""
    where = f"page {index} of {path}"
    if page.n_samples != 1 or page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE):
        kind = "RGB" if page.photometric == 2 else f"photometric {page.photometric}"
        raise StackFileError(
            f"a slice must be grey, one sample a pixel, got {page.n_samples} ({kind}) in {where}: "
            "convert colour to grey first"
        )
    if (
        page.sample_format in _FORMATS
        or page.bits not in (8, 16)
        or (page.photometric == PALETTE and page.bits != 8)
    ):
        got = f"{page.bits}-bit {_FORMATS.get(page.sample_format, 'unsigned integers')}"
        raise StackFileError(f"a slice must be uint8 or uint16, got {got} in {where}")
    same = (page.rows, page.columns, page.bits, page.photometric)
    if same != (first.rows, first.columns, first.bits, first.photometric):
        raise StackFileError(
            f"all slices must have one size and depth, got {first.rows} x {first.columns} of {first.bits} "
            f"bits and then {page.rows} x {page.columns} of {page.bits} bits in {where}"
        )
    if page.tile is not None and not _tile_fits(page.tile, (page.rows, page.columns)):
        raise StackFileError(
            f"a tile must not be larger than its image, got {page.tile[0]} x {page.tile[1]} for "
            f"{page.rows} x {page.columns} in {where}"
        )
    if page.compression not in (UNCOMPRESSED, *DEFLATE, *_CODECS):
        raise StackFileError(
            f"a TIFF must be uncompressed or compressed by Deflate, {', '.join(_CODECS.values())}, got "
            f"compression {page.compression} in {where}"
        )
    if page.compression in _CODECS and not has_imagecodecs():
        raise StackFileError(
            f"{_CODECS[page.compression]} compression needs more codecs, got it in {where}: "
            "pip install 'rcm-daemon[compressed]'"
        )


def _tile_fits(tile: tuple[int, int], shape: tuple[int, int]) -> bool:
    # Sides of tiles are multiples of 16 (TIFF 6.0, section 15), so the last one may reach 15 pixels over.
    return all(0 < side < length + 16 for side, length in zip(tile, shape, strict=True))
