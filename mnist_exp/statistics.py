"""How far measured accuracies, and differences between them, may be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def wilson(correct: Any, total: Any, z: float = 1.959964) -> tuple[Any, Any]:
    """Return the 95 % Wilson interval of an accuracy, in percent; numbers or arrays of counts.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    share = np.asarray(correct, float) / total
    centre = share + z**2 / (2 * np.asarray(total, float))
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * np.asarray(total, float) ** 2))
    scale = 100 / (1 + z**2 / np.asarray(total, float))
    return np.maximum(0.0, (centre - half) * scale), np.minimum(100.0, (centre + half) * scale)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return McNemar's exact p: two models on the same images, of which each alone gets so many right.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947).
    """
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def compare_groups(first: Mapping[Any, float], second: Mapping[Any, float]) -> tuple[str, float | None]:
    """Test whether two groups of scores {seed: score} differ in their mean; return (which test, p).

    The paired t-test where the groups share at least two seeds and have no others, Welch's where each has at least
    two runs; p is None where there are too few, or nothing varies.
    """
    from scipy.stats import ttest_ind, ttest_rel

    seeds = sorted(first)
    if len(seeds) >= 2 and seeds == sorted(second):
        name, a, b = "paired t", [first[s] for s in seeds], [second[s] for s in seeds]
        varies = len({round(x - y, 9) for x, y in zip(a, b, strict=True)}) > 1
        result = ttest_rel(a, b) if varies else None
    elif len(first) >= 2 and len(second) >= 2:
        name, a, b = "Welch's t", list(first.values()), list(second.values())
        result = ttest_ind(a, b, equal_var=False) if len({*a, *b}) > 1 else None
    else:
        return "too few runs", None
    return name, None if result is None else float(result.pvalue)
