"""Recipes of the recurrent networks' training.

Two recipes. `paper` is that of Bozkurt et al. 2021 in Keras: Adam at 0.001, 200 epochs of 4 stacks a step, at
most 71 slices, 10 % recurrent dropout, L1 of 0.05 times the plain sum of the absolute recurrent weights, raw
embeddings. `ours` changes what costs accuracy: a small L1, standardised embeddings with dropout, larger steps
with a falling rate, a weight average, embeddings of augmented stacks beside the plain ones. `live` is ours
for stacks that are still being acquired: a segmental network, trained on random parts of stacks in every way
a stack can come (begun lower, cut at any slice, slices missing or of no use, every second slice), by the
likelihood of both boundaries beside that of the labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from trainer.networks.rcn import Architecture
from trainer.recipes import changed, named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.networks.recurrent import Cell


@dataclass(frozen=True)
class RcnRecipe:
    """Everything that decides what an RCN training does, but for the data and the CNN.

    Attributes
    ----------
    attention, half_width, window, cell, bidirectional, n_hidden, segmental
        See `Architecture`.
    n_epochs, batch_size
        Length of training; stacks a step.
    max_slices
        Longer stacks are clipped to their first slices, in training and validation; 0 for no limit. With
        global attention, which needs a limit, longer ones are refused in use.
    learning_rate, falling_rate
        Of Adam; falling: a short rise, then a cosine to 0.
    weight_decay
        Decoupled weight decay.
    recurrent_dropout, input_dropout
        See `RecurrentStrata`.
    recurrent_l1
        Weight of the sum of absolute recurrent weights in the loss.
    label_smoothing
        Share of the target spread over the other strata.
    average_decay
        Of the weight average that is validated and kept; 0 keeps the network itself.
    standardised
        Whether embeddings are shifted and scaled by their mean and deviation over the training slices.
    n_copies
        Augmented copies of every training stack beside the plain one.
    prefixes
        Share of training stacks cut at a random slice, as a daemon sees them.
    dropped_slices
        Largest share of slices left out of a training stack.
    late_starts
        Share of training stacks that begin somewhere in their upper half.
    strides
        Share of the training stacks with narrow steps of which every second slice is taken.
    sparse
        Share of training stacks of which few slices are taken, at any depths, as under advice.
    untrusted
        Share of training slices of no weight.
    segmental_weight
        Weight in the loss of the boundaries' likelihood (nats a stack) beside the labels' (nats a slice).
    seed
        Of everything random.
    """

    attention: Literal["toeplitz", "global", "none"] = "toeplitz"
    half_width: int = 1
    window: int = 0
    cell: Cell = "gru"
    bidirectional: bool = True
    n_hidden: int = 64
    segmental: bool = False
    n_epochs: int = 80
    batch_size: int = 16
    max_slices: int = 0
    learning_rate: float = 2e-3
    falling_rate: bool = True
    weight_decay: float = 0.01
    recurrent_dropout: float = 0.2
    input_dropout: float = 0.4
    recurrent_l1: float = 1e-5
    label_smoothing: float = 0.05
    average_decay: float = 0.98
    standardised: bool = True
    n_copies: int = 1
    prefixes: float = 0.0
    dropped_slices: float = 0.0
    late_starts: float = 0.0
    strides: float = 0.0
    sparse: float = 0.0
    untrusted: float = 0.0
    segmental_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.architecture  # what cannot be built is refused before slices are embedded for it

    @property
    def architecture(self) -> Architecture:
        """The network this recipe trains."""
        return Architecture(**{field.name: getattr(self, field.name) for field in fields(Architecture)})


OURS = RcnRecipe()
PAPER = RcnRecipe(
    n_epochs=200,
    batch_size=4,
    max_slices=71,
    learning_rate=1e-3,
    falling_rate=False,
    weight_decay=0.0,
    recurrent_dropout=0.1,
    input_dropout=0.0,
    recurrent_l1=0.05,
    label_smoothing=0.0,
    average_decay=0.0,
    standardised=False,
    n_copies=0,
)
LIVE = replace(
    OURS,
    segmental=True,
    n_epochs=150,
    learning_rate=1.5e-3,
    prefixes=0.75,
    dropped_slices=0.3,
    late_starts=0.3,
    strides=0.3,
    sparse=0.15,
    untrusted=0.05,
    segmental_weight=0.2,
)
LIVE_FIELDS = {
    name: value
    for name, value in asdict(LIVE).items()
    if name not in ("n_epochs", "batch_size", "n_copies", "seed")
}
"""What makes a recipe that of a live network, whatever else it is."""
PRESETS = {"ours": OURS, "paper": PAPER, "live": LIVE}


def preset(
    name: str, method: Mapping[str, Any] | None = None, **changes: float | int | str | None
) -> RcnRecipe:
    """Take a preset, make it a method's, and change what is not None.

    Parameters
    ----------
    name
        `ours`, `paper` or `live`.
    method
        Fields that make the recipe one of `trainer.methods`.
    changes
        Fields to change in the end.

    Raises
    ------
    DataSetError
        If there is no such preset.
    """
    return changed(changed(named(PRESETS, name), **(method or {})), **changes)
