"""Two models on the same items: what changed, its interval, and what that shows in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simcse.errors import UserError
from simcse.evaluation.protocol import Evaluation, Items, Scores
from simcse.evaluation.statistics import (
    Difference,
    Statistic,
    average_precision_statistic,
    best_f1_statistic,
    mean_statistic,
    paired_bootstrap,
    spearman_statistic,
)
from simcse.evaluation.table import LABELS, cell, difference_cells

Changes = dict[str, dict[str, Any]]
"""Task to its ``metric``, the ``pooling`` that it is compared with, the number of ``items``, and
``scores``: key to ``before``, ``after`` and the fields of a ``Difference``."""

_OF_PAIRS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], Statistic]]] = {
    "cosine_spearman": ("grade", spearman_statistic),
    "average_precision": ("label", average_precision_statistic),
    "best_f1": ("label", best_f1_statistic),
}
_COUNTS = ("pairs", "queries", "examples")
# With more items, fewer resamples tell as much and take as long.
_MANY_ITEMS, _RESAMPLES, _FEWER_RESAMPLES = 10_000, 5000, 1000
_UNKNOWN = "not to be told with so few items"


@dataclass(frozen=True)
class _Resampled:
    statistic: Statistic
    items: int
    truth: np.ndarray | None
    """Grades or labels, which are no model's."""


def paired_difference(a: Items, b: Items, task: str, key: str) -> Difference | None:
    """B minus A in one score, by the paired bootstrap; ``None`` where its items are not kept.

    Raises:
        UserError: They are not the same items.
    """
    left, right = (_resampled(items, task, key) for items in (a, b))
    if left is None or right is None:
        return None
    same = left.truth is right.truth or np.array_equal(left.truth, right.truth)  # type: ignore[arg-type]
    if left.items != right.items or not same:
        raise UserError(f"{task}: the two were not scored on the same items")
    resamples = _RESAMPLES if left.items <= _MANY_ITEMS else _FEWER_RESAMPLES
    return paired_bootstrap(left.statistic, right.statistic, left.items, resamples)


def changes(
    before: Mapping[str, Scores],
    items_before: Mapping[str, Items],
    after: Evaluation,
    metrics: Mapping[str, str],
) -> Changes:
    """What training changed in each task, against the untrained encoder.

    That is the encoder with the pooling that does best on the task: the number to beat.

    Args:
        before: Scores of the untrained encoder by pooling.
        items_before: Its items, likewise.
        after: The trained model.
        metrics: Task to its own metric.
    """
    found: Changes = {}
    for task, metric in metrics.items():
        by_pooling = {pooling: scores[task][metric] for pooling, scores in before.items()}
        if not by_pooling:
            continue
        pooling = max(by_pooling, key=by_pooling.__getitem__)
        scores = {}
        for key in LABELS.keys() & after.scores[task].keys():
            difference = paired_difference(items_before[pooling], after.items, task, key)
            if difference is not None:
                values = (before[pooling][task][key], after.scores[task][key])
                scores[key] = dict(zip(("before", "after"), values, strict=True))
                scores[key] |= asdict(difference)
        if metric in scores:
            count = next(after.scores[task][key] for key in _COUNTS if key in after.scores[task])
            found[task] = {"metric": metric, "pooling": pooling, "items": count, "scores": scores}
    return found


def worse_lines(found: Changes, dev: str) -> list[str]:
    """A warning for every task, dev among them, that training made worse."""
    lines = []
    for task, change in found.items():
        metric, values = change["metric"], change["scores"][change["metric"]]
        if _verdict(values) == "worse":
            _, interval, _ = difference_cells(metric, difference_of(values))
            lines.append(
                f"warning: training made {task}{' (dev)' if task == dev else ''} worse: "
                f"{LABELS[metric]} {cell(metric, values['before'])} -> "
                f"{cell(metric, values['after'])}, 95% interval of the difference {interval}"
            )
    return lines


def verdict_line(found: Changes, dev: str) -> str:
    """What training did to each task's main score, in words."""
    by_verdict: dict[str, list[str]] = {}
    for task, change in found.items():
        verdict = _verdict(change["scores"][change["metric"]])
        if task == dev and verdict == "better":
            verdict = "better, but it chose the checkpoint"
        of = LABELS[change["metric"]]
        if verdict == _UNKNOWN:
            of += f" of {change['items']:,}"
        by_verdict.setdefault(verdict, []).append(f"{task} ({of})")
    words = "; ".join(f"{verdict}: {', '.join(tasks)}" for verdict, tasks in by_verdict.items())
    return f"compared with the best untrained column of each task: {words}"


def difference_of(values: Mapping[str, float]) -> Difference:
    """The difference of one score in :data:`Changes`."""
    return Difference(*(values[key] for key in ("difference", "low", "high", "p")))


def _verdict(values: Mapping[str, float]) -> str:
    if values["low"] > 0:
        return "better"
    if values["high"] < 0:
        return "worse"
    return "unchanged" if values["low"] == values["high"] == 0 else _UNKNOWN


def _resampled(items: Items, task: str, key: str) -> _Resampled | None:
    if key in _OF_PAIRS:
        kind, statistic = _OF_PAIRS[key]
        similarity, truth = items.get(f"{task}.similarity"), items.get(f"{task}.{kind}")
        if similarity is None or truth is None:
            return None
        return _Resampled(statistic(similarity, truth), len(truth), truth)
    values = items.get(f"{task}.{key}")
    return None if values is None else _Resampled(mean_statistic(values), len(values), None)
