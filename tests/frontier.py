"""Accuracy against latency of CNNs of several widths and input sizes, all timed in one run.

    python -m tests.frontier RUN [RUN ...] [--shape WIDTH SIZE METRICS] [--full BUNDLE] --out DIR

Each RUN is the folder of one `rcm-trainer cnn`, all on the same data and split; accuracy is that of its best
snapshot on the validation stacks, one slice at a time. Each CNN is exported as for a bundle (1000 x 1000,
resizing included) and run by ONNX Runtime in turn with the others, 0.1 s after the one before, on as many
threads as a daemon would take. With --full the latency of that bundle's CNN is what others are ratios of.
A CNN whose weights were not kept is given by --shape (repeatable): one of its width and input size is timed,
untrained, which takes as long, and its accuracy is read from the metrics its training left.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import FixedLocator, NullLocator

from rcm_daemon.bundle.cnn import open_cnn, run_cnn
from rcm_daemon.bundle.execution import Execution
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.threads import settle_threads
from rcm_daemon.bundle.verify import VerifiedBundle, load_verified
from rcm_daemon.simulator import make_phantom
from trainer.networks.inception import InceptionStrata
from trainer.onnx_graphs import cnn_graph
from trainer.train_cnn import load_cnn

PAUSE_S = 0.1


@dataclass
class Point:
    """One network."""

    name: str
    width: float
    size: int
    n_epochs: int
    accuracy: float
    n_threads: int = 0
    p50_ms: float = 0.0
    share_of_full: float = 0.0


def point_of(run: Path) -> tuple[Point, VerifiedBundle]:
    """Return a run's point without its latency, and the default bundle with its CNN in it."""
    network, checkpoint = load_cnn(run)
    recipe = checkpoint["recipe"]
    return _point(run.name, recipe["width"], recipe["size"], run / "metrics.jsonl", network)


def point_of_shape(width: float, size: int, metrics: Path) -> tuple[Point, VerifiedBundle]:
    """Return the same of a CNN of which only its metrics are left."""
    torch.manual_seed(0)
    network = InceptionStrata(width, size, with_distances=True).eval()
    return _point(metrics.stem.removesuffix("-metrics"), width, size, metrics, network)


def _point(
    name: str, width: float, size: int, metrics: Path, network: InceptionStrata
) -> tuple[Point, VerifiedBundle]:
    epochs = [json.loads(line) for line in metrics.read_text().splitlines()]
    accuracy = max(epoch["validation_accuracy"] for epoch in epochs)
    bundle = load_verified(default_bundle_path())
    cnn = cnn_graph(network, bundle.manifest.input.shape).SerializeToString()
    point = Point(name, width, size, len(epochs), accuracy)
    return point, replace(bundle, files={**bundle.files, "cnn.onnx": cnn})


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
        ylabel="validation slices right, %",
        title="CNNs alone, trained on phantoms; research use only",
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--shape", nargs=3, action="append", default=[], metavar=("WIDTH", "SIZE", "METRICS"))
    parser.add_argument("--full", type=Path, help="Bundle of the full-width CNN.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    points, bundles = [], {}
    for point, bundle in (
        *(point_of(run) for run in given.runs),
        *(point_of_shape(float(width), int(size), Path(path)) for width, size, path in given.shape),
    ):
        points.append(point)
        bundles[point.name] = bundle
    if given.full is not None:
        bundles["full width"] = load_verified(given.full)
    found = latencies_ms(bundles, given.rounds)
    full_ms = float(np.median(found["full width"][1])) if given.full is not None else float("nan")
    for point in points:
        point.n_threads, runs_ms = found[point.name]
        point.p50_ms = float(np.median(runs_ms))
        point.share_of_full = point.p50_ms / full_ms
        print(
            f"{point.name:16} width {point.width:<6g} {point.size} px  {point.n_epochs:3} epochs  "
            f"{100 * point.accuracy:5.1f} %  {point.p50_ms:6.2f} ms on {point.n_threads}  "
            f"x{point.share_of_full:.3f}"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    fields = {"full_width_p50_ms": full_ms, "rounds": given.rounds, "points": [asdict(p) for p in points]}
    (given.out / "frontier.json").write_text(json.dumps(fields, indent=1) + "\n")
    draw(points, given.out / "frontier.png")


if __name__ == "__main__":
    main()
