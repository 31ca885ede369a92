"""`harness test-method` and `harness test-task`: plug-ins in packages of their own are held to their promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.harness.tasks.test_plug_ins import REVERSAL

ROOT = Path(__file__).parents[2]
METHODS = """
from methods.base import LossSums, Method, TeacherKind, register
from methods.library.alignment import group_bytes


@register
class Kept(Method):
    name, paper, teacher, summary = "kept", "none", TeacherKind.NONE, "a plug-in that is sound"

    def loss(self, chunk):
        return LossSums(kd=chunk.student.logits.sum() * 0)


@register
class Broken(Method):
    name, paper, teacher = "broken", "none", TeacherKind.CROSS_TOKENIZER
    summary = "a plug-in whose loss is no number"

    def align(self, response):
        return group_bytes(response.student_ends, response.teacher_ends)

    def loss(self, chunk):
        return LossSums(kd=chunk.student.logits.sum() * float("nan"))
"""
Verb = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def installed(tmp_path: Path) -> Verb:
    """The command line beside a distribution that brings two methods and a task, in a process of its own."""
    site = tmp_path / "site"
    information = site / "mine-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = ["[ctkd_harness.methods]", "kept = my_methods:Kept", "broken = my_methods:Broken"]
    points += ["[ctkd_harness.tasks]", "reversal = my_tasks:Reversal"]
    (information / "entry_points.txt").write_text("\n".join(points) + "\n")
    (site / "my_methods.py").write_text(METHODS)
    (site / "my_tasks.py").write_text(REVERSAL)
    for file in ("train", "test"):
        path = site / "samples" / "reversal" / f"{file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"word": f"{file}{n}"}) + "\n" for n in range(8)))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "COLUMNS": "120"}
        command = [sys.executable, "-m", "harness", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    return run


def test_a_sound_method_keeps_its_promises(installed: Verb) -> None:
    done = installed("test-method", "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["kept", "the loss is finite"]
    assert lines[-1].startswith("kept keeps all ")
    assert "broken" not in done.stdout


def test_a_broken_method_is_told_what_it_breaks(installed: Verb) -> None:
    done = installed("test-method", "broken")
    assert done.returncode == 1
    assert "broken  the loss is finite: the loss is nan" in done.stdout
    assert "broken breaks " in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_task_of_another_package_is_held_too(installed: Verb) -> None:
    done = installed("test-task", "reversal")
    lines = done.stdout.splitlines()
    assert lines[0].split(maxsplit=1)[0] == "kept"
    # it says no published sizes, and so what a plan makes up can't be checked
    assert [line.split()[0] for line in lines].count("–") == 1
    assert (done.returncode, lines[-1].partition(" promises")[0]) == (0, "reversal keeps all 14"), done.stdout


@pytest.mark.parametrize("verb", ["test-method", "test-task", "methods", "tasks"])
def test_a_wrong_name_is_one_error(harness: Command, verb: str) -> None:
    done = harness(verb, "gsn8k" if verb.endswith(("task", "tasks")) else "udl")
    assert done.code == 2
    assert "Did you mean" in done.err


def test_a_method_on_one_page(harness: Command) -> None:
    done = harness("methods", "gold")
    assert "Hugging Face blog 2025-10-29" in done.out
    assert "GJSD_β(S_g, T_g over the tokens of both vocabularies)" in done.out  # its formula
    assert "sorts whole distributions" in done.out
    assert [word for word in ("rollout_share", "0.5", "share of micro-batches") if word not in done.out] == []


@pytest.mark.parametrize("name", ["codem", "countdown", "dolly", "gsm8k"])
def test_a_task_on_one_page(harness: Command, name: str) -> None:
    done = harness("tasks", name)
    assert [word for word in (f"{name}: ", "metrics", "new_tokens", "is better") if word not in done.out] == []


def test_the_tasks_are_listed(harness: Command) -> None:
    assert [name for name in ("dolly", "codem", "gsm8k", "countdown") if name not in harness("tasks").out] == []
