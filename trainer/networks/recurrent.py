"""One recurrent layer, down a stack or both ways, with real recurrent dropout, over stacks of any length.

The cell is a GRU (Cho et al. 2014, in the variant of cuDNN and torch: the reset gate acts after the matrix
product) or a plain tanh RNN (Elman 1990), with torch's parameter names and layout, so that the exported graph
is a standard ONNX GRU with linear_before_reset=1, or RNN.

Recurrent dropout is variational (Gal and Ghahramani 2016), as Keras's `recurrent_dropout` means it: one mask
a sequence and direction, the same at every slice, on the hidden state inside the matrix products only; the
state that is carried on stays whole. torch's own GRU has no such thing, hence this loop.

Sequences count as packed: the upward direction starts at a stack's last real slice, never in the padding.

Shapes: B stacks, N slices (padded), I inputs, H hidden values a direction, D directions (down; or down, up),
G = 3H gates of a GRU (reset, update, candidate), H of a plain RNN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Cell = Literal["gru", "rnn"]


class RecurrentLayer(nn.Module):
    """One layer.

    Parameters
    ----------
    n_inputs
        Values a slice, I.
    n_hidden
        Values a direction, H.
    recurrent_dropout
        Share of the hidden state dropped while training, 0..1 (1 excluded).
    cell
        `gru` or `rnn`.
    bidirectional
        Whether slices below are seen as well as those above.
    """

    def __init__(
        self,
        n_inputs: int,
        n_hidden: int,
        recurrent_dropout: float = 0.0,
        cell: Cell = "gru",
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.recurrent_dropout = recurrent_dropout
        self.cell: Cell = cell
        self.suffixes = ("", "_reverse") if bidirectional else ("",)
        n_gates = n_hidden * (3 if cell == "gru" else 1)
        for suffix in self.suffixes:
            # Keras's initial values: Glorot for the input, orthogonal for the recurrence, zero biases.
            weight_ih = torch.empty(n_gates, n_inputs)
            weight_hh = torch.empty(n_gates, n_hidden)
            nn.init.xavier_uniform_(weight_ih)
            nn.init.orthogonal_(weight_hh)
            self.register_parameter(f"weight_ih_l0{suffix}", nn.Parameter(weight_ih))
            self.register_parameter(f"weight_hh_l0{suffix}", nn.Parameter(weight_hh))
            self.register_parameter(f"bias_ih_l0{suffix}", nn.Parameter(torch.zeros(n_gates)))
            self.register_parameter(f"bias_hh_l0{suffix}", nn.Parameter(torch.zeros(n_gates)))

    @property
    def n_outputs(self) -> int:
        """Values of an encoding: H a direction."""
        return len(self.suffixes) * self.n_hidden

    def _stacked(self, name: str) -> torch.Tensor:
        return torch.stack([self.get_parameter(f"{name}_l0{suffix}") for suffix in self.suffixes])

    def forward(self, x_BNI: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Encode every slice in the light of those above it, and below it where there are two directions.

        Parameters
        ----------
        x_BNI
            Inputs, padded behind each stack's end with anything.
        lengths_B
            Real slices of each stack, 1..N.

        Returns
        -------
        torch.Tensor
            [B, N, DH]: the downward direction, then the upward one; zero in the padding.
        """
        there_BN1, mirror_BN1 = _mirror(lengths_B, x_BNI.shape[1])
        upward = [x_BNI.gather(1, mirror_BN1.expand_as(x_BNI))] if len(self.suffixes) == 2 else []
        inputs_DBNI = torch.stack([x_BNI, *upward])
        weight_ih_DGI, bias_ih_DG = self._stacked("weight_ih"), self._stacked("bias_ih")
        gates_DBNG = torch.einsum("dbni,dgi->dbng", inputs_DBNI, weight_ih_DGI) + bias_ih_DG[:, None, None]
        weight_hh_DHG = self._stacked("weight_hh").transpose(1, 2)
        bias_hh_D1G = self._stacked("bias_hh").unsqueeze(1)
        state_DBH = x_BNI.new_zeros(len(self.suffixes), x_BNI.shape[0], self.n_hidden)
        mask_DBH = functional.dropout(torch.ones_like(state_DBH), self.recurrent_dropout, self.training)
        masked = self.training and self.recurrent_dropout > 0
        step = gru_step if self.cell == "gru" else _rnn_step
        states = []
        for gates_DBG in gates_DBNG.unbind(2):
            seen_DBH = state_DBH * mask_DBH if masked else state_DBH
            state_DBH = step(gates_DBG, torch.baddbmm(bias_hh_D1G, seen_DBH, weight_hh_DHG), state_DBH)
            states.append(state_DBH)
        directions = list(torch.stack(states, 2))
        directions[1:] = [up_BNH.gather(1, mirror_BN1.expand_as(up_BNH)) for up_BNH in directions[1:]]
        return torch.cat(directions, -1) * there_BN1

    def last_states(self, encodings_BNH: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Pick where each direction ended, the last real slice and the first: [B, N, DH] to [B, DH]."""
        stacks_B = torch.arange(len(lengths_B), device=lengths_B.device)
        down_BH = encodings_BNH[stacks_B, lengths_B - 1, : self.n_hidden]
        return torch.cat([down_BH, encodings_BNH[:, 0, self.n_hidden :]], -1)

    def recurrent_l1(self) -> torch.Tensor:
        """Sum of the absolute recurrent weights of all directions (what Keras's L1 regulariser takes)."""
        return self._stacked("weight_hh").abs().sum()


def gru_step(gates: torch.Tensor, recurrent: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """One step of a GRU.

    Parameters
    ----------
    gates, recurrent
        [..., 3H]: what the input and what the state give to reset, update and candidate, biases included.
    state
        [..., H] before the step.
    """
    n_hidden = state.shape[-1]
    reset_update = torch.sigmoid(gates[..., : 2 * n_hidden] + recurrent[..., : 2 * n_hidden])
    reset, update = reset_update.chunk(2, -1)
    candidate = torch.tanh(gates[..., 2 * n_hidden :] + reset * recurrent[..., 2 * n_hidden :])
    return candidate + update * (state - candidate)


def _rnn_step(gates: torch.Tensor, recurrent: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return torch.tanh(gates + recurrent)


def _mirror(lengths_B: torch.Tensor, n_slices: int) -> tuple[torch.Tensor, torch.Tensor]:
    index_1N = torch.arange(n_slices, device=lengths_B.device).unsqueeze(0)
    lengths_B1 = lengths_B.unsqueeze(1)
    there_BN = index_1N < lengths_B1
    mirror_BN = torch.where(there_BN, lengths_B1 - 1 - index_1N, index_1N)
    return there_BN.unsqueeze(2), mirror_BN.unsqueeze(2)
