"""Self-distillation without negatives: the student's prototypes follow the teacher's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


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
