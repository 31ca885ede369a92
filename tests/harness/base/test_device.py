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


_HELD = """
import resource, sys
import torch
from harness.base.device import keep_freed_memory, release_memory
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.ones(2**12).sum(), release_memory()  # what is made once
before = held()
parts = [torch.ones(2**21) for _ in range(8)]  # 8 MiB each
most = held() - before
del parts
freed = held() - before
release_memory()
print(most, freed, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.cuda.is_available(), reason="of glibc, without a GPU")
def test_freed_memory_is_kept_and_given_back_when_released() -> None:
    """Of 64 MiB: what a process holds of them, what it does once they are freed, and once memory is released."""
    mebibyte = 2**20
    for how in ("plain", "keep"):
        done = subprocess.run([sys.executable, "-c", _HELD, how], capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        most, freed, released = map(int, done.stdout.split())
        assert most > 60 * mebibyte
        assert (freed > 50 * mebibyte) == (how == "keep"), freed
        assert released < 10 * mebibyte
