"""An evaluation as Markdown: the paper's three tables for every set of stacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rcm_daemon.core.records import BOUNDARIES, STRATA
from trainer.beginnings import beginnings_markdown
from trainer.live_report import live_markdown
from trainer.markdown_tables import BOUNDARY_NAMES, STRATUM_NAMES, number, table, with_interval
from trainer.metrics import IMPOSSIBLE_TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

METHOD = (
    "Scored against the readers' consensus on whole stacks, a bundle through its ONNX graphs. In brackets "
    "the central 95 % of 1000 bootstrap draws over patients. Impossible transitions are counted on raw "
    "labels. A bundle with an estimator of its own is read by it; the others, and the same bundle once more, "
    "as the paper does: boundaries after the 3-slice median and the causal maximum. A missed boundary costs "
    "the distance to the farther end of its stack, a false one is counted."
)
PAPER_NOTE = (
    "For comparison, Bozkurt et al. 2021 report on 198 real stacks: Toeplitz attention D = 1 88.07 % "
    "accuracy, 3 impossible transitions, MAE 5.76 and 9.24 um; single-image Inception-V3 84.87 %, 68, 9.82 "
    "and 10.59 um. {} another data set: the figures must not be read against each other."
)


def markdown(result: dict[str, Any]) -> str:
    """Write the result of `write_evaluation` as Markdown."""
    bundle = result["bundle"]
    title, about = "predictions", ""
    if bundle:
        title = f"{bundle['name']} {bundle['version']}"
        about = (
            f"Bundle {bundle['digest'][:16]}, kind {bundle['kind']}, D = {bundle['attention_half_width']}. "
        )
    lines = [
        f"# Evaluation of {title}",
        "",
        f"**{result['notice'][0].upper()}{result['notice'][1:]}.**",
        "",
        about + METHOD,
        "",
        f"Command: `{result['command']}`",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + ".",
        "",
        PAPER_NOTE.format("Phantoms are" if all(one["phantom"] for one in result["sets"]) else "Theirs is"),
    ]
    for one in result["sets"]:
        lines += _set(one)
    if "beginnings" in result:
        lines += beginnings_markdown(result["beginnings"])
    return "\n".join(lines) + "\n"


def seen_in_training(names: Sequence[str]) -> str:
    """Say that bundles are scored on what they were trained on."""
    return (
        f"without --split the stacks that trained {' and '.join(names)} are scored too: on stacks never seen "
        "figures are likely to be worse"
    )


def _set(one: dict[str, Any]) -> list[str]:
    shares = " / ".join(f"{100 * share:.0f} %" for share in one["class_shares"])
    about = (
        f"{one['n_stacks']} stacks of {one['n_patients']} patients, {one['n_slices']} slices ({shares} "
        "epidermis / DEJ / dermis)."
    )
    if "readers_agree" in one:
        about += f" The two readers give the same label to {100 * one['readers_agree']:.1f} % of the slices."
    methods = one["methods"]
    if "geometry" in methods:
        about += " Geometry: the boundaries that are truly there."
    lines = ["", f"## {one['title'][0].upper()}{one['title'][1:]}", "", about]
    if "seen_in_training" in one:
        said = seen_in_training(one["seen_in_training"])
        lines += ["", f"**{said[0].upper()}{said[1:]}.**"]
    lines += [*_labels(methods), *_transitions(methods), *_boundaries(methods), *_to_truth(methods)]
    return lines + live_markdown(one["live"]) if "live" in one else lines


def _labels(methods: dict[str, Any]) -> list[str]:
    columns = [f"sensitivity {STRATUM_NAMES[s]}" for s in STRATA] + [
        f"specificity {STRATUM_NAMES[s]}" for s in STRATA
    ]
    head = ["method", "accuracy %", *columns]
    rows = []
    for name, scores in methods.items():
        labels = scores["labels"]
        keys = [f"sensitivity_{s}" for s in STRATA] + [f"specificity_{s}" for s in STRATA]
        rows.append([name, _percent(labels, "accuracy"), *(number(100 * labels[key], 1) for key in keys)])
    return table("Labels", head, rows)


def _transitions(methods: dict[str, Any]) -> list[str]:
    kinds = [name for name, _, _ in IMPOSSIBLE_TRANSITIONS]
    head = ["method", *(kind.replace("_", " ").replace("dej", "DEJ") for kind in kinds), "total"]
    rows = []
    for name, scores in methods.items():
        found = scores["impossible"]
        low, high = found["total_interval"]
        rows.append(
            [name, *(str(found[kind]) for kind in kinds), f"{found['total']} [{low:.0f}, {high:.0f}]"]
        )
    return table("Impossible transitions", head, rows)


def _boundaries(methods: dict[str, Any]) -> list[str]:
    head = ["method"]
    for boundary in BOUNDARIES:
        name = BOUNDARY_NAMES[boundary]
        head += [f"{name} MAE um", "median um", "missed", "false"]
    rows = []
    for name, scores in methods.items():
        row = [name]
        for boundary in BOUNDARIES:
            one = scores[boundary]
            row += [_mae(one), number(one["median_um"], 2)]
            row += [f"{one['n_missed']} of {one['n']}", str(one["n_false"])]
        rows.append(row)
    return table("Boundaries", head, rows)


def _to_truth(methods: dict[str, Any]) -> list[str]:
    rows = [
        [name, _percent(true, "accuracy"), *(_mae(true[boundary]) for boundary in BOUNDARIES)]
        for name, scores in methods.items()
        if (true := scores.get("to_truth"))
    ]
    head = ["method", "accuracy %", *(f"{BOUNDARY_NAMES[boundary]} MAE um" for boundary in BOUNDARIES)]
    return table("Against the geometry instead of the readers", head, rows) if rows else []


def _mae(one: dict[str, Any]) -> str:
    return with_interval(one["mae_um"], one["mae_um_interval"], 2, 2)


def _percent(labels: dict[str, Any], name: str) -> str:
    return with_interval(labels[name], labels[f"{name}_interval"], 2, 1, 100)
