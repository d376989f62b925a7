"""A training run's folder: metrics as JSON lines and TensorBoard events, checkpoints never half written."""

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
from trainer.torch_file import read_torch_file

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.data.manifest import DataSet
    from trainer.data.split import Split

METRICS_NAME = "metrics.jsonl"
LAST_NAME = "last.pt"
BEST_NAME = "best.pt"
PACKAGES = (
    "rcm-daemon",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python-headless",
)


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
            file.write(
                json.dumps({"epoch": epoch, **{name: round(value, 6) for name, value in values.items()}})
                + "\n"
            )
        for name, value in values.items():
            self._events.add_scalar(name, value, epoch)
        self._events.flush()
        print(
            f"epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()),
            flush=True,
        )

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
    checkpoint: dict[str, Any] = read_torch_file(path, "a checkpoint")
    found = checkpoint.get("schema") if isinstance(checkpoint, dict) else None
    if found != schema:
        raise DataSetError(f"a checkpoint must be of kind {schema}, {path} is of kind {found or 'unknown'}")
    return checkpoint


def state_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over a state dict's names and values, whatever the file that held it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a training gives."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def this_command() -> str:
    """Give the command line that is running, without the path of the program."""
    return " ".join(["rcm-trainer", *sys.argv[1:]])


def provenance(data: DataSet, split: Split, seed: int) -> dict[str, Any]:
    """Gather what a checkpoint must say about its making; all plain types."""
    return {
        "data_digest": data.digest,
        "split_digest": split.digest,
        "phantom": data.is_phantom,
        "families": sorted({stack.family for stack in data.stacks}),
        "n_stacks": {part: len(split.stack_indices(data, part)) for part in split.patients},
        "seed": seed,
        "command": this_command(),
        "versions": versions(),
        "created": datetime.now(UTC).date().isoformat(),
    }


def refuse_second_run(out: Path, *, resume: bool) -> None:
    """Refuse to train into the folder of another training, whose snapshots it would overwrite.

    Raises
    ------
    DataSetError
        If the folder holds a checkpoint and the run does not resume it.
    """
    if not resume and (out / LAST_NAME).exists():
        raise DataSetError(
            f"a run's folder holds one training, {out} holds one: --resume goes on with it, another folder "
            "begins a new one"
        )


def refuse_other_recipe(
    last: dict[str, Any], recipe: dict[str, Any], about: dict[str, Any], out: Path
) -> None:
    """Refuse to resume a run with a recipe, data or split other than those it began with.

    Parameters
    ----------
    last
        The checkpoint to go on from.
    recipe, about
        The recipe and `provenance` asked for now.
    out
        The run's folder.

    Raises
    ------
    DataSetError
        Naming what differs.
    """
    keys = [key for key in about if key.endswith("_digest")]
    now = {**recipe, **{key: about[key] for key in keys}}
    then = {**last["recipe"], **{key: last["provenance"].get(key) for key in keys}}
    changed = [name for name, value in now.items() if name not in then or then[name] != value]
    if changed:
        raise DataSetError(
            f"a run resumes with the recipe and data it began with, {out} was begun with another "
            f"{', '.join(changed)}"
        )
