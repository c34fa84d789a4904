"""Supervised contrast: all examples with the anchor's label are its positives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simcse.objectives.objective import PairObjective
from simcse.objectives.pairwise import checked
from simcse.objectives.temperature import Temperature


def sup_con(embeddings: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    r"""Mean over anchors of :math:`-\frac{1}{|P(i)|} \sum_{p \in P(i)} \log softmax_{a \ne i}`.

    :math:`P(i)` are the other rows with the label of row i. Rows without one are left out of the
    mean. With two views a text and every text its own label this is NT-Xent.

    Args:
        embeddings: Floating point, shape ``(rows, dim)``; normalised here.
        labels: Integers, shape ``(rows,)``.
        temperature: > 0.

    Returns:
        The loss, a scalar; 0 where no row has a positive.

    Raises:
        ValueError: Shapes that do not fit, temperature not positive.

    Source: Khosla et al. 2020, equation 2, "out" (https://arxiv.org/abs/2004.11362).
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"expected embeddings (rows, dim) and labels (rows,), got {tuple(embeddings.shape)} "
            f"and {tuple(labels.shape)}"
        )
    unit = functional.normalize(embeddings, dim=-1)
    oneself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.T / checked(temperature)).masked_fill(oneself, -torch.inf)  # (rows, rows)
    log_share = (logits - torch.logsumexp(logits, dim=1, keepdim=True)).masked_fill(oneself, 0)
    positives = (labels == labels[:, None]) & ~oneself
    count = positives.sum(dim=1)
    per_row = (log_share * positives).sum(dim=1) / count.clamp(min=1)
    return -per_row.sum() / (count > 0).sum().clamp(min=1)


class SupCon(PairObjective):
    """:func:`sup_con` as a term of a run, or as a loss of its own.

    Args:
        temperature: A number, or one that is scheduled or learned.
    """

    name = "sup_con"
    formula = (
        "−1/|P(i)| Σ_{p∈P(i)} log( exp(s(i,p)/τ) / Σ_{k≠i} exp(s(i,k)/τ) ), "
        "P(i): texts with the label of i"
    )
    source = "Khosla et al. 2020, https://arxiv.org/abs/2004.11362"

    def __init__(self, temperature: float | Temperature = 0.05) -> None:
        super().__init__(temperature)

    def forward(self, anchor: Tensor, positive: Tensor, labels: Tensor) -> Tensor:
        """The loss over both views.

        Args:
            anchor: Floating point, shape ``(batch, dim)``.
            positive: Shape ``(batch, dim)``; row i has the label of anchor i.
            labels: Integers, shape ``(batch,)``.
        """
        return sup_con(torch.cat([anchor, positive]), labels.repeat(2), self.temperature())
