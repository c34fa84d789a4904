"""Dropout on the CPU in a third of the time.

PyTorch draws every element's Bernoulli number one after the other on the CPU. Here one 64-bit
number of the same generator decides on four elements, 16 bits each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STEPS = 1 << 16  # a probability is a multiple of 1 / _STEPS


def install(model: nn.Module) -> None:
    """Replace every ``nn.Dropout`` of a model by :class:`Dropout`.

    Neither has weights, so nothing of it is in what is saved. Dropout that a model computes without
    a module, such as that of attention weights, stays PyTorch's.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, child.inplace).train(child.training))


class Dropout(nn.Dropout):
    """``nn.Dropout`` with other random numbers; see :func:`dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements while training, as ``nn.Dropout`` does."""
        if self.training and 0 < self.p < 1 and not self.inplace:
            return dropout(input, self.p)
        return super().forward(input)


def dropout(values: Tensor, p: float) -> Tensor:
    """Zero each element with probability ``p`` and divide the others by ``1 - p``.

    Args:
        values: Floating point.
        p: Below 1; taken as the nearest multiple of 1/65,536.
    """
    dropped = min(round(p * _STEPS), _STEPS - 1)
    words = torch.empty((values.numel() + 3) // 4, dtype=torch.int64, device=values.device)
    words.random_(-(1 << 63), None)  # all 64 bits
    bits = words.view(torch.int16)[: values.numel()].view(values.shape)
    # Compared straight into the type of the values, which takes half as long as by way of bool.
    factor = torch.ge(
        bits, dropped - _STEPS // 2, out=torch.empty_like(values, requires_grad=False)
    )
    return values * factor.mul_(_STEPS / (_STEPS - dropped))
