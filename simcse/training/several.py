"""Several runs in one folder: one setting under several seeds, or the settings of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from simcse import distributed
from simcse.config.reading import read_config
from simcse.config.settings import Config
from simcse.errors import DivergedError, UserError
from simcse.files import is_ours, locked, write_atomically
from simcse.objectives.terms import resolve
from simcse.reports.runs import (
    CONFIG_FILE,
    SEED_PREFIX,
    SUMMARY_FILE,
    PlannedRuns,
    load_runs,
    load_sets,
    read_plan,
    refuse_links,
    seed_folders,
    setting_differences,
)
from simcse.reports.summary import summary_of, summary_text, sweep_of, sweep_text
from simcse.training import run
from simcse.training.dry_run import print_plan
from simcse.training.setup import with_resolved_precision
from simcse.training.untrained import scored_alike

Members = Mapping[str, Config]
"""Name of the run folder to its config."""


def train(
    config: Config, command: list[str], twin: Path | None = None, *, dry_run: bool = False
) -> None:
    """Train and score one run, or one for every seed of ``config.seeds``, and report them together.

    Runs that are finished are not repeated; the untrained encoder is scored once. A dry run shows
    the first seed and writes nothing.

    Args:
        config: Resolved config; ``output`` names the folder.
        command: Command line to write down with the results.
        twin: As for :func:`simcse.training.run.train`.
        dry_run: Show what would be done.

    Raises:
        UserError: As :func:`simcse.training.run.train`; the folder holds something else.
    """
    config = _resolve(config, Path(str(config.output)))
    if config.seeds:
        members = {f"{SEED_PREFIX}{seed}": seed_config(config, seed) for seed in config.seeds}
        _Several(Path(str(config.output)), members, "seeds").train(command, twin, dry_run=dry_run)
    elif dry_run:
        print_plan(config)
    else:
        run.train(config, command, twin)


def train_sweep(configs: Members, command: list[str], *, dry_run: bool = False) -> None:
    """Train every setting of a sweep, one run or one for each seed, and say which is the best.

    A run that diverges does not end the sweep; the table says so.

    Args:
        configs: From :func:`simcse.config.reading.load_sweep`.
        command: As for :func:`train`.
        dry_run: Show the first setting.

    Raises:
        UserError: As :func:`train`; all runs have diverged.
    """
    folder = Path(str(next(iter(configs.values())).output)).parent
    configs = {name: _resolve(config, folder) for name, config in configs.items()}
    _Several(folder, configs, "a sweep").train(command, dry_run=dry_run)


def _resolve(config: Config, folder: Path) -> Config:
    config = resolve(config)
    return distributed.from_first(lambda: with_resolved_precision(config, folder))


def seed_config(config: Config, seed: int) -> Config:
    """The config of one seed's run."""
    output = str(Path(str(config.output)) / f"{SEED_PREFIX}{seed}")
    return config.model_copy(update={"seed": seed, "seeds": [], "output": output})


class _Several:
    """The runs of one command, and the folder that holds them and maybe others of its kind."""

    def __init__(self, folder: Path, members: Members, kind: str) -> None:
        self.folder = folder
        self.members = members
        self.kind = kind

    def train(self, command: list[str], twin: Path | None = None, *, dry_run: bool = False) -> None:
        if dry_run:
            distributed.from_first(self._check_folder)
            train(next(iter(self.members.values())), command, dry_run=True)
            names = ", ".join(self.members).replace(SEED_PREFIX, "")
            of = "seeds " if self.kind == "seeds" else ""
            print(f"times {len(self.members)}: {of}{names}")
            return
        with locked(self.folder) if distributed.is_first() else nullcontext():
            plan = distributed.from_first(self._check_folder)
            planned = _planned(plan, list(self.members))
            self._write({**planned, "diverged": plan.diverged})
            diverged = self._train_members(command, twin)
            if distributed.is_first():
                gone = [name for name in plan.diverged if name not in self.members]
                self._report({**planned, "diverged": [*gone, *diverged]}, diverged)

    def _train_members(self, command: list[str], twin: Path | None) -> list[str]:
        """Names of those that have diverged."""
        diverged: list[str] = []
        first: Config | None = None
        for number, (name, config) in enumerate(self.members.items(), 1):
            print(f"\n== {_label(name)} ({number} of {len(self.members)})")
            # What does not change the untrained encoder's scores need not repeat them.
            if first and scored_alike(first) == scored_alike(config):
                twin = _first_run(first)
            try:
                train(config, command, twin)
                first = first or config
            except DivergedError as error:
                if self.kind == "seeds":
                    raise
                print(f"warning: {name} has diverged: {error}")
                diverged.append(name)
        return diverged

    def _report(self, planned: dict[str, Any], diverged: list[str]) -> None:
        if self.kind == "seeds":
            seeds = [name.removeprefix(SEED_PREFIX) for name in self.members]
            runs = load_runs(self.folder, seeds)
            summary, text = summary_of(runs), summary_text(runs)
        else:
            self._write(planned)  # which of them have diverged, so that they are not missed
            sets = load_sets(self.folder, list(self.members))
            summary, text = sweep_of(sets), sweep_text(sets, diverged)
        self._write({**planned, **summary})
        print(f"\n{text}\nwritten to {self.folder / SUMMARY_FILE}")

    def _write(self, summary: dict[str, Any]) -> None:
        if distributed.is_first():
            text = json.dumps(summary, indent=2) + "\n"
            write_atomically(self.folder / SUMMARY_FILE, text)

    def _check_folder(self) -> PlannedRuns:
        """What the folder holds already.

        Raises:
            UserError: Something else than runs of this kind that differ in the same settings.
        """
        folder, summary = self.folder, self.folder / SUMMARY_FILE
        another = "choose another with output=FOLDER"
        try:
            plan = read_plan(folder)
        except (OSError, UserError) as error:
            raise UserError(
                f"output: {folder} has a {SUMMARY_FILE} that is not of {self.kind}, or damaged; "
                "choose another folder with output=FOLDER"
            ) from error
        if (folder / CONFIG_FILE).is_file():
            raise UserError(
                f"output: {folder} holds a single run; choose another folder with output=FOLDER"
            )
        seeds = seed_folders(folder)
        if (plan.seeds or seeds) if self.kind != "seeds" else plan.names:
            other = "seeds" if self.kind != "seeds" else "a sweep"
            raise UserError(f"output: {folder} holds {other}, not {self.kind}; {another}")
        others = [path for path in folder.glob("*") if not is_ours(path)]
        if others and not (seeds or summary.exists()):
            raise UserError(
                f"output: {folder} is not empty and not a folder of {self.kind}; {another}"
            )
        names = [*plan.names, *(f"{SEED_PREFIX}{seed}" for seed in seeds)]
        self._check_settings([folder / name for name in dict.fromkeys([*names, *self.members])])
        return PlannedRuns([int(seed) for seed in seeds], plan.names, plan.diverged)

    def _check_settings(self, runs: list[Path]) -> None:
        """Runs that are there differ from those of this command only as these do."""
        refuse_links(runs)
        reference, *more = self.members.values()
        varied = {_key(line) for other in more for line in setting_differences(reference, other)}
        for member in runs:
            for path in [member / CONFIG_FILE, *member.glob(f"{SEED_PREFIX}*/{CONFIG_FILE}")]:
                if not path.is_file():
                    continue
                lines = setting_differences(read_config(path), reference)
                if found := [line for line in lines if _key(line) not in varied]:
                    raise UserError(
                        f"output: {self.folder} has {_label(member.name)} of another setting "
                        f"({'; '.join(found)}); choose another folder with output=FOLDER"
                    )


def _planned(plan: PlannedRuns, members: list[str]) -> dict[str, Any]:
    """Every run that the folder will hold."""
    seeds = [int(name.removeprefix(SEED_PREFIX)) for name in members if _is_seed(name)]
    names = [name for name in members if not _is_seed(name)]
    return {"planned": sorted({*plan.seeds, *seeds}) or list(dict.fromkeys([*plan.names, *names]))}


def _is_seed(name: str) -> bool:
    return name.startswith(SEED_PREFIX)


def _label(name: str) -> str:
    return name.replace(SEED_PREFIX, "seed ") if _is_seed(name) else name


def _key(line: str) -> str:
    return line.partition(":")[0]


def _first_run(config: Config) -> Path:
    """A run folder of a config that is finished."""
    return Path(str((seed_config(config, config.seeds[0]) if config.seeds else config).output))
