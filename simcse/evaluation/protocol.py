"""Scores tasks with an ``encode`` callable; each distinct text is encoded once for all tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from simcse.config.settings import Role
from simcse.errors import UserError, first_line
from simcse.evaluation.tasks import Task

Encode = Callable[[list[str]], np.ndarray]
"""From texts to embeddings of shape ``(texts, dim)``; they need not be normalised."""

EncodeByRole = Callable[[list[str], Role], np.ndarray]
"""As :data:`Encode`, for texts that are all on one side of a search."""

Scores = dict[str, dict[str, Any]]
"""Task name to its scores and counts."""

Items = dict[str, np.ndarray]
"""``<task>.similarity`` and ``<task>.grade``, ``<task>.rank``, ``<task>.accuracy``, …: a value for
each pair, query or example; see :attr:`simcse.evaluation.tasks.Result.items`."""

Retention = list[dict[str, Any]]
"""Scores with smaller vectors: ``task``, ``metric``, ``dims``, ``vectors`` (what they are stored
in), ``bytes`` of one, ``score``; and ``untrained``, where that is known, the score of the model
that training began with."""

PROTOCOL = (
    'STS: cosine Spearman, "all" setting (subsets concatenated), similarities rounded to float32; '
    "geometry: positives are pairs graded above 4, the distribution is all distinct sentences, "
    "embeddings normalised, uniformity over pairs of distinct sentences with t = 2; "
    "transfer: SentEval's splits and classifier (one linear layer, Adam), as in SimCSE; "
    "own tests: pairs by average precision of the cosine, retrieval by nDCG@10 with the grade as "
    "gain, labels by a logistic regression in 5 folds; "
    "documents, python-docs: a held-out document's title, or first sentence, against its rest"
)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of all tasks, and the values of single items that paired tests need."""

    scores: Scores
    items: Items
    retention: Retention = field(default_factory=list)
    """Empty unless it was asked for."""

    def __repr__(self) -> str:
        return f"Evaluation({main_scores(self.scores)})"

    def value(self, task: str, metric: str | None = None) -> float:
        """One score, as a fraction (a Spearman correlation in [-1, 1], an accuracy in [0, 1]).

        Args:
            task: Such as ``pairs`` or ``geometry``.
            metric: Such as ``uniformity``; ``None`` takes the task's main one.

        Raises:
            UserError: There is no such score.
        """
        return score_value(self.scores, task, metric)


def score_value(scores: Scores, task: str, metric: str | None = None) -> float:
    """See :meth:`Evaluation.value`."""
    if task not in scores:
        raise UserError(f"task {task!r}: not scored; there are {', '.join(scores)}")
    numbers = {key: float(v) for key, v in scores[task].items() if isinstance(v, int | float)}
    if metric is None:
        return next(iter(numbers.values()))
    if metric not in numbers:
        raise UserError(f"{task}: no score {metric!r}; there are {', '.join(numbers)}")
    return numbers[metric]


def main_scores(scores: Scores) -> str:
    """The main score of every task in words; all numbers would fill pages of a notebook."""
    return ", ".join(f"{task}: {score_value(scores, task):.4f}" for task in scores)


def evaluate(
    encode: Encode, tasks: Sequence[Task], by_role: EncodeByRole | None = None
) -> Evaluation:
    """Score all tasks.

    Args:
        encode: The model.
        tasks: What to score it on.
        by_role: As for :class:`EmbeddingCache`.

    Raises:
        UserError: The embeddings have the wrong shape, or hold NaN, infinity or zero vectors.
    """
    embed = encode if isinstance(encode, EmbeddingCache) else EmbeddingCache(encode, by_role)
    embed([text for task in tasks for text in task.texts()])  # all at once, for even batches
    scores: Scores = {}
    items: Items = {}
    for task in tasks:
        result = task.score(embed)
        scores[task.name] = result.scores
        items |= {f"{task.name}.{kind}": values for kind, values in result.items.items()}
    return Evaluation(scores, items)


class EmbeddingCache:
    """An ``encode`` that gives every distinct text to the model once, across calls and tasks.

    Args:
        encode: The model.
        by_role: For a model that embeds queries and documents apart; without it a text has one
            embedding, whatever its role.
    """

    def __init__(self, encode: Encode, by_role: EncodeByRole | None = None) -> None:
        self._encode = encode
        self._by_role = by_role
        self._rows: dict[tuple[str, Role | None], int] = {}
        self._embeddings = np.empty((0, 0), dtype=np.float32)

    def __call__(self, texts: Sequence[str], role: Role | None = None) -> np.ndarray:
        """Embeddings, float32 ``(texts, dim)``; new texts are encoded in one call.

        Raises:
            UserError: As :func:`evaluate`.
        """
        role = role if self._by_role else None
        new = [text for text in dict.fromkeys(texts) if (text, role) not in self._rows]
        if new:
            by_role = self._by_role
            encoded = by_role(new, role) if by_role and role else self._encode(new)
            added = _checked(encoded, len(new))
            old = self._embeddings
            self._embeddings = np.concatenate([old, added]) if self._rows else added
            self._rows |= {(text, role): row for row, text in enumerate(new, len(self._rows))}
        embeddings: np.ndarray = self._embeddings[[self._rows[text, role] for text in texts]]
        return embeddings

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> EmbeddingCache:
        """The texts that it has, with other embeddings: ``change`` of all of them together."""
        other = copy.copy(self)
        other._embeddings = change(self._embeddings)
        return other


def _checked(embeddings: np.ndarray, texts: int) -> np.ndarray:
    if isinstance(embeddings, torch.Tensor):  # of a function of the user's
        embeddings = embeddings.detach().float().cpu().numpy()
    try:
        embeddings = np.asanyarray(embeddings)
    except ValueError as error:
        raise UserError(f"encode returned no array: {first_line(error)}") from error
    if embeddings.dtype.kind not in "fiu" or np.ma.isMaskedArray(embeddings):
        raise UserError(f"encode returned {embeddings.dtype}; expected floating point numbers")
    if embeddings.ndim != 2 or len(embeddings) != texts:
        raise UserError(
            f"encode returned shape {embeddings.shape} for {texts} texts; expected ({texts}, dim)"
        )
    embeddings = embeddings.astype(np.float32, copy=False)
    if not np.isfinite(embeddings).all():
        bad = int((~np.isfinite(embeddings).all(axis=1)).sum())
        raise UserError(f"{bad} of {texts} embeddings hold NaN or infinity")
    if empty := int((~embeddings.any(axis=1)).sum()):
        raise UserError(f"{empty} of {texts} embeddings are zero vectors")
    return embeddings
