"""The training loop: batch, gradients, clip, step, log, dev score, checkpoint, stop."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from simcse import distributed
from simcse.config.reading import settings_digest
from simcse.config.settings import Config
from simcse.encoders.engines import Engine, clip_gradients
from simcse.encoders.mini_batches import Features, on_device, random_state, replaying
from simcse.errors import DivergedError, UserError, naming_memory
from simcse.training import checkpoints
from simcse.training.checkpoint_pushes import CheckpointPushes
from simcse.training.checkpoints import CHECKPOINTS
from simcse.training.interruption import StopSignals
from simcse.training.loss import TrainingLoss
from simcse.training.progress import Progress, hyperparameters
from simcse.training.resuming import Position, State, load_weights
from simcse.training.setup import (
    DEV_SCORE,
    make_accelerator,
    make_optimizer,
)
from simcse.training.text import TrainingText

_MEMORY = ("training.mini_batch_size (gradient caching)", "training.batch_size", "data.max_length")


def train(  # noqa: C901 (one function, to be read from top to bottom)
    config: Config,
    run: Path,
    loss: TrainingLoss,
    text: TrainingText,
    dev: Callable[[SentenceTransformer], dict[str, float]],
    signals: StopSignals,
    checkpoint: Path | None,
) -> tuple[Position, SentenceTransformer]:
    """Train, or resume from a checkpoint.

    Args:
        config: The run.
        run: Its folder.
        loss: The objective, which holds the encoder.
        text: What it is trained on.
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
    steps = text.steps
    accelerator = make_accelerator(config, run)
    accelerator.init_trackers("simcse", config=hyperparameters(config))
    loss.to(accelerator.device)
    distributed.share_weights(loss)
    if distributed.world() > 1:
        loss.engine = Engine(model, "shards" if training.sharding == "full" else "copies")
    engine = loss.engine
    own_parameters = list(loss.objective.parameters())
    optimizer = accelerator.prepare_optimizer(make_optimizer(config, loss))
    warmup = math.ceil(training.warmup * steps)
    schedule = get_linear_schedule_with_warmup(optimizer.optimizer, warmup, steps)
    start = Position(settings_digest(config))
    state = State(accelerator, loss, optimizer, schedule, start)
    if checkpoint is not None:
        state.load(checkpoint)
    position = state.position
    progress = Progress(run, accelerator, steps, position.step, position.log)
    pushes = CheckpointPushes(config.hub.push_checkpoints) if config.hub.push_checkpoints else None

    batches = ahead(text.own_part, text.sampler.batches_from(position.step))
    unread: list[Step] = []

    with (
        signals.waiting(),
        naming_memory("while training", *_MEMORY),
        closing(batches),
        closing(progress.bar),
    ):
        while position.step < steps:
            # The batch, from one data set: of several processes each takes its part.
            chosen, features = next(batches)
            features = on_device(features, accelerator.device)

            # Loss and gradients, those of all processes together.
            model.train()
            loss.objective.before_step(position.step / max(steps - 1, 1))
            terms = backpropagate(accelerator, loss, features)
            distributed.average_gradients(own_parameters)

            # The step.
            accelerator.unscale_gradients()
            norm = clip_gradients(loss.parameters(), training.max_grad_norm)
            rate = schedule.get_last_lr()[0]
            unread.append(Step(position.step + 1, rate, chosen, {**terms, "grad_norm": norm}))
            optimizer.step()
            optimizer.zero_grad()
            if not optimizer.step_was_skipped:
                loss.objective.after_step(model, position.step / steps)
                schedule.step()
            position.step += 1

            # The log: means over the steps since its last line. Only here and before a checkpoint
            # is the device waited for, so that steps follow one another without a gap.
            last = position.step == steps
            scores_now = position.step % config.evaluation.every == 0 or last
            if position.step == 1 or position.step % training.log_every == 0 or scores_now:
                newest = read(unread, position, skips=accelerator.scaler is not None)
                means = {name: value / position.since for name, value in position.totals.items()}
                values = {**means, "grad_norm": newest, "learning_rate": rate}
                values["epoch"] = position.step / len(text.sampler)
                progress.loss(position.step, {**values, **loss.objective.log_values(), **values})
                still = ["the gradient is zero, so nothing is learned; are there negatives?"]
                progress.warn(position.step, loss.objective.warnings() + still * (newest == 0))
                position.totals, position.since = {}, 0
            progress.step(position.step)

            # The dev score, a checkpoint, and the end where a signal asks for it.
            if scores_now:
                scores = dev(engine.whole())
                progress.dev(position.step, scores)
                score = scores[DEV_SCORE]
                best = -math.inf if position.best_score is None else position.best_score
                if math.isfinite(score) and score > best:
                    position.best_score, position.best_step = score, position.step
            signal = distributed.highest(signals.received)
            if scores_now or signal:
                read(unread, position, skips=accelerator.scaler is not None)
                saved = state.save(root, training.keep_checkpoints)
                if pushes is not None and distributed.is_first():
                    pushes.send(saved, position.step)
            if signal:
                signals.stop(
                    signal,
                    f"interrupted after step {position.step:,}, with a checkpoint; the same "
                    "command resumes",
                )
    if pushes is not None:
        pushes.finish()
    progress.close()
    if position.best_step is None:
        raise DivergedError(
            "evaluation.dev: no dev score was a number, so there is no best checkpoint; does "
            "log.jsonl show a collapse?"
        )
    best_checkpoint = checkpoints.place(root, position.best_step)
    if problem := checkpoints.damage(best_checkpoint):
        raise UserError(
            f"{best_checkpoint}: {problem}; the same command goes back to before it and makes it "
            "again"
        )
    load_weights(best_checkpoint, loss)
    distributed.wait()  # until all have read it: once the run is finished, it is removed
    return position, engine.whole()


def backpropagate(
    accelerator: Accelerator, loss: TrainingLoss, features: Features
) -> dict[str, Tensor]:
    """Leave the gradients of a batch in the parameters.

    With gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983) the graph of no more
    than a mini-batch is in memory; the gradients are those of one large pass.

    Args:
        accelerator: Scales the loss where that is needed (float16).
        loss: The objective.
        features: A batch, or this process's part of it.

    Returns:
        The weighted terms, float32 scalars, which sum up to the loss of the whole batch.
    """
    device = accelerator.device
    passes, engine = loss.passes(features), loss.engine
    cached = loss.mini_batch_size is not None
    values: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))

    # Losses on token states (masked language modelling) have passes of their own.
    with engine.without_sync() if loss.objective.compares else nullcontext():
        for name, token_loss in loss.token_terms(features):
            accelerator.backward(token_loss)
            values[name] = values[name] + token_loss.detach()
    for name, value in values.items():
        values[name] = distributed.mean(value)
    if not loss.objective.compares:
        return values

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
    for name, value in terms.items():
        values[name] = values[name] + value.detach()
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
class Step:
    """A step that was taken, and what it gave, which the device may still be computing."""

    step: int
    rate: float
    rows: str
    """Which rows it was trained on, in words."""
    values: dict[str, Tensor]
    """The weighted terms, and last the gradients' norm."""

    def error(self, problem: str, remedy: str) -> DivergedError:
        """What is wrong, and with which rows."""
        return DivergedError(
            f"step {self.step}: {problem} (learning rate {self.rate:.2g}, training rows "
            f"{self.rows}, counted from 0 without skipped ones); lower training.learning_rate or "
            f"{remedy}"
        )


def read(steps: list[Step], position: Position, *, skips: bool) -> float:
    """Add what steps gave to the totals of the log, and empty the list.

    Args:
        steps: Since the last call.
        position: Has the totals.
        skips: Steps whose gradients are not finite were skipped (float16).

    Returns:
        The gradients' norm of the newest step, before clipping.

    Raises:
        DivergedError: A loss or gradient was not finite. Weights have moved since, but no
            checkpoint was written.
    """
    norm = math.nan
    values = [torch.stack([*step.values.values()]) for step in steps]
    for step, row in zip(steps, torch.stack(values).tolist() if values else [], strict=True):
        *terms, norm = row
        total = sum(terms)
        if not math.isfinite(total):
            raise step.error(f"the loss is {total}", "use float32 for training.precision")
        if not math.isfinite(norm) and not skips:
            raise step.error(f"the gradient's norm is {norm}", "raise objective.temperature")
        named = dict(zip(step.values, terms, strict=False)) if len(terms) > 1 else {}
        for name, value in {"loss": total, **named}.items():
            position.totals[name] = position.totals.get(name, 0.0) + value
        position.since += 1
    steps.clear()
    return norm


def ahead(
    collate: Callable[[int, int, list[int]], tuple[str, Features]],
    batches: Iterator[tuple[int, int, list[int]]],
) -> Generator[tuple[str, Features]]:
    """Batches, of which the next is collated in a thread while one is trained on."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(collate, *next(batches))
        while True:
            batch = following.result()
            following = thread.submit(collate, *next(batches))
            yield batch
