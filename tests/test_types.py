"""No ``Any`` in a signature of the rooms from recipe to results without a reason beside it: else mypy sees nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "harness"
ROOMS = ("recipe", "plan", "run", "training", "results")
NOT_YET = {HARNESS / "plan" / "builder.py"}


def untyped(source: str) -> Iterator[str]:
    """Functions with ``Any`` in their signature, and no comment ``# Any: reason`` in it, above it or at a decorator."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        said = [one.annotation for one in every if one is not None] + [node.returns]
        names = (name for one in said if one is not None for name in ast.walk(one))
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        signature = lines[max(first - 1, 0) : node.body[0].lineno]
        if any(_is_any(name) for name in names) and not any("# Any: " in line for line in signature):
            yield f"line {node.lineno}: {node.name}"


def _is_any(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):  # an annotation in quotes
        return "Any" in str(node.value).replace("[", " ").replace("]", " ").replace(",", " ").split()
    return getattr(node, "id", getattr(node, "attr", None)) == "Any"


@pytest.mark.parametrize("room", ROOMS)
def test_signatures_say_what_they_take_and_give(room: str) -> None:
    files = sorted({*(HARNESS / room).rglob("*.py")} - NOT_YET)
    assert files
    found = [f"{path.relative_to(HARNESS)} {one}" for path in files for one in untyped(path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("signature", "found"),
    [
        ("def f(x: Any) -> None: ...", True),
        ("def f(x: int) -> dict[str, Any]: ...", True),
        ("def f(*x: Any, **y: int) -> None: ...", True),
        ("def f(*, y: typing.Any = 3) -> None: ...", True),
        ('def f(x: "list[Any]") -> None: ...', True),
        ("async def f() -> Any: ...", True),
        ("class A:\n    def f(self) -> Any:\n        return 1", True),
        ("def f(x: Any) -> None:  # why not\n    return", True),
        ("def f(x: Any) -> None:  # Any: pickled by whoever calls\n    return", False),
        ("# Any: torch's own\n@staticmethod\ndef f(x: Any) -> None: ...", False),
        ("def f(\n    x: Any,  # Any: torch's own\n) -> None: ...", False),
        ("def f(x: Anything, y: int) -> Iterator[object]:\n    z: Any = x", False),
    ],
)
def test_a_planted_any_is_found(signature: str, found: bool) -> None:
    assert bool(list(untyped(signature))) == found
