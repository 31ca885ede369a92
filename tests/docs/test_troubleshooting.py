"""docs/troubleshooting.md quotes messages that the code has, as it prints them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT
from tests.docs.texts import GAP, all_texts, pieces, quoted_in, says, syntax, table_of, text_of

PAGE = ROOT / "docs" / "troubleshooting.md"
FOLDERS = ("harness", "methods")
HEADINGS = ("The recipe", "Models", "Data", "While it runs", "Results", "Plug-ins")


def errors() -> Iterator[str]:
    """Every `HarnessError` as it reads: "where: found this; expected that. Do so." with gaps."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = syntax(str(path.relative_to(ROOT)))
            constants = {n.targets[0].id: n.value for n in module.body if isinstance(n, ast.Assign) and is_name(n)}
            for node in ast.walk(module):
                if isinstance(node, ast.Call) and is_error(node.func):
                    parts = [part_of(part, constants) for part in node.args]
                    where, found, expected, fix = [*parts, *[GAP, GAP, GAP, ""][len(parts) :]]
                    yield f"{where}: found {found}; expected {expected}. {fix}".strip()


def is_name(node: ast.Assign) -> bool:
    return isinstance(node.targets[0], ast.Name)


def is_error(called: ast.expr) -> bool:
    """`HarnessError(...)`, or a kind of it that calls what it is made of."""
    return ast.unparse(called) in ("HarnessError", "super().__init__")


def part_of(node: ast.expr, constants: dict[str, ast.expr]) -> str:
    """A part of a message: of two that it may be, the first; constants of the module by what they hold."""
    if isinstance(node, ast.Name):
        node = constants.get(node.id, node)
    text = text_of(node.body if isinstance(node, ast.IfExp) else node)
    return GAP if text is None else text


@pytest.fixture(scope="module")
def messages() -> list[str]:
    return [*errors(), *all_texts(*FOLDERS)]


@pytest.mark.parametrize("heading", HEADINGS)
def test_messages_are_those_of_the_code(heading: str, messages: list[str]) -> None:
    quoted = [one for row in table_of(PAGE, heading) for one in quoted_in(row[0])]
    assert len(quoted) > 3
    for one in quoted:
        assert len("".join(pieces(one))) > 5, f"says too little: {one}"
        assert any(says(one, message) for message in messages), one
