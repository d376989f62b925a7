"""One stack in every form reads to the same slices at the same depths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from stack_files import (
    Z_STEP_UM,
    grey_stack,
    page_tags,
    raw_tiff,
    write_imagej,
    write_images,
    write_ome,
    write_plain,
    write_vivastack,
)

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.directories import Directory
from rcm_daemon.readers.opening import open_stack
from rcm_daemon.readers.tiff_slices import _pixels_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STACK = grey_stack(3, 1000, 1000)


@pytest.mark.parametrize(
    "form", ["imagej", "ome", "plain", "png", "bmp", "tif", "vivastack", "vivastack without caption"]
)
def test_same_slices_and_depths_in_every_form(tmp_path: Path, form: str) -> None:
    path, options = {
        "imagej": lambda: (write_imagej(tmp_path / "left arm.tif", STACK), {}),
        "ome": lambda: (write_ome(tmp_path / "left arm.ome.tif", STACK), {}),
        "plain": lambda: (
            write_plain(tmp_path / "left arm.tif", STACK),
            {"z_step_um": 3.0, "pixel_size_um": 0.5},
        ),
        "png": lambda: (write_images(tmp_path / "left arm", STACK), {"z_step_um": 3.0, "pixel_size_um": 0.5}),
        "bmp": lambda: (
            write_images(tmp_path / "left arm", STACK, ".bmp"),
            {"z_step_um": 3.0, "pixel_size_um": 0.5},
        ),
        "tif": lambda: (
            write_images(tmp_path / "left arm", STACK, ".tif"),
            {"z_step_um": 3.0, "pixel_size_um": 0.5},
        ),
        "vivastack": lambda: (write_vivastack(tmp_path / "left arm", STACK), {"z_step_um": 3.0}),
        "vivastack without caption": lambda: (
            write_vivastack(tmp_path / "left arm", STACK, False),
            {"z_step_um": 3.0},
        ),
    }[form]()
    with open_stack(path, **options) as stack:
        assert stack.stack_id == "left arm"
        assert stack.path == path
        assert stack.z_um == pytest.approx([0, Z_STEP_UM, 2 * Z_STEP_UM])
        assert stack.pixel_size_um == pytest.approx(0.5)
        assert (stack.shape, stack.dtype, stack.max_value, stack.n_slices) == ((1000, 1000), "uint8", 0, 3)
        for i in (2, 0, 1):
            image = stack.read(i)
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
            assert np.array_equal(image, STACK[i])


@pytest.mark.hazard("H60")
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("imagej", [True, False])
def test_16_bit_slices_come_back_native(tmp_path: Path, imagej: bool, byteorder: str) -> None:
    pixels = grey_stack(4, 30, 20, np.uint16)
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX"} if imagej else None
    tifffile.imwrite(
        path, pixels, byteorder=byteorder, imagej=imagej, photometric="minisblack", metadata=metadata
    )
    with open_stack(path, z_step_um=3, pixel_size_um=0.5) as stack:
        assert (stack.dtype, stack.max_value) == ("uint16", 0)
        assert stack.read(3).dtype.isnative
        assert np.array_equal(stack.read(3), pixels[3])


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65_535)])
def test_full_scale_is_the_callers_word(tmp_path: Path, dtype: Any, largest: int) -> None:
    path = write_imagej(tmp_path / "a.tif", grey_stack(3, dtype=dtype))
    with open_stack(path, max_value=200) as stack:
        assert stack.max_value == 200
        assert np.array_equal(stack.read(2), grey_stack(3, dtype=dtype)[2])
    for wrong in (0, largest + 1):
        with pytest.raises(StackFileError, match=f"must be 1 to {largest}, got {wrong} for .*a.tif"):
            open_stack(path, max_value=wrong)


def test_reading_outside_the_stack_says_so(tmp_path: Path) -> None:
    with open_stack(write_imagej(tmp_path / "a.tif", grey_stack(4))) as stack:
        for index in (-1, 4):
            with pytest.raises(StackFileError, match="numbered 0 to 3"):
                stack.read(index)


def test_closing_twice_does_no_harm(tmp_path: Path) -> None:
    stack = open_stack(write_imagej(tmp_path / "a.tif", grey_stack(4)))
    stack.close()
    stack.close()


@pytest.mark.parametrize(
    ("name", "stack_id"),
    [
        ("VivaStack #1", "VivaStack #1"),
        ("naïve", "naïve"),
        ("bell\x07", "bell_"),
        ("back\\slash", "back_slash"),
        ("раypal", "__ypal"),
        ("x" * 230, "x" * 200),
    ],
)
def test_stack_id_is_fit_for_the_wire(tmp_path: Path, name: str, stack_id: str) -> None:
    path = write_images(tmp_path / name, grey_stack(2))
    with open_stack(path, z_step_um=3, pixel_size_um=0.5) as stack:
        assert stack.stack_id == stack_id


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7},
        {"tile": (16, 16)},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"photometric": "miniswhite"},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_are_those_the_library_decodes(tmp_path: Path, options: dict[str, Any], dtype: Any) -> None:
    pixels = grey_stack(5, 30, 50, dtype)
    options = {"photometric": "minisblack", "contiguous": False, "metadata": None} | options
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=">") as writer:
        for image in pixels:
            writer.write(
                image, **{"photometric": "minisblack", "contiguous": False, "metadata": None} | options
            )
    with open_stack(path, z_step_um=3, pixel_size_um=0.5) as stack:
        read = np.stack([stack.read(i) for i in range(5)])
    assert np.array_equal(np.invert(read) if options["photometric"] == "miniswhite" else read, pixels)


@pytest.mark.parametrize("write", [write_imagej, write_ome, write_plain])
def test_pixels_that_lie_as_they_are_are_not_decoded(
    tmp_path: Path, write: Callable[[Path, np.ndarray], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = grey_stack(5)
    name = "a.ome.tif" if write is write_ome else "a.tif"
    with open_stack(write(tmp_path / name, pixels), z_step_um=3, pixel_size_um=0.5) as stack:
        monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
        assert np.array_equal(stack.read(3), pixels[3])


def test_reversed_bits_are_decoded(tmp_path: Path) -> None:
    """Fill order 2 (TIFF 6.0, section 8): the lowest bit of a byte comes first."""
    path = tmp_path / "a.tif"
    pixels = bytes(range(64))
    path.write_bytes(raw_tiff(pixels, *page_tags(8, 8, 64), (266, 3, 2)))
    with open_stack(path, z_step_um=3, pixel_size_um=0.5) as stack:
        expected = [int(f"{grey:08b}"[::-1], 2) for grey in pixels]
        assert stack.read(0).ravel().tolist() == expected


@pytest.mark.parametrize("kind", [2, 6, 7, 8])
def test_a_fill_order_of_another_type_refuses_no_file(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(raw_tiff(bytes(range(64)), *page_tags(8, 8, 64), (266, kind, 1)))
    with open_stack(path, z_step_um=3, pixel_size_um=0.5) as stack:
        assert stack.read(0).ravel().tolist() == list(range(64))


def test_two_pages_of_the_same_pixels_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """The second shows them white for black."""
    pixels, path = bytes(range(64)), tmp_path / "a.tif"
    first = raw_tiff(pixels, *page_tags(8, 8, 64), next_offset=0)
    second_at = len(first)
    second = raw_tiff(pixels, *page_tags(8, 8, 64, photometric=0))[8 + 64 :]
    path.write_bytes(raw_tiff(pixels, *page_tags(8, 8, 64), next_offset=second_at) + second)
    with open_stack(path, z_step_um=3, pixel_size_um=0.5, series=0) as stack:
        assert stack.read(0).ravel().tolist() == list(range(64))
    with open_stack(path, z_step_um=3, pixel_size_um=0.5, series=1) as stack:
        assert stack.read(0).ravel().tolist() == [255 - grey for grey in range(64)]


def test_pages_of_an_lsm_file_are_left_to_the_library() -> None:
    """Beyond 4 GB its offsets have wrapped; the library knows by how much."""
    page = Directory(8, 8, 8, 1, 1, 1, 1, None, (8,), (64,), is_plain=True)
    for kind, starts in (("lsm", None), ("generic", [8, 8])):
        found = _pixels_at(SimpleNamespace(kind=kind, pages=[0, 1], dataoffset=None), [page, page])
        assert (found and [found(0), found(1)]) == starts


def test_a_path_that_cannot_be_looked_at_is_one_sentence() -> None:
    with pytest.raises(StackFileError, match="a stack must be readable, got File name too long"):
        open_stack("x" * 300)
