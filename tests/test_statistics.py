"""Statistics against scipy, published planning figures, and simulations with a known answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr, t, ttest_1samp

from simcse.evaluation.statistics import (
    mean_statistic,
    paired_bootstrap,
    pooled_std,
    power,
    seeds_needed,
    smallest_detectable,
    spearman_statistic,
    summarize,
    welch,
)


def test_summary_of_values():
    values = [0.70, 0.72, 0.71, 0.75]
    summary = summarize(values)
    assert (summary.seeds, summary.minimum, summary.maximum) == (4, 0.70, 0.75)
    assert summary.std == pytest.approx(np.std(values, ddof=1))
    interval = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (summary.low, summary.high) == pytest.approx((interval.low, interval.high))
    alone = summarize([0.5])
    assert (alone.mean, alone.std, alone.low, alone.high) == (0.5, None, None, None)
    with pytest.raises(ValueError, match="at least one value"):
        summarize([])


def test_seeds_for_a_gain_as_computed_from_fifty_published_seeds():
    # 50 seeds of hppRC/simple-simcse: standard deviation 0.84. 80% power, two-sided 5%.
    assert [seeds_needed(gain, 0.84) for gain in (0.5, 1.0, 2.0)] == [46, 13, 4]
    assert seeds_needed(-0.5, 0.84) == 46
    assert seeds_needed(0, 0.84) is None
    assert seeds_needed(100, 0.84) == 2
    assert seeds_needed(1e-9, 0.84) == 1_000_000
    assert seeds_needed(0.5, 0) == 2


def test_power_of_the_textbook():
    # Cohen 1988, table 2.3: d = 0.5 with 64 a side has power 0.80; with 20 a side 0.33.
    assert power(0.5, 64, 64) == pytest.approx(0.80, abs=0.005)
    assert power(0.5, 20, 20) == pytest.approx(0.33, abs=0.01)
    assert power(0, 8, 8) == pytest.approx(0.05)


@given(st.integers(2, 30), st.integers(2, 30), st.floats(0.01, 5))
@settings(max_examples=25, deadline=None)
def test_smallest_detectable_difference_has_the_stated_power(a, b, std):
    assert power(smallest_detectable(std, a, b) / std, a, b) == pytest.approx(0.8, abs=1e-6)


def test_power_is_what_welch_finds_in_simulated_seeds():
    random = np.random.default_rng(0)
    gain = smallest_detectable(1.0, 5, 5)
    found = [welch(random.normal(0, 1, 5), random.normal(gain, 1, 5)).p < 0.05 for _ in range(1500)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_welch_is_b_minus_a():
    a, b = [1.0, 2.0, 3.0], [4.0, 6.0, 8.0, 6.0]
    forward, back = welch(a, b), welch(b, a)
    assert forward.difference == pytest.approx(4)
    assert (forward.low, forward.high) == pytest.approx((-back.high, -back.low))
    # By hand: variances of the means 1/3 and 8/12, Welch-Satterthwaite degrees of freedom.
    error = math.sqrt(1 / 3 + 2 / 3)
    freedom = 1 / ((1 / 3) ** 2 / 2 + (2 / 3) ** 2 / 3)
    assert forward.p == pytest.approx(2 * t.sf(4 / error, freedom))
    assert forward.high == pytest.approx(4 + error * t.ppf(0.975, freedom))
    alike = welch([1.0, 1.0], [2.0, 2.0])  # no spread: rather repeats than evidence
    assert alike.difference == 1 and math.isnan(alike.p) and math.isnan(alike.low)
    with pytest.raises(ValueError, match="at least two on one side"):
        welch([1.0], [1.0])
    with pytest.raises(ValueError, match="one on the other"):
        welch([], [1.0, 2.0])


def test_one_model_against_seeds_is_students_test_of_the_seeds():
    found, back = welch([1.0], [4.0, 6.0, 8.0]), welch([4.0, 6.0, 8.0], [1.0])
    assert found.difference == 5 == -back.difference
    assert (found.low, found.high) == pytest.approx((-back.high, -back.low))
    seeds = summarize([4.0, 6.0, 8.0])  # the model's score only moves its interval
    assert (found.low, found.high) == pytest.approx((seeds.low - 1, seeds.high - 1))
    assert found.p == back.p == pytest.approx(2 * t.sf(5 / (2 / math.sqrt(3)), 2))
    assert math.isnan(welch([1.0], [2.0, 2.0]).p)


def test_pooled_std_closed_form():
    assert pooled_std([1.0, 3.0], [0.0, 0.0, 3.0]) == pytest.approx(math.sqrt((2 + 6) / 3))


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_spearman_of_a_resample_equals_scipy_on_the_repeated_pairs(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(5, 40))
    similarity = random.integers(0, 12, n).astype(float)  # with ties
    grade = random.integers(0, 6, n).astype(float)
    counts = np.bincount(random.integers(n, size=n), minlength=n)
    repeated = np.repeat(similarity, counts), np.repeat(grade, counts)
    if min(map(np.ptp, repeated)) == 0:
        return  # undefined
    expected = spearmanr(*repeated).statistic
    assert spearman_statistic(similarity, grade)(counts) == pytest.approx(expected, abs=1e-12)


def test_recall_of_a_resample():
    statistic = mean_statistic(np.array([1, 11, 10]) <= 10)
    assert statistic(np.array([1, 1, 1])) == pytest.approx(2 / 3)
    assert statistic(np.array([0, 3, 1])) == pytest.approx(1 / 4)


@pytest.mark.slow
def test_bootstrap_interval_covers_a_known_difference():
    """Two models on Gaussian pairs, whose ρ is known: 6/π arcsin(r/2)."""
    strong, weak, pairs = 0.8, 0.6, 150
    truth = 6 / math.pi * (math.asin(strong / 2) - math.asin(weak / 2))
    random = np.random.default_rng(1)
    covered = 0
    for number in range(200):
        meaning = random.normal(size=pairs)
        shared = random.normal(size=pairs)  # both models err on the same pairs
        models = [
            r * meaning + math.sqrt(1 - r * r) * (shared + random.normal(size=pairs)) / math.sqrt(2)
            for r in (weak, strong)
        ]
        a, b = (spearman_statistic(similarity, meaning) for similarity in models)
        found = paired_bootstrap(a, b, pairs, resamples=200, seed=number)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_bootstrap_p_of_equal_and_of_different_models():
    random = np.random.default_rng(2)
    grade = random.normal(size=300)
    good, bad = grade + 0.1 * random.normal(size=300), random.normal(size=300)
    same = paired_bootstrap(*[spearman_statistic(good, grade)] * 2, 300, resamples=200)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    better = paired_bootstrap(
        spearman_statistic(bad, grade), spearman_statistic(good, grade), 300, resamples=200
    )
    few = paired_bootstrap(*[spearman_statistic(grade[:1], grade[:1])] * 2, 1, resamples=20)
    assert math.isnan(few.p)
    assert better.low > 0 and better.p == pytest.approx(2 / 201)
