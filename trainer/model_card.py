"""The model card of a bundle: what it is, what it was trained on, how good it was, what it is not for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rcm_daemon.bundle.manifest import NOTICE
from trainer.rcn_recipe import RcnRecipe

if TYPE_CHECKING:
    from rcm_daemon.core.estimator import EstimatorParameters

CELLS = {"gru": "GRU", "rnn": "plain RNN"}


def notice_of(phantom: bool) -> str:
    """Words that stand on everything made from a data set, of phantoms or not."""
    return NOTICE if phantom else NOTICE.split(", ", 1)[1]


def model_card(
    name: str,
    version: str,
    checkpoints: dict[str, dict[str, Any]],
    provenance: dict[str, Any],
    notice: str,
    parity: dict[str, float],
    estimator: EstimatorParameters | None = None,
) -> str:
    """Write the card as Markdown.

    Parameters
    ----------
    name, version
        Of the bundle.
    checkpoints
        The CNN's and, where there is one, the RCN's.
    provenance
        As in the bundle's manifest.
    notice
        The bundle's notice.
    parity
        Largest differences between torch and ONNX Runtime.
    estimator
        Of a bundle that has one.
    """
    recipe = checkpoints["cnn"]["recipe"]
    about = checkpoints["cnn"]["provenance"]
    on_phantoms = "phantoms" in notice
    source = "labelled stacks supplied by whoever trained it"
    if on_phantoms:
        source = "simulated stacks (phantoms); no image of a patient was used, and\n"
        source += "nothing here says how it does on one"
    recipes = "\n".join(
        f"- {network.upper()}: " + ", ".join(f"{key} {value}" for key, value in checkpoint["recipe"].items())
        for network, checkpoint in checkpoints.items()
    )
    metrics = "\n".join(f"| {key} | {value:.4g} |" for key, value in provenance["metrics"].items())
    commands = "\n".join(provenance["commands"])
    return f"""# {name} {version}

**{notice[0].upper()}{notice[1:]}.**

## What it does

Labels the slices of a reflectance confocal microscopy stack of skin as epidermis, dermal-epidermal
junction (DEJ) or dermis. {_labelling(checkpoints)}
The slices go through a {recipe.get("n_slices", 1)}-channel Inception-V3 of width {recipe["width"]:g} at
{recipe["size"]} x {recipe["size"]} pixels, to 256 values each.{_estimating(estimator)}

After Bozkurt et al., "Skin strata delineation in reflectance confocal microscopy images using recurrent
convolutional networks with attention", Scientific Reports 11:12576 (2021).

## Training data

Trained on {source}.
Data digest {provenance["data_digest"][:16]}, split digest {about["split_digest"][:16]}, split by patient.
Labels are the consensus of {"two simulated" if on_phantoms else "the"} readers.{_lineage(checkpoints)}

## How good it is

On the validation patients, which chose the snapshot (so these numbers are somewhat too kind; the report
of `rcm-trainer evaluate` on unseen stacks is the one to quote):

| metric | value |
|---|---|
{metrics}

ONNX Runtime agrees with torch to {parity["embeddings"]:.1e} of the largest embedding value and, from the same
embeddings, to {max(parity[key] for key in parity if key != "embeddings"):.1e} in probability.
{_calibration(estimator)}
## What it is not for

- Not a medical device: no diagnosis, no treatment, no patient management may rest on it.
- {"Never validated on real skin. " if on_phantoms else ""}A depth it gives is an aid to choosing where to
  image, to be looked at by whoever operates the microscope.
- Its answers are probabilities of labels, not of disease; it says nothing about lesions.
- Stacks that start below the junction, are not skin, or come from another kind of microscope are outside
  its training.

## Recipes and commands

{recipes}

```
{commands}
```
"""


def _estimating(estimator: EstimatorParameters | None) -> str:
    if estimator is None:
        return ""
    first, second = estimator.found_probability
    return f"""
Labels, depths and 90 % intervals of both boundaries follow from one posterior, in which no stratum lies out
of order. Epidermis-DEJ counts as found from a probability of {first:g}, DEJ-dermis
from {second:g}.{_kept(estimator)}"""


def _kept(estimator: EstimatorParameters) -> str:
    if not estimator.for_good:
        return ""
    return "\nWhat was first said of a boundary is kept for good, whatever slices below it say."


def _calibration(estimator: EstimatorParameters | None) -> str:
    if estimator is None or estimator.is_calibrated:
        return ""
    return """
**Its intervals are not calibrated**: nobody knows how many of them hold the boundary.
`rcm-trainer calibrate`, before the export, fits them to patients that nothing else was fitted to.
"""


def _lineage(checkpoints: dict[str, dict[str, Any]]) -> str:
    text = "".join(
        f"\nThe {network.upper()} was fine-tuned: it started from {checkpoint['provenance']['started_from']}."
        for network, checkpoint in checkpoints.items()
        if "started_from" in checkpoint["provenance"]
    )
    if teacher := checkpoints["cnn"]["provenance"].get("teacher_digest"):
        share = checkpoints["cnn"]["recipe"]["teacher_weight"]
        text += f"\nThe CNN learned from a larger one, {teacher[:16]}, which has {share:.0%} of the say."
    return text


def _labelling(checkpoints: dict[str, dict[str, Any]]) -> str:
    if checkpoints["cnn"]["recipe"].get("n_slices", 1) > 1:
        return "Each slice is labelled by a CNN that sees it between its two neighbours (replay only)."
    if "rcn" not in checkpoints:
        return "Each slice is labelled on its own, by the CNN's head."
    network = RcnRecipe(**checkpoints["rcn"]["recipe"]).architecture
    encoder = f"A {'bidirectional' if network.bidirectional else 'unidirectional'} {CELLS[network.cell]}"
    if network.window:
        return f"{encoder} over each slice\nand its neighbours, {network.window} slices, labels it."
    how = {
        "toeplitz": f" with Toeplitz attention (D = {network.half_width}) and a decoder that sees\n"
        "its own previous answer",
        "global": " with global attention and a GRU decoder that sees its own previous\nanswer",
        "none": "",
    }
    limit = f", at most {network.max_slices}" if network.attention == "global" else ""
    return f"{encoder}{how[network.attention]} labels\nall slices of the stack seen so far{limit}."
