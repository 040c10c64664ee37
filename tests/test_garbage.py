"""What is searched for garbage, and what is not."""

import gc
import weakref

from mnist_exp import garbage


class Node:
    """One that names itself."""

    def __init__(self):
        self.me = self


def test_a_worker_keeps_what_its_first_job_leaves_and_collects_that_of_later_ones():
    assert not gc.get_freeze_count()
    left = weakref.ref(Node())
    try:
        garbage.keep_what_is_there()
        kept = gc.get_freeze_count()
        assert left() is None
        assert kept > 1000
        node = Node()
        left = weakref.ref(node)
        garbage.keep_what_is_there()  # while it is still in use
        del node
        gc.collect()
        assert left() is None
        assert gc.get_freeze_count() <= kept
    finally:
        gc.unfreeze()
