"""The recurrent network over a stack's embeddings: encoder, attention, decoder (Bozkurt et al. 2021).

The decoder is one fully connected layer over [context, its own class probabilities at the slice above]; the
feedback is the soft output, zeros above the first slice, in training as in use (no teacher forcing).

Shapes: B stacks, N slices (padded), E embedding values (256), H hidden values a direction, K classes (3).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from trainer.networks.attention import ToeplitzAttention
from trainer.networks.inception import EMBEDDING_SIZE, N_CLASSES
from trainer.networks.recurrent import BidirectionalGru

RCN_INPUTS = ("embeddings",)
"""Inputs of the exported graph, as a bundle's manifest lists them."""


class RecurrentStrata(nn.Module):
    """Class scores of every slice from the embeddings of its stack.

    Parameters
    ----------
    half_width
        D of the Toeplitz attention, 0 for the identity.
    n_hidden
        Hidden values a direction.
    recurrent_dropout, input_dropout
        Shares dropped while training: of the hidden state, and of the embeddings' values.
    """

    input_mean: torch.Tensor
    input_scale: torch.Tensor

    def __init__(
        self, half_width: int, n_hidden: int = 64, recurrent_dropout: float = 0.0, input_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.zeros(EMBEDDING_SIZE))
        self.register_buffer("input_scale", torch.ones(EMBEDDING_SIZE))
        self.input_dropout = nn.Dropout(input_dropout)
        self.encoder = BidirectionalGru(EMBEDDING_SIZE, n_hidden, recurrent_dropout)
        self.attention = ToeplitzAttention(half_width)
        self.decoder = nn.Linear(2 * n_hidden + N_CLASSES, N_CLASSES)
        nn.init.xavier_uniform_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, embeddings_BNE: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Score every slice.

        Parameters
        ----------
        embeddings_BNE
            Embeddings from shallow to deep, padded behind each stack's end.
        lengths_B
            Real slices of each stack, 1..N.

        Returns
        -------
        torch.Tensor
            Logits [B, N, K]; their softmax are the probabilities. What stands in the padding means nothing.
        """
        scaled_BNE = (embeddings_BNE - self.input_mean) / self.input_scale
        encodings_BNH = self.encoder(self.input_dropout(scaled_BNE), lengths_B)
        index_1N = torch.arange(embeddings_BNE.shape[1], device=lengths_B.device).unsqueeze(0)
        there_BN1 = (index_1N < lengths_B.unsqueeze(1)).unsqueeze(2)
        contexts_BNH = self.attention(encodings_BNH, there_BN1)
        return self.decode(contexts_BNH)

    def decode(self, contexts_BNH: torch.Tensor) -> torch.Tensor:
        """Turn contexts [B, N, 2H] into logits [B, N, K], slice after slice."""
        n_context = contexts_BNH.shape[2]
        forward_BNK = functional.linear(contexts_BNH, self.decoder.weight[:, :n_context], self.decoder.bias)
        feedback_KK = self.decoder.weight[:, n_context:].T
        previous_BK = contexts_BNH.new_zeros(contexts_BNH.shape[0], N_CLASSES)
        logits = []
        for scores_BK in forward_BNK.unbind(1):
            logits_BK = torch.addmm(scores_BK, previous_BK, feedback_KK)
            previous_BK = torch.softmax(logits_BK, -1)
            logits.append(logits_BK)
        return torch.stack(logits, 1)
