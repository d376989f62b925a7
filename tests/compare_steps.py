"""Boundary errors of one bundle under other z steps or with missing slices, against a first evaluation.

    python -m tests.compare_steps FIRST OTHER [OTHER ...] [--json FILE]

Each is the folder of one `rcm-trainer evaluate BUNDLE --fresh-phantoms N`, all of the same tissues. Ratios of
mean errors are over the boundaries that both have; in brackets the central 95 % of a bootstrap over patients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from rcm_daemon.core.records import BOUNDARIES
from trainer.bootstrap import interval, patient_weights


def evaluation(folder: Path) -> dict[str, Any]:
    """Return an evaluation's first set of stacks, as its bundle read it."""
    found = json.loads((folder / "evaluation.json").read_text())
    first = found["sets"][0]
    own = first["methods"][found["bundle"]["name"]]
    return {
        "command": found["command"],
        "stacks": first["stacks"],
        **{name: own[name] for name in BOUNDARIES},
    }


def errors_um(scores: dict[str, Any]) -> np.ndarray:
    return np.array([np.nan if error is None else error for error in scores["errors_um"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("others", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, help="Write the errors of every stack.")
    given = parser.parse_args()
    first = evaluation(given.first)
    found = {given.first.name: first, **{folder.name: evaluation(folder) for folder in given.others}}
    weights = patient_weights([stack["patient"] for stack in first["stacks"]])
    for name, other in found.items():
        if [one["stack"] for one in other["stacks"]] != [one["stack"] for one in first["stacks"]]:
            raise SystemExit(f"{name} must be of the stacks of {given.first.name}, it is of others")
        for boundary in BOUNDARIES:
            scores = other[boundary]
            before, after = errors_um(first[boundary]), errors_um(scores)
            both = np.isfinite(before) & np.isfinite(after)
            ratio = after[both].mean() / before[both].mean()
            low, high = interval((weights[:, both] @ after[both]) / (weights[:, both] @ before[both]))
            print(
                f"{name:20} {boundary:14} MAE {scores['mae_um']:5.2f} um, {scores['n_missed']} of "
                f"{scores['n']} missed, {scores['n_false']} false; "
                f"x{ratio:.3f} [{low:.3f}, {high:.3f}] over {both.sum()}"
            )
    if given.json:
        stacks = [f"{one['stack']} {one['patient']}" for one in first["stacks"]]
        kept = {name: {key: one[key] for key in ("command", *BOUNDARIES)} for name, one in found.items()}
        given.json.write_text(json.dumps({"stacks": stacks, **kept}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
