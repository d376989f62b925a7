"""Exponential moving average of a network, running statistics included."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class WeightAverage(Generic[Network]):
    """A slowly following copy of a network, the one that is validated and shipped.

    Batch norm's running statistics swing from epoch to epoch when the data are few; they are averaged like
    the weights, so that the copy's statistics belong to its weights.

    Parameters
    ----------
    network
        The network in training.
    decay
        Share of the old average kept at each step; smaller in the first steps, (1 + t) / (10 + t).
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network: Network = copy.deepcopy(network).eval()
        self.decay = decay
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, n_steps: int) -> None:
        """Move the average towards `network` after its step number `n_steps` (from 1)."""
        decay = min(self.decay, (1 + n_steps) / (10 + n_steps))
        averaged, latest = [], []
        for mine, its in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                averaged.append(mine)
                latest.append(its)
            else:
                mine.copy_(its)
        torch._foreach_lerp_(averaged, latest, 1 - decay)
