"""What is read off measured times; pure, milliseconds everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Summary:
    """Of `n` times in the order they were measured; `first_ms` is the very first."""

    n: int
    first_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


def summarise(times_ms: Sequence[float]) -> Summary:
    """Sum up at least one time; percentiles are interpolated linearly."""
    p50, p95, p99, longest = np.percentile(times_ms, [50, 95, 99, 100]).tolist()
    return Summary(len(times_ms), times_ms[0], p50, p95, p99, longest)


@dataclass(frozen=True)
class Sample:
    """How long the answer to one slice took, as the newest of a stack of `n_slices`."""

    n_slices: int
    ms: float


def near(samples: Iterable[Sample], n_slices: int, within: int) -> list[float]:
    """Return the times of stacks whose length differs from `n_slices` by no more than `within`."""
    return [sample.ms for sample in samples if abs(sample.n_slices - n_slices) <= within]


def median_by_length(samples: Iterable[Sample]) -> list[Sample]:
    """Median time a stack length, shortest first."""
    by_length: dict[int, list[float]] = {}
    for sample in samples:
        by_length.setdefault(sample.n_slices, []).append(sample.ms)
    return [Sample(n, float(np.median(times))) for n, times in sorted(by_length.items())]
