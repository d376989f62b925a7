"""The three small classifiers on top of texton histograms, trained by scikit-learn, kept as plain arrays.

A fitted classifier holds arrays only, so that a model file needs no pickle and reads the same with any
release of scikit-learn; what prediction needs of logistic regression and of a small network is a line or two.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import additive_chi2_kernel
from sklearn.neural_network import MLPClassifier

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError

LOGISTIC_STRENGTH = 0.01
HIDDEN_UNITS = (64, 32)
NETWORK_DECAY = 0.01
N_EPOCHS = 200
N_NEIGHBOURS = 15


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression, the classifier of Hames et al.

    Attributes
    ----------
    weights
        float64 [n_textons, 3], on raw histograms.
    offsets
        float64 [3].
    """

    weights: np.ndarray
    offsets: np.ndarray

    def predict_proba(self, histograms: np.ndarray) -> np.ndarray:
        """Probabilities of the strata, float64 [n, 3], for histograms [n, n_textons]."""
        return _softmax(histograms @ self.weights + self.offsets)


def fit_logistic(histograms: np.ndarray, labels: np.ndarray) -> Logistic:
    """Fit logistic regression with an L2 penalty on standardised shares.

    Parameters
    ----------
    histograms
        float [n, n_textons], rows summing to one.
    labels
        int [n], indices into STRATA, each at least once.

    Raises
    ------
    DataSetError
        If a stratum has no image.
    """
    middle, spread = _standard(histograms, labels)
    model = LogisticRegression(C=LOGISTIC_STRENGTH, max_iter=1000)
    _fit(model, (histograms - middle) / spread, labels)
    weights = model.coef_.T / spread[:, None]
    return Logistic(weights, model.intercept_ - middle @ weights)


@dataclass(frozen=True)
class Network:
    """Three layers of weights with ReLU between and a softmax at the end, the classifier of Kaur et al.

    Attributes
    ----------
    weights_1, offsets_1, weights_2, offsets_2, weights_3, offsets_3
        float64: layer k maps x to `x @ weights_k + offsets_k`; the first is on raw histograms.
    """

    weights_1: np.ndarray
    offsets_1: np.ndarray
    weights_2: np.ndarray
    offsets_2: np.ndarray
    weights_3: np.ndarray
    offsets_3: np.ndarray

    def predict_proba(self, histograms: np.ndarray) -> np.ndarray:
        """Probabilities of the strata, float64 [n, 3], for histograms [n, n_textons]."""
        hidden = np.maximum(histograms @ self.weights_1 + self.offsets_1, 0)
        hidden = np.maximum(hidden @ self.weights_2 + self.offsets_2, 0)
        return _softmax(hidden @ self.weights_3 + self.offsets_3)


def fit_network(histograms: np.ndarray, labels: np.ndarray, seed: int) -> Network:
    """Fit a network with two hidden layers (Adam, weight decay) on standardised shares.

    Parameters and errors are those of `fit_logistic`; the seed decides the first weights and the batches.
    """
    middle, spread = _standard(histograms, labels)
    model = MLPClassifier(HIDDEN_UNITS, alpha=NETWORK_DECAY, max_iter=N_EPOCHS, random_state=seed)
    _fit(model, (histograms - middle) / spread, labels)
    (first, *weights), (offsets_1, *offsets) = model.coefs_, model.intercepts_
    first = first / spread[:, None]
    return Network(first, offsets_1 - middle @ first, weights[0], offsets[0], weights[1], offsets[1])


@dataclass(frozen=True)
class Neighbours:
    """k nearest neighbours by chi-squared distance, the classifier of Somoza et al.

    The distance of texton histograms is Leung and Malik's: sum_i (a_i - b_i)^2 / (a_i + b_i).

    Attributes
    ----------
    histograms
        float32 [n, n_textons], the training images.
    labels
        int64 [n], indices into STRATA.
    n_neighbours
        Number of neighbours that vote, int64 scalar.
    """

    histograms: np.ndarray
    labels: np.ndarray
    n_neighbours: np.ndarray

    def predict_proba(self, histograms: np.ndarray) -> np.ndarray:
        """Shares of the votes, float64 [n, 3], for histograms [n, n_textons]."""
        likeness = additive_chi2_kernel(
            np.asarray(histograms, np.float64), self.histograms.astype(np.float64)
        )
        nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : int(self.n_neighbours)]
        return np.asarray(np.eye(len(STRATA))[self.labels[nearest]].mean(axis=1))


def fit_neighbours(histograms: np.ndarray, labels: np.ndarray) -> Neighbours:
    """Keep the training images; parameters and errors are those of `fit_logistic`."""
    _standard(histograms, labels)
    n_neighbours = min(N_NEIGHBOURS, len(labels))
    return Neighbours(
        np.asarray(histograms, np.float32), np.asarray(labels, np.int64), np.array(n_neighbours)
    )


def _standard(histograms: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check the training set, and give each texton's mean and standard deviation in it."""
    missing = [name for k, name in enumerate(STRATA) if not np.any(labels == k)]
    if missing:
        raise DataSetError(
            f"a classifier needs images of every stratum, there is none of {', '.join(missing)}"
        )
    spread = histograms.std(axis=0, dtype=np.float64)
    return histograms.mean(axis=0, dtype=np.float64), np.where(spread > 0, spread, 1.0)


def _fit(model: LogisticRegression | MLPClassifier, inputs: np.ndarray, labels: np.ndarray) -> None:
    with warnings.catch_warnings():
        # The number of iterations is part of the recipe, not a fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs, labels)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
