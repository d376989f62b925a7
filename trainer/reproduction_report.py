"""A comparison as one self-contained HTML page: the paper's tables, each beside the paper's own figures."""

from __future__ import annotations

import base64
import json
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.records import BOUNDARIES, STRATA
from trainer.evaluate import without_nan
from trainer.markdown_tables import BOUNDARY_NAMES, STRATUM_NAMES
from trainer.methods import METHODS
from trainer.metrics import IMPOSSIBLE_TRANSITIONS
from trainer.reproduction_figures import attention_kernels, error_histograms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

JSON_NAME, HTML_NAME, FIGURE_NAME = "reproduction.json", "report.html", "errors.png"
PHANTOM_SENTENCE = (
    "The data are phantoms, another data set than the paper's recorded stacks: the figures must not be read "
    "against the paper's, which stand beside them only to show the order of the methods."
)
NOT_PAPER_SENTENCE = "The data are not the paper's: figures that differ from it say as much about the data."
STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:76em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.25em .6em;border-bottom:1px solid #ddd;"
    "text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}"
    "td.paper{color:#777}tr.block td{font-weight:bold;background:#f3f3f3}.notice{background:#fff3cd;"
    "padding:.7em 1em}img{max-width:100%}pre{white-space:pre-wrap;background:#f6f6f6;padding:.7em}"
    ".wide{overflow-x:auto}"
)
Cell = str | tuple[str, str]
"""Text, or text and its class."""


def write_report(out: Path, result: dict[str, Any]) -> Path:
    """Write reproduction.json, report.html and errors.png; give the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    (out / JSON_NAME).write_text(json.dumps(without_nan(result), indent=1, allow_nan=False) + "\n")
    errors = error_histograms(result)
    (out / FIGURE_NAME).write_bytes(errors)
    (out / HTML_NAME).write_text(page(result, errors, attention_kernels(result)))
    return out / HTML_NAME


def page(result: dict[str, Any], errors: bytes, kernels: bytes | None) -> str:
    """Write the page.

    Parameters
    ----------
    result
        As `reproduction` gives it.
    errors, kernels
        PNG figures.
    """
    notice = result["notice"][0].upper() + result["notice"][1:]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Comparison of methods</title>",
        f"<style>{STYLE}</style><h1>Comparison of methods after Bozkurt et al. 2021</h1>",
        f"<p class=notice><b>{escape(notice)}.</b> ",
        escape(PHANTOM_SENTENCE if result["phantom"] else NOT_PAPER_SENTENCE),
        "</p>",
        _about(result),
        _labels(result),
        _transitions(result),
        _boundaries(result),
        "<h2>Errors of the boundaries (Fig. 2)</h2><p>Stacks where the consensus has the boundary and the "
        "method finds it; black ticks are single stacks, errors beyond the axis stand at its end.</p>",
        _image(errors, "error histograms"),
        _paired(result),
        _kernels(result, kernels),
        _confusions(result),
        "<h2>Recipes</h2>",
        *(
            f"<details><summary>{escape(m['title'])}, {m['seconds']:.0f} s</summary>"
            f"<pre>{escape(json.dumps(m['recipe']))}</pre></details>"
            for m in result["methods"].values()
        ),
        "</html>\n",
    ]
    return "".join(parts)


def _about(result: dict[str, Any]) -> str:
    data, preset = result["data"], result["preset"]
    cnn, rcn, textons = preset["cnn"], preset["rcn"], preset["textons"]
    stacks = " / ".join(f"{data['n_stacks'][p]} ({data['n_patients'][p]})" for p in data["n_stacks"])
    shares = " / ".join(f"{100 * share:.0f} %" for share in data["test_class_shares"])
    fitted = f"{textons['n_fitted']} at most" if textons["n_fitted"] else "all"
    rcn_said = f"{rcn['n_epochs']} epochs of {rcn['batch_size']} stacks a step"
    lines = [
        f"Preset {preset['name']}, seed {preset['seed']}, on {result['device']}.",
        f"Stacks (patients) to train / validate / test: {stacks}; {data['n_slices']} slices, "
        f"{data['n_test_slices']} of them to test ({shares} epidermis / DEJ / dermis)."
        + (f" Taken are about {preset['n_stacks']} stacks of the set." if preset["n_stacks"] else ""),
        f"CNNs: Inception-V3 at {cnn['width']:g} of its width on {cnn['size']} x {cnn['size']} pixels, "
        f"{cnn['n_epochs']} epochs, from scratch; the paper's is of full width.",
        f"Recurrent networks: on the embeddings of one CNN, {rcn_said}; the paper: 200 epochs of 4.",
        f"Textons: learnt from {textons['n_learnt']} training slices at most, fitted on {fitted}.",
        "Every method saw the same split; the snapshot best on the validation stacks was taken. In brackets "
        "the central 95 % of 1000 bootstrap draws over patients. Grey figures are the paper's.",
        f"Data {data['digest'][:16]}, split {data['split_digest'][:16]}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    ]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul><pre>{escape(result['command'])}</pre>"


def _labels(result: dict[str, Any]) -> str:
    keys = [f"{what}_{s}" for what in ("sensitivity", "specificity") for s in STRATA]
    columns = [f"{what} {STRATUM_NAMES[s]}" for what in ("sensitivity", "specificity") for s in STRATA]
    head = ["method", "accuracy %", "paper"]
    for column in columns:
        head += [column, "paper"]
    rows: list[list[Cell]] = []
    block = ""
    blocks = list(dict.fromkeys(method.sees for method in METHODS.values()))
    for method in sorted(result["methods"].values(), key=lambda m: blocks.index(m["sees"])):
        if method["sees"] != block:
            block = method["sees"]
            rows.append([block])
        labels, paper = method["scores"]["labels"], method["paper"]["table_1"]
        row: list[Cell] = [method["title"]]
        for number, key in enumerate(["accuracy", *keys]):
            low, high = labels[f"{key}_interval"]
            row.append(f"{_number(100 * labels[key])} [{_number(100 * low, 1)}, {_number(100 * high, 1)}]")
            row.append(_paper(paper, number, 2))
        rows.append(row)
    return "<h2>Labels (Table 1)</h2>" + _table(head, rows)


def _transitions(result: dict[str, Any]) -> str:
    kinds = [name for name, _, _ in IMPOSSIBLE_TRANSITIONS]
    head = ["method"]
    for kind in [*kinds, "total"]:
        head += [kind.replace("_", " ").replace("dej", "DEJ"), "paper"]
    ordered = sorted(result["methods"].values(), key=lambda m: m["scores"]["impossible"]["total"])
    rows: list[list[Cell]] = []
    for method in ordered:
        found, paper = method["scores"]["impossible"], method["paper"]["table_2"]
        low, high = found["total_interval"]
        row: list[Cell] = [method["title"]]
        for number, kind in enumerate([*kinds, "total"]):
            within = f" [{low:.0f}, {high:.0f}]" if kind == "total" else ""
            row += [f"{found[kind]}{within}", _paper(paper, number, 0)]
        rows.append(row)
    about = (
        f"<p>On raw labels of {result['data']['n_stacks']['test']} stacks; the paper's are counts on 198.</p>"
    )
    return "<h2>Impossible transitions (Table 2)</h2>" + about + _table(head, rows)


def _boundaries(result: dict[str, Any]) -> str:
    head = ["method"]
    for boundary in BOUNDARIES:
        head += [f"{BOUNDARY_NAMES[boundary]} MAE um", "paper", "median um", "missed", "false"]
    rows: list[list[Cell]] = []
    for method in result["methods"].values():
        row: list[Cell] = [method["title"]]
        for k, boundary in enumerate(BOUNDARIES):
            one = method["scores"][boundary]
            for name, what in (("mae_um", "mean"), ("median_um", "median")):
                low, high = one[f"{name}_interval"]
                row.append(f"{_number(one[name])} [{_number(low)}, {_number(high)}]")
                if what == "mean":
                    row.append(_paper(method["paper"]["table_3"], k, 2))
            row += [f"{one['n_missed']} of {one['n']}", str(one["n_false"])]
        rows.append(row)
    about = (
        "<p>After the 3-slice median and the causal maximum. A missed boundary costs the distance to the "
        "farther end of its stack, one that the consensus does not have is counted as false.</p>"
    )
    return "<h2>Boundaries (Table 3)</h2>" + about + _table(head, rows)


def _paired(result: dict[str, Any]) -> str:
    if result["reference"] is None:
        return ""
    units = {"accuracy": (100.0, "accuracy, points"), "impossible": (1.0, "impossible transitions")}
    for boundary in BOUNDARIES:
        units[f"{boundary}_mae_um"] = (1.0, f"{BOUNDARY_NAMES[boundary]} MAE, um")
    head = ["method"]
    for _, unit in units.values():
        head += [unit, "p"]
    rows: list[list[Cell]] = []
    for method in result["methods"].values():
        if method["against_reference"] is None:
            continue
        row: list[Cell] = [method["title"]]
        for name, (factor, _) in units.items():
            one = method["against_reference"][name]
            low, high = (_number(factor * value) for value in one["interval"])
            row += [f"{factor * one['difference']:+.2f} [{low}, {high}]", f"{one['p']:.3f}"]
        rows.append(row)
    title = escape(result["methods"][result["reference"]]["title"])
    about = (
        f"<p>Method minus {title}, both on the same bootstrap draws of patients; p is two-sided and not "
        "corrected for the number of methods.</p>"
    )
    return f"<h2>Differences from {title}</h2>" + about + _table(head, rows)


def _kernels(result: dict[str, Any], figure: bytes | None) -> str:
    if figure is None:
        return ""
    rows: list[list[Cell]] = [
        [m["title"], ", ".join(f"{weight:.3f}" for weight in m["kernel"])]
        for m in result["methods"].values()
        if m["kernel"]
    ]
    about = (
        "<p>Weights from D slices shallower to D slices deeper; the paper draws one kernel shifted along the "
        "stack in its Fig. 4 and prints no weights.</p>"
    )
    return (
        "<h2>Attention learned</h2>"
        + about
        + _image(figure, "attention kernels")
        + _table(["method", "weights"], rows)
    )


def _confusions(result: dict[str, Any]) -> str:
    names = [STRATUM_NAMES[s] for s in STRATA]
    head = ["method", *(f"{true} as {found}" for true in names for found in names)]
    rows: list[list[Cell]] = [
        [m["title"], *(str(count) for row in m["scores"]["confusion"] for count in row)]
        for m in result["methods"].values()
    ]
    return "<h2>Confusion matrices</h2><p>Slices, consensus first.</p>" + _table(head, rows)


def _paper(values: Sequence[float] | None, number: int, n_decimals: int) -> Cell:
    return ("" if values is None else f"{values[number]:.{n_decimals}f}", "paper")


def _number(value: float, n_decimals: int = 2) -> str:
    return f"{value:.{n_decimals}f}" if np.isfinite(value) else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    parts = ["<div class=wide><table><tr>", *(f"<th>{escape(name)}</th>" for name in head), "</tr>"]
    for row in rows:
        if len(row) == 1:
            parts.append(f"<tr class=block><td colspan={len(head)}>{escape(str(row[0]))}</td></tr>")
            continue
        parts.append("<tr>")
        for cell in row:
            text, of = cell if isinstance(cell, tuple) else (cell, "")
            parts.append(f"<td{f' class={of}' if of else ''}>{escape(text)}</td>")
        parts.append("</tr>")
    return "".join([*parts, "</table></div>"])


def _image(png: bytes, what: str) -> str:
    return f'<p><img alt="{what}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
