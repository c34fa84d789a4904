"""Two runs or more, or settings under several seeds: what differs, and what that can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

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
    cell,
    difference_cells,
    shown_scores,
    signed,
    task_label,
)
from simcse.reports.runs import Run, RunSet, other_test, setting_differences
from simcse.reports.tables import Rows, summary_cell, what_chose

MANY = 100_000
"""More seeds than that are not worth telling apart."""

_MODELS = (
    "interval and p: paired bootstrap over the test items, 5,000 resamples. They say whether these "
    "two models differ on other items of this kind; whether the settings differ needs several "
    "seeds of each (seeds=0,1,2,…)."
)
_SEEDS = (
    "Columns of scores: mean ± standard deviation over seeds. Interval and p: Welch's t-test, each "
    "score by itself (of twenty scores that do not differ one has p < 0.05 by chance). detectable: "
    "the smallest difference that so many seeds see with 80% probability at p < 0.05. seeds to "
    "show it: a side, for a difference of the size found."
)
_ONE_AND_SEEDS = (
    "One model against seeds: Student's t-test of the seeds against the model's score, as if that "
    "were exact. Where it is one seed of a training run, another seed of it may score otherwise."
)


@dataclass(frozen=True)
class Comparison:
    """Every run set against the first."""

    rows: Rows
    before: list[str]
    """Lines that say what is compared."""
    after: list[str]
    """Lines that say how to read the table, and what it leaves out."""


def compare(sets: Sequence[RunSet], *, letters: bool = True) -> Comparison:
    """Compare models, or settings under several seeds, with the first of them.

    Args:
        sets: Two or more.
        letters: Call them A, B, … in the table instead of by their names.

    Raises:
        UserError: Too many runs, or no test in common.
    """
    if len(sets) > len(ascii_uppercase):
        raise UserError(f"{len(sets)} runs; allowed are {len(ascii_uppercase)}")
    first = sets[0]
    alone = [len(runs.runs) == 1 for runs in sets]
    names = list(ascii_uppercase) if letters else [runs.name for runs in sets]
    named = zip(names, sets, strict=False)
    before = [", ".join(f"{name} = {runs.name} ({_runs(runs)})" for name, runs in named)]
    for name, runs in list(zip(names, sets, strict=False))[1:]:
        a, b = first.runs[0].config, runs.runs[0].config
        label = f"config {name}" if len(sets) > 2 else "config"
        before += [f"{label}  {line}" for line in setting_differences(a, b)] if a and b else []
    common, left_out = _common([runs.runs[0] for runs in sets])
    rows = [["task", "score", names[0]]]
    for name in names[1 : len(sets)]:
        of = f" of {name} - {names[0]}" if len(sets) > 2 else ""
        rows[0] += [name, f"{name} - {names[0]}", f"95% interval{of}", f"p{of}"]
        rows[0] += [] if all(alone) else [f"detectable{of}", f"seeds to show it{of}"]
    unpaired: dict[str, None] = {}
    for task, key in common:
        label = task_label(task, first.runs[0].scores[task])
        row = [label, LABELS[key], _shown(first, task, key)]
        for runs, one in zip(sets[1:], alone[1:], strict=True):
            row.append(_shown(runs, task, key))
            cells = (_models if alone[0] and one else _seeds)(first, runs, task, key)
            if not cells[1]:
                unpaired[label] = None
            row += cells
            row += [] if all(alone) else _planning(first, runs, task, key)
        rows.append(row)
    after = [_MODELS] if alone[0] and any(alone[1:]) else []
    after += [] if all(alone) else [_SEEDS]
    after += [_ONE_AND_SEEDS] if any(alone) and not all(alone) else []
    if unpaired:
        after.append(f"no values of single items, so no interval: {', '.join(unpaired)}")
    after += [line for line in [what_chose(sets)] if line]
    return Comparison(rows, before, [*after, *(f"left out: {line}" for line in left_out)])


def _shown(runs: RunSet, task: str, key: str) -> str:
    values = runs.values(task, key)
    if len(values) != len(runs.runs):
        raise UserError(f"{task}: not every seed of {runs.name} has its {key}")
    return summary_cell(key, summarize(values), interval=False)


def _models(a: RunSet, b: RunSet, task: str, key: str) -> list[str]:
    """Difference, interval and p-value; only the difference where no single items are kept."""
    if difference := paired_difference(a.runs[0].items, b.runs[0].items, task, key):
        return difference_cells(key, difference)
    return [signed(key, b.values(task, key)[0] - a.values(task, key)[0]), "", ""]


def _seeds(a: RunSet, b: RunSet, task: str, key: str) -> list[str]:
    """Difference, interval and p-value."""
    return difference_cells(key, welch(a.values(task, key), b.values(task, key)))


def _planning(a: RunSet, b: RunSet, task: str, key: str) -> list[str]:
    """What so many seeds can detect, and how many would show the difference."""
    left, right = a.values(task, key), b.values(task, key)
    planning = ["–", "–"]
    if min(len(left), len(right)) > 1 and (std := pooled_std(left, right)):
        needed = seeds_needed(welch(left, right).difference, std)
        planning[0] = cell(key, smallest_detectable(std, len(left), len(right)))
        if needed is not None:
            planning[1] = f"over {MANY:,}" if needed > MANY else f"{needed:,}"
    return planning


def _common(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[str]]:
    """Scores of all, and why some that all have by name cannot be compared."""
    first, *others = runs
    scores = [shown_scores(run.scores) for run in others]
    shared = [score for score in shown_scores(first.scores) if all(score in s for s in scores)]
    problems: dict[str, str] = {}
    for task, _ in shared:
        for other in others:
            if problem := other_test(first, other, task):
                problems[task] = problem
    common = [(task, key) for task, key in shared if task not in problems]
    if not common:
        reason = f" ({'; '.join(problems.values())})" if problems else ""
        names = " and ".join(run.name for run in runs)
        raise UserError(f"{names} have no test in common{reason}")
    return common, list(problems.values())


def _runs(runs: RunSet) -> str:
    return "one model" if len(runs.runs) == 1 else f"{len(runs.runs)} seeds"
