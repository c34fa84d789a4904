"""Self-distillation without negatives: the student's prototypes follow the teacher's."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

from simcse import distributed
from simcse.config.settings import Number, Precision
from simcse.config.settings import Temperature as Positive
from simcse.encoders import encoder
from simcse.encoders.engines import whole_tensor
from simcse.encoders.mini_batches import Features, embed_in_mini_batches
from simcse.encoders.precision import mixed_precision
from simcse.objectives.objective import Objective

Momentum = Annotated[Number, Field(ge=0, lt=1)]


def dino(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy of the student's prototype shares with the teacher's of the other view.

    The teacher is centred, which keeps one prototype from taking everything, and sharpened by its
    lower temperature, which keeps all from being equal.

    Args:
        student: Prototype scores, shape ``(2, batch, prototypes)``, one entry a view.
        teacher: Same shape; no gradient flows into it.
        center: Running mean of the teacher's scores, shape ``(prototypes,)``.
        student_temperature: > 0; DINO takes 0.1.
        teacher_temperature: > 0, below the student's; DINO takes 0.04.

    Returns:
        The loss, a scalar in [0, inf), the mean over both pairs of views.

    Raises:
        ValueError: Shapes that do not fit, temperature not positive.

    Source: Caron et al. 2021, DINO, algorithm 1 (https://arxiv.org/abs/2104.14294).
    """
    if student.ndim != 3 or len(student) != 2 or student.shape != teacher.shape:
        raise ValueError(
            "student and teacher must have one shape (2, batch, prototypes), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not (student_temperature > 0 and teacher_temperature > 0):
        raise ValueError(
            f"temperatures must be positive, got {student_temperature} and {teacher_temperature}"
        )
    target = functional.softmax((teacher.detach() - center) / teacher_temperature, dim=-1)
    log_share = functional.log_softmax(student / student_temperature, dim=-1)
    return -(target.flip(0) * log_share).sum(dim=-1).mean()


@dataclass(frozen=True)
class PrototypeUse:
    """How the teacher uses its prototypes; both entropies as shares of the largest, in [0, 1]."""

    sharpness: float
    """1 minus the mean entropy of single texts: 0 where every text is spread over all prototypes,
    the collapse to uniform."""
    diversity: float
    """Entropy of the mean over texts: 0 where all texts take one prototype, the other collapse."""


def prototype_collapse(sharpness: float, diversity: float) -> str | None:
    """Name DINO's two collapses, from the entropies of :class:`PrototypeUse`.

    One prototype for (almost) all texts: diversity below 0.1. Every text on all prototypes alike:
    sharpness below 0.01. A working run is far from both.
    """
    if diversity < 0.1:
        return "all texts take one prototype"
    return "every text takes all prototypes alike" if sharpness < 0.01 else None


def prototype_use(teacher: Tensor, center: Tensor, teacher_temperature: float) -> PrototypeUse:
    """Entropies that show both collapses of DINO (its section 5.3).

    Args:
        teacher: Prototype scores, shape ``(texts, prototypes)``.
        center: Shape ``(prototypes,)``.
        teacher_temperature: > 0.
    """
    share = functional.softmax((teacher - center) / teacher_temperature, dim=-1)
    largest = math.log(share.shape[-1])

    def entropy(p: Tensor) -> Tensor:
        found: Tensor = torch.special.xlogy(p, p).sum(dim=-1)
        return -found

    return PrototypeUse(
        1 - float(entropy(share).mean()) / largest, float(entropy(share.mean(dim=0))) / largest
    )


class PrototypeHead(nn.Module):
    """DINO's head: an MLP onto the sphere, then cosines with K prototypes.

    Caron et al. 2021, section 3.1 and appendix C; two layers and widths to fit sentence embeddings.
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, width))
        nn.init.normal_(self.prototypes)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores in [-1, 1], shape ``(..., prototypes)``, of embeddings ``(..., width)``."""
        unit = functional.normalize(self.mlp(embeddings), dim=-1)
        return functional.linear(unit, functional.normalize(self.prototypes, dim=-1))


class Dino(Objective):
    """:func:`dino` with a teacher that follows the student as a moving average of its weights.

    Student and teacher score their embeddings on prototypes, each with a head of its own.

    Args:
        model: The student. It needs one encoder for all texts.
        prototypes: How many; DINO has 65,536 for images.
        student_temperature: Of the student's scores.
        teacher_temperature: Of the teacher's scores, at most the student's: the teacher must be the
            sharper one, or all texts collapse to the same.
        center_momentum: Of the running mean of the teacher's scores.
        momentum: Of the teacher's weights; rises to 1 along a cosine.
        mini_batch_size: Texts that the teacher embeds at a time; ``None``: all.
        precision: Of the teacher's forward passes.
    """

    name = "dino"
    formula = (
        "−Σₖ pₖ(teacher, view a) log qₖ(student, view b), "
        "p centred and sharpened, over K prototypes"
    )
    source = "DINO, Caron et al. 2021, https://arxiv.org/abs/2104.14294"
    any_width = False  # its heads take the whole embedding

    def __init__(
        self,
        model: SentenceTransformer,
        prototypes: Annotated[int, Field(ge=2, le=2**20)] = 1024,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        center_momentum: Momentum = 0.9,
        momentum: Momentum = 0.996,
        mini_batch_size: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.prototypes, self.mini_batch_size, self.precision = (
            prototypes,
            mini_batch_size,
            precision,
        )
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.center_momentum, self.momentum = center_momentum, momentum
        self.key = encoder.training_key(model)
        self.head = PrototypeHead(encoder.width(model), prototypes)
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(prototypes))
        self.last: Tensor | None = None
        """The teacher's scores of the last batch, ``(2 * batch, prototypes)``."""

    @classmethod
    def check(cls, **settings: object) -> None:
        """The teacher is the sharper one."""
        student, teacher = settings["student_temperature"], settings["teacher_temperature"]
        if teacher > student:  # type: ignore[operator]
            raise ValueError(
                f"teacher_temperature {teacher} is above student_temperature {student}: the "
                "teacher must be the sharper one, or all collapses"
            )

    def forward(self, anchor: Tensor, positive: Tensor, texts: Features) -> Tensor:
        """The loss.

        Args:
            anchor: The student's embeddings, ``(batch, dim)``, of all processes.
            positive: The same of the other view.
            texts: What the student saw in this process, ``(2 * rows, length)``; the teacher sees
                it through dropout of its own.
        """
        self.teacher.train()
        with torch.no_grad():
            embeddings = embed_in_mini_batches(self._embed, texts, self.mini_batch_size)
            scores = self.teacher_head(embeddings).view(2, -1, self.prototypes)
            scores = distributed.gather(scores, 1)
        center = self.get_buffer("center")
        student = self.head(torch.stack([anchor, positive]))
        loss = dino(student, scores, center, self.student_temperature, self.teacher_temperature)
        self.last = scores.flatten(0, 1)
        center.mul_(self.center_momentum)
        center.add_(self.last.mean(dim=0), alpha=1 - self.center_momentum)
        return loss

    def _embed(self, features: Features) -> Tensor:
        with mixed_precision(features["input_ids"].device, self.precision):
            embeddings: Tensor = self.teacher(dict(features))[self.key]
        return embeddings.float()

    @torch.no_grad()
    def after_step(self, model: SentenceTransformer, progress: float) -> None:
        """Move the teacher towards the student; arguments as in the base class."""
        momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for teacher, student in ((self.teacher, model), (self.teacher_head, self.head)):
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(whole_tensor(new.detach()), 1 - momentum)

    def log_values(self) -> dict[str, float]:
        """Sharpness and diversity of the last batch; see :class:`PrototypeUse`."""
        if self.last is None:
            return {}
        use = prototype_use(self.last, self.get_buffer("center"), self.teacher_temperature)
        return {"dino_sharpness": use.sharpness, "dino_diversity": use.diversity}

    def warning(self) -> str | None:
        """Which of DINO's two collapses has happened."""
        values = self.log_values()
        kind = prototype_collapse(*values.values()) if values else None
        return kind and f"the teacher's prototypes have collapsed: {kind}"
