"""Which rows form a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import BatchSampler

# Rows are sorted by length within pools of this many batches: enough for next to no padding,
# few enough that the batches of two epochs differ.
_POOL_BATCHES = 50


class ViewBatchSampler(BatchSampler):
    """Batches of row numbers, a new order each epoch, a function of (seed, epoch) only.

    The last incomplete batch is dropped: it would have fewer in-batch negatives than the others.

    Args:
        lengths: Number of tokens of each row, shape ``(rows,)``.
        batch_size: Rows in a batch.
        batching: ``random`` draws the rows of a batch at random, ``length_grouped`` gives a batch
            rows of like length, so that almost nothing is padded and negatives are as long as the
            positive.
        seed: Non-negative; together with the epoch it fixes the order.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        batching: Literal["random", "length_grouped"],
        seed: int,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.drop_last = True
        self.batching = batching
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))[: len(self) * self.batch_size]
        if self.batching == "length_grouped" and len(order):
            pool = _POOL_BATCHES * self.batch_size
            pools = (order[start : start + pool] for start in range(0, len(order), pool))
            order = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools])
        batches = order.reshape(len(self), self.batch_size)
        if self.batching == "length_grouped":
            batches = batches[generator.permutation(len(batches))]
        yield from batches.tolist()


class GroupBatchSampler(BatchSampler):
    """Batches of pairs that share a label: first the anchors, then their positives.

    For several processes a batch is laid out in as many parts, each of them so. Each epoch the rows
    of every label are paired anew at random; a row without a partner waits for another epoch. A
    function of (seed, epoch) only.

    Args:
        labels: Label of each row, shape ``(rows,)``.
        batch_size: Rows in a batch, an even number in each part.
        seed: Non-negative.
        parts: Into how many equal parts a batch will be cut; they do not change its pairs.

    Raises:
        ValueError: A part of the batch is no whole or an odd number of rows.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int, parts: int = 1) -> None:
        if batch_size % (2 * parts):
            raise ValueError(f"batch_size must be a multiple of {2 * parts}, got {batch_size}")
        self.parts = parts
        self.order = np.argsort(labels, kind="stable")
        _, self.counts = np.unique(labels, return_counts=True)
        self.batch_size = batch_size
        self.drop_last = True
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int((self.counts // 2).sum()) // (self.batch_size // 2)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        group = np.repeat(np.arange(len(self.counts)), self.counts)
        # Random within each group: sort by group, then by a random number.
        shuffled = self.order[np.lexsort((generator.random(len(group)), group))]
        place = np.arange(len(group)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        first = np.flatnonzero((place % 2 == 0) & (place + 1 < np.repeat(self.counts, self.counts)))
        first = first[generator.permutation(len(first))]
        half = self.batch_size // 2
        for start in range(0, len(self) * half, half):
            chosen = first[start : start + half].reshape(self.parts, -1)
            pairs = np.concatenate([shuffled[chosen], shuffled[chosen + 1]], axis=1)
            yield pairs.ravel().tolist()
