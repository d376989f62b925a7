"""Depths and pitch: stated in a unit of length, given as options, or asked for; never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from stack_files import grey_stack, write_imagej, write_images, write_ome, write_plain, write_vivastack

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.opening import open_stack
from rcm_daemon.readers.units import um_per_unit

if TYPE_CHECKING:
    from pathlib import Path


def scale_of(path: Path, **options: Any) -> tuple[tuple[float, ...], float]:
    with open_stack(path, **options) as stack:
        return stack.z_um, stack.pixel_size_um


@pytest.mark.parametrize(
    ("word", "um"),
    [
        ("um", 1), ("µm", 1), ("μm", 1), ("\\u00B5m", 1), ("micron", 1), ("Microns", 1), (" um ", 1),
        ("nm", 1e-3), ("mm", 1e3), ("cm", 1e4), ("m", 1e6), ("inch", 25400), ("Å", 1e-4), ("\u212b", 1e-4),
    ],
)  # fmt: skip
def test_units_of_length(word: str, um: float) -> None:
    assert um_per_unit(word) == um


@pytest.mark.parametrize(
    "word", ["pixel", "pixels", "", "reference frame", "sec", "px", None, 3, "umm", "kg"]
)
def test_words_that_are_no_unit_of_length(word: object) -> None:
    assert um_per_unit(word) is None


@pytest.mark.parametrize(
    ("unit", "factor"), [("um", 1), ("\\u00B5m", 1), ("micron", 1), ("mm", 1e-3), ("nm", 1e3), ("cm", 1e-4)]
)
def test_imagej_spacing_in_any_unit(tmp_path: Path, unit: str, factor: float) -> None:
    per_pixel = 0.5 * factor
    path = write_imagej(
        tmp_path / "a.tif", grey_stack(3), unit, 3.0 * factor, resolution=(1 / per_pixel, 1 / per_pixel)
    )
    z_um, pitch = scale_of(path)
    assert z_um == pytest.approx((0, 3, 6))
    assert pitch == pytest.approx(0.5, rel=1e-4)


def test_imagej_spacing_below_zero_rises_towards_the_surface(tmp_path: Path) -> None:
    z_um, _ = scale_of(write_imagej(tmp_path / "a.tif", grey_stack(3), spacing=-2.0))
    assert z_um == (0, -2, -4)


@pytest.mark.hazard("H62")
@pytest.mark.parametrize(("unit", "spacing"), [("pixel", 3.0), ("um", 0.0), ("um", float("nan")), ("", 3.0)])
def test_imagej_without_a_usable_spacing_asks(tmp_path: Path, unit: str, spacing: float) -> None:
    path = write_imagej(tmp_path / "a.tif", grey_stack(3), unit, spacing)
    with pytest.raises(StackFileError, match=r"spacing of slices must be known.*--z-step-um"):
        open_stack(path, pixel_size_um=0.5)
    assert scale_of(path, z_step_um=2.5, pixel_size_um=0.5) == ((0, 2.5, 5), 0.5)


@pytest.mark.hazard("H62")
@pytest.mark.parametrize("form", ["plain", "png", "tif", "vivastack"])
def test_files_that_cannot_state_a_spacing_ask(tmp_path: Path, form: str) -> None:
    if form == "plain":
        path = write_plain(tmp_path / "a.tif", grey_stack(3))
    elif form == "vivastack":
        path = write_vivastack(tmp_path / "a", grey_stack(2, 1000, 1000))
    else:
        path = write_images(tmp_path / "a", grey_stack(3), f".{form}")
    with pytest.raises(StackFileError, match="--z-step-um"):
        open_stack(path, pixel_size_um=0.5)


def test_ome_units(tmp_path: Path) -> None:
    metadata = {
        "PhysicalSizeZ": 3e-6, "PhysicalSizeZUnit": "m", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm",
    }  # fmt: skip
    z_um, pitch = scale_of(write_ome(tmp_path / "a.tif", grey_stack(3), metadata=metadata))
    assert z_um == pytest.approx((0, 3, 6))
    assert pitch == pytest.approx(0.5)


def test_ome_unit_left_out_is_the_schemas_default(tmp_path: Path) -> None:
    metadata = dict.fromkeys(("PhysicalSizeZUnit", "PhysicalSizeXUnit", "PhysicalSizeYUnit"))
    assert scale_of(write_ome(tmp_path / "a.tif", grey_stack(3), metadata=metadata)) == ((0, 3, 6), 0.5)


@pytest.mark.hazard("H62")
@pytest.mark.parametrize(
    "change", [{"PhysicalSizeZUnit": "pixel"}, {"PhysicalSizeZ": None, "PhysicalSizeZUnit": None}]
)
def test_ome_without_a_usable_spacing_asks(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(StackFileError, match="--z-step-um"):
        open_stack(write_ome(tmp_path / "a.tif", grey_stack(3), metadata=change))


def positions(values: list[float], unit: str | None) -> dict[str, Any]:
    plane: dict[str, Any] = {"PositionZ": values}
    return {"Plane": plane | ({"PositionZUnit": [unit] * len(values)} if unit else {})}


def test_ome_positions_of_planes_win_over_the_step(tmp_path: Path) -> None:
    metadata = positions([-4.0, -1.0, 3.5], "µm")
    assert scale_of(write_ome(tmp_path / "a.tif", grey_stack(3), metadata=metadata))[0] == (-4, -1, 3.5)
    metadata = positions([0.001, 0.003, 0.004], "mm")
    assert scale_of(write_ome(tmp_path / "b.tif", grey_stack(3), metadata=metadata))[0] == pytest.approx(
        (1, 3, 4)
    )


@pytest.mark.parametrize(
    ("values", "unit"),
    [([0.0, 0.0, 0.0], "µm"), ([1.0, 2.0, 3.0], None), ([1.0, 2.0, 3.0], "reference frame")],
)
def test_ome_positions_that_say_nothing_are_passed_over(
    tmp_path: Path, values: list[float], unit: str | None
) -> None:
    path = write_ome(tmp_path / "a.tif", grey_stack(3), metadata=positions(values, unit))
    assert scale_of(path)[0] == (0, 3, 6)


def test_ome_that_needs_other_files_is_refused(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.tif", grey_stack(3))
    text = tifffile.tiffcomment(path)
    one, two = (f'<UUID FileName="{name}.tif">urn:uuid:{name * 8}</UUID>' for name in "bc")
    parts = (
        f'<TiffData IFD="0" FirstZ="0" PlaneCount="2">{one}</TiffData><TiffData FirstZ="2">{two}</TiffData>'
    )
    tifffile.tiffcomment(path, text.replace('<TiffData IFD="0" PlaneCount="3"/>', parts).encode())
    with pytest.raises(StackFileError, match="must lie in one file"):
        open_stack(path)


@pytest.mark.parametrize("damage", ["<!DOCTYPE OME [<!ENTITY a 'b'>]>", "<"])
def test_ome_xml_that_is_hostile_or_broken_is_refused(tmp_path: Path, damage: str) -> None:
    path = write_ome(tmp_path / "a.tif", grey_stack(3))
    text = tifffile.tiffcomment(path)
    tifffile.tiffcomment(path, text.replace("<Image ", damage + "<Image ").encode())
    with pytest.raises(StackFileError, match="OME-XML must"):
        open_stack(path)


@pytest.mark.parametrize(("unit", "value"), [("CENTIMETER", 20_000), ("INCH", 50_800)])
def test_plain_tiff_states_its_pitch_in_resolution_tags(tmp_path: Path, unit: str, value: int) -> None:
    path = write_plain(tmp_path / "a.tif", grey_stack(3), resolution=(value, value), resolutionunit=unit)
    assert scale_of(path, z_step_um=3)[1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("unit", "value"), [("INCH", 72), ("INCH", 300), ("CENTIMETER", 1), ("NONE", 2), ("INCH", 0)]
)
def test_printers_resolutions_and_placeholders_are_no_pitch(tmp_path: Path, unit: str, value: int) -> None:
    path = write_plain(tmp_path / "a.tif", grey_stack(3), resolution=(value, value), resolutionunit=unit)
    with pytest.raises(StackFileError, match=r"size of a pixel must be known.*--pixel-size-um"):
        open_stack(path, z_step_um=3)


def test_folder_of_images_asks_for_the_pitch_unless_its_tiffs_state_it(tmp_path: Path) -> None:
    with pytest.raises(StackFileError, match="--pixel-size-um"):
        open_stack(write_images(tmp_path / "png", grey_stack(3)), z_step_um=3)
    folder = tmp_path / "tif"
    folder.mkdir()
    for i, image in enumerate(grey_stack(3)):
        tifffile.imwrite(folder / f"{i}.tif", image, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    assert scale_of(folder, z_step_um=3) == ((0, 3, 6), pytest.approx(0.5))


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = write_imagej(tmp_path / "a.tif", grey_stack(3), resolution=(2, 1))
    with pytest.raises(StackFileError, match=r"square, got 0\.5 um in x and 1 um in y"):
        open_stack(path)
    assert scale_of(path, pixel_size_um=0.7)[1] == 0.7


def test_options_win_over_the_file(tmp_path: Path) -> None:
    for writer in (write_imagej, write_ome):
        path = writer(tmp_path / f"{writer.__name__}.tif", grey_stack(3))
        assert scale_of(path, z_step_um=1.5, pixel_size_um=0.4) == ((0, 1.5, 3), 0.4)


def test_vivastacks_own_pitch_is_assumed_and_flagged(tmp_path: Path) -> None:
    folder = write_vivastack(tmp_path / "VivaStack #1", grey_stack(2, 1000, 1000))
    with open_stack(folder, z_step_um=3) as stack:
        assert (stack.pixel_size_um, stack.flags) == (0.5, ("caption_cropped", "pitch_assumed"))
    with open_stack(folder, z_step_um=3, pixel_size_um=0.6) as stack:
        assert (stack.pixel_size_um, stack.flags) == (0.6, ("caption_cropped",))


def test_a_lone_slice_lies_at_zero(tmp_path: Path) -> None:
    assert scale_of(write_plain(tmp_path / "a.tif", grey_stack(1)), pixel_size_um=0.5) == ((0.0,), 0.5)
    assert scale_of(write_images(tmp_path / "a", grey_stack(1)), pixel_size_um=0.5) == ((0.0,), 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"z_step_um": 0}, "--z-step-um must be above 0"),
        ({"z_step_um": -3}, "got -3"),
        ({"z_step_um": float("nan")}, "got nan"),
        ({"pixel_size_um": 0}, "--pixel-size-um must be above 0"),
        ({"pixel_size_um": float("inf")}, "got inf"),
        ({"series": -1}, "--series counts from 0"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(StackFileError, match=words):
        open_stack(write_imagej(tmp_path / "a.tif", grey_stack(3)), **options)


def test_positions_out_of_the_wires_range_are_asked_for(tmp_path: Path) -> None:
    metadata = positions([0.0, 1.0, 2.0], "m")
    with pytest.raises(StackFileError, match="--z-step-um"):
        open_stack(write_ome(tmp_path / "a.tif", np.zeros((3, 8, 8), np.uint8), metadata=metadata))
