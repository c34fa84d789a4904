"""What smaller forms of a model keep of its scores, and how fast they are, measured here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sentence_transformers import SentenceTransformer

from simcse.encoders.encoding import encode_by_length
from simcse.evaluation.protocol import EmbeddingCache, evaluate
from simcse.evaluation.scoring import plan_tasks
from simcse.reports.tables import as_text

_BATCH_SIZE = 64
_ROUNDS = 3


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
    rounds = [[_speed(form.model, sentences) for form in forms] for _ in range(_ROUNDS)]
    speeds = np.max(rounds, axis=0)  # other programs on the machine only slow them down
    first: list[float] = []
    for form, speed in zip(forms, speeds, strict=True):
        cache = EmbeddingCache(partial(encode_by_length, form.model, batch_size=_BATCH_SIZE))
        found = evaluate(cache, tasks)
        scores = [found.value(task.name, task.metric) for task in tasks]
        first = first or scores
        cells = [f"{100 * a:.2f} ({a / b:.1%})" for a, b in zip(scores, first, strict=True)]
        size = form.weights.stat().st_size / 1e6
        rows.append([form.name, *cells, f"{speed:,.0f}", f"{size:,.1f}"])
    metrics = ", ".join(f"{task.name}: {task.metric}" for task in tasks)
    return (
        f"{as_text(rows)}\n(×100, and as a share of the first row; {metrics}; speed on "
        f"{len(sentences)} sentences)"
    )


def _speed(model: SentenceTransformer, sentences: list[str]) -> float:
    """Sentences a second, of as many passes as half a second has room for."""
    passes, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < 0.5:
        encode_by_length(model, sentences, _BATCH_SIZE)
        passes += 1
    return passes * len(sentences) / seconds
