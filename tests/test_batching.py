import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcse.batching import GroupBatchSampler, ViewBatchSampler

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


GROUPS = np.random.default_rng(1).integers(0, 40, size=300)


@given(rows=st.integers(8, 300), batch_size=st.sampled_from([2, 4, 8]), seed=st.integers(0, 99))
def test_group_batches_pair_rows_of_one_label(rows, batch_size, seed):
    labels = GROUPS[:rows]
    sampler = GroupBatchSampler(labels, batch_size, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    half = batch_size // 2
    for batch in batches:
        assert len(batch) == batch_size
        assert (labels[batch[:half]] == labels[batch[half:]]).all()
    taken = [row for batch in batches for row in batch]
    assert len(set(taken)) == len(taken)
    pairs = sum(count // 2 for count in np.bincount(labels))
    assert len(taken) // 2 > pairs - half  # all pairs but the last incomplete batch


def test_groups_are_paired_anew_each_epoch():
    def pairs(seed, epoch):
        sampler = GroupBatchSampler(GROUPS, 8, seed)
        sampler.set_epoch(epoch)
        return [tuple(sorted(p)) for b in sampler for p in zip(b[:4], b[4:], strict=True)]

    assert pairs(1, 0) == pairs(1, 0)
    assert len(set(pairs(1, 0)) & set(pairs(1, 1))) < 60
    with pytest.raises(ValueError, match="batch_size must be a multiple of 2, got 3"):
        GroupBatchSampler(GROUPS, 3, 0)


def test_parts_of_a_grouped_batch_hold_its_pairs():
    labels = np.arange(60) // 3
    whole, cut = (GroupBatchSampler(labels, 12, 5, parts) for parts in (1, 3))
    for batch, parts in zip(whole, cut, strict=True):
        pairs = set(zip(batch[:6], batch[6:], strict=True))
        each = [parts[start : start + 4] for start in (0, 4, 8)]
        assert {pair for a, b, c, d in each for pair in ((a, c), (b, d))} == pairs
        assert all(labels[a] == labels[b] for a, b in pairs)
    with pytest.raises(ValueError, match="batch_size must be a multiple of 6, got 14"):
        GroupBatchSampler(labels, 14, 5, 3)
