"""Alignment and uniformity of embeddings on the unit sphere.

Wang and Isola 2020, https://arxiv.org/abs/2005.10242; computed as in SimCSE's figure 2. Lower is
better for both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 4096


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
    anchor, positive = _on_sphere(anchor), _on_sphere(positive)
    return float((anchor - positive).square().sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Log of the mean of exp(-2 d²) over all pairs of distinct rows, in [-8, 0].

    Blocked, so that memory stays bounded; equal to the direct formula.

    Args:
        embeddings: Floating point, shape ``(rows, dim)``, any length; normalised here.

    Raises:
        ValueError: Fewer than two rows.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(
            f"uniformity needs (rows, dim) with rows > 1, got {tuple(embeddings.shape)}"
        )
    embeddings = _on_sphere(embeddings)
    rows = len(embeddings)
    total = 0.0
    for start in range(0, rows, _BLOCK):
        block = embeddings[start : start + _BLOCK]
        for other in range(start, rows, _BLOCK):
            squared = 2 - 2 * block @ embeddings[other : other + _BLOCK].T  # (block, block)
            potential = torch.exp(-2 * squared.clamp_(min=0))
            if other == start:
                total += float(potential.triu_(diagonal=1).sum())
            else:
                total += float(potential.sum())
    return math.log(total / (rows * (rows - 1) / 2))


def _on_sphere(embeddings: Tensor) -> Tensor:
    # float64: the squared distance of near-equal embeddings cancels in float32.
    return functional.normalize(embeddings.double(), dim=1)
