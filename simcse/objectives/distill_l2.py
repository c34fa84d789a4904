"""A student's embeddings move to where a fixed teacher's are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simcse.objectives.objective import Objective


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


class DistillL2(Objective):
    """:func:`distill_l2` as a term of a run, the mean over views.

    Where the widths differ, the student is to be the teacher on its directions of largest spread:
    a rotation, fixed before the first step, leads from one to the other. So the cosines
    of both models are alike, which a map that is learned with the student does not care for.

    Args:
        width: Of the student's embeddings.
        teacher_width: Of the teacher's.
    """

    name = "distill_l2"
    formula = "‖ student(i) − teacher(i) ‖², both normalised"
    source = "Reimers and Gurevych 2020, https://arxiv.org/abs/2004.09813"
    any_width = False  # a part of an embedding has no place among the teacher's

    def __init__(self, width: int | None = None, teacher_width: int | None = None) -> None:
        super().__init__()
        self.to_teacher: Tensor | None  # (teacher_dim, dim)
        rotation = None
        if width is not None and teacher_width is not None and width != teacher_width:
            rotation = torch.eye(teacher_width, width)
        self.register_buffer("to_teacher", rotation)

    def forward(self, views: Tensor, teacher: Tensor) -> Tensor:
        """The loss.

        Args:
            views: The student's embeddings of the texts, ``(views, batch, dim)``.
            teacher: The teacher's embeddings of the same texts, ``(batch, teacher_dim)``.
        """
        mapped = views if self.to_teacher is None else views @ self.to_teacher.T
        return torch.stack([distill_l2(view, teacher) for view in mapped]).mean()

    @property
    def starts_from_data(self) -> bool:
        """Whether there is a rotation."""
        return self.to_teacher is not None

    @torch.no_grad()
    def start_from(self, student: Tensor, teacher: Tensor) -> None:
        """Fix the rotation: the teacher's main directions, turned to where the student is.

        Args:
            student: Embeddings of a few thousand texts, ``(texts, dim)``.
            teacher: Of the same texts, ``(texts, teacher_dim)``.

        Source: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem".
        """
        if self.to_teacher is None:
            return
        # In float64, which not every device has.
        source = functional.normalize(student.cpu().double(), dim=-1)
        target = functional.normalize(teacher.cpu().double(), dim=-1)
        _, directions = torch.linalg.eigh(target.T @ target)  # of rising spread
        main = directions[:, -source.shape[1] :]
        left, _, right = torch.linalg.svd((target @ main).T @ source, full_matrices=False)
        self.to_teacher.copy_(main @ left @ right)
