"""Which rows form a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import BatchSampler


class ViewBatchSampler(BatchSampler):
    """Batches of row numbers, a new order each epoch, a function of (seed, epoch) only.

    The last incomplete batch is dropped: it would have fewer in-batch negatives than the others.

    ``length_grouped`` sorts the rows by length and, in the first epoch, cuts them into batches.
    Two rows that shared a batch should not share one again soon, yet cutting a sorted list again
    gives the same batches. So neighbouring batches form a window, a grid of one batch a row, whose
    columns move on by a permutation of 0, 1, 2, ... rows each epoch: no two columns by the same
    number. In a window of ``batch_size`` batches or more, no two rows are then together in two
    successive epochs. A smaller corpus is two windows, each half of it, and repeats at most twice
    as many in-batch negatives as random batches would. The price is padding: next to none in the
    first epoch, that of the window in later ones (docs/performance.md).

    Args:
        lengths: Number of tokens of each row, shape ``(rows,)``.
        batch_size: Rows in a batch.
        batching: ``random`` draws the rows of a batch at random, ``length_grouped`` gives a batch
            rows of similar length, so that little is padded and negatives are about as long as
            the positive.
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
        """Called before each epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.batching == "length_grouped" and len(self):
            batches = self._length_grouped(generator)
            batches = batches[generator.permutation(len(batches))]
        else:
            order = generator.permutation(len(self.lengths))[: len(self) * self.batch_size]
            batches = order.reshape(len(self), self.batch_size)
        yield from batches.tolist()

    def _length_grouped(self, generator: np.random.Generator) -> np.ndarray:
        """The batches of this epoch, ``(batches, batch_size)``, those of the shortest rows first.

        Args:
            generator: Of this epoch, for the rows that are left out.
        """
        layout = np.random.default_rng([self.seed, 0, 1])  # that of no epoch, the same in all
        order = layout.permutation(len(self.lengths))  # so that ties are in random order
        order = order[np.argsort(self.lengths[order], kind="stable")]
        count, size = len(self), self.batch_size
        spare = layout.choice(len(order), len(order) - count * size, replace=False)
        rows = np.delete(order, spare)
        # Each spare row takes the place of a row of similar length, of another one each epoch.
        reach = min(2 * size, len(rows))
        nearest = np.clip(spare - size, 0, len(rows) - reach)
        rows[nearest + generator.integers(0, reach, len(spare))] = order[spare]
        grid = layout.permuted(rows.reshape(count, size), axis=1)
        moved = np.zeros(size, dtype=np.int64)
        for _ in range(self.epoch):
            moved += layout.permutation(size)
        windows = np.array_split(grid, min(max(2, count // size), count))
        return np.concatenate(
            [
                window[(np.arange(len(window))[:, None] + moved) % len(window), np.arange(size)]
                for window in windows
            ]
        )


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
        """Called before each epoch, counted from 0."""
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
