"""Stacks as padded sequences of embeddings, and a recurrent network measured on them.

Shapes: T slices of all stacks laid end to end, B stacks, N slices (padded), E embedding values, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from rcm_daemon.core.records import STRATA
from trainer.metrics import confusion, impossible_transitions, label_metrics

if TYPE_CHECKING:
    from trainer.data.manifest import DataSet
    from trainer.networks.rcn import RecurrentStrata
    from trainer.networks.segmental import SegmentalLikelihood

IGNORED = -100
"""Label of padding, which no loss counts."""


@dataclass(frozen=True)
class Sequence:
    """Slices of one stack from shallow to deep: embeddings [n, E], labels [n], z_um [n], weight [n]."""

    embeddings: torch.Tensor
    labels: torch.Tensor
    z_um: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, data: DataSet, embeddings_TE: torch.Tensor, index: int, kept: np.ndarray) -> Sequence:
        """Take the slices `kept` of a stack, all trusted alike; depths count from the first of them."""
        stack = data.stacks[index]
        z_um = torch.from_numpy(stack.z_um[kept] - stack.z_um[kept[0]]).float()
        rows = torch.from_numpy(int(data.starts[index]) + kept)
        return cls(embeddings_TE[rows], torch.from_numpy(stack.labels[kept]), z_um, torch.ones(len(kept)))


@dataclass(frozen=True)
class Batch:
    """Sequences padded to one length: [B, N, E], [B, N] (labels -100 behind the ends), and lengths [B]."""

    embeddings_BNE: torch.Tensor
    labels_BN: torch.Tensor
    z_um_BN: torch.Tensor
    weight_BN: torch.Tensor
    lengths_B: torch.Tensor

    def run(self, network: RecurrentStrata) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [B, N, K], and the evidence [B, N, K] of a segmental network."""
        if network.architecture.segmental:
            return network.with_evidence(self.embeddings_BNE, self.lengths_B, self.z_um_BN, self.weight_BN)
        return network(self.embeddings_BNE, self.lengths_B), None


def pad(sequences: list[Sequence], device: torch.device) -> Batch:
    """Pad sequences behind their ends."""

    def padded(parts: list[torch.Tensor], value: float = 0.0) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value).to(device)

    return Batch(
        padded([sequence.embeddings for sequence in sequences]),
        padded([sequence.labels for sequence in sequences], IGNORED),
        padded([sequence.z_um for sequence in sequences]),
        padded([sequence.weight for sequence in sequences]),
        torch.tensor([len(sequence.labels) for sequence in sequences]).to(device),
    )


class HeldOut:
    """Stacks of one part, padded once, to measure a network on.

    Parameters
    ----------
    fractions
        The first so much of every stack is one sequence: (1,) for whole stacks.
    """

    def __init__(
        self,
        data: DataSet,
        embeddings_TE: torch.Tensor,
        stacks: np.ndarray,
        max_slices: int,
        device: torch.device,
        fractions: tuple[float, ...] = (1.0,),
    ) -> None:
        sequences = []
        for index in stacks.tolist():
            n_slices = data.stacks[index].n_slices
            n_slices = min(n_slices, max_slices) if max_slices else n_slices
            for fraction in fractions:
                kept = np.arange(max(1, round(fraction * n_slices)))
                sequences.append(Sequence.of(data, embeddings_TE, index, kept))
        self.batch = pad(sequences, device)

    @torch.inference_mode()
    def measure(self, network: RecurrentStrata) -> dict[str, float]:
        """Loss, accuracy, impossible transitions and sensitivities of a network on these sequences.

        `segmental_loss` is in nats a sequence.
        """
        batch = self.batch
        logits_BNK, evidence_BNK = batch.run(network.eval())
        loss = functional.cross_entropy(
            logits_BNK.flatten(0, 1), batch.labels_BN.flatten(), ignore_index=IGNORED
        )
        there = (batch.labels_BN != IGNORED).cpu().numpy()
        predicted = logits_BNK.argmax(2).cpu().numpy()
        metrics = label_metrics(confusion(batch.labels_BN.cpu().numpy()[there], predicted[there]))
        impossible = impossible_transitions([row[mask] for row, mask in zip(predicted, there, strict=True)])
        values = {
            "loss": loss.item(),
            "accuracy": metrics["accuracy"],
            "impossible": float(impossible["total"]),
        }
        if network.likelihood is not None and evidence_BNK is not None:
            values["segmental_loss"] = segmental_loss(network.likelihood, evidence_BNK, batch).item()
        values.update({f"sensitivity_{stratum}": metrics[f"sensitivity_{stratum}"] for stratum in STRATA})
        return values


def segmental_loss(likelihood: SegmentalLikelihood, evidence_BNK: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean negative log probability of the sequences' own boundaries, in nats."""
    logarithm_B: torch.Tensor = likelihood(
        evidence_BNK, batch.z_um_BN, batch.weight_BN, batch.labels_BN, batch.lengths_B
    )
    return -logarithm_B.mean()
