"""The second task of a CNN: how far below each boundary a slice lies.

Strata say the same of a slice 1 um and one 60 um above the junction. Pictures do not look the same there, and
a CNN that must tell such slices apart should keep in its embedding what the recurrent network can tell depths
by. Its own labels are no better for it (docs/results/default-bundle); what the recurrent network gains has
not been measured apart. The layer that answers is not exported.

A distance d in um is compressed to d / (|d| + 20): differences near a boundary count most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.live_scores import label_boundaries

if TYPE_CHECKING:
    from trainer.data.manifest import DataSet

HALF_WAY_UM = 20.0
"""At this distance the compressed one is a half."""


def compressed_distances(data: DataSet) -> np.ndarray:
    """Compressed distance of every slice below both boundaries, float32 [n_slices, 2]; NaN where not known.

    A boundary that lies beyond the slices is known only where the data set says so (`boundaries_um`).
    """
    stacks = []
    for stack in data.stacks:
        known = stack.boundaries_um or label_boundaries(stack)
        boundaries_um = np.array([np.nan if um is None else um for um in known])
        below_um = stack.z_um[:, None] - boundaries_um
        stacks.append(below_um / (np.abs(below_um) + HALF_WAY_UM))
    return np.concatenate(stacks).astype(np.float32)


def distance_loss(said_B2: torch.Tensor, wanted_B2: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of compressed distances [B, 2], those not known (NaN) left out."""
    known_B2 = ~torch.isnan(wanted_B2)
    squared_B2 = torch.where(known_B2, said_B2 - torch.nan_to_num(wanted_B2), 0.0) ** 2
    return squared_B2.sum() / known_B2.sum().clamp(min=1)
