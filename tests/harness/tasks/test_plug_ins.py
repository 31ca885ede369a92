"""Tasks of other packages: found by their entry points, planned, run and reported like those that ship here."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]

PAGE = (ROOT / "docs/add_a_task.md").read_text(encoding="utf-8")
REVERSAL = PAGE.partition('```python title="reversal_words/__init__.py"\n')[2].partition("```")[0]
"""The task of the documentation, word for word."""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Put a package with one module and its entry points where Python finds it."""

    def put(package: str, text: str, **entries: str) -> None:
        information = tmp_path / f"site/{package}-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {package}:{what}" for name, what in entries.items()]
        (information / "entry_points.txt").write_text("\n".join(["[ctkd_harness.tasks]", *lines]) + "\n")
        (tmp_path / f"site/{package}.py").write_text(text)

    return put


def python(tmp_path: Path, code: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A process of its own, so that no other test sees the packages."""
    path = f"{tmp_path / 'site'}:{ROOT}"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=check,
    )


def words(tmp_path: Path) -> None:
    """Its samples, beside its file."""
    folder = tmp_path / "site/samples/reversal"
    folder.mkdir(parents=True)
    for split, count in (("train", 8), ("test", 6)):
        rows = [{"word": f"{split}{number}"} for number in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


CALLS = """
import glob, sys
from harness import cli

for arguments in ({calls}):
    sys.argv = ["harness", *(found for each in arguments for found in glob.glob(each) or [each])]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    print("=====")
"""


def test_a_task_of_another_package_plans_runs_and_reports(
    install: Install, tmp_path: Path, tiny_recipe: dict[str, Any]
) -> None:
    install("reversal_words", REVERSAL, reversal="Reversal")
    assert '"ctkd_harness.tasks"]\nreversal = "reversal_words:Reversal"' in PAGE
    words(tmp_path)
    values = copy.deepcopy(tiny_recipe) | {"name": "words", "tasks": ["reversal"], "methods": ["control", "uld"]}
    values |= {"reversal": {"train_items": 6, "test_items": 3, "new_tokens": 4, "shout": True}}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(values))
    recipe = ["recipe=words.yaml"]
    calls = [["data", *recipe], ["plan", *recipe], ["run", *recipe], ["report", "runs/words-*"]]
    done = python(tmp_path, CALLS.format(calls=", ".join(map(str, calls))), check=False)
    assert done.returncode == 0, done.stderr
    listed, planned, ran, again, _ = done.stdout.split("=====\n")
    assert "reversal/train.jsonl" in listed
    assert "made for an example, CC0." in listed
    assert "reversal" in planned
    assert "same word" in ran
    assert "same word" in again
    (folder,) = (tmp_path / "runs").glob("words-*")
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "3 words, scored where the answer is the word backwards." in report
    record = json.loads((folder / "run.json").read_text())
    assert {cell["task"] for cell in record["cells"]} == {"reversal"}
    answers = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("answers.json")]
    assert {made[0]["prompt"] for made in answers} == {"Backwards: TEST0\n"}  # its own setting


def test_its_promises_are_held_without_a_checkout(install: Install, tmp_path: Path) -> None:
    install("reversal_words", REVERSAL, reversal="Reversal")
    words(tmp_path)
    code = "from harness.tasks.contract import check_task\nfor one in check_task('reversal'): print(one.ok, one.detail)"
    found = python(tmp_path, code).stdout.splitlines()
    assert [line for line in found if not line.startswith("True")] == [
        "None it says no published sizes, so a plan needs its files"
    ]


def test_files_that_are_missing_stop_a_plan_where_no_size_is_known(
    install: Install, tmp_path: Path, tiny_recipe: dict[str, Any]
) -> None:
    install("reversal_words", REVERSAL, reversal="Reversal")
    values = copy.deepcopy(tiny_recipe) | {"name": "words", "tasks": ["reversal"], "methods": ["control"]}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(values))
    done = python(tmp_path, CALLS.format(calls="['plan', 'recipe=words.yaml'],"), check=False)
    assert done.returncode == 2
    assert "data of task reversal: found none of reversal/train.jsonl under" in done.stderr


BROKEN = """
from reversal_words import Reversal

class Half(Reversal.__mro__[1]):
    name = "half"

class Spaced(Reversal):
    name = "two words"

not_a_task = 7
"""


def test_a_broken_plug_in_is_named_and_the_others_stay(install: Install, tmp_path: Path) -> None:
    install("reversal_words", REVERSAL, reversal="Reversal")
    install("broken", BROKEN, half="Half", spaced="Spaced", number="not_a_task", gone="Nothing")
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from harness.tasks import tasks
    print(*tasks())
    tasks()
for warning in caught:
    print(warning.message)
"""
    first, *said = python(tmp_path, code).stdout.splitlines()
    assert first.split()[-1] == "reversal"
    assert "gsm8k" in first
    assert len(said) == 4  # each once
    assert {line.partition(" can't")[0] for line in said} == {
        f"plug-in {name} (broken:{what}) of broken"
        for name, what in (("half", "Half"), ("spaced", "Spaced"), ("number", "not_a_task"), ("gone", "Nothing"))
    }
    text = "\n".join(said)
    assert "Half lacks " in text
    assert "'two words' can't be a field of a recipe" in text
    assert "7 is no class of tasks" in text
    assert "has no attribute 'Nothing'" in text


def test_two_tasks_of_one_name_are_an_error(install: Install, tmp_path: Path) -> None:
    install("reversal_words", REVERSAL, reversal="Reversal")
    install("other", "from reversal_words import Reversal\nclass Mine(Reversal):\n    name = 'gsm8k'\n", mine="Mine")
    done = python(tmp_path, CALLS.format(calls="['data'],"), check=False)
    assert done.returncode == 2
    assert "two of the name 'gsm8k': harness.tasks.gsm8k.GSM8K and other.Mine" in done.stderr
