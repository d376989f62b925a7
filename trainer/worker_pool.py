"""Processes that work for a command, and end with it however it ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


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
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)
    if prepare is not None:
        prepare(*given)
