"""Phantom frames are held against the statistics of real in-vivo frames.

The real ranges are the extremes of only eight frames, so a ninth real frame would itself fall outside some of
them. The rule for the phantoms, all strata pooled: for every statistic the median over the frames lies inside
the range, and so do more than half of the frames; over all statistics together four fifths of the values do.
"""

from __future__ import annotations

import numpy as np
import pytest

from rcm_daemon.simulator import TRAINING_FAMILIES, make_phantom
from rcm_daemon.simulator.frame_statistics import REAL_RANGES, frame_statistics

N_FRAMES = 25
SHARE_INSIDE_EACH = 0.55
SHARE_INSIDE_ALL = 0.8


@pytest.fixture(scope="module")
def statistics() -> dict[str, np.ndarray]:
    rows = []
    for seed in range(N_FRAMES):
        phantom = make_phantom(seed, family=TRAINING_FAMILIES[seed % len(TRAINING_FAMILIES)])
        depth = (seed * 0.618) % 1.0  # spread over the strata, another depth for every family
        frame = phantom.render(int(depth * len(phantom)))
        assert frame.shape == (1000, 1000)
        rows.append(frame_statistics(frame))
    return {name: np.array([row[name] for row in rows]) for name in REAL_RANGES}


@pytest.mark.parametrize("name", REAL_RANGES)
def test_frames_resemble_real_ones(statistics: dict[str, np.ndarray], name: str) -> None:
    low, high = REAL_RANGES[name]
    values = statistics[name]
    assert low <= np.median(values) <= high
    assert ((values >= low) & (values <= high)).mean() >= SHARE_INSIDE_EACH


def test_most_values_lie_in_the_real_ranges(statistics: dict[str, np.ndarray]) -> None:
    inside = [
        (values >= REAL_RANGES[name][0]) & (values <= REAL_RANGES[name][1])
        for name, values in statistics.items()
    ]
    assert np.mean(inside) >= SHARE_INSIDE_ALL
