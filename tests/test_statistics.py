"""Intervals and tests against scipy's and their definitions."""

import numpy as np
import pytest
from scipy import stats

from mnist_exp.statistics import compare_groups, holm, mcnemar, mean_interval, wilson


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (9901, 10_000), (1, 3)])
def test_wilson_is_scipys(correct, total):
    theirs = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson(correct, total) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-4)


def test_wilson_takes_columns():
    low, high = wilson(np.array([5, 50, np.nan]), np.array([10, 100, 10]))
    assert low[:2] == pytest.approx([wilson(5, 10)[0], wilson(50, 100)[0]])
    assert np.isnan(high[2])


def test_the_interval_of_a_mean_is_students():
    values = [99.1, 99.3, 99.25]
    assert mean_interval(values) == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))
    for too_little in ([99.0], [96.0, 96.0], [99.1, 99.1, 99.1]):
        assert np.isnan(mean_interval(too_little)).all(), "which does not tell how much others vary"


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(1, 8) == mcnemar(8, 1)


def of(scores: dict) -> dict:
    return {unit: [score] for unit, score in scores.items()}


def test_groups_are_paired_by_seed_where_they_can_be():
    first, second = {1: 99.1, 2: 99.3, 3: 99.2}, {1: 99.0, 2: 99.1, 3: 99.15}
    found = compare_groups(of(first), of(second))
    assert (found.test, found.n, found.n_other) == ("paired t", 3, 3)
    assert found.p == pytest.approx(stats.ttest_rel([99.1, 99.3, 99.2], [99.0, 99.1, 99.15]).pvalue)
    assert found.difference == pytest.approx(0.35 / 3)
    other = {4: 99.0, 5: 99.1, 6: 99.15}
    found = compare_groups(of(first), of(other))
    assert found.test == "Welch's t"
    assert found.p == pytest.approx(stats.ttest_ind([*first.values()], [*other.values()], equal_var=False).pvalue)
    assert compare_groups({1: [99.0]}, {1: [98.0]}).p is None
    assert compare_groups({}, {1: [98.0]}).test == "too few runs"


def test_scores_of_one_seed_count_as_their_mean():
    found = compare_groups({1: [99.0, 99.2], 2: [99.3]}, {1: [99.0], 2: [99.1, 99.1, 99.1]})
    again = compare_groups({1: [99.1], 2: [99.3]}, {1: [99.0], 2: [99.1]})
    assert (found.n, found.difference) == (2, pytest.approx(again.difference))
    assert found.p == pytest.approx(again.p)


def test_where_nothing_varies_permutations_are_counted():
    assert compare_groups(of({1: 99.0, 2: 98.0}), of({1: 98.5, 2: 97.5})).p == pytest.approx(0.5)
    assert compare_groups(of({1: 99.0, 2: 98.0}), of({1: 99.0, 2: 98.0})).p == 1
    assert compare_groups(of({1: 99.0, 2: 99.0}), of({3: 98.0, 4: 98.0})).p == pytest.approx(1 / 3)


def test_among_equals_holms_p_finds_a_difference_in_five_of_a_hundred_cases():
    draws = np.random.default_rng(0).uniform(size=(2000, 19))
    plain, held = (np.mean([min(row) < 0.05 for row in rows]) for rows in (draws, [holm(row) for row in draws]))
    assert plain > 0.5
    assert 0.035 < held < 0.065
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
