"""The recurrent networks over a stack's embeddings: encoder, attention, decoder (Bozkurt et al. 2021).

One network with switches rather than one class a method, since all share encoder, input scaling and masks:

- Toeplitz attention: the decoder is one fully connected layer over [context, own output at the slice above];
- global attention: a GRU over [context, own output at the slice above], then a fully connected layer;
- no attention (full sequence): one fully connected layer over the encoding, no feedback;
- a window (partial sequence): the encoder runs over each slice's neighbourhood of N slices and the label is
  read off where each direction ends, by one fully connected layer. At the ends of a stack the window is cut,
  as Keras's masking does: neighbours that are not there are skipped, not repeated and not zeros.

Feedback is the soft output, zeros above the first slice, in training as in use (no teacher forcing).

A segmental network, ours for partial stacks, sees beside each embedding how far the neighbouring slices are
and how much the slice is to be trusted, and gives evidence for each stratum in nats a um beside the class
scores: what `rcm_daemon.core.posterior` finds the boundaries from.

Shapes: B stacks, N slices (padded), W slices of a window, E embedding values (256), H hidden values of the
encoder, all directions together, K classes (3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from rcm_daemon.errors import DataSetError
from trainer.networks.attention import GlobalAttention, ToeplitzAttention
from trainer.networks.inception import EMBEDDING_SIZE, N_CLASSES
from trainer.networks.recurrent import Cell, RecurrentLayer, gru_step
from trainer.networks.segmental import SegmentalLikelihood

RCN_INPUTS = ("embeddings",)
SEGMENTAL_INPUTS = ("embeddings", "z_um", "weight")
"""Inputs of the exported graphs, as a bundle's manifest lists them."""

N_SPACING = 3
"""What a segmental network sees beside an embedding: gap above, gap below, weight."""
GAP_UNIT_UM, WIDEST_GAP = 3.0, 10.0
"""Gaps are counted in sections of 3 um, at most ten of them; 0 at an end of the stack."""
STRONGEST_EVIDENCE = 1.0
"""Bound of the evidence in nats a um, so that no network can overflow the posterior."""


@dataclass(frozen=True)
class Architecture:
    """Which of the recurrent networks.

    Attributes
    ----------
    attention
        `toeplitz`, `global` or `none`.
    half_width
        D of the Toeplitz attention, 0 for the identity.
    max_slices
        Slices of the longest stack that global attention takes.
    window
        Slices of the neighbourhood of a partial sequence, odd; 0 for the whole stack.
    cell, bidirectional
        Of the encoder.
    n_hidden
        Hidden values a direction, and of global attention's decoder.
    segmental
        Whether depths and weights are inputs and evidence an output.
    """

    attention: Literal["toeplitz", "global", "none"] = "toeplitz"
    half_width: int = 1
    max_slices: int = 0
    window: int = 0
    cell: Cell = "gru"
    bidirectional: bool = True
    n_hidden: int = 64
    segmental: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs of the exported graph."""
        return SEGMENTAL_INPUTS if self.segmental else RCN_INPUTS

    def __post_init__(self) -> None:
        if self.segmental and (self.window or self.attention == "global"):
            raise DataSetError(
                "a segmental network sees the whole stack, without a window or global attention"
            )
        if self.attention == "global" and self.max_slices < 1:
            raise DataSetError("global attention needs the number of slices of its longest stack, got 0")
        if self.window and (self.window % 2 == 0 or self.attention != "none"):
            raise DataSetError(
                f"a window must be of an odd number of slices and without attention, got {self.window} "
                f"slices and attention {self.attention}"
            )


class RecurrentStrata(nn.Module):
    """Class scores of every slice from the embeddings of its stack.

    Parameters
    ----------
    architecture
        Which network.
    recurrent_dropout, input_dropout
        Shares dropped while training: of the hidden states, and of the embeddings' values.
    """

    input_mean: torch.Tensor
    input_scale: torch.Tensor

    def __init__(
        self, architecture: Architecture, recurrent_dropout: float = 0.0, input_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.recurrent_dropout = recurrent_dropout
        self.register_buffer("input_mean", torch.zeros(EMBEDDING_SIZE))
        self.register_buffer("input_scale", torch.ones(EMBEDDING_SIZE))
        self.input_dropout = nn.Dropout(input_dropout)
        n_hidden = architecture.n_hidden
        n_inputs = EMBEDDING_SIZE + N_SPACING * architecture.segmental
        self.encoder = RecurrentLayer(
            n_inputs, n_hidden, recurrent_dropout, architecture.cell, architecture.bidirectional
        )
        n_context = self.encoder.n_outputs
        self.attention: ToeplitzAttention | GlobalAttention | None = None
        self.decoder_gru: nn.GRUCell | None = None
        n_decoded = n_context
        if architecture.attention == "toeplitz":
            self.attention = ToeplitzAttention(architecture.half_width)
            n_decoded += N_CLASSES
        elif architecture.attention == "global":
            self.attention = GlobalAttention(n_context, n_hidden, architecture.max_slices)
            self.decoder_gru = nn.GRUCell(n_context + N_CLASSES, n_hidden)
            nn.init.xavier_uniform_(self.decoder_gru.weight_ih)
            nn.init.orthogonal_(self.decoder_gru.weight_hh)
            nn.init.zeros_(self.decoder_gru.bias_ih)
            nn.init.zeros_(self.decoder_gru.bias_hh)
            n_decoded = n_hidden
        self.decoder = nn.Linear(n_decoded, N_CLASSES)
        nn.init.xavier_uniform_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)
        self.evidence: nn.Linear | None = None
        self.likelihood: SegmentalLikelihood | None = None
        if architecture.segmental:
            self.likelihood = SegmentalLikelihood()
            self.evidence = nn.Linear(n_context, N_CLASSES)
            nn.init.zeros_(self.evidence.weight)
            nn.init.zeros_(self.evidence.bias)

    def forward(
        self,
        embeddings_BNE: torch.Tensor,
        lengths_B: torch.Tensor,
        z_um_BN: torch.Tensor | None = None,
        weight_BN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Score every slice.

        Parameters
        ----------
        embeddings_BNE
            Embeddings from shallow to deep, padded behind each stack's end.
        lengths_B
            Real slices of each stack, 1..N.
        z_um_BN, weight_BN
            Depths in um and trust 0..1 of a segmental network's slices; others do not look at them.

        Returns
        -------
        torch.Tensor
            Logits [B, N, K]; their softmax are the probabilities. What stands in the padding means nothing.
        """
        return self.decode(self.contexts(embeddings_BNE, lengths_B, z_um_BN, weight_BN))

    def with_evidence(
        self,
        embeddings_BNE: torch.Tensor,
        lengths_B: torch.Tensor,
        z_um_BN: torch.Tensor,
        weight_BN: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score every slice of a segmental network's stacks: logits [B, N, K] and evidence [B, N, K]."""
        if self.evidence is None:
            raise DataSetError("evidence comes from a segmental network, this one is none")
        contexts_BNH = self.contexts(embeddings_BNE, lengths_B, z_um_BN, weight_BN)
        raw_BNK = self.evidence(contexts_BNH)
        return self.decode(contexts_BNH), torch.tanh(raw_BNK / STRONGEST_EVIDENCE) * STRONGEST_EVIDENCE

    def contexts(
        self,
        embeddings_BNE: torch.Tensor,
        lengths_B: torch.Tensor,
        z_um_BN: torch.Tensor | None = None,
        weight_BN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode every slice for the decoder, [B, N, H]; arguments as in `forward`."""
        scaled_BNE = self.input_dropout((embeddings_BNE - self.input_mean) / self.input_scale)
        if self.architecture.segmental:
            if z_um_BN is None or weight_BN is None:
                raise DataSetError("a segmental network needs the depths and weights of its slices")
            spacing_BN3 = torch.cat([gaps(z_um_BN, lengths_B), weight_BN.unsqueeze(2)], 2)
            scaled_BNE = torch.cat([scaled_BNE * weight_BN.unsqueeze(2), spacing_BN3], 2)
        if self.architecture.window:
            return self._encode_windows(scaled_BNE, lengths_B)
        contexts_BNH: torch.Tensor = self.encoder(scaled_BNE, lengths_B)
        if self.attention is not None:
            index_1N = torch.arange(embeddings_BNE.shape[1], device=lengths_B.device).unsqueeze(0)
            there_BN1 = (index_1N < lengths_B.unsqueeze(1)).unsqueeze(2)
            contexts_BNH = self.attention(contexts_BNH, there_BN1)
        return contexts_BNH

    def _encode_windows(self, scaled_BNE: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        n_stacks, n_slices, n_values = scaled_BNE.shape
        reach, device = self.architecture.window // 2, scaled_BNE.device
        index_1N = torch.arange(n_slices, device=device).unsqueeze(0)
        deepest_B1 = lengths_B.unsqueeze(1) - 1
        first_1N = (index_1N - reach).clamp(min=0)
        # Windows in the padding stand at the stack's end: they mean nothing but must hold a slice.
        first_BN = torch.minimum(first_1N, deepest_B1)
        last_BN = torch.minimum(index_1N + reach, deepest_B1)
        place_W = torch.arange(self.architecture.window, device=device)
        taken_BNW = torch.minimum(first_BN.unsqueeze(2) + place_W, last_BN.unsqueeze(2))
        stacks_B11 = torch.arange(n_stacks, device=device).view(-1, 1, 1)
        windows = scaled_BNE[stacks_B11, taken_BNW].view(n_stacks * n_slices, -1, n_values)
        lengths = (last_BN - first_BN + 1).flatten()
        return self.encoder.last_states(self.encoder(windows, lengths), lengths).view(n_stacks, n_slices, -1)

    def decode(self, contexts_BNH: torch.Tensor) -> torch.Tensor:
        """Turn contexts [B, N, H] into logits [B, N, K], slice after slice where there is feedback."""
        if self.architecture.attention == "none":
            logits_BNK: torch.Tensor = self.decoder(contexts_BNH)
            return logits_BNK
        n_stacks, n_context = contexts_BNH.shape[0], contexts_BNH.shape[2]
        previous_BK = contexts_BNH.new_zeros(n_stacks, N_CLASSES)
        logits = []
        if self.decoder_gru is None:
            forward_BNK = functional.linear(
                contexts_BNH, self.decoder.weight[:, :n_context], self.decoder.bias
            )
            feedback_KK = self.decoder.weight[:, n_context:].T
            for scores_BK in forward_BNK.unbind(1):
                logits.append(torch.addmm(scores_BK, previous_BK, feedback_KK))
                previous_BK = torch.softmax(logits[-1], -1)
            return torch.stack(logits, 1)
        gru = self.decoder_gru
        forward_BNG = functional.linear(contexts_BNH, gru.weight_ih[:, :n_context], gru.bias_ih)
        feedback_KG = gru.weight_ih[:, n_context:].T
        state_BH = contexts_BNH.new_zeros(n_stacks, gru.hidden_size)
        mask_BH = functional.dropout(torch.ones_like(state_BH), self.recurrent_dropout, self.training)
        for scores_BG in forward_BNG.unbind(1):
            gates_BG = torch.addmm(scores_BG, previous_BK, feedback_KG)
            recurrent_BG = functional.linear(state_BH * mask_BH, gru.weight_hh, gru.bias_hh)
            state_BH = gru_step(gates_BG, recurrent_BG, state_BH)
            logits.append(self.decoder(state_BH))
            previous_BK = torch.softmax(logits[-1], -1)
        return torch.stack(logits, 1)

    def recurrent_l1(self) -> torch.Tensor:
        """Sum of the absolute recurrent weights, the decoder's with them."""
        total = self.encoder.recurrent_l1()
        return total if self.decoder_gru is None else total + self.decoder_gru.weight_hh.abs().sum()


def gaps(z_um_BN: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Gaps above and below every slice in sections of 3 um, [B, N, 2]; 0 at the ends of a stack."""
    index_N = torch.arange(z_um_BN.shape[1], device=z_um_BN.device)
    gap_BN = (z_um_BN[:, 1:] - z_um_BN[:, :-1]) / GAP_UNIT_UM
    inner_BN = index_N[1:] < lengths_B.unsqueeze(1)
    gap_BN = torch.where(inner_BN, gap_BN.clamp(0, WIDEST_GAP), torch.zeros_like(gap_BN))
    return torch.stack([nn.functional.pad(gap_BN, (1, 0)), nn.functional.pad(gap_BN, (0, 1))], 2)
