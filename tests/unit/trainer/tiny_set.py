"""A labelled data set small enough to train on in seconds: grain that coarsens from stratum to stratum."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import cv2
import numpy as np
import tifffile

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("epidermis", "dej", "dermis")
GRAIN_PX = (1.0, 2.5, 6.0)
SIDE = 100
PIXEL_SIZE_UM = 5.0
COLUMNS = [
    *("stack", "patient", "site", "family", "file", "slice", "z_um", "pixel_size_um"),
    *("label", "reader_1", "reader_2", "true_label"),
]


def write_tiny_set(folder: Path, n_stacks: int = 12, seed: int = 0) -> Path:
    """Write `n_stacks` stacks of two per patient and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n_stacks):
        n_slices = int(rng.integers(9, 14))
        first, second = int(rng.integers(3, 5)), int(rng.integers(6, 8))
        slices = []
        for index in range(n_slices):
            label = int(index >= first) + int(index >= second)
            white = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
            grain = cv2.GaussianBlur(white, (0, 0), GRAIN_PX[label])
            slices.append(np.clip(100 + 40 * grain / grain.std(), 0, 255).astype(np.uint8))
            other = min(2, label + int(rng.random() < 0.1))
            words = [WORDS[label], WORDS[label], WORDS[other], WORDS[label]]
            name = f"stack-{number}"
            place = [name, f"patient-{number // 2}", f"site-{number}", "plain", f"{name}.tif", index]
            rows.append([*place, f"{-20 + 3.0 * index:.3f}", PIXEL_SIZE_UM, *words])
        tifffile.imwrite(
            folder / f"stack-{number}.tif",
            np.stack(slices),
            imagej=True,
            resolution=(1 / PIXEL_SIZE_UM, 1 / PIXEL_SIZE_UM),
            metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um"},
        )
    write_rows(folder / "manifest.csv", rows)
    return folder


def write_rows(path: Path, rows: list[list[object]], columns: list[str] | None = None) -> None:
    """Write a manifest from rows."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns or COLUMNS)
        writer.writerows(rows)
