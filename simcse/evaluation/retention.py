"""How much of a score smaller vectors keep: fewer numbers of an embedding, fewer bits of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from simcse.config.settings import Vectors
from simcse.encoders.vectors import Quantizer, bytes_of
from simcse.evaluation.protocol import EmbeddingCache, Retention, evaluate
from simcse.evaluation.tasks import Task

KINDS: tuple[Vectors, ...] = ("float32", "int8", "binary")
"""What vectors are stored in, of those that a table shows."""


def sizes_of(dims: Sequence[int], widest: int) -> list[int]:
    """The full width of embeddings and those of ``dims`` below it, largest first.

    Without any: half of the width, half of that, and so on, down to 16.
    """
    smaller = dims or [widest // 2**n for n in range(1, 16) if widest // 2**n >= 16]
    return sorted({widest, *(size for size in smaller if size < widest)}, reverse=True)


def compared(tasks: Sequence[Task]) -> list[Task]:
    """The tasks whose main score compares embeddings by cosine, as a search does."""
    return [task for task in tasks if task.metric not in ("accuracy", "alignment")]


def retention(encode: EmbeddingCache, tasks: Sequence[Task], sizes: Sequence[int]) -> Retention:
    """Scores of tasks with embeddings cut to each size, normalised, and stored in each kind.

    Both sides of a comparison are cut and stored alike; int8 is calibrated on all texts of the
    tasks.

    Args:
        encode: Has embedded the texts of these tasks.
        tasks: Those of :func:`compared` count.
        sizes: At most the width of the embeddings.
    """
    found: Retention = []
    for size in sizes:
        for kind in KINDS:
            smaller = encode.mapped(partial(_stored, size=size, kind=kind))
            scores = evaluate(smaller, compared(tasks)).scores
            facts = {"dims": size, "vectors": kind, "bytes": bytes_of(kind, size)}
            found += [
                {"task": task.name, "metric": task.metric, **facts}
                | {"score": scores[task.name][task.metric]}
                for task in compared(tasks)
            ]
    return found


def beside(trained: Retention, untrained: Retention) -> Retention:
    """Both in one, for the same tasks and sizes."""
    pairs = zip(trained, untrained, strict=True)
    return [{**row, "untrained": other["score"]} for row, other in pairs]


def _stored(embeddings: np.ndarray, size: int, kind: Vectors) -> np.ndarray:
    """What is left of embeddings, float32 ``(texts, size)``."""
    part = embeddings[:, :size]
    lengths = np.linalg.norm(part, axis=1, keepdims=True)
    quantizer = Quantizer(kind)
    return quantizer.restored(quantizer(part / np.maximum(lengths, 1e-12)), size)
