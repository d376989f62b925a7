"""Figures of a comparison as PNG: error histograms (Fig. 2 of Bozkurt et al. 2021) and attention kernels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.records import BOUNDARIES
from trainer.markdown_tables import BOUNDARY_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BIN_UM = 3.0
FARTHEST_UM = 45.0


def error_histograms(result: dict[str, Any]) -> bytes:
    """Draw signed errors of both boundaries, a row a method, the smallest mean absolute error on top."""
    from matplotlib.figure import Figure

    methods = result["methods"]
    first = BOUNDARIES[0]

    def mae_um(name: str) -> float:
        value = float(methods[name]["scores"][first]["mae_um"])
        return value if np.isfinite(value) else float("inf")

    names = sorted(methods, key=mae_um)
    figure = Figure(figsize=(9, 0.8 + 0.75 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, sharex=True, squeeze=False)
    edges = np.arange(-FARTHEST_UM - BIN_UM / 2, FARTHEST_UM + BIN_UM, BIN_UM)
    for row, name in zip(axes, names, strict=True):
        for axis, boundary in zip(row, BOUNDARIES, strict=True):
            errors = np.clip(methods[name]["signed_errors_um"][boundary], -FARTHEST_UM, FARTHEST_UM)
            axis.hist(errors, edges, color="#4a7fb5")
            axis.plot(errors, np.zeros(len(errors)), "|", color="black", markersize=6)
            axis.axvline(0, color="red", linewidth=1)
            axis.set_ylim(bottom=0)
            missed = f"{methods[name]['scores'][boundary]['n_missed']} missed"
            axis.text(0.01, 0.93, missed, fontsize=7, va="top", transform=axis.transAxes)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(methods[name]["title"], rotation=0, ha="right", va="center", fontsize=8)
    for axis, boundary in zip(axes[0], BOUNDARIES, strict=True):
        axis.set_title(f"{BOUNDARY_NAMES[boundary]} boundary", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("found minus consensus depth, um (positive: too deep)", fontsize=8)
    return _png(figure)


def attention_kernels(result: dict[str, Any]) -> bytes | None:
    """Draw the Toeplitz kernels learned; None where no method has one."""
    from matplotlib.figure import Figure

    shown = {n: m for n, m in result["methods"].items() if len(m["kernel"]) > 1}
    if not shown:
        return None
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, method in zip(axes, shown.values(), strict=True):
        reach = len(method["kernel"]) // 2
        axis.bar(range(-reach, reach + 1), method["kernel"], color="#4a7fb5")
        axis.set_title(method["title"], fontsize=9)
        axis.set_xlabel("slices deeper", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("weight", fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
