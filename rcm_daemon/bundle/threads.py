"""On how many threads a CNN runs where that is not set: on one, or on one for each core.

Between two slices the threads sleep, and a sleeping one has to be woken for every operator. For a small
network that costs more than the thread does; a large one gains by each.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rcm_daemon.bundle.cnn import open_cnn, run_cnn
from rcm_daemon.bundle.golden import read_golden_slices

if TYPE_CHECKING:
    from rcm_daemon.bundle.execution import Execution, ProviderName
    from rcm_daemon.bundle.verify import VerifiedBundle

PAUSE_S = 0.02
"""Before each run: after 5 ms a second thread is still awake, after 10 ms no more."""
N_ROUNDS = 3
WORTH = 0.8
"""All cores are taken where their median run lasts less than this share of one thread's."""


def settle_threads(bundle: VerifiedBundle, provider: ProviderName, execution: Execution) -> Execution:
    """Return the execution with a number of threads: where it is open, fp32 in ONNX Runtime is timed.

    Raises
    ------
    BundleError
        The CNN cannot be opened.
    InferenceError
        It does not run.
    """
    n_cores = execution.threads
    if provider != "cpu" or execution.n_threads or n_cores == 1:
        return execution
    image, size = read_golden_slices(bundle)[0], bundle.manifest.embedding_size
    cnns = {n: open_cnn(bundle, "fp32", provider, replace(execution, n_threads=n)) for n in (1, n_cores)}
    taken_s: dict[int, list[float]] = {n: [] for n in cnns}
    for cnn in cnns.values():  # pays for memory
        run_cnn(cnn, image, size, "warm-up")
    for _ in range(N_ROUNDS):
        for n, cnn in cnns.items():
            time.sleep(PAUSE_S)
            begun_s = time.perf_counter()
            run_cnn(cnn, image, size, "warm-up")
            taken_s[n].append(time.perf_counter() - begun_s)
    one_s, all_s = (statistics.median(taken_s[n]) for n in (1, n_cores))
    return replace(execution, n_threads=n_cores if all_s < WORTH * one_s else 1)
