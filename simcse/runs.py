"""Reads finished runs back: one folder, or a folder with one run a seed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simcse.config import Config, validate
from simcse.errors import UserError
from simcse.evaluation.protocol import Items, Scores
from simcse.files import replacing

CONFIG_FILE = "config.yaml"
SCORES_FILE = "scores.json"
ITEMS_FILE = "scores.npz"
LOG_FILE = "log.jsonl"
SEED_PREFIX = "seed-"


@dataclass(frozen=True)
class Run:
    """A scored model: a finished training run, or what ``evaluate`` wrote."""

    name: str
    folder: Path
    scores: Scores
    items: Items
    """Values of single pairs and queries; see :data:`simcse.evaluation.protocol.Items`."""
    raw: dict[str, Scores]
    """Untrained encoder by pooling; empty for a model that was only evaluated."""
    dev: dict[str, Any] | None
    """Dev task, its metric, best value and step; None as above."""
    config: Config | None
    log: list[dict[str, Any]]


@dataclass(frozen=True)
class RunSet:
    """One run, or one setting under several seeds."""

    name: str
    runs: list[Run]

    def values(self, task: str, key: str) -> list[float]:
        """A score of every run that has it, in the order of the seeds."""
        return [
            float(run.scores[task][key]) for run in self.runs if key in run.scores.get(task, {})
        ]

    def only(self, seeds: Sequence[str]) -> RunSet:
        """The runs of some seeds.

        Raises:
            UserError: A seed was not run.
        """
        by_name = {run.name.removeprefix(SEED_PREFIX): run for run in self.runs}
        if missing := [seed for seed in seeds if seed not in by_name]:
            raise UserError(f"{self.name}: no seed {missing[0]}; there are {', '.join(by_name)}")
        return RunSet(self.name, [by_name[seed] for seed in seeds])


def load_runs(path: Path) -> RunSet:
    """Read a run folder, a folder of seeds, or the folder or file that ``evaluate`` wrote.

    Raises:
        UserError: There is nothing finished, or a file is damaged.
    """
    if path.is_file():
        return RunSet(path.stem, [_load(path)])
    if (path / SCORES_FILE).is_file():
        return RunSet(path.name, [_load(path / SCORES_FILE)])
    seeds = sorted(path.glob(f"{SEED_PREFIX}*"), key=lambda p: int(p.name[len(SEED_PREFIX) :]))
    if not path.is_dir():
        raise UserError(f"{path}: no such run")
    if not seeds:
        raise UserError(f"{path}: no {SCORES_FILE} in it, so it is no finished run")
    if unfinished := [p.name for p in seeds if not (p / SCORES_FILE).is_file()]:
        raise UserError(f"{path}: not finished: {', '.join(unfinished)}; run its command again")
    return RunSet(path.name, [_load(p / SCORES_FILE) for p in seeds])


def save_items(path: Path, items: Items) -> None:
    """Write the values of single items; :func:`load_runs` reads them."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **items)  # type: ignore[arg-type]


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that a run wrote.

    Raises:
        UserError: It is cut short, or a key is missing.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in keys if key not in values]:
            raise ValueError(f"no {', '.join(missing)}")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); remove that file and start again, the rest is kept"
        ) from error
    return values


def _load(path: Path) -> Run:
    folder = path.parent
    values = read_json(path)
    if "trained" not in values:  # written by evaluate
        values = read_json(path, "model", "scores")
        name = Path(values["model"]).name
        return Run(name, folder, values["scores"], _items(path), {}, None, None, [])
    values = read_json(path, "trained", "raw", "dev")
    config_path = folder / CONFIG_FILE
    try:
        config = validate(
            yaml.safe_load(config_path.read_text(encoding="utf-8")), where=str(config_path)
        )
        lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
        log = [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing from a finished run") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{folder}: damaged {CONFIG_FILE} or {LOG_FILE} ({error})") from error
    return Run(
        folder.name, folder, values["trained"], _items(path), values["raw"], values["dev"],
        config, log,
    )  # fmt: skip


def _items(scores: Path) -> Items:
    path = scores.with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error})") from error
