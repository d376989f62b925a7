"""A texton method of the comparison: textons, then every slice's histogram, then the classifier.

Histograms are encoded in worker processes and kept a stack at a time, so that a killed run loses one stack.
"""

from __future__ import annotations

import os
from concurrent.futures import as_completed
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.prepared import fields_of_stack
from trainer.progress import progress_bar
from trainer.textons.model import TEXTONS, TextonModel, fit_classifier, learn_textons
from trainer.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trainer.data.manifest import DataSet, LabelledStack
    from trainer.data.split import Split
    from trainer.reproduce_presets import TextonRecipe
    from trainer.textons.model import Method, Textons

_Job = tuple["LabelledStack", "Textons", np.ndarray, "Path"]


def train_textons(
    method: Method, data: DataSet, split: Split, recipe: TextonRecipe, out: Path, n_workers: int
) -> np.ndarray:
    """Learn a texton method and ask it about the test stacks.

    Parameters
    ----------
    method
        `hames`, `kaur` or `somoza`.
    data, split
        Training stacks teach it, test stacks are labelled.
    recipe
        How many slices to take.
    out
        The method's folder: textons.npz, histograms/, model.npz.
    n_workers
        Processes that encode; 1 works in this one.

    Returns
    -------
    np.ndarray
        Probabilities of the test stacks' slices laid end to end, float64 [n, 3].

    Raises
    ------
    DataSetError
        If the training slices taken lack a stratum.
    """
    train, test = (split.stack_indices(data, part).tolist() for part in ("train", "test"))
    textons = _textons(method, data, train, recipe, out)
    wanted = _spread(data, train, recipe.n_fitted)
    wanted.update({index: np.arange(data.stacks[index].n_slices) for index in test})
    folder = out / "histograms"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (data.stacks[index], textons, pages, path)
        for index, pages in wanted.items()
        if not (path := folder / f"{index}.npy").is_file()
    ]
    with progress_bar(f"encoding slices ({method})", len(jobs), "stacks") as advance:
        for _ in _in_any_order(jobs, n_workers):
            advance(1, "")
    histograms = {index: np.load(folder / f"{index}.npy") for index in wanted}
    taken = [index for index in wanted if index not in set(test)]
    labels = np.concatenate([data.stacks[index].labels[wanted[index]] for index in taken])
    seen = np.concatenate([histograms[index] for index in taken])
    model = TextonModel(method, textons, fit_classifier(method, seen, labels, recipe.seed))
    model.save(out / "model.npz")
    asked = np.concatenate([histograms[index] for index in test])
    return np.asarray(model.classifier.predict_proba(asked), np.float64)


def _spread(data: DataSet, stacks: list[int], n_slices: int) -> dict[int, np.ndarray]:
    """Pick about `n_slices` (0 for all), evenly over the stacks' slices laid end to end, by stack."""
    ends = np.concatenate([[0], np.cumsum([data.stacks[index].n_slices for index in stacks])])
    n_taken = min(n_slices or int(ends[-1]), int(ends[-1]))
    rows = np.unique(np.linspace(0, ends[-1] - 1, n_taken).round().astype(np.int64))
    taken = {
        index: rows[(rows >= ends[number]) & (rows < ends[number + 1])] - ends[number]
        for number, index in enumerate(stacks)
    }
    return {index: pages for index, pages in taken.items() if len(pages)}


def _images(stack: LabelledStack, pages: np.ndarray) -> Iterator[np.ndarray]:
    wanted = set(pages.tolist())
    return (image for number, image in enumerate(fields_of_stack(stack)) if number in wanted)


def _textons(method: Method, data: DataSet, train: list[int], recipe: TextonRecipe, out: Path) -> Textons:
    path = out / "textons.npz"
    if path.is_file():
        with np.load(path) as stored:
            return TEXTONS[method](**{field.name: stored[field.name] for field in fields(TEXTONS[method])})
    taken = _spread(data, train, recipe.n_learnt)
    n_images = sum(len(pages) for pages in taken.values())
    with progress_bar(f"learning textons ({method})", n_images, "slices") as advance:

        def images() -> Iterable[np.ndarray]:
            for index, pages in taken.items():
                for image in _images(data.stacks[index], pages):
                    yield image
                    advance(1, "")

        textons = learn_textons(method, images(), n_images, recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **{field.name: getattr(textons, field.name) for field in fields(textons)})
    part.replace(path)
    return textons


def _in_any_order(jobs: list[_Job], n_workers: int) -> Iterator[None]:
    if n_workers <= 1:
        for job in jobs:
            _encode(*job)
            yield
        return
    with worker_pool(n_workers, _single_thread) as pool:
        pending = [pool.submit(_encode, *job) for job in jobs]
        try:
            for finished in as_completed(pending):
                finished.result()
                yield
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _single_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _encode(stack: LabelledStack, textons: Textons, pages: np.ndarray, path: Path) -> None:
    histograms = np.stack([textons.encode(image) for image in _images(stack, pages)])
    part = path.with_suffix(".part.npy")
    np.save(part, histograms)
    os.replace(part, path)
