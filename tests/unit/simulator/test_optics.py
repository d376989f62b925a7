"""The microscope's optics: vignetting, grains, gain, motion, and the statistics of frames."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rcm_daemon.simulator import FAMILIES
from rcm_daemon.simulator.frame_statistics import frame_statistics, spectral_slope
from rcm_daemon.simulator.optics import Camera, Exposure, expose, grain_at_pitch, grain_noise, vignette
from rcm_daemon.simulator.recipe import Recipe, draw_patient, draw_recipe

if TYPE_CHECKING:
    from rcm_daemon.simulator.grids import Frame, Grid

CAMERA = Camera((200, 200), 1.0)
STEADY = Exposure(gain=1.0, sheared=False)


def _recipe(**changes: object) -> Recipe:
    rng = np.random.default_rng(0)
    recipe = draw_recipe(rng, FAMILIES["classic"], draw_patient(rng), "back", lesional=False)
    plain = {"corner": 1.0, "speckle": 0.0, "shot_grey": 0.0, "compensation": 1.0, "mean_grey": 90.0}
    return dataclasses.replace(recipe, **(plain | changes))


def _light(seed: int = 0) -> Grid:
    return np.random.default_rng(seed).uniform(0.1, 0.6, (200, 200)).astype(np.float32)


def _frame(
    recipe: Recipe, depth_um: float = 20.0, exposure: Exposure = STEADY, light: Grid | None = None
) -> Frame:
    corners = vignette(recipe, CAMERA, np.random.default_rng(1))
    light = _light() if light is None else light
    return expose(light, depth_um, recipe, CAMERA, exposure, corners, np.random.default_rng(2))


def test_operator_holds_the_mean_when_compensation_is_full() -> None:
    for depth_um in (0.0, 50.0, 150.0):
        assert _frame(_recipe(), depth_um).mean() == pytest.approx(90, abs=2)
    assert _frame(_recipe(), exposure=Exposure(1.3, False)).mean() > 105


def test_deep_frames_are_darker_without_compensation() -> None:
    recipe = _recipe(compensation=0.2)
    assert _frame(recipe, 150.0).mean() < 0.7 * _frame(recipe, 40.0).mean()


def test_blur_and_haze_grow_with_depth() -> None:
    recipe = _recipe(blur_growth=1.0)
    fine = [
        np.abs(np.diff(_frame(recipe, depth).astype(float), axis=1)).mean() for depth in (0.0, 60.0, 140.0)
    ]
    assert fine[0] > fine[1] > fine[2]


def test_corners_are_darker() -> None:
    flat = np.full((200, 200), 0.35, np.float32)
    assert frame_statistics(_frame(_recipe(corner=0.5), light=flat))["corner_brightness"] < 0.8
    assert frame_statistics(_frame(_recipe(corner=1.0), light=flat))["corner_brightness"] == pytest.approx(
        1, abs=0.01
    )


def test_motion_shifts_rows() -> None:
    steady, moved = _frame(_recipe()), _frame(_recipe(), exposure=Exposure(1.0, True))
    assert (steady != moved).mean() > 0.05


def test_strong_gain_saturates() -> None:
    light = 10 * _light() ** 4
    assert (_frame(_recipe(mean_grey=160.0, contrast=1.2), light=light) == 255).mean() > 0.005


@pytest.mark.parametrize("pixel_size_um", [0.5, 1.0, 2.0, 4.0])
def test_grains_have_the_same_power_at_every_pitch(pixel_size_um: float) -> None:
    # The variance of grains averaged over an area falls like the area, whatever the pixel. Neighbouring
    # pixels wider than a grain are taken as independent, which loses up to a third of the deviation.
    sigma, factor = grain_at_pitch(0.5, pixel_size_um)
    n = int(512 / pixel_size_um)
    noise = grain_noise(np.random.default_rng(0), (n, n), sigma) * factor
    block = int(16 / pixel_size_um)
    coarse = noise.reshape(n // block, block, n // block, block).mean(axis=(1, 3))
    expected = np.sqrt(4 * np.pi) * 0.5 / 16  # SD of a 16 um block: sqrt(4 pi) sigma / side
    assert coarse.std() == pytest.approx(expected, rel=0.36)


def test_spectral_slope_of_known_fields() -> None:
    rng = np.random.default_rng(3)
    white = np.clip(rng.normal(128, 30, (256, 256)), 0, 255).astype(np.uint8)
    assert spectral_slope(white) == pytest.approx(0, abs=0.15)
    f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    f[0, 0] = 1
    brown = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((256, 256))) / f, s=(256, 256))
    brown = np.clip(128 + 40 * brown / brown.std(), 0, 255).astype(np.uint8)
    assert spectral_slope(brown) == pytest.approx(-2, abs=0.3)


def test_statistics_of_a_flat_frame_are_finite() -> None:
    values = frame_statistics(np.full((64, 64), 255, np.uint8))
    assert values["saturated_percent"] == 100.0
    assert np.isfinite(list(values.values())).all()
