"""Which rows form a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, Protocol

import numpy as np


class Sampler(Protocol):
    """Batches of row numbers, a new order each epoch, a function of (seed, epoch) only."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Those of an epoch, counted from 0."""


class SetSampler:
    """Batches of several data sets: each batch is from one of them, the sets in random order.

    A set that is drawn less often than it has batches goes on in the next epoch where it stopped;
    one that is drawn more often begins an epoch of its own. A function of (seed, epoch) only.

    Args:
        samplers: Of the sets.
        weights: How often each is drawn relative to the others; ``None`` goes by its batches.
        seed: Non-negative.
    """

    def __init__(
        self, samplers: Sequence[Sampler], weights: Sequence[float] | None, seed: int
    ) -> None:
        self.samplers = samplers
        sizes = np.array([len(sampler) for sampler in samplers])
        shares = sizes if weights is None else np.array(weights)
        self.counts = np.maximum(np.rint(sizes.sum() * shares / shares.sum()), 1).astype(int)
        """Batches of each set in an epoch."""
        self.seed = seed

    def __len__(self) -> int:
        return int(self.counts.sum())

    def batches_from(self, step: int) -> Iterator[tuple[int, int, list[int]]]:
        """Set, its own epoch and row numbers of every batch from a step on, without end."""
        epoch, done = divmod(step, len(self))
        before = np.bincount(self._order(epoch)[:done], minlength=len(self.counts))
        streams = [
            _batches_from(sampler, epoch * int(count) + int(drawn))
            for sampler, count, drawn in zip(self.samplers, self.counts, before, strict=True)
        ]
        while True:
            for number in self._order(epoch)[done:].tolist():
                yield number, *next(streams[number])
            epoch, done = epoch + 1, 0

    def _order(self, epoch: int) -> np.ndarray:
        sets = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.random.default_rng([self.seed, epoch, 2]).permutation(sets)


def _batches_from(sampler: Sampler, step: int) -> Iterator[tuple[int, list[int]]]:
    """Epoch and row numbers of every batch of a set from a step on, without end."""
    epoch, done = divmod(step, len(sampler))
    while True:
        yield from ((epoch, rows) for rows in islice(sampler.batches(epoch), done, None))
        epoch, done = epoch + 1, 0


class ViewBatchSampler:
    """A :class:`Sampler` of rows that bring their positives, or are their own.

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
        self.batching = batching
        self.seed = seed

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Those of an epoch, counted from 0."""
        generator = np.random.default_rng([self.seed, epoch])
        if self.batching == "length_grouped" and len(self):
            batches = self._length_grouped(epoch, generator)
            batches = batches[generator.permutation(len(batches))]
        else:
            order = generator.permutation(len(self.lengths))[: len(self) * self.batch_size]
            batches = order.reshape(len(self), self.batch_size)
        yield from batches.tolist()

    def _length_grouped(self, epoch: int, generator: np.random.Generator) -> np.ndarray:
        """The batches of an epoch, ``(batches, batch_size)``, those of the shortest rows first.

        Args:
            epoch: Counted from 0.
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
        for _ in range(epoch):
            moved += layout.permutation(size)
        windows = np.array_split(grid, min(max(2, count // size), count))
        return np.concatenate(
            [
                window[(np.arange(len(window))[:, None] + moved) % len(window), np.arange(size)]
                for window in windows
            ]
        )


class GroupBatchSampler:
    """A :class:`Sampler` of pairs that share a label: first the anchors, then their positives.

    For several processes a batch is laid out in as many parts, each of them so. Each epoch the rows
    of every label are paired anew at random; a row without a partner waits for another epoch.

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
        self.seed = seed

    def __len__(self) -> int:
        return int((self.counts // 2).sum()) // (self.batch_size // 2)

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Those of an epoch, counted from 0."""
        generator = np.random.default_rng([self.seed, epoch])
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
