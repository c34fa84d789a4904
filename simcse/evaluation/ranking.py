"""Ranks of relevant documents: by cosine or by BM25, and the scores that follow from them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from simcse.evaluation.geometry import unit

Judgements = Mapping[int, int]
"""Of one query: positions of its relevant documents to their grades, which are above 0."""

_SCORES = 2**24  # in memory at a time: 128 MB in float64
_DOCUMENTS, _QUERIES = 8192, 256
_WORD = re.compile(r"\w+")


def cosine_rows(queries: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """Cosines of each query with all documents, float64 ``(documents,)``.

    Embeddings are normalised here, in float64 and in blocks, so that neither the similarities nor
    a copy of all documents in double precision are ever held.

    Args:
        queries: float32, shape ``(queries, dim)``.
        documents: float32, shape ``(documents, dim)``.
    """
    block = min(_QUERIES, max(1, _SCORES // len(documents)))
    for start in range(0, len(queries), block):
        rows = _unit(queries[start : start + block])
        parts = [
            rows @ _unit(documents[first : first + _DOCUMENTS]).T
            for first in range(0, len(documents), _DOCUMENTS)
        ]
        yield from np.concatenate(parts, axis=1)  # (block, documents)


def bm25_rows(queries: Iterable[str], documents: Iterable[str]) -> Iterator[np.ndarray]:
    """BM25 scores of each query with all documents, float64 ``(documents,)``.

    Lucene's variant with k1 = 1.5 and b = 0.75, on lower-case words: no stop words are left out and
    nothing is stemmed, so that it needs no word lists and treats all languages alike.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports its progress there
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    words = [_words(document) for document in documents]
    if not any(words):  # nothing to index: no document has a word
        words = [["-"] for _ in words]
    index.index(words, show_progress=False)
    nothing = np.zeros(len(words))
    for query in queries:
        asked = _words(query)
        yield index.get_scores(asked).astype(np.float64) if asked else nothing


def relevant_ranks(
    rows: Iterable[np.ndarray], judgements: Sequence[Judgements]
) -> list[np.ndarray]:
    """Ranks of the relevant documents of each query, from 1; ties count against them.

    A document of equal score stands above a relevant one if it is not relevant, or less so.

    Args:
        rows: Scores of each query with all documents.
        judgements: Of each query, at least one.

    Returns:
        For each query its ranks, in the order of its judgements.
    """
    found = []
    for row, judged in zip(rows, judgements, strict=True):
        documents = np.fromiter(judged, dtype=np.int64)
        own = row[documents]
        # Summing in another order moves equal similarities apart by some 1e-16.
        thresholds = np.sort(own) - 1e-12
        others = np.delete(row, documents)
        passed = np.bincount(
            np.searchsorted(thresholds, others, side="right"), minlength=len(own) + 1
        )
        at_or_above = passed[:0:-1].cumsum()  # of the highest threshold first
        order = np.lexsort((np.fromiter(judged.values(), dtype=np.int64), -own.round(12)))
        ranks = np.empty(len(own), dtype=np.int64)
        ranks[order] = at_or_above + np.arange(1, len(own) + 1)
        found.append(ranks)
    return found


def recall(ranks: np.ndarray, at: int) -> float:
    """Share of a query's relevant documents that are among the first ``at``."""
    return float((ranks <= at).mean())


def reciprocal_rank(ranks: np.ndarray, at: int) -> float:
    """One over the rank of a query's first relevant document, 0 where it is beyond ``at``."""
    first = int(ranks.min())
    return 1 / first if first <= at else 0.0


def ndcg(ranks: np.ndarray, grades: np.ndarray, at: int) -> float:
    """Normalised discounted cumulative gain of a query, with the grade as gain, as trec_eval's.

    Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418.

    Args:
        ranks: Of its relevant documents, shape ``(relevant,)``.
        grades: Their grades, above 0.
        at: Documents that count.
    """
    inside = ranks <= at
    gain = (grades[inside] / np.log2(ranks[inside] + 1)).sum()
    best = np.sort(grades)[::-1][:at]
    return float(gain / (best / np.log2(np.arange(2, len(best) + 2))).sum())


def _unit(embeddings: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = unit(torch.from_numpy(embeddings)).numpy()
    return normalised


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
