"""Two runs, or two settings under several seeds: what differs, and what that can show."""

from __future__ import annotations

from simcse.errors import UserError
from simcse.evaluation.change import paired_difference
from simcse.evaluation.statistics import (
    pooled_std,
    seeds_needed,
    smallest_detectable,
    summarize,
    welch,
)
from simcse.evaluation.table import (
    LABELS,
    aligned,
    cell,
    difference_cells,
    shown_scores,
    signed,
    task_label,
)
from simcse.reports.runs import Run, RunSet, other_test, setting_differences

MANY = 100_000
"""More seeds than that are not worth telling apart."""


def comparison_text(a: RunSet, b: RunSet) -> str:
    """The comparison as text: config differences, a table B - A, and how to read it.

    Raises:
        UserError: One model against a set of seeds, or no test in common.
    """
    if (len(a.runs) == 1) != (len(b.runs) == 1):
        raise UserError(
            f"{a.name} has {_runs(a)} and {b.name} {_runs(b)}: compare one model with one, or "
            "seeds with seeds (train.py CONFIG seeds=0,1,2)"
        )
    first, second = a.runs[0], b.runs[0]
    lines = [f"A = {a.name} ({_runs(a)}), B = {b.name} ({_runs(b)})"]
    if first.config and second.config:
        lines += [f"config  {line}" for line in setting_differences(first.config, second.config)]
    common, left_out = _common(first, second)
    body = _models(first, second, common) if len(a.runs) == 1 else _seeds(a, b, common)
    return "\n".join([*lines, "", *body, *(f"left out: {line}" for line in left_out)])


_HEAD = ["task", "score", "A", "B", "B - A", "95% interval", "p"]


def _models(a: Run, b: Run, common: list[tuple[str, str]]) -> list[str]:
    rows = [_HEAD]
    unpaired = {}
    for task, key in common:
        left, right = float(a.scores[task][key]), float(b.scores[task][key])
        name = task_label(task, a.scores[task])
        if difference := paired_difference(a.items, b.items, task, key):
            cells = difference_cells(key, difference)
        else:
            unpaired[name] = cells = [signed(key, right - left), "", ""]
        rows.append([name, LABELS[key], cell(key, left), cell(key, right), *cells])
    lines = [
        aligned(rows, left=2),
        "",
        "interval and p: paired bootstrap over the test items, 5,000 resamples. They say whether "
        "these two models differ on other items of this kind; whether the settings differ needs "
        "several seeds of each (seeds=0,1,2,…).",
    ]
    if unpaired:
        lines.append(f"no values of single items, so no interval: {', '.join(unpaired)}")
    return lines


def _seeds(a: RunSet, b: RunSet, common: list[tuple[str, str]]) -> list[str]:
    rows = [[*_HEAD, "detectable", "seeds to show it"]]
    for task, key in common:
        left, right = a.values(task, key), b.values(task, key)
        if len(left) != len(a.runs) or len(right) != len(b.runs):
            raise UserError(f"{task}: not every seed of {a.name} and {b.name} has its {key}")
        difference, std = welch(left, right), pooled_std(left, right)
        means = [
            f"{cell(key, summary.mean)} ± {cell(key, summary.std or 0)}"
            for summary in map(summarize, (left, right))
        ]
        planning = ["–", "–"]
        if std:
            needed = seeds_needed(difference.difference, std)
            planning[0] = cell(key, smallest_detectable(std, len(left), len(right)))
            if needed is not None:
                planning[1] = f"over {MANY:,}" if needed > MANY else f"{needed:,}"
        name = task_label(task, a.runs[0].scores[task])
        rows.append([name, LABELS[key], *means, *difference_cells(key, difference), *planning])
    return [
        aligned(rows, left=2),
        "",
        "A and B: mean ± standard deviation over seeds. Interval and p: Welch's t-test, each score "
        "by itself (of twenty scores that do not differ one has p < 0.05 by chance). detectable: "
        f"the smallest difference that {len(a.runs)} against {len(b.runs)} seeds see with 80% "
        "probability at p < 0.05. seeds to show it: a side, for a difference of the size found. "
        "Checkpoints were chosen on dev; the scores above chose nothing, but for a dev task among "
        "them.",
    ]


def _common(a: Run, b: Run) -> tuple[list[tuple[str, str]], list[str]]:
    """Scores of both, and why some that both have by name cannot be compared."""
    both = [score for score in shown_scores(a.scores) if score in shown_scores(b.scores)]
    problems = {task: other_test(a, b, task) for task, _ in both}
    common = [(task, key) for task, key in both if problems[task] is None]
    left_out = [problem for problem in problems.values() if problem is not None]
    if not common:
        reason = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{a.name} and {b.name} have no test in common{reason}")
    return common, left_out


def _runs(runs: RunSet) -> str:
    return "one model" if len(runs.runs) == 1 else f"{len(runs.runs)} seeds"
