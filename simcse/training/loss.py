"""From a batch to its loss: one forward pass for all views, then the terms of the objective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from simcse import distributed
from simcse.config.settings import Config
from simcse.encoders import cpu_dropout, encoder, first_token
from simcse.encoders.encoder import DOCUMENT, QUERY
from simcse.encoders.engines import Engine
from simcse.encoders.mini_batches import Features, embed_in_mini_batches, mini_batches
from simcse.encoders.precision import mixed_precision
from simcse.errors import UserError, first_line
from simcse.objectives import Batch, guide_mask, same_text_mask
from simcse.objectives.terms import resolve
from simcse.objectives.weighted_sum import WeightedSum

_START_MINI_BATCH = 256


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
        teacher_width: Of the embeddings in the feature ``teacher``; for distillation.
    """

    def __init__(
        self, model: SentenceTransformer, config: Config, teacher_width: int | None = None
    ) -> None:
        super().__init__()
        config = resolve(config)
        self.model = model
        self.config = config
        self.key = encoder.training_key(model)
        if config.training.cpu_kernels and model.device.type == "cpu":
            cpu_dropout.install(model)
        self.objective = WeightedSum(model, config, teacher_width)
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
            for rows, features in mini_batches(
                whole.features, self.mini_batch_size, self.model.tokenizer.padding_side
            )
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
        identities, labels = features["identities"], features.get("labels")
        teacher = features.get("teacher")  # (columns, rows, dim)
        views = embeddings.view(*identities.shape, -1)  # (columns, rows, dim)
        # From here on the batch is that of all processes, but for `features`.
        views, identities = distributed.gather(views, 1), distributed.gather(identities, 1)
        labels = None if labels is None else distributed.gather(labels)
        teacher = None if teacher is None else distributed.gather(teacher[0])
        mask = None
        if len(views) > 1 and self.config.objective.mask_identical:
            mask = same_text_mask(identities, labels)  # (batch, (columns - 1) * batch)
        if "guide" in features and len(views) > 1:
            guide, rule = distributed.gather(features["guide"], 1), self.config.objective
            guided = guide_mask(guide, rule.guide_margin, rule.guide_margin_kind)
            mask = guided if mask is None else mask | guided
        own = 2 * features["identities"].shape[1]  # anchors and positives of this process
        texts = {key: features[key][:own] for key in ("input_ids", "attention_mask")}
        terms: dict[str, Tensor] = self.objective(Batch(views, mask, labels, teacher, texts))
        return terms

    def token_terms(self, features: Features) -> Iterator[tuple[str, Tensor]]:
        """The weighted terms on token states, in parts, each with a graph of its own."""
        device, precision = features["input_ids"].device, self.config.training.precision

        def states(texts: Features) -> Tensor:
            return self._encode(Pass(torch.empty(0), texts, None, None), [])["token_embeddings"]

        # The texts as they are, where a view shuffles, repeats or hides tokens.
        ids = features.get("text_ids", features["input_ids"])
        mask = features.get("text_mask", features["attention_mask"])
        with mixed_precision(device, precision):
            yield from self.objective.token_losses(states, ids, mask)

    @torch.no_grad()
    def start_from(self, features: Features) -> None:
        """Let terms start from the embeddings of a few thousand rows, if they do.

        Args:
            features: A batch with ``teacher``, as :meth:`forward` takes it.
        """
        terms = [term for _, _, term in self.objective.named if term.starts_from_data]
        if not terms:
            return
        training = self.model.training
        self.model.eval()
        size = features["identities"].shape[1]
        texts = {key: features[key][:size] for key in ("input_ids", "attention_mask")}
        whole = Pass(torch.arange(size), texts, None, None)
        embeddings = embed_in_mini_batches(
            lambda part: self.embed(replace(whole, features=part)), texts, _START_MINI_BATCH
        )
        self.model.train(training)
        for term in terms:
            term.start_from(embeddings, features["teacher"][0])
