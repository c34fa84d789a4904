"""A student learns which texts of a batch its teacher finds similar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simcse.config.settings import Temperature as Positive
from simcse.objectives.objective import Objective
from simcse.objectives.pairwise import checked
from simcse.objectives.temperature import Temperature


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
    # After the first element of the diagonal the others follow at every (rows + 1)th place.
    between = (unit @ unit.T).flatten()[1:].view(rows - 1, rows + 1)[:, :-1]
    return between.reshape(rows, rows - 1)


class DistillSimilarity(Objective):
    """:func:`distill_similarity` as a term of a run, the mean over views.

    Args:
        temperature: Of the student's similarities; a number, or one that is scheduled or learned.
        teacher_temperature: Of the teacher's; lower looks at fewer neighbours.
    """

    name = "distill_similarity"
    formula = "−Σ_{j≠i} softmaxⱼ(s_teacher(i,j)/τ_t) log softmaxⱼ(s_student(i,j)/τ)"
    source = "RankCSE, Liu et al. 2023, https://arxiv.org/abs/2305.16726"
    smallest_batch = 3

    def __init__(
        self, temperature: float | Temperature = 0.05, teacher_temperature: Positive = 0.05
    ) -> None:
        super().__init__()
        self.temperature = Temperature.of(temperature)
        self.teacher_temperature = teacher_temperature

    def forward(self, views: Tensor, teacher: Tensor) -> Tensor:
        """The loss.

        Args:
            views: The student's embeddings of the texts, ``(views, batch, dim)``.
            teacher: The teacher's embeddings of the same texts, ``(batch, teacher_dim)``.
        """
        temperature = self.temperature()
        losses = [
            distill_similarity(view, teacher, temperature, self.teacher_temperature)
            for view in views
        ]
        return torch.stack(losses).mean()
