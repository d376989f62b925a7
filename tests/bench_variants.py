"""Which form of a CNN is how fast where: one run, all forms in turn, ratios to fp32 on ONNX Runtime.

    python -m tests.bench_variants BUNDLE [--full-width] [--threads 2] [--rounds 40] [--in-a-row 1]

BUNDLE holds an int8 variant. With --full-width its CNN gives way to an Inception-V3 of width 1 at 299 pixels
whose weights were drawn, not trained (their values do not matter to time), quantised the same way on phantom
slices. With --in-a-row each form runs several times before the next one does, and finds its own weights in
the caches, as after a rehearsal, instead of those of the form before.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rcm_daemon.bundle.cnn import open_cnn, run_cnn
from rcm_daemon.bundle.execution import Execution
from rcm_daemon.bundle.golden import read_golden_slices
from rcm_daemon.bundle.verify import VerifiedBundle, load_verified
from rcm_daemon.simulator import make_phantom
from trainer.networks.inception import InceptionStrata
from trainer.onnx_graphs import cnn_graph
from trainer.quantise import in_int8

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMS = (("cpu", "fp32"), ("cpu", "int8"), ("openvino", "fp32"), ("openvino", "int8"))


def full_width(bundle: VerifiedBundle) -> VerifiedBundle:
    torch.manual_seed(0)
    network = InceptionStrata(1.0, 299)
    with torch.no_grad():  # statistics of some input, so that no layer is dead or bursts
        network.train().embed(torch.randint(0, 256, (8, 299, 299)).float())
    cnn = cnn_graph(network, bundle.manifest.input.shape).SerializeToString()
    phantom = make_phantom(1)

    def slices() -> Iterator[np.ndarray]:
        for index in np.linspace(0, len(phantom) - 1, 16).astype(int):
            yield phantom.render(int(index))

    with tempfile.TemporaryDirectory() as scratch:
        int8 = in_int8(cnn, slices(), 16, Path(scratch))
    name = bundle.manifest.variants["int8"].network
    return replace(bundle, files={**bundle.files, "cnn.onnx": cnn, name: int8})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--full-width", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--in-a-row", type=int, default=1)
    given = parser.parse_args()
    bundle = load_verified(given.bundle)
    if given.full_width:
        bundle = full_width(bundle)
    execution = Execution(n_threads=given.threads)
    size, image = bundle.manifest.embedding_size, read_golden_slices(bundle)[0]
    cnns, said = {}, {}
    for provider, variant in FORMS:
        begun_s = time.perf_counter()
        cnn = open_cnn(bundle, variant, provider, execution)
        said[provider, variant] = time.perf_counter() - begun_s, run_cnn(cnn, image, size, "warm-up")
        cnns[provider, variant] = cnn
    durations_s: dict[tuple[str, str], list[float]] = {form: [] for form in FORMS}
    for _ in range(given.rounds):
        for form, cnn in cnns.items():
            for _ in range(given.in_a_row):
                begun_s = time.perf_counter()
                run_cnn(cnn, image, size, "a slice")
                durations_s[form].append(time.perf_counter() - begun_s)
    rounds = f"{given.rounds} rounds of {given.in_a_row} runs"
    print(f"{execution.threads} threads, {rounds}, load {os.getloadavg()[0]:.1f}")
    first = np.array(durations_s[FORMS[0]])
    for form, values in durations_s.items():
        opened_s, embedding = said[form]
        same = said[FORMS[0]][1] if form[1] == "fp32" else said[FORMS[1]][1]
        off = np.abs(embedding - same).max() / np.abs(same).max()
        runs = 1e3 * np.array(values)
        print(
            f"{form[0]:9} {form[1]}"
            f"  median {np.median(runs):7.2f} ms  x{np.median(values) / np.median(first):.3f}"
            f"  fastest {runs.min():7.2f} ms  x{min(values) / first.min():.3f}"
            f"  opened in {opened_s:.2f} s  off from ONNX Runtime by {off:.1e}"
        )


if __name__ == "__main__":
    main()
