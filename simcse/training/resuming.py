"""What a checkpoint holds, written and read back: weights, optimiser, random numbers, position."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from simcse import distributed
from simcse.encoders import encoder, lora
from simcse.encoders.engines import load_optimizer_state, optimizer_state
from simcse.encoders.gate import Origin, load_sentence_model
from simcse.encoders.mini_batches import random_state, set_random_state
from simcse.errors import UserError, first_line
from simcse.training import checkpoints
from simcse.training.checkpoints import STATE_FILE
from simcse.training.loss import TrainingLoss

# How files of other content fail, in Python, torch (names and shapes) and safetensors.
_UNFIT = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
    OSError,
    RuntimeError,
    SafetensorError,
)


@dataclass
class Position:
    """How far a run is: what a checkpoint holds beside weights, optimiser and random numbers."""

    settings: str = ""
    """Hash of the run's settings: a checkpoint of another run does not fit."""
    step: Annotated[int, Field(ge=0)] = 0
    best_step: int | None = None
    best_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    totals: dict[str, float] = field(default_factory=dict)
    """Of the loss and its terms, summed over the steps since the last line of the log."""
    since: int = 0
    """Steps in :attr:`totals`."""
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class State:
    """Everything that a checkpoint holds."""

    accelerator: Accelerator
    loss: TrainingLoss
    optimizer: Any
    schedule: Any
    position: Position

    def save(self, root: Path, keep: int) -> SentenceTransformer:
        """Write a checkpoint of this step and remove old ones.

        Returns:
            The model with all of its weights.
        """
        position, scaler = self.position, self.accelerator.scaler
        whole, optimizer = self.loss.engine.whole(), optimizer_state(self.optimizer)
        with checkpoints.writing(root, position.step) as scratch:
            folder = checkpoints.place(scratch, position.step)
            folder.mkdir(parents=True, exist_ok=True)
            state = random_state(self.accelerator.device)
            torch.save(state, folder / f"random_{distributed.rank()}.pt")
            if distributed.is_first():
                if self.loss.config.encoder.has_adapters:
                    save_file(lora.trained(whole), folder / lora.TRAINED_FILE)
                else:
                    encoder.save(whole, folder)
                self.loss.objective.save(folder)
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
        return whole

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: It does not fit the run: made by another one, or tampered with.
        """
        with _fitting(folder):
            self._load(folder)

    def _load(self, folder: Path) -> None:
        text = (folder / STATE_FILE).read_text(encoding="utf-8")
        position = TypeAdapter(Position).validate_json(text, strict=True)
        if (position.settings, folder) != (
            self.position.settings,
            checkpoints.place(folder.parent, position.step),
        ):
            raise ValueError("of another run")
        _load_weights(folder, self.loss)
        content = _load_tensors(folder / "optimizer.pt")
        load_optimizer_state(self.optimizer, content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        state = _load_tensors(folder / f"random_{distributed.rank()}.pt")
        set_random_state(self.accelerator.device, state)
        self.position = position


def load_weights(folder: Path, loss: TrainingLoss) -> None:
    """Put a checkpoint's weights into the encoder and the objective.

    Raises:
        UserError: They do not fit.
    """
    with _fitting(folder):
        _load_weights(folder, loss)


def _load_weights(folder: Path, loss: TrainingLoss) -> None:
    if loss.config.encoder.has_adapters:
        whole, found = loss.engine.whole(), load_file(folder / lora.TRAINED_FILE)
        if found.keys() != lora.trained(whole).keys():
            raise ValueError("it holds other weights than those that are trained")
        weights = whole.state_dict() | found
    else:
        consent = "allow it with encoder.trust_remote_code=true"
        origin = Origin(str(folder), str(folder), consent, loss.model.trust_remote_code)
        weights = load_sentence_model(origin, device="cpu").state_dict()
    loss.engine.load(weights)
    loss.objective.load(folder)


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Turn whatever is wrong with a checkpoint's content into one line.

    Its seal says that nothing was damaged since, not who made it or for which run.
    """
    try:
        yield
    except UserError:
        raise
    except _UNFIT as error:
        raise UserError(
            f"{folder}: does not fit this run ({first_line(error)[:200]}); remove it to go on from "
            "an older one"
        ) from error


def _load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is plain tensors and numbers.

    Raises:
        UserError: It holds other objects, which could run code.
    """
    try:
        return torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than tensors and numbers; refused") from error
