"""Folders of images and VivaStack folders: order, refusals, palettes, captions."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stack_files import bmp, grey_stack, write_imagej, write_images, write_vivastack

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.image_header import read_header
from rcm_daemon.readers.opening import open_stack

if TYPE_CHECKING:
    from pathlib import Path

GIVEN: dict[str, Any] = {"z_step_um": 3.0, "pixel_size_um": 0.5}


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(StackFileError) as caught:
        open_stack(folder, **(GIVEN | options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_natural_order_and_passed_over_files(tmp_path: Path) -> None:
    stack = grey_stack(12)
    folder = write_images(tmp_path / "a", stack, pattern="Slice {} of 12")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "more").mkdir()
    with open_stack(folder, **GIVEN) as opened:
        assert all(np.array_equal(opened.read(i), stack[i]) for i in range(12))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tif"])
def test_each_format(tmp_path: Path, suffix: str) -> None:
    stack = np.repeat(np.arange(64, dtype=np.uint8)[None], 48, axis=0)[None].repeat(2, axis=0)
    with open_stack(write_images(tmp_path / "a", stack, suffix), **GIVEN) as opened:
        assert opened.shape == (48, 64)
        assert np.abs(opened.read(1).astype(int) - stack[1]).max() <= (2 if suffix == ".jpg" else 0)


@pytest.mark.hazard("H60")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_images(tmp_path: Path, suffix: str) -> None:
    stack = grey_stack(2, dtype=np.uint16)
    with open_stack(write_images(tmp_path / "a", stack, suffix), **GIVEN) as opened:
        assert opened.dtype == "uint16"
        assert np.array_equal(opened.read(1), stack[1])


def test_empty_folder_and_folder_of_folders(tmp_path: Path) -> None:
    assert "found none in" in refusal(tmp_path)
    (tmp_path / "VivaStack #1").mkdir()
    assert "it holds 1 folders: give one of them" in refusal(tmp_path)


@pytest.mark.hazard("H60")
def test_mixed_sizes_depths_and_formats(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "sizes", grey_stack(2))
    write_images(folder, grey_stack(1, 40, 57), pattern="z{}")
    assert "got uint8 [40, 56] in slice0.png and uint8 [40, 57] in z0.png" in refusal(folder)
    folder = write_images(tmp_path / "depths", grey_stack(2))
    write_images(folder, grey_stack(1, dtype=np.uint16), pattern="z{}")
    assert "uint16 [40, 56] in z0.png" in refusal(folder)
    folder = write_images(tmp_path / "formats", grey_stack(2))
    write_images(folder, grey_stack(1), ".bmp")
    assert "one format, got BMP, PNG" in refusal(folder)
    folder = write_images(tmp_path / "tiffs", grey_stack(2), ".tif")
    write_images(folder, grey_stack(1, 40, 57), ".tiff", pattern="z{}")
    assert "uint8 [40, 57] in z0.tiff" in refusal(folder)


@pytest.mark.hazard("H60")
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tif"])
def test_colour_images(tmp_path: Path, suffix: str) -> None:
    folder = write_images(tmp_path / "a", np.zeros((2, 20, 30, 3), np.uint8), suffix)
    assert "grey" in refusal(folder)


def test_transparent_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a", np.zeros((2, 20, 30, 4), np.uint8))
    assert "got transparent pixels" in refusal(folder)


def test_multi_page_tiff_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_imagej(tmp_path / "a" / "stack.tif", grey_stack(5))
    assert "must hold one slice, got 5" in refusal(tmp_path / "a")


def test_folder_has_no_series(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a", grey_stack(2))
    assert "--series 1" in refusal(folder, series=1)
    open_stack(folder, series=0, **GIVEN).close()


@pytest.mark.hazard("H57")
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.97])
def test_images_cut_short(
    tmp_path: Path, suffix: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_images(tmp_path / "a", grey_stack(3), suffix)
    file = folder / f"slice1{suffix}"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    message = refusal(folder)
    assert f"slice1{suffix}" in message
    assert capfd.readouterr() == ("", "")


def test_image_whose_pixels_are_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "a", grey_stack(2))
    data = bytearray((folder / "slice1.png").read_bytes())
    data[len(data) // 2] ^= 255
    (folder / "slice1.png").write_bytes(data)
    assert "cut short or damaged" in refusal(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.hazard("H58")
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_declared_size_over_the_cap(tmp_path: Path, suffix: str) -> None:
    folder = write_images(tmp_path / "a", grey_stack(1), suffix)
    file = folder / f"slice0{suffix}"
    data = bytearray(file.read_bytes())
    if suffix == ".png":
        data[16:24] = struct.pack(">II", 30_000, 30_000)
    elif suffix == ".bmp":
        data[18:26] = struct.pack("<ii", 30_000, -30_000)
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    file.write_bytes(data)
    assert "1 to 4096 rows and columns, got 30000 x 30000" in refusal(folder)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "a", grey_stack(2))
    (folder / "slice1.png").write_bytes(b"no picture at all")
    assert "other bytes in" in refusal(folder)


def test_file_that_vanishes_before_it_is_read(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a", grey_stack(2))
    with open_stack(folder, **GIVEN) as opened:
        (folder / "slice1.png").unlink()
        with pytest.raises(StackFileError, match=r"No such file.*slice1\.png"):
            opened.read(1)
        write_images(folder, grey_stack(2, 10, 10))
        with pytest.raises(StackFileError, match="must decode to uint8"):
            opened.read(0)


@pytest.mark.hazard("H60")
def test_palettised_bmp(tmp_path: Path) -> None:
    pixels = grey_stack(1)[0]
    ramp = np.repeat((255 - np.arange(256, dtype=np.uint8))[:, None], 3, axis=1)
    (tmp_path / "a.bmp").write_bytes(bmp(pixels, ramp))
    with open_stack(tmp_path, **GIVEN) as opened:
        assert np.array_equal(opened.read(0), 255 - pixels)
    ramp[:, 0] = 7
    (tmp_path / "a.bmp").write_bytes(bmp(pixels, ramp))
    with open_stack(tmp_path, **GIVEN) as opened, pytest.raises(StackFileError, match="greys only"):
        opened.read(0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.data())
def test_damaged_bytes_read_or_are_refused_but_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".png", ".bmp", ".jpg"]))
    folder = tmp_path / suffix[1:]
    write_images(folder, grey_stack(1, 8, 9), suffix)
    file = folder / f"slice0{suffix}"
    whole = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    try:
        with open_stack(folder, **GIVEN) as opened:
            assert opened.read(0).shape == opened.shape
    except StackFileError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=200))
def test_headers_of_any_bytes(data: bytes) -> None:
    for mark in (b"", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"):
        read_header(mark + data)


def viva(folder: Path, n: int = 4) -> Path:
    return write_vivastack(folder, grey_stack(n, 1000, 1000))


def test_vivastack_caption_is_cropped(tmp_path: Path) -> None:
    with open_stack(viva(tmp_path / "a", 2), z_step_um=3) as opened:
        assert opened.shape == (1000, 1000)
        assert "caption_cropped" in opened.flags
        assert np.array_equal(opened.read(1), grey_stack(2, 1000, 1000)[1])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_vivastack_with_a_frame_missing(tmp_path: Path, number: int) -> None:
    folder = viva(tmp_path / "a")
    os.remove(folder / f"v{number:07d}.bmp")
    assert f"v{number:07d}.bmp is missing among 3 frames" in refusal(folder)


def test_vivastack_frames_of_another_size(tmp_path: Path) -> None:
    assert "or [1045, 1000] with its caption, got uint8 [85, 56]" in refusal(
        write_vivastack(tmp_path / "a", grey_stack(2))
    )
    folder = viva(tmp_path / "b", 2)
    (folder / "v0000001.bmp").write_bytes(bmp(np.zeros((1000, 1000), np.uint8)))
    assert "got uint8 [1045, 1000] in v0000000.bmp and uint8 [1000, 1000]" in refusal(folder)


def test_colour_vivastack(tmp_path: Path) -> None:
    (tmp_path / "v0000000.bmp").write_bytes(cv2.imencode(".bmp", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    assert "must be grey" in refusal(tmp_path)
