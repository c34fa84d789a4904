"""The kinds of tasks that need no training: graded sentence pairs, retrieval, geometry.

A task lists the texts it needs and scores their embeddings; it never sees a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import spearmanr

from simcse.config.settings import Role
from simcse.errors import UserError
from simcse.evaluation import geometry, ranking
from simcse.evaluation.ranking import Judgements


class Lookup(Protocol):
    """Embeddings of texts as the model gives them."""

    def __call__(self, texts: Sequence[str], role: Role | None = None) -> np.ndarray:
        """Float32, shape ``(texts, dim)``, not normalised.

        Args:
            texts: In any order; repeats are embedded once.
            role: Side of a search that they are on, for models that embed the two apart.
        """


BAND_EDGES = np.linspace(-1, 1, 41)
"""Bin edges of the similarity histograms."""


@dataclass(frozen=True)
class Result:
    """Scores of a task for some embeddings."""

    scores: dict[str, Any]
    """Scores and counts, plain JSON values."""
    items: dict[str, np.ndarray] = field(default_factory=dict)
    """One value for each pair, query or example, shape ``(items,)``, for paired tests:
    ``similarity`` and ``grade`` or ``label``, ``rank``, or the key of a score that is a mean over
    items, such as ``accuracy``."""


class Task(Protocol):
    """What the protocol requires of a task."""

    @property
    def name(self) -> str:
        """Name in tables and in ``scores.json``."""

    @property
    def metric(self) -> str:
        """Key of the one score that stands for the task."""

    def texts(self) -> list[str]:
        """Every text that has to be encoded, repeats included."""

    def score(self, embed: Lookup) -> Result:
        """Scores, counts and the value of every item."""


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
    facts: Mapping[str, str] = field(default_factory=dict)
    """Kept with the scores: ``source``, where another text goes by the same name; of a test on the
    user's own data ``own`` and ``dataset``."""
    metric: str = "cosine_spearman"

    def texts(self) -> list[str]:
        """Both sides of every pair."""
        return self.sentence1 + self.sentence2

    def score(self, embed: Lookup) -> Result:
        """``cosine_spearman`` in [-1, 1] and the number of pairs.

        Raises:
            UserError: All similarities are equal, so that there is no rank correlation.
        """
        similarity = cosines(embed, self.sentence1, self.sentence2)
        if np.ptp(similarity) < 1e-6:  # what different batches leave of equal float32 embeddings
            raise UserError(
                f"{self.name}: all similarities are equal ({similarity[0]:.6f}): the embeddings "
                "are constant"
            )
        scores = {
            "cosine_spearman": float(spearmanr(similarity, self.grades).statistic),
            "pairs": len(self.grades),
            **self.facts,
        }
        return Result(scores, {"similarity": similarity, "grade": self.grades})


@dataclass(frozen=True)
class RetrievalTask:
    """Queries with any number of relevant documents each, graded, in one corpus (as in BEIR)."""

    name: str
    queries: list[str]
    documents: list[str]
    judgements: Sequence[Judgements]
    """Of each query, at least one."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """As of :class:`PairTask`."""
    metric: str = "ndcg_at_10"

    def texts(self) -> list[str]:
        """None: both sides are embedded when they are scored, each in its role."""
        return []

    def score(self, embed: Lookup) -> Result:
        """As :meth:`ranked`, by cosine."""
        return self.ranked(
            ranking.cosine_rows(embed(self.queries, "query"), embed(self.documents, "document"))
        )

    def bm25(self) -> Result:
        """As :meth:`ranked`, by BM25: no model."""
        return self.ranked(ranking.bm25_rows(self.queries, self.documents))

    def ranked(self, rows: Iterable[np.ndarray]) -> Result:
        """``ndcg_at_10``, ``mrr_at_10``, ``recall_at_10`` and ``recall_at_100``, in [0, 1].

        Each is a mean over queries, whose values are the items.

        Args:
            rows: Scores of each query with all documents; ties count against the relevant ones.
        """
        ranks = ranking.relevant_ranks(rows, self.judgements)
        grades = [np.fromiter(judged.values(), dtype=np.int64) for judged in self.judgements]
        items = {
            "ndcg_at_10": np.array(
                [ranking.ndcg(*query, 10) for query in zip(ranks, grades, strict=True)]
            ),
            "mrr_at_10": np.array([ranking.reciprocal_rank(rank, 10) for rank in ranks]),
            "recall_at_10": np.array([ranking.recall(rank, 10) for rank in ranks]),
            "recall_at_100": np.array([ranking.recall(rank, 100) for rank in ranks]),
        }
        scores: dict[str, Any] = {key: float(values.mean()) for key, values in items.items()}
        scores |= {"queries": len(self.queries), "documents": len(self.documents), **self.facts}
        return Result(scores, items)


@dataclass(frozen=True)
class GeometryTask:
    """Alignment of close pairs, and how all sentences lie on the sphere.

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

    def score(self, embed: Lookup) -> Result:
        """See ``docs/protocol.md``.

        ``alignment`` in [0, 4] and ``uniformity`` in [-8, 0], both better when lower;
        ``mean_cosine`` of distinct sentences, ``effective_rank``, ``collapse``,
        ``singular_values``, and ``bands``: the similarities of pairs by their grade.
        """
        close = np.flatnonzero(self.grades > 4)
        anchor, positive = (
            torch.from_numpy(embed([side[i] for i in close]))
            for side in (self.sentence1, self.sentence2)
        )
        sentences = list(dict.fromkeys(self.texts()))
        everything = torch.from_numpy(embed(sentences))
        values = geometry.singular_values(everything)
        cosine, rank = geometry.mean_cosine(everything), geometry.effective_rank(values)
        return Result(
            {
                "alignment": geometry.alignment(anchor, positive),
                "uniformity": geometry.uniformity(everything),
                "mean_cosine": cosine,
                "effective_rank": rank,
                "collapse": geometry.collapse(cosine, rank),
                "source": self.source,
                "positive_pairs": len(close),
                "sentences": len(sentences),
                "dim": everything.shape[1],
                "singular_values": [float(f"{value:.4g}") for value in values.tolist()],
                "bands": similarity_bands(
                    cosines(embed, self.sentence1, self.sentence2), self.grades
                ),
            }
        )


def similarity_bands(similarity: np.ndarray, grades: np.ndarray) -> dict[str, dict[str, Any]]:
    """The distribution of the cosine within each grade band (SimCSE's figure of appendix E).

    Args:
        similarity: Cosines, shape ``(pairs,)``.
        grades: Grades from 0 to 5, shape ``(pairs,)``.

    Returns:
        Band (``"0-1"`` holds grades in [0, 1), ``"4-5"`` in [4, 5]) to ``pairs``, ``mean``, ``std``
        and ``counts`` in the bins of :data:`BAND_EDGES`; bands without pairs are left out.
    """
    band_of = np.minimum(np.floor(grades), 4)
    bands = {}
    for band in range(5):
        inside = similarity[band_of == band]
        if len(inside):
            bands[f"{band}-{band + 1}"] = {
                "pairs": len(inside),
                "mean": float(inside.mean()),
                "std": float(inside.std()),
                "counts": np.histogram(np.clip(inside, -1, 1), BAND_EDGES)[0].tolist(),
            }
    return bands


def cosines(embed: Lookup, sentence1: list[str], sentence2: list[str]) -> np.ndarray:
    """Cosines of pairs, shape ``(pairs,)``, as 1 - d²/2.

    Computed in float64 and rounded to float32. Unlike a dot product that is exactly 1 for every
    pair that is the same to the tokenizer, of which STS12 has many: otherwise the noise of other
    batches (1e-7 in an embedding) would break their ties.
    """
    left, right = (
        geometry.unit(torch.from_numpy(embed(side))).numpy() for side in (sentence1, sentence2)
    )
    difference = left - right
    similarity = 1 - np.einsum("ij,ij->i", difference, difference) / 2
    rounded: np.ndarray = similarity.astype(np.float32).astype(np.float64)
    return rounded
