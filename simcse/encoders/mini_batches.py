"""Mini-batches of a batch, and the random numbers that embedding one of them has drawn.

Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983) embeds every mini-batch twice:
without a graph for the loss, and again, with the same dropout, for the gradients. The three phases
stand in :mod:`simcse.training.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Features = dict[str, Tensor]
RandomState = tuple[Tensor, Tensor | None]


def on_device(features: Features, device: torch.device) -> Features:
    """Features where the encoder is; a GPU copies them from pinned memory while it computes."""
    if device.type != "cuda":
        return {key: value.to(device) for key, value in features.items()}
    return {
        key: value.pin_memory().to(device, non_blocking=True) for key, value in features.items()
    }


def mini_batches(
    features: Features, size: int | None, padding_side: str = "right"
) -> list[tuple[Tensor, Features]]:
    """Row numbers and features of at most ``size`` texts each; ``None`` keeps all together.

    Texts of similar length come together and are cut at the longest of them, so little is padding.

    Args:
        features: Tensors ``(texts, length)``, ``attention_mask`` among them.
        size: Texts in a mini-batch.
        padding_side: Where padding may be cut; on the other side columns stay, since learned
            positions count from there.
    """
    mask = features["attention_mask"]
    if size is None or len(mask) <= size:
        return [(torch.arange(len(mask), device=mask.device), features)]
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    is_left = padding_side == "left"
    lengths = (mask * (positions.flip(0) if is_left else positions)).amax(dim=1)
    groups = torch.split(lengths.argsort(stable=True), size)
    longest = torch.stack([lengths[rows[-1]] for rows in groups]).tolist()  # one wait for a device
    kept = [slice(-most, None) if is_left else slice(most) for most in longest]
    return [
        (rows, {key: value[rows, columns] for key, value in features.items()})
        for rows, columns in zip(groups, kept, strict=True)
    ]


@torch.no_grad()
def embed_in_mini_batches(
    embed: Callable[[Features], Tensor], features: Features, size: int | None
) -> Tensor:
    """``embed(features)`` without gradients, ``(texts, dim)``, a mini-batch at a time."""
    rows, parts = zip(*mini_batches(features, size), strict=True)
    embeddings = torch.cat([embed(part) for part in parts])
    return embeddings[torch.cat(rows).argsort()]


def random_state(device: torch.device) -> RandomState:
    """State of the generators that dropout draws from."""
    own = None
    if device.type != "cpu":
        own = torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), own


@contextmanager
def replaying(device: torch.device, state: RandomState) -> Iterator[None]:
    """Draw the random numbers again that followed ``state``; afterwards go on as if not."""
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type=device.type if others else "cuda"):
        set_random_state(device, state)
        yield


def set_random_state(device: torch.device, state: RandomState) -> None:
    """Put the generators into a state from :func:`random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
