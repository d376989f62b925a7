"""Predictions from a table, whatever made them: a row a slice, with a label or with probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from trainer.data.tables import listed, need_columns, read_table
from trainer.scores import prediction_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainer.data.manifest import LabelledStack
    from trainer.scores import Prediction

PROBABILITIES = tuple(f"probability_{stratum}" for stratum in STRATA)
SUM_TOLERANCE = 0.01


def read_predictions(path: Path, stacks: Sequence[LabelledStack]) -> list[Prediction]:
    """Read what a method says of stacks; both boundaries follow from the labels, as the paper takes them.

    Parameters
    ----------
    path
        CSV or Parquet with the columns `stack` and `z_um`, as in the data set's manifest, and either the
        three `probability_<stratum>` or `label`.
    stacks
        Stacks to read; rows of others are passed over.

    Raises
    ------
    DataSetError
        Listing what is wrong: columns or slices that are missing, doubled rows, labels and numbers that are
        none.
    """
    table = read_table(path, "predictions must be a table in CSV or Parquet")
    given: tuple[str, ...] = ("label",)
    values_rule = f"a label of {', '.join(STRATA)}"
    if set(PROBABILITIES) <= set(table.columns):
        given, values_rule = PROBABILITIES, "probabilities from 0 that sum to 1"
    rule = f"predictions need the columns stack, z_um and {', '.join(PROBABILITIES)} or label"
    need_columns(table, ("stack", "z_um", *given), path, rule)
    faults: list[str] = []
    found: dict[tuple[str, float], np.ndarray] = {}
    names = {stack.stack for stack in stacks}
    for number, cells in enumerate(table.rows, start=table.first_row):
        if (name := cells["stack"].strip()) not in names:
            continue
        try:
            place = name, round(float(cells["z_um"]), 6)
            values = _probabilities([cells[column] for column in given])
        except ValueError:
            said = ", ".join(f"{column} {cells[column]!r}" for column in ("z_um", *given))
            faults.append(f"row {number} must hold a depth and {values_rule}, got {said}")
            continue
        if place in found:
            faults.append(f"row {number} repeats z {place[1]:g} um of stack {name}")
        found[place] = values
    predictions = []
    for stack in stacks:
        places = [(stack.stack, round(float(z_um), 6)) for z_um in stack.z_um]
        absent = [f"{z_um:g}" for name, z_um in places if (name, z_um) not in found]
        if absent:
            shown = listed([f"{um} um" for um in absent], between=", ")
            faults.append(f"stack {stack.stack} lacks {len(absent)} slices, at z {shown}")
        else:
            predictions.append(prediction_of(np.stack([found[place] for place in places]), stack.z_um))
    if faults:
        raise DataSetError(f"{path} cannot be evaluated: {listed(faults)}")
    return predictions


def _probabilities(cells: list[str]) -> np.ndarray:
    if len(cells) == 1:
        return np.asarray(np.eye(len(STRATA))[STRATA.index(cells[0].strip())])
    values = np.array([float(cell) for cell in cells])
    if not ((values >= 0).all() and abs(values.sum() - 1) <= SUM_TOLERANCE):
        raise ValueError("no probabilities")
    return values
