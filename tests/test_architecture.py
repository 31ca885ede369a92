"""The arrows of the house: harness -> methods, harness -> reports, and no others."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"harness", "methods", "reports", "recipes", "tests", "benchmarks"}
MAY_IMPORT = {
    "harness": {"harness", "methods", "reports"},
    "methods": {"methods"},
    "reports": {"reports"},
}
FILES = [(package, path) for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            yield ".".join(part for part in (inside, node.module) if part)


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_imports_follow_the_arrows(package: str, path: Path) -> None:
    found = {name.partition(".")[0] for name in imports(path)} & OURS
    assert found <= MAY_IMPORT[package]


def test_recipes_hold_no_code() -> None:
    assert {path.suffix for path in (ROOT / "recipes").iterdir() if path.is_file()} == {".yaml"}


def test_importing_a_method_needs_no_engine() -> None:
    """Whoever takes a loss out of this project must not take the harness with it."""
    loaded = _loaded_by("import methods.base; methods.base.registered()")
    assert not [name for name in loaded if name.partition(".")[0] in {"harness", "reports", "transformers"}]


def test_help_loads_no_heavy_library() -> None:
    """`harness --help` has to answer at once."""
    heavy = {"torch", "transformers", "pandas", "numpy", "pydantic", "omegaconf", "lm_eval", "evalplus", "peft"}
    code = "import contextlib, sys; sys.argv = ['harness', '--help']\nfrom harness.cli import main\n"
    code += "with contextlib.suppress(SystemExit): main()"
    loaded = {name.partition(".")[0] for name in _loaded_by(code)}
    assert "harness" in loaded
    assert not loaded & heavy


def _loaded_by(code: str) -> list[str]:
    """Modules that a fresh process holds after some code."""
    code += "\nimport sys; print('\\nLOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("LOADED ")[2].split()
