"""From the light a section reflects to a camera frame: blur, haze, gain, speckle, vignetting, noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from rcm_daemon.simulator.grids import Frame, Grid
    from rcm_daemon.simulator.recipe import Recipe

SHOT_PITCH_UM = 0.5
"""Pitch at which `Recipe.shot_grey` is stated; shot noise falls with the area of a pixel."""

TYPICAL_LIGHT, DARKEST_LIGHT = 0.35, 0.12
"""Mean reflectance the gain is made for, and the mean below which it is not turned up further."""

CONTRAST_HELD = 0.7
"""Share (as an exponent) of the change of contrast with depth that the instrument's grey curve takes back."""


@dataclass(frozen=True)
class Camera:
    """A field of `shape` pixels at `pixel_size_um`."""

    shape: tuple[int, int]
    pixel_size_um: float

    @property
    def field_um(self) -> tuple[int, int]:
        """Extent of the field, rounded up to whole um of the tissue grid."""
        return (
            int(np.ceil(self.shape[0] * self.pixel_size_um - 1e-6)),
            int(np.ceil(self.shape[1] * self.pixel_size_um - 1e-6)),
        )


@dataclass(frozen=True)
class Exposure:
    """What differs between the slices of one stack.

    Attributes
    ----------
    gain
        Brightness relative to the operator's aim.
    sheared
        Whether the patient moved during the frame.
    """

    gain: float
    sheared: bool


def vignette(recipe: Recipe, camera: Camera, rng: np.random.Generator) -> Grid:
    """Brightness over the field: 1 at an off-centre middle, about `recipe.corner` in the corners."""
    rows = np.linspace(-1, 1, camera.shape[0], dtype=np.float32)[:, None] - np.float32(rng.normal(0, 0.12))
    columns = np.linspace(-1, 1, camera.shape[1], dtype=np.float32)[None, :] - np.float32(rng.normal(0, 0.12))
    radius = (rows**2 + columns**2) / np.float32(2)
    power = np.float32(rng.uniform(0.8, 1.8))
    return (1 - np.float32(1 - recipe.corner) * np.minimum(radius, 1.3) ** power).astype(np.float32)


@lru_cache(maxsize=64)
def grain_at_pitch(grain_um: float, pixel_size_um: float) -> tuple[float, float]:
    """Noise of Gaussian grains seen through square pixels.

    Returns
    -------
    tuple
        Sigma in pixels for white noise to get the same grains (0: no blur), and the factor by which averaging
        over a pixel reduces the standard deviation.
    """
    n = 16
    offsets = np.linspace(0, pixel_size_um, n)
    lag = offsets[:, None] - offsets[None, :]
    factor = float(np.exp(-(lag**2) / (4 * grain_um**2)).mean())  # of the variance, along one axis
    sigma = grain_um / pixel_size_um
    return (sigma if sigma > 0.35 else 0.0), factor


def grain_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Grid:
    """Unit-variance noise with grains of `sigma` pixels."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if sigma == 0.0:
        return noise
    half = max(1, int(np.ceil(2.5 * sigma)))
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2)).astype(np.float32)
    kernel /= np.sqrt((kernel**2).sum())
    return np.asarray(cv2.sepFilter2D(noise, -1, kernel, kernel), dtype=np.float32)


def _sheared(light: Grid, rng: np.random.Generator) -> Grid:
    """Shift the rows as a jerk during the scan does."""
    rows, columns = light.shape
    start, length = rng.uniform(0, rows), rng.uniform(15, 120)
    where = (np.arange(rows, dtype=np.float32) - np.float32(start)) / np.float32(length)
    shift = np.float32(rng.normal(0, 14)) * np.exp(-(where**2)) + np.float32(rng.normal(0, 6)) * (where > 0)
    map_x = np.arange(columns, dtype=np.float32)[None, :] + shift.astype(np.float32)[:, None]
    map_y = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], light.shape)
    moved = cv2.remap(
        light, map_x, np.ascontiguousarray(map_y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved, dtype=np.float32)


def _resampled(light: Grid, camera: Camera) -> Grid:
    size = (camera.shape[1], camera.shape[0])
    if camera.pixel_size_um == 1.0 and light.shape == camera.shape:
        return light
    how = cv2.INTER_AREA if camera.pixel_size_um > 1.0 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(light, size, interpolation=how), dtype=np.float32)


def expose(
    light: Grid,
    depth_um: float,
    recipe: Recipe,
    camera: Camera,
    exposure: Exposure,
    corners: Grid,
    rng: np.random.Generator,
) -> Frame:
    """Take a picture of a section.

    Parameters
    ----------
    light
        [rows, columns] reflectance on the tissue grid (1 um).
    depth_um
        Depth below the mean skin surface.
    corners
        [rows, columns] of the frame: the vignette.
    rng
        Noise of this frame.

    Returns
    -------
    Frame
        uint8 [rows, columns].
    """
    deep = max(depth_um, 0.0)
    if exposure.sheared:
        light = _sheared(light, rng)
    sigma = np.hypot(recipe.blur_um, recipe.blur_growth * deep / 100)
    if sigma > 0.3:
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), float(sigma)), dtype=np.float32)
    haze = float(np.clip(recipe.haze + recipe.haze_growth * deep / 100, 0, 0.7))
    veil = cv2.resize(light, (light.shape[1] // 8, light.shape[0] // 8), interpolation=cv2.INTER_AREA)
    veil = cv2.GaussianBlur(veil, (0, 0), 5.0)
    veil = cv2.resize(veil, (light.shape[1], light.shape[0]), interpolation=cv2.INTER_LINEAR)
    light = light + np.float32(haze) * (veil - light)

    # The operator brings back part of the brightness and contrast that depth and tissue take.
    mean, deviation = (float(v[0, 0]) for v in cv2.meanStdDev(light))
    mean = max(mean, DARKEST_LIGHT)
    power = float(np.clip((recipe.contrast * mean / max(deviation, 1e-3)) ** CONTRAST_HELD, 0.5, 1.9))
    light = np.asarray(cv2.pow(np.maximum(light, np.float32(0.01)), power), dtype=np.float32)
    strength = (mean / TYPICAL_LIGHT * np.exp((50 - deep) / recipe.attenuation_um)) ** (
        1 - recipe.compensation
    )
    aim = (recipe.mean_grey - recipe.black_grey) * exposure.gain * min(strength, 1.6) / float(corners.mean())
    frame = _resampled(light * np.float32(aim / max(float(light.mean()), DARKEST_LIGHT**power)), camera)

    sigma_px, share = grain_at_pitch(recipe.speckle_grain_um, camera.pixel_size_um)
    speckle = grain_noise(rng, camera.shape, sigma_px) * np.float32(recipe.speckle * share)
    if recipe.noise == "banded":
        speckle = np.exp(speckle * np.float32(1.4))
        speckle *= np.exp(rng.normal(0, 0.025, (camera.shape[0], 1))).astype(np.float32)
    else:
        speckle += 1
    frame *= speckle
    frame *= corners
    np.maximum(frame, 0, out=frame)
    shot = recipe.shot_grey / 10.0 * SHOT_PITCH_UM / camera.pixel_size_um
    frame += np.sqrt(frame) * rng.standard_normal(camera.shape, dtype=np.float32) * np.float32(shot)
    frame += np.float32(recipe.black_grey)
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)
