"""The table of scores that terminal, report, model card and comparison show, and its formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simcse.evaluation.change import Changes, difference_of
from simcse.evaluation.protocol import Retention, Scores
from simcse.evaluation.statistics import Summary, summarize
from simcse.evaluation.table import (
    LABELS,
    aligned,
    cell,
    difference_cells,
    same_test,
    shown_scores,
    task_label,
    with_averages,
)
from simcse.reports.markdown import Markdown
from simcse.reports.runs import RunSet

Rows = list[list[str]]
"""A head and rows of its width; the first two columns are task and score."""


@dataclass(frozen=True)
class Column:
    """Scores of one model, or of one setting under several seeds."""

    name: str
    seeds: Sequence[Scores]
    changes: Changes = field(default_factory=dict)
    """Of one run: what training changed, for two columns more."""

    def cells(self, task: str, key: str, test: dict[str, Any]) -> list[str]:
        """What stands in the row of one score; empty where this is not the same test."""
        seeds = [seed[task] for seed in self.seeds if key in seed.get(task, {})]
        values = [float(seed[key]) for seed in seeds if same_test(seed, test)]
        cells = [summary_cell(key, summarize(values)) if values else ""]
        if self.changes:
            change = self.changes.get(task, {}).get("scores", {}).get(key) if values else None
            cells += difference_cells(key, difference_of(change))[:2] if change else ["", ""]
        return cells


def score_rows(models: Sequence[Column], references: Sequence[Column] = ()) -> Rows:
    """A row for every score of every test; all but the geometry and thresholds ×100.

    Scores of the same name on different texts have rows of their own.

    Args:
        models: Their tests are shown.
        references: Columns before them: untrained encoders, BM25.
    """
    models, references = (
        [replace(one, seeds=[with_averages(seed) for seed in one.seeds]) for one in columns]
        for columns in (models, references)
    )
    tests: list[tuple[str, str, dict[str, Any]]] = []
    for scores in (column.seeds[0] for column in models):
        for task, key in shown_scores(scores):
            known = [test for *name, test in tests if name == [task, key]]
            if not any(same_test(test, scores[task]) for test in known):
                tests.append((task, key, scores[task]))
    columns = [*references, *models]
    head = ["task", "score"]
    for column in columns:
        head += [column.name, *(("after - before", "95% interval") if column.changes else ())]
    rows = [head]
    for task, key, test in tests:
        cells = [text for column in columns for text in column.cells(task, key, test)]
        rows.append([task_label(task, test), LABELS[key], *cells])
    return rows


def run_rows(sets: Sequence[RunSet]) -> Rows:
    """The scores of runs, beside those of the encoders that they started from and of BM25."""
    before = [(runs.name, runs.runs[0].raw, runs.runs[0].bm25) for runs in sets]
    return score_rows([column_of(runs) for runs in sets], references(before))


def column_of(runs: RunSet, name: str | None = None) -> Column:
    """A run, or a setting under several seeds, as a column."""
    seeds = len(runs.runs)
    heading = (name or runs.name) if seeds == 1 else f"{runs.name} ({seeds} seeds)"
    changes = runs.runs[0].changes if seeds == 1 else {}
    return Column(heading, [run.scores for run in runs.runs], changes)


def references(runs: Iterable[tuple[str, dict[str, Scores], Scores]]) -> list[Column]:
    """Untrained encoders and BM25, each once, however many runs have the same.

    Args:
        runs: Name, scores of the untrained encoder by pooling, and of BM25.
    """
    found: dict[str, Column] = {}
    for run, raw, bm25 in runs:
        columns = {f"untrained ({pooling})": scores for pooling, scores in raw.items()}
        for name, scores in {**columns, "BM25": bm25}.items():
            if scores and all(list(column.seeds) != [scores] for column in found.values()):
                name = f"{name}, {run}" if name in found else name
                found[name] = Column(name, [scores])
    return list(found.values())


def what_chose(sets: Sequence[RunSet]) -> str:
    """Which dev tasks chose the checkpoints, and whether they are among the scores shown."""
    runs = [run for runs in sets for run in runs.runs if run.dev]
    tasks = {run.dev["task"]: run.dev["metric"] for run in runs if run.dev}
    if not tasks:
        return ""
    named = " and ".join(f"{task} ({LABELS[metric]})" for task, metric in tasks.items())
    what = "The checkpoint was" if len(runs) == 1 else "Checkpoints were"
    shown = [task for task in tasks if any(task in run.scores for run in runs)]
    if not shown:
        return f"{what} chosen on {named}; none of these scores chose anything."
    return (
        f"{what} chosen on {named}: of these scores {' and '.join(shown)} did, and "
        f"{'are' if len(shown) > 1 else 'is'} flattered; no other chose anything."
    )


def retention_rows(found: Retention) -> Rows:
    """Score against the bytes of a vector, and the share that is kept of the largest's."""
    keys = ["score", *["untrained"] * any("untrained" in row for row in found)]
    heads = {"score": "this model", "untrained": "untrained"}
    head = ["task", "score", "dims", "vectors", "bytes"]
    rows = [[*head, *(text for key in keys for text in (heads[key], "kept"))]]
    for row in sorted(found, key=lambda row: row["task"]):
        whole = next(other for other in found if other["task"] == row["task"])
        cells = [row["task"], LABELS[row["metric"]], *(str(row[key]) for key in head[2:])]
        for score, most in ((row.get(key, math.nan), whole.get(key, math.nan)) for key in keys):
            cells += [cell(row["metric"], score), f"{score / most:.1%}" if most > 0 else "–"]
        rows.append(cells)
    return rows


def summary_cell(key: str, summary: Summary, *, interval: bool = True) -> str:
    """``mean ± std (95% interval of the mean)``; of one seed its score."""
    text = cell(key, summary.mean)
    if summary.std is None or summary.low is None or summary.high is None:
        return text
    text += f" ± {cell(key, summary.std)}"
    return f"{text} ({cell(key, summary.low)} to {cell(key, summary.high)})" if interval else text


def as_text(rows: Rows) -> str:
    """For a terminal."""
    return aligned(rows, left=2)


def as_markdown(rows: Rows) -> Markdown:
    """With all that is not our own Markdown escaped."""
    rule = "| --- | --- |" + " ---: |" * (len(rows[0]) - 2)
    head, *lines = (Markdown("| {} |").format(Markdown(" | ").join(row)) for row in rows)
    return Markdown("\n").join([head, Markdown(rule), *lines])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
_LATEX |= {
    "<": "$<$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "–": "--",
    "ρ": r"$\rho$",
    "×": r"$\times$",
}


def _as_latex(rows: Rows) -> str:
    """A ``tabular`` with the rules of the package booktabs."""
    minus = r"(?<!\w)-(?=\d)"
    signs = re.compile("|".join([minus, *map(re.escape, _LATEX)]))
    head, *lines = (
        " & ".join(signs.sub(lambda found: _LATEX.get(found[0], "$-$"), text) for text in row)
        + r" \\"
        for row in rows
    )
    columns = "ll" + "r" * (len(rows[0]) - 2)
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines,
            r"\bottomrule", r"\end{tabular}",
        ]
    )  # fmt: skip


def _as_csv(rows: Rows) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().rstrip("\n")


def _as_json(rows: Rows) -> str:
    """A list of objects; numbers as numbers, null where there is none."""
    head, *lines = rows
    values = [dict(zip(head, map(_number, row), strict=True)) for row in lines]
    return json.dumps(values, indent=2, ensure_ascii=False)


def _number(text: str) -> float | str | None:
    try:
        return float(text)
    except ValueError:
        return text or None


FORMATS: dict[str, Callable[[Rows], str]] = {
    "text": as_text, "markdown": as_markdown, "latex": _as_latex, "csv": _as_csv, "json": _as_json,
}  # fmt: skip
"""What ``--format`` of ``simcse compare`` and ``simcse report`` prints."""
