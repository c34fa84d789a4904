"""NT-Xent: each view against all other views of the batch (SimCLR)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simcse.objectives.objective import PairObjective
from simcse.objectives.pairwise import among_pairs, checked, normalized_pair
from simcse.objectives.temperature import Temperature


def nt_xent(
    anchor: Tensor, positive: Tensor, temperature: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """Each of the 2·batch views against the other 2·batch - 1, its own pair the positive.

    Args:
        anchor: Floating point, shape ``(batch, dim)``.
        positive: Shape ``(batch, dim)``.
        temperature: > 0.
        mask: Bool, shape ``(batch, batch)``: pairs of rows with the same text, to leave out.

    Raises:
        ValueError: As :func:`~simcse.objectives.info_nce`.

    Source: Chen et al. 2020, SimCLR, equation 1 (https://arxiv.org/abs/2002.05709).
    """
    views = torch.cat(normalized_pair(anchor, positive))  # (2 * batch, dim)
    logits = views @ views.T / checked(temperature)
    batch = len(anchor)
    excluded = torch.eye(2 * batch, dtype=torch.bool, device=views.device)  # oneself
    if mask is not None:
        excluded = excluded | (mask | mask.T).repeat(2, 2)
    logits = logits.masked_fill(excluded, -torch.inf)
    target = torch.arange(2 * batch, device=views.device).roll(batch)
    return functional.cross_entropy(logits, target)


class NTXent(PairObjective):
    """:func:`nt_xent` as a term of a run, or as a loss of its own.

    Args:
        temperature: A number, or one that is scheduled or learned.
    """

    name = "nt_xent"
    formula = "−log( exp(s(i,i⁺)/τ) / Σ_{k≠i} exp(s(i,k)/τ) ), k over all 2N views"
    source = "SimCLR, Chen et al. 2020, https://arxiv.org/abs/2002.05709"

    def __init__(self, temperature: float | Temperature = 0.05) -> None:
        super().__init__(temperature)

    def forward(self, anchor: Tensor, positive: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shapes as for :func:`nt_xent`."""
        return nt_xent(anchor, positive, self.temperature(), among_pairs(mask))
