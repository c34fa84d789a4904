"""Which rows form a batch, and how a batch of rows becomes the views the encoder sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
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
        """Called by the Trainer before each epoch."""
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


@dataclass(frozen=True)
class ViewCollator:
    """Pads the rows of a batch and lays out the views, all rows of one view after the other.

    The result is the features of one forward pass, ``input_ids`` and ``attention_mask``, int64 of
    shape ``(num_views * batch, length)``, each name prefixed with ``view_``: the Trainer takes what
    shares a prefix as the features of one column.
    """

    pad_token_id: int
    num_views: int = 2
    valid_label_columns: Sequence[str] = ()  # the Trainer asks its collator; there are no labels

    def features(self, rows: list[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
        """Token ids of a batch as the features of a forward pass, outside the Trainer."""
        batch = self([{"input_ids": row} for row in rows])
        return {key.removeprefix("view_"): value.to(device) for key, value in batch.items()}

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Collate rows with the key ``input_ids``."""
        longest = max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            attention_mask[index, : len(row["input_ids"])] = 1
        return {
            "view_input_ids": input_ids.repeat(self.num_views, 1),
            "view_attention_mask": attention_mask.repeat(self.num_views, 1),
        }
