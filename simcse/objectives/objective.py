"""What an objective is: one term of the loss, in a file of its own.

Its settings are the arguments of its constructor, its needs the arguments of its ``forward``, and
what it learns or carries are its parameters and buffers. ``docs/extending.md`` has an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from simcse.config.settings import Number, TemperatureConfig
from simcse.encoders.mini_batches import Features
from simcse.objectives.pairwise import pair_logits
from simcse.objectives.temperature import Temperature

Weight = Annotated[Number, Field(gt=0)]


@dataclass(frozen=True)
class Batch:
    """What ``forward`` may ask for, by these names; embeddings are those of all processes."""

    views: Tensor
    """All embeddings, ``(columns, batch, dim)``: anchors, positives, hard negatives."""
    mask: Tensor | None
    """Negatives to leave out, as :func:`~simcse.objectives.same_text_mask` gives it; ``None``: no
    negative."""
    labels: Tensor | None
    """Integers, ``(batch,)``, with ``data.form=labelled``."""
    teacher: Tensor | None
    """The teacher's embeddings of the anchors, ``(batch, teacher_dim)``, with a teacher."""
    texts: Features
    """``input_ids`` and ``attention_mask`` of this process's anchors and positives."""

    @property
    def anchor(self) -> Tensor:
        """``(batch, dim)``."""
        return self.views[0]

    @property
    def positive(self) -> Tensor:
        """``(batch, dim)``."""
        return self.views[1]

    @property
    def hard_negatives(self) -> Tensor | None:
        """``(negatives, batch, dim)``, or ``None`` where the data has none."""
        return self.views[2:] if len(self.views) > 2 else None


class Objective(nn.Module):
    """Base class of the terms of the loss.

    A subclass defines ``forward``, whose arguments are named after what it needs of a
    :class:`Batch` and which returns a scalar, or :meth:`token_losses`, or both. The arguments of
    its constructor, annotated and with defaults, are its settings in a config
    (``objective.terms.<name>.<argument>``), except for those that a run gives
    (:data:`simcse.objectives.terms.GIVEN`).
    """

    name: ClassVar[str] = ""
    """Short name in configs, for the objectives of this package."""
    formula: ClassVar[str] = ""
    """For the model card: s is cosine similarity, τ the temperature, i an anchor, j another."""
    formula_with_hard_negatives: ClassVar[str] = ""
    """The same where the data has hard negatives; empty where that makes no difference."""
    source: ClassVar[str] = ""
    """For the model card: authors, year, URL."""
    smallest_batch: ClassVar[int] = 2
    """Rows that a batch needs."""
    any_width: ClassVar[bool] = True
    """Whether the loss has a meaning for the first numbers of embeddings alone
    (``objective.dims``)."""
    default_temperature: ClassVar[TemperatureConfig | None] = None
    """Where a config names none, if it is not that of all others."""

    @classmethod
    def check(cls, **settings: object) -> None:
        """Raise ``ValueError`` where settings do not fit one another; before anything is loaded."""

    def token_losses(
        self, states: Callable[[Features], Tensor], input_ids: Tensor, attention_mask: Tensor
    ) -> Iterator[Tensor]:
        """Losses on token states, which have forward passes of their own.

        Args:
            states: Gives the encoder's token states, ``(texts, length, width)``.
            input_ids: Of the whole batch, all columns, without what views do; ``(texts, length)``.
            attention_mask: The same shape.

        Yields:
            Scalars that sum up to the loss, each with a graph of its own.
        """
        return iter(())

    @property
    def starts_from_data(self) -> bool:
        """Whether :meth:`start_from` is to be called before the first step."""
        return False

    def start_from(self, student: Tensor, teacher: Tensor) -> None:
        """Start from embeddings of a few thousand texts, ``(texts, dim)`` each."""

    def after_step(self, model: SentenceTransformer, progress: float) -> None:
        """Called once weights have moved.

        Args:
            model: The student.
            progress: Share of the run's steps that came before this one, 0 after the first.
        """

    def log_values(self) -> dict[str, float]:
        """Values of the last batch for the log."""
        return {}

    def warning(self) -> str | None:
        """What is going wrong, in words that stay the same while it does."""
        return None


class PairObjective(Objective):
    """An objective that compares each anchor with candidates at a temperature.

    The similarities that it looks at are logged (:func:`~simcse.objectives.diagnostics`).

    Args:
        temperature: A number, or one that is scheduled or learned.
        hard_negative_weight: How much an anchor's own hard negatives count.
    """

    def __init__(
        self, temperature: float | Temperature = 0.05, hard_negative_weight: Weight = 1.0
    ) -> None:
        super().__init__()
        self.temperature = Temperature.of(temperature)
        self.hard_negative_weight = hard_negative_weight

    @torch.no_grad()
    def logits(self, batch: Batch) -> tuple[Tensor, float]:
        """Similarities over temperature, ``(batch, candidates)``, and the temperature."""
        temperature = float(self.temperature())
        weight = self.hard_negative_weight
        return pair_logits(
            batch.anchor, batch.positive, temperature, batch.hard_negatives, weight, batch.mask
        ), temperature
