"""A texton method as one thing: learn it, ask it, store it.

`fit` does everything at once. Where encoding is to be spread over processes or kept between runs, its three
steps stand alone: `learn_textons`, then `encode` of what it gives for every image, then `fit_classifier`.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from rcm_daemon.errors import DataSetError
from trainer.textons.classifiers import (
    Logistic,
    Neighbours,
    Network,
    fit_logistic,
    fit_neighbours,
    fit_network,
)
from trainer.textons.hames import HamesTextons, learn_hames
from trainer.textons.kaur import KaurTextons, learn_kaur
from trainer.textons.somoza import SomozaTextons, learn_somoza

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Method = Literal["hames", "kaur", "somoza"]
METHODS: tuple[Method, ...] = get_args(Method)
Textons = HamesTextons | KaurTextons | SomozaTextons
Classifier = Logistic | Network | Neighbours
SCHEMA = "rcm-textons-1"

TEXTONS: dict[Method, type[Textons]] = {"hames": HamesTextons, "kaur": KaurTextons, "somoza": SomozaTextons}
CLASSIFIERS: dict[Method, type[Classifier]] = {"hames": Logistic, "kaur": Network, "somoza": Neighbours}


@dataclass(frozen=True)
class TextonModel:
    """A fitted texton method.

    Attributes
    ----------
    method
        Which one.
    textons
        Its dictionary; `textons.encode(image)` is the image's histogram.
    classifier
        What tells strata by histograms.
    """

    method: Method
    textons: Textons
    classifier: Classifier

    def predict_proba(self, image: np.ndarray) -> np.ndarray:
        """Probabilities of epidermis, dej and dermis, float64 [3], of a uint8 image at 0.5 um a pixel.

        Raises
        ------
        DataSetError
            If the image is of another kind, or smaller than the method's filters.
        """
        return np.asarray(self.classifier.predict_proba(self.textons.encode(image)[None])[0])

    def save(self, path: Path) -> None:
        """Write the model as one .npz of plain arrays, whole or not at all."""
        arrays = {
            f"{part}.{field.name}": getattr(getattr(self, part), field.name)
            for part in ("textons", "classifier")
            for field in fields(getattr(self, part))
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        with unfinished.open("wb") as file:
            np.savez(file, schema=np.array(SCHEMA), method=np.array(self.method), **arrays)
        os.replace(unfinished, path)


def learn_textons(method: Method, images: Iterable[np.ndarray], n_images: int, seed: int) -> Textons:
    """Learn a method's dictionary.

    Parameters
    ----------
    method
        `hames`, `kaur` or `somoza`.
    images
        uint8 [rows, columns] at 0.5 um, gone through once; a couple of thousand are enough, from training
        patients only.
    n_images
        How many there are.
    seed
        Seed of everything random.
    """
    if method == "hames":
        return learn_hames(images, n_images, seed)
    return learn_kaur(images, n_images, seed) if method == "kaur" else learn_somoza(images, n_images, seed)


def fit_classifier(method: Method, histograms: np.ndarray, labels: np.ndarray, seed: int) -> Classifier:
    """Fit a method's classifier.

    Parameters
    ----------
    method
        `hames`, `kaur` or `somoza`.
    histograms
        float32 [n, n_textons], `encode` of every training image.
    labels
        int [n], indices into STRATA.
    seed
        Seed of everything random.

    Raises
    ------
    DataSetError
        If a stratum has no image.
    """
    if method == "hames":
        return fit_logistic(histograms, labels)
    return fit_network(histograms, labels, seed) if method == "kaur" else fit_neighbours(histograms, labels)


def fit(method: Method, images: Iterable[np.ndarray], labels: np.ndarray, seed: int) -> TextonModel:
    """Learn textons and classifier from the same images.

    Parameters
    ----------
    method
        `hames`, `kaur` or `somoza`.
    images
        uint8 [rows, columns] at 0.5 um; gone through twice, so it must be able to begin anew (a list, an
        array, an object with `__iter__`, not a generator).
    labels
        int [n], the images' strata.
    seed
        Seed of everything random.

    Raises
    ------
    DataSetError
        If `images` can be gone through once only or are not as many as the labels, or a stratum has none.
    """
    if iter(images) is images:
        raise DataSetError("textons are learnt in two passes over the images, got an iterator for one pass")
    textons = learn_textons(method, images, len(labels), seed)
    histograms = np.stack([textons.encode(image) for image in images])
    if len(histograms) != len(labels):
        raise DataSetError(f"every image needs one label, got {len(histograms)} images, {len(labels)} labels")
    return TextonModel(method, textons, fit_classifier(method, histograms, labels, seed))


def load_texton_model(path: Path) -> TextonModel:
    """Read what `TextonModel.save` wrote.

    Raises
    ------
    DataSetError
        If it is no such file.
    """
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            arrays = {name: stored[name] for name in getattr(stored, "files", ())}
        if str(arrays.get("schema")) != SCHEMA:
            raise ValueError(f"its schema is {arrays.get('schema')}")
        method: Method = str(arrays["method"])  # type: ignore[assignment]
        textons = {field.name: arrays[f"textons.{field.name}"] for field in fields(TEXTONS[method])}
        classifier = {field.name: arrays[f"classifier.{field.name}"] for field in fields(CLASSIFIERS[method])}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataSetError(
            f"a texton model must be an .npz of schema {SCHEMA}, {path} is not: {error!r}"
        ) from error
    return TextonModel(method, TEXTONS[method](**textons), CLASSIFIERS[method](**classifier))
