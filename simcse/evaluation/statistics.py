"""What several seeds, or the pairs of one test set, can and cannot show.

Pure functions on numbers. Scores are in their own unit (ρ in [-1, 1]); nothing is scaled here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, t, ttest_1samp, ttest_ind

LEVEL = 0.05
"""Two-sided; intervals cover 1 - LEVEL."""
POWER = 0.8
"""Chance of detecting a difference that is there, for the two planning figures."""


@dataclass(frozen=True)
class Summary:
    """Scores of one setting over seeds."""

    seeds: int
    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None for one seed, as are the two below."""
    minimum: float
    maximum: float
    low: float | None
    """95% confidence interval of the mean, by Student's t."""
    high: float | None


@dataclass(frozen=True)
class Difference:
    """B minus A, with its 95% interval and the two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


def summarize(values: Sequence[float]) -> Summary:
    """Mean, spread and interval of at least one value.

    Raises:
        ValueError: No values.
    """
    if not values:
        raise ValueError("summarize needs at least one value")
    mean, minimum, maximum = float(np.mean(values)), float(min(values)), float(max(values))
    if len(values) == 1:
        return Summary(1, mean, None, minimum, maximum, None, None)
    std = float(np.std(values, ddof=1))
    half = float(t.ppf(1 - LEVEL / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Summary(len(values), mean, std, minimum, maximum, mean - half, mean + half)


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Welch's t-test between two sets of seeds; seeds are not paired.

    The same seed under two settings shares first weights and batches, but after a few steps the
    runs have nothing in common, so pairing them would add noise and not take any away. A side with
    one value is a model that no seed changes: its score is taken as exact, which leaves Student's
    test of the other side. Without any spread on either side interval and p are NaN.

    Raises:
        ValueError: Fewer than two values on both sides, or none on one.
    """
    if min(len(a), len(b)) < 1 or max(len(a), len(b)) < 2:
        raise ValueError("a test over seeds needs at least two on one side and one on the other")
    difference = float(np.mean(b) - np.mean(a))
    if np.ptp(a) == 0 and np.ptp(b) == 0:  # no spread is no evidence: rather repeats of one run
        return Difference(difference, math.nan, math.nan, math.nan)
    if min(len(a), len(b)) == 1:
        test = ttest_1samp(np.asarray(b) - a[0] if len(a) == 1 else b[0] - np.asarray(a), 0.0)
    else:
        test = ttest_ind(b, a, equal_var=False)
    low, high = map(float, test.confidence_interval(1 - LEVEL))
    return Difference(difference, low, high, float(test.pvalue))


def power(effect: float, a: float, b: float) -> float:
    """Chance that a two-sided t-test at :data:`LEVEL` sees a difference.

    Cohen 1988, chapter 2, by the noncentral t distribution.

    Args:
        effect: Difference of the means divided by the common standard deviation, not negative.
        a: Seeds on one side, at least 2; fractions interpolate.
        b: Seeds on the other.
    """
    freedom = a + b - 2
    shift = effect / math.sqrt(1 / a + 1 / b)
    critical = t.ppf(1 - LEVEL / 2, freedom)
    # Beyond a shift of 30 the power is 1 in float64, and scipy's series takes long.
    if shift > 30:
        return 1.0
    return float(nct.sf(critical, freedom, shift) + nct.sf(critical, freedom, -shift))


def smallest_detectable(std: float, a: int, b: int) -> float:
    """The difference that ``a`` against ``b`` seeds see with probability :data:`POWER`."""
    return std * float(brentq(lambda effect: power(effect, a, b) - POWER, 1e-6, 1e3))


def seeds_needed(difference: float, std: float) -> int | None:
    """Seeds per side to detect ``difference`` with probability :data:`POWER`; None for zero.

    Returns:
        At least 2; values above a million are not worth telling apart and give a million.
    """
    if difference == 0:
        return None
    most = 1_000_000
    effect = abs(difference) / std if std else math.inf
    if effect == math.inf or power(effect, 2, 2) >= POWER:
        return 2
    if power(effect, most, most) < POWER:
        return most
    return math.ceil(float(brentq(lambda n: power(effect, n, n) - POWER, 2, most)))


def pooled_std(a: Sequence[float], b: Sequence[float]) -> float:
    """Common standard deviation of two sets of seeds."""
    squares = (len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)
    return float(np.sqrt(squares / (len(a) + len(b) - 2)))


Statistic = Callable[[np.ndarray], np.ndarray]
"""From how often each item occurs in a resample, shape ``(items, …)``, to scores, shape ``(…)``."""

_AT_ONCE = 1 << 14  # counts, which the caches hold; in rows of eight, or one resample at a time


def paired_bootstrap(
    a: Statistic, b: Statistic, items: int, resamples: int = 5000, seed: int = 0
) -> Difference:
    """Difference of two models on the same items, resampling the items (Koehn 2004; Efron 1979).

    Percentile interval; p is twice the smaller share of resamples on either side of zero. It tells
    whether these two models differ on other sentence pairs of this kind, not whether another
    training run would.

    Args:
        a: Score of model A on resamples.
        b: Score of model B on the same resamples.
        items: Sentence pairs or queries.
        resamples: Bootstrap samples.
        seed: Of the resampling.
    """
    everything = np.ones(items)
    observed = float(b(everything) - a(everything))
    random = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, step := max(1, _AT_ONCE // items // 8 * 8)):
        drawn = random.integers(items, size=(min(step, resamples - start), items))
        drawn += items * np.arange(len(drawn))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        counts = np.ascontiguousarray(counts.T, dtype=np.float64)
        parts.append(b(counts) - a(counts))
    differences = np.concatenate(parts)
    differences = differences[np.isfinite(differences)]
    if len(differences) < resamples / 2:
        return Difference(observed, math.nan, math.nan, math.nan)
    low, high = map(float, np.quantile(differences, [LEVEL / 2, 1 - LEVEL / 2]))
    tails = [np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)]
    return Difference(
        observed, low, high, min(1.0, float(2 * (min(tails) + 1) / (len(differences) + 1)))
    )


def spearman_statistic(similarity: np.ndarray, grade: np.ndarray) -> Statistic:
    """Spearman's ρ of resampled pairs, without sorting again for each resample.

    A value's mid-rank follows from how many of the resample lie below it, so the order of the
    values is computed once.

    Args:
        similarity: Cosines, shape ``(pairs,)``.
        grade: Grades, shape ``(pairs,)``.
    """
    ordered = []
    for values in (similarity, grade):
        distinct, sizes = np.unique(values, return_inverse=True, return_counts=True)[1:]
        ordered.append((distinct, np.argsort(distinct, kind="stable"), np.cumsum(sizes) - sizes))

    def statistic(counts: np.ndarray) -> np.ndarray:
        centred = []
        for distinct, order, first in ordered:
            mass = np.add.reduceat(counts[order], first)
            middle = (np.cumsum(mass, axis=0) - (mass - 1) / 2)[distinct]
            centred.append(middle - (middle * counts).sum(0) / counts.sum(0))
        left, right = centred
        weighted = counts * left
        norm = np.sqrt((weighted * left).sum(0) * (counts * right * right).sum(0))
        with np.errstate(invalid="ignore"):  # a resample of equal values has no ρ
            return np.asarray((weighted * right).sum(0) / norm)

    return statistic


def mean_statistic(values: np.ndarray) -> Statistic:
    """Mean of resampled items, such as the recall of queries or whether a label was right."""
    return lambda counts: values @ counts / counts.sum(0)


def average_precision_statistic(similarity: np.ndarray, label: np.ndarray) -> Statistic:
    """Average precision of resampled pairs: the precision at each similarity, by recall gained.

    Args:
        similarity: Cosines, shape ``(pairs,)``; equal ones are one threshold.
        label: 1 for pairs that mean the same, else 0.
    """
    order, last = _thresholds(similarity)

    def statistic(counts: np.ndarray) -> np.ndarray:
        hits, seen = _found(counts, label, order, last)
        gained = np.diff(hits, axis=0, prepend=0 * hits[:1])
        with np.errstate(invalid="ignore"):  # without a pair labelled 1 there is none
            return np.asarray((gained * hits / np.maximum(seen, 1)).sum(0) / hits[-1])

    return statistic


def f1_by_threshold(
    similarity: np.ndarray, label: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """F1 of calling every pair the same whose similarity is at or above a threshold.

    Args:
        similarity: As for :func:`average_precision_statistic`.
        label: Likewise.
        counts: How often each pair occurs, shape ``(pairs, …)``.

    Returns:
        The thresholds, falling, each a similarity of the pairs; and the F1 at each, shape
        ``(thresholds, …)``.
    """
    order, last = _thresholds(similarity)
    hits, seen = _found(counts, label, order, last)
    return similarity[order][last], 2 * hits / np.maximum(seen + hits[-1], 1)


def best_f1_statistic(similarity: np.ndarray, label: np.ndarray) -> Statistic:
    """Highest F1 of resampled pairs over all thresholds."""
    return lambda counts: f1_by_threshold(similarity, label, counts)[1].max(0)


def _thresholds(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of falling similarity, and in it the last place of each distinct one."""
    order = np.argsort(-similarity, kind="stable")
    return order, np.flatnonzero(np.diff(similarity[order], append=-math.inf))


def _found(
    counts: np.ndarray, label: np.ndarray, order: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs at or above each threshold: those labelled 1, and all."""
    ordered = counts[order]
    hits = np.cumsum((ordered.T * label[order]).T, axis=0)
    return hits[last], np.cumsum(ordered, axis=0)[last]
