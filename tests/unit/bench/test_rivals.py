"""What the bench sets beside the daemon's CNN: run where it can be, one sentence where not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
from seeded_bundles import write_seeded_bundle

from rcm_daemon.bench.rivals import rivals_of
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

IMAGE = np.random.default_rng(0).integers(0, 256, (1000, 1000), dtype=np.uint8)


def test_openvino_and_torch_are_timed_where_they_are_installed(tmp_path: Path) -> None:
    bundle = load_verified(write_seeded_bundle(tmp_path, "toeplitz-1"))
    networks = Networks.open(bundle, "cpu", 1)
    rivals, notes = rivals_of(bundle, networks, tmp_path / "cnn.pt")
    try:
        compiles = shutil.which("g++") is not None
        assert [rival.name for rival in rivals] == ["openvino", "torch eager", "torch compile"][
            : 2 + compiles
        ]
        assert len(notes) == 1 - compiles
        assert all(rival.run(IMAGE) > 0 for rival in rivals)
    finally:
        for rival in rivals:
            rival.close()


def test_what_cannot_be_timed_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = load_verified(write_seeded_bundle(tmp_path, "toeplitz-1"))
    networks = Networks.open(bundle, "cpu", 1)
    rivals, notes = rivals_of(bundle, networks, tmp_path / "none.pt")
    assert [rival.name for rival in rivals] == ["openvino"]
    assert [note.partition(" was not measured")[0] for note in notes] == ["torch eager", "torch compile"]
    assert "none.pt" in capfd.readouterr().err
