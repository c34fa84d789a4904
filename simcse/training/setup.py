"""What a training run is made of, beside text and loop: dev scores, device, optimiser, checks."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration
from sentence_transformers import SentenceTransformer
from torch.distributed.tensor import DTensor

from simcse import distributed
from simcse.config.reading import read_config
from simcse.config.settings import Config, ObjectiveConfig, Precision, Role
from simcse.encoders import encoder
from simcse.encoders.encoding import embeds_by_role, encode_by_length
from simcse.encoders.mini_batches import Features
from simcse.encoders.precision import native_precision
from simcse.errors import UserError, naming_memory
from simcse.evaluation.protocol import Evaluation, evaluate
from simcse.evaluation.tasks import Task
from simcse.reports.runs import CONFIG_FILE
from simcse.training.loss import TrainingLoss

# Where accelerate looks for the number of processes.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
DEV_SCORE = "dev_score"
GEOMETRY = ("alignment", "uniformity", "mean_cosine", "effective_rank")


@dataclass(frozen=True)
class Dev:
    """What chooses the best checkpoint, every ``evaluation.every`` steps."""

    task: Task
    geometry: Task
    batch_size: int
    precision: Precision = "float32"

    def scores(self, model: SentenceTransformer) -> dict[str, float]:
        """``dev_score`` (the task's own metric) and the keys of :data:`GEOMETRY`.

        All processes encode a share of the texts each.
        """
        tasks = [self.task, self.geometry]
        scores = evaluate_model(
            model, tasks, self.batch_size, shared=True, precision=self.precision
        ).scores
        geometry = scores[self.geometry.name]
        return {
            DEV_SCORE: scores[self.task.name][self.task.metric],
            **{key: geometry[key] for key in GEOMETRY},
        }


def evaluate_model(
    model: SentenceTransformer,
    tasks: list[Task],
    batch_size: int,
    *,
    shared: bool = False,
    precision: Precision = "float32",
) -> Evaluation:
    """Score a model as it encodes: evaluation mode, no projection that is for training only.

    Args:
        model: The model.
        tasks: What to score it on.
        batch_size: Texts a forward pass.
        shared: All processes call this, and encode a share of the texts each.
        precision: Of the forward passes.
    """

    def encode(texts: list[str], role: Role | None = None) -> np.ndarray:
        def embed(own: list[str]) -> np.ndarray:
            return encode_by_length(model, own, batch_size, role=role, precision=precision)

        return distributed.shared(embed, texts) if shared else embed(texts)

    with naming_memory("while scoring", "evaluation.batch_size"):
        return evaluate(encode, tasks, encode if embeds_by_role(model) else None)


def with_resolved_precision(config: Config, folder: Path) -> Config:
    """The config with what ``auto`` stands for: as in the runs of its folder, else by the hardware.

    So a run, or a set of seeds, that goes on on another machine keeps the precision it began with.

    Args:
        config: The run, a set of seeds, or one run of a sweep.
        folder: Its folder, or that of the sweep.
    """
    stored: list[Config] = []
    for pattern in (CONFIG_FILE, f"*/{CONFIG_FILE}", f"*/*/{CONFIG_FILE}"):
        for path in sorted(folder.glob(pattern)):
            with suppress(UserError):  # whether it may be there is checked elsewhere
                stored.append(read_config(path))
    updates = {}
    for name in ("training", "evaluation"):
        section = getattr(config, name)
        if section.precision == "auto":
            before = [getattr(old, name).precision for old in stored]
            chosen = before[0] if before else native_precision()
            updates[name] = section.model_copy(update={"precision": chosen})
    return config.model_copy(update=updates)


def check_views_differ(config: Config, model: SentenceTransformer, features: Features) -> None:
    """Make sure that dropout, or what else the config does, gives two views of a text.

    Asks the model itself rather than its config, so that it holds for every architecture.

    Args:
        config: The run.
        model: The encoder to train.
        features: A few texts of which both views are made.

    Raises:
        UserError: Both views are equal.
    """
    if len(features["identities"]) == 1:  # for objectives that compare no views
        return
    if config.encoder.has_adapters and config.encoder.lora.dropout:
        return  # which shows once what adapters add is no longer zero
    loss = TrainingLoss(model, config.model_copy(update={"objective": ObjectiveConfig()}))
    training = model.training
    random_state = torch.random.get_rng_state()
    model.train()
    with torch.no_grad():
        passes = loss.passes(features)
        order = torch.cat([part.rows for part in passes]).argsort()
        embeddings = torch.cat([loss.embed(part) for part in passes])[order]
    model.train(training)
    torch.random.set_rng_state(random_state)
    if torch.equal(*embeddings.chunk(2)):
        names = encoder.dropout_settings(encoder.transformer_of(model).config)
        remedies = [f"encoder.dropout, such as 0.1 ({', '.join(names)}), or a view's dropout"]
        remedies = remedies if names else []
        remedies.append("encoder.lora.dropout" if config.encoder.has_adapters else "encoder.lora")
        raise UserError(
            "encoder.dropout: there is no dropout, so both views of a sentence are equal and there "
            f"is nothing to learn; set {'; '.join(remedies)}; or repeat, shuffle or cutoff of a "
            "view"
        )


def make_accelerator(config: Config, run: Path) -> Accelerator:
    """Device, loss scaling and trackers for a config.

    Raises:
        UserError: A precision or tracker that this machine does not have, several GPUs in one
            process, or a batch that the processes cannot share.
    """
    training, processes = config.training, distributed.world()
    forms = [data.form for data in config.sets]
    rows = 2 * processes if "labelled" in forms else processes
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
    alone = [name for name in _SIZES if os.environ.get(name, "1") not in ("", "1")]
    if processes == 1 and alone:
        raise UserError(
            f"environment: {alone[0]}={os.environ[alone[0]]} without LOCAL_RANK; start with "
            f"torchrun or accelerate launch, or unset {alone[0]}"
        )
    if processes == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs: start a process for each with torchrun "
            "--nproc_per_node (docs/scaling.md), or use one with CUDA_VISIBLE_DEVICES=0"
        )
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        # bfloat16 needs no loss scaling; where its autocast is, see `simcse.encoders.precision`.
        mixed_precision="fp16" if training.precision == "float16" else "no",
        log_with=training.report_to or None,
        project_config=ProjectConfiguration(str(run), logging_dir=str(run / "tensorboard")),
    )


def make_optimizer(config: Config, loss: TrainingLoss) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (biases, norms) and a learned temperature do not."""
    learned = [p for p in loss.parameters() if p.requires_grad]
    groups = [
        {"params": chosen, "weight_decay": config.training.weight_decay if decays else 0.0}
        for is_share in (False, True)  # of a sharded encoder; the kernel does not take both
        for decays in (True, False)
        if (
            chosen := [
                p for p in learned if (isinstance(p, DTensor), p.ndim > 1) == (is_share, decays)
            ]
        )
    ]
    return torch.optim.AdamW(groups, lr=config.training.learning_rate, fused=True)
