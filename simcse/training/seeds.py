"""One setting under several seeds: a run folder each, and what they say together."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simcse import distributed
from simcse.config.reading import read_config
from simcse.config.settings import Config
from simcse.errors import UserError
from simcse.evaluation.statistics import Summary, summarize
from simcse.evaluation.table import LABELS, aligned, cell, shown_scores, task_label
from simcse.files import is_ours, locked, write_atomically
from simcse.reports.records import Plan
from simcse.reports.runs import (
    CONFIG_FILE,
    SEED_PREFIX,
    SUMMARY_FILE,
    RunSet,
    load_runs,
    read_json,
    seed_folders,
    setting_differences,
)
from simcse.training.run import dry_run as show
from simcse.training.run import train


def train_seeds(config: Config, command: list[str], *, dry_run: bool = False) -> None:
    """Train and score every seed of ``config.seeds``, then report them together.

    Seeds that are finished are not run again; the untrained encoder is scored once. A dry run
    shows the first seed and writes nothing.

    Raises:
        UserError: As :func:`simcse.training.run.train`; the folder holds a single run.
    """
    if dry_run:
        distributed.from_first(lambda: _planned(Path(str(config.output)), config))
        show(seed_config(config, config.seeds[0]))
        print(f"times {len(config.seeds)}: seeds {', '.join(map(str, config.seeds))}")
        return
    folder = Path(str(config.output))
    with locked(folder) if distributed.is_first() else nullcontext():
        _train_all(folder, config, command)


def _train_all(folder: Path, config: Config, command: list[str]) -> None:
    planned = distributed.from_first(lambda: _planned(folder, config))
    if distributed.is_first():
        write_atomically(folder / SUMMARY_FILE, json.dumps({"planned": planned}) + "\n")
    raw_scores: Path | None = None
    for number, seed in enumerate(config.seeds, 1):
        single = seed_config(config, seed)
        print(f"\n== seed {seed} ({number} of {len(config.seeds)})")
        train(single, command, raw_scores)
        raw_scores = raw_scores or Path(str(single.output))
    if not distributed.is_first():
        return
    runs = load_runs(folder, [str(seed) for seed in config.seeds])
    summary = {"planned": planned, **summary_of(runs)}
    write_atomically(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    print(f"\n{summary_text(runs)}\nwritten to {folder / SUMMARY_FILE}")


def _planned(folder: Path, config: Config) -> list[int]:
    """Every seed that the folder will hold.

    Raises:
        UserError: The folder holds something else.
    """
    if (folder / SUMMARY_FILE).exists() and not _is_summary(folder / SUMMARY_FILE):
        raise UserError(
            f"output: {folder} has a {SUMMARY_FILE} that is not of seeds, or damaged; choose "
            "another folder with output=FOLDER"
        )
    if (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"output: {folder} holds a single run; choose another folder with output=FOLDER"
        )
    others = [path for path in folder.glob("*") if not is_ours(path)]
    if others and not (seed_folders(folder) or (folder / SUMMARY_FILE).exists()):
        raise UserError(
            f"output: {folder} is not empty and not a folder of seeds; choose another with "
            "output=FOLDER"
        )
    for name, run in seed_folders(folder).items():
        path = run / CONFIG_FILE
        if path.is_file() and (found := setting_differences(read_config(path), config)):
            raise UserError(
                f"output: {folder} has seed {name} of another setting ({'; '.join(found)}); "
                "choose another folder with output=FOLDER"
            )
    planned = [int(seed) for seed in seed_folders(folder)]
    return sorted({*planned, *config.seeds})


def _is_summary(path: Path) -> bool:
    try:
        return bool(read_json(path, Plan))
    except (OSError, UserError):
        return False


def seed_config(config: Config, seed: int) -> Config:
    """The config of one seed's run."""
    output = str(Path(str(config.output)) / f"{SEED_PREFIX}{seed}")
    return config.model_copy(update={"seed": seed, "seeds": [], "output": output})


def summary_of(runs: RunSet) -> dict[str, Any]:
    """Mean, standard deviation, range and 95% interval of every score, as JSON values."""
    best = runs.best.config
    return {
        "seeds": [run.config.seed for run in runs.runs if run.config],
        "dev": {
            **_dev_of(runs, "task", "metric"),
            **asdict(_dev_summary(runs)),
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
    dev_cells = summary_cells(dev["metric"], _dev_summary(runs))
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


def _dev_summary(runs: RunSet) -> Summary:
    return summarize([float(run.dev["best"]) for run in runs.runs if run.dev])


def _dev_of(runs: RunSet, *keys: str) -> dict[str, Any]:
    dev = runs.runs[0].dev or {}
    return {key: dev[key] for key in keys}
