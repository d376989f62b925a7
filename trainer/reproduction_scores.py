"""A comparison's numbers: every method scored on the same stacks, and tested against one reference method."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.records import BOUNDARIES
from trainer.bootstrap import interval, patient_weights
from trainer.methods import METHODS
from trainer.metrics import boundary_error_um, impossible_transitions
from trainer.model_card import notice_of
from trainer.paper_tables import PAPER_MEDIANS, PAPER_TABLE_1, PAPER_TABLE_2, PAPER_TABLE_3
from trainer.run_folder import this_command, versions
from trainer.scores import depths, prediction_of, score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.data.manifest import LabelledStack
    from trainer.reproduce import Comparison, Predicted
    from trainer.scores import Prediction

REPRODUCTION_SCHEMA = "rcm-reproduction-1"
REFERENCE = "toeplitz-1"
"""The paper's best method, against which the others are tested."""


def reproduction(comparison: Comparison, predicted: Mapping[str, Predicted]) -> dict[str, Any]:
    """Score what `run_methods` gives.

    Returns
    -------
    dict
        What reproduction.json holds: the data, the preset, and for each method its `scores` (as
        `trainer.scores.score` gives them), its `against_reference` (see `paired`), its Toeplitz `kernel`, its
        signed boundary errors in um, and the paper's own figures where it has some.
    """
    stacks = comparison.test_stacks
    said = {
        name: list(found.estimates)
        or [prediction_of(p, s.z_um) for p, s in zip(found.probabilities, stacks, strict=True)]
        for name, found in predicted.items()
    }
    scores = {name: score(stacks, predictions) for name, predictions in said.items()}
    labels = np.concatenate([stack.labels for stack in stacks])
    data, split = comparison.data, comparison.split
    methods = {}
    for name, found in predicted.items():
        tested = REFERENCE in predicted and name != REFERENCE
        methods[name] = {
            "title": METHODS[name].title,
            "sees": METHODS[name].sees,
            "seconds": found.seconds,
            "recipe": asdict(comparison.recipe(METHODS[name])),
            "scores": scores[name],
            "against_reference": paired(stacks, said[name], said[REFERENCE]) if tested else None,
            "kernel": list(found.kernel),
            "signed_errors_um": {
                boundary: _signed_errors_um(stacks, said[name], k) for k, boundary in enumerate(BOUNDARIES)
            },
            "paper": {
                "table_1": PAPER_TABLE_1.get(name),
                "table_2": PAPER_TABLE_2.get(name),
                "table_3": PAPER_TABLE_3.get(name),
                "median_epidermis_dej_um": PAPER_MEDIANS.get(name),
            },
        }
    return {
        "schema": REPRODUCTION_SCHEMA,
        "notice": notice_of(data.is_phantom),
        "phantom": data.is_phantom,
        "command": this_command(),
        "versions": versions(),
        "preset": asdict(comparison.preset),
        "device": comparison.device.type,
        "data": {
            "digest": data.digest,
            "split_digest": split.digest,
            "n_stacks": {part: len(split.stack_indices(data, part)) for part in split.patients},
            "n_patients": {part: len(patients) for part, patients in split.patients.items()},
            "n_slices": data.n_slices,
            "n_test_slices": len(labels),
            "test_class_shares": (np.bincount(labels, minlength=3) / len(labels)).round(4).tolist(),
        },
        "reference": REFERENCE if REFERENCE in predicted else None,
        "methods": methods,
    }


def _signed_errors_um(stacks: Sequence[LabelledStack], said: Sequence[Prediction], k: int) -> list[float]:
    """Found minus true depth where there are both, in um: positive is too deep."""
    errors = []
    for stack, prediction in zip(stacks, said, strict=True):
        true_um, found_um = depths(stack.labels, stack.z_um)[k], prediction.boundaries_um[k]
        if true_um is not None and found_um is not None:
            errors.append(round(found_um - true_um, 3))
    return errors


def paired(
    stacks: Sequence[LabelledStack], said: Sequence[Prediction], reference: Sequence[Prediction]
) -> dict[str, dict[str, Any]]:
    """Test a method against a reference by a bootstrap over patients, both on the same draws.

    Parameters
    ----------
    stacks
        Test stacks.
    said, reference
        What the method and the reference say of each.

    Returns
    -------
    dict
        For `accuracy` (share), `impossible` (count) and `<boundary>_mae_um` (um): `difference` (method minus
        reference), its central 95 % `interval`, and the two-sided `p`, twice the smaller share of draws on
        either side of 0, ties on both, with one added to both counts (Davison and Hinkley 1997, 4.2).
    """
    weights = patient_weights([stack.patient for stack in stacks])
    both = (_parts(stacks, said), _parts(stacks, reference))
    found = {}
    for name, (values, sizes) in both[0].items():
        other = both[1][name][0]
        differences = np.where(sizes > 0, values - other, 0.0)
        n_each = np.array(sizes, float)
        if name == "impossible":
            drawn, all_of = weights @ differences, float(differences.sum())
        else:
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn = (weights @ differences) / (weights @ n_each)
            all_of = float(differences.sum() / n_each.sum()) if n_each.sum() else float("nan")
        kept = drawn[np.isfinite(drawn)]
        n_tail = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
        p = min(1.0, 2 * (n_tail + 1) / (len(kept) + 1))
        found[name] = {"difference": all_of, "interval": interval(drawn), "p": p}
    return found


def _parts(
    stacks: Sequence[LabelledStack], said: Sequence[Prediction]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give what each stack adds to every tested figure, [n_stacks], and how much it counts, [n_stacks]."""
    pairs = list(zip(stacks, said, strict=True))
    ones = np.ones(len(pairs))
    parts = {
        "accuracy": (
            np.array([np.sum(s.labels == p.labels) for s, p in pairs], float),
            np.array([s.n_slices for s in stacks], float),
        ),
        "impossible": (np.array([impossible_transitions([p.labels])["total"] for p in said], float), ones),
    }
    for k, boundary in enumerate(BOUNDARIES):
        errors = [
            boundary_error_um(depths(s.labels, s.z_um)[k], p.boundaries_um[k], s.z_um) for s, p in pairs
        ]
        there = np.array([error is not None for error in errors], float)
        values = np.array([0.0 if error is None else error for error in errors])
        parts[f"{boundary}_mae_um"] = (values, there)
    return parts
