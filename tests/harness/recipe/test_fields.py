"""`harness fields` and docs/fields.md: every field of a recipe, with what the schemas say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import HarnessError
from harness.recipe.fields import FieldLine, FieldsPart, parts
from harness.recipe.schema import Recipe
from harness.recipe.training import Training
from harness.tasks import tasks
from harness.terminal.fields_table import fields_page
from methods.base import registered

PAGE = Path(__file__).parents[3] / "docs" / "fields.md"


def lines_of(part: str) -> dict[str, FieldLine]:
    return {line.name: line for line in parts(part)[0].fields}


def test_the_page_of_the_documentation_is_what_is_generated() -> None:
    assert PAGE.read_text(encoding="utf-8") == fields_page(parts()), "harness fields --markdown > docs/fields.md"


def test_no_field_of_a_recipe_is_left_out() -> None:
    """Held against pydantic's own description of the schema."""
    found = {path: {line.name for line in part.fields} for part in parts() for path in part.paths}
    described = Recipe.model_json_schema()
    assert found[""] == set(described["properties"]) - {"task_settings"} | set(tasks())
    assert found["train"] == set(Training.model_json_schema()["properties"])
    assert found["teacher"] == found["train"] | {"seeds"}
    for name, inside in {"teachers.cross": "ModelSpec", "train.lora": "Lora", "limits": "Limits"}.items():
        assert found[name] == set(described["$defs"][inside]["properties"])
    for name, method in registered().items():
        assert found[f"method_options.{name}"] == set(method.Options.model_json_schema()["properties"])


def test_every_field_says_what_it_is() -> None:
    silent = [f"{part.paths}.{line.name}" for part in parts() for line in part.fields if not line.description]
    assert silent == []


@pytest.mark.parametrize(
    ("part", "name", "type_", "default"),
    [
        ("train", "learning_rate", "number, > 0", "2e-05"),
        ("train", "adam_betas", "list of 2: number, number", "[0.9, 0.95]"),
        ("train", "chunk_rows", "auto | whole number, ≥ 1", "auto"),
        ("student", "layers", "whole number | null, ≥ 1", "null"),
        ("student", "model", "text", ""),
        ("dolly", "sampling_seeds", "list of whole number, at least one", "[10]"),
        ("evaluation", "references", "list of (untrained | warm_start | teachers)", "[]"),
        ("gold", "rollout_share", "number, ≥ 0, ≤ 1 | fields of its own | fields of its own", "0"),
        ("dual", "same_weight", "number, ≥ 0, ≤ 1", "0.5"),
    ],
)
def test_types_and_defaults_in_words(part: str, name: str, type_: str, default: str) -> None:
    line = lines_of(part)[name]
    assert (line.type, line.default) == (type_, default)


def test_a_part_comes_with_the_parts_inside_it_and_a_field_alone() -> None:
    assert [part.paths for part in parts("train")] == [("train",), ("train.lora",)]
    (part,) = parts("limits.length")
    assert [line.name for line in part.fields] == ["length"]
    assert [line.name for line in parts("seeds")[0].fields] == ["seeds"]


@pytest.mark.parametrize(("asked", "meant"), [("glod", "gold"), ("train.lern_rate", "train.learning_rate")])
def test_an_unknown_part_names_the_nearest(asked: str, meant: str) -> None:
    with pytest.raises(HarnessError, match=f'Did you mean "{meant}"'):
        parts(asked)


def test_bars_do_not_break_a_table_of_the_page() -> None:
    page = fields_page([FieldsPart(("x",), "about", (FieldLine("a", "b | c", "1", "KL(T || S)"),))])
    assert page.splitlines()[-1] == "| `a` | b \\| c | 1 | KL(T \\|\\| S) |"
