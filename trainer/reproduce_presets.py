"""How far `rcm-trainer reproduce` goes: its presets, and every method's recipe under a preset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainer.data.split import PAPER_SHARES
from trainer.rcn_recipe import OURS, PAPER, RcnRecipe
from trainer.recipes import changed, named
from trainer.train_cnn import CnnRecipe

if TYPE_CHECKING:
    from trainer.methods import Method


@dataclass(frozen=True)
class TextonRecipe:
    """How many slices a texton method learns from; they are spread evenly over the training slices.

    Attributes
    ----------
    n_learnt
        Slices the textons are learnt from.
    n_fitted
        Slices the classifier is fitted on, 0 for all.
    seed
        Of everything random.
    """

    n_learnt: int = 2000
    n_fitted: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """Everything that decides a comparison, but for the data.

    Attributes
    ----------
    name
        Its name, or the one it was changed from.
    n_stacks
        Stacks taken of the data set, whole patients at a time; 0 for all.
    shares
        Of train, validation and test.
    cnn, rcn, textons
        Recipes, before a method makes them its own.
    seed
        Of the stacks taken and of the split.
    """

    name: str
    n_stacks: int
    cnn: CnnRecipe
    rcn: RcnRecipe
    textons: TextonRecipe
    shares: tuple[float, ...] = PAPER_SHARES
    seed: int = 0


QUICK = Preset(
    "quick",
    120,
    CnnRecipe(size=128, n_epochs=25, batch_size=32, average_decay=0.98, norm_momentum=0.05),
    replace(OURS, n_epochs=40, n_copies=0),
    TextonRecipe(n_learnt=200, n_fitted=1000),
)
# What two CPU cores finish in an afternoon on the paper's 504 stacks.
COMPACT = Preset(
    "compact",
    0,
    CnnRecipe(size=128, n_epochs=14),
    replace(OURS, n_epochs=40),
    TextonRecipe(n_learnt=1000, n_fitted=3000),
)
# The paper names neither the CNN's input size nor its training; 299 pixels are Inception-V3's own.
FULL = Preset("paper", 0, CnnRecipe(width=1.0, size=299), PAPER, TextonRecipe())
PRESETS = {"quick": QUICK, "compact": COMPACT, "paper": FULL}


def preset_of(name: str, seed: int, cnn: dict[str, Any], rcn: dict[str, Any], n_stacks: int | None) -> Preset:
    """Take a preset and change what is not None.

    Parameters
    ----------
    name
        `quick` or `paper`.
    seed
        Of everything random.
    cnn, rcn
        Fields of the recipes to change.
    n_stacks
        Stacks to take, 0 for all.

    Raises
    ------
    DataSetError
        If there is no such preset.
    """
    found = named(PRESETS, name)
    return changed(
        found,
        seed=seed,
        n_stacks=n_stacks,
        cnn=changed(found.cnn, **cnn, seed=seed),
        rcn=changed(found.rcn, **rcn, seed=seed),
        textons=changed(found.textons, seed=seed),
    )


def recipe_of(method: Method, preset: Preset, longest: int) -> CnnRecipe | RcnRecipe | TextonRecipe:
    """Give a method's recipe under a preset; global attention takes stacks as long as the longest."""
    if method.trained_by == "textons":
        return preset.textons
    if method.trained_by == "cnn":
        return replace(preset.cnn, **method.changes)
    changes = dict(method.changes)
    if changes.get("attention") == "global":
        changes["max_slices"] = longest
    return replace(preset.rcn, **changes)
