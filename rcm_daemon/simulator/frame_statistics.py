"""Statistics by which phantom frames are held against real in-vivo ones (1000 x 1000 at 0.5 um, 8 bit)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REAL_RANGES: dict[str, tuple[float, float]] = {
    "mean_grey": (71.0, 113.0),
    "sd_grey": (34.0, 53.0),
    "percentile_1": (9.0, 37.0),
    "percentile_99": (173.0, 255.0),
    "saturated_percent": (0.05, 2.3),
    "corner_brightness": (0.46, 1.0),
    "autocorrelation_1px": (0.72, 0.85),
    "autocorrelation_4px": (0.56, 0.76),
    "spectral_slope": (-2.6, -1.8),
}
"""Lowest and highest value among eight real in-vivo frames."""


def autocorrelation(frame: NDArray[np.uint8], lag: int) -> float:
    """Correlation of a frame with itself shifted by `lag` pixels, averaged over rows and columns."""
    grey = frame.astype(np.float32) - np.float32(frame.mean())
    variance = float((grey * grey).mean())
    if variance == 0.0:
        return 1.0
    down = float((grey[lag:] * grey[:-lag]).mean())
    right = float((grey[:, lag:] * grey[:, :-lag]).mean())
    return (down + right) / 2 / variance


def spectral_slope(frame: NDArray[np.uint8]) -> float:
    """Slope of log power against log frequency, radially averaged.

    The power of the Hann-windowed, mean-free frame is averaged over rings one frequency step wide; the line
    is fitted to rings evenly spaced in log frequency, from 4 cycles a frame to a quarter of the sampling
    rate.
    """
    side = min(frame.shape)
    grey = frame[:side, :side].astype(np.float32)
    window = np.hanning(side).astype(np.float32)
    grey = (grey - grey.mean()) * window[:, None] * window[None, :]
    power = np.abs(np.fft.rfft2(grey)) ** 2
    fy = np.fft.fftfreq(side, 1 / side)[:, None]
    fx = np.arange(side // 2 + 1)[None, :]
    ring = np.rint(np.hypot(fy, fx)).astype(np.intp).ravel()
    total = np.bincount(ring, weights=power.ravel())
    count = np.bincount(ring)
    radial = total / np.maximum(count, 1)
    chosen = np.unique(np.geomspace(4, side // 4, 40).astype(np.intp))
    slope, _ = np.polyfit(np.log(chosen), np.log(radial[chosen] + 1e-9), 1)
    return float(slope)


def corner_brightness(frame: NDArray[np.uint8]) -> float:
    """Mean grey of the four corners (an eighth of each side) relative to the middle quarter of the field."""
    rows, columns = frame.shape
    r, c = rows // 8, columns // 8
    corners = np.concatenate(
        [part.ravel() for part in (frame[:r, :c], frame[:r, -c:], frame[-r:, :c], frame[-r:, -c:])]
    )
    middle = frame[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    return float(corners.mean() / max(float(middle.mean()), 1e-6))


def frame_statistics(frame: NDArray[np.uint8]) -> dict[str, float]:
    """All statistics of `REAL_RANGES` for one frame (uint8 [rows, columns]).

    Grey levels are 0 to 255; ``saturated_percent`` is the share of pixels at 255 in percent; the
    autocorrelations are at 1 and 4 pixels.
    """
    low, high = np.percentile(frame, [1, 99])
    return {
        "mean_grey": float(frame.mean()),
        "sd_grey": float(frame.std()),
        "percentile_1": float(low),
        "percentile_99": float(high),
        "saturated_percent": float((frame == 255).mean() * 100),
        "corner_brightness": corner_brightness(frame),
        "autocorrelation_1px": autocorrelation(frame, 1),
        "autocorrelation_4px": autocorrelation(frame, 4),
        "spectral_slope": spectral_slope(frame),
    }
