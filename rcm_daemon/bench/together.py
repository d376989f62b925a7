"""Several instruments at once, each at the frame rate."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcm_daemon.bench.stream import pause_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.bench.stream import Pictures, Stream


@dataclass(frozen=True)
class PlayedTogether:
    """From when each slice was due until its result was there, and how many slices have none."""

    ms: list[float]
    n_lost: int


def play_together(streams: Sequence[Stream], pictures: Pictures, stack_id: str, fps: float) -> PlayedTogether:
    """Play a stack on each stream at the same time.

    An instrument whose result is late sends its next slice late; that is counted as latency too.
    """
    with ThreadPoolExecutor(len(streams)) as threads:
        played = list(threads.map(lambda stream: _play(stream, pictures, stack_id, fps), streams))
    return PlayedTogether([ms for one in played for ms in one.ms], sum(one.n_lost for one in played))


def _play(stream: Stream, pictures: Pictures, stack_id: str, fps: float) -> PlayedTogether:
    n_slices = len(pictures.z_um)
    stream.begin(pictures.plan(stack_id))
    ms = []
    begun_s = time.monotonic()
    for index in range(n_slices):
        due_s = begun_s + index / fps
        pause_until(due_s)
        stream.send(index, pictures.image(index))
        ms.append((time.monotonic() - due_s) * 1e3)
    final = stream.end(n_slices)
    return PlayedTogether(ms, n_slices - final["n_slices"] + final["n_lost"])
