"""Every method of the comparison, and how each is trained: the rows of Bozkurt et al. 2021, Table 1.

After the table's thirteen come the encoders its discussion mentions, Somoza's textons of the related work,
and ours.
The paper names no hyperparameter that differs between its networks, so a record holds only what makes the
method what it is; a preset gives the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rcm_daemon.errors import DataSetError
from trainer.rcn_recipe import LIVE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.networks.recurrent import Cell

MAX_SLICES = 71
"""The paper's longest sequence, and so the length of its global attention's vector."""
PARTIAL_WINDOW = 3


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes
    ----------
    name
        Plain word for commands and folders.
    title
        The row's name in the paper's tables, or in their manner.
    sees
        What it labels a slice from.
    trained_by
        `cnn` and `rcn`: the commands of that name; `textons`: `trainer.textons`.
    changes
        Fields of `CnnRecipe` or `RcnRecipe` that make it this method; empty for textons.
    """

    name: str
    title: str
    sees: Literal["whole stack", "partial stack", "single image"]
    trained_by: Literal["cnn", "rcn", "textons"]
    changes: Mapping[str, Any] = field(default_factory=dict)


def _toeplitz(half_width: int) -> Method:
    title = f"Toeplitz Att. (D = {half_width})"
    changes = {"attention": "toeplitz", "half_width": half_width}
    return Method(f"toeplitz-{half_width}", title, "whole stack", "rcn", changes)


def _without_attention(cell: Cell, bidirectional: bool, window: int) -> Method:
    changes = {"attention": "none", "cell": cell, "bidirectional": bidirectional, "window": window}
    scheme = "partial" if window else "full"
    name = f"{scheme}-{'bi' if bidirectional else ''}{cell}"
    title = f"{scheme.title()}-Seq. ({'Bidir. ' if bidirectional else ''}{cell.upper()})"
    return Method(name, title, "partial stack" if window else "whole stack", "rcn", changes)


TABLE_1 = (
    *(_toeplitz(half_width) for half_width in (1, 7, 0, 3, 2, 5)),
    Method("global", "Global Att.", "whole stack", "rcn", {"attention": "global", "max_slices": MAX_SLICES}),
    _without_attention("gru", True, 0),
    _without_attention("gru", True, PARTIAL_WINDOW),
    Method("iv3-context", "IV3-Context", "partial stack", "cnn", {"n_slices": PARTIAL_WINDOW}),
    Method("inception-v3", "Inception-V3", "single image", "cnn"),
    Method("hames", "Hames et al.", "single image", "textons"),
    Method("kaur", "Kaur et al.", "single image", "textons"),
)
"""In the paper's order."""
_FEWER: tuple[tuple[Cell, bool], ...] = (("gru", False), ("rnn", True), ("rnn", False))
OTHERS = (
    *(_without_attention(*encoder, window) for window in (0, PARTIAL_WINDOW) for encoder in _FEWER),
    Method("somoza", "Somoza et al.", "single image", "textons"),
    Method("live", "Ours (both boundaries' posterior)", "whole stack", "rcn", LIVE_FIELDS),
)
METHODS = {method.name: method for method in (*TABLE_1, *OTHERS)}


def method_of(name: str | None, trained_by: Literal["cnn", "rcn"]) -> Mapping[str, Any]:
    """Fields of the recipe that make it the method of that name; none without a name.

    Raises
    ------
    DataSetError
        If this command trains no method of that name.
    """
    if name is None:
        return {}
    known = {key: method for key, method in METHODS.items() if method.trained_by == trained_by}
    if name not in known:
        raise DataSetError(f"a method that {trained_by} trains must be one of {', '.join(known)}, got {name}")
    return known[name].changes
