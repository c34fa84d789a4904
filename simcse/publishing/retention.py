"""What smaller forms of a model keep of its scores, and how fast they are, measured here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sentence_transformers import SentenceTransformer

from simcse.encoders.encoding import encode_by_length
from simcse.evaluation.protocol import EmbeddingCache, evaluate
from simcse.evaluation.scoring import plan_tasks
from simcse.reports.tables import as_text

_BATCH_SIZE = 64


class Form(NamedTuple):
    """A model in one of its forms."""

    name: str
    model: SentenceTransformer
    weights: Path
    """The file that has to be had for it."""


def retention_table(forms: Sequence[Form]) -> str:
    """Scores on the shipped tests (×100, and as a share of the first form's), speed and size.

    Args:
        forms: The first is what the others are compared with.

    Returns:
        A table, and how it was measured.
    """
    tasks = plan_tasks(None, None).load().ours[:-1]  # without the geometry
    rows = [["", *(task.name for task in tasks), "texts/s", "MB"]]
    sentences = list(dict.fromkeys(tasks[0].texts()))
    first: list[float] = []
    for form in forms:
        cache = EmbeddingCache(partial(encode_by_length, form.model, batch_size=_BATCH_SIZE))
        found = evaluate(cache, tasks)
        scores = [found.value(task.name, task.metric) for task in tasks]
        first = first or scores
        cells = [f"{100 * a:.2f} ({a / b:.1%})" for a, b in zip(scores, first, strict=True)]
        size = form.weights.stat().st_size / 1e6
        rows.append([form.name, *cells, f"{_speed(form.model, sentences):,.0f}", f"{size:,.1f}"])
    metrics = ", ".join(f"{task.name}: {task.metric}" for task in tasks)
    return (
        f"{as_text(rows)}\n(×100, and as a share of the first row; {metrics}; speed on "
        f"{len(sentences)} sentences)"
    )


def _speed(model: SentenceTransformer, sentences: list[str]) -> float:
    """Sentences a second, of as many passes as a second has room for."""
    passes, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < 1:
        encode_by_length(model, sentences, _BATCH_SIZE)
        passes += 1
    return passes * len(sentences) / seconds
