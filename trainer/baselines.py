"""Baselines that never look at an image: if they come near a network, the task is too easy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from trainer.scores import Depths, Prediction, depths, prediction_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.data.manifest import LabelledStack


@dataclass(frozen=True)
class DepthClassifier:
    """Labels from depth alone: below the first slice, on the stack's own scale, and above the last slice.

    Gradient-boosted trees, so that no shape of the relation is ruled out.
    """

    model: HistGradientBoostingClassifier

    def predict(self, stack: LabelledStack) -> Prediction:
        """Label a stack by its slices' depths."""
        probabilities = np.zeros((stack.n_slices, len(STRATA)))
        probabilities[:, self.model.classes_] = self.model.predict_proba(_depths(stack))
        return prediction_of(probabilities, stack.z_um)


def fit_depth_classifier(stacks: Sequence[LabelledStack], seed: int = 0) -> DepthClassifier:
    """Fit the depth-only classifier on training stacks.

    Raises
    ------
    DataSetError
        If there are no stacks.
    """
    if not stacks:
        raise DataSetError("a depth-only baseline needs training stacks, there are none")
    model = HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=40, random_state=seed
    )
    model.fit(
        np.concatenate([_depths(stack) for stack in stacks]), np.concatenate([s.labels for s in stacks])
    )
    return DepthClassifier(model)


def _depths(stack: LabelledStack) -> np.ndarray:
    z_um = stack.z_um
    return np.stack([z_um - z_um[0], z_um, z_um[-1] - z_um], axis=1)


@dataclass(frozen=True)
class PriorBoundaries:
    """The same guess for every stack: each boundary at its median place in the training stacks.

    Attributes
    ----------
    below_first_um
        Median depth of each boundary below the first slice.
    share
        Median place of each boundary as a share of the stack's extent.
    by_share
        Which of the two had the smaller mean error in training, for each boundary.
    """

    below_first_um: tuple[float, float]
    share: tuple[float, float]
    by_share: tuple[bool, bool]

    def predict(self, stack: LabelledStack) -> Prediction:
        """Guess both boundaries, and label the slices by them."""
        first, last = stack.z_um[0], stack.z_um[-1]
        guesses = [
            first + (self.share[k] * (last - first) if self.by_share[k] else self.below_first_um[k])
            for k in range(2)
        ]
        labels = (stack.z_um > guesses[0]).astype(np.int64) + (stack.z_um > max(guesses))
        found: Depths = (guesses[0] if guesses[0] < last else None, guesses[1] if guesses[1] < last else None)
        return Prediction(labels, found)


def fit_prior_boundaries(stacks: Sequence[LabelledStack]) -> PriorBoundaries:
    """Take the medians over training stacks that have the boundary.

    Raises
    ------
    DataSetError
        If no stack has one of the boundaries.
    """
    below, share, by_share = [], [], []
    for k in range(2):
        places = np.array(
            [
                (found - stack.z_um[0], stack.z_um[-1] - stack.z_um[0])
                for stack in stacks
                if (found := depths(stack.labels, stack.z_um)[k]) is not None
            ]
        )
        if len(places) == 0:
            raise DataSetError("a prior over boundaries needs training stacks that have them, none has")
        below.append(float(np.median(places[:, 0])))
        share.append(float(np.median(places[:, 0] / places[:, 1])))
        error_um = np.abs(places[:, 0] - below[k]).mean()
        error_share = np.abs(places[:, 0] - share[k] * places[:, 1]).mean()
        by_share.append(bool(error_share < error_um))
    return PriorBoundaries((below[0], below[1]), (share[0], share[1]), (by_share[0], by_share[1]))
