"""The untrained encoder, scored before training: what the trained one has to beat.

Its scores and their single items are computed once in a run folder, and bound to the settings by a
hash, since no manifest names them before the run is finished.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from simcse.config.settings import Config, LoraConfig
from simcse.encoders import encoder, gate
from simcse.errors import UserError, naming_memory
from simcse.evaluation.protocol import Evaluation, Items, Scores
from simcse.evaluation.scoring import TaskList, score_model
from simcse.files import replacing, write_atomically
from simcse.reports.records import RawScores
from simcse.reports.runs import (
    EVALUATION_FOLDER,
    RAW_ITEMS_FILE,
    RAW_SCORES_FILE,
    read_items,
    read_json,
    save_scores,
)

AS_IT_WAS = {"projection": "none", "lora": LoraConfig()}
"""Settings of the encoder without what training adds to it."""


@dataclass(frozen=True)
class Untrained:
    """Scores and single items of the untrained encoder, by pooling."""

    scores: dict[str, Scores]
    items: dict[str, Items]


def score_untrained(run: Path, config: Config, tasks: TaskList) -> Untrained:
    """The scores that the run folder holds, or new ones where it holds none of this setting.

    Scores that somebody edited, or copied from another run, are computed again.
    """
    path = run / RAW_SCORES_FILE
    if path.is_file():
        try:
            record = read_json(path, RawScores)
            found = _by_pooling(record["scores"], read_items(path, record))
            if record["made_from"] == _made_from(config, found):
                return found
        except UserError:
            pass  # cut short, or no scores
        print(f"warning: {path}: not what was written there; computed again", flush=True)
    poolings: dict[str, str | None] = {name: name for name in config.evaluation.raw_poolings}
    if poolings and gate.stores_modules(encoder.origin_of(config.encoder)):
        poolings = {"own": None}
    found = Untrained({}, {})
    for name, pooling in poolings.items():
        print(f"scoring the untrained encoder ({name})", flush=True)
        raw = config.encoder.model_copy(update={"pooling": pooling, **AS_IT_WAS})
        evaluation = score_in(run, encoder.build(raw), tasks, config)
        found.scores[name], found.items[name] = evaluation.scores, evaluation.items
    record = {"made_from": _made_from(config, found), "scores": found.scores}
    save_scores(path, record, _in_one(found))
    return found


def score_in(
    run: Path,
    model: SentenceTransformer,
    tasks: TaskList,
    config: Config,
    sizes: Sequence[int] = (),
) -> Evaluation:
    """As :func:`score_model`; mteb's own result files go into the run folder."""
    folder = run / EVALUATION_FOLDER / "mteb"
    with naming_memory("while scoring", "evaluation.batch_size"):
        return score_model(
            model,
            tasks,
            config.evaluation.batch_size,
            name=run.name,
            mteb_folder=folder,
            precision=config.evaluation.precision,
            show_progress=sys.stderr.isatty(),
            sizes=sizes,
        )


def scored_alike(config: Config) -> dict[str, Any]:
    """The settings that the untrained encoder's scores depend on."""
    return {
        key: value
        for key, value in config.settings().items()
        if key.partition(".")[0] in ("encoder", "data", "evaluation")
    }


def take_over(twin: Path, run: Path) -> None:
    """Copy the scores of a run that is :func:`scored_alike`, unless there are some."""
    if not (run / RAW_SCORES_FILE).is_file() and (twin / RAW_ITEMS_FILE).is_file():
        text = (twin / RAW_SCORES_FILE).read_text(encoding="utf-8")
        write_atomically(run / RAW_SCORES_FILE, text)
        with replacing(run / RAW_ITEMS_FILE) as temporary:
            temporary.write_bytes((twin / RAW_ITEMS_FILE).read_bytes())


def _in_one(found: Untrained) -> Items:
    """The items of all poolings, each with its pooling before its name."""
    return {
        f"{pooling}/{name}": values
        for pooling, items in found.items.items()
        for name, values in items.items()
    }


def _by_pooling(scores: dict[str, Scores], items: Items) -> Untrained:
    """What :func:`_in_one` put together."""
    return Untrained(
        scores,
        {
            pooling: {
                name.removeprefix(f"{pooling}/"): values
                for name, values in items.items()
                if name.startswith(f"{pooling}/")
            }
            for pooling in scores
        },
    )


def _made_from(config: Config, found: Untrained) -> str:
    """SHA-256 of scores and items, and of the settings that make them."""
    digest = hashlib.sha256(json.dumps([scored_alike(config), found.scores]).encode())
    for name, values in sorted(_in_one(found).items()):
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()
