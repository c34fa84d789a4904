"""The folder of a run, which is its state.

Without the manifest of :mod:`simcse.sealing` the run is unfinished and the same command resumes it,
with it the run is finished. A folder made with another config is never touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import set_seed

from simcse import distributed
from simcse.config.reading import differences, read_config, to_yaml
from simcse.config.settings import Config
from simcse.data.readers import is_from_hub
from simcse.data.rows import load_training_data
from simcse.encoders import encoder
from simcse.encoders.base_card import of_card
from simcse.environment import environment
from simcse.errors import UserError
from simcse.files import check_parent, is_ours, remove_leftovers, write_atomically
from simcse.objectives.terms import describe
from simcse.reports.records import MadeFrom
from simcse.reports.runs import CONFIG_FILE, ENVIRONMENT_FILE, RESULT_FILES, read_json
from simcse.sealing import MANIFEST
from simcse.training.checkpoints import CHECKPOINTS, check_owner, newest_checkpoint
from simcse.training.preparing import Prepared
from simcse.training.text import TrainingSet


def is_finished(run: Path, config: Config) -> bool:
    """Whether the folder holds this very run, finished.

    Raises:
        UserError: The folder holds a run with another config, or something else.
    """
    if not run.exists():
        check_parent(run, "output: ")
        return False
    if not run.is_dir():
        raise UserError(f"output: {run} is a file")
    path = run / CONFIG_FILE
    others = any(entry != path and not is_ours(entry) for entry in run.iterdir())
    started = any((run / name).is_file() for name in (*RESULT_FILES, MANIFEST))
    if others and not (path.is_file() and started):
        raise UserError(
            f"output: {run} is not empty and not a run folder; choose another with output=FOLDER"
        )
    if not path.is_file():
        return False
    try:
        old = read_config(path)
    except UserError as error:
        raise UserError(
            f"{path}: damaged, or not of a run; choose another folder with output=FOLDER ({error})"
        ) from error
    if changed := differences(old.model_copy(update={"output": config.output}), config):
        raise UserError(
            f"output: {run} was made with another config ({'; '.join(changed)}); "
            "choose another with output=FOLDER, or remove it"
        )
    if (run / MANIFEST).is_file():
        return True
    check_owner(run / CHECKPOINTS)
    return False


def open_folder(run: Path, config: Config, prepared: Prepared, command: list[str]) -> None:
    """Write down what the run is made from; on resume check that it is still the same.

    Raises:
        UserError: Other text or another number of processes than the run was started with; a
            folder that not all processes see.
    """
    path, world = run / ENVIRONMENT_FILE, distributed.world()
    if distributed.is_first():
        run.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run)
        remove_leftovers(run / CHECKPOINTS)
        write_atomically(run / CONFIG_FILE, to_yaml(config))  # first: it makes this a run folder
    elif not path.is_file():
        raise UserError(
            f"output: process {distributed.rank()} does not see {path}; all machines need the "
            "same folder"
        )
    start = {"encoder": encoder.fingerprint(prepared.model), **prepared.helpers}
    start |= {f"evaluation: {name}": data for name, data in prepared.scored.own_data.items()}
    if path.is_file():
        before = read_json(path, MadeFrom)
        if before["processes"] != world:
            raise UserError(
                f"output: {run} was started with {before['processes']} processes, not {world}; "
                "batches and dropout would not be the same: start as many, or anew with "
                "output=FOLDER"
            )
        others = (_other_start(before, start, run), _other_text(before, prepared.text.sets, run))
        if change := next(chain.from_iterable(others), None):
            raise UserError(f"{change}; bring it back, or start anew with output=FOLDER")
        return
    if newest_checkpoint(run / CHECKPOINTS) is not None:
        raise UserError(
            f"{path}: missing from a run that has checkpoints; bring it back, or start anew with "
            "output=FOLDER"
        )
    found = {
        **environment(config.seed, command),
        "encoder_commit": encoder.hub_commit(config.encoder),
        "encoder_card": of_card(Path(encoder.origin_of(config.encoder).path)),
        "from_hub": _from_hub(config),
        "processes": world,
        "start": start,
        "text": [_recorded(own) for own in prepared.text.sets],
        "terms": describe(config),
    }
    write_atomically(path, json.dumps(found, indent=2) + "\n")


def _from_hub(config: Config) -> list[str]:
    """What of the training text was had from there, and of teacher and guide."""
    found = [name for data in config.sets for name in data.train if is_from_hub(name)]
    helpers = [name for name, _ in config.objective.helpers.values()]
    return found + [name for name in helpers if encoder.is_hub_name(name)]


def changes_since(run: Path, config: Config) -> Iterator[str]:
    """What encoder and text of a finished run are no longer, each in words."""
    before = read_json(run / ENVIRONMENT_FILE, MadeFrom)
    try:
        set_seed(config.seed)  # for the projection's first weights
        model = encoder.build(config.encoder)
        found = [*_other_start(before, {"encoder": encoder.fingerprint(model)}, run)]
        sets = [
            TrainingSet(data, *load_training_data(data, model.tokenizer, config.seed))
            for data in config.sets
        ]
        for change in [*found, *_other_text(before, sets, run)]:
            yield f"{change}; these are the results from then, output=FOLDER starts anew"
    except UserError as error:
        yield f"not compared with its encoder and text as they are now ({error})"


def _other_start(before: dict[str, Any], start: dict[str, str], run: Path) -> Iterator[str]:
    for name, hashed in start.items():
        if before["start"].get(name) != hashed:
            yield f"{name}: it has changed since {run} was started"


def _other_text(before: dict[str, Any], sets: Sequence[TrainingSet], run: Path) -> Iterator[str]:
    if len(before["text"]) != len(sets):  # the config is the same
        raise UserError(
            f"{run / ENVIRONMENT_FILE}: damaged (text of {len(before['text'])} data sets, the "
            f"config has {len(sets)}); bring it back, or start anew with output=FOLDER"
        )
    for old, new in zip(before["text"], sets, strict=True):
        if old != _recorded(new):
            yield (
                f"data.train: the text has changed since {run} was started (then {old['rows']:,} "
                f"rows, sha256 {old['counts']['sha256']})"
            )


def _recorded(own: TrainingSet) -> dict[str, Any]:
    return {"train": own.config.train, "rows": len(own.rows), "counts": asdict(own.counts)}
