"""A recipe may ask for bits per byte alone: then nobody answers, and no score stands in the table."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import Command


def test_without_answers_there_are_bits_alone_and_the_student_is_not_trained_again_for_answers(
    tmp_path: Path, tiny_recipe: dict[str, Any], harness: Command
) -> None:
    fields = {name: value for name, value in tiny_recipe.items() if name != "method_options"}
    own = {"name": "parts", "tasks": ["gsm8k"], "methods": ["control"], "evaluation": {"references": ["warm_start"]}}
    recipe = tmp_path / "parts.yaml"
    recipe.write_text(yaml.safe_dump(copy.deepcopy(fields) | own))

    def run(*overrides: str) -> set[str]:
        done = harness("run", f"recipe={recipe}", *overrides, "--runs", tmp_path / "runs")
        assert done.code == 0, done.err
        newest = max((tmp_path / "runs").glob("parts-*/results.csv"), key=lambda path: path.stat().st_mtime_ns)
        with newest.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["status"] for row in rows} == {"done"}
        assert {row["method"] for row in rows} == {"control", "warm start"}
        said = "Nobody answers in this run" in (newest.parent / "report.md").read_text()
        assert said == ("evaluation.answers=false" in overrides)
        return {row["metric"] for row in rows}

    def stored(kind: str) -> set[str]:
        return {folder.name for folder in (tmp_path / f"runs/store/{kind}").glob("*") if folder.is_dir()}

    assert run("evaluation.answers=false") == {"bits_per_byte"}
    assert not stored("answers")
    assert not stored("scores")
    students = stored("student")
    assert run() == {"bits_per_byte", "exact_match_strict", "exact_match_flexible"}
    assert stored("student") == students


def test_a_recipe_that_measures_nothing_is_refused(harness: Command) -> None:
    done = harness("plan", "recipe=smoke", "evaluation.answers=false", "evaluation.bits_per_byte=false")
    assert done.code == 2
    assert "evaluation: found neither answers nor bits_per_byte" in done.err
