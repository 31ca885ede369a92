"""Recipes of people whom nobody knows: they read nothing but themselves, end soon, and are wrong in a sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.base.errors import HarnessError
from harness.recipe.load import RecipeError, load_recipe, validate
from tests.harness.recipe.test_recipe import MINIMAL, problems, written

MINIMAL_TEXT = yaml.safe_dump(MINIMAL)


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < 20


def said_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as error:
        validate("mine", values)
    return error.value.problems


def error_of(folder: Path, text: str) -> str:
    """What loading a file says of it."""
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(HarnessError) as error:
        load_recipe(str(path))
    return str(error.value)


# --- References -------------------------------------------------------------------------------------------------------


def test_only_the_recipe_itself_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "a secret of the machine")
    (problem,) = problems(tmp_path, title="${oc.env:TOKEN}")
    assert problem.startswith("title: found ${oc.env:TOKEN}; expected a field of the recipe")
    assert "a secret" not in problem


def test_references_keep_types_and_stand_inside_texts(tmp_path: Path) -> None:
    fields = {"warm_start": "${train}", "title": "${train.steps} steps, seed ${seeds.1}, ${name}", "seeds": [4, 5]}
    recipe = load_recipe(written(tmp_path, **MINIMAL | fields), ["train.learning_rate=3e-4"])
    assert recipe.warm_start == recipe.train
    assert recipe.title == "1 steps, seed 5, mine"


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("${title}", "leads back to itself"),
        ("x ${notes.0}", "leads back to itself"),
        ("${student.modle}", "the recipe sets no such field"),
        ("${seeds.7}", "the recipe sets no such field"),
        ("in ${student}", "no value that can stand inside a text"),
        ("${train.steps", "closed"),
        ("${a.${name}}", "closed"),
    ],
)
def test_a_reference_that_leads_nowhere_names_its_field(tmp_path: Path, title: str, words: str) -> None:
    found = problems(tmp_path, title=title, notes=["${title}"])
    assert any(problem.startswith("title: ") and words in problem for problem in found), found


def test_references_that_double_end_soon(tmp_path: Path) -> None:
    texts = {f"x{level}": {"a": f"${{method_options.x{level + 1}.a}}" * 2} for level in range(18)}
    lists = {f"x{level}": {"a": [f"${{method_options.x{level + 1}.a}}"] * 3} for level in range(18)}
    for laughs in (texts, lists):
        (problem,) = problems(tmp_path, method_options=laughs | {"x18": {"a": "ha"}})
        assert "more than" in problem


# --- Size and depth ---------------------------------------------------------------------------------------------------


def test_anchors_that_multiply_end_soon(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, ha]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    assert "more than" in error_of(tmp_path, MINIMAL_TEXT + "\n".join(lines))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "recursive"),
        ("a: &a {b: *a}", "recursive"),
        ("[" * 100_000, "nested too deep"),
        ("a: " + "{b: " * 50_000, "nested too deep"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "more than 20 levels"),
        ("title: " + "x" * 300_000, "more than 256 KiB"),
        ("name: 1\nname: 2", "line 2: found text that is no YAML of a recipe (the key 'name' stands there twice)"),
        ("student: {layers: 1, layers: 2}", "the key 'layers' stands there twice"),
        ("seeds: [010]", "010 is read as another number than it looks like"),
        ("seeds: [1:30]", "1:30 is read as another number than it looks like"),
        ("x: 1:30.5", "1:30.5 is read as another number than it looks like"),
        ("seeds: [" + "9" * 5000 + "]", "too long for one"),
        ("a: 2024-13-45", "no YAML"),
        ("a: !!python/object:os.system x", "no YAML"),
        ("? [a]\n: b", "no YAML"),
        ("extends: {a: b}", "extends: found {'a': 'b'}"),
    ],
)
def test_a_text_that_no_recipe_is(tmp_path: Path, text: str, words: str) -> None:
    assert words in error_of(tmp_path, text)


def test_a_chain_of_many_recipes_is_an_error(tmp_path: Path) -> None:
    for number in range(30):
        written(tmp_path, f"r{number}", extends=f"r{number + 1}")
    with pytest.raises(HarnessError, match="a chain of more than 20 recipes"):
        load_recipe(str(tmp_path / "r0.yaml"))


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=true", "train.steps: found True; expected a number."),
        ("train.adam_betas=[true, 0.9]", "train.adam_betas: found True; expected a number."),
        ("seeds=[false]", "seeds: found False; expected a number."),
        ("dolly.new_tokens=true", "dolly.new_tokens: found True; expected a number."),
        ("method_options.uld.kd_weight=true", "method_options.uld.kd_weight: found True; expected a number."),
        ("variants={x: {method: gold, beta: true}}", "variants.x.beta: found True; expected a number."),
        ("train.learning_rate=.inf", "train.learning_rate: found inf; expected a number that is finite."),
        ("train.epochs=.nan", "train.epochs: found nan; expected a number that is finite."),
        ("method_options.uld.kd_weight=.nan", "method_options.uld.kd_weight: found nan"),
        ("seeds=[" + "9" * 30 + "]", "seeds.0: found a number of 100 bits; expected at most 63."),
        ("train.epochs=1e300", "train.epochs: found 1e+300; input should be less than or equal to 1000000."),
        ("train.steps=1000000001", "train.steps: found 1000000001; input should be less than"),
        ("student.model=pypi:x{1..999999999}==1#sha256=" + "0" * 64, "at most 1000 pieces"),
        ('title="a\\ud800"', "title: found the character U+D800; expected text without control characters."),
        ('title="\\e[2J"', "title: found the character U+001B"),
        ('method_options={"\\u0000": {}}', "method_options: found the character U+0000"),
    ],
)
def test_a_value_that_no_recipe_holds_is_one_line(tmp_path: Path, override: str, words: str) -> None:
    found = problems(tmp_path, override)
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize("name", ["../../evil", "/tmp/x", "..", ".hidden", "a/b", "a\\b", " x", "x" * 101, "", "a\tb"])
def test_a_name_stays_in_the_folder_of_runs(name: str) -> None:
    (problem,) = said_of(MINIMAL | {"name": name})
    assert problem.startswith("name: found ")
    assert "names a folder" in problem


@pytest.mark.parametrize("name", ["mine", "Phi-3 and Qwen (2)", "2024", "größe", "a.b+c,d=e"])
def test_an_ordinary_name_is_one(tmp_path: Path, name: str) -> None:
    recipe = validate("mine", MINIMAL | {"name": name})
    assert (tmp_path / recipe.name).resolve().parent == tmp_path.resolve()


def test_a_variants_name_is_short() -> None:
    (problem,) = said_of(MINIMAL | {"name": "mine", "variants": {"x" * 101: {"method": "gold"}}})
    assert "expected a name of its own" in problem


def test_an_override_of_many_levels_is_none(tmp_path: Path) -> None:
    for path in (".".join("a" * 50_000), ".".join("a" * 22)):
        with pytest.raises(HarnessError, match="override"):
            load_recipe("smoke", [f"{path}=1", f"{path}=2"])


def test_an_override_of_bytes_that_are_no_text_is_none() -> None:
    with pytest.raises(HarnessError, match="override title"):
        load_recipe("smoke", ["title=\udcff"])  # as Python hands down bytes that are no UTF-8
