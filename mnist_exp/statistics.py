"""How far a measured accuracy may be believed."""

from __future__ import annotations


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of an accuracy, in percent.

    Source: Wilson, "Probable Inference" (1927); scipy.stats.binomtest.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return 100 * interval.low, 100 * interval.high
