"""What a soak measures now and then while everything rests, and what it says about growth."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Z_90 = 1.645


@dataclass(frozen=True)
class Sample:
    """Resident memory of daemon and worker (MB of 2^20 bytes) and the daemon's descriptors, at rest."""

    time_s: float
    daemon_mb: float
    worker_mb: float
    n_descriptors: int

    @classmethod
    def take(cls, time_s: float, daemon_pid: int, worker_pid: int) -> Sample:
        """Measure now."""
        n_descriptors = len(os.listdir(f"/proc/{daemon_pid}/fd"))
        return cls(time_s, resident_mb(daemon_pid), resident_mb(worker_pid), n_descriptors)


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Rss")


@dataclass(frozen=True)
class Growth:
    """Slope in MB an hour, with its 90 % interval."""

    mb_an_hour: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mb_an_hour:+.2f} MB/h (90 %: {self.low:+.2f} to {self.high:+.2f})"


def growth(samples: Sequence[Sample], memory_mb: Callable[[Sample], float]) -> Growth:
    """Estimate it by Theil and Sen: the median of the slopes between all pairs.

    The interval is Sen's (1968), from the variance of Kendall's statistic under no trend.
    """
    n = len(samples)
    time_h = np.array([s.time_s for s in samples]) / 3_600
    memory = np.array([memory_mb(s) for s in samples])
    first, second = np.triu_indices(n, 1)
    slopes = np.sort((memory[second] - memory[first]) / (time_h[second] - time_h[first]))
    half_width = Z_90 * np.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    low, high = (round(len(slopes) / 2 + sign * half_width) for sign in (-1, 1))
    last = len(slopes) - 1
    return Growth(float(np.median(slopes)), float(slopes[max(0, low)]), float(slopes[min(last, high)]))


def largest_step(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return by how many MB both grew at most between two samples, and when: what a median does not show."""
    memory = np.array([s.daemon_mb + s.worker_mb for s in samples])
    at = int(np.argmax(np.diff(memory)))
    return float(np.diff(memory)[at]), samples[at + 1].time_s


class Gate:
    """Where all senders wait, with nothing in flight, while something is measured."""

    def __init__(self, n_senders: int) -> None:
        self._n_senders = n_senders
        self._open = threading.Event()
        self._open.set()
        self._resting = threading.Semaphore(0)

    def pass_by(self, settle: Callable[[], None] = lambda: None) -> None:
        """Called by a sender before every message; `settle` waits for what it has in flight."""
        if not self._open.is_set():
            settle()
            self._resting.release()
            self._open.wait()

    @contextmanager
    def closed(self, patience_s: float) -> Iterator[None]:
        """Close until the block is left.

        Raises
        ------
        TimeoutError
            A sender has not come to rest; it may have died.
        """
        self._open.clear()
        try:
            for _ in range(self._n_senders):
                if not self._resting.acquire(timeout=patience_s):
                    raise TimeoutError("a sender does not come to rest")
            yield
        finally:
            self._open.set()
