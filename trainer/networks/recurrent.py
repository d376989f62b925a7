"""Bidirectional gated recurrent units with real recurrent dropout, over stacks of different lengths.

Cho et al. 2014, in the variant of cuDNN and torch (the reset gate acts after the matrix product), with
torch's parameter names and layout, so that the exported graph is a standard ONNX GRU with
linear_before_reset=1.

Recurrent dropout is variational (Gal and Ghahramani 2016), as Keras's `recurrent_dropout` means it: one mask
a sequence and direction, the same at every slice, on the hidden state inside the matrix products only; the
state that is carried on stays whole. torch's own GRU has no such thing, hence this loop.

Sequences count as packed: the backward direction starts at a stack's last real slice, never in the padding.

Shapes: B stacks, N slices (padded), I inputs, H hidden values a direction, G = 3H gates (reset, update,
candidate), 2 directions (down, up).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class BidirectionalGru(nn.Module):
    """One bidirectional layer.

    Parameters
    ----------
    n_inputs
        Values a slice, I.
    n_hidden
        Values a direction, H.
    recurrent_dropout
        Share of the hidden state dropped while training, 0..1 (1 excluded).
    """

    def __init__(self, n_inputs: int, n_hidden: int, recurrent_dropout: float = 0.0) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.recurrent_dropout = recurrent_dropout
        for suffix in ("", "_reverse"):
            # Keras's initial values: Glorot for the input, orthogonal for the recurrence, zero biases.
            weight_ih = torch.empty(3 * n_hidden, n_inputs)
            weight_hh = torch.empty(3 * n_hidden, n_hidden)
            nn.init.xavier_uniform_(weight_ih)
            nn.init.orthogonal_(weight_hh)
            self.register_parameter(f"weight_ih_l0{suffix}", nn.Parameter(weight_ih))
            self.register_parameter(f"weight_hh_l0{suffix}", nn.Parameter(weight_hh))
            self.register_parameter(f"bias_ih_l0{suffix}", nn.Parameter(torch.zeros(3 * n_hidden)))
            self.register_parameter(f"bias_hh_l0{suffix}", nn.Parameter(torch.zeros(3 * n_hidden)))

    def _both(self, name: str) -> torch.Tensor:
        return torch.stack([self.get_parameter(f"{name}_l0"), self.get_parameter(f"{name}_l0_reverse")])

    def forward(self, x_BNI: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Encode every slice in the light of those above and below it.

        Parameters
        ----------
        x_BNI
            Inputs, padded behind each stack's end with anything.
        lengths_B
            Real slices of each stack, 1..N.

        Returns
        -------
        torch.Tensor
            [B, N, 2H]: the downward direction, then the upward one; zero in the padding.
        """
        n_hidden = self.n_hidden
        there_BN1, mirror_BN1 = _mirror(lengths_B, x_BNI.shape[1])
        upward_BNI = x_BNI.gather(1, mirror_BN1.expand_as(x_BNI))
        both_2BNI = torch.stack([x_BNI, upward_BNI])
        weight_ih_2GI, bias_ih_2G = self._both("weight_ih"), self._both("bias_ih")
        gates_2BNG = torch.einsum("dbni,dgi->dbng", both_2BNI, weight_ih_2GI) + bias_ih_2G[:, None, None]
        weight_hh_2HG = self._both("weight_hh").transpose(1, 2)
        bias_hh_21G = self._both("bias_hh").unsqueeze(1)
        state_2BH = x_BNI.new_zeros(2, x_BNI.shape[0], n_hidden)
        mask_2BH = functional.dropout(torch.ones_like(state_2BH), self.recurrent_dropout, self.training)
        masked = self.training and self.recurrent_dropout > 0
        states = []
        for gates_2BG in gates_2BNG.unbind(2):
            seen_2BH = state_2BH * mask_2BH if masked else state_2BH
            recurrent_2BG = torch.baddbmm(bias_hh_21G, seen_2BH, weight_hh_2HG)
            reset_update = torch.sigmoid(gates_2BG[..., : 2 * n_hidden] + recurrent_2BG[..., : 2 * n_hidden])
            reset_2BH, update_2BH = reset_update.chunk(2, -1)
            candidate_2BH = torch.tanh(
                gates_2BG[..., 2 * n_hidden :] + reset_2BH * recurrent_2BG[..., 2 * n_hidden :]
            )
            state_2BH = candidate_2BH + update_2BH * (state_2BH - candidate_2BH)
            states.append(state_2BH)
        down_BNH, up_BNH = torch.stack(states, 2)
        up_BNH = up_BNH.gather(1, mirror_BN1.expand_as(up_BNH))
        return torch.cat([down_BNH, up_BNH], -1) * there_BN1

    def recurrent_l1(self) -> torch.Tensor:
        """Sum of the absolute recurrent weights of both directions (what Keras's L1 regulariser takes)."""
        return self._both("weight_hh").abs().sum()


def _mirror(lengths_B: torch.Tensor, n_slices: int) -> tuple[torch.Tensor, torch.Tensor]:
    index_1N = torch.arange(n_slices, device=lengths_B.device).unsqueeze(0)
    lengths_B1 = lengths_B.unsqueeze(1)
    there_BN = index_1N < lengths_B1
    mirror_BN = torch.where(there_BN, lengths_B1 - 1 - index_1N, index_1N)
    return there_BN.unsqueeze(2), mirror_BN.unsqueeze(2)
