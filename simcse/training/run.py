"""A training run from config to scored model; one process at a time writes to its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from simcse import distributed
from simcse.config.reading import read_config, settings_digest, to_yaml
from simcse.config.settings import Config
from simcse.encoders import encoder, lora
from simcse.encoders.loading import load_trained
from simcse.errors import naming_memory
from simcse.evaluation.change import changes, verdict_line, worse_lines
from simcse.evaluation.protocol import PROTOCOL, Scores
from simcse.evaluation.retention import beside, sizes_of
from simcse.evaluation.table import LABELS, cell, collapse_lines
from simcse.evaluation.tasks import RetrievalTask, Task
from simcse.files import (
    files_in,
    filling,
    locked,
    write_atomically,
)
from simcse.objectives.terms import resolve
from simcse.reports.runs import (
    CONFIG_FILE,
    RAW_ITEMS_FILE,
    RESULT_FILES,
    SCORES_FILE,
    finished_run,
    save_scores,
)
from simcse.reports.tables import Column, as_text, references, retention_rows, score_rows
from simcse.sealing import MANIFEST, seal
from simcse.training import loop
from simcse.training.checkpoints import CHECKPOINTS, newest_checkpoint, remove_all
from simcse.training.interruption import StopSignals
from simcse.training.preparing import Prepared, prepare
from simcse.training.resuming import Position
from simcse.training.run_folder import changes_since, is_finished, open_folder
from simcse.training.setup import make_accelerator
from simcse.training.untrained import (
    AS_IT_WAS,
    Untrained,
    score_in,
    score_untrained,
    take_over,
)


def train(config: Config, command: list[str], twin: Path | None = None) -> None:
    """Run, resume or show a training run.

    Args:
        config: Resolved config; ``output`` names the run folder.
        command: Command line to write down with the results.
        twin: A run whose untrained encoder is scored alike: its scores of it are taken over.

    Raises:
        UserError: Anything the user can mend; what is on disk stays as it was.
    """
    config, run = resolve(config), Path(str(config.output))
    # A finished run does not change any more, so that it can be read without a lock.
    is_locked = distributed.is_first() and not (run / MANIFEST).is_file()
    with locked(run) if is_locked else nullcontext():
        if distributed.from_first(lambda: is_finished(run, config)):
            if distributed.is_first():
                _show_finished(run, config)
            return
        make_accelerator(config, run)  # for what it refuses, before the text is read
        with StopSignals() as stop:
            prepared = prepare(config)
            with distributed.first():
                open_folder(run, config, prepared, command)
            if distributed.is_first() and twin:
                take_over(twin, run)
            _train_in(run, config, prepared, stop)


def _show_finished(run: Path, config: Config) -> None:
    scores, old = finished_run(run)
    if old.hub != config.hub:  # the one section that may change; the others stay as they are
        new = old.model_copy(update={"hub": config.hub})
        write_atomically(run / CONFIG_FILE, to_yaml(new))
    print(f"{run} is finished:")
    print_scores(scores)
    for change in changes_since(run, config):
        print(f"warning: {change}")
    remove_all(run / CHECKPOINTS)  # a kill may have left some


def _train_in(
    run: Path,
    config: Config,
    prepared: Prepared,
    stop: StopSignals,
) -> None:
    before = distributed.from_first(lambda: score_untrained(run, config, prepared.scored))
    checkpoint = distributed.from_first(
        lambda: newest_checkpoint(run / CHECKPOINTS, lambda line: print(f"warning: {line}"))
    )
    if checkpoint is not None:
        print(f"resuming from {checkpoint}")
    started = time.monotonic()
    set_seed(_dropout_seed(config.seed))  # which must not depend on what was computed above
    position, model = loop.train(
        config,
        run,
        prepared.loss,
        prepared.text,
        prepared.dev.scores,
        stop,
        checkpoint,
    )
    if distributed.is_first():
        minutes = None if checkpoint else round((time.monotonic() - started) / 60, 2)
        _finish(run, config, prepared, model, before, position, minutes)
    distributed.wait()


def _finish(
    run: Path,
    config: Config,
    prepared: Prepared,
    model: SentenceTransformer,
    before: Untrained,
    position: Position,
    minutes: float | None,
) -> None:
    """Export the model, which has the weights of the best checkpoint, and score it."""
    with filling(run, keeps_old=True) as folder:
        exported = encoder.exported(model)
        if config.encoder.has_adapters:
            encoder.save(exported, folder / lora.FOLDER)
            lora.merge(encoder.transformer_of(exported).model)
        encoder.save(exported, folder)
        model_files = files_in(folder)
    # Scored as its users will load it: from disk, without mixed precision.
    result = load_trained(run, trust_remote_code=config.encoder.trust_remote_code)
    print("scoring the trained model", flush=True)
    dims = config.objective.dims
    sizes = sizes_of(dims, int(result.get_embedding_dimension())) if dims else []
    evaluation = score_in(run, result, prepared.scored, config, sizes)
    tests = {task.name for task in prepared.tasks.ours}
    retained = [row for row in evaluation.retention if row["task"] in tests]
    if retained and config.evaluation.raw_poolings:
        start = encoder.build(config.encoder.model_copy(update=AS_IT_WAS))
        cut = score_in(run, start, replace(prepared.tasks, mteb=[]), config, sizes)
        retained = beside(retained, cut.retention)
    metrics = {task.name: task.metric for task in prepared.scored.ours}
    with naming_memory("for BM25", "the number of documents of a retrieval test"):
        bm25 = _bm25_scores(prepared.tasks.ours)
    write_atomically(run / CONFIG_FILE, to_yaml(config))  # whatever became of it meanwhile
    scores = {
        "protocol": PROTOCOL,
        "settings": settings_digest(read_config(run / CONFIG_FILE)),
        "raw": {pooling: prepared.reported(scores) for pooling, scores in before.scores.items()},
        "bm25": bm25,
        "trained": prepared.reported(evaluation.scores),
        "retention": retained,
        "changes": changes(before.scores, before.items, evaluation, metrics),
        "dev": {
            "task": prepared.dev.task.name,
            "metric": prepared.dev.task.metric,
            "best": position.best_score,
            "best_step": position.best_step,
            "steps": position.step,
        },
        "minutes": minutes,
    }
    save_scores(run / SCORES_FILE, scores, evaluation.items)
    seal(run, [*model_files, *RESULT_FILES, RAW_ITEMS_FILE])  # from here on the run is finished
    remove_all(run / CHECKPOINTS)
    print_scores(scores)
    print(f"model and scores are in {run}")


def _bm25_scores(tasks: Sequence[Task]) -> Scores:
    searches = [task for task in tasks if isinstance(task, RetrievalTask)]
    return {task.name: task.bm25().scores for task in searches}


def _dropout_seed(seed: int) -> int:
    """The run's seed; in further processes another, so that each has dropout of its own."""
    number = distributed.rank()
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if number else seed


def print_scores(scores: dict[str, Any]) -> None:
    """Print the table of a finished run, what became worse first, and the verdict last."""
    dev, found = scores["dev"], scores.get("changes", {})
    before = references([("", scores["raw"], scores.get("bm25", {}))])
    after = Column("trained", [scores["trained"]], found)
    tests = {task: change for task, change in found.items() if task in scores["trained"]}
    for line in worse_lines(found, dev["task"]):
        print(line)
    print(f"\n{as_text(score_rows([after], before))}\n")
    for line in collapse_lines({"trained": scores["trained"]}):
        print(line)
    if retained := scores.get("retention"):
        print(f"{as_text(retention_rows(retained))}\n")
    metric = dev["metric"]
    print(
        f"best of {dev['task']} ({LABELS[metric]} {cell(metric, dev['best'])}) "
        f"at step {dev['best_step']} of {dev['steps']}"
    )
    if tests:
        print(verdict_line(tests, dev["task"]))
