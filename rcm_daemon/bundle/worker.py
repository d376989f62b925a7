"""The thread that embeds slices, so that the sockets are served while the CNN runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from rcm_daemon.bundle.embedding import embed_slice
from rcm_daemon.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.core.records import Slice
    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice


@dataclass(frozen=True)
class EmbedJob:
    """A slice to embed for a stack, received at `received_ns` (monotonic)."""

    stack: Acquisition
    slice: Slice
    received_ns: int


@dataclass(frozen=True)
class EmbedResult:
    """The answer to a job: an embedded slice, or the error that came instead; times are monotonic."""

    job: EmbedJob
    outcome: EmbeddedSlice | InferenceError
    started_ns: int
    finished_ns: int


class EmbedWorker:
    """Embeds slices one at a time, in the order they were given.

    Parameters
    ----------
    networks
        Used by this thread alone for embedding.
    wake
        Called from the thread after each result.
    """

    def __init__(self, networks: Networks, wake: Callable[[], None]) -> None:
        self._networks = networks
        self._wake = wake
        self._jobs: SimpleQueue[EmbedJob | None] = SimpleQueue()
        self._results: SimpleQueue[EmbedResult] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)
        self._thread.start()

    def submit(self, job: EmbedJob) -> None:
        """Queue one slice."""
        self._jobs.put(job)

    def results(self) -> list[EmbedResult]:
        """Return what has finished since the last call, in order."""
        return [self._results.get() for _ in range(self._results.qsize())]

    def close(self) -> None:
        """Stop after the slice in hand; what is queued behind the stop is not embedded."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            started_ns = time.monotonic_ns()
            outcome: EmbeddedSlice | InferenceError
            try:
                outcome = embed_slice(self._networks, job.slice)
            except InferenceError as error:
                outcome = error
            except Exception as error:  # a fault of one slice must not end the thread that serves all
                reason = " ".join(str(error).split())[:200]
                outcome = InferenceError(f"embedding failed: {type(error).__name__}: {reason}")
            self._results.put(EmbedResult(job, outcome, started_ns, time.monotonic_ns()))
            self._wake()
