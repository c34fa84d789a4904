import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simcse.batching import ViewBatchSampler, ViewCollator

LENGTHS = np.random.default_rng(0).integers(4, 33, size=1000)


@pytest.mark.parametrize("batching", ["random", "length_grouped"])
@given(rows=st.integers(2, 300), batch_size=st.integers(2, 40), seed=st.integers(0, 99))
def test_full_batches_of_distinct_rows(batching, rows, batch_size, seed):
    sampler = ViewBatchSampler(LENGTHS[:rows], batch_size, batching, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler) == rows // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    taken = [row for batch in batches for row in batch]
    assert len(set(taken)) == len(taken)
    assert all(0 <= row < rows for row in taken)


@pytest.mark.parametrize("batching", ["random", "length_grouped"])
def test_order_is_a_function_of_seed_and_epoch(batching):
    def order(seed, epoch):
        sampler = ViewBatchSampler(LENGTHS, 64, batching, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def padding(batching):
    batches = list(ViewBatchSampler(LENGTHS, 50, batching, 0))
    computed = sum(len(batch) * max(LENGTHS[batch]) for batch in batches)
    return 1 - sum(sum(LENGTHS[batch]) for batch in batches) / computed


def test_length_grouping_takes_the_padding_away():
    assert padding("length_grouped") < 0.05 < 0.3 < padding("random")


def test_length_groups_come_in_random_order():
    means = [LENGTHS[batch].mean() for batch in ViewBatchSampler(LENGTHS, 50, "length_grouped", 0)]
    assert means != sorted(means)


def test_views_are_laid_out_one_after_the_other():
    batch = ViewCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}])
    ids, mask = batch["view_input_ids"], batch["view_attention_mask"]
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]] * 2
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]] * 2
    assert ids.dtype == mask.dtype == torch.int64
