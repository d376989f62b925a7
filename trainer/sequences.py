"""Stacks as padded sequences of embeddings, and a recurrent network measured on them.

Shapes: T slices of all stacks laid end to end, B stacks, N slices (padded), E embedding values, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from rcm_daemon.core.records import STRATA
from trainer.metrics import confusion, impossible_transitions, label_metrics

if TYPE_CHECKING:
    import numpy as np

    from trainer.data.manifest import DataSet
    from trainer.networks.rcn import RecurrentStrata

IGNORED = -100
"""Label of padding, which no loss counts."""


def pad(
    sequences: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad (embeddings, labels) of stacks: [B, N, E], [B, N] with -100 behind their ends, and lengths [B]."""
    embeddings_BNE = torch.nn.utils.rnn.pad_sequence([e for e, _ in sequences], batch_first=True)
    labels_BN = torch.nn.utils.rnn.pad_sequence(
        [labels for _, labels in sequences], batch_first=True, padding_value=IGNORED
    )
    lengths_B = torch.tensor([len(labels) for _, labels in sequences])
    return embeddings_BNE.to(device), labels_BN.to(device), lengths_B.to(device)


class WholeStacks:
    """Whole stacks of one part, padded once, to measure a network on."""

    def __init__(
        self,
        data: DataSet,
        embeddings_TE: torch.Tensor,
        stacks: np.ndarray,
        max_slices: int,
        device: torch.device,
    ) -> None:
        sequences = []
        for index in stacks.tolist():
            stop = data.stacks[index].n_slices
            stop = min(stop, max_slices) if max_slices else stop
            start = int(data.starts[index])
            sequences.append(
                (embeddings_TE[start : start + stop], torch.from_numpy(data.stacks[index].labels[:stop]))
            )
        self.embeddings_BNE, self.labels_BN, self.lengths_B = pad(sequences, device)

    @torch.inference_mode()
    def measure(self, network: RecurrentStrata) -> dict[str, float]:
        """Loss, accuracy, impossible transitions and sensitivities of a network on these stacks."""
        logits_BNK = network.eval()(self.embeddings_BNE, self.lengths_B)
        loss = functional.cross_entropy(
            logits_BNK.flatten(0, 1), self.labels_BN.flatten(), ignore_index=IGNORED
        )
        there = (self.labels_BN != IGNORED).cpu().numpy()
        predicted = logits_BNK.argmax(2).cpu().numpy()
        metrics = label_metrics(confusion(self.labels_BN.cpu().numpy()[there], predicted[there]))
        impossible = impossible_transitions([row[mask] for row, mask in zip(predicted, there, strict=True)])
        values = {
            "loss": loss.item(),
            "accuracy": metrics["accuracy"],
            "impossible": float(impossible["total"]),
        }
        values.update({f"sensitivity_{stratum}": metrics[f"sensitivity_{stratum}"] for stratum in STRATA})
        return values
