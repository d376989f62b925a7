"""A trained CNN that another one learns from: knowledge distillation (Hinton et al. 2015, temperature 1).

The student sees a random view of a slice and is to say what the teacher says of that very view (Beyer et al.
2022: the two must see the same). Near a boundary the consensus label says one stratum and the picture says
two; the teacher's probabilities tell the student so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rcm_daemon.errors import DataSetError
from trainer.networks.preprocess import resize

if TYPE_CHECKING:
    from trainer.networks.inception import InceptionStrata


class Teacher:
    """A CNN in evaluation mode, wherever its student is trained.

    Parameters
    ----------
    network
        The trained CNN, of any width and input size.
    n_slices
        Neighbouring slices that its student sees.
    device
        Where both run.

    Raises
    ------
    DataSetError
        If the two see another number of slices.
    """

    def __init__(self, network: InceptionStrata, n_slices: int, device: torch.device) -> None:
        if network.n_slices != n_slices:
            raise DataSetError(
                f"a teacher must see as many slices as its student, {n_slices}, it sees {network.n_slices}"
            )
        self.network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def probabilities(self, field: torch.Tensor) -> torch.Tensor:
        """Map the student's slices [B, S, S] or [B, 3, S, S] (grey levels 0..255) to probabilities [B, 3]."""
        if field.shape[-1] != self.network.size:
            field = resize(field, self.network.size)
        probabilities_BK: torch.Tensor = self.network(field).float().softmax(1)
        return probabilities_BK
