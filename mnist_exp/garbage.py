"""Python's search for cycles of garbage, in processes that are ours: what libraries define stays, so it is not searched.

An import of torch makes half a million objects: to look through them again and again, and once more at the end, is a third
of the time of a small run.
"""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let this process look for garbage after more objects than usual have come."""
    gc.set_threshold(10_000)


def keep_the_rest() -> None:
    """Collect garbage now, and never look again at what is left."""
    gc.collect()
    gc.freeze()


def end_without() -> None:
    """Let this process, which is at its end, not look for garbage: that ends with it."""
    gc.freeze()
