"""Intervals and tests against scipy's and their definitions."""

import numpy as np
import pytest
from scipy import stats

from mnist_exp.statistics import compare_groups, mcnemar, wilson


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (9901, 10_000), (1, 3)])
def test_wilson_is_scipys(correct, total):
    theirs = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson(correct, total) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-4)


def test_wilson_takes_columns():
    low, high = wilson(np.array([5, 50, np.nan]), np.array([10, 100, 10]))
    assert low[:2] == pytest.approx([wilson(5, 10)[0], wilson(50, 100)[0]])
    assert np.isnan(high[2])


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(1, 8) == mcnemar(8, 1)


def test_groups_are_paired_by_seed_where_they_can_be():
    first, second = {1: 99.1, 2: 99.3, 3: 99.2}, {1: 99.0, 2: 99.1, 3: 99.15}
    name, p = compare_groups(first, second)
    assert name == "paired t"
    assert p == pytest.approx(stats.ttest_rel([99.1, 99.3, 99.2], [99.0, 99.1, 99.15]).pvalue)
    other = {4: 99.0, 5: 99.1, 6: 99.15}
    name, p = compare_groups(first, other)
    assert name == "Welch's t"
    assert p == pytest.approx(stats.ttest_ind([*first.values()], [*other.values()], equal_var=False).pvalue)
    assert compare_groups({1: 99.0}, {1: 98.0}) == ("too few runs", None)
    assert compare_groups({1: 99.0, 2: 98.0}, {1: 98.5, 2: 97.5}) == ("paired t", None)
