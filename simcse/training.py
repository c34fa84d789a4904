"""The training loop: a thin layer over sentence-transformers' Trainer.

What is ours: all views in one forward pass, the objective, the batches, a stop at a non-finite
loss or gradient, checkpoints without pickled settings, the log. Everything else (optimiser,
schedule, mixed precision, trackers, checkpoints, resume) is the Trainer's.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
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

from simcse import encoder
from simcse.batching import ViewBatchSampler, ViewCollator
from simcse.config import Config
from simcse.errors import UserError
from simcse.evaluation.protocol import Evaluation, evaluate
from simcse.evaluation.tasks import Task
from simcse.files import write_atomically
from simcse.geometry import collapse
from simcse.objectives import info_nce

NUM_VIEWS = 2
DEV_SCORE = "dev_score"
GEOMETRY = ("alignment", "uniformity", "mean_cosine", "effective_rank")
STATE_FILE = "trainer_state.json"  # the Trainer writes it last, so it marks a complete checkpoint


class ContrastiveLoss(nn.Module):
    """One forward pass over all views, then the objective."""

    def __init__(self, model: SentenceTransformer, config: Config) -> None:
        super().__init__()
        self.model = model
        self.key = encoder.training_key(model)
        self.temperature = config.objective.temperature

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Loss of a batch laid out by :class:`~simcse.batching.ViewCollator`."""
        output = self.model(dict(features[0]))
        embeddings = output[self.key].float()  # (num_views * batch, dim)
        anchor, positive = embeddings.view(NUM_VIEWS, -1, embeddings.shape[-1])
        return info_nce(anchor, positive, self.temperature)


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
        embeddings: np.ndarray = model.encode(texts, batch_size=batch_size, show_progress_bar=False)
        return embeddings

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
    ) -> None:
        self.config = config
        self.lengths = np.asarray(rows.with_format("numpy")["length"])
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows.select_columns(["input_ids"]),
            loss=ContrastiveLoss(model, config),
            evaluator=dev,
            data_collator=ViewCollator(model.tokenizer.pad_token_id, NUM_VIEWS),
        )
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(run / "tensorboard")
        self.remove_callback(PrinterCallback)
        self.add_callback(RunLog(run))
        self.add_callback(Progress())

    def get_batch_sampler(self, dataset: Dataset, batch_size: int, **_: Any) -> BatchSampler:
        """Our sampler instead of the library's."""
        return ViewBatchSampler(
            self.lengths, batch_size, self.config.training.batching, self.config.seed
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; stops at a non-finite loss before it reaches the weights."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            rate = self._get_learning_rate()
            raise UserError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()} (learning rate "
                f"{rate:.2g}); lower training.learning_rate, or use float32 for training.precision"
            )
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # The library calls this after clipping and before the optimiser's step. float16 is left to
        # its loss scaling, which skips such steps.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm) and not self.args.fp16:
            raise UserError(
                f"step {self.state.global_step + 1}: the gradient's norm is {float(norm)}; "
                "lower training.learning_rate or raise objective.temperature"
            )
        return norm

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No automatic model card: it quotes training sentences and slows the start."""

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        # The library's version also pickles the training arguments; config.yaml says it all.
        encoder.save(self.model, Path(output_dir or self.args.output_dir))


class RunLog(TrainerCallback):
    """Writes ``log.jsonl``: every logged value with its step, one JSON object a line.

    The losses of a resumed run are averages over the same steps as those of an uninterrupted one,
    because a line is written at every checkpoint too.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "log.jsonl"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the log, or on resume cut it back to the step of the checkpoint."""
        write_atomically(self.path, "".join(_log_line(entry) for entry in state.log_history))
        if state.best_global_step:
            # The stored path is wrong once the run folder was moved; rotation would drop the best.
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log with every checkpoint; the Trainer's own callbacks have decided by now."""
        control.should_log = control.should_log or control.should_save

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Append the newest entry."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_log_line(state.log_history[-1]))


class Progress(TrainerCallback):
    """A progress bar on a terminal, and a line for every dev score."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the bar; a resumed run starts where it stopped."""
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

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the full bar behind."""
        self.bar.close()


def training_arguments(config: Config, run: Path) -> SentenceTransformerTrainingArguments:
    """The Trainer's settings for a config.

    Raises:
        UserError: A precision or tracker that this machine does not have, several processes.
    """
    training = config.training
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
            output_dir=str(run / "checkpoints"),
            per_device_train_batch_size=training.batch_size,
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
            save_total_limit=training.keep_checkpoints + 1,  # the library counts the best one in
            metric_for_best_model=f"eval_{DEV_SCORE}",
            greater_is_better=True,
            report_to=training.report_to,
        )
    except ValueError as error:  # bfloat16 on hardware without it
        raise UserError(f"training.precision: {error}") from error
    if arguments.n_gpu > 1 or arguments.world_size > 1:
        raise UserError(
            "training on several GPUs or processes is not supported yet; start one process with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def steps_of(config: Config, rows: int) -> int:
    """Optimiser steps of a run over ``rows`` rows."""
    per_epoch = rows // config.training.batch_size
    return config.training.steps or math.ceil(config.training.epochs * per_epoch)


def check_views_differ(model: SentenceTransformer, batch_row: list[int]) -> None:
    """Make sure that dropout gives two views of a sentence.

    Asks the model itself rather than its config, so that it holds for every architecture.

    Raises:
        UserError: Both views are equal.
    """
    collator = ViewCollator(model.tokenizer.pad_token_id, NUM_VIEWS)
    features = collator.features([batch_row], model.device)
    training = model.training
    state = torch.random.get_rng_state()
    model.train()
    with torch.no_grad():
        views = model(features)[encoder.training_key(model)]
    model.train(training)
    torch.random.set_rng_state(state)
    if torch.equal(views[0], views[1]):
        raise UserError(
            "encoder.dropout: the encoder has no dropout, so both views of a sentence are equal "
            "and there is nothing to learn; set encoder.dropout, such as 0.1"
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
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.state
    best = Path(trainer.args.output_dir) / f"checkpoint-{state.best_global_step}"
    trainer._load_from_checkpoint(str(best))
    return state


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, or ``None``."""
    complete = []
    for folder in (run / "checkpoints").glob("checkpoint-*"):
        try:
            step = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            continue  # the run died while writing it
        if not (encoder.is_intact(folder) and zipfile.is_zipfile(folder / "optimizer.pt")):
            continue
        complete.append((step, folder))
    return max(complete)[1] if complete else None


def _log_line(entry: dict[str, Any]) -> str:
    return json.dumps({"step": entry.get("step"), **entry}) + "\n"
