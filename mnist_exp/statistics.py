"""How far measured accuracies, and differences between them, may be believed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by Student's t: of what further ``values`` of the kind have.

    NaN of one value, and of equal ones: they do not tell how much others vary.
    Source: Student, "The Probable Error of a Mean" (1908).
    """
    from scipy.stats import t

    n = len(values)
    if n < 2 or np.ptp(values) < 1e-9:
        return math.nan, math.nan
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def calibration(confidence: Any, correct: Any, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (images, mean confidence, accuracy), float [bins], of those whose confidence lies in each equal part of 0..1.

    ``confidence``: of the chosen class, [N]; ``correct``: whether it is the right one, [N]. NaN where there is no image.
    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), https://arxiv.org/abs/1706.04599.
    """
    place = np.minimum((np.asarray(confidence, float) * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins).astype(float)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(place, np.asarray(confidence, float), bins) / count
        right = np.bincount(place, np.asarray(correct, float), bins) / count
    return count, sure, right


def calibration_error(confidence: Any, correct: Any, bins: int = 15) -> float:
    """Return the expected calibration error, in percentage points: see ``calibration``."""
    count, sure, right = calibration(confidence, correct, bins)
    return 100 * float(np.nansum(count * np.abs(sure - right)) / count.sum())


def mcnemar(only_first: int, only_second: int) -> float:
    """Return McNemar's exact p: two models on the same images, of which each alone gets so many right.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947).
    """
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


@dataclass(frozen=True)
class Comparison:
    """A difference between two means, and how it was tested: all of the same ``n`` and ``n_other`` scores.

    ``p`` is None where there is too little to test.
    """

    difference: float
    n: int
    n_other: int
    test: str
    p: float | None


def compare_groups(first: Mapping[Any, Sequence[float]], second: Mapping[Any, Sequence[float]]) -> Comparison:
    """Test whether two groups of scores, {unit: scores of it}, differ in their mean; scores of one unit count as one.

    A unit is what may be paired, such as a seed. The paired t-test where both groups have the same units, Welch's where
    not; where nothing varies, which neither can judge, the permutation test in their place, exact for up to 13 units.
    """
    from scipy.stats import permutation_test, ttest_ind, ttest_rel

    ours, theirs = ({unit: float(np.mean(scores)) for unit, scores in group.items()} for group in (first, second))
    paired = len(ours) >= 2 and ours.keys() == theirs.keys()
    a, b = np.array([ours[u] for u in ours]), np.array([theirs[u] for u in (ours if paired else theirs)])
    difference = float(np.mean(a - b) if paired else np.mean(a) - np.mean(b)) if len(a) and len(b) else math.nan
    if not paired and (len(a) < 2 or len(b) < 2):
        return Comparison(difference, len(a), len(b), "too few runs", None)
    spread = np.ptp(a - b) if paired else max(np.ptp(a), np.ptp(b))
    if spread > 1e-9:
        test = "paired t" if paired else "Welch's t"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a group without variance, which Welch's test allows
            p = (ttest_rel(a, b) if paired else ttest_ind(a, b, equal_var=False)).pvalue
    else:
        test, kind = "sign flips (same difference in all)", "samples"
        if not paired:
            test, kind = "permutation (no variance)", "independent"
        p = permutation_test((a, b), _mean_difference, permutation_type=kind, vectorized=True, rng=0).pvalue
    return Comparison(difference, len(a), len(b), test, float(p))


def _mean_difference(first: Any, second: Any, axis: int) -> Any:
    return np.mean(first, axis) - np.mean(second, axis)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values adjusted for their number, so that any of them below 0.05 happens by chance in 5 % of all cases.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted
