"""Toeplitz attention of Bozkurt et al. 2021: one learned kernel over neighbouring slices.

Our kernel is their a: 2D+1 non-negative weights that sum to one, here the softmax of free logits. At the ends
of a stack, where a neighbour is missing, the remaining weights are scaled to sum to one again: live, the
newest slice always stands at an end.

Shapes: B stacks, N slices (padded), H encoding values, W = 2D+1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


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
