"""What objectives on (anchor, positive) pairs share: similarities, and which negatives are false.

Embeddings have any length; they are normalised here. ``mask[i, j]`` is True where candidate j must
not count as a negative of anchor i: it has the same text (:func:`same_text_mask`), or another model
finds it too close (:func:`guide_mask`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def pair_logits(
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    hard_negatives: Tensor | None = None,
    hard_negative_weight: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Similarities over temperature, shape ``(batch, (1 + negatives) * batch)``.

    Column i holds the positive of anchor i, the columns from ``batch`` on the hard negatives, whose
    own ones gain ln α. Masked candidates are -inf. Arguments and errors as for
    :func:`~simcse.objectives.info_nce`.
    """
    if not hard_negative_weight > 0:
        raise ValueError(f"hard_negative_weight must be positive, got {hard_negative_weight}")
    anchor_unit, positive_unit = normalized_pair(anchor, positive)
    candidates = positive_unit
    if hard_negatives is not None:
        if hard_negatives.ndim != 3 or hard_negatives.shape[1:] != anchor.shape:
            raise ValueError(
                f"hard_negatives must be (negatives, {', '.join(map(str, anchor.shape))}), "
                f"got {tuple(hard_negatives.shape)}"
            )
        others = functional.normalize(hard_negatives, dim=-1).flatten(0, 1)
        candidates = torch.cat([positive_unit, others])  # ((1 + negatives) * batch, dim)
    logits = anchor_unit @ candidates.T / checked(temperature)
    batch = len(anchor)
    if hard_negatives is not None and hard_negative_weight != 1:
        own = torch.eye(batch, dtype=logits.dtype, device=logits.device)
        own = functional.pad(own.repeat(1, len(hard_negatives)), (batch, 0))
        logits = logits + own * math.log(hard_negative_weight)
    return logits if mask is None else logits.masked_fill(mask, -torch.inf)


def same_text_mask(identities: Tensor, labels: Tensor | None = None) -> Tensor:
    """Which candidates are false negatives: they have the text of the anchor or of its positive.

    Args:
        identities: Integers that are equal where texts are, shape ``(columns, batch)``: row 0 the
            anchors, row 1 the positives, further rows the hard negatives.
        labels: Integers, shape ``(batch,)``: pairs with the anchor's label are left out too.

    Returns:
        Bool, shape ``(batch, (columns - 1) * batch)``, aligned with :func:`pair_logits`; an
        anchor's own positive is never masked.
    """
    anchor, positive = identities[0], identities[1]
    candidates = identities[1:].flatten()  # ((columns - 1) * batch,)
    mask = (candidates == anchor[:, None]) | (candidates == positive[:, None])
    batch = len(anchor)
    same = torch.eye(batch, dtype=torch.bool, device=identities.device)
    if labels is not None:
        mask[:, :batch] |= labels == labels[:, None]
    # Batch row j as a whole: its anchor may be the same text where its positive is another.
    mask[:, :batch] |= (anchor == anchor[:, None]) | (anchor == positive[:, None])
    mask[:, :batch] &= ~same
    return mask


def guide_mask(guide: Tensor, margin: float, kind: Literal["absolute", "relative"]) -> Tensor:
    """Which candidates are false negatives by another model's similarities (GISTEmbed).

    Those that it finds closer to the anchor than the positive is, less a margin.

    Args:
        guide: Its embeddings, ``(columns, batch, dim)``, in the order of :func:`same_text_mask`.
        margin: At least 0.
        kind: ``relative`` takes the margin as a share of the positive's similarity.

    Returns:
        Bool, shape ``(batch, (columns - 1) * batch)``, aligned with :func:`pair_logits`; an
        anchor's own positive is never masked.

    Source: Solatorio 2024, GISTEmbed (https://arxiv.org/abs/2402.16829).
    """
    unit = functional.normalize(guide, dim=-1)
    similarity = unit[0] @ unit[1:].flatten(0, 1).T  # (batch, (columns - 1) * batch)
    positive = similarity.diagonal()[:, None]
    threshold = positive - margin * (positive.abs() if kind == "relative" else 1)
    return (similarity > threshold).fill_diagonal_(False)


def among_pairs(mask: Tensor | None) -> Tensor | None:
    """The part of a mask for :func:`pair_logits` that leaves hard negatives out."""
    return None if mask is None else mask[:, : len(mask)]


def normalized_pair(anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Both at length 1.

    Raises:
        ValueError: Their shapes differ, or are not ``(batch, dim)``.
    """
    if anchor.ndim != 2 or anchor.shape != positive.shape:
        raise ValueError(
            "anchor and positive must have one shape (batch, dim), "
            f"got {tuple(anchor.shape)} and {tuple(positive.shape)}"
        )
    return functional.normalize(anchor, dim=-1), functional.normalize(positive, dim=-1)


def checked(temperature: float | Tensor) -> float | Tensor:
    """The temperature; a tensor is not looked at, since that would wait for its device.

    Raises:
        ValueError: It is a number that is not positive.
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return temperature
