"""What a contrastive loss looks at, logged beside it: each anchor against its candidates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def diagnostics(logits: Tensor, temperature: float) -> dict[str, float]:
    """Similarities and weights behind a batch's loss.

    Args:
        logits: From :func:`~simcse.objectives.pair_logits`, shape ``(batch, candidates)``; row i's
            positive is in column i, masked candidates are -inf.
        temperature: What the similarities were divided by.

    Returns:
        ``positive_similarity`` and ``negative_similarity`` (means, in [-1, 1]; own hard negatives
        include ln α times the temperature), ``positive_probability`` (the softmax share of the
        positive, in [0, 1]), and ``effective_negatives``: exp of the entropy of the negatives'
        shares among themselves, from 1, where the hardest has all the weight, to their number.
        Where every negative is masked, what is about negatives is left out.
    """
    logits = logits.detach().cpu().double()  # not every device has float64
    positive = logits.diagonal()
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    negatives = logits.masked_fill(own, -torch.inf)
    present = torch.isfinite(negatives)
    values = {
        "positive_similarity": float(positive.mean()) * temperature,
        "positive_probability": float(functional.softmax(logits, dim=1).diagonal().mean()),
    }
    if present.any():
        share = functional.softmax(negatives[present.any(dim=1)], dim=1)
        entropy = -torch.special.xlogy(share, share).sum(dim=1)
        values["negative_similarity"] = float(negatives[present].mean()) * temperature
        values["effective_negatives"] = float(entropy.exp().mean())
    return values
