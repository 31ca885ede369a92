"""The documentation holds what it says: its code runs, its commands parse, what it names is there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from harness import api, cli
from harness.tasks import tasks
from harness.verbs.asked import asked_recipe
from methods.base import registered
from tests.docs.pages import PAGES, PLUG_IN, ROOT, WHOLE, blocks, calls, code_spans, commands_of, prose, write_files

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FOLDERS = ("harness", "methods", "recipes", "reports", "tests", "benchmarks", "docs")
PRINTED = {
    "python_api.md": ['Did you mean "uld"?', "train.steps"],
    "add_a_method.md": ["top_one keeps all ", "Top-1 agreement"],
    "own_pair.md": ["two tokenizers: ", "align 1-1", "licence: CC0-1.0", "control"],
    "choose_a_method.md": ["X-Token"],
    "own_data.md": ["our help desk, internal.", "right reply", "licence: internal"],
    "add_a_task.md": ["reversal keeps all ", "made for an example, CC0.", "same word"],
}
"""What the code of a page must have printed."""


# --- Code runs --------------------------------------------------------------------------------------------------------


def runs_commands(page: Path) -> bool:
    return page.name in WHOLE or any(block.title == PLUG_IN for block in blocks(page))


PAGES_WITH_CODE = [
    page for page in PAGES if runs_commands(page) or any(block.language == "python" for block in blocks(page))
]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if runs_commands(page) else []) for page in PAGES_WITH_CODE],
    ids=lambda page: page.name,
)
def test_code_blocks_run(page: Path, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own, as methods and tasks of a page would stay."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_page", str(page)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [words for words in PRINTED.get(page.name, ()) if words not in done.stdout] == []
    if page.name == "python_api.md":
        written = {path.name for path in (tmp_path / "report").iterdir() if path.is_file()}
        said = code_spans(ROOT / "docs" / "reports.md")
        assert written - set(said) == set(), "files of a report that docs/reports.md leaves out"


# --- Commands parse ---------------------------------------------------------------------------------------------------


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What a verb takes its arguments for; a verb alone, within a sentence, has none. Raises where there is no such."""
    group = typer.main.get_command(cli.app)
    above = group.make_context("harness", list(arguments), resilient_parsing=True)
    name, verb, rest = group.resolve_command(above, list(arguments))
    assert verb is not None, f"no verb {arguments[0]}"
    return verb.make_context(name, rest, parent=above).params if rest else {}


def is_said_in_capitals(text: str) -> bool:
    """Whether a part of a command stands for what a reader puts there: FOLDER, recipe=NAME."""
    return any(word.isupper() for word in re.findall(r"\w{3,}", text)) or "..." in text


@every_page
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs, options and the fields of a recipe; those of a page that makes a package run instead."""
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    found = [call for block in blocks(page) for call in commands_of(block)]
    if runs_commands(page):
        found = []
    found += [call for span in code_spans(page) if span.startswith("harness ") for call in calls(span)]
    for call in found:
        if "..." in call:
            continue
        given = parsed(call)
        if given.get("part"):
            assert api.recipe_fields(given["part"])
        fields = [field for field in given.get("fields") or () if not is_said_in_capitals(field)]
        named = [field for field in fields if field.startswith("recipe=") or "=" not in field]
        if named:
            beside = ("task=", "budget=", "metric=", "method=", "steps=")  # read by align, tune and profile
            asked_recipe([field for field in fields if not field.startswith(beside)])


@every_page
def test_fields_exist(page: Path) -> None:
    """``train.steps`` and ``'seeds=[0,1]'`` within the text."""
    tops = api.load_recipe("smoke").model_dump()
    known = {f"{path}.{field.name}" for part in api.recipe_fields() for path in part.paths for field in part.fields}
    for span in code_spans(page):
        span = span.strip("'")
        name, is_set, _ = span.partition("=")
        if not re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", name) or name.partition(".")[0] not in tops:
            continue
        if is_set and not is_said_in_capitals(span):
            api.load_recipe("quickstart", span)
        elif "." in name and isinstance(tops[name.partition(".")[0]], dict) and name not in COLUMNS:
            assert name in known or name.startswith("method_options."), span


COLUMNS = {"gsm8k.bits_per_byte"}
"""Of a table: named like fields."""


# --- What is named is there -------------------------------------------------------------------------------------------


@every_page
def test_files_exist(page: Path) -> None:
    for span in code_spans(page):
        if re.fullmatch(r"[\w./-]+", span) and span.partition("/")[0] in FOLDERS and "/" in span:
            assert (ROOT / span).exists(), span


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r'(?:\]\(|src=")([^)"\s]+)', prose(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def definitions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def test_the_house_names_definitions_where_they_are() -> None:
    rows = re.findall(r"^\| `(\S+\.py)` \| (`[^|]+`) \|", prose(ROOT / "docs" / "house.md"), re.MULTILINE)
    assert len(rows) > 25
    for file, names in rows:
        missing = set(re.findall(r"`(\w+)`", names)) - set(definitions(ROOT / file))
        assert not missing, f"{file}: {missing}"


def test_what_is_promised_to_be_exact_names_the_tests_that_hold_it() -> None:
    named = {span for span in code_spans(ROOT / "docs" / "exactness.md") if span.startswith("test_")}
    assert len(named) > 8
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named <= set(re.findall(r"def (test_\w+)\(", written))
    assert "batching_does_not_matter" in set(definitions(ROOT / "harness" / "training" / "contract.py"))


def first_cells(page: str) -> set[str]:
    """Code in the first cell of each row of a page's tables."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return {name for line in lines if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_tables_list_all_there_is() -> None:
    assert first_cells("methods.md") - {"dual(fkd, cdm)"} == set(registered())
    assert first_cells("tasks.md") == set(tasks())
    assert first_cells("start.md") == set(api.recipe_names())


def test_methods_are_in_the_files_that_the_page_names() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\S+)\.py` \|$", prose(ROOT / "docs" / "methods.md"), re.MULTILINE)
    assert {name: file.replace("/", ".") for name, file in rows} == {
        name: kind.__module__ for name, kind in registered().items()
    }


def test_every_page_is_in_the_site() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    sections = [[entry] if isinstance(entry, str) else next(iter(entry.values())) for entry in nav]
    assert {page for section in sections for page in section} == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_picture_is_a_reports() -> None:
    made = ROOT / "reports/results/known_truth_tuned_fresh/figures/differences-known-truth-bits-byte.svg"
    assert (ROOT / "docs/pictures/known_truth_tuned_fresh.svg").read_bytes() == made.read_bytes()
