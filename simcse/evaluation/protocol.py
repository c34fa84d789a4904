"""Scores tasks with an ``encode`` callable: each distinct text is encoded once across all tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simcse.errors import UserError
from simcse.evaluation.tasks import Task

Encode = Callable[[list[str]], np.ndarray]
"""From texts to embeddings of shape ``(texts, dim)``; they need not be normalised."""

Scores = dict[str, dict[str, Any]]
"""Task name to its scores and counts."""

PROTOCOL = (
    'STS: cosine Spearman, "all" setting (subsets concatenated), similarities in float64; '
    "geometry: positives are pairs graded above 4, the distribution is all distinct sentences, "
    "embeddings normalised, uniformity over pairs of distinct sentences with t = 2; "
    "docstrings: summary line against the rest of its docstring, held-out modules"
)


def evaluate(encode: Encode, tasks: Sequence[Task]) -> Scores:
    """Score all tasks.

    Raises:
        UserError: The embeddings have the wrong shape, or hold NaN, infinity or zero vectors.
    """
    texts = list(dict.fromkeys(text for task in tasks for text in task.texts()))
    embeddings = _normalized(encode(texts), len(texts))
    rows = {text: row for row, text in enumerate(texts)}

    def embed(wanted: Sequence[str]) -> np.ndarray:
        result: np.ndarray = embeddings[[rows[text] for text in wanted]]
        return result

    return {task.name: task.score(embed) for task in tasks}


def _normalized(embeddings: np.ndarray, texts: int) -> np.ndarray:
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) != texts:
        raise UserError(
            f"encode returned shape {embeddings.shape} for {texts} texts; expected ({texts}, dim)"
        )
    embeddings = embeddings.astype(np.float32, copy=False)
    if not np.isfinite(embeddings).all():
        bad = int((~np.isfinite(embeddings).all(axis=1)).sum())
        raise UserError(f"{bad} of {texts} embeddings hold NaN or infinity")
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if (norms == 0).any():
        raise UserError(f"{int((norms == 0).sum())} of {texts} embeddings are zero vectors")
    normalized: np.ndarray = embeddings / norms
    return normalized
