"""A training run from config to scored model, and the folder that holds it.

The folder is the state: without the manifest of :mod:`simcse.sealing` the run is unfinished and the
same command resumes it, with it the run is finished. One process at a time writes there. A folder
made with another config is never touched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from simcse import distributed
from simcse.config.reading import differences, read_config, settings_digest, to_yaml
from simcse.config.settings import Config
from simcse.data.documents import Documents
from simcse.data.readers import is_from_hub
from simcse.data.rows import load_training_data
from simcse.encoders import encoder, gate, lora
from simcse.encoders.base_card import of_card
from simcse.encoders.language_models import set_attention
from simcse.encoders.loading import load_trained
from simcse.encoders.mini_batches import on_device
from simcse.environment import environment
from simcse.errors import UserError, naming_memory
from simcse.evaluation.change import changes, verdict_line, worse_lines
from simcse.evaluation.protocol import PROTOCOL, Scores
from simcse.evaluation.retention import beside, sizes_of
from simcse.evaluation.scoring import TaskList, plan_tasks
from simcse.evaluation.sources import load_dev_task, load_geometry
from simcse.evaluation.table import LABELS, cell, collapse_lines
from simcse.evaluation.tasks import RetrievalTask, Task
from simcse.files import (
    check_parent,
    files_in,
    filling,
    is_ours,
    locked,
    remove_leftovers,
    write_atomically,
)
from simcse.objectives.terms import check_dims, describe, resolve
from simcse.reports.records import MadeFrom
from simcse.reports.runs import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    RAW_ITEMS_FILE,
    RESULT_FILES,
    SCORES_FILE,
    finished_run,
    read_json,
    save_scores,
)
from simcse.reports.tables import Column, as_text, references, retention_rows, score_rows
from simcse.sealing import MANIFEST, seal
from simcse.training import loop
from simcse.training.checkpoints import CHECKPOINTS, check_owner, newest_checkpoint, remove_all
from simcse.training.hints import hints, what_chooses_and_tests
from simcse.training.interruption import StopSignals
from simcse.training.loss import TrainingLoss
from simcse.training.resuming import Position
from simcse.training.setup import Dev, check_views_differ, make_accelerator
from simcse.training.text import TrainingSet, TrainingText
from simcse.training.text_embeddings import TextEmbeddings, text_embeddings
from simcse.training.untrained import (
    AS_IT_WAS,
    Untrained,
    score_in,
    score_untrained,
    take_over,
)

_START_ROWS = 4096  # to fit a student's map to its teacher's width


@dataclass(frozen=True)
class Prepared:
    """Everything that is read before weights are trained."""

    text: TrainingText
    model: SentenceTransformer
    tasks: TaskList
    dev: Dev
    loss: TrainingLoss
    helpers: dict[str, str]
    """Tell the embeddings of the teacher and of the guide from any other's."""

    @property
    def scored(self) -> TaskList:
        """What a model is scored on: the tasks, and the dev task where it is not one of them."""
        ours = [*self.tasks.ours]
        if all(task.name != self.dev.task.name for task in ours):
            ours.insert(0, self.dev.task)
        return replace(self.tasks, ours=ours)

    def reported(self, scores: Scores) -> Scores:
        """Without those of a dev task that is no test."""
        tests = {task.name for task in self.tasks.ours}
        return {k: v for k, v in scores.items() if k in tests or k != self.dev.task.name}


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
        if distributed.from_first(lambda: _is_finished(run, config)):
            if distributed.is_first():
                _show_finished(run, config)
            return
        make_accelerator(config, run)  # for what it refuses, before the text is read
        with StopSignals() as stop:
            prepared = prepare(config)
            with distributed.first():
                _open_folder(run, config, prepared, command)
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
    for change in _changes_since(run, config):
        print(f"warning: {change}")
    remove_all(run / CHECKPOINTS)  # a kill may have left some


def _changes_since(run: Path, config: Config) -> Iterator[str]:
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


def dry_run(config: Config) -> None:
    """Print what a run would do: config, data, parameters and an estimate of its time.

    Raises:
        UserError: Whatever :func:`train` would refuse before it trains; several processes.
    """
    if distributed.world() > 1:
        raise UserError("--dry-run: measures one process; start it without a launcher")
    config, run = resolve(config), Path(str(config.output))
    finished = _is_finished(run, config)
    make_accelerator(config, run)  # for what it refuses
    print(to_yaml(config))
    prepared = prepare(config)
    steps = prepared.text.steps
    step, dev = step_seconds(config, prepared), _dev_seconds(prepared)
    evaluations = -(-steps // config.evaluation.every)
    minutes = (steps * step + evaluations * dev) / 60
    print(
        f"time     about {minutes:.1f} minutes on this machine: {steps:,} steps of "
        f"{step:.3f} s, {evaluations} dev scores of {dev:.1f} s; "
        "the final scores come on top"
    )
    if finished:
        print(f"{run} holds this run, finished")
    print("dry run: nothing was written but caches")


def print_scores(scores: dict[str, Any]) -> None:
    """Print the table of a finished run, what became worse first, and the verdict last."""
    dev, found = scores["dev"], scores.get("changes", {})
    before = references([("", scores["raw"], scores.get("bm25", {}))])
    after = Column("trained", [scores["trained"]], found)
    # The dev task chose the checkpoint, so that it says nothing of an improvement.
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
        print(verdict_line(tests))


def prepare(config: Config) -> Prepared:
    """Read the text, build the model and its loss, and check that they fit; prints what was read.

    Raises:
        UserError: Whatever a run can be refused for before it trains.
    """
    data = Path(config.evaluation.data) if config.evaluation.data else None
    set_seed(config.seed)  # for the projection's first weights
    model = encoder.build(config.encoder)
    check_dims(config, model)
    is_stored = gate.stores_modules(encoder.origin_of(config.encoder))
    raw_poolings = [] if is_stored else config.evaluation.raw_poolings
    set_attention(
        "evaluation.raw_poolings",
        encoder.transformer_of(model),
        config.encoder.attention,
        raw_poolings,
    )
    with distributed.first():
        documents = Documents.of(config)
    text = TrainingText.read(config, model, documents)
    tasks = plan_tasks(config.evaluation.tasks, data).load(documents)
    if tasks.mteb:
        from simcse.evaluation.mteb_tasks import check_at_hand

        with distributed.first():
            check_at_hand(tasks.mteb, data)
    dev = Dev(
        load_dev_task(config.evaluation.dev, data, documents),
        load_geometry(data, dev_only=True),
        config.evaluation.batch_size,
        config.evaluation.precision,
    )
    for line in what_chooses_and_tests(dev.task, tasks.ours, [t.metadata.name for t in tasks.mteb]):
        print(line)
    if any(view.dropout is not None for view in config.views):
        encoder.check_dropout_is_reached(model)
    for number, own in enumerate(config.sets):
        if own.form in ("sentences", "documents"):
            check_views_differ(config, model, on_device(text.sample(number, 8), model.device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    adapted = f" ({trained:,} of them trained)" if config.encoder.has_adapters else ""
    print(
        f"model    {config.encoder.name}, {parameters:,} parameters{adapted}, {model.device}, "
        f"{config.training.precision}"
    )
    for line in hints(config, text.sets, model):
        print(line)
    hashes = text.hashes() if config.objective.helpers else np.empty(0)
    embeddings: dict[str, TextEmbeddings] = {}
    for kind in config.objective.helpers:
        with distributed.first():
            embeddings[kind] = text_embeddings(config, kind, hashes)
        text.look_up(kind, embeddings[kind])
    teacher = embeddings.get("teacher")
    with naming_memory("for what the objective learns", "the sizes in objective.terms"):
        loss = TrainingLoss(model, config, teacher.width if teacher else None)
    if teacher:
        chosen = np.flatnonzero(text.used()[0])[:_START_ROWS].tolist()
        loss.start_from(on_device(text.collate(0, 0, chosen), model.device))
    keys = {kind: found.key for kind, found in embeddings.items()}
    return Prepared(text, model, tasks, dev, loss, keys)


def _is_finished(run: Path, config: Config) -> bool:
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


def _open_folder(run: Path, config: Config, prepared: Prepared, command: list[str]) -> None:
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
    return found + [name for name in helpers if not Path(encoder.source_of(name)).exists()]


def step_seconds(
    config: Config, prepared: Prepared, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of forward and backward pass, the median of a few real batches."""
    model, text = prepared.model, prepared.text
    accelerator = make_accelerator(config, Path(str(config.output)))
    loss = prepared.loss.to(model.device)
    model.train()
    seconds = []
    for drawn in islice(text.sampler.batches_from(0), min(6, text.steps)):
        started = clock()
        features = on_device(text.collate(*drawn), model.device)
        loop.backpropagate(accelerator, loss, features)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds.append(clock() - started)
    return sorted(seconds)[len(seconds) // 2]


def _dev_seconds(prepared: Prepared) -> float:
    started = time.perf_counter()
    prepared.dev.scores(prepared.model)
    return time.perf_counter() - started
