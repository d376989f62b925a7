"""How hard a phantom set is: reader agreement, class shares, and what depth alone can tell."""

from __future__ import annotations

import contextlib
import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_NUMBER = {name: number for number, name in enumerate(STRATA)}


@dataclass(frozen=True)
class _Stack:
    patient: str
    z_um: NDArray[np.float64]
    label: NDArray[np.intp]
    true_label: NDArray[np.intp]
    readers: NDArray[np.intp]
    boundaries_um: NDArray[np.float64]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataSetError(
            f"an agreement report reads {path.name}, but {path} cannot be read: {error}"
        ) from error
    if not rows:
        raise DataSetError(f"an agreement report needs one row or more, but {path} has none")
    return rows


def _stacks(manifest: Path) -> list[_Stack]:
    slices: dict[str, list[dict[str, str]]] = {}
    for row in _rows(manifest):
        slices.setdefault(row["stack"], []).append(row)
    stacks = []
    try:
        for row in _rows(manifest.with_name("stacks.csv")):
            own = slices[row["stack"]]

            def strata(column: str, own: list[dict[str, str]] = own) -> NDArray[np.intp]:
                return np.array([_NUMBER[item[column]] for item in own], dtype=np.intp)

            stacks.append(
                _Stack(
                    patient=row["patient"],
                    z_um=np.array([float(item["z_um"]) for item in own]),
                    label=strata("label"),
                    true_label=strata("true_label"),
                    readers=np.stack([strata("reader_1"), strata("reader_2")]),
                    boundaries_um=np.array([float(row["epidermis_dej_um"]), float(row["dej_dermis_um"])]),
                )
            )
    except (KeyError, ValueError) as error:
        raise DataSetError(
            f"an agreement report needs the columns of a phantom set, but {manifest} or stacks.csv beside it "
            f"lacks or garbles {error}"
        ) from error
    return stacks


def depth_only_accuracy(
    depth: list[NDArray[np.float64]], label: list[NDArray[np.intp]], patient: list[str], *, n_parts: int = 5
) -> float:
    """Accuracy of a logistic regression on a slice's depth and its square, cross-validated by patient.

    Parameters
    ----------
    depth, label
        For each stack, [n] depths (um or slice numbers) and [n] strata.
    patient
        For each stack, the patient; no patient is on both sides of a split.
    """
    from sklearn.linear_model import LogisticRegression

    names = sorted(set(patient))
    part = {name: k % n_parts for k, name in enumerate(names)}
    group = np.concatenate([np.full(len(d), part[p]) for d, p in zip(depth, patient, strict=True)])
    x, y = np.concatenate(depth), np.concatenate(label)
    x = (x - x.mean()) / max(float(x.std()), 1e-9)
    features = np.stack([x, x**2], axis=1)
    n_right = 0
    for k in sorted(set(group.tolist())):
        held = group == k
        if held.all() or len(np.unique(y[~held])) < 2:
            raise DataSetError(
                "a depth-only baseline needs 2 patients or more and 2 strata or more to train on, "
                f"got {len(names)} patients"
            )
        model = LogisticRegression(max_iter=1000).fit(features[~held], y[~held])
        n_right += int((model.predict(features[held]) == y[held]).sum())
    return n_right / len(y)


def prior_guess_mae(depth_um: NDArray[np.float64]) -> float:
    """Mean absolute error in um of guessing the mean depth of a boundary for every stack ([n] depths)."""
    if len(depth_um) < 2:
        return 0.0
    others = (depth_um.sum() - depth_um) / (len(depth_um) - 1)
    return float(np.abs(depth_um - others).mean())


def agreement_report(manifest: Path) -> dict[str, float]:
    """Summarise a phantom set from its ``manifest.csv`` and the ``stacks.csv`` beside it.

    Returns
    -------
    dict
        ``reader_agreement``: share of slices both readers call alike, the ceiling of any network;
        ``truth_agreement``: share of slices where consensus and true labels are alike;
        ``share_<stratum>``; ``n_stacks``, ``n_slices``, ``mean_length``, ``shortest``, ``longest``;
        ``without_dej``, ``without_dermis``: shares of stacks that end before it;
        ``depth_only_accuracy``: by z; ``slice_number_accuracy``: by position in the stack;
        ``depth_below_first_accuracy``: by depth below the stack's first slice (these three are absent
        where the set has too few patients or strata to learn from some and test on others);
        ``majority_accuracy``: always the commonest stratum;
        ``prior_mae_epidermis_dej_um``, ``prior_mae_dej_dermis_um``: errors of the mean boundary of the other
        stacks, counted from each stack's first slice.

    Raises
    ------
    DataSetError
        If the files are missing, or are not those of a phantom set.
    """
    stacks = _stacks(manifest)
    label = np.concatenate([stack.label for stack in stacks])
    length = np.array([len(stack.label) for stack in stacks])
    labels, patients = [stack.label for stack in stacks], [stack.patient for stack in stacks]
    shares = np.bincount(label, minlength=len(STRATA)) / len(label)
    from_first = np.stack([stack.boundaries_um - stack.z_um[0] for stack in stacks])
    report = {
        "n_stacks": float(len(stacks)),
        "n_slices": float(len(label)),
        "mean_length": float(length.mean()),
        "shortest": float(length.min()),
        "longest": float(length.max()),
        "reader_agreement": float(np.concatenate([s.readers[0] == s.readers[1] for s in stacks]).mean()),
        "truth_agreement": float(np.concatenate([s.label == s.true_label for s in stacks]).mean()),
        "without_dej": float(np.mean([s.label.max() < 1 for s in stacks])),
        "without_dermis": float(np.mean([s.label.max() < 2 for s in stacks])),
        "majority_accuracy": float(shares.max()),
        "prior_mae_epidermis_dej_um": prior_guess_mae(from_first[:, 0]),
        "prior_mae_dej_dermis_um": prior_guess_mae(from_first[:, 1]),
    }
    known_by = {
        "depth_only_accuracy": [s.z_um for s in stacks],
        "slice_number_accuracy": [np.arange(n, dtype=float) for n in length],
        "depth_below_first_accuracy": [s.z_um - s.z_um[0] for s in stacks],
    }
    with contextlib.suppress(DataSetError):  # too small a set
        report.update({name: depth_only_accuracy(x, labels, patients) for name, x in known_by.items()})
    report.update({f"share_{name}": float(share) for name, share in zip(STRATA, shares, strict=True)})
    return report
