"""Where embeddings lie on the unit sphere: alignment, uniformity, spread and collapse.

Alignment and uniformity after Wang and Isola 2020, https://arxiv.org/abs/2005.10242, computed as in
SimCSE's figure 2; lower is better for both. Every function takes embeddings of any length and
normalises them; memory stays bounded however many rows there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 2048

Collapse = Literal["none", "complete", "dimensional"]

COMPLETE_ABOVE = 0.99
"""Mean cosine of distinct sentences above which everything is one point: a mean angle under 8°."""
DIMENSIONAL_BELOW = 3.0
"""Effective rank below which the cloud is a line or a disc, however wide the embedding is."""


def unit(embeddings: Tensor) -> Tensor:
    """Rows divided by their length, float64, shape ``(rows, dim)``.

    In float32 the squared distance of near-equal embeddings would cancel.
    """
    return functional.normalize(embeddings.double(), dim=1)


def alignment(anchor: Tensor, positive: Tensor) -> float:
    """Mean squared distance of normalised positive pairs, in [0, 4].

    Args:
        anchor: Floating point, shape ``(pairs, dim)``, any length; normalised here.
        positive: Same shape; row i is the positive of anchor i.

    Raises:
        ValueError: There are no pairs, or the shapes differ.
    """
    if anchor.ndim != 2 or anchor.shape != positive.shape or len(anchor) == 0:
        raise ValueError(
            "alignment needs two arrays of one shape (pairs, dim), pairs > 0, "
            f"got {tuple(anchor.shape)} and {tuple(positive.shape)}"
        )
    pairs = zip(_blocks(anchor), _blocks(positive), strict=True)
    total = sum(float((left - right).square().sum()) for (_, left), (_, right) in pairs)
    return total / len(anchor)


def uniformity(embeddings: Tensor) -> float:
    """Log of the mean of exp(-2 d²) over all pairs of distinct rows, in [-8, 0].

    Args:
        embeddings: Floating point, shape ``(rows, dim)``, any length; normalised here.

    Raises:
        ValueError: Fewer than two rows.
    """
    rows = _rows(embeddings)
    total = 0.0
    for start, block in _blocks(embeddings):
        for other, columns in _blocks(embeddings, start):
            squared = 2 - 2 * block @ columns.T  # (block, block)
            potential = torch.exp(-2 * squared.clamp_(min=0))
            if other == start:
                total += float(potential.triu_(diagonal=1).sum())
            else:
                total += float(potential.sum())
    return math.log(total / (rows * (rows - 1) / 2))


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine over all pairs of distinct rows, in [-1/(rows - 1), 1]; 1 is a single point.

    Exact and linear in the rows: the sum over pairs is (‖Σu‖² - rows) / 2. It is the anisotropy of
    Ethayarajh 2019, https://arxiv.org/abs/1909.00512, without its sampling.

    Args:
        embeddings: Floating point, shape ``(rows, dim)``, any length; normalised here.

    Raises:
        ValueError: Fewer than two rows.
    """
    rows = _rows(embeddings)
    total = torch.stack([block.sum(dim=0) for _, block in _blocks(embeddings)]).sum(dim=0)
    return float((total @ total - rows) / (rows * (rows - 1)))


def singular_values(embeddings: Tensor) -> Tensor:
    """Standard deviations of the normalised embeddings along their principal axes.

    The singular values of the centred matrix divided by √rows, as Jing et al. 2022
    (https://arxiv.org/abs/2110.09348) draw them to show dimensional collapse.

    Args:
        embeddings: Floating point, shape ``(rows, dim)``, any length; normalised here.

    Returns:
        float64, shape ``(dim,)``, falling; the sum of squares is the variance, at most 1.

    Raises:
        ValueError: Fewer than two rows.
    """
    rows = _rows(embeddings)
    mean = torch.stack([block.sum(dim=0) for _, block in _blocks(embeddings)]).sum(dim=0) / rows
    covariance = torch.stack(
        [(block - mean).T @ (block - mean) for _, block in _blocks(embeddings)]
    ).sum(dim=0)
    variances: Tensor = torch.linalg.eigvalsh(covariance / rows)
    return variances.clamp(min=0).sqrt().flip(0)


def effective_rank(values: Tensor) -> float:
    """How many directions are in use: exp of the entropy of the singular values' shares.

    Roy and Vetterli 2007 (https://ieeexplore.ieee.org/document/7098875); 1 for a line, the number
    of values where all are equal, 0 for a single point.

    Args:
        values: Singular values, not negative, shape ``(dim,)``.
    """
    total = values.sum()
    if total <= 0:
        return 0.0
    share = values[values > 0] / total
    return float(torch.exp(-(share * share.log()).sum()))


def collapse(cosine: float, rank: float) -> Collapse:
    """Name the two ways in which a representation dies.

    ``complete``: all sentences at one point (``cosine`` above :data:`COMPLETE_ABOVE`).
    ``dimensional``: they differ, but along hardly more than a plane (``rank`` below
    :data:`DIMENSIONAL_BELOW`). Both thresholds are far from any encoder that works; see
    ``docs/protocol.md`` for what was measured.

    Args:
        cosine: :func:`mean_cosine` of distinct sentences.
        rank: :func:`effective_rank` of the same.
    """
    if cosine > COMPLETE_ABOVE:
        return "complete"
    return "dimensional" if rank < DIMENSIONAL_BELOW else "none"


def _rows(embeddings: Tensor) -> int:
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"expected (rows, dim) with rows > 1, got {tuple(embeddings.shape)}")
    return len(embeddings)


def _blocks(embeddings: Tensor, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    for start in range(first, len(embeddings), _BLOCK):
        yield start, unit(embeddings[start : start + _BLOCK])
