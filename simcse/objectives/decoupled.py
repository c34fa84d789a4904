"""Decoupled contrastive learning: InfoNCE without the positive in the denominator."""

from __future__ import annotations

import torch
from torch import Tensor

from simcse.objectives.info_nce import InfoNCE
from simcse.objectives.pairwise import pair_logits


def decoupled(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    hard_negatives: Tensor | None = None,
    hard_negative_weight: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE whose denominator leaves the positive out: :math:`\sum_{j \ne i}`.

    Without the positive there the gradient of an easy pair does not fade. The loss has no lower
    bound but :math:`-2/\tau`. Arguments as for :func:`~simcse.objectives.info_nce`.

    Raises:
        ValueError: As :func:`~simcse.objectives.info_nce`; one pair and no hard negative, so
            nothing to contrast.

    Source: Yeh et al. 2022, Decoupled Contrastive Learning (https://arxiv.org/abs/2110.06848);
    there the negatives are both views of the other texts, here the other view alone, as in
    :func:`~simcse.objectives.info_nce`, so that the two differ in the denominator's positive only.
    """
    logits = pair_logits(anchor, positive, temperature, hard_negatives, hard_negative_weight, mask)
    if logits.shape[1] < 2:
        raise ValueError("decoupled needs at least one negative, got a batch of one pair")
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    negatives = logits.masked_fill(own, -torch.inf)
    some = torch.isfinite(negatives).any(dim=1)  # the others have nothing to be pushed from
    negatives = negatives.masked_fill(~some[:, None], 0)  # where the loss is left out
    loss = torch.logsumexp(negatives, dim=1) - logits.diagonal()
    return torch.where(some, loss, 0).sum() / some.sum().clamp(min=1)


class Decoupled(InfoNCE):
    """:func:`decoupled` as a term of a run, or as a loss of its own.

    Args:
        temperature: A number, or one that is scheduled or learned.
        hard_negative_weight: SimCSE's α, how much an anchor's own hard negatives count.
    """

    name = "decoupled"
    formula = "−log( exp(s(i,i⁺)/τ) / Σ_{j≠i} exp(s(i,j⁺)/τ) )"
    formula_with_hard_negatives = (
        "−log( exp(s(i,i⁺)/τ) / ( Σ_{j≠i} exp(s(i,j⁺)/τ) + Σⱼ α^[i=j] exp(s(i,j⁻)/τ) ) )"
    )
    source = "DCL, Yeh et al. 2022, https://arxiv.org/abs/2110.06848"

    function = staticmethod(decoupled)
