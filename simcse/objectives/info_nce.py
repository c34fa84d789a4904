"""InfoNCE with in-batch negatives, the objective of SimCSE."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(anchor: Tensor, positive: Tensor, temperature: float) -> Tensor:
    r"""Mean over the batch of :math:`-\log( e^{s_{ii}/\tau} / \sum_j e^{s_{ij}/\tau} )`.

    :math:`s_{ij}` is the cosine similarity of anchor i and positive j; the positives of the other
    anchors are the negatives. Equal embeddings throughout give log(batch).

    Args:
        anchor: Floating point, shape ``(batch, dim)``; normalised here, so any length will do.
        positive: Shape ``(batch, dim)``; row i is the positive of anchor i.
        temperature: :math:`\tau` > 0.

    Returns:
        The loss, a scalar in [0, inf).

    Raises:
        ValueError: Shapes that differ or are not ``(batch, dim)``, temperature not positive.

    Source: Gao et al. 2021, SimCSE, equation 1 (https://arxiv.org/abs/2104.08821); van den Oord et
    al. 2018, CPC, equation 4 (https://arxiv.org/abs/1807.03748).
    """
    if anchor.ndim != 2 or anchor.shape != positive.shape:
        raise ValueError(
            "anchor and positive must have one shape (batch, dim), "
            f"got {tuple(anchor.shape)} and {tuple(positive.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    anchor = functional.normalize(anchor, dim=-1)
    positive = functional.normalize(positive, dim=-1)
    logits = anchor @ positive.T / temperature  # (batch, batch)
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
