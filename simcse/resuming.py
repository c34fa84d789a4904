"""What a checkpoint holds, written and read back: weights, optimiser, random numbers, position."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer

from simcse import checkpoints, distributed, encoder
from simcse.caching import random_state, set_random_state
from simcse.checkpoints import STATE_FILE
from simcse.engines import load_optimizer_state, optimizer_state
from simcse.errors import UserError
from simcse.loss import TrainingLoss


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
        return whole

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
