"""The training loop: batch, gradients, clip, step, log, dev score, checkpoint, stop."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import get_linear_schedule_with_warmup

from simcse import checkpoints, distributed, encoder
from simcse.caching import Features, random_state, replaying, set_random_state
from simcse.checkpoints import CHECKPOINTS, STATE_FILE
from simcse.engines import Engine, clip_gradients, load_optimizer_state, optimizer_state
from simcse.errors import UserError, naming_memory
from simcse.interruption import StopSignals, stop
from simcse.loss import TrainingLoss
from simcse.progress import Progress
from simcse.push import CheckpointPushes
from simcse.settings import Config
from simcse.training import DEV_SCORE, Sampler, batch_sampler, steps_of, view_collator

_MEMORY = ("training.mini_batch_size (gradient caching)", "training.batch_size", "data.max_length")


@dataclass
class Position:
    """How far a run is: what a checkpoint holds beside weights, optimiser and random numbers."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    totals: dict[str, float] = field(default_factory=dict)
    """Of the loss and its terms, summed over the steps since the last line of the log."""
    since: int = 0
    """Steps in :attr:`totals`."""
    log: list[dict[str, Any]] = field(default_factory=list)


def train(  # noqa: C901 (one function, to be read from top to bottom)
    config: Config,
    run: Path,
    loss: TrainingLoss,
    rows: Dataset,
    dev: Callable[[SentenceTransformer], dict[str, float]],
    signals: StopSignals,
    checkpoint: Path | None,
) -> tuple[Position, SentenceTransformer]:
    """Train, or resume from a checkpoint.

    Args:
        config: The run.
        run: Its folder.
        loss: The objective, which holds the encoder.
        rows: From :func:`simcse.data.load_training_data`.
        dev: Scores an encoder, all processes together: :data:`DEV_SCORE` and the geometry.
        signals: Entered by the caller.
        checkpoint: Folder to resume from.

    Returns:
        The position after the last step, and the model with the weights of the best checkpoint.

    Raises:
        UserError: A loss or gradient that is not finite, memory that does not suffice, a checkpoint
            that holds more than tensors, or no dev score that is a number.
        KeyboardInterrupt: A signal; a checkpoint has been written.
    """
    training, root, model = config.training, run / CHECKPOINTS, loss.model
    sampler, collator = batch_sampler(config, rows), view_collator(config, model)
    steps = steps_of(config, rows)
    accelerator = make_accelerator(config, run)
    accelerator.init_trackers("simcse", config={k: str(v) for k, v in config.settings().items()})
    loss.to(accelerator.device)
    distributed.share_weights(loss)
    if distributed.world() > 1:
        loss.engine = Engine(model, "shards" if training.sharding == "full" else "copies")
    engine = loss.engine
    objectives_own = list(loss.state.parameters())
    optimizer = accelerator.prepare_optimizer(make_optimizer(config, loss))
    warmup = math.ceil(training.warmup * steps)
    schedule = get_linear_schedule_with_warmup(optimizer.optimizer, warmup, steps)
    state = State(accelerator, loss, optimizer, schedule, Position())
    if checkpoint is not None:
        state.load(checkpoint)
    position = state.position
    progress = Progress(run, accelerator, steps, position.log)
    pushes = CheckpointPushes(config.hub.push_checkpoints) if config.hub.push_checkpoints else None
    batches = batches_from(sampler, position.step)

    with signals.waiting(), naming_memory("while training", *_MEMORY):
        while position.step < steps:
            # The batch: of several processes each takes its part.
            chosen = next(batches)
            own = distributed.own_part(chosen)
            features = collator.features([rows[i] for i in own], accelerator.device)

            # Loss and gradients, those of all processes together.
            model.train()
            loss.state.before_step(position.step / max(steps - 1, 1))
            terms = backpropagate(accelerator, loss, features)
            total = sum(terms.values())
            where = Where(position.step + 1, schedule.get_last_lr()[0], chosen)
            if not math.isfinite(total):
                raise where.error(f"the loss is {total}", "use float32 for training.precision")
            distributed.average_gradients(objectives_own)

            # The step.
            accelerator.unscale_gradients()
            norm = clip_gradients(loss.parameters(), training.max_grad_norm)
            scaled = accelerator.scaler is not None  # float16: such steps are skipped
            if not math.isfinite(norm) and not scaled:
                raise where.error(f"the gradient's norm is {norm}", "raise objective.temperature")
            optimizer.step()
            optimizer.zero_grad()
            position.step += 1
            if not optimizer.step_was_skipped:
                loss.state.after_step(model, position.step / steps)
            schedule.step()

            # The log: means over the steps since its last line.
            position.since += 1
            for name, value in {"loss": total, **(terms if len(terms) > 1 else {})}.items():
                position.totals[name] = position.totals.get(name, 0.0) + value
            last = position.step == steps
            scores_now = position.step % config.evaluation.every == 0 or last
            if position.step == 1 or position.step % training.log_every == 0 or scores_now:
                means = {name: value / position.since for name, value in position.totals.items()}
                values = {**means, "grad_norm": norm, "learning_rate": where.rate}
                values["epoch"] = position.step / len(sampler)
                progress.loss(position.step, {**values, **loss.log_values()})
                position.totals, position.since = {}, 0
            progress.step(position.step)

            # The dev score, a checkpoint, and the end where a signal asks for it.
            if scores_now:
                scores = dev(engine.whole())
                progress.dev(position.step, scores)
                score = scores[DEV_SCORE]
                if math.isfinite(score) and score > (position.best_score or -math.inf):
                    position.best_score, position.best_step = score, position.step
            signal = distributed.highest(signals.received, accelerator.device)
            if scores_now or signal:
                state.save(root, training.keep_checkpoints)
                if pushes is not None and distributed.is_first():
                    pushes.send(engine.whole(), position.step)
            if signal:
                stop(
                    signal,
                    f"interrupted after step {position.step:,}, with a checkpoint; the same "
                    "command resumes",
                )
    if pushes is not None:
        pushes.finish()
    progress.close()
    if position.best_step is None:
        raise UserError(
            "evaluation.dev: no dev score was a number, so there is no best checkpoint; does "
            "log.jsonl show a collapse?"
        )
    load_weights(checkpoints.place(root, position.best_step), loss)
    return position, engine.whole()


def backpropagate(
    accelerator: Accelerator, loss: TrainingLoss, features: Features
) -> dict[str, float]:
    """Leave the gradients of a batch in the parameters.

    With gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983) the graph of no more
    than a mini-batch is in memory; the gradients are those of one large pass.

    Args:
        accelerator: Scales the loss where that is needed (float16).
        loss: The objective.
        features: A batch, or this process's part of it.

    Returns:
        The weighted terms, which sum up to the loss of the whole batch.
    """
    device = accelerator.device
    passes = loss.passes(features)
    cached = loss.mini_batch_size is not None

    values: dict[str, float] = {}
    engine = loss.engine

    # Masked language modelling has passes of its own.
    with engine.without_sync():
        for token_loss in loss.token_terms(features):
            accelerator.backward(token_loss)
            values["mlm"] = values.get("mlm", 0.0) + float(token_loss.detach())
    if "mlm" in values:
        values["mlm"] = distributed.mean(values["mlm"], device)

    # 1. Embeddings, and with caching the random numbers that each pass began with.
    states, parts = [], []
    with torch.no_grad() if cached else nullcontext():
        for part in passes:
            states.append(random_state(device))
            parts.append(loss.embed(part))
    order = torch.cat([part.rows for part in passes]).argsort()
    embeddings = torch.cat(parts)[order]  # (columns * batch, dim)

    # 2. The loss, its gradient with respect to the embeddings, and those of the objective itself.
    if cached:
        embeddings.requires_grad_()
    terms = loss(embeddings, features)
    values |= {name: float(value.detach()) for name, value in terms.items()}
    accelerator.backward(torch.stack(list(terms.values())).sum())

    # 3. The same passes again, with a graph, to hand the gradient on to the encoder. The last of
    # each tower go together: they take along to the other processes what was held back.
    if cached and embeddings.grad is not None:
        last = {part.route: number for number, part in enumerate(passes)}.values()
        with engine.without_sync():
            for number, (part, state) in enumerate(zip(passes, states, strict=True)):
                if number not in last:
                    with replaying(device, state):
                        again = loss.embed(part)
                    torch.autograd.backward(again, embeddings.grad[part.rows])
        ends = []
        for number in last:
            with replaying(device, states[number]):
                ends.append(loss.embed(passes[number]))
        torch.autograd.backward(ends, [embeddings.grad[passes[number].rows] for number in last])
    return values


@dataclass(frozen=True)
class Where:
    """The step at hand, for an error."""

    step: int
    rate: float
    rows: list[int]

    def error(self, problem: str, remedy: str) -> UserError:
        """What is wrong, and with which rows."""
        rows = ", ".join(map(str, self.rows))
        return UserError(
            f"step {self.step}: {problem} (learning rate {self.rate:.2g}, training rows {rows}, "
            "counted from 0 without empty and repeated ones); lower training.learning_rate or "
            f"{remedy}"
        )


@dataclass
class State:
    """Everything that a checkpoint holds."""

    accelerator: Accelerator
    loss: TrainingLoss
    optimizer: Any
    schedule: Any
    position: Position

    def save(self, root: Path, keep: int) -> None:
        """Write a checkpoint of this step and remove old ones."""
        position, scaler = self.position, self.accelerator.scaler
        whole, optimizer = self.loss.engine.whole(), optimizer_state(self.optimizer)
        with checkpoints.writing(root, position.step) as scratch:
            folder = checkpoints.place(scratch, position.step)
            folder.mkdir(parents=True, exist_ok=True)
            state = random_state(self.accelerator.device)
            torch.save(state, folder / f"random_{distributed.rank()}.pt")
            if distributed.is_first():
                encoder.save(whole, folder)
                self.loss.state.save(folder)
                content = {
                    "optimizer": optimizer,
                    "schedule": self.schedule.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else None,
                }
                torch.save(content, folder / "optimizer.pt")
                text = json.dumps(asdict(position))
                (folder / STATE_FILE).write_text(text, encoding="utf-8")
        if distributed.is_first():
            checkpoints.rotate(root, keep, position.best_step, position.step)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        load_weights(folder, self.loss)
        content = _load_tensors(folder / "optimizer.pt")
        load_optimizer_state(self.optimizer, content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        state = _load_tensors(folder / f"random_{distributed.rank()}.pt")
        set_random_state(self.accelerator.device, state)
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        self.position = Position(**values)


def load_weights(folder: Path, loss: TrainingLoss) -> None:
    """Put a checkpoint's weights into the encoder and the objective."""
    saved = SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=loss.model.trust_remote_code
    )
    loss.engine.load(saved.state_dict())
    loss.state.load(folder)


def _load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is plain tensors and numbers.

    Raises:
        UserError: It holds other objects, which could run code.
    """
    try:
        return torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than tensors and numbers; refused") from error


def make_accelerator(config: Config, run: Path) -> Accelerator:
    """Device, loss scaling and trackers for a config.

    Raises:
        UserError: A precision or tracker that this machine does not have, several GPUs in one
            process, or a batch that the processes cannot share.
    """
    training, processes = config.training, distributed.world()
    rows = 2 * processes if config.data.form == "labelled" else processes
    if training.batch_size % rows:
        raise UserError(
            f"training.batch_size: {training.batch_size} is for all {processes} processes together "
            f"and must be a multiple of {rows}"
        )
    if training.precision == "float16" and not torch.cuda.is_available():
        raise UserError(
            "training.precision: float16 needs a GPU; allowed here are float32, bfloat16"
        )
    if (
        training.precision == "bfloat16"
        and torch.cuda.is_available()
        and not torch.cuda.is_bf16_supported()
    ):
        raise UserError("training.precision: this GPU has no bfloat16; use float32 or float16")
    trackers = [tracker.value for tracker in get_available_trackers()]
    if missing := [name for name in training.report_to if name not in trackers]:
        raise UserError(
            f"training.report_to: {', '.join(missing)} unknown or not installed; "
            f"available here: {', '.join(trackers) or 'none'}"
        )
    if training.sharding == "full" and processes == 1:
        raise UserError(
            "training.sharding: full is for several processes; start them with torchrun "
            "--nproc_per_node (docs/scaling.md)"
        )
    if processes == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs: start a process for each with torchrun "
            "--nproc_per_node (docs/scaling.md), or use one with CUDA_VISIBLE_DEVICES=0"
        )
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        # bfloat16 needs no loss scaling; where its autocast is, see `simcse.state`.
        mixed_precision="fp16" if training.precision == "float16" else "no",
        log_with=training.report_to or None,
        project_config=ProjectConfiguration(str(run), logging_dir=str(run / "tensorboard")),
    )


def make_optimizer(config: Config, loss: TrainingLoss) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (biases, norms) and a learned temperature do not."""
    learned = [p for p in loss.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in learned if p.ndim > 1],
            "weight_decay": config.training.weight_decay,
        },
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.training.learning_rate, fused=True)


def batches_from(sampler: Sampler, step: int) -> Iterator[list[int]]:
    """Row numbers of every batch from a step on, epoch after epoch, without end."""
    epoch, done = divmod(step, len(sampler))
    while True:
        sampler.set_epoch(epoch)
        yield from islice(sampler, done, None)
        epoch, done = epoch + 1, 0
