"""TIFFs that are no whole stack of grey slices: one clear sentence each, before anything large is decoded."""

from __future__ import annotations

import logging
import resource
import struct
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stack_files import grey_stack, page_tags, raw_tiff, write_imagej, write_ome, write_plain

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers import tiff_pages
from rcm_daemon.readers.opening import open_stack

if TYPE_CHECKING:
    from pathlib import Path

    from rcm_daemon.readers.recorded_stack import RecordedStack

GIVEN: dict[str, Any] = {"z_step_um": 3.0, "pixel_size_um": 0.5}


def opened(path: Path) -> RecordedStack:
    return open_stack(path, **GIVEN)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(StackFileError) as caught:
        open_stack(path, **(GIVEN | options))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def read_refusal(path: Path) -> str:
    with opened(path) as stack, pytest.raises(StackFileError) as caught:
        stack.read(0)
    return str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"II", b"PK\x03\x04 a zip", b"\x89PNG\r\n\x1a\n", b"II\x2b\x00\x08\x00\x00\x00"]
)
def test_not_a_tiff(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(data)
    assert "must be a TIFF" in refusal(tmp_path / "a.tif")


def test_missing_file(tmp_path: Path) -> None:
    assert "found nothing at" in refusal(tmp_path / "none.tif")


CUT_FORMS = {"imagej": write_imagej, "ome": write_ome, "plain": write_plain}


@pytest.mark.hazard("H57")
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("form", CUT_FORMS)
def test_cut_short(tmp_path: Path, form: str, share: float, caplog: pytest.LogCaptureFixture) -> None:
    whole = CUT_FORMS[form](tmp_path / "whole.tif", grey_stack(10)).read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with caplog.at_level(logging.WARNING):
        message = refusal(cut)
    assert "must hold every page it declares, found" in message
    assert "cut short" in message
    assert not caplog.records


@pytest.mark.hazard("H57")
def test_cut_short_says_how_many_pages_are_there(tmp_path: Path) -> None:
    # ImageJ's own layout: all pixels first, then the directories of the second and later pages.
    whole = write_imagej(tmp_path / "whole.tif", grey_stack(10)).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) - 200])
    message = refusal(tmp_path / "cut.tif")
    n_found = int(message.split("found ")[1].split(" of ")[0])
    assert 1 <= n_found < 10
    assert "of 10" in message


@pytest.mark.hazard("H57")
@pytest.mark.parametrize("form", ["imagej", "ome"])
def test_fewer_pages_than_the_description_declares(tmp_path: Path, form: str) -> None:
    path = CUT_FORMS[form](tmp_path / "a.tif", grey_stack(10))
    data = path.read_bytes()
    before, after = (b"images=10", b"images=12") if form == "imagej" else (b'SizeZ="10"', b'SizeZ="12"')
    assert before in data
    path.write_bytes(data.replace(before, after))
    assert "found 10 of 12" in refusal(path)


def single_directory(path: Path, n_declared: int, n_written: int) -> np.ndarray:
    """ImageJ's layout over 4 GB: one directory, the other slices right behind the first one's pixels."""
    pixels = grey_stack(n_written, 20, 30)
    text = f"ImageJ=1.53t\nimages={n_declared}\nslices={n_declared}\nunit=um\nspacing=3.0\n\0".encode()
    head = 8 + 2 + 12 * 11 + 4
    tags = [*page_tags(20, 30, 600), (270, 2, len(text))]
    entries = b""
    for number, kind, value in sorted(tags):
        value = {273: head + len(text), 270: head}.get(number, value)
        count = len(text) if number == 270 else 1
        packed = struct.pack("<H", value) if kind == 3 else struct.pack("<I", value)
        entries += struct.pack("<HHI", number, kind, count) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", 11) + entries + struct.pack("<I", 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + directory + text + pixels.tobytes())
    return pixels


def test_stack_with_one_directory_is_read_whole(tmp_path: Path) -> None:
    pixels = single_directory(tmp_path / "a.tif", 5, 5)
    with open_stack(tmp_path / "a.tif", pixel_size_um=0.5) as stack:
        assert stack.z_um == (0, 3, 6, 9, 12)
        assert all(np.array_equal(stack.read(i), pixels[i]) for i in (4, 0, 2))


@pytest.mark.hazard("H57")
def test_stack_with_one_directory_cut_short(tmp_path: Path) -> None:
    single_directory(tmp_path / "a.tif", 5, 3)
    assert "found 3 of 5" in refusal(tmp_path / "a.tif")


@pytest.mark.hazard("H57")
def test_list_of_pages_in_a_circle(tmp_path: Path) -> None:
    data = raw_tiff(bytes(100), *page_tags(10, 10, 100), next_offset=108)
    (tmp_path / "a.tif").write_bytes(data)
    assert "in a circle" in refusal(tmp_path / "a.tif")


@pytest.mark.hazard("H58")
@pytest.mark.parametrize(("rows", "columns"), [(100_000, 100_000), (4097, 10), (10, 4097), (0, 10)])
def test_declared_size_over_the_cap(tmp_path: Path, rows: int, columns: int) -> None:
    blob = zlib.compress(bytes(1_000_000))
    (tmp_path / "a.tif").write_bytes(raw_tiff(blob, *page_tags(rows, columns, len(blob), compression=8)))
    tracemalloc.start()
    message = refusal(tmp_path / "a.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"1 to 4096 rows and columns, got {rows} x {columns}" in message
    assert peak < 5e6


@pytest.mark.hazard("H58")
def test_too_many_slices(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((1001, 4, 4), np.uint8), photometric="minisblack", metadata=None
    )
    assert "1 to 1000 slices, got 1001" in refusal(tmp_path / "a.tif")


@pytest.mark.hazard("H58")
@pytest.mark.parametrize("installed", [True, False])
def test_stream_that_unpacks_to_more_than_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("rcm_daemon.readers.tiff_slices.has_imagecodecs", lambda: installed)
    blob = zlib.compress(bytes(200_000_000), 9)
    (tmp_path / "a.tif").write_bytes(raw_tiff(blob, *page_tags(100, 100, len(blob), compression=8)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "must" in read_refusal(tmp_path / "a.tif")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.hazard("H58")
def test_jpeg_stream_larger_than_its_page(tmp_path: Path) -> None:
    blob = cv2.imencode(".jpg", np.zeros((4000, 4000), np.uint8))[1].tobytes()
    (tmp_path / "a.tif").write_bytes(raw_tiff(blob, *page_tags(100, 100, len(blob), compression=7)))
    assert "unpack to the 10000 bytes it declares" in read_refusal(tmp_path / "a.tif")


@pytest.mark.hazard("H59")
@pytest.mark.parametrize("tile", [(64, 4096), (4096, 64), (96, 96), (0, 16)])
def test_tile_larger_than_its_image(tmp_path: Path, tile: tuple[int, int]) -> None:
    tags = [t for t in page_tags(64, 64, 4096) if t[0] not in (273, 278, 279)]
    tags += [(322, 4, tile[1]), (323, 4, tile[0]), (324, 4, 8), (325, 4, 4096)]
    (tmp_path / "a.tif").write_bytes(raw_tiff(bytes(4096), *tags))
    assert f"a tile must not be larger than its image, got {tile[0]} x {tile[1]} for 64 x 64" in refusal(
        tmp_path / "a.tif"
    )


def test_tiles_that_fit_are_read(tmp_path: Path) -> None:
    pixels = grey_stack(3, 100, 90)
    with opened(write_plain(tmp_path / "a.tif", pixels, tile=(48, 32))) as stack:
        assert np.array_equal(stack.read(2), pixels[2])
    with opened(write_plain(tmp_path / "b.tif", pixels, tile=(112, 96))) as stack:
        assert np.array_equal(stack.read(1), pixels[1])


@pytest.mark.hazard("H60")
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour(tmp_path: Path, planar: str) -> None:
    shape = (2, 20, 30, 3) if planar == "contig" else (2, 3, 20, 30)
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros(shape, np.uint8), photometric="rgb", planarconfig=planar, metadata=None
    )
    message = refusal(tmp_path / "a.tif")
    assert "grey" in message
    assert "RGB" in message


@pytest.mark.hazard("H60")
@pytest.mark.parametrize("dtype", ["float32", "int16", "uint32", "int8", "bool", "float64", "complex64"])
def test_other_depths(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((3, 20, 32), dtype), photometric="minisblack", metadata=None
    )
    assert "a slice must be uint8 or uint16, got" in refusal(tmp_path / "a.tif")


@pytest.mark.hazard("H60")
def test_white_is_zero_is_turned_round(tmp_path: Path) -> None:
    pixels = grey_stack(2)
    tifffile.imwrite(tmp_path / "a.tif", 255 - pixels, photometric="miniswhite", metadata=None)
    with opened(tmp_path / "a.tif") as stack:
        assert np.array_equal(stack.read(1), pixels[1])


@pytest.mark.hazard("H60")
@pytest.mark.parametrize("grey", [True, False])
def test_palette_of_greys_is_applied_and_of_colours_refused(tmp_path: Path, grey: bool) -> None:
    pixels = grey_stack(2)
    ramp = (255 - np.arange(256, dtype=np.uint16)) * 257
    colours = np.stack([ramp, ramp, ramp if grey else ramp[::-1]])
    for image in pixels:
        tifffile.imwrite(
            tmp_path / "a.tif", image, photometric="palette", colormap=colours, metadata=None, append=True
        )
    if grey:
        with opened(tmp_path / "a.tif") as stack:
            assert np.array_equal(stack.read(1), 255 - pixels[1])
    else:
        assert "a palette must hold greys only" in refusal(tmp_path / "a.tif")


@pytest.mark.hazard("H60")
def test_channels_and_time_points(tmp_path: Path) -> None:
    write_ome(tmp_path / "c.ome.tif", np.zeros((4, 3, 20, 30), np.uint8), metadata={"axes": "ZCYX"})
    assert "along depth alone, got 3 channels" in refusal(tmp_path / "c.ome.tif")
    write_ome(tmp_path / "t.ome.tif", np.zeros((5, 20, 30), np.uint8), metadata={"axes": "TYX"})
    assert "got 5 time points" in refusal(tmp_path / "t.ome.tif")
    write_imagej(tmp_path / "i.tif", np.zeros((5, 2, 20, 30), np.uint8), metadata={"axes": "ZCYX"})
    assert "got 2 channels" in refusal(tmp_path / "i.tif")


@pytest.mark.hazard("H61")
def test_several_series_and_the_chosen_one(tmp_path: Path) -> None:
    first, second = grey_stack(4, 20, 30), grey_stack(3, 50, 60)
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for pixels, step in ((first, 2.0), (second, 4.0)):
            sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": step}
            writer.write(pixels, metadata={"axes": "ZYX"} | sizes)
    assert "got 2 (0: 4 x 20 x 30, 1: 3 x 50 x 60)" in refusal(path)
    assert "--series 0 to 1" in refusal(path)
    assert "--series must be 0 to 1, got 2" in refusal(path, series=2)
    with open_stack(path, series=1) as stack:
        assert stack.z_um == (0, 4, 8)
        assert np.array_equal(stack.read(2), second[2])
    with open_stack(path, series=0) as stack:
        assert np.array_equal(stack.read(3), first[3])


@pytest.mark.hazard("H61")
def test_plain_pages_of_two_sizes_are_two_series(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tif"
    with tifffile.TiffWriter(path) as writer:
        for rows in (20, 20, 25):
            writer.write(np.full((rows, 30), rows, np.uint8), photometric="minisblack", metadata=None)
    assert "one series must be chosen, got 2 (0: 2 x 20 x 30, 1: 25 x 30)" in refusal(path)
    with open_stack(path, series=1, pixel_size_um=0.5) as stack:
        assert stack.shape == (25, 30)


def test_pages_that_hide_another_size_behind_an_imagej_description(tmp_path: Path) -> None:
    path = write_imagej(tmp_path / "a.tif", grey_stack(3, 40, 56))
    data = bytearray(path.read_bytes())
    at = data.rfind(struct.pack("<HHII", 257, 4, 1, 40))
    assert at > 200
    data[at : at + 12] = struct.pack("<HHII", 257, 4, 1, 39)
    path.write_bytes(data)
    assert "one size and depth, got 40 x 56 of 8 bits and then 39 x 56" in refusal(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg", "packbits", "zstd"])
def test_compressed_stacks_are_read(tmp_path: Path, compression: str) -> None:
    pixels = np.repeat(np.arange(64, dtype=np.uint8)[None], 64, axis=0)[None].repeat(3, axis=0)
    with opened(write_plain(tmp_path / "a.tif", pixels, compression=compression)) as stack:
        assert np.abs(stack.read(1).astype(int) - pixels[1]).max() <= (3 if compression == "jpeg" else 0)


@pytest.mark.parametrize(
    ("compression", "name"), [("lzw", "LZW"), ("jpeg", "JPEG"), ("packbits", "PackBits")]
)
def test_missing_codecs_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, name: str
) -> None:
    path = write_plain(tmp_path / "a.tif", grey_stack(2, 64, 64), compression=compression)
    monkeypatch.setattr(tiff_pages, "has_imagecodecs", lambda: False)
    message = refusal(path)
    assert f"{name} compression needs more codecs" in message
    assert "rcm-daemon[compressed]" in message


def test_codecs_nobody_bounded_are_refused(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.tif", grey_stack(2, 64, 64), compression="jpeg2000")
    assert "compressed by Deflate, LZW" in refusal(path)


def test_damaged_stream_is_reported_at_its_slice(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.tif", grey_stack(3, 64, 64), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        at = tif.pages[1].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[at + 10 : at + 200] = bytes(190)
    path.write_bytes(data)
    with opened(path) as stack:
        assert stack.read(0).shape == (64, 64)
        with pytest.raises(StackFileError, match="slice 1 of"):
            stack.read(1)
        assert stack.read(2).shape == (64, 64)


@pytest.mark.hazard("H57")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.data())
def test_damaged_bytes_read_or_are_refused_but_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(sorted(CUT_FORMS)))
    path = tmp_path / f"{form}.tif"
    whole = bytearray(CUT_FORMS[form](path, grey_stack(3, 8, 9)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        with open_stack(path) as stack:
            for i in range(stack.n_slices):
                assert stack.read(i).shape == stack.shape
    except StackFileError as error:
        assert "\n" not in str(error)
