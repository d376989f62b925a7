"""Evaluation on test stacks of a bundle as it ships, its ONNX graphs, and of predictions from elsewhere.

Beside them stand baselines that know depth only, the readers, and, of phantoms, the geometry.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.manifest import ESTIMATOR_FILE, Manifest
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import DataSetError
from rcm_daemon.simulator import HELD_OUT_FAMILY, TRAINING_FAMILIES
from trainer.baselines import fit_depth_classifier, fit_prior_boundaries
from trainer.beginnings import BEGINNINGS, evaluate_beginnings
from trainer.live_evaluation import live_evaluation
from trainer.live_figures import draw_live
from trainer.model_card import notice_of
from trainer.offline import WHOLE, LeftOut, Source, StackRun, check_same_input, fresh_phantoms, run_bundles
from trainer.predictions import read_predictions
from trainer.report import markdown
from trainer.run_folder import this_command, versions
from trainer.scores import Prediction, depths, estimated, prediction_of, score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainer.data.manifest import DataSet, LabelledStack

EVALUATION_SCHEMA = "rcm-evaluation-3"
DEPTH_ONLY, PRIOR_ONLY, GEOMETRY = "depth only (boosted trees)", "prior boundaries only", "geometry"
READERS = {"reader 1": "reader_1", "reader 2": "reader_2"}
OWN_ROWS = (DEPTH_ONLY, PRIOR_ONLY, *READERS, GEOMETRY)


def write_evaluation(
    bundle: Path | None,
    out: Path,
    *,
    predictions: Sequence[Path] = (),
    stacks: Sequence[LabelledStack] = (),
    data: DataSet | None = None,
    single: Path | None = None,
    training: Sequence[LabelledStack] = (),
    n_fresh: int = 0,
    n_workers: int = 2,
    live: bool = False,
    beside: Sequence[Path] = (),
    z_step_um: float | None = None,
    pixel_size_um: float = 0.5,
    n_held_out: int | None = None,
    left_out: LeftOut = WHOLE,
    n_beginnings: int = 0,
) -> dict[str, Any]:
    """Score a bundle, or predictions, or both on the same stacks; write evaluation.json and evaluation.md.

    Parameters
    ----------
    bundle
        Folder of the bundle, if there is one.
    out
        Folder of the report.
    predictions
        CSVs of other methods on `stacks`, see `trainer.predictions`; a method is called what its file is.
    stacks, data
        Test stacks and the data set they come from; may be left out when `n_fresh` is given.
    single
        Bundle of kind single, the bundle's own CNN without context.
    training
        Stacks the depth-only and prior-only baselines are fitted on.
    n_fresh
        Number of unseen phantom stacks for the bundle, of the training families and again of the family kept
        out of training.
    n_workers
        Processes.
    live
        Whether stacks are replayed slice by slice as well; draws live-<number of the set>.png beside the
        report.
    beside
        Other bundles to score on the same stacks.
    z_step_um
        Step of the unseen phantoms, instead of steps as they are drawn.
    pixel_size_um
        Pitch the unseen phantoms are recorded at.
    n_held_out
        Number of those of the family kept out of training, if it is another.
    left_out
        Slices that never arrive.
    n_beginnings
        Number of unseen phantoms of which only the first quarter comes, see `trainer.beginnings`.

    Returns
    -------
    dict
        What evaluation.json holds.

    Raises
    ------
    DataSetError
        If there is nothing to evaluate or nothing to evaluate on, predictions do not fit the stacks, or
        `single` is no single-image bundle.
    """
    if bundle is None and not predictions:
        raise DataSetError("an evaluation needs a bundle or predictions, got neither")
    if not 0 <= left_out.missing < 1:
        raise DataSetError(f"the share of missing slices must be from 0 to below 1, got {left_out.missing}")
    if not left_out.extent_um > 0:
        raise DataSetError(f"the extent of a stack must be above 0 um, got {left_out.extent_um:g}")
    if predictions and left_out != WHOLE:
        raise DataSetError("slices can be left out for bundles only, got predictions")
    if bundle is None and (single or n_fresh or n_beginnings):
        raise DataSetError("a single-image bundle and fresh phantoms go with a bundle, got none")
    if not stacks and (predictions or not (n_fresh or n_beginnings)):
        raise DataSetError("an evaluation needs test stacks or a number of fresh phantoms, got neither")
    others = {path.stem: read_predictions(path, stacks) for path in predictions}
    verified = load_verified(bundle) if bundle else None
    folders = [folder for folder in (bundle, single) if folder]
    names = [verified.manifest.name] if verified else []
    if n_beginnings and not (verified and ESTIMATOR_FILE in verified.files):
        raise DataSetError("beginnings are for a bundle with an estimator, got none")
    if n_beginnings and left_out != WHOLE:
        raise DataSetError("beginnings are looked at without leaving slices out, got slices to leave out")
    if single is not None:
        kind = load_verified(single).manifest.kind
        if kind != "single":
            raise DataSetError(f"the single-image bundle must be of kind single, {single} is of kind {kind}")
        names.append("its single-image CNN" if _same_cnn(folders) else "single-image CNN")
    folders += beside
    names += [load_verified(folder).manifest.name for folder in beside]
    all_names = [*others, *names, *OWN_ROWS]
    taken = [name for name in all_names if all_names.count(name) > 1]
    if taken or len(others) < len(predictions):
        raise DataSetError(
            f"every method needs a name of its own, got two of {taken[0] if taken else 'one file name'}"
        )
    check_same_input(folders)
    sets: list[tuple[str, Sequence[Source], dict[str, Any]]] = []
    if stacks:
        about: dict[str, Any] = {"phantom": data is not None and data.is_phantom}
        if data and len(stacks) == len(data.stacks):  # a part without what was trained on has fewer
            origins = [Manifest.load(folder).provenance.data_digest for folder in folders]
            seen = [name for name, origin in zip(names, origins, strict=True) if origin == data.digest]
            about |= {"seen_in_training": seen} if seen else {}
        sets.append((f"{len(stacks)} stacks of the data set", stacks, about))
    if verified and n_fresh:
        held_out = f"family kept out of training ({HELD_OUT_FAMILY})"
        for n, families, purpose, of_which in (
            (n_fresh, TRAINING_FAMILIES, "training families", "training families"),
            (n_fresh if n_held_out is None else n_held_out, (HELD_OUT_FAMILY,), "held-out family", held_out),
        ):
            planned = fresh_phantoms(verified.digest, n, families, purpose, z_step_um, pixel_size_um)
            if planned:
                sets.append((f"{n} unseen phantoms of the {of_which}", planned, {"phantom": True}))
    result: dict[str, Any] = {
        "schema": EVALUATION_SCHEMA,
        "bundle": verified
        and {
            "name": verified.manifest.name,
            "version": verified.manifest.version,
            "digest": verified.digest,
            "kind": verified.manifest.kind,
            "attention_half_width": verified.manifest.attention_half_width,
        },
        "notice": verified.manifest.notice if verified else notice_of(data is not None and data.is_phantom),
        "command": this_command(),
        "versions": versions(),
        "data_digest": data.digest if data else None,
        "n_training_stacks_of_baselines": len(training),
        "sets": [],
    }
    baselines = _fit(training)
    for number, (title, sources, about) in enumerate(sets):
        if folders:
            runs = run_bundles(folders, sources, n_workers, title, left_out)
        else:
            runs = [StackRun(stack) for stack in stacks]
        said = others if stacks and number == 0 else {}
        scored = _score_set(title, runs, names, said, baselines) | about
        if live:
            bundles = [Networks.open(load_verified(folder), "cpu", 1) for folder in folders]
            scored["live"] = live_evaluation(runs, names, bundles)
            out.mkdir(parents=True, exist_ok=True)
            draw_live(scored["live"], title, out / f"live-{number + 1}.png")
        result["sets"].append(scored)
        _write(out, result)
    if verified and bundle and n_beginnings:
        planned = fresh_phantoms(
            verified.digest, n_beginnings, TRAINING_FAMILIES, "beginnings", z_step_um, pixel_size_um
        )
        runs = run_bundles([bundle], planned, n_workers, f"beginnings of {n_beginnings} phantoms", BEGINNINGS)
        result["beginnings"] = evaluate_beginnings(runs, Networks.open(verified, "cpu", 1))
        _write(out, result)
    return result


def _same_cnn(folders: list[Path]) -> bool:
    first, second = (load_verified(folder).manifest.files["cnn.onnx"].sha256 for folder in folders)
    return first == second


def _fit(training: Sequence[LabelledStack]) -> dict[str, Any]:
    if not training:
        return {}
    return {
        DEPTH_ONLY: fit_depth_classifier(training),
        PRIOR_ONLY: fit_prior_boundaries(training),
    }


def _score_set(
    title: str,
    runs: list[StackRun],
    names: list[str],
    others: dict[str, list[Prediction]],
    baselines: dict[str, Any],
) -> dict[str, Any]:
    stacks = [run.stack for run in runs]
    methods = dict(others)
    for index, name in enumerate(names):
        as_paper = [prediction_of(run.probabilities[index], run.stack.z_um) for run in runs]
        own = [said for run in runs if (said := run.estimates[index]) is not None]
        if own:
            methods[name] = [estimated(said) for said in own]
            methods[f"{name}, read as the paper does"] = as_paper
        else:
            methods[name] = as_paper
    for name, baseline in baselines.items():
        methods[name] = [baseline.predict(stack) for stack in stacks]
    agreement: dict[str, float] = {}
    if all({*READERS.values()} <= stack.readings.keys() for stack in stacks):
        for row, reader in READERS.items():
            methods[row] = _as_read(stacks, reader)
        first, second = (np.concatenate([s.readings[r] for s in stacks]) for r in READERS.values())
        agreement["readers_agree"] = float(np.mean(first == second))
    scores = {name: score(stacks, predictions) for name, predictions in methods.items()}
    if all("true_label" in stack.readings for stack in stacks):
        # How far the readers are from what is there; held against itself it says nothing.
        found = score(stacks, _as_read(stacks, "true_label"))
        scores[GEOMETRY] = {name: one for name, one in found.items() if name != "to_truth"}
    labels = np.concatenate([stack.labels for stack in stacks])
    return {
        "title": title,
        "n_stacks": len(stacks),
        "n_patients": len({stack.patient for stack in stacks}),
        "n_slices": len(labels),
        "class_shares": (np.bincount(labels, minlength=3) / len(labels)).round(4).tolist(),
        "families": sorted({stack.family for stack in stacks}),
        "stacks": [{"stack": stack.stack, "patient": stack.patient} for stack in stacks],
        **agreement,
        "methods": scores,
    }


def _as_read(stacks: Sequence[LabelledStack], reading: str) -> list[Prediction]:
    readings = [stack.readings[reading] for stack in stacks]
    return [Prediction(read, depths(read, stack.z_um)) for read, stack in zip(readings, stacks, strict=True)]


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
