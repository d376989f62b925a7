"""The three texton methods whole: they learn, they are stored, they refuse what they cannot use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from rcm_daemon.errors import DataSetError
from trainer.textons import classifiers, hames, kaur, somoza
from trainer.textons.classifiers import Neighbours, fit_logistic, fit_neighbours, fit_network
from trainer.textons.model import METHODS, TextonModel, fit, load_texton_model

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.textons.model import Method

SIDE = 240


def texture(stratum: int, seed: int) -> np.ndarray:
    """Fine grain, coarse grain or stripes, of varying brightness and contrast."""
    rng = np.random.default_rng([stratum, seed])
    white = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
    sigma_px = ((4.0, 4.0), (12.0, 12.0), (4.0, 20.0))[stratum]
    grain = cv2.GaussianBlur(white, (0, 0), sigmaX=sigma_px[0], sigmaY=sigma_px[1])
    level, contrast = rng.uniform(80, 140), rng.uniform(20, 40)
    return np.clip(level + contrast * grain / grain.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def models() -> dict[Method, TextonModel]:
    images = [texture(number % 3, number) for number in range(24)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hames, "N_TEXTONS", 16)
        for module in (hames, kaur, somoza):
            patch.setattr(module, "N_SAMPLES", 5000)
        patch.setattr(classifiers, "N_NEIGHBOURS", 3)
        return {method: fit(method, images, np.arange(24) % 3, 0) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_tells_textures_apart(models: dict[Method, TextonModel], method: Method) -> None:
    for number in range(100, 115):
        probabilities = models[method].predict_proba(texture(number % 3, number))
        assert probabilities.shape == (3,)
        assert probabilities.sum() == pytest.approx(1)
        assert probabilities.argmax() == number % 3


@pytest.mark.parametrize("method", METHODS)
def test_stored_and_read_again(models: dict[Method, TextonModel], method: Method, tmp_path: Path) -> None:
    path = tmp_path / "run" / "model.npz"
    models[method].save(path)
    again = load_texton_model(path)
    assert again.method == method
    for number in range(3):
        image = texture(number, 50)
        assert np.array_equal(again.predict_proba(image), models[method].predict_proba(image))
    assert [entry.name for entry in path.parent.iterdir()] == ["model.npz"]


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_everything(
    models: dict[Method, TextonModel], method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hames, "N_TEXTONS", 16)
    for module in (hames, kaur, somoza):
        monkeypatch.setattr(module, "N_SAMPLES", 5000)
    images = [texture(number % 3, number) for number in range(24)]
    image = texture(1, 60)
    histograms = [fit(method, images, np.arange(24) % 3, seed).textons.encode(image) for seed in (0, 1)]
    assert histograms[0] == pytest.approx(models[method].textons.encode(image), abs=1e-3)
    assert np.abs(histograms[0] - histograms[1]).max() > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_blank_images_have_a_histogram_too(models: dict[Method, TextonModel], method: Method) -> None:
    for level in (0, 255):
        histogram = models[method].textons.encode(np.full((SIDE, SIDE), level, np.uint8))
        assert histogram.sum() == pytest.approx(1, abs=1e-5)
        assert histogram.min() >= 0


@pytest.mark.parametrize("method", METHODS)
def test_too_small_an_image_is_refused(models: dict[Method, TextonModel], method: Method) -> None:
    least, pitch = {"hames": (7, 2), "kaur": (5, 2), "somoza": (49, 1)}[method]
    side = least * 2 * pitch  # in the field, at 0.5 um
    models[method].predict_proba(texture(0, 0)[:side, :side])
    with pytest.raises(
        DataSetError, match=rf"{least} rows and columns .* at {pitch} um, got {least} x {least - 1}"
    ):
        models[method].predict_proba(texture(0, 0)[:side, : side - 2 * pitch])


def test_training_sets_that_cannot_be_used() -> None:
    images = [texture(number, 0) for number in range(3)]
    with pytest.raises(DataSetError, match="two passes"):
        fit("kaur", iter(images), np.arange(3), 0)
    with pytest.raises(DataSetError, match="there is none of dermis"):
        fit("kaur", images, np.array([0, 0, 1]), 0)
    with pytest.raises(DataSetError, match="got 3 images, 2 labels"):
        fit("kaur", images, np.arange(2), 0)


def test_files_that_are_no_model(models: dict[Method, TextonModel], tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    models["kaur"].save(path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"no model", b""):
        path.write_bytes(data)
        with pytest.raises(DataSetError, match="schema rcm-textons-1"):
            load_texton_model(path)
    with pytest.raises(DataSetError, match="No such file"):
        load_texton_model(tmp_path / "none.npz")
    np.savez(path, schema=np.array("rcm-textons-0"))
    with pytest.raises(DataSetError, match="rcm-textons-0"):
        load_texton_model(path)
    np.savez(path, schema=np.array("rcm-textons-1"), method=np.array("hames"))
    with pytest.raises(DataSetError, match=r"textons\.filters"):
        load_texton_model(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataSetError, match="schema rcm-textons-1"):
        load_texton_model(tmp_path / "array.npy")


@pytest.fixture
def histograms() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    counts = rng.gamma(1.0 + 2 * np.eye(10)[labels] + np.eye(10)[labels + 4], 1.0)
    counts[:, 9] = 0  # a texton that no training image has
    return (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32), labels


def standardised(shares: np.ndarray) -> np.ndarray:
    spread = shares.std(axis=0, dtype=np.float64)
    return (shares - shares.mean(axis=0, dtype=np.float64)) / np.where(spread > 0, spread, 1)


def test_logistic_regression_is_scikit_learns(histograms: tuple[np.ndarray, np.ndarray]) -> None:
    shares, labels = histograms
    model = LogisticRegression(C=classifiers.LOGISTIC_STRENGTH, max_iter=1000).fit(
        standardised(shares), labels
    )
    ours = fit_logistic(shares, labels).predict_proba(shares)
    assert ours == pytest.approx(model.predict_proba(standardised(shares)), abs=1e-9)
    assert np.mean(ours.argmax(axis=1) == labels) > 0.6


def test_the_network_is_scikit_learns(histograms: tuple[np.ndarray, np.ndarray]) -> None:
    shares, labels = histograms
    model = MLPClassifier(
        classifiers.HIDDEN_UNITS, alpha=classifiers.NETWORK_DECAY, max_iter=2000, random_state=4
    ).fit(standardised(shares), labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "N_EPOCHS", 2000)
        ours = fit_network(shares, labels, 4).predict_proba(shares)
    assert ours == pytest.approx(model.predict_proba(standardised(shares)), abs=1e-9)


def test_the_vote_of_neighbours_worked_by_hand() -> None:
    known = np.array([[1.0, 0.0], [0.8, 0.2], [0.5, 0.5], [0.0, 1.0]], np.float32)
    model = Neighbours(known, np.array([0, 0, 1, 2]), np.array(3))
    # Chi-squared distances of (0.7, 0.3): 0.353, 0.027, 0.083, 1.077.
    assert model.predict_proba(np.array([[0.7, 0.3]]))[0] == pytest.approx([2 / 3, 1 / 3, 0])
    assert model.predict_proba(np.array([[0.0, 1.0]]))[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_fewer_images_than_neighbours() -> None:
    model = fit_neighbours(np.eye(3, dtype=np.float32), np.arange(3))
    assert model.predict_proba(np.eye(3)) == pytest.approx(np.full((3, 3), 1 / 3))
