"""The kinds of tasks: graded sentence pairs, retrieval, geometry.

A task lists the texts it needs and scores their embeddings; it never sees a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.stats import spearmanr

from simcse import geometry
from simcse.errors import UserError

Lookup = Callable[[Sequence[str]], np.ndarray]
"""Embeddings of texts, float32, shape ``(texts, dim)``, rows normalised."""


class Task(Protocol):
    """What the protocol asks of a task."""

    @property
    def name(self) -> str:
        """Name in tables and in ``scores.json``."""

    @property
    def metric(self) -> str:
        """Key of the one score that stands for the task; higher is better."""

    def texts(self) -> list[str]:
        """Every text that has to be encoded, repeats included."""

    def score(self, embed: Lookup) -> dict[str, float | int | str]:
        """Scores and counts."""


@dataclass(frozen=True)
class PairTask:
    """Sentence pairs with graded similarity (STS).

    Cosine similarity against the grade, Spearman's ρ over all pairs at once: the subsets of STS12
    to STS16 are concatenated (the "all" setting of SimCSE's appendix B).
    """

    name: str
    sentence1: list[str]
    sentence2: list[str]
    grades: np.ndarray
    metric: str = "cosine_spearman"

    def texts(self) -> list[str]:
        """Both sides of every pair."""
        return self.sentence1 + self.sentence2

    def score(self, embed: Lookup) -> dict[str, float | int | str]:
        """``cosine_spearman`` in [-1, 1] and the number of pairs.

        Raises:
            UserError: All similarities are equal, so that there is no rank correlation.
        """
        # float64: float32 makes ties of near-equal similarities.
        left, right = (embed(side).astype(np.float64) for side in (self.sentence1, self.sentence2))
        similarity = np.einsum("ij,ij->i", left, right)
        if np.ptp(similarity) == 0:
            raise UserError(f"{self.name}: all similarities are equal: the embeddings are constant")
        return {
            "cosine_spearman": float(spearmanr(similarity, self.grades).statistic),
            "pairs": len(self.grades),
        }


@dataclass(frozen=True)
class RetrievalTask:
    """Each query has one relevant document, the one in the same position."""

    name: str
    queries: list[str]
    documents: list[str]
    metric: str = "recall_at_10"

    def texts(self) -> list[str]:
        """All queries and documents."""
        return self.queries + self.documents

    def score(self, embed: Lookup) -> dict[str, float | int | str]:
        """``recall_at_10`` and ``mrr`` (mean reciprocal rank) in [0, 1]; ties count against."""
        similarity = embed(self.queries) @ embed(self.documents).T  # (queries, documents)
        own = np.diagonal(similarity)[:, None]
        rank = (similarity >= own).sum(axis=1)
        return {
            "recall_at_10": float((rank <= 10).mean()),
            "mrr": float((1 / rank).mean()),
            "queries": len(self.queries),
        }


@dataclass(frozen=True)
class GeometryTask:
    """Alignment of close pairs and uniformity of all sentences.

    The protocol of SimCSE's figure 2: positives are the pairs graded above 4, the data
    distribution is every distinct sentence of the data set.
    """

    source: str
    sentence1: list[str]
    sentence2: list[str]
    grades: np.ndarray
    name: str = "geometry"
    metric: str = "alignment"

    def texts(self) -> list[str]:
        """Both sides of every pair."""
        return self.sentence1 + self.sentence2

    def score(self, embed: Lookup) -> dict[str, float | int | str]:
        """``alignment`` in [0, 4], ``uniformity`` in [-8, 0], both better when lower."""
        close = np.flatnonzero(self.grades > 4)
        anchor, positive = (
            torch.from_numpy(embed([side[i] for i in close]))
            for side in (self.sentence1, self.sentence2)
        )
        sentences = list(dict.fromkeys(self.texts()))
        return {
            "alignment": geometry.alignment(anchor, positive),
            "uniformity": geometry.uniformity(torch.from_numpy(embed(sentences))),
            "source": self.source,
            "positive_pairs": len(close),
            "sentences": len(sentences),
        }
