"""The two-boundary (segmental) likelihood a recurrent network's evidence is trained by.

What `rcm_daemon.core.posterior` computes for one stack, here for a batch, with gradients, and with the prior
as parameters: the log probability of the pair of gaps in which the readers' boundaries lie. Trained as one
likelihood, the evidence of neighbouring slices learns how far it repeats itself; the probabilities of single
slices, multiplied, would count it again and again.

Shapes: B stacks, N slices (padded), G = N + 1 gaps, R = G + N_ABOVE - 1 places of the first boundary, K
strata.
"""

from __future__ import annotations

import torch
from torch import nn

from rcm_daemon.core.posterior import LONE_UM, N_ABOVE, WIDEST_UM, BoundaryPrior

FIRST_PRIOR = BoundaryPrior(
    start_um=50.0, start_scale_um=15.0, thickness_um=45.0, thickness_scale_um=9.0, thinnest_um=5.0
)
WEAKEST_START_SCALE_UM = 12.0
"""The prior on epidermis-DEJ stays at least this wide: other operators begin at other depths."""
FAR_UM = 1e4


class SegmentalLikelihood(nn.Module):
    """Prior of both boundaries with learned locations and scales, and the likelihood under it.

    Parameters
    ----------
    first
        Where the parameters start; `thinnest_um` stays.
    """

    def __init__(self, first: BoundaryPrior = FIRST_PRIOR) -> None:
        super().__init__()
        self.thinnest_um = first.thinnest_um
        # As logarithms, so that one learning rate fits depths in um and the network's weights.
        self.log_start = nn.Parameter(torch.tensor(first.start_um).log())
        self.log_thickness = nn.Parameter(torch.tensor(first.thickness_um).log())
        spread = first.start_scale_um - WEAKEST_START_SCALE_UM
        self.log_start_spread = nn.Parameter(torch.tensor(spread).log())
        self.log_thickness_scale = nn.Parameter(torch.tensor(first.thickness_scale_um).log())

    def prior(self) -> BoundaryPrior:
        """Return the prior as learned so far."""
        return BoundaryPrior(
            self.log_start.exp().item(),
            WEAKEST_START_SCALE_UM + self.log_start_spread.exp().item(),
            self.log_thickness.exp().item(),
            self.log_thickness_scale.exp().item(),
            self.thinnest_um,
        )

    def forward(
        self,
        evidence_BNK: torch.Tensor,
        z_um_BN: torch.Tensor,
        weight_BN: torch.Tensor,
        labels_BN: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> torch.Tensor:
        """Log probability [B] of each stack's own pair of gaps, 0 where the prior rules it out.

        Parameters
        ----------
        evidence_BNK
            Nats a um.
        z_um_BN, weight_BN, labels_BN
            Depths (rising), trust and strata (never falling) of the slices; anything in the padding.
        lengths_B
            Real slices of each stack.
        """
        index_N = torch.arange(z_um_BN.shape[1], device=z_um_BN.device)
        there_BN = index_N < lengths_B.unsqueeze(1)
        shares_BN = depth_shares_um(z_um_BN, lengths_B) * weight_BN * there_BN
        summed_BGK = nn.functional.pad((evidence_BNK * shares_BN.unsqueeze(2)).cumsum(1), (0, 0, 1, 0))
        first_BG = summed_BGK[..., 0] - summed_BGK[..., 1]
        second_BG = summed_BGK[..., 1] - summed_BGK[..., 2]
        first_BR = torch.cat([first_BG[:, :1].expand(-1, N_ABOVE - 1), first_BG], 1)
        mass_BRG = self._prior_mass(z_um_BN, lengths_B)
        joint_BRG = first_BR.unsqueeze(2) + second_BG.unsqueeze(1) + mass_BRG.clamp(min=1e-30).log()
        joint_BRG = joint_BRG.masked_fill(mass_BRG <= 0, -torch.inf)
        by_gap_BGG = torch.cat([joint_BRG[:, :N_ABOVE].logsumexp(1, keepdim=True), joint_BRG[:, N_ABOVE:]], 1)
        own_j_B = ((labels_BN < 1) & there_BN).sum(1)
        own_k_B = ((labels_BN < 2) & there_BN).sum(1)
        stacks_B = torch.arange(len(lengths_B), device=lengths_B.device)
        own_B = by_gap_BGG[stacks_B, own_j_B, own_k_B]
        # A junction thinner than any the prior knows teaches nothing.
        possible_B = torch.isfinite(own_B)
        own_B = torch.where(possible_B, own_B, torch.zeros_like(own_B))
        return torch.where(possible_B, own_B - by_gap_BGG.flatten(1).logsumexp(1), torch.zeros_like(own_B))

    def _prior_mass(self, z_um_BN: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        last_B1 = (lengths_B - 1).unsqueeze(1)
        index_1N = torch.arange(z_um_BN.shape[1], device=z_um_BN.device).unsqueeze(0)
        below_BN = z_um_BN - z_um_BN[:, :1]
        deepest_B1 = below_BN.gather(1, last_B1)
        # Gaps in the padding have no width: they lie at the newest slice and have no mass.
        below_BN = torch.where(index_1N <= last_B1, below_BN, deepest_B1)
        start_scale = WEAKEST_START_SCALE_UM + self.log_start_spread.exp()
        edges_BN = torch.sigmoid((below_BN - self.log_start.exp()) / start_scale)
        ahead_B1 = 1 - edges_BN[:, -1:]
        inside = edges_BN[:, 1:] - edges_BN[:, :-1]
        mass_above_B4 = edges_BN[:, :1].expand(-1, N_ABOVE) / N_ABOVE
        middle = (below_BN[:, 1:] + below_BN[:, :-1]) / 2
        shares_4 = (torch.arange(N_ABOVE, device=below_BN.device) + 0.5) / N_ABOVE
        above_B4 = (start_scale * shares_4.log()).unsqueeze(0).expand(len(below_BN), -1)
        # Below the newest slice the first boundary has the second one with it.
        place_BR = torch.cat([above_B4, middle, torch.full_like(ahead_B1, FAR_UM)], 1)
        mass_BR = torch.cat([mass_above_B4, inside, ahead_B1], 1)
        scale, thickness_um = self.log_thickness_scale.exp(), self.log_thickness.exp()
        cut = torch.sigmoid((self.thinnest_um - thickness_um) / scale)
        distance_BRN = below_BN.unsqueeze(1) - place_BR.unsqueeze(2)
        within_BRN = (torch.sigmoid((distance_BRN - thickness_um) / scale) - cut).clamp(min=0) / (1 - cut)
        nothing, all_of_it = torch.zeros_like(within_BRN[..., :1]), torch.ones_like(within_BRN[..., :1])
        shares_BRG = torch.diff(within_BRN, dim=2, prepend=nothing, append=all_of_it)
        mass_BRG = shares_BRG * mass_BR.unsqueeze(2)
        return _gather_ends(mass_BRG, lengths_B)


def depth_shares_um(z_um_BN: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Depth each slice stands for, as `rcm_daemon.core.posterior.depth_shares_um`; [B, N]."""
    index_1N = torch.arange(z_um_BN.shape[1], device=z_um_BN.device).unsqueeze(0)
    gaps = z_um_BN[:, 1:] - z_um_BN[:, :-1]
    above_BN = torch.cat([gaps[:, :1], gaps], 1) if gaps.shape[1] else torch.zeros_like(z_um_BN)
    below_BN = torch.cat([gaps, gaps[:, -1:]], 1) if gaps.shape[1] else torch.zeros_like(z_um_BN)
    is_last = index_1N == (lengths_B - 1).unsqueeze(1)
    below_BN = torch.where(is_last, above_BN, below_BN)
    shares_BN = ((above_BN + below_BN) / 2).clamp(max=WIDEST_UM)
    return torch.where((lengths_B == 1).unsqueeze(1), torch.full_like(shares_BN, LONE_UM), shares_BN)


def _gather_ends(mass_BRG: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Put what lies below each stack's newest slice, last in both dimensions, into the stack's own gap n."""
    gaps = mass_BRG.shape[2]
    index_G = torch.arange(gaps, device=mass_BRG.device)
    # Columns: gap n of a stack takes the last column, those behind it nothing.
    source_BG = torch.where(index_G == lengths_B.unsqueeze(1), gaps - 1, index_G.unsqueeze(0))
    moved = mass_BRG.gather(2, source_BG.unsqueeze(1).expand_as(mass_BRG))
    moved = moved * (index_G <= lengths_B.unsqueeze(1)).unsqueeze(1)
    rows = mass_BRG.shape[1]
    index_R = torch.arange(rows, device=mass_BRG.device)
    last_row_B1 = (lengths_B + N_ABOVE - 1).unsqueeze(1)
    source_BR = torch.where(index_R == last_row_B1, rows - 1, index_R.unsqueeze(0))
    moved = moved.gather(1, source_BR.unsqueeze(2).expand_as(moved))
    return moved * (index_R <= last_row_B1).unsqueeze(2)
