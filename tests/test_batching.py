from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcse.data.batching import GroupBatchSampler, SetSampler, ViewBatchSampler

LENGTHS = np.random.default_rng(0).integers(4, 33, size=1000)


@pytest.mark.parametrize("batching", ["random", "length_grouped"])
@given(rows=st.integers(2, 300), batch_size=st.integers(2, 40), seed=st.integers(0, 99))
def test_full_batches_of_distinct_rows(batching, rows, batch_size, seed):
    sampler = ViewBatchSampler(LENGTHS[:rows], batch_size, batching, seed)
    batches = list(sampler.batches(0))
    assert len(batches) == len(sampler) == rows // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    taken = [row for batch in batches for row in batch]
    assert len(set(taken)) == len(taken)
    assert all(0 <= row < rows for row in taken)


@pytest.mark.parametrize("batching", ["random", "length_grouped"])
def test_order_is_a_function_of_seed_and_epoch(batching):
    def order(seed, epoch):
        sampler = ViewBatchSampler(LENGTHS, 64, batching, seed)
        return list(sampler.batches(epoch))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def epochs_of(lengths, batch_size, batching, epochs, seed=0):
    """The batches of some epochs, each ``(batches, batch_size)``."""
    sampler = ViewBatchSampler(lengths, batch_size, batching, seed)
    for epoch in epochs:
        yield np.array(list(sampler.batches(epoch)))


def overlap(first, second, rows):
    """Share of the (anchor, in-batch negative) pairs of one epoch that meet again in another."""
    batch = np.full(rows, -1)
    batch[second] = np.arange(len(second))[:, None]
    again = 0
    for old in first:
        counts = np.unique(batch[old][batch[old] >= 0], return_counts=True)[1]
        again += (counts * (counts - 1)).sum()
    return again / (first.size * (first.shape[1] - 1))


def mean_overlap(lengths, batch_size, batching, epochs=6):
    found = list(epochs_of(lengths, batch_size, batching, range(epochs)))
    return np.mean([overlap(*two, len(lengths)) for two in pairwise(found)])


def corpus(kind, rows):
    random = np.random.default_rng(rows)
    if kind == "sentences":  # like Wikipedia's, cut at 64 tokens
        return np.clip(random.lognormal(np.log(22), 0.5, rows).round(), 4, 64).astype(int)
    if kind == "distinct":
        return random.permutation(rows) + 4
    return random.integers(0, {"equal": 1, "two lengths": 2}[kind], rows) * 10 + 8


@pytest.mark.parametrize("kind", ["sentences", "distinct", "equal", "two lengths"])
@pytest.mark.parametrize(
    ("rows", "batch_size"),
    [(640, 64), (703, 64), (1000, 32), (20, 2), (33, 3), (100, 5), (2000, 16), (5130, 512),
     (9001, 128), (12_345, 48)],
)  # fmt: skip
def test_grouped_batches_repeat_at_most_twice_the_negatives_of_random_ones(kind, rows, batch_size):
    # That random batches repeat two rows' meeting: both are drawn again, into the same batch.
    drawn = rows // batch_size * batch_size
    chance = drawn / rows * (batch_size - 1) / (rows - 1)
    assert mean_overlap(corpus(kind, rows), batch_size, "length_grouped") <= 2 * chance


def test_chance_is_what_random_batches_repeat():
    found = mean_overlap(corpus("distinct", 703), 64, "random", epochs=40)
    assert found == pytest.approx(640 / 703 * 63 / 702, rel=0.02)


def test_in_a_window_no_two_rows_meet_in_successive_epochs():
    lengths = corpus("sentences", 64 * 130)
    assert mean_overlap(lengths, 64, "length_grouped") == 0
    # Nor does a later epoch bring an earlier one back.
    found = list(epochs_of(corpus("distinct", 640), 64, "length_grouped", range(30)))
    assert max(overlap(found[0], later, 640) for later in found[1:]) < 0.3


def padding(lengths, batches):
    widths = lengths[batches]
    return 1 - widths.sum() / (widths.max(axis=1) * widths.shape[1]).sum()


@pytest.mark.parametrize(
    ("kind", "rows", "batch_size", "first", "later"),
    [
        ("sentences", 3000, 64, 0.03, 0.45),
        ("sentences", 20_000, 64, 0.01, 0.3),
        ("sentences", 200_000, 64, 0.001, 0.03),
        ("distinct", 100_000, 32, 0.01, 0.03),
        ("two lengths", 1000, 64, 0.04, 0.3),
        ("equal", 1000, 64, 0, 0),
    ],
)
def test_padding_is_next_to_none_at_first_and_then_that_of_the_window(
    kind, rows, batch_size, first, later
):
    lengths = corpus(kind, rows)
    [zero, one] = epochs_of(lengths, batch_size, "length_grouped", [0, 1])
    assert padding(lengths, zero) <= first
    assert padding(lengths, one) <= later


def test_no_row_is_left_out_for_long():
    lengths = corpus("sentences", 703)
    seen = np.zeros(703, dtype=int)
    for batches in epochs_of(lengths, 64, "length_grouped", range(10)):
        seen[batches] += 1
    assert seen.min() >= 4


def test_length_groups_come_in_random_order():
    sampler = ViewBatchSampler(LENGTHS, 50, "length_grouped", 0)
    means = [LENGTHS[batch].mean() for batch in sampler.batches(0)]
    assert means != sorted(means)


GROUPS = np.random.default_rng(1).integers(0, 40, size=300)


@given(rows=st.integers(8, 300), batch_size=st.sampled_from([2, 4, 8]), seed=st.integers(0, 99))
def test_group_batches_pair_rows_of_one_label(rows, batch_size, seed):
    labels = GROUPS[:rows]
    sampler = GroupBatchSampler(labels, batch_size, seed)
    batches = list(sampler.batches(0))
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
        batches = sampler.batches(epoch)
        return [tuple(sorted(p)) for b in batches for p in zip(b[:4], b[4:], strict=True)]

    assert pairs(1, 0) == pairs(1, 0)
    assert len(set(pairs(1, 0)) & set(pairs(1, 1))) < 60
    with pytest.raises(ValueError, match="batch_size must be a multiple of 2, got 3"):
        GroupBatchSampler(GROUPS, 3, 0)


def test_parts_of_a_grouped_batch_hold_its_pairs():
    labels = np.arange(60) // 3
    whole, cut = (GroupBatchSampler(labels, 12, 5, parts) for parts in (1, 3))
    for batch, parts in zip(whole.batches(0), cut.batches(0), strict=True):
        pairs = set(zip(batch[:6], batch[6:], strict=True))
        each = [parts[start : start + 4] for start in (0, 4, 8)]
        assert {pair for a, b, c, d in each for pair in ((a, c), (b, d))} == pairs
        assert all(labels[a] == labels[b] for a, b in pairs)
    with pytest.raises(ValueError, match="batch_size must be a multiple of 6, got 14"):
        GroupBatchSampler(labels, 14, 5, 3)


def of_sets(weights=None, seed=0):
    """Of three sets with 5, 3 and 1 batches an epoch."""
    samplers = [ViewBatchSampler(LENGTHS[:rows], 10, "random", seed) for rows in (50, 39, 10)]
    return SetSampler(samplers, weights, seed)


def test_every_set_is_drawn_once_an_epoch():
    sampler = of_sets()
    assert len(sampler) == 9
    stream = sampler.batches_from(0)
    for epoch in range(3):
        found = list(islice(stream, 9))
        for number, own in enumerate(sampler.samplers):
            drawn = [(its, rows) for chosen, its, rows in found if chosen == number]
            assert drawn == [(epoch, rows) for rows in own.batches(epoch)]


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [1, 5, 0.01]])
def test_the_batches_of_several_sets_can_begin_at_any_step(weights):
    sampler = of_sets(weights, seed=3)
    whole = list(islice(sampler.batches_from(0), 40))
    for step in range(30):
        assert list(islice(of_sets(weights, seed=3).batches_from(step), 10)) == whole[step:][:10]
    assert whole != list(islice(of_sets(weights, seed=4).batches_from(0), 40))
    # A set's own epochs follow one another without a gap.
    for number, own in enumerate(sampler.samplers):
        drawn = [(epoch, rows) for chosen, epoch, rows in whole if chosen == number]
        every = [(epoch, rows) for epoch in range(40) for rows in own.batches(epoch)]
        assert drawn == every[: len(drawn)] and drawn


def test_weights_are_shares_of_the_batches():
    assert of_sets([1, 1, 1]).counts.tolist() == [3, 3, 3]
    assert of_sets([2, 1, 0.001]).counts.tolist() == [6, 3, 1]  # at least one an epoch


def test_one_set_keeps_its_order():
    one = ViewBatchSampler(LENGTHS, 64, "length_grouped", 1)
    found = [rows for _, _, rows in islice(SetSampler([one], None, 1).batches_from(0), 30)]
    assert found == [*one.batches(0), *one.batches(1)]
