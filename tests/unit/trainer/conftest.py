from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tiny_set import write_tiny_set
from trainer_commands import CNN_OPTIONS, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """Make a folder with the set, a CNN, an RCN and both bundles, all made by the commands."""
    folder = tmp_path_factory.mktemp("work")
    data = write_tiny_set(folder / "data", 14)
    cnn, rcn = folder / "cnn", folder / "rcn"
    run(
        "cnn",
        "--data",
        data,
        "--out",
        cnn,
        *CNN_OPTIONS,
        "--epochs",
        "4",
        "--shares",
        "6,2,3",
        "--workers",
        "1",
    )
    run(
        "rcn", "--data", data, "--cnn", cnn, "--out", rcn, "--epochs", "12", "--copies", "1", "--workers", "1"
    )
    run("export", "--cnn", cnn, "--rcn", rcn, "--out", folder / "whole", "--name", "tiny")
    run("export", "--cnn", cnn, "--out", folder / "single", "--name", "tiny-single")
    return folder
