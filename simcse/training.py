"""The training loop: a thin layer over sentence-transformers' Trainer.

What is ours: all views in one forward pass, the objective, the batches, a stop at a non-finite
loss or gradient, checkpoints without pickled settings, the log. Everything else (optimiser,
schedule, mixed precision, trackers, checkpoints, resume) is the Trainer's.
"""

from __future__ import annotations

import json
import math
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor, nn
from torch.utils.data import BatchSampler
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import (
    TensorBoardCallback,
    get_available_reporting_integrations,
)

from simcse import checkpoints, distributed, encoder
from simcse.batching import GroupBatchSampler, ViewBatchSampler
from simcse.checkpoints import CHECKPOINTS, STATE_FILE
from simcse.encoding import encode_by_length
from simcse.errors import UserError, naming_memory
from simcse.evaluation.protocol import Evaluation, evaluate
from simcse.evaluation.tasks import Task
from simcse.files import write_atomically
from simcse.geometry import collapse
from simcse.loss import WITHOUT_PAIRS, TrainingLoss
from simcse.objectives import prototype_collapse
from simcse.settings import Config, ObjectiveConfig
from simcse.views import View, ViewCollator

DEV_SCORE = "dev_score"
GEOMETRY = ("alignment", "uniformity", "mean_cosine", "effective_rank")
AVERAGES_FILE = "averages.safetensors"


_MEMORY = ("training.mini_batch_size (gradient caching)", "training.batch_size", "data.max_length")


class DevEvaluator(BaseEvaluator):
    """Scores the dev task and the geometry, every ``evaluation.every`` steps."""

    def __init__(self, task: Task, geometry: Task, batch_size: int) -> None:
        super().__init__()
        self.task, self.geometry, self.batch_size = task, geometry, batch_size

    def __call__(
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: float = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        """``dev_score`` (the task's own metric) and the keys of :data:`GEOMETRY`."""
        scores = evaluate_model(model, [self.task, self.geometry], self.batch_size).scores
        geometry = scores[self.geometry.name]
        return {
            DEV_SCORE: scores[self.task.name][self.task.metric],
            **{key: geometry[key] for key in GEOMETRY},
        }


def evaluate_model(model: SentenceTransformer, tasks: list[Task], batch_size: int) -> Evaluation:
    """Score a model as it encodes: evaluation mode, no projection that is for training only."""

    def encode(texts: list[str]) -> np.ndarray:
        return encode_by_length(model, texts, batch_size)

    with naming_memory("while scoring", "evaluation.batch_size"):
        return evaluate(encode, tasks)


class SimCSETrainer(SentenceTransformerTrainer):
    """sentence-transformers' Trainer on tokenised rows, with our batches."""

    def __init__(
        self,
        config: Config,
        arguments: SentenceTransformerTrainingArguments,
        model: SentenceTransformer,
        rows: Dataset,
        dev: DevEvaluator,
        run: Path,
        loss: TrainingLoss,
    ) -> None:
        self.sampler = batch_sampler(config, rows)
        self.scratch = Path(str(arguments.output_dir))
        self.keep = config.training.keep_checkpoints
        columns = ["input_ids", "text_hash", "label"]
        if loss.teacher is not None:
            columns.append("row")
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows.select_columns(columns),
            loss=loss,
            evaluator=dev,
            data_collator=view_collator(config, model),
        )
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(run / "tensorboard")
        self.remove_callback(PrinterCallback)
        self.add_callback(StateSteps(self))
        self.run_log = RunLog(run)
        self.add_callback(self.run_log)
        if distributed.is_first():
            self.add_callback(Progress())
        distributed.share_weights(self.loss)

    def get_batch_sampler(self, dataset: Dataset, batch_size: int, **_: Any) -> BatchSampler:
        """Our sampler instead of the library's."""
        return self.sampler

    def _wrap_model(self, model: nn.Module, *_: Any, **__: Any) -> nn.Module:
        # As it is. Without DistributedDataParallel: it averages gradients in one backward pass of
        # one module, but gradient caching takes several, and the objective learns too. Without
        # mixed precision: the loss sees to it, and dev scores are to be those of the final model.
        model._is_accelerate_prepared = True  # type: ignore[assignment]
        return model

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; stops at a non-finite loss before it reaches the weights."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise UserError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()} ({self._place()}); "
                "lower training.learning_rate, or use float32 for training.precision"
            )
        distributed.average_gradients(self.loss.parameters())
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # The library calls this after clipping and before the optimiser's step. float16 is left to
        # its loss scaling, which skips such steps.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm) and not self.args.fp16:
            raise UserError(
                f"step {self.state.global_step + 1}: the gradient's norm is {float(norm)} "
                f"({self._place()}); lower training.learning_rate or raise objective.temperature"
            )
        return norm

    def _place(self) -> str:
        """Learning rate and row numbers of the step at hand, for an error."""
        epoch, number = divmod(self.state.global_step, len(self.sampler))
        self.sampler.set_epoch(epoch)
        rows = next(islice(self.sampler, number, None))
        return (
            f"learning rate {self._get_learning_rate():.2g}, training rows "
            f"{', '.join(map(str, rows))}, counted from 0 without skipped ones"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # The library clips the model alone; the optimiser also holds what the objective learns.
        return self.accelerator.clip_grad_norm_(self.loss.parameters(), self.args.max_grad_norm)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As the library chooses, but a learned temperature does not decay (towards 1)."""
        names: list[str] = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith("temperature.logarithm")]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the objective's diagnostics to the line of a loss.

        The line at the end keeps its clocks alone: the rest of it is of this process's steps.
        """
        if "loss" in logs:
            logs = {**logs, **self.loss.log_values()}
        logs = {key: logs[key] for key in logs if key not in ("train_loss", "total_flos")}
        super().log(logs, *args, **kwargs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No automatic model card: it quotes training sentences and slows the start."""

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        # The library's version also pickles the training arguments; config.yaml says it all.
        if not distributed.is_first():
            return
        folder = Path(output_dir or self.args.output_dir)
        encoder.save(self.model, folder)
        self.loss.state.save(folder, self.model)

    def _get_output_dir(self, trial: Any) -> str:
        # Asked for where to write a checkpoint: not in its place, see `checkpoints.writing`.
        return str(self.scratch)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        root, step = Path(self.args.output_dir), self.state.global_step
        with checkpoints.writing(root, step) as self.scratch:
            super()._save_checkpoint(model, trial)
            folder = checkpoints.place(self.scratch, step)
            self.state.best_model_checkpoint = None  # a path; what counts is best_global_step
            if distributed.is_first():
                self._save_averages(folder)
                self.state.save_to_json(str(folder / STATE_FILE))
        if distributed.is_first():
            checkpoints.rotate(root, self.keep, self.state.best_global_step, step)

    def _save_averages(self, folder: Path) -> None:
        # A checkpoint for a signal lies between two lines of the log, whose averages span it. Every
        # process has the same, since each computes the loss of the whole batch.
        averages = {"loss": self._tr_loss, "since": torch.tensor(self._globalstep_last_logged)}
        for key, value in self.accum_loss_components["train"].items():
            averages[f"terms.{key}"] = value
        save_file({key: value.cpu() for key, value in averages.items()}, folder / AVERAGES_FILE)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # The loop asks for this after it has set the averages to zero, before the first step.
        super()._load_rng_state(checkpoint)
        averages = load_file(Path(str(checkpoint)) / AVERAGES_FILE)
        averages = {key: value.to(self.args.device) for key, value in averages.items()}
        self._tr_loss = averages.pop("loss")
        self._globalstep_last_logged = int(averages.pop("since"))
        self.accum_loss_components["train"] = {
            key.removeprefix("terms."): value for key, value in averages.items()
        }

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        self.loss.state.load(Path(checkpoint_path), self.model)


class StateSteps(TrainerCallback):
    """Tells objective, sampler and collator how far the run is, and when weights have moved."""

    def __init__(self, trainer: SimCSETrainer) -> None:
        self.objective, self.model = trainer.loss.state, trainer.model
        self.sampler, self.collator = trainer.sampler, trainer.data_collator
        self.accelerator = trainer.accelerator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The loop's own call does not reach the sampler of a resumed run of several processes."""
        self.collator.epoch = state.global_step // len(self.sampler)
        self.sampler.set_epoch(self.collator.epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Schedules go from the first step to the last."""
        self.objective.before_step(state.global_step / max(state.max_steps - 1, 1))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A teacher follows its student; not where float16's loss scaling has left out the step."""
        if not self.accelerator.optimizer_step_was_skipped:  # the step is not counted yet
            self.objective.after_step(self.model, state.global_step / state.max_steps)


class RunLog(TrainerCallback):
    """Writes ``log.jsonl``: every logged value with its step, one JSON object a line."""

    def __init__(self, run: Path) -> None:
        self.path = run / "log.jsonl"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the log, or on resume cut it back to the step of the checkpoint."""
        self.write(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A loss stands beside every dev score; the Trainer's own callbacks have decided by now."""
        control.should_log = control.should_log or control.should_evaluate

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Append the newest entry."""
        if not distributed.is_first():
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_log_line(state.log_history[-1]))

    def write(self, state: TrainerState) -> None:
        """Write every entry that the Trainer's state holds."""
        if distributed.is_first():
            write_atomically(self.path, "".join(_log_line(entry) for entry in state.log_history))


class Progress(TrainerCallback):
    """A progress bar on a terminal, and a line for every dev score."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the bar; a resumed run starts where it stopped."""
        self.prototypes: str | None = None
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Show the loss beside the bar, or print the dev score."""
        if "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            if "dino_diversity" in logs:
                self._name_prototype_collapse(state.global_step, logs)
        elif f"eval_{DEV_SCORE}" in logs:
            tqdm.write(
                f"step {state.global_step:>6,}  dev score {100 * logs[f'eval_{DEV_SCORE}']:.2f}, "
                f"alignment {logs['eval_alignment']:.3f}, "
                f"uniformity {logs['eval_uniformity']:.3f}"
            )
            cosine, rank = logs["eval_mean_cosine"], logs["eval_effective_rank"]
            if (kind := collapse(cosine, rank)) != "none":
                tqdm.write(
                    f"warning: {kind} collapse at step {state.global_step:,}: mean cosine of "
                    f"distinct sentences {cosine:.4f}, effective rank {rank:.1f} "
                    "(docs/protocol.md)"
                )

    def _name_prototype_collapse(self, step: int, logs: dict[str, float]) -> None:
        kind = prototype_collapse(logs["dino_sharpness"], logs["dino_diversity"])
        if kind != self.prototypes:  # once, not with every line of the log
            self.prototypes = kind
            if kind is not None:
                tqdm.write(
                    f"warning: the teacher's prototypes have collapsed at step {step:,}: {kind} "
                    f"(sharpness {logs['dino_sharpness']:.3f}, diversity "
                    f"{logs['dino_diversity']:.3f})"
                )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the full bar behind."""
        self.bar.close()


def training_arguments(config: Config, run: Path) -> SentenceTransformerTrainingArguments:
    """The Trainer's settings for a config.

    Raises:
        UserError: A precision or tracker that this machine does not have, several GPUs in one
            process, or a batch that the processes cannot share.
    """
    training, world = config.training, distributed.world()
    rows = 2 * world if config.data.form == "labelled" else world
    if training.batch_size % rows:
        raise UserError(
            f"training.batch_size: {training.batch_size} is for all {world} processes together "
            f"and must be a multiple of {rows}"
        )
    if training.precision == "float16" and not torch.cuda.is_available():
        raise UserError(
            "training.precision: float16 needs a GPU; allowed here are float32, bfloat16"
        )
    trackers = get_available_reporting_integrations()
    if missing := [name for name in training.report_to if name not in trackers]:
        raise UserError(
            f"training.report_to: {', '.join(missing)} unknown or not installed; "
            f"available here: {', '.join(trackers) or 'none'}"
        )
    accelerated = torch.accelerator.is_available()
    try:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(run / CHECKPOINTS),
            per_device_train_batch_size=training.batch_size // world,
            accelerator_config={"split_batches": world > 1},  # each process a part of each batch
            num_train_epochs=training.epochs,
            max_steps=training.steps or -1,
            learning_rate=training.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=training.warmup,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            bf16=training.precision == "bfloat16",
            fp16=training.precision == "float16",
            disable_tqdm=True,  # the library's bar; ours is in Progress
            use_cpu=not accelerated,
            dataloader_pin_memory=accelerated,
            seed=config.seed,
            dataloader_drop_last=True,
            logging_steps=training.log_every,
            logging_first_step=True,
            logging_nan_inf_filter=False,  # the default shows an average instead of NaN
            eval_strategy="steps",
            eval_steps=config.evaluation.every,
            save_strategy="steps",
            save_steps=config.evaluation.every,
            metric_for_best_model=f"eval_{DEV_SCORE}",
            greater_is_better=True,
            report_to=training.report_to,
        )
    except ValueError as error:  # bfloat16 on hardware without it
        raise UserError(f"training.precision: {error}") from error
    if arguments.n_gpu > 1:
        raise UserError(
            f"there are {arguments.n_gpu} GPUs: start a process for each with torchrun "
            "--nproc_per_node (docs/scaling.md), or use one with CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def steps_of(config: Config, rows: Dataset) -> int:
    """Optimiser steps of a run over some rows."""
    per_epoch = len(batch_sampler(config, rows))
    return config.training.steps or math.ceil(config.training.epochs * per_epoch)


def rows_used(config: Config, rows: Dataset) -> np.ndarray:
    """Which rows a run will see, bool of shape ``(rows,)``."""
    sampler = batch_sampler(config, rows)
    used = np.zeros(len(rows), dtype=bool)
    left = steps_of(config, rows)
    epoch = 0
    while left > 0 and not used.all():
        sampler.set_epoch(epoch)
        for batch in islice(sampler, left):
            used[batch] = True
        left -= len(sampler)
        epoch += 1
    return used


def batch_sampler(config: Config, rows: Dataset) -> ViewBatchSampler | GroupBatchSampler:
    """The sampler that fits a config's form of data."""
    training = config.training
    if config.data.form == "labelled":
        parts = distributed.world()
        return GroupBatchSampler(labels_of(rows), training.batch_size, config.seed, parts)
    lengths = np.asarray(rows.with_format("numpy")["length"])
    return ViewBatchSampler(lengths, training.batch_size, training.batching, config.seed)


def labels_of(rows: Dataset) -> np.ndarray:
    """Label of each row, int64."""
    return np.asarray(rows.with_format("numpy")["label"])


def view_collator(config: Config, model: SentenceTransformer) -> ViewCollator:
    """The collator that lays out a config's views."""
    first, second = (View.of(view, model.tokenizer) for view in config.views)
    return ViewCollator(
        model.tokenizer.pad_token_id,
        (first, second),
        single=all(name in WITHOUT_PAIRS for name in config.objective.terms),
        paired=config.data.form == "labelled",
        keeps_texts="mlm" in config.objective.terms and not (first.is_plain and second.is_plain),
        seed=config.seed,
    )


def check_views_differ(config: Config, model: SentenceTransformer, rows: Dataset) -> None:
    """Make sure that dropout, or what else the config does, gives two views of a sentence.

    Asks the model itself rather than its config, so that it holds for every architecture.

    Raises:
        UserError: Both views are equal.
    """
    collator = view_collator(config, model)
    if config.data.form != "sentences" or collator.single:
        return
    features = collator.features([rows[i] for i in range(min(8, len(rows)))], model.device)
    loss = TrainingLoss(model, config.model_copy(update={"objective": ObjectiveConfig()}))
    training = model.training
    random_state = torch.random.get_rng_state()
    model.train()
    with torch.no_grad():
        loss([features])
    model.train(training)
    torch.random.set_rng_state(random_state)
    if loss.last is not None and torch.equal(loss.last[0], loss.last[1]):
        raise UserError(
            "encoder.dropout: there is no dropout, so both views of a sentence are equal "
            "and there is nothing to learn; set encoder.dropout, such as 0.1, "
            "or the dropout of a view"
        )


def train_to_the_end(trainer: SimCSETrainer, checkpoint: Path | None) -> TrainerState:
    """Train, or resume; leaves the weights of the best checkpoint in the model.

    Returns:
        The Trainer's final state: steps, best score and its step.
    """
    state = (
        None if checkpoint is None else TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    )
    # The Trainer would do one step more than there are when nothing is left to do.
    if state is None or state.global_step < state.max_steps:
        try:
            with naming_memory("while training", *_MEMORY):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except pickle.UnpicklingError as error:  # torch loads plain tensors and numbers alone
            raise UserError(
                f"{checkpoint}: holds more than tensors and numbers; refused"
            ) from error
        state = trainer.state
    else:
        trainer.run_log.write(state)  # whatever came after the checkpoint, or was lost before it
    if state.best_global_step is None:
        raise UserError(
            "evaluation.dev: no dev score was a number, so there is no best checkpoint; does "
            "log.jsonl show a collapse?"
        )
    best = checkpoints.place(Path(trainer.args.output_dir), state.best_global_step)
    trainer._load_from_checkpoint(str(best))
    return state


def _log_line(entry: dict[str, Any]) -> str:
    return json.dumps({"step": entry.get("step"), **entry}) + "\n"
