"""What was compiled is counted, told and kept; torch's own records are the reference."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from harness.base.compilation import CACHES, SETTLED, Recompilations, compile_seconds, keep_compiled


@pytest.fixture
def compiled() -> Iterator[object]:
    """A function that is compiled anew for every shape; without a compiler of the CPU's."""
    torch._dynamo.reset()

    def halved(values: torch.Tensor) -> torch.Tensor:
        return values / 2

    yield torch.compile(halved, backend="eager", dynamic=False)
    torch._dynamo.reset()


def test_what_is_compiled_late_is_a_warning_with_its_cause(compiled: object) -> None:
    assert callable(compiled)
    before = compile_seconds()
    found = Recompilations()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(torch.ones(3))
        compiled(torch.ones(4))
        found.look(SETTLED)  # kinds of chunks come up for the first time
        compiled(torch.ones(3))
        found.look(SETTLED + 1)
    assert compile_seconds() > before
    compiled(torch.ones(5))
    with pytest.warns(UserWarning, match=rf"halved was compiled in step {SETTLED + 2}, .* s: .*size mismatch"):
        found.look(SETTLED + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.look(SETTLED + 3)  # said once


def test_a_process_without_a_compiler_has_compiled_nothing() -> None:
    """And does not load it to say so: that takes seconds."""
    code = "import sys; from harness.base.compilation import *; Recompilations().look(99); print(compile_seconds(), "
    code += "'torch._dynamo.utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.0", "False"]


def test_compiled_code_is_kept_in_the_store_unless_the_environment_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_compiled(tmp_path)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / CACHES["TORCHINDUCTOR_CACHE_DIR"])
    assert __import__("os").environ["TRITON_CACHE_DIR"] == "elsewhere"


def test_loops_of_the_cpu_are_compiled_once_for_all_processes_of_a_store(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from harness.base.compilation import compile_seconds, keep_compiled
keep_compiled(Path({str(tmp_path)!r}))
import torch
from methods.library.ranks import compare_ranks
compare_ranks(torch.rand(2, 8), torch.rand(2, 9))
print(compile_seconds())
"""
    clean = {name: value for name, value in os.environ.items() if name not in CACHES}
    run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    first, second = (float(run().stdout) for _ in range(2))
    assert first > 0
    assert second == 0
    assert {path.suffix for path in (tmp_path / "numba").rglob("*.nb?")} == {".nbi", ".nbc"}
