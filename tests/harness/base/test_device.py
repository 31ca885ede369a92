"""What is let go of, and what collections pass over."""

from __future__ import annotations

import gc
import weakref

from harness.base.device import pass_over_libraries, release_memory


class Cycle:
    """Refers to itself, as models do."""

    def __init__(self) -> None:
        self.own = self


def test_libraries_are_passed_over_once_and_cycles_made_since_are_freed() -> None:
    pass_over_libraries()
    frozen, cycle = gc.get_freeze_count(), Cycle()
    gone = weakref.ref(cycle)
    pass_over_libraries()
    del cycle
    release_memory()
    assert gone() is None
    assert gc.get_freeze_count() <= frozen  # what dies is counted off
    assert frozen > 0
