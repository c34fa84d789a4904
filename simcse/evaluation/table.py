"""Score tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from simcse.evaluation.protocol import Scores

# Scores in [-1, 1] are printed ×100, as the papers do; geometry is printed as it is.
_PERCENT = {"cosine_spearman": "cosine Spearman", "recall_at_10": "recall@10"}
_PLAIN = {"alignment": "alignment ↓", "uniformity": "uniformity ↓"}


def score_table(columns: Mapping[str, Scores]) -> str:
    """One row a score, one column a model or stage; Spearman and recall ×100."""
    first = next(iter(columns.values()))
    rows = [["task", "score", *columns]]
    for task, scores in first.items():
        for key, label in {**_PERCENT, **_PLAIN}.items():
            if key in scores:
                name = f"{task} ({scores['source']})" if "source" in scores else task
                cells = [_cell(key, column[task][key]) for column in columns.values()]
                rows.append([name, label, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(texts + numbers).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _cell(key: str, value: float) -> str:
    return f"{100 * value:.2f}" if key in _PERCENT else f"{value:.3f}"
