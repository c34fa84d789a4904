"""Objectives on (anchor, positive) pairs with the other rows of the batch as negatives.

All of them are a softmax over cosine similarities and differ in what stands in the denominator.
Embeddings have any length; they are normalised here. ``temperature`` is a number, or a scalar
tensor where it is learned. ``mask[i, j]`` is True where candidate j must not count as a negative
of anchor i, because it has the same text (see :func:`same_text_mask`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


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
    bound but :math:`-2/\tau`. Arguments as for :func:`info_nce`.

    Raises:
        ValueError: As :func:`info_nce`; one pair and no hard negative, so nothing to contrast.

    Source: Yeh et al. 2022, Decoupled Contrastive Learning (https://arxiv.org/abs/2110.06848);
    there the negatives are both views of the other texts, here the other view alone, as in
    :func:`info_nce`, so that the two differ in the denominator's positive only.
    """
    logits = pair_logits(anchor, positive, temperature, hard_negatives, hard_negative_weight, mask)
    if logits.shape[1] < 2:
        raise ValueError("decoupled needs at least one negative, got a batch of one pair")
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    negatives = logits.masked_fill(own, -torch.inf)
    some = torch.isfinite(negatives).any(dim=1)  # the others have nothing to be pushed from
    loss = torch.logsumexp(negatives[some], dim=1) - logits.diagonal()[some]
    return loss.sum() / some.sum().clamp(min=1)


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
        ValueError: As :func:`info_nce`.

    Source: Radford et al. 2021, CLIP, figure 3 (https://arxiv.org/abs/2103.00020).
    """
    logits = pair_logits(anchor, positive, temperature)  # (batch, batch)
    if mask is not None:
        logits = logits.masked_fill(mask | mask.T, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    rows = functional.cross_entropy(logits, target)
    return (rows + functional.cross_entropy(logits.T, target)) / 2


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
        ValueError: As :func:`info_nce`.

    Source: Chen et al. 2020, SimCLR, equation 1 (https://arxiv.org/abs/2002.05709).
    """
    views = torch.cat(_normalized(anchor, positive))  # (2 * batch, dim)
    logits = views @ views.T / checked(temperature)
    batch = len(anchor)
    excluded = torch.eye(2 * batch, dtype=torch.bool, device=views.device)  # oneself
    if mask is not None:
        excluded = excluded | (mask | mask.T).repeat(2, 2)
    logits = logits.masked_fill(excluded, -torch.inf)
    target = torch.arange(2 * batch, device=views.device).roll(batch)
    return functional.cross_entropy(logits, target)


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
    own ones gain ln α. Masked candidates are -inf. Arguments and errors as for :func:`info_nce`.
    """
    if not hard_negative_weight > 0:
        raise ValueError(f"hard_negative_weight must be positive, got {hard_negative_weight}")
    anchor_unit, positive_unit = _normalized(anchor, positive)
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


def _normalized(anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    if anchor.ndim != 2 or anchor.shape != positive.shape:
        raise ValueError(
            "anchor and positive must have one shape (batch, dim), "
            f"got {tuple(anchor.shape)} and {tuple(positive.shape)}"
        )
    return functional.normalize(anchor, dim=-1), functional.normalize(positive, dim=-1)


def checked(temperature: float | Tensor) -> float | Tensor:
    """The temperature.

    Raises:
        ValueError: It is not positive.
    """
    value = float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
    if not value > 0:
        raise ValueError(f"temperature must be positive, got {value}")
    return temperature
