"""Slices brought once to the network's input size and kept as one uint8 array on disk.

Every slice goes through the bundle's own way in (`to_field`, then the network's antialiased `resize`), so a
network trained on the prepared array sees what the daemon's graph will see, but for rounding to whole grey
levels (at most half a level; the array is four times smaller for it). Preparing runs in worker processes and
resumes where it stopped; what is done is marked a stack at a time.
"""

from __future__ import annotations

import json
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.bundle.field import to_field
from rcm_daemon.errors import DataSetError
from rcm_daemon.readers.opening import open_stack
from trainer.progress import progress_bar
from trainer.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trainer.data.manifest import DataSet, LabelledStack

FIELD_SHAPE = (1000, 1000)
FIELD_PIXEL_SIZE_UM = 0.5

_Job = tuple["LabelledStack", int, "Path", int]


@dataclass(frozen=True)
class PreparedSet:
    """All slices of a data set at the network's size, laid end to end in the order of `DataSet.stacks`.

    Attributes
    ----------
    data
        The data set.
    slices
        uint8 [n_slices, S, S], a read-only memory map.
    """

    data: DataSet
    slices: np.ndarray

    def slice_indices(self, stack_indices: np.ndarray) -> np.ndarray:
        """Rows of `slices` that belong to the given stacks, in order, int64."""
        starts = self.data.starts
        runs = [np.arange(starts[i], starts[i + 1]) for i in stack_indices]
        return np.concatenate(runs) if runs else np.zeros(0, np.int64)

    def with_neighbours(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n, 3] of the slice above, the slice and the one below; at a stack's end the slice itself."""
        starts = self.data.starts
        stacks = np.searchsorted(starts, rows, side="right") - 1
        above = np.maximum(rows - 1, starts[stacks])
        below = np.minimum(rows + 1, starts[stacks + 1] - 1)
        return np.stack([above, rows, below], axis=1)

    @property
    def labels(self) -> np.ndarray:
        """Consensus label of every row of `slices`, int64."""
        return np.concatenate([stack.labels for stack in self.data.stacks])


def prepare(data: DataSet, size: int, cache: Path, n_workers: int = 2) -> PreparedSet:
    """Prepare a data set, or open what was prepared before.

    Parameters
    ----------
    data
        The data set.
    size
        Side S of the network's input in pixels.
    cache
        Folder for prepared arrays; one sub-folder for each data set and size.
    n_workers
        Worker processes; 1 works in this one.

    Raises
    ------
    RcmError
        If a stack's file cannot be read as its manifest says.
    """
    folder = cache / f"{data.digest[:16]}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    array_path, done_path = folder / "slices.npy", folder / "done.npy"
    if not (array_path.is_file() and done_path.is_file()):
        np.lib.format.open_memmap(array_path, "w+", np.uint8, (data.n_slices, size, size)).flush()
        np.save(done_path, np.zeros(len(data.stacks), bool))
        (folder / "about.json").write_text(
            json.dumps({"manifest": str(data.path), "digest": data.digest, "size": size})
        )
    done = np.load(done_path)
    if len(done) != len(data.stacks):
        raise DataSetError(f"a prepared set must fit its manifest, {folder} does not: remove that folder")
    todo = np.flatnonzero(~done).tolist()
    starts = data.starts
    if todo:
        with progress_bar("preparing slices", len(todo), "stacks") as advance:
            jobs = [(data.stacks[i], size, array_path, int(starts[i])) for i in todo]
            for number in _in_any_order(jobs, n_workers):
                done[todo[number]] = True
                np.save(done_path, done)
                advance(1, "")
    return PreparedSet(data, np.load(array_path, mmap_mode="r"))


def _in_any_order(jobs: list[_Job], n_workers: int) -> Iterator[int]:
    """Do all jobs and give the number of each when it is done."""
    if n_workers <= 1:
        for number, job in enumerate(jobs):
            _prepare_stack(*job)
            yield number
        return
    with worker_pool(n_workers, _single_thread) as pool:
        pending = {pool.submit(_prepare_stack, *job): number for number, job in enumerate(jobs)}
        try:
            for finished in as_completed(pending):
                finished.result()
                yield pending[finished]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _single_thread() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def fields_of_stack(stack: LabelledStack) -> Iterator[np.ndarray]:
    """Slices of a stack from shallow to deep at the bundle's field, each uint8 [1000, 1000].

    Raises
    ------
    RcmError
        If a file cannot be read, or has no such page.
    """
    for path, run in groupby(range(stack.n_slices), key=lambda index: stack.files[index]):
        # The manifest's depths and pitch count; a step is named only so that files that state none open.
        with open_stack(
            path, z_step_um=1.0, pixel_size_um=stack.pixel_size_um, max_value=stack.max_value or None
        ) as recorded:
            for index in run:
                image = recorded.read(stack.pages[index])
                yield to_field(
                    image, stack.pixel_size_um, recorded.max_value, FIELD_SHAPE, FIELD_PIXEL_SIZE_UM
                )[0]


def _prepare_stack(stack: LabelledStack, size: int, array_path: Path, start: int) -> None:
    import torch

    from trainer.networks.preprocess import resize

    slices = np.load(array_path, mmap_mode="r+")
    for row, field in enumerate(fields_of_stack(stack), start=start):
        field_1RC = torch.from_numpy(np.ascontiguousarray(field)).unsqueeze(0)
        slices[row] = resize(field_1RC, size)[0].round().clamp(0, 255).to(torch.uint8).numpy()
    slices.flush()
