"""Processes that work for a command, and end with it however it ends."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from rcm_daemon.bundle.parentage import end_with

if TYPE_CHECKING:
    from collections.abc import Callable


def worker_pool(
    n_workers: int, prepare: Callable[..., None] | None = None, *given: Any
) -> ProcessPoolExecutor:
    """Open a pool of spawned processes, each of which calls `prepare(*given)` first.

    Spawned, not forked: a fork copies OpenCV's and PyTorch's threads in whatever state they are. On Linux
    they are killed as soon as this process is gone: else they would go through all that is queued, for
    nobody. To be used in the main thread, or one that lives as long as the pool.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=_begin, initargs=(os.getpid(), prepare, given)
    )


def _begin(parent: int, prepare: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    end_with(parent)
    if prepare is not None:
        prepare(*given)
