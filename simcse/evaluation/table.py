"""Scores in words: their labels, how numbers are printed, columns of equal width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from simcse.evaluation.names import MTEB, MTEB_STS, STS, TRANSFER
from simcse.evaluation.protocol import Scores
from simcse.evaluation.statistics import Difference

# Scores in [-1, 1] are printed ×100, as the papers do; geometry is printed as it is.
_PERCENT = {
    "cosine_spearman": "cosine Spearman",
    "ndcg_at_10": "nDCG@10",
    "recall_at_10": "recall@10",
    "recall_at_100": "recall@100",
    "mrr_at_10": "MRR@10",
    "average_precision": "average precision",
    "best_f1": "best F1",
    "accuracy": "accuracy",
    "knn_accuracy": "kNN accuracy",
    "v_measure": "V-measure of k-means",
    "f1": "F1",
    "main_score": "main score",
}
_PLAIN = {
    "best_f1_threshold": "threshold of best F1",
    "alignment": "alignment ↓",
    "uniformity": "uniformity ↓",
    "mean_cosine": "mean cosine",
    "effective_rank": "effective rank",
}
_AVERAGES = (
    (STS, "cosine_spearman"),
    (tuple(MTEB_STS), "cosine_spearman"),
    (TRANSFER, "accuracy"),
)
LABELS = {**_PERCENT, **_PLAIN}
"""Keys of the scores that tables show, with their names."""


def difference_cells(key: str, difference: Difference) -> list[str]:
    """Difference, interval and p-value as they are printed."""
    if math.isnan(difference.p):
        return [signed(key, difference.difference), "no spread", "–"]
    interval = f"{signed(key, difference.low)} to {signed(key, difference.high)}"
    p = "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
    return [signed(key, difference.difference), interval, p]


def signed(key: str, value: float) -> str:
    """A difference of scores as it is printed."""
    text = cell(key, value)
    return text if text.startswith("-") else f"+{text}"


def with_averages(scores: Scores) -> Scores:
    """Scores with those averages over seven tasks for which all seven are there."""
    averages: Scores = {}
    for names, key in _AVERAGES:
        average = average_of_seven(scores, names, key)
        if average is not None:
            last = names[-1]
            label = "transfer" if names is TRANSFER else task_label(last, scores[last])
            averages[f"average of 7 ({label})"] = {key: average}
    return {**scores, **averages}


def shown_scores(scores: Scores) -> list[tuple[str, str]]:
    """Task and key of every score that tables show, in their order."""
    return [(task, key) for task, values in scores.items() for key in LABELS if key in values]


def average_of_seven(
    scores: Scores, names: Sequence[str] = STS, key: str = "cosine_spearman"
) -> float | None:
    """Mean of the papers' seven tasks; ``None`` unless all of them were scored."""
    if any(name not in scores for name in names):
        return None
    return sum(float(scores[name][key]) for name in names) / len(names)


def collapse_lines(columns: Mapping[str, Scores]) -> list[str]:
    """A warning for every column whose embeddings have collapsed."""
    return [
        f"warning: {name}: {geometry['collapse']} collapse (mean cosine of distinct sentences "
        f"{geometry['mean_cosine']:.4f}, effective rank {geometry['effective_rank']:.1f} of "
        f"{geometry['dim']}; docs/protocol.md)"
        for name, scores in columns.items()
        if (geometry := scores.get("geometry")) and geometry["collapse"] != "none"
    ]


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width under a ruled head; the first ``left`` are aligned left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


TEST_FACTS = ("pairs", "queries", "examples", "source", "dataset", "metric")
"""What tells two tests of the same name apart, in their scores."""


def same_test(a: Mapping[str, object], b: Mapping[str, object]) -> bool:
    """Whether two scores of the same name may be of one test, by the facts that both have."""
    return all(a[fact] == b[fact] for fact in TEST_FACTS if fact in a and fact in b)


def task_label(task: str, scores: Mapping[str, object]) -> str:
    """A task's name, with its source where another text goes by the same name."""
    name = f"{task.removeprefix(MTEB)}"
    source = scores.get("source")
    if task.startswith(MTEB) and source is None:
        source = "mteb"
    return f"{name} ({source})" if source else name


def cell(key: str, value: float) -> str:
    """A score as it is printed."""
    return f"{100 * value:.2f}" if key in _PERCENT else f"{value:.3f}"
