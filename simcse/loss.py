"""From a batch to its loss: one forward pass for all views, then the terms of the objective."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

from simcse import distributed, encoder, first_token
from simcse.caching import Features, in_mini_batches
from simcse.encoder import DOCUMENT, QUERY
from simcse.fast_dropout import FastDropout
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
from simcse.settings import Config
from simcse.state import ObjectiveState, mixed_precision

CONTRASTIVE = ("info_nce", "decoupled", "clip", "nt_xent", "sup_con")
"""Terms that compare an anchor with candidates at a temperature."""
WITH_HARD_NEGATIVES = ("info_nce", "decoupled")
WITHOUT_PAIRS = ("mlm", "distill_l2", "distill_similarity")
"""Terms for which one view of a text is enough."""
_FIT_MINI_BATCH = 256
_SHOWN = 256  # anchors whose candidates the logged diagnostics look at


class TrainingLoss(nn.Module):
    """The weighted terms of an objective on the batches of a :class:`~simcse.views.ViewCollator`.

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
        self.teacher = None if teacher is None else np.load(teacher, mmap_mode="r")
        width = None if self.teacher is None else self.teacher.shape[1]
        self.state = ObjectiveState(model, config, width)
        self.two_towers = config.encoder.towers == "two"
        self.dropouts = [view.dropout for view in config.views]
        # Where views hide tokens, the first one that is seen may be another.
        hides = any(view.cutoff for view in config.views)
        self.cuts = [] if hides else first_token.find_cuts(model)
        self.last: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None = None

    def forward(
        self, features: list[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The loss, or its weighted terms by name where there are several."""
        batch = dict(features[0])
        identities = batch.pop("identities")  # (columns, batch)
        labels, rows = batch.pop("labels", None), batch.pop("rows", None)
        # The texts as they are, where a view shuffles, repeats or hides tokens.
        texts = (
            batch.pop("text_ids", batch["input_ids"]),
            batch.pop("text_mask", batch["attention_mask"]),
        )
        size = self.config.training.mini_batch_size
        views = self._embed(batch, identities.shape[1], size).view(*identities.shape, -1)
        # From here on the batch is that of all processes, but for the features of `batch`.
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
        terms: dict[str, Tensor] = {
            name: weight * self._term(name, views, mask, labels, rows, batch, texts)
            for name, weight in self.config.objective.terms.items()
        }
        return next(iter(terms.values())) if len(terms) == 1 else terms

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
        batch = dict(features)
        identities, rows = batch.pop("identities"), batch.pop("rows")
        training = self.model.training
        self.model.eval()
        size = identities.shape[1]
        embeddings = self._embed(batch, size, _FIT_MINI_BATCH)[:size]
        self.model.train(training)
        # In float64, which not every device has.
        student = functional.normalize(embeddings, dim=-1).cpu().double()  # (rows, dim)
        found = torch.from_numpy(np.asarray(self.teacher[rows.cpu().numpy()], dtype=np.float64))
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

    def _embed(self, batch: Features, size: int, mini_batch_size: int | None) -> Tensor:
        """Training embeddings, float32, ``(columns * batch, dim)``; in one pass where possible."""
        passes: list[tuple[slice, float | None, str | None]]
        anchors, others = slice(0, size), slice(size, None)
        if self.two_towers:
            passes = [(anchors, self.dropouts[0], QUERY), (others, self.dropouts[1], DOCUMENT)]
        elif self.dropouts[0] == self.dropouts[1]:
            passes = [(slice(None), self.dropouts[0], None)]
        else:
            passes = [(anchors, self.dropouts[0], None), (others, self.dropouts[1], None)]
        parts = []
        for chosen, rate, task in passes:
            features = {key: value[chosen] for key, value in batch.items()}
            if len(features["input_ids"]):  # objectives without pairs have no others
                embed = partial(self._pass, rate=rate, task=task)
                parts.append(in_mini_batches(embed, features, mini_batch_size))
        return torch.cat(parts)

    def _pass(self, features: Features, rate: float | None, task: str | None) -> Tensor:
        route = {} if task is None else {"task": task}
        precision = mixed_precision(self.model.device, self.config.training.precision)
        dropout = encoder.dropout(self.model, rate)
        with precision, first_token.cut(self.cuts), dropout, FastDropout():
            embeddings: Tensor = self.model(dict(features), **route)[self.key]
        return embeddings.float()

    def _term(
        self,
        name: str,
        views: Tensor,
        mask: Tensor | None,
        labels: Tensor | None,
        rows: Tensor | None,
        batch: dict[str, Tensor],
        texts: tuple[Tensor, Tensor],
    ) -> Tensor:
        objective, state = self.config.objective, self.state
        square = None if mask is None else mask[:, : views.shape[1]]
        own = len(batch["input_ids"]) // len(views)  # rows of this process
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
                seen = {key: value[: 2 * own] for key, value in batch.items()}
                return state.self_teacher.forward(views[:2], seen)
            case "mlm" if state.mlm is not None:
                return state.mlm.forward(*texts)
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
