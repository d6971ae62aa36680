"""Intervals and tests against SciPy, published tables, and how often they hold what they should."""

import numpy as np
import pytest
from scipy.stats import binomtest

from defendpp import intervals


def binomial(n: int, k: int) -> int:
    return 1 if k == 0 else binomial(n, k - 1) * (n - k + 1) // k


def expected_share(threshold: float) -> float:
    """P(uniform + normal(0, 0.2) < threshold), by quadrature."""
    from scipy.stats import norm

    grid = (np.arange(10_000) + 0.5) / 10_000
    return float(norm.cdf((threshold - grid) / 0.2).mean())


TRUE_DIFFERENCE = expected_share(0.7) - expected_share(0.6)


def test_wilson_is_scipys() -> None:
    for n in (1, 2, 7, 50, 500):
        for k in {0, 1, n // 3, n - 1, n}:
            ours = intervals.accuracy(np.arange(n) < k)
            scipys = binomtest(k, n).proportion_ci(method="wilson")
            assert (ours.correct, ours.n, ours.value) == (k, n, k / n)
            assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high), abs=1e-12)
            assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_accuracy_reads_as_percent() -> None:
    assert str(intervals.accuracy(np.arange(500) < 290)) == "58.0 % [53.6, 62.2]"


def test_no_images() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        intervals.accuracy(np.zeros(0, dtype=bool))


def test_newcombe_and_mcnemar_on_a_published_table() -> None:
    # Cavo et al. (2012) in Fagerland, Lydersen, Laake (2017), Statistical Analysis of Contingency Tables, ch. 8;
    # interval as in the tests of the authors' R package `contingencytables`.
    a = np.repeat([True, True, False, False], [59, 6, 16, 80])
    b = np.repeat([True, False, True, False], [59, 6, 16, 80])
    difference = intervals.paired_difference(a, b)
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)
    assert difference.p == pytest.approx(2 * sum(binomial(22, k) for k in range(7)) / 2**22)
    back = intervals.paired_difference(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((0.0621, 0.0046, 0.1186), abs=5e-5)


@pytest.mark.parametrize(("a", "b", "value"), [(1, 1, 0), (0, 0, 0), (1, 0, 1)])
def test_paired_difference_at_the_ends(a: int, b: int, value: int) -> None:
    difference = intervals.paired_difference(np.full(20, a, dtype=bool), np.full(20, b, dtype=bool))
    assert difference.value == value
    assert difference.low <= value <= difference.high
    assert difference.p == pytest.approx(1.0 if value == 0 else 2 / 2**20)


def test_paired_interval_covers() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        hard = generator.random(100)  # shared difficulty makes the pairs correlated
        a, b = hard + generator.normal(0, 0.2, 100) < 0.7, hard + generator.normal(0, 0.2, 100) < 0.6
        difference = intervals.paired_difference(a, b)
        covered += difference.low <= TRUE_DIFFERENCE <= difference.high
    assert covered / 400 >= 0.93


def test_paired_interval_is_narrower_than_unpaired_when_errors_are_shared() -> None:
    a, b = np.arange(200) < 150, np.arange(200) < 130
    paired = intervals.paired_difference(a, b)
    shuffled = intervals.paired_difference(a, np.random.default_rng(0).permutation(b))
    assert paired.high - paired.low < 0.8 * (shuffled.high - shuffled.low)


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="the same images, but got 3 and 4"):
        intervals.paired_difference(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


def test_a_mean_is_never_surer_than_its_images_allow() -> None:
    agreeing = [np.array([True] * 90 + [False] * 10)] * 3
    found, one = intervals.mean_accuracy(agreeing), intervals.accuracy(agreeing[0])
    assert (found.low, found.high) == pytest.approx((one.low, one.high))
    spread = intervals.mean_accuracy([np.arange(1000) < k for k in (500, 600, 700)])
    assert spread.value == pytest.approx(0.6)
    assert spread.high - spread.value == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # Student's t, 2 degrees
    with pytest.raises(ValueError, match=r"on the same images, but got \[3, 2\]"):
        intervals.mean_accuracy([np.ones(3, bool), np.ones(2, bool)])


def test_a_mean_difference_is_never_surer_than_its_pairs() -> None:
    same = [intervals.paired_difference(np.arange(100) < 60, np.arange(100) < 50)] * 3
    mean = intervals.mean_difference(same)
    assert mean.low == pytest.approx(same[0].low)
    assert mean.high == pytest.approx(same[0].high)
    with pytest.raises(ValueError, match="two or more pairs on the same images"):
        intervals.mean_difference(same[:1])


@pytest.mark.parametrize(
    ("a", "b", "median"),
    [
        ([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], 2.0),
        ([np.inf, np.inf, 1.0], [1.0, np.inf, 1.0], 0.0),
        ([np.inf, 1.0], [1.0, np.inf], 0.0),
        ([np.inf, np.inf, 1.0], [1.0, 1.0, 1.0], np.inf),
    ],
)
def test_a_failure_is_infinitely_far_and_two_are_alike(a: list[float], b: list[float], median: float) -> None:
    shift = intervals.median_shift(np.array(a), np.array(b))
    assert (shift.median, shift.n) == (median, len(a))
    assert shift.low == -np.inf  # so few bound nothing
    assert shift.high == np.inf


def test_the_median_shift_lies_between_order_statistics() -> None:
    """Of 100 differences, between the 40th and the 61st (David and Nagaraja 2003, section 7.1)."""
    shift = intervals.median_shift(np.arange(1.0, 101.0), np.zeros(100))
    assert (shift.median, shift.low, shift.high) == (50.5, 40.0, 61.0)
    with pytest.raises(ValueError, match="the same images"):
        intervals.median_shift(np.ones(2), np.ones(3))


def test_a_mean_shift_is_never_surer_than_its_pairs_and_bounds_nothing_where_an_attack_failed() -> None:
    far, near = np.arange(1.0, 101.0), np.zeros(100)
    same = [intervals.median_shift(far, near)] * 2
    assert (intervals.mean_shift(same).low, intervals.mean_shift(same).high) == (same[0].low, same[0].high)
    failed = intervals.mean_shift([same[0], intervals.median_shift(np.full(100, np.inf), near)])
    assert (failed.low, failed.high) == (-np.inf, np.inf)
    with pytest.raises(ValueError, match="needs two or more pairs, but got 1"):
        intervals.mean_shift(same[:1])


def test_chance_is_a_guess_or_the_commonest_label() -> None:
    assert intervals.chance(np.arange(20) % 10, 10) == 0.1
    assert intervals.chance(np.arange(20) % 2, 10) == 0.5
    assert intervals.chance(np.array([0, 1, 2]), 2) == pytest.approx(1 / 3)
    assert intervals.chance(np.array([3, 3, 3, 1])) == 0.75
    assert intervals.chance(np.zeros(5, int), 10) == 1
