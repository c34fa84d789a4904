"""From a batch to its loss: one forward pass for all views, then the terms of the objective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

from simcse import distributed
from simcse.config.settings import Config
from simcse.encoders import cpu_dropout, encoder, first_token
from simcse.encoders.encoder import DOCUMENT, QUERY
from simcse.encoders.engines import Engine
from simcse.encoders.mini_batches import Features, embed_in_mini_batches, mini_batches
from simcse.errors import UserError, first_line
from simcse.objectives import (
    clip,
    decoupled,
    diagnostics,
    distill_l2,
    distill_similarity,
    info_nce,
    nt_xent,
    pair_logits,
    prototype_use,
    same_text_mask,
    sup_con,
)
from simcse.objectives.state import ObjectiveState, mixed_precision

CONTRASTIVE = ("info_nce", "decoupled", "clip", "nt_xent", "sup_con")
"""Terms that compare an anchor with candidates at a temperature."""
WITH_HARD_NEGATIVES = ("info_nce", "decoupled")
WITHOUT_PAIRS = ("mlm", "distill_l2", "distill_similarity")
"""Terms for which one view of a text is enough."""
_FIT_MINI_BATCH = 256
_SHOWN = 256  # anchors whose candidates the logged diagnostics look at


@dataclass(frozen=True)
class Pass:
    """Texts that go through the encoder together."""

    rows: Tensor
    """Where their embeddings stand in the batch, ``(texts,)``."""
    features: Features
    """``input_ids`` and ``attention_mask``, ``(texts, length)``."""
    dropout: float | None
    """Overrides the encoder's rates."""
    route: str | None
    """Which of two towers."""


class TrainingLoss(nn.Module):
    """The weighted terms of an objective on the batches of a ``ViewCollator``.

    Args:
        model: The encoder to train.
        config: The run.
        teacher: File of the teacher's embeddings, one row a training row; for distillation.
    """

    def __init__(
        self, model: SentenceTransformer, config: Config, teacher: Path | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.key = encoder.training_key(model)
        if config.training.cpu_kernels and model.device.type == "cpu":
            cpu_dropout.install(model)
        self.teacher = None if teacher is None else np.load(teacher, mmap_mode="r")
        width = None if self.teacher is None else self.teacher.shape[1]
        self.state = ObjectiveState(model, config, width)
        self.engine = Engine(model)
        self.mini_batch_size = config.training.mini_batch_size
        self.two_towers = config.encoder.towers == "two"
        self.dropouts = [view.dropout for view in config.views]
        # Where views hide tokens, the first one that is seen may be another.
        hides = any(view.cutoff for view in config.views)
        cutting = config.training.cpu_kernels and not hides
        self.cuts = first_token.find_cuts(model) if cutting else []
        if config.training.activation_checkpointing:
            self._checkpoint_activations()
        self.last: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None = None

    def _checkpoint_activations(self) -> None:
        # The layers that are computed again run outside of the pass that they belong to.
        again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self._settings())}
        for route in encoder.routes(self.model):
            network = encoder.transformer_of(self.model, route or QUERY).model
            try:
                network.activation_checkpointing_enable(again)
            except ValueError as error:
                raise UserError(
                    f"training.activation_checkpointing: {self.config.encoder.name} does not "
                    f"support it ({first_line(error)})"
                ) from error

    def passes(self, features: Features) -> list[Pass]:
        """The forward passes that embed a batch: one, or one a column where columns differ.

        Args:
            features: Of a batch from :class:`~simcse.data.views.ViewCollator`.
        """
        size = features["identities"].shape[1]
        texts = {key: features[key] for key in ("input_ids", "attention_mask")}
        rows = torch.arange(len(texts["input_ids"]), device=texts["input_ids"].device)
        first, second = self.dropouts
        if not self.two_towers and first == second:
            return self._mini_batches(Pass(rows, texts, first, None))
        routes = (QUERY, DOCUMENT) if self.two_towers else (None, None)
        passes = []
        for chosen, rate, route in zip(
            (rows[:size], rows[size:]), self.dropouts, routes, strict=True
        ):
            if len(chosen):  # objectives without pairs have no second column
                part = {key: value[chosen] for key, value in texts.items()}
                passes += self._mini_batches(Pass(chosen, part, rate, route))
        return passes

    def _mini_batches(self, whole: Pass) -> list[Pass]:
        return [
            replace(whole, rows=whole.rows[rows], features=features)
            for rows, features in mini_batches(whole.features, self.mini_batch_size)
        ]

    def embed(self, part: Pass) -> Tensor:
        """Training embeddings of a pass, float32, ``(texts, dim)``."""
        return self._encode(part, self.cuts)[self.key].float()

    def _encode(self, part: Pass, cuts: Sequence[nn.Module]) -> Features:
        task = {} if part.route is None else {"task": part.route}
        self._settings = partial(self._in_effect, part.dropout, cuts)
        device = part.features["input_ids"].device
        with mixed_precision(device, self.config.training.precision), self._settings():
            found: Features = self.engine.network(dict(part.features), **task)
        return found

    @contextmanager
    def _in_effect(self, rate: float | None, cuts: Sequence[nn.Module]) -> Iterator[None]:
        """What holds for a pass, and again where activation checkpointing repeats parts of it."""
        with first_token.cut(cuts), encoder.dropout(self.model, rate):
            yield

    def forward(self, embeddings: Tensor, features: Features) -> dict[str, Tensor]:
        """The weighted terms of the objective by name; what they sum up to is the loss.

        Args:
            embeddings: Of this process's part of the batch, ``(columns * batch, dim)``.
            features: Of the same texts.
        """
        identities, labels, rows = (
            features["identities"],
            features.get("labels"),
            features.get("rows"),
        )
        views = embeddings.view(*identities.shape, -1)  # (columns, batch, dim)
        # From here on the batch is that of all processes, but for `features`.
        views, identities = distributed.gather(views, 1), distributed.gather(identities, 1)
        labels = None if labels is None else distributed.gather(labels)
        rows = None if rows is None else distributed.gather(rows)
        mask = None
        if len(views) > 1 and self.config.objective.mask_identical:
            mask = same_text_mask(identities, labels)  # (batch, (columns - 1) * batch)
        if len(views) > 1:
            hard = views[2:] if len(views) > 2 else None
            last = views.detach()
            self.last = (last[0], last[1], None if hard is None else last[2:], mask)
        return {
            name: weight * self._term(name, views, mask, labels, rows, features)
            for name, weight in self.config.objective.terms.items()
            if name != "mlm"
        }

    def token_terms(self, features: Features) -> Iterator[Tensor]:
        """The weighted term ``mlm`` in parts that sum up to it, each with a graph of its own."""
        mlm = self.state.mlm
        if mlm is None:
            return
        device, precision = features["input_ids"].device, self.config.training.precision

        def states(texts: Features) -> Tensor:
            return self._encode(Pass(torch.empty(0), texts, None, None), [])["token_embeddings"]

        weight = self.config.objective.terms["mlm"]
        # The texts as they are, where a view shuffles, repeats or hides tokens.
        texts = (
            features.get("text_ids", features["input_ids"]),
            features.get("text_mask", features["attention_mask"]),
        )
        with mixed_precision(device, precision):
            for part in mlm.losses(states, *texts):
                yield weight * part

    @property
    def has_map(self) -> bool:
        """Whether a linear map leads from the student's width to the teacher's."""
        return isinstance(self.state.to_teacher, nn.Linear)

    @torch.no_grad()
    def fit_map(self, features: dict[str, Tensor]) -> None:
        """Start the map to the teacher's width from ridge regression on a few rows.

        From random weights, most of a short run would go into turning one space into the other.

        Args:
            features: A batch with ``rows``, as :meth:`forward` takes it; a few thousand rows.
        """
        target_map = self.state.to_teacher
        if self.teacher is None or not isinstance(target_map, nn.Linear):
            raise ValueError("there is no map to a teacher's width to fit; see has_map")
        training = self.model.training
        self.model.eval()
        size = features["identities"].shape[1]
        texts = {key: features[key][:size] for key in ("input_ids", "attention_mask")}
        whole = Pass(torch.arange(size), texts, None, None)
        embeddings = embed_in_mini_batches(
            lambda part: self.embed(replace(whole, features=part)), texts, _FIT_MINI_BATCH
        )
        self.model.train(training)
        # In float64, which not every device has.
        student = functional.normalize(embeddings, dim=-1).cpu().double()  # (rows, dim)
        found = torch.from_numpy(
            np.asarray(self.teacher[features["rows"].cpu().numpy()], dtype=np.float64)
        )
        target = functional.normalize(found, dim=-1)
        square = student.T @ student
        ridge = 1e-3 * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
        weight = torch.linalg.solve(square + ridge, student.T @ target).T
        target_map.weight.copy_(weight)

    def log_values(self) -> dict[str, float]:
        """Temperature, diagnostics and prototype use of the last batch, for the log."""
        values: dict[str, float] = {}
        if self.last is not None and any(n in self.config.objective.terms for n in CONTRASTIVE):
            with torch.no_grad():
                temperature = float(self.state.temperature())
            anchor, positive, hard, mask = self.last
            weight = self.config.objective.hard_negative_weight
            with torch.no_grad():
                logits = pair_logits(anchor, positive, temperature, hard, weight, mask)[:_SHOWN]
            values = {"temperature": temperature, **diagnostics(logits, temperature)}
        teacher = self.state.self_teacher
        if teacher is not None and teacher.last is not None:
            use = prototype_use(
                teacher.last, teacher.get_buffer("center"), teacher.config.teacher_temperature
            )
            values |= {"dino_sharpness": use.sharpness, "dino_diversity": use.diversity}
        return values

    def _term(
        self,
        name: str,
        views: Tensor,
        mask: Tensor | None,
        labels: Tensor | None,
        rows: Tensor | None,
        features: Features,
    ) -> Tensor:
        objective, state = self.config.objective, self.state
        square = None if mask is None else mask[:, : views.shape[1]]
        hard = views[2:] if len(views) > 2 else None
        match name:
            case "info_nce" | "decoupled":
                function = info_nce if name == "info_nce" else decoupled
                weight = objective.hard_negative_weight
                return function(views[0], views[1], state.temperature(), hard, weight, mask)
            case "clip":
                return clip(views[0], views[1], state.temperature(), square)
            case "nt_xent":
                return nt_xent(views[0], views[1], state.temperature(), square)
            case "sup_con" if labels is not None:
                return sup_con(views[:2].flatten(0, 1), labels.repeat(2), state.temperature())
            case "dino" if state.self_teacher is not None:
                own = 2 * features["identities"].shape[1]  # texts of this process
                seen = {key: features[key][:own] for key in ("input_ids", "attention_mask")}
                return state.self_teacher.forward(views[:2], seen)
            case "distill_l2" | "distill_similarity" if self.teacher is not None:
                return self._distill(name, views, rows)
        raise ValueError(f"{name} cannot be computed from this batch")

    def _distill(self, name: str, views: Tensor, rows: Tensor | None) -> Tensor:
        if self.teacher is None or rows is None:
            raise ValueError("distillation needs the teacher's embeddings and the rows' numbers")
        target = torch.from_numpy(np.asarray(self.teacher[rows.cpu().numpy()], dtype=np.float32))
        target = target.to(views.device)
        objective = self.config.objective
        if name == "distill_l2":
            losses = [distill_l2(self.state.to_teacher(view), target) for view in views]
        else:
            losses = [
                distill_similarity(
                    view, target, self.state.temperature(), objective.teacher_temperature
                )
                for view in views
            ]
        return torch.stack(losses).mean()
