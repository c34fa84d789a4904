"""What several runs say together: one setting over its seeds, or the settings of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from simcse.evaluation.statistics import Summary, summarize
from simcse.evaluation.table import LABELS, aligned, cell, shown_scores, task_label
from simcse.reports.runs import RunSet, best_setting


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
    first = runs.runs[0].scores
    head = ["task", "score", "mean ± std", "lowest to highest", "95% interval of the mean"]
    rows = [head]
    for task, key in shown_scores(first):
        summary = summarize(runs.values(task, key))
        rows.append([task_label(task, first[task]), LABELS[key], *summary_cells(key, summary)])
    dev = _dev_of(runs, "task", "metric")
    dev_cells = summary_cells(dev["metric"], dev_summary(runs))
    lines = [
        f"{len(runs.runs)} seeds; checkpoints were chosen on dev, test scores chose nothing",
        aligned(rows, left=2),
        "",
        f"dev ({dev['task']}, {LABELS[dev['metric']]}), which chose the checkpoints: "
        f"{dev_cells[0]}, {dev_cells[1]}",
    ]
    if (best := runs.best.config) and len(runs.runs) > 1:
        lines.append(
            f"best of {len(runs.runs)} seeds by dev: seed {best.seed}; quote its scores as "
            f"best of {len(runs.runs)}, never as what a run gives"
        )
    return "\n".join(lines)


def summary_cells(key: str, summary: Summary) -> list[str]:
    """``mean ± std``, ``min–max`` and the interval, as they are printed."""
    mean, low_high = (
        cell(key, summary.mean),
        f"{cell(key, summary.minimum)} to {cell(key, summary.maximum)}",
    )
    if summary.std is None or summary.low is None or summary.high is None:
        return [mean, low_high, "one seed"]
    return [
        f"{mean} ± {cell(key, summary.std)}",
        low_high,
        f"{cell(key, summary.low)} to {cell(key, summary.high)}",
    ]


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
        rows.append([runs.name, *(summary_cells(key, values)[0] for key, values in scores)])
    rows += [[name, "diverged", *[""] * len(tests)] for name in diverged]
    best = best_setting(sets)
    seeds = f", by the mean of {len(best.runs)} seeds" if len(best.runs) > 1 else ""
    return "\n".join(
        [
            aligned(rows, left=1),
            "",
            f"best of {len(rows) - 1} settings by dev{seeds}: {best.name}; test scores chose "
            "nothing, but for a dev task among them; the dev score of the best of many is better "
            "than it would be again",
        ]
    )
