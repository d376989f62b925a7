"""A slice on its way to the CNN's field: grey levels, pitch, crop, padding, never a stretch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.bundle.field import to_field
from rcm_daemon.errors import InferenceError

FIELD = (40, 60)
RNG = np.random.default_rng(0)


def noise(rows: int, columns: int) -> np.ndarray:
    return RNG.integers(0, 256, (rows, columns)).astype(np.uint8)


@pytest.mark.parametrize("max_value", [0, 255])
def test_fitting_slice_is_not_even_copied(max_value: int) -> None:
    image = noise(*FIELD)
    field, flags = to_field(image, 0.5, max_value, FIELD, 0.5)
    assert field is image
    assert flags == ()


@pytest.mark.hazard("H60")
def test_16_bit_is_scaled_by_max_value_never_by_its_own_extremes() -> None:
    image = np.full(FIELD, 1000, dtype=np.uint16)
    image[0, 0] = 4095
    image[0, 1] = 5000
    field, flags = to_field(image, 0.5, 4095, FIELD, 0.5)
    assert field.dtype == np.uint8
    assert field[0, 0] == field[0, 1] == 255
    assert field[5, 5] == round(1000 * 255 / 4095)
    assert flags == ()
    assert to_field(image, 0.5, 0, FIELD, 0.5)[0][5, 5] == round(1000 * 255 / 65535)


def test_every_8_bit_level_times_257_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    assert np.array_equal(to_field(levels, 0.5, 0, (16, 16), 0.5)[0], np.arange(256).reshape(16, 16))


def test_uint8_with_its_own_max_value() -> None:
    image = np.array([[0, 50, 100, 200]], dtype=np.uint8)
    assert to_field(image, 1.0, 100, (1, 4), 1.0)[0].tolist() == [[0, 128, 255, 255]]


@pytest.mark.hazard("H60")
def test_larger_slice_is_cropped_to_its_centre() -> None:
    image = noise(50, 80)
    field, flags = to_field(image, 0.5, 0, FIELD, 0.5)
    assert np.array_equal(field, image[5:45, 10:70])
    assert flags == ("cropped",)


@pytest.mark.hazard("H60")
def test_smaller_slice_is_padded_by_reflection() -> None:
    image = noise(30, 50)
    field, flags = to_field(image, 0.5, 0, FIELD, 0.5)
    assert flags == ("padded",)
    assert np.array_equal(field, np.pad(image, ((5, 5), (5, 5)), mode="reflect"))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 200), (3, 60)])
def test_padding_may_exceed_the_image(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    field, flags = to_field(image, 0.5, 0, FIELD, 0.5)
    rows, columns = FIELD[0] - shape[0], max(0, FIELD[1] - shape[1])
    left = max(0, (shape[1] - FIELD[1]) // 2)
    middle = image[:, left : left + FIELD[1]]
    pads = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    assert np.array_equal(field, np.pad(middle, pads, mode="reflect"))
    assert "padded" in flags


def test_crop_and_pad_together() -> None:
    field, flags = to_field(noise(20, 100), 0.5, 0, FIELD, 0.5)
    assert field.shape == FIELD
    assert flags == ("cropped", "padded")


def disc(rows: int, columns: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    inside = (y - (rows - 1) / 2) ** 2 + (x - (columns - 1) / 2) ** 2 < radius**2
    return np.where(inside, 200, 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "pitch", "radius_um"),
    [((160, 240), 0.25, 12), ((400, 500), 0.1, 12), ((41, 61), 1.0, 12), ((1500, 1500), 0.02, 8)],
)
def test_other_pitch_keeps_sizes_in_um_and_round_things_round(
    shape: tuple[int, int], pitch: float, radius_um: float
) -> None:
    field, flags = to_field(disc(*shape, radius_um / pitch), pitch, 0, FIELD, 0.5)
    assert "pitch_resampled" in flags
    assert field.shape == FIELD
    rows = np.count_nonzero(field.max(axis=1) > 100) * 0.5
    columns = np.count_nonzero(field.max(axis=0) > 100) * 0.5
    expected = min(2 * radius_um, FIELD[0] * 0.5)
    assert rows == pytest.approx(expected, abs=1.5)
    assert columns == pytest.approx(2 * radius_um, abs=1.5)
    assert field[FIELD[0] // 2, FIELD[1] // 2] == 200


def test_600_by_800_at_half_the_pitch_stays_that_wide() -> None:
    _, flags = to_field(noise(600, 800), 1.0, 0, (1000, 1000), 0.5)
    assert flags == ("pitch_resampled", "cropped")
    _, flags = to_field(noise(600, 800), 0.5, 0, (1000, 1000), 0.5)
    assert flags == ("padded",)


@pytest.mark.parametrize("pitch", [0.5004, 0.4996])
def test_pitch_within_a_thousandth_is_left_alone(pitch: float) -> None:
    image = noise(*FIELD)
    field, flags = to_field(image, pitch, 0, FIELD, 0.5)
    assert field is image
    assert flags == ()


def test_coarse_pitch_does_not_blow_up_memory() -> None:
    image = noise(2000, 2000)
    tracemalloc.start()
    field, flags = to_field(image, 20.0, 0, FIELD, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert field.shape == FIELD
    assert flags == ("pitch_resampled", "cropped")
    assert peak < 20e6


@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    pitch=st.floats(0.02, 5.0),
    depth=st.sampled_from([np.uint8, np.uint16]),
)
def test_always_the_field_and_a_constant_stays_constant(
    rows: int, columns: int, pitch: float, depth: type
) -> None:
    image = np.full((rows, columns), 77, dtype=depth)
    field, flags = to_field(image, pitch, 255, (16, 24), 0.5)
    assert field.shape == (16, 24)
    assert field.dtype == np.uint8
    assert np.all(field == 77)
    assert set(flags) <= {"pitch_resampled", "cropped", "padded"}


@pytest.mark.hazard("H60")
@pytest.mark.parametrize(
    ("image", "pitch", "max_value", "word"),
    [
        (np.zeros((4, 4, 3), np.uint8), 0.5, 0, r"\[4, 4, 3\]"),
        (np.zeros((4, 4), np.float32), 0.5, 0, "float32"),
        (np.zeros((0, 4), np.uint8), 0.5, 0, r"\[0, 4\]"),
        (np.zeros((4, 4), np.uint8), 0.5, 256, "0 to 255"),
        (np.zeros((4, 4), np.uint8), 0.5, -1, "got -1"),
        (np.zeros((4, 4), np.uint8), 0.0, 0, "pitch"),
        (np.zeros((4, 4), np.uint8), float("nan"), 0, "pitch"),
        (np.zeros((4, 4), np.uint8), 26.0, 0, "factor of 50"),
    ],
)
def test_what_cannot_be_a_slice_is_refused(
    image: np.ndarray, pitch: float, max_value: int, word: str
) -> None:
    with pytest.raises(InferenceError, match=word):
        to_field(image, pitch, max_value, FIELD, 0.5)
