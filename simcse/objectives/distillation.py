"""A student's embeddings learn from a teacher's, which are fixed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simcse.objectives.pairwise import checked


def distill_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of normalised embeddings, in [0, 4].

    Args:
        student: Floating point, shape ``(batch, dim)``, mapped to the teacher's width.
        teacher: Shape ``(batch, dim)``.

    Raises:
        ValueError: Shapes that differ.

    Source: Reimers and Gurevych 2020, equation 1 (https://arxiv.org/abs/2004.09813), on the sphere.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            "student and teacher must have one shape (batch, dim), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    difference = functional.normalize(student, dim=-1) - functional.normalize(teacher, dim=-1)
    return difference.square().sum(dim=-1).mean()


def distill_similarity(
    student: Tensor, teacher: Tensor, temperature: float | Tensor, teacher_temperature: float
) -> Tensor:
    """Cross-entropy between who is similar to whom: the teacher's ranking of the batch, softly.

    For each row the softmax over its similarities to the other rows, the teacher's as the target.
    The widths may differ.

    Args:
        student: Floating point, shape ``(batch, dim)``.
        teacher: Shape ``(batch, any)``.
        temperature: Of the student's softmax, > 0.
        teacher_temperature: Of the teacher's, > 0; lower looks at fewer neighbours.

    Returns:
        The loss, a scalar; smallest, the teacher's entropy, where both agree.

    Raises:
        ValueError: Fewer than three rows or other numbers of rows, temperature not positive.

    Source: ListNet as in Liu et al. 2023, RankCSE, equation 8 (https://arxiv.org/abs/2305.16726).
    """
    if len(student) != len(teacher) or len(student) < 3:
        raise ValueError(
            f"expected the same three or more rows, got {len(student)} and {len(teacher)}"
        )
    target = functional.softmax(_others(teacher) / checked(teacher_temperature), dim=1)
    return functional.cross_entropy(_others(student) / checked(temperature), target)


def _others(embeddings: Tensor) -> Tensor:
    """Cosines of each row with the other rows, shape ``(batch, batch - 1)``."""
    unit = functional.normalize(embeddings, dim=-1)
    rows = len(unit)
    keep = ~torch.eye(rows, dtype=torch.bool, device=unit.device)
    return (unit @ unit.T)[keep].view(rows, rows - 1)
