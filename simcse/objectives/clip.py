"""CLIP's symmetric loss: anchors find their positives, and positives their anchors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simcse.config.settings import TemperatureConfig
from simcse.objectives.objective import PairObjective
from simcse.objectives.pairwise import among_pairs, pair_logits
from simcse.objectives.temperature import Temperature


def clip(
    anchor: Tensor, positive: Tensor, temperature: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean of the cross-entropies over rows and over columns of the similarity matrix.

    Anchors find their positives and positives their anchors; for pairs from two sources.

    Args:
        anchor: Floating point, shape ``(batch, dim)``.
        positive: Shape ``(batch, dim)``.
        temperature: 1 / logit scale, > 0; CLIP learns it from 0.07 and keeps it above 0.01.
        mask: Bool, shape ``(batch, batch)``: candidates to leave out, in either direction.

    Raises:
        ValueError: As :func:`~simcse.objectives.info_nce`.

    Source: Radford et al. 2021, CLIP, figure 3 (https://arxiv.org/abs/2103.00020).
    """
    logits = pair_logits(anchor, positive, temperature)  # (batch, batch)
    if mask is not None:
        logits = logits.masked_fill(mask | mask.T, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    rows = functional.cross_entropy(logits, target)
    return (rows + functional.cross_entropy(logits.T, target)) / 2


class Clip(PairObjective):
    """:func:`clip` as a term of a run, or as a loss of its own.

    Args:
        temperature: A number, or one that is scheduled or learned. A run that names none learns it
            from 0.07, as CLIP does.
    """

    name = "clip"
    formula = "½ ( −log softmaxⱼ(s(i,j⁺)/τ)ᵢ − log softmaxⱼ(s(j,i⁺)/τ)ᵢ )"
    source = "CLIP, Radford et al. 2021, https://arxiv.org/abs/2103.00020"
    default_temperature = TemperatureConfig(start=0.07, schedule="learnable")

    def __init__(self, temperature: float | Temperature = 0.07) -> None:
        super().__init__(temperature)

    def forward(self, anchor: Tensor, positive: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shapes as for :func:`clip`."""
        return clip(anchor, positive, self.temperature(), among_pairs(mask))
