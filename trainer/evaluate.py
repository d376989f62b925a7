"""Evaluation of a bundle as it ships: its ONNX graphs over test stacks, beside baselines and the readers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import DataSetError
from rcm_daemon.simulator import HELD_OUT_FAMILY, TRAINING_FAMILIES
from trainer.baselines import fit_depth_classifier, fit_prior_boundaries
from trainer.offline import Source, StackRun, check_same_input, fresh_phantoms, run_bundles
from trainer.report import markdown
from trainer.run_folder import this_command, versions
from trainer.scores import Prediction, depths, prediction_of, score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainer.data.manifest import DataSet, LabelledStack

EVALUATION_SCHEMA = "rcm-evaluation-1"


def evaluate_bundle(
    bundle: Path,
    out: Path,
    *,
    stacks: Sequence[LabelledStack] = (),
    data: DataSet | None = None,
    single: Path | None = None,
    training: Sequence[LabelledStack] = (),
    n_fresh: int = 0,
    n_workers: int = 2,
) -> dict[str, Any]:
    """Score a bundle and write evaluation.json and evaluation.md.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    out
        Folder of the report.
    stacks, data
        Test stacks and the data set they come from; may be left out when `n_fresh` is given.
    single
        Bundle of kind single, the bundle's own CNN without context.
    training
        Stacks the depth-only and prior-only baselines are fitted on.
    n_fresh
        Number of unseen phantom stacks, of the training families and again of the family kept out of
        training.
    n_workers
        Processes.

    Returns
    -------
    dict
        What evaluation.json holds.

    Raises
    ------
    DataSetError
        If there is nothing to evaluate on, or `single` is no single-image bundle.
    """
    if not stacks and not n_fresh:
        raise DataSetError("an evaluation needs test stacks or a number of fresh phantoms, got neither")
    verified = load_verified(bundle)
    folders, names = [bundle], [verified.manifest.name]
    if single is not None:
        kind = load_verified(single).manifest.kind
        if kind != "single":
            raise DataSetError(f"the single-image bundle must be of kind single, {single} is of kind {kind}")
        folders.append(single)
        names.append("its single-image CNN" if _same_cnn(folders) else "single-image CNN")
    check_same_input(folders)
    sets: list[tuple[str, Sequence[Source]]] = []
    if stacks:
        sets.append((f"{len(stacks)} stacks of the data set", stacks))
    if n_fresh:
        families = fresh_phantoms(verified.digest, n_fresh, TRAINING_FAMILIES, "training families")
        sets.append((f"{n_fresh} unseen phantoms of the training families", families))
        held_out = fresh_phantoms(verified.digest, n_fresh, (HELD_OUT_FAMILY,), "held-out family")
        sets.append(
            (f"{n_fresh} unseen phantoms of the family kept out of training ({HELD_OUT_FAMILY})", held_out)
        )
    result: dict[str, Any] = {
        "schema": EVALUATION_SCHEMA,
        "bundle": {
            "name": verified.manifest.name,
            "version": verified.manifest.version,
            "digest": verified.digest,
            "kind": verified.manifest.kind,
            "attention_half_width": verified.manifest.attention_half_width,
        },
        "notice": verified.manifest.notice,
        "command": this_command(),
        "versions": versions(),
        "data_digest": data.digest if data else None,
        "n_training_stacks_of_baselines": len(training),
        "sets": [],
    }
    baselines = _fit(training)
    for title, sources in sets:
        runs = run_bundles(folders, sources, n_workers, title)
        result["sets"].append(_score_set(title, runs, names, baselines))
        _write(out, result)
    return result


def _same_cnn(folders: list[Path]) -> bool:
    first, second = (load_verified(folder).manifest.files["cnn.onnx"].sha256 for folder in folders)
    return first == second


def _fit(training: Sequence[LabelledStack]) -> dict[str, Any]:
    if not training:
        return {}
    return {
        "depth only (boosted trees)": fit_depth_classifier(training),
        "prior boundaries only": fit_prior_boundaries(training),
    }


def _score_set(
    title: str, runs: list[StackRun], names: list[str], baselines: dict[str, Any]
) -> dict[str, Any]:
    stacks = [run.stack for run in runs]
    methods: dict[str, list[Prediction]] = {}
    for index, name in enumerate(names):
        methods[name] = [prediction_of(run.probabilities[index], run.stack.z_um) for run in runs]
    for name, baseline in baselines.items():
        methods[name] = [baseline.predict(stack) for stack in stacks]
    agreement: dict[str, float] = {}
    if all({"reader_1", "reader_2"} <= stack.readings.keys() for stack in stacks):
        for reader in ("reader_1", "reader_2"):
            methods[reader.replace("_", " ")] = [
                Prediction(stack.readings[reader], depths(stack.readings[reader], stack.z_um))
                for stack in stacks
            ]
        first, second = (np.concatenate([s.readings[r] for s in stacks]) for r in ("reader_1", "reader_2"))
        agreement["readers_agree"] = float(np.mean(first == second))
    labels = np.concatenate([stack.labels for stack in stacks])
    return {
        "title": title,
        "n_stacks": len(stacks),
        "n_patients": len({stack.patient for stack in stacks}),
        "n_slices": len(labels),
        "class_shares": (np.bincount(labels, minlength=3) / len(labels)).round(4).tolist(),
        "families": sorted({stack.family for stack in stacks}),
        **agreement,
        "methods": {name: score(stacks, predictions) for name, predictions in methods.items()},
    }


def _write(out: Path, result: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(without_nan(result), indent=1, allow_nan=False) + "\n")
    (out / "evaluation.md").write_text(markdown(result))


def without_nan(value: Any) -> Any:
    """Turn NaN, which JSON does not know, into null."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
