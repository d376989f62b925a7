"""Attention of Bozkurt et al. 2021: each slice's context is a weighted sum of the stack's encodings.

Toeplitz attention is one learned kernel over neighbouring slices. Our kernel is their a: 2D+1 non-negative
weights that sum to one, here the softmax of free logits. At the ends of a stack, where a neighbour is
missing, the remaining weights are scaled to sum to one again: live, the newest slice always stands at an end.

Global attention weighs every slice of the stack.

Shapes: B stacks, N slices (padded), H encoding values, W = 2D+1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from rcm_daemon.errors import DataSetError


class ToeplitzAttention(nn.Module):
    """Convex combination of each slice's encoding with those of its neighbours.

    Parameters
    ----------
    half_width
        D, neighbours on either side; at 0 the encodings pass unchanged.
    """

    def __init__(self, half_width: int) -> None:
        super().__init__()
        self.half_width = half_width
        # A start that leans on the slice itself: a flat one blurs the encodings before they mean anything.
        offsets = torch.arange(-half_width, half_width + 1).abs().float()
        self.logits = nn.Parameter(-offsets)

    def kernel(self) -> torch.Tensor:
        """Weights [2D+1] from D slices shallower to D slices deeper; non-negative, summing to one."""
        return torch.softmax(self.logits, 0)

    def forward(self, encodings_BNH: torch.Tensor, there_BN1: torch.Tensor) -> torch.Tensor:
        """Mix encodings over depth.

        Parameters
        ----------
        encodings_BNH
            Encodings of every slice.
        there_BN1
            True for real slices, False for padding, which weighs nothing.

        Returns
        -------
        torch.Tensor
            Contexts [B, N, H]; zero in the padding.
        """
        if self.half_width == 0:
            return encodings_BNH * there_BN1
        kernel_11W = self.kernel().view(1, 1, -1)
        n_stacks, n_slices, n_values = encodings_BNH.shape
        real_BN1 = there_BN1.to(encodings_BNH.dtype)
        rows = (encodings_BNH * real_BN1).transpose(1, 2).reshape(n_stacks * n_values, 1, n_slices)
        mixed = functional.conv1d(rows, kernel_11W, padding=self.half_width)
        total_B1N = functional.conv1d(real_BN1.transpose(1, 2), kernel_11W, padding=self.half_width)
        mixed_BNH = mixed.view(n_stacks, n_values, n_slices).transpose(1, 2)
        return mixed_BNH / total_B1N.transpose(1, 2).clamp(min=1e-9) * real_BN1


class GlobalAttention(nn.Module):
    """Weights over all slices of the stack, from each slice's own encoding.

    The paper's attention vector a_n comes from a multi-layer perceptron of h_n alone (location-based
    attention of Luong et al. 2015), so it has a fixed number of places: one for each slice of the longest
    stack. Places behind a stack's end weigh nothing, the softmax runs over the real ones. One hidden tanh
    layer: the paper does not say how many.

    Parameters
    ----------
    n_values
        Values of an encoding, H.
    n_hidden
        Values of the perceptron's hidden layer.
    max_slices
        M, slices of the longest stack.
    """

    def __init__(self, n_values: int, n_hidden: int, max_slices: int) -> None:
        super().__init__()
        self.max_slices = max_slices
        self.hidden = nn.Linear(n_values, n_hidden)
        self.places = nn.Linear(n_hidden, max_slices)
        for layer in (self.hidden, self.places):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, encodings_BNH: torch.Tensor, there_BN1: torch.Tensor) -> torch.Tensor:
        """Mix encodings over the whole stack; arguments and result as in `ToeplitzAttention`, N at most M.

        Raises
        ------
        DataSetError
            If a stack is longer than M.
        """
        n_slices = encodings_BNH.shape[1]
        if n_slices > self.max_slices:
            raise DataSetError(
                f"global attention takes stacks of at most {self.max_slices} slices, got {n_slices}"
            )
        logits_BNN = self.places(torch.tanh(self.hidden(encodings_BNH)))[..., :n_slices]
        weights_BNN = torch.softmax(logits_BNN.masked_fill(~there_BN1.transpose(1, 2), -torch.inf), -1)
        return weights_BNN @ encodings_BNH * there_BN1
