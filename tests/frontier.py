"""Accuracy against latency of CNNs of several widths and input sizes, all measured in one run.

    python -m tests.frontier RUN [RUN ...] --data DATA --split SPLIT [--full BUNDLE] --out DIR

Each RUN is the folder of one `rcm-trainer cnn`. Accuracy is that of its best snapshot, one slice at a time,
on stacks of a part of the split that trained and chose none of them (--part, --stacks). Each CNN is exported
as for a bundle (1000 x 1000, resizing included) and run by ONNX Runtime in turn with the others, 0.1 s after
the one before, on as many threads as a daemon would take. With --full the latency of that bundle's CNN is
what others are ratios of.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import FixedLocator, NullLocator

from rcm_daemon.bench.machine import describe_machine
from rcm_daemon.bundle.cnn import open_cnn, run_cnn
from rcm_daemon.bundle.execution import Execution
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.threads import settle_threads
from rcm_daemon.bundle.verify import VerifiedBundle, load_verified
from rcm_daemon.simulator import make_phantom
from trainer.bootstrap import patient_weights, resampled
from trainer.data.manifest import load_data_set
from trainer.data.prepared import prepare
from trainer.data.split import load_split
from trainer.onnx_graphs import cnn_graph
from trainer.progress import progress_bar
from trainer.train_cnn import load_cnn

if TYPE_CHECKING:
    from trainer.data.manifest import LabelledStack
    from trainer.data.prepared import PreparedSet
    from trainer.networks.inception import InceptionStrata

PAUSE_S = 0.1


@dataclass
class Point:
    """One network; `below_best`: how much less it labels right than the most accurate, on the same stacks."""

    name: str
    width: float
    size: int
    n_epochs: int
    validation_accuracy: float
    accuracy: float = 0.0
    accuracy_interval: list[float] = field(default_factory=list)
    below_best: float = 0.0
    below_best_interval: list[float] = field(default_factory=list)
    n_threads: int = 0
    p50_ms: float = 0.0
    share_of_full: float = 0.0


def point_of(run: Path, network: InceptionStrata, recipe: dict[str, Any]) -> tuple[Point, VerifiedBundle]:
    """Return a run's point as far as its folder tells, and the default bundle with its CNN in it."""
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    chosen = max(epoch["validation_accuracy"] for epoch in epochs)
    bundle = load_verified(default_bundle_path())
    cnn = cnn_graph(network, bundle.manifest.input.shape).SerializeToString()
    point = Point(run.name, recipe["width"], recipe["size"], len(epochs), chosen)
    return point, replace(bundle, files={**bundle.files, "cnn.onnx": cnn})


def right_of(network: InceptionStrata, prepared: PreparedSet, indices: list[int], title: str) -> np.ndarray:
    """Return [stacks] how many slices of each stack a CNN labels right."""
    starts, found = prepared.data.starts, []
    with progress_bar(title, len(indices), "stacks") as advance, torch.inference_mode():
        for index in indices:
            slices = np.array(prepared.slices[starts[index] : starts[index + 1]])
            labels = network(torch.from_numpy(slices).float()).argmax(1).numpy()
            found.append(int((labels == prepared.data.stacks[index].labels).sum()))
            advance(1, "")
    return np.array(found, float)


def judge(points: list[Point], right: list[np.ndarray], stacks: list[LabelledStack]) -> None:
    """Fill in accuracies and distances to the best, with 95 % intervals over patients."""
    n = np.array([stack.n_slices for stack in stacks], float)
    weights = patient_weights([stack.patient for stack in stacks])
    best = max(right, key=lambda own: own.sum())
    for point, own in zip(points, right, strict=True):
        point.accuracy = float(own.sum() / n.sum())
        point.accuracy_interval = resampled(_ratio, np.stack([own, n], axis=1), weights)
        point.below_best = float((best - own).sum() / n.sum())
        point.below_best_interval = resampled(_ratio, np.stack([best - own, n], axis=1), weights)


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def latencies_ms(bundles: dict[str, VerifiedBundle], rounds: int) -> dict[str, tuple[int, list[float]]]:
    """Run all CNNs in turn; returns threads and the duration of every run of each."""
    image = make_phantom(1).render(10)
    opened = {}
    for name, bundle in bundles.items():
        execution = settle_threads(bundle, "cpu", Execution())
        opened[name] = execution, open_cnn(bundle, "fp32", "cpu", execution)
    found: dict[str, tuple[int, list[float]]] = {
        name: (execution.threads, []) for name, (execution, _) in opened.items()
    }
    for number in range(-2, rounds):
        for name, (_, cnn) in opened.items():
            time.sleep(PAUSE_S)
            begun_s = time.perf_counter()
            run_cnn(cnn, image, bundles[name].manifest.embedding_size, "a slice")
            if number >= 0:
                found[name][1].append(1e3 * (time.perf_counter() - begun_s))
    return found


def draw(points: list[Point], path: Path) -> None:
    """Draw them all, those that no other beats on a line."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    best, frontier = 0.0, []
    for point in sorted(points, key=lambda p: p.p50_ms):
        if point.accuracy > best:
            best = point.accuracy
            frontier.append(point)
    axes.plot([p.p50_ms for p in frontier], [100 * p.accuracy for p in frontier], "-", color="0.7", zorder=0)
    middle_ms = np.sqrt(min(p.p50_ms for p in points) * max(p.p50_ms for p in points))
    for point in points:
        axes.plot(point.p50_ms, 100 * point.accuracy, "o")
        is_right = point.p50_ms > middle_ms
        axes.annotate(
            f"{point.name}: width {point.width:g}, {point.size} px",
            (point.p50_ms, 100 * point.accuracy),
            (-6 if is_right else 6, -10),
            textcoords="offset points",
            fontsize=8,
            ha="right" if is_right else "left",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([2, 3, 4, 5, 6, 8, 10, 15, 20, 30]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(
        xlabel=f"one run, median, ms (CPU, {PAUSE_S:g} s after the one before)",
        ylabel="slices of unseen stacks right, %",
        title="CNNs alone, trained on phantoms; research use only",
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--part", default="calibration")
    parser.add_argument("--stacks", type=int, default=500)
    parser.add_argument("--full", type=Path, help="Bundle of the full-width CNN.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = load_data_set(given.data)
    indices = load_split(given.split, data).stack_indices(data, given.part).tolist()[: given.stacks]
    stacks = [data.stacks[index] for index in indices]
    points, bundles, right = [], {}, []
    for run in given.runs:
        network, checkpoint = load_cnn(run)
        point, bundles[run.name] = point_of(run, network.eval(), checkpoint["recipe"])
        prepared = prepare(data, network.size, data.path.parent / "cache")
        right.append(right_of(network, prepared, indices, run.name))
        points.append(point)
    judge(points, right, stacks)
    if given.full is not None:
        bundles["full width"] = load_verified(given.full)
    found = latencies_ms(bundles, given.rounds)
    full_ms = float(np.median(found["full width"][1])) if given.full is not None else float("nan")
    for point in points:
        point.n_threads, runs_ms = found[point.name]
        point.p50_ms = float(np.median(runs_ms))
        point.share_of_full = point.p50_ms / full_ms
        print(
            f"{point.name:16} width {point.width:<6g} {point.size} px  {100 * point.accuracy:5.2f} %, "
            f"{100 * point.below_best:5.2f} below the best  {point.p50_ms:6.2f} ms on {point.n_threads}  "
            f"x{point.share_of_full:.3f}"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    fields = {
        "full_width_p50_ms": full_ms,
        "rounds": given.rounds,
        "part": given.part,
        "n_stacks": len(stacks),
        "n_patients": len({stack.patient for stack in stacks}),
        "n_slices": sum(stack.n_slices for stack in stacks),
        "data_digest": data.digest,
        "machine": describe_machine(),
        "points": [asdict(p) for p in points],
    }
    (given.out / "frontier.json").write_text(json.dumps(fields, indent=1) + "\n")
    draw(points, given.out / "frontier.png")


if __name__ == "__main__":
    main()
