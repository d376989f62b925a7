"""On how many threads a CNN runs where that is not set: on one, or on one for each core.

Between two slices the threads sleep, and a sleeping one has to be woken for every operator. For a small
network that costs more than the thread does; a large one gains by each.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rcm_daemon.bundle.cnn import open_cnn, run_cnn
from rcm_daemon.bundle.golden import read_golden_slices
from rcm_daemon.errors import BundleError, InferenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rcm_daemon.bundle.cnn import Cnn
    from rcm_daemon.bundle.execution import Execution, ProviderName
    from rcm_daemon.bundle.verify import VerifiedBundle

PAUSE_S = 0.02
"""Before each run, or longer where threads wait busily for longer: what is timed is to find them asleep."""
LONGEST_PAUSE_S = 0.2
N_ROUNDS = 3
WORTH = 0.7
"""All cores are taken where their quickest run lasts less than this share of one thread's. On two cores this
is 0.75 to 0.83 for the default bundle's CNN, with which answers come no sooner on two threads (6.2 to 7.0 ms)
than on one (5.4 to 6.5), since the daemon has work for the other core; 0.53 to 0.56 for the full width."""


def settle_threads(bundle: VerifiedBundle, provider: ProviderName, execution: Execution) -> Execution:
    """Return the execution with a number of threads: where it is open, fp32 in ONNX Runtime is timed.

    A CNN that does not run is not timed; what is wrong with it, those say who check it.

    Raises
    ------
    BundleError
        The CNN cannot be opened.
    """
    n_cores = execution.threads
    if provider != "cpu" or execution.n_threads or n_cores == 1:
        return execution
    cnns = {n: open_cnn(bundle, "fp32", provider, replace(execution, n_threads=n)) for n in (1, n_cores)}
    try:
        taken_s = _measure(cnns, bundle, min(LONGEST_PAUSE_S, max(PAUSE_S, 2e-6 * execution.spin_us)))
    except (BundleError, InferenceError):
        return replace(execution, n_threads=1)
    return replace(execution, n_threads=n_cores if taken_s[n_cores] < WORTH * taken_s[1] else 1)


def _measure(cnns: Mapping[int, Cnn], bundle: VerifiedBundle, pause_s: float) -> dict[int, float]:
    """Run CNNs in turn, each after a pause; returns the shortest duration of each in seconds.

    The shortest, for what else the cores had to do while a start is under way only makes runs longer.
    """
    image, size = read_golden_slices(bundle)[0], bundle.manifest.embedding_size
    taken_s: dict[int, list[float]] = {n: [] for n in cnns}
    for cnn in cnns.values():  # pays for memory
        run_cnn(cnn, image, size, "warm-up")
    for _ in range(N_ROUNDS):
        for n, cnn in cnns.items():
            time.sleep(pause_s)
            begun_s = time.perf_counter()
            run_cnn(cnn, image, size, "warm-up")
            taken_s[n].append(time.perf_counter() - begun_s)
    return {n: min(seconds) for n, seconds in taken_s.items()}
