"""An index whose embeddings take few bytes: searched with numpy, compared as what is stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simcse.encoders.vectors import Quantizer, as_bits

_BLOCK = 8192  # stored embeddings that are float32 at a time


@dataclass
class Quantized:
    """Embeddings of few bytes each, and search among them."""

    quantizer: Quantizer
    dim: int
    stored: np.ndarray
    """``(sentences, width)``, see :class:`~simcse.encoders.vectors.Quantizer`."""

    @property
    def packed(self) -> bool:
        """Whether a number is one bit."""
        return self.quantizer.kind.endswith("binary")

    def add(self, embeddings: np.ndarray) -> None:
        """Append normalised ones, float32 ``(sentences, dim)``."""
        self.stored = np.concatenate([self.stored, self.quantizer(embeddings)])

    def similarities(self, queries: np.ndarray) -> np.ndarray:
        """Of float32 queries ``(queries, dim)`` with all that is stored."""
        starts = range(0, len(self.stored), _BLOCK)
        blocks = (self.stored[start : start + _BLOCK] for start in starts)
        found = [queries @ self.quantizer.restored(block, self.dim).T for block in blocks]
        return np.concatenate(found, axis=1)

    def search_bits(
        self, query: np.ndarray, count: int, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of the ``most`` that differ in the fewest bits from a query, ``(dim,)``."""
        bits = as_bits(self.stored, self.quantizer.kind)  # (sentences, bytes)
        differing = np.bitwise_count(bits ^ np.packbits(query > 0)).sum(axis=1, dtype=np.int64)
        chosen = np.argsort(differing, kind="stable")[:most]
        scores = self.quantizer.restored(self.stored[chosen], self.dim) @ query
        order = np.argsort(-scores, kind="stable")[:count]
        return scores[order], chosen[order]
