"""InfoNCE: the positive among the positives of the other anchors (SimCSE, CPC)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simcse.objectives.objective import PairObjective, Weight
from simcse.objectives.pairwise import pair_logits
from simcse.objectives.temperature import Temperature


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    hard_negatives: Tensor | None = None,
    hard_negative_weight: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Mean over the batch of :math:`-\log( e^{s_{ii}/\tau} / \sum_j e^{s_{ij}/\tau} )`.

    :math:`s_{ij}` is the cosine similarity of anchor i and positive j; the positives of the other
    anchors are the negatives. With hard negatives the denominator gains
    :math:`\sum_j \alpha^{[i=j]} e^{s(h_i, h_j^-)/\tau}` for each of them. Equal embeddings
    throughout give log(batch).

    Args:
        anchor: Floating point, shape ``(batch, dim)``.
        positive: Shape ``(batch, dim)``; row i is the positive of anchor i.
        temperature: :math:`\tau` > 0.
        hard_negatives: Shape ``(negatives, batch, dim)``; row i of each belongs to anchor i and is
            an ordinary negative of the other anchors.
        hard_negative_weight: :math:`\alpha` > 0, how much an anchor's own hard negatives count.
        mask: Bool, shape ``(batch, (1 + negatives) * batch)``: candidates to leave out.

    Returns:
        The loss, a scalar in [0, inf).

    Raises:
        ValueError: Shapes that do not fit, temperature or weight not positive.

    Source: Gao et al. 2021, SimCSE, equations 1, 5 and 8 (https://arxiv.org/abs/2104.08821); van
    den Oord et al. 2018, CPC, equation 4 (https://arxiv.org/abs/1807.03748).
    """
    logits = pair_logits(
        anchor, positive, temperature, hard_negatives, hard_negative_weight, mask
    )  # (batch, (1 + negatives) * batch)
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class InfoNCE(PairObjective):
    """:func:`info_nce` as a term of a run, or as a loss of its own.

    Args:
        temperature: A number, or one that is scheduled or learned.
        hard_negative_weight: SimCSE's α, how much an anchor's own hard negatives count.
    """

    name = "info_nce"
    formula = "−log( exp(s(i,i⁺)/τ) / Σⱼ exp(s(i,j⁺)/τ) )"
    formula_with_hard_negatives = (
        "−log( exp(s(i,i⁺)/τ) / Σⱼ ( exp(s(i,j⁺)/τ) + α^[i=j] exp(s(i,j⁻)/τ) ) )"
    )
    source = "Gao et al. 2021, https://arxiv.org/abs/2104.08821"
    function = staticmethod(info_nce)

    def __init__(
        self, temperature: float | Temperature = 0.05, hard_negative_weight: Weight = 1.0
    ) -> None:
        super().__init__(temperature, hard_negative_weight)

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        hard_negatives: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Shapes as for :func:`info_nce`."""
        weight = self.hard_negative_weight
        return self.function(anchor, positive, self.temperature(), hard_negatives, weight, mask)
