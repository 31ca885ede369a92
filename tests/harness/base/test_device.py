"""What is let go of, and what collections pass over."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import pytest
import torch

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


_ONCE_MORE = """
import resource, sys
import torch
from harness.base.device import keep_freed_memory, release_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(10):
        parts = [torch.ones(2**21) for _ in range(8)]  # 8 MiB each, all freed at once
work()
before = faults()
work()
again, kept = faults() - before, held()
release_memory()
print(again * resource.getpagesize(), kept - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.cuda.is_available(), reason="of glibc, without a GPU")
def test_freed_memory_is_used_again_and_given_back_when_released() -> None:
    """Of 64 MiB that are freed and asked for ten times: pages that the system has to clear, and what is given back."""
    cleared, given_back = {}, {}
    for how in ("plain", "keep"):
        done = subprocess.run([sys.executable, "-c", _ONCE_MORE, how], capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        cleared[how], given_back[how] = map(int, done.stdout.split())
    assert cleared["keep"] < 2**23 < 2**26 < cleared["plain"]
    assert given_back["keep"] > 2**25
