"""What an estimate takes (posterior, boundaries, plan, advice), beside the recurrent network it rests on.

    python -m tests.bench_estimate [BUNDLE] [--slices 100] [--rounds 4000]

The stack is the bundle's golden one, its embeddings interpolated to as many slices, 3 um apart.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path

import numpy as np

from rcm_daemon.bundle.golden import read_golden
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=default_bundle_path())
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4000)
    given = parser.parse_args()
    bundle = load_verified(given.bundle)
    networks = Networks.open(bundle, "cpu", n_threads=1)
    golden = read_golden(bundle)["stack_embeddings"]
    places = np.linspace(0, len(golden) - 1, given.slices)
    columns = [np.interp(places, np.arange(len(golden)), column) for column in golden.T]
    embeddings = np.stack(columns, axis=1).astype(np.float32)
    stack = PartialStack(tuple(EmbeddedSlice(i, 3.0 * i, one) for i, one in enumerate(embeddings)))
    recur = partial(networks.recur, stack.embeddings, stack.z_um.astype(np.float32), stack.weight)
    estimate = partial(Estimation(networks.estimator_parameters).estimate, stack, recur(), 0.5)
    durations_ms: dict[str, list[float]] = {"recurrent network": [], "estimate": []}
    for _ in range(given.rounds):
        for what, run in zip(durations_ms, (recur, estimate), strict=True):
            begun_s = time.perf_counter()
            run()
            durations_ms[what].append(1e3 * (time.perf_counter() - begun_s))
    print(f"{given.slices} slices, {given.rounds} rounds in turn, load {os.getloadavg()[0]:.1f}")
    for what, values in durations_ms.items():
        print(f"{what:18} median {np.median(values):.3f} ms, fastest {min(values):.3f} ms")


if __name__ == "__main__":
    main()
