"""What was compiled is counted, told and kept; torch's own records are the reference."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
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


RANKS = """
import sys
from pathlib import Path
from harness.base.compilation import compile_seconds, keep_compiled
keep_compiled(Path(sys.argv[1]))
import torch
from methods.library.ranks import compare_ranks
for name in sys.argv[2:]:
    one, other = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=getattr(torch, name)).split(1)
    assert float(compare_ranks(one, other)[0]) == 0.5
print(compile_seconds())
"""


def measure_ranks(store: Path, *dtypes: str) -> subprocess.Popen[str]:
    """A process that compares masses with a store's loops, and prints how long it has compiled."""
    clean = {name: value for name, value in os.environ.items() if name not in CACHES}
    asked = [sys.executable, "-c", RANKS, str(store), *dtypes]
    return subprocess.Popen(asked, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_loops_of_the_cpu_are_compiled_once_for_all_processes_of_a_store(tmp_path: Path) -> None:
    """Two that compile at once take turns, and leave what both made; what is broken is made anew, and told."""
    both = [measure_ranks(tmp_path, dtype) for dtype in ("float32", "float64")]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all(float(out) > 0 for out, _ in outputs)
    out, _ = measure_ranks(tmp_path, "float32", "float64").communicate()
    assert float(out) == 0
    kept = [*(tmp_path / CACHES["NUMBA_CACHE_DIR"]).rglob("*.nbc")]
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(path.read_bytes()[:1000])
    out, told = measure_ranks(tmp_path, "float32").communicate()
    assert float(out) > 0
    assert "compiled without" in told
