"""A model that is trained further keeps its sense of which texts of a batch are similar."""

from __future__ import annotations

import copy

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from simcse import distributed
from simcse.config.settings import Precision
from simcse.config.settings import Temperature as Positive
from simcse.encoders.encoder import SENTENCE_EMBEDDING
from simcse.encoders.mini_batches import Features, embed_in_mini_batches
from simcse.encoders.precision import mixed_precision
from simcse.objectives.distill_similarity import distill_similarity
from simcse.objectives.objective import Objective
from simcse.objectives.temperature import Temperature


class DistillStart(Objective):
    """:func:`distill_similarity` with the model that training began with as the teacher.

    It embeds the views of every batch itself, so that any form of data will do. It is a second term
    for models that are good already and that contrast alone would make worse elsewhere
    (docs/studies/adapt.md).

    Args:
        model: What is trained, before the first step. It needs one encoder for all texts.
        temperature: Of the similarities; a number, or one that is scheduled or learned.
        teacher_temperature: Of the start's; lower looks at fewer neighbours.
        mini_batch_size: Texts that the start embeds at a time; ``None``: all.
        precision: Of its forward passes.
    """

    name = "distill_start"
    formula = "−Σ_{j≠i} softmaxⱼ(s_start(i,j)/τ_t) log softmaxⱼ(s(i,j)/τ), of either view"
    source = "the loss of RankCSE, Liu et al. 2023, https://arxiv.org/abs/2305.16726"
    smallest_batch = 3

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float | Temperature = 0.05,
        teacher_temperature: Positive = 0.05,
        mini_batch_size: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.temperature = Temperature.of(temperature)
        self.teacher_temperature = teacher_temperature
        self.mini_batch_size, self.precision = mini_batch_size, precision
        # In a list, so that it is in no checkpoint: a resumed run starts from the same model.
        self.start = [copy.deepcopy(model).requires_grad_(False).eval()]
        self.last: tuple[Features, Tensor] | None = None
        """The last texts and the start's embeddings of them, ``(2, batch, dim)``."""

    def forward(self, anchor: Tensor, positive: Tensor, texts: Features) -> Tensor:
        """The loss, the mean over both views.

        Args:
            anchor: Embeddings ``(batch, dim)``, of all processes.
            positive: The same of the other view.
            texts: What was embedded in this process, ``(2 * rows, length)``.
        """
        if self.last is None or self.last[0] is not texts:  # once for all of `objective.dims`
            found = embed_in_mini_batches(self._embed, texts, self.mini_batch_size)
            self.last = texts, distributed.gather(found.view(2, -1, found.shape[-1]), 1)
        teacher = self.last[1]
        temperature = self.temperature()
        losses = [
            distill_similarity(view, start, temperature, self.teacher_temperature)
            for view, start in zip((anchor, positive), teacher, strict=True)
        ]
        return torch.stack(losses).mean()

    def _embed(self, features: Features) -> Tensor:
        device = features["input_ids"].device
        with mixed_precision(device, self.precision):
            embeddings: Tensor = self.start[0].to(device)(dict(features))[SENTENCE_EMBEDDING]
        return embeddings.float()
