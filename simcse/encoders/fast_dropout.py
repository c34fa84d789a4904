"""Dropout on the CPU in a third of the time.

PyTorch draws every element's Bernoulli number one after the other on the CPU, an eighth of a
training step's time. Here one 64-bit number of the same generator decides on four elements, 16 bits
each. Attention with dropout, for which PyTorch has no fused kernel on the CPU, is also done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_STEPS = 1 << 16  # a probability is a multiple of 1 / _STEPS


class FastDropout(TorchFunctionMode):
    """While it is active, dropout and attention with dropout are computed as below on the CPU.

    Whatever else is called, on another device or without dropout, is left to PyTorch. It is for the
    forward pass alone; the backward pass needs nothing of it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def dropout(values: Tensor, p: float) -> Tensor:
    """Zero each element with probability ``p`` and divide the others by ``1 - p``.

    Args:
        values: Floating point, on the CPU.
        p: Below 1; taken as the nearest multiple of 1/65,536.
    """
    dropped = min(round(p * _STEPS), _STEPS - 1)
    words = torch.empty((values.numel() + 3) // 4, dtype=torch.int64)
    words.random_(-(1 << 63), None)  # all 64 bits
    bits = words.view(torch.int16)[: values.numel()].view(values.shape)
    # Compared straight into the type of the values, which takes half as long as by way of bool.
    factor = torch.ge(
        bits, dropped - _STEPS // 2, out=torch.empty_like(values, requires_grad=False)
    )
    return values * factor.mul_(_STEPS / (_STEPS - dropped))


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scale: float | None
) -> Tensor:
    """Scaled dot-product attention with dropout of its weights.

    Args:
        query: ``(..., queries, width)``, floating point, on the CPU.
        key: ``(..., keys, width)``.
        value: ``(..., keys, value_width)``.
        mask: Broadcasts to ``(..., queries, keys)``; ``True`` for what is seen, or what is added.
        p: As in :func:`dropout`.
        scale: Factor of the products; ``None`` for 1 / sqrt(width).
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    # As PyTorch does without a fused kernel: half precision is too coarse for scores and weights.
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        scores = (query.to(wide) * factor) @ key.to(wide).transpose(-2, -1)
        if mask is not None:
            scores = _masked(scores, mask)
        return (dropout(scores.softmax(-1), p) @ value.to(wide)).to(value.dtype)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        scores, mask = scores + mask, mask > -math.inf
    # A query that sees no key, a padding token, attends to all alike. Its output is nobody's, but
    # the softmax of -inf alone is NaN, and so would be the gradient of all others.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and 0 < p < 1 and not inplace and _is_ours(input):
        return dropout(input, p)
    return functional.dropout(input, p, training, inplace)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    grouped = kwargs.get("enable_gqa", False)
    if 0 < dropout_p < 1 and not is_causal and not grouped and _is_ours(query):
        return attention(query, key, value, attn_mask, dropout_p, kwargs.get("scale"))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, **kwargs
    )


def _is_ours(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.is_floating_point()
