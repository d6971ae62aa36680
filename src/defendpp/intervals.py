"""Accuracies, distances and their differences, with 95 % intervals: of one network, of a pair, over training seeds.

From arrays that say by image whether a network was right, or how far an attack had to go. Nothing here knows records.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

Z = NormalDist().inv_cdf(0.975)
"""The 95 % point of the normal distribution."""


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `n` images, as a share in [0, 1] with its 95 % Wilson interval."""

    correct: int
    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def accuracy(correct: Bool[np.ndarray, " image"]) -> Accuracy:
    """Share of true values with its 95 % interval, `wilson`."""
    n = len(correct)
    if n == 0:
        raise ValueError("accuracy needs at least one image, but got none")
    share = int(correct.sum()) / n
    return Accuracy(int(correct.sum()), n, share, *wilson(share, n))


def chance(labels: Int[np.ndarray, " image"], classes: int = 1) -> float:
    """What a guess among so many classes gets of images with these labels, or the commonest label alone if it is more.

    1 where all labels are the same: then no accuracy shows anything.
    """
    _, counts = np.unique(labels, return_counts=True)
    return max(float(counts.max()) / len(labels), 1 / max(classes, len(counts)))


@dataclass(frozen=True)
class MeanAccuracy:
    """Mean accuracy of networks that differ in their seed, on the same `n` images, with a 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    seeds: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}], {self.seeds} seeds"


def mean_accuracy(by_seed: Sequence[Bool[np.ndarray, " image"]]) -> MeanAccuracy:
    """The mean over at least two seeds, and an interval for the mean of all seeds.

    The interval is Student's over the seeds, or Wilson's over the images where that is wider: three seeds that agree by
    chance do not make n images tell more than they can.
    """
    n = _common_size([len(values) for values in by_seed], "networks")
    mean, half = _student([accuracy(values).value for values in by_seed])
    low, high = wilson(mean, n)
    return MeanAccuracy(mean, max(0.0, min(low, mean - half)), min(1.0, max(high, mean + half)), n, len(by_seed))


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `n` images (Wilson 1927): the p within z standard errors *of p* of the share.

    Unlike share +- z sqrt(share (1 - share) / n) it stays in [0, 1] and is not empty at 0 or 1.
    """
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At 0 and 1 the bound is the share itself, and rounding must not push it past.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


@dataclass(frozen=True)
class Difference:
    """Accuracy of a less that of b on the same `n` images, with a 95 % interval and the p-value of no difference."""

    value: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}], {p}"


def paired_difference(a: Bool[np.ndarray, " image_a"], b: Bool[np.ndarray, " image_b"]) -> Difference:
    """Compare two networks image by image: a[i] and b[i] say whether each got image i right (see `records.join`).

    The interval is method 10 of Newcombe (1998), "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17: two Wilson intervals, combined with the correlation
    phi of the pairs (continuity-corrected where positive). p is McNemar's, exact: the discordant pairs are a fair coin.
    """
    from scipy.stats import binomtest

    if len(a) != len(b):
        raise ValueError(f"a paired comparison needs the same images, but got {len(a)} and {len(b)} of them")
    first, second = accuracy(a), accuracy(b)
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    n = len(a)
    margins = first.correct * (n - first.correct) * second.correct * (n - second.correct)
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / sqrt(margins) if margins else 0.0
    below_a, above_a = first.value - first.low, first.high - first.value
    below_b, above_b = second.value - second.low, second.high - second.value
    value = (only_a - only_b) / n
    down = sqrt(max(0.0, below_a**2 - 2 * phi * below_a * above_b + above_b**2))
    up = sqrt(max(0.0, above_a**2 - 2 * phi * above_a * below_b + below_b**2))
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Difference(value, value - down, value + up, p, n)


@dataclass(frozen=True)
class MeanDifference:
    """Mean difference of accuracy over pairs of networks that differ in their seed, with a 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        each = ", ".join(f"{100 * value:+.1f}" for value in self.by_seed)
        interval = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{100 * self.value:+.1f} points {interval}, {len(self.by_seed)} seeds ({each})"


def mean_difference(by_seed: Sequence[Difference]) -> MeanDifference:
    """The mean over at least two seeds; Student's interval over the seeds, or the pairs' own where that is wider.

    The pairs' own is the mean of their intervals, as if all had seen the same images, which they have. It ends at
    -1 and 1: two seeds can be so far apart that Student's does not.
    """
    n = _common_size([each.n for each in by_seed], "pairs")
    values = tuple(each.value for each in by_seed)
    value, low, high = _over_pairs(values, by_seed)
    return MeanDifference(value, max(-1.0, low), min(1.0, high), n, values)


def _common_size(sizes: Sequence[int], of: str) -> int:
    """How many images each of at least two seeds saw."""
    if len(sizes) < 2 or len(set(sizes)) > 1:
        raise ValueError(f"a mean over seeds needs two or more {of} on the same images, but got {sizes}")
    return sizes[0]


def _over_pairs(
    values: Sequence[float], by_seed: "Sequence[Difference] | Sequence[Shift]"
) -> tuple[float, float, float]:
    """The mean of the pairs' values; Student's interval, or the mean of their own intervals where that is wider."""
    value, half = _student(values)
    low, high = (float(np.mean([getattr(each, end) for each in by_seed])) for end in ("low", "high"))
    return value, min(low, value - half), max(high, value + half)


def _student(values: Sequence[float]) -> tuple[float, float]:
    """The mean of a sample and half its 95 % interval by Student's t."""
    from scipy.stats import t

    spread = float(np.std(values, ddof=1)) / sqrt(len(values))
    return float(np.mean(values)), float(t.ppf(0.975, len(values) - 1)) * spread


@dataclass(frozen=True)
class Distance:
    """Median distance an attack needed, over `n` images, with a 95 % interval; infinite if it failed on over half."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def median(distances: Float[np.ndarray, " n"]) -> Distance:
    """Their median, infinite ones included, and an interval between two order statistics, which assumes nothing about
    how distances are distributed (David and Nagaraja 2003, section 7.1)."""
    ordered = np.sort(distances)
    low, high = _ranked(ordered)
    return Distance(float(np.median(ordered)), max(0.0, low), high, len(ordered))


@dataclass(frozen=True)
class Shift:
    """Median of what an attack needed more on one network than on another, image by image, with a 95 % interval."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:+.2f} [{self.low:+.2f}, {self.high:+.2f}], n = {self.n:,}"


def median_shift(a: Float[np.ndarray, " image_a"], b: Float[np.ndarray, " image_b"]) -> Shift:
    """Of distances on the same images, infinite where an attack failed: the median of a[i] - b[i], 0 if both failed.

    The interval is that of `median`.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a paired comparison needs the same images, at least one, but got {len(a)} and {len(b)}")
    both = np.isinf(a) & np.isinf(b)
    shifts = np.sort(np.where(both, 0.0, np.where(both, 0.0, a) - np.where(both, 0.0, b)))
    low, high = _ranked(shifts)
    below, above = shifts[(len(a) - 1) // 2], shifts[len(a) // 2]
    median = 0.0 if np.isinf(below) and below == -above else (below + above) / 2
    return Shift(float(median), low, high, len(a))


@dataclass(frozen=True)
class MeanShift:
    """Mean of the median shifts of pairs of networks that differ in their seed, with a 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Images of the pair that has the fewest: each has those that its networks both get right."""
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        each = ", ".join(f"{value:+.2f}" for value in self.by_seed)
        interval = f"[{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.value:+.2f} {interval}, {len(self.by_seed)} seeds ({each}), n = {self.n:,} or more"


def mean_shift(by_seed: Sequence[Shift]) -> MeanShift:
    """The mean over at least two seeds; Student's interval over the seeds, or the pairs' own where that is wider.

    Where an attack failed on most images of one network and not of the other, nothing bounds the mean.
    """
    if len(by_seed) < 2:
        raise ValueError(f"a mean over seeds needs two or more pairs, but got {len(by_seed)}")
    medians, n = tuple(each.median for each in by_seed), min(each.n for each in by_seed)
    ends = [end for each in by_seed for end in (each.low, each.high)]
    if np.isinf([*medians, *ends]).any():
        return MeanShift(sum(medians) / len(medians), -inf, inf, n, medians)
    return MeanShift(*_over_pairs(medians, by_seed), n, medians)


def _ranked(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Between these two of the sorted values lies the median, with 95 % confidence."""
    from scipy.stats import binom

    n = len(values)
    rank = int(binom.ppf(0.025, n, 0.5))  # x_(rank) and x_(n + 1 - rank), counted from 1; rank 0 is no bound at all
    return (float(values[rank - 1]), float(values[n - rank])) if rank else (-inf, inf)
