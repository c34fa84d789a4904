"""Embeddings in few bytes: normalised, then one byte or one bit a number.

The formats are those of sentence-transformers' ``quantize_embeddings``. What int8 and uint8 stand
for depends on the ranges that they were calibrated with, float32 ``(2, dim)``: the lowest and the
highest value of each dimension.
"""

from __future__ import annotations

import numpy as np
from sentence_transformers.util import quantize_embeddings

from simcse.config.settings import Vectors
from simcse.errors import UserError

_LOWEST = {"int8": -128, "uint8": 0}


class Quantizer:
    """Makes embeddings small; the first that it is given are those that it calibrates on.

    Args:
        kind: What they become.
        ranges: Those of an earlier calibration.
    """

    def __init__(self, kind: Vectors, ranges: np.ndarray | None = None) -> None:
        self.kind: Vectors = kind
        self.ranges = ranges
        self.numbers = self.beyond = 0
        """Numbers so far, and those of them that were beyond the ranges and so cut to them."""

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """What is stored of embeddings.

        Args:
            embeddings: Normalised, float32 ``(texts, dim)``.

        Returns:
            ``(texts, dim)``; packed, ``(texts, ⌈dim / 8⌉)``.

        Raises:
            UserError: There is only one to calibrate on.
        """
        if self.kind in _LOWEST:
            if self.ranges is None:
                if len(embeddings) < 2:
                    raise UserError(f"vectors: {self.kind} needs two texts or more to calibrate on")
                self.ranges = np.stack([embeddings.min(axis=0), embeddings.max(axis=0)])
            low, high = self.ranges
            self.beyond += int(((embeddings < low) | (embeddings > high)).sum())
            self.numbers += embeddings.size
        found: np.ndarray = quantize_embeddings(embeddings, self.kind, self.ranges)
        return found

    def restored(self, stored: np.ndarray, dim: int) -> np.ndarray:
        """The numbers that stored ones stand for, float32 ``(texts, dim)``.

        Of a byte the middle of its step; of a bit ±1/√dim, so that the cosine of two is 1 minus
        twice the share of bits that differ.
        """
        if self.kind == "float32":
            return stored
        if self.kind in _LOWEST and self.ranges is not None:
            low, high = self.ranges
            steps = stored.astype(np.float32) + np.float32(0.5 - _LOWEST[self.kind])
            numbers: np.ndarray = steps * ((high - low) / np.float32(255)) + low
            return numbers
        bits = np.unpackbits(as_bits(stored, self.kind), axis=-1)[:, :dim]
        return (2 * bits.astype(np.float32) - 1) / np.float32(dim**0.5)


def as_bits(stored: np.ndarray, kind: Vectors) -> np.ndarray:
    """Packed bits as uint8, which ``binary`` keeps 128 lower."""
    return stored.view(np.uint8) ^ np.uint8(0x80) if kind == "binary" else stored


def width_of(kind: Vectors, dim: int) -> int:
    """Numbers of a stored embedding, packed bits included."""
    return -(-dim // 8) if kind.endswith("binary") else dim


def bytes_of(kind: Vectors, dim: int) -> int:
    """Of a stored embedding."""
    return width_of(kind, dim) * (4 if kind == "float32" else 1)


def are_ranges(ranges: np.ndarray, dim: int) -> bool:
    """Whether an array can be the ranges of normalised embeddings."""
    return ranges.shape == (2, dim) and bool(
        (abs(ranges) < 2).all() and (ranges[0] <= ranges[1]).all()
    )
