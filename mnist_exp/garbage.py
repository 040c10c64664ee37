"""Python's search for cycles of garbage, in processes that are ours: what libraries define stays, so it is not searched.

An import of torch makes half a million objects: to look through them again and again, and once more at the end, is a third
of the time of a small run.
"""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let this process look for garbage after more objects than usual have come."""
    gc.set_threshold(10_000)


def keep_what_is_there() -> None:
    """Collect garbage, and never look again at what is left; to be called after each job, does so after the first.

    What later jobs leave is garbage as soon as they have ended, such as their configs, whose nodes name each other.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def end_without() -> None:
    """Let this process, which is at its end, not look for garbage: that ends with it."""
    gc.freeze()
