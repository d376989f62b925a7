"""A training run's folder: metrics as JSON lines and TensorBoard events, checkpoints that are never half written."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from pathlib import Path

METRICS_NAME = "metrics.jsonl"
LAST_NAME = "last.pt"
BEST_NAME = "best.pt"
PACKAGES = ("rcm-daemon", "torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless")


class RunFolder:
    """Where one training writes; opened anew or, on resume, cut back to the epoch it goes on from.

    Parameters
    ----------
    folder
        Created if it does not exist.
    n_epochs_done
        Epochs to keep in the log; 0 starts it anew.
    """

    def __init__(self, folder: Path, n_epochs_done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / METRICS_NAME
        lines = self._metrics.read_text().splitlines() if self._metrics.is_file() else []
        kept = [line for line in lines if json.loads(line)["epoch"] <= n_epochs_done]
        self._metrics.write_text("".join(line + "\n" for line in kept))
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=n_epochs_done + 1)

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """Append one epoch's numbers (epochs count from 1) and say them on stdout."""
        with self._metrics.open("a") as file:
            file.write(json.dumps({"epoch": epoch, **{name: round(value, 6) for name, value in values.items()}}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, epoch)
        self._events.flush()
        print(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()), flush=True)

    def save(self, name: str, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint whole or not at all."""
        save_checkpoint(self.folder / name, checkpoint)

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._events.close()


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write `checkpoint` to a file beside `path`, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: Path, schema: str) -> dict[str, Any]:
    """Read a checkpoint made by this program.

    Parameters
    ----------
    path
        The file, or a run's folder, whose best snapshot is meant then.
    schema
        The checkpoint's kind, such as `rcm-cnn-1`.

    Raises
    ------
    DataSetError
        If it is not a checkpoint of that kind.
    """
    path = path / BEST_NAME if path.is_dir() else path
    try:
        # weights_only: a checkpoint is data and must not be able to run code.
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["schema"]
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, IndexError) as error:
        raise DataSetError(f"a checkpoint must be a {schema} file, {path} is not: {error!r}") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise DataSetError(f"a checkpoint must be a {schema} file, {path} is not one torch can read") from error
    if found != schema:
        raise DataSetError(f"a checkpoint must be of kind {schema}, {path} is of kind {found}")
    return checkpoint


def state_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over a state dict's names and values, whatever the file that held it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def provenance(data_digest: str, split_digest: str, seed: int) -> dict[str, Any]:
    """What a checkpoint must say about its making; all plain types."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "data_digest": data_digest,
        "split_digest": split_digest,
        "seed": seed,
        "command": " ".join(["rcm-trainer", *sys.argv[1:]]),
        "versions": versions,
        "created": datetime.now(UTC).date().isoformat(),
    }
