"""What several runs say together: one setting over its seeds, or the settings of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from simcse.evaluation.statistics import Summary, summarize
from simcse.evaluation.table import LABELS, aligned, shown_scores, task_label
from simcse.reports.runs import RunSet, best_setting
from simcse.reports.tables import as_text, run_rows, summary_cell, what_chose


def summary_of(runs: RunSet) -> dict[str, Any]:
    """Mean, standard deviation, range and 95% interval of every score, as JSON values."""
    best = runs.best.config
    return {
        "seeds": [run.config.seed for run in runs.runs if run.config],
        "dev": {
            **_dev_of(runs, "task", "metric"),
            **asdict(dev_summary(runs)),
            "best_seed": best.seed if best else None,
        },
        "test": {
            task: {
                key: asdict(summarize(runs.values(task, key)))
                for other, key in shown_scores(runs.runs[0].scores)
                if other == task
            }
            for task in runs.runs[0].scores
        },
    }


def summary_text(runs: RunSet) -> str:
    """The summary as a table, dev apart from test."""
    dev = _dev_of(runs, "task", "metric")
    lines = [
        as_text(run_rows([runs])),
        "",
        f"{len(runs.runs)} seeds: mean ± standard deviation (95% interval of the mean).",
        what_chose([runs]),
        f"dev score: {summary_cell(dev['metric'], dev_summary(runs))}",
    ]
    if (best := runs.best.config) and len(runs.runs) > 1:
        lines.append(
            f"best of {len(runs.runs)} seeds by dev: seed {best.seed}; quote its scores as "
            f"best of {len(runs.runs)}, never as what a run gives"
        )
    return "\n".join(lines)


def dev_summary(runs: RunSet) -> Summary:
    """The best dev score of every seed."""
    return summarize([float(run.dev["best"]) for run in runs.runs if run.dev])


def _dev_of(runs: RunSet, *keys: str) -> dict[str, Any]:
    dev = runs.runs[0].dev or {}
    return {key: dev[key] for key in keys}


def sweep_of(sets: Sequence[RunSet]) -> dict[str, Any]:
    """The best setting of a sweep and the scores of all, as JSON values."""
    return {
        "best": best_setting(sets).name,
        "settings": {runs.name: summary_of(runs) for runs in sets},
    }


def sweep_text(sets: Sequence[RunSet], diverged: Sequence[str]) -> str:
    """The settings of a sweep as a table: dev scores, which choose, and test scores."""
    first = sets[0].runs[0].scores
    dev = _dev_of(sets[0], "task", "metric")
    tests = [(task, key) for task, key in shown_scores(first) if task != "geometry"]
    head = [f"{task_label(task, first[task])} ({LABELS[key]})" for task, key in tests]
    rows = [["setting", f"dev: {dev['task']} ({LABELS[dev['metric']]})", *head]]
    for runs in sets:
        found = [summarize(runs.values(task, key)) for task, key in tests]
        scores = [(dev["metric"], dev_summary(runs))]
        scores += [(key, values) for (_, key), values in zip(tests, found, strict=True)]
        rows.append([runs.name, *(summary_cell(key, s, interval=False) for key, s in scores)])
    rows += [[name, "diverged", *[""] * len(tests)] for name in diverged]
    best = best_setting(sets)
    seeds = f", by the mean of {len(best.runs)} seeds" if len(best.runs) > 1 else ""
    return "\n".join(
        [
            aligned(rows, left=1),
            "",
            f"best of {len(rows) - 1} settings by dev{seeds}: {best.name}; the dev score of the "
            "best of many is better than it would be again",
            what_chose(sets),
        ]
    )
