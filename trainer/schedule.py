"""The learning rate over a training."""

from __future__ import annotations

import math

WARM_UP = 0.05
"""Share of all steps over which the learning rate rises."""


def learning_rate(progress: float, peak: float) -> float:
    """Rate after a share `progress` (0..1) of all steps: linear warm-up, then a cosine to 0."""
    if progress < WARM_UP:
        return peak * (progress + 1e-3) / (WARM_UP + 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
