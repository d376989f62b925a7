"""Bundles that the trainer exports, from networks that were drawn and never trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from trainer.export import export_bundle
from trainer.methods import METHODS
from trainer.networks.inception import InceptionStrata
from trainer.networks.rcn import RecurrentStrata
from trainer.rcn_recipe import preset
from trainer.run_folder import save_checkpoint, state_digest
from trainer.train_cnn import CNN_SCHEMA, CnnRecipe
from trainer.train_rcn import RCN_SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

ABOUT = {"data_digest": "d" * 64, "split_digest": "s" * 64, "seed": 0, "command": "none", "phantom": True}


def write_seeded_bundle(folder: Path, name: str) -> Path:
    """Draw the network of a method of the comparison and export it to `folder`/bundle."""
    method = METHODS[name]
    recipe = CnnRecipe(width=0.125, size=75, **(method.changes if method.trained_by == "cnn" else {}))
    torch.manual_seed(0)
    cnn = InceptionStrata(recipe.width, recipe.size, recipe.dropout, recipe.n_slices)
    _save(folder / "cnn.pt", CNN_SCHEMA, recipe, cnn, {})
    pair = None
    if method.trained_by == "rcn":
        rcn_recipe = preset("ours", method.changes)
        rcn = RecurrentStrata(rcn_recipe.architecture)
        pair = folder / "rcn.pt"
        _save(pair, RCN_SCHEMA, rcn_recipe, rcn, {"cnn_digest": state_digest(cnn.state_dict())})
    export_bundle(folder / "cnn.pt", pair, folder / "bundle", name=name)
    return folder / "bundle"


def _save(path: Path, schema: str, recipe: Any, network: torch.nn.Module, about: dict[str, str]) -> None:
    content = {"schema": schema, "recipe": asdict(recipe), "provenance": {**ABOUT, **about}}
    save_checkpoint(path, {**content, "network": network.state_dict(), "metrics": {}})
