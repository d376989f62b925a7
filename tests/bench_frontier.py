"""How right and how fast CNNs of several widths and input sizes are: one run, all of them in turn.

    python -m tests.bench_frontier RUN [RUN ...] --out FOLDER [--rounds 30]

Each RUN is the folder of one `rcm-trainer cnn --slices-per-epoch N`. Its accuracy is that of its best
snapshot on its validation stacks; its time is that of `session.run` on one slice on one thread: the quickest
of three in a row, and one after a pause of 0.1 s, medians of all rounds. Writes frontier.json and
frontier.png.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from trainer.export import export_bundle
from trainer.run_folder import METRICS_NAME
from trainer.train_cnn import load_cnn

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAUSE_S = 0.1


def trained(folder: Path) -> dict[str, Any]:
    """Return what a run trained, and how right its best snapshot is."""
    recipe = load_cnn(folder)[1]["recipe"]
    epochs = [json.loads(line) for line in (folder / METRICS_NAME).read_text().splitlines()]
    best = max(epochs, key=lambda epoch: epoch["validation_accuracy"])
    return {
        "run": folder.name,
        "width": recipe["width"],
        "size": recipe["size"],
        "n_slices_seen": recipe["slices_per_epoch"] * len(epochs),
        "validation_accuracy": best["validation_accuracy"],
        "validation_loss": best["validation_loss"],
    }


def run_ms(networks: Networks, image: NDArray[np.uint8]) -> float:
    begun_s = time.perf_counter()
    networks.embed(image)
    return 1e3 * (time.perf_counter() - begun_s)


def measure(opened: list[Networks], n_rounds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return milliseconds [round, network], of the quickest of three runs in a row, and after a pause."""
    images = [
        np.random.default_rng(0).integers(0, 256, networks.manifest.cnn_shape).astype(np.uint8)
        for networks in opened
    ]
    hot, paused = np.empty((n_rounds, len(opened))), np.empty((n_rounds, len(opened)))
    for number in range(n_rounds):
        for k, (networks, image) in enumerate(zip(opened, images, strict=True)):
            threading.Event().wait(PAUSE_S)
            paused[number, k] = run_ms(networks, image)
            hot[number, k] = min(run_ms(networks, image) for _ in range(3))
    return hot, paused


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for width in sorted({row["width"] for row in rows}):
        own = sorted((row for row in rows if row["width"] == width), key=lambda row: row["size"])
        ms, accuracy = zip(*((row["hot_ms"], 100 * row["validation_accuracy"]) for row in own), strict=True)
        axes.plot(ms, accuracy, marker="o", label=f"width {width:g}")
        for row in own:
            axes.annotate(
                f"{row['size']}",
                (row["hot_ms"], 100 * row["validation_accuracy"]),
                textcoords="offset points",
                xytext=(6, -11),
                fontsize=9,
            )
    axes.set_xscale("log")
    axes.set_xlabel("one slice through the CNN, hot, ms (median)")
    axes.set_ylabel("validation slices labelled right, %")
    axes.set_title(f"Numbers are input sizes; {rows[0]['n_slices_seen']} slices seen by each", fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    rows = [trained(folder) for folder in given.runs]
    with tempfile.TemporaryDirectory() as scratch:
        opened = []
        for number, folder in enumerate(given.runs):
            bundle = Path(scratch) / str(number)
            export_bundle(folder, None, bundle, name=folder.name, version="0")
            opened.append(Networks.open(load_verified(bundle), "cpu", 1))
    for networks in opened:
        networks.warm_up()
    load = os.getloadavg()[0]
    hot, paused = measure(opened, given.rounds)
    for k, row in enumerate(rows):
        row |= {"hot_ms": float(np.median(hot[:, k])), "paused_ms": float(np.median(paused[:, k]))}
        print(
            f"width {row['width']:<6g} size {row['size']}  {100 * row['validation_accuracy']:.2f} %  "
            f"{row['hot_ms']:6.2f} ms hot  {row['paused_ms']:6.2f} ms after a pause"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    about = {"rounds": given.rounds, "load_average": load, "networks": rows}
    (given.out / "frontier.json").write_text(json.dumps(about, indent=1) + "\n")
    draw(rows, given.out / "frontier.png")


if __name__ == "__main__":
    main()
