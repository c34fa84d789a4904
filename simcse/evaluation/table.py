"""Score tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simcse.evaluation.names import MTEB, MTEB_STS, STS, TRANSFER
from simcse.evaluation.protocol import Scores

# Scores in [-1, 1] are printed ×100, as the papers do; geometry is printed as it is.
_PERCENT = {
    "cosine_spearman": "cosine Spearman",
    "recall_at_10": "recall@10",
    "accuracy": "accuracy",
    "f1": "F1",
    "main_score": "main score",
}
_PLAIN = {
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


def score_table(columns: Mapping[str, Scores]) -> str:
    """One row a score, one column a model or stage; Spearman, recall and accuracy ×100."""
    columns = {name: with_averages(scores) for name, scores in columns.items()}
    first = next(iter(columns.values()))
    rows = [["task", "score", *columns]]
    for task, key in shown_scores(first):
        values = [column.get(task, {}).get(key) for column in columns.values()]
        cells = ["" if value is None else cell(key, value) for value in values]
        rows.append([task_label(task, first[task]), LABELS[key], *cells])
    return aligned(rows, left=2)


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
