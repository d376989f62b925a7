"""docs/walk-through.md, command by command, on a small export laid out as VivaScope writes it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from stack_files import write_vivastack

from rcm_daemon.bundle.manifest import Manifest
from trainer.data.manifest import load_data_set

DOCUMENT = Path(__file__).parents[2] / "docs" / "walk-through.md"
WORDS = ("stratum corneum", "viable epidermis", "viable epidermis", "DEJ", "DEJ", "papillary dermis")
GRAIN_PX = (2, 3, 4, 12, 14, 30)


def write_export(root: Path) -> None:
    """Six patients with a stack each, every second one with captions; grain coarsens with depth."""
    rng = np.random.default_rng(0)
    rows = [["stack", "patient", "site", "slice", "label"]]
    for number in range(1, 7):
        patient = f"p{number:02d}"
        name = f"{patient}/arm/VivaStack #1"
        frames = []
        for index, (word, grain_px) in enumerate(zip(WORDS, GRAIN_PX, strict=True)):
            small = rng.normal(size=(1000 // grain_px + 1, 1000 // grain_px + 1)).astype(np.float32)
            grain = cv2.resize(small, (1000, 1000), interpolation=cv2.INTER_CUBIC)
            frames.append(np.clip(100 + 40 * grain, 0, 255).astype(np.uint8))
            rows.append([name, patient, "arm", str(index), word])
        (root / "export" / name).mkdir(parents=True)
        write_vivastack(root / "export" / name, np.stack(frames), caption=number % 2 == 0)
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.timeout(600)
def test_the_walk_through_runs_as_it_is_written(tmp_path: Path) -> None:
    write_export(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) == 3
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = load_data_set(tmp_path / "data")
    assert (len(data.stacks), len(data.patients), data.n_slices) == (6, 6, 36)
    assert data.stacks[0].labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert np.diff(data.stacks[1].z_um).tolist() == [4.5] * 5
    with (tmp_path / "labels-p01.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(6))
    assert {row["label"] for row in rows} <= {"epidermis", "dej", "dermis"}
    for name in ("mine", "tuned"):
        manifest = Manifest.load(tmp_path / "runs" / {"mine": "bundle"}.get(name, name))
        assert (manifest.name, manifest.kind, manifest.z_step_um) == (name, "whole", (4.5, 4.5))
        assert "phantoms" not in manifest.notice
    card = (tmp_path / "runs" / "tuned" / "MODEL_CARD.md").read_text()
    assert card.count("was fine-tuned: it started from phantom-compact") == 2
    assert "Evaluation of mine" in (tmp_path / "runs" / "evaluation" / "evaluation.md").read_text()
