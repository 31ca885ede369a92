"""A task that a recipe makes itself: its rows, prompts, metrics and identities, and what is wrong with data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.base.errors import HarnessError
from harness.evaluate.programs.sandbox import probe
from harness.plan.builder import make_plan
from harness.recipe.load import RecipeError, load_recipe
from harness.recipe.schema import Recipe
from harness.tasks.custom import Custom, CustomSettings
from harness.tasks.files import shortfalls
from tests.conftest import Command

ROWS = [{"q": f"{n} and 1?", "a": f"It is {n + 1}.", "hint": "count"} for n in range(6)]
COLUMNS = {"prompt": "q", "response": "a"}


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path.name


def made(folder: Path, train: list[Any], test: list[Any] | None = None, **settings: Any) -> Custom:
    files = {"train": lines(folder / "train.jsonl", train), "test": lines(folder / "test.jsonl", test or train)}
    return Custom(CustomSettings(**{**files, "columns": COLUMNS, **settings}), folder, "mine")


def scored(task: Custom, folder: Path, *answers: str) -> list[float]:
    """What answers to the first items get."""
    keys = [request.key for request in task.requests()]
    said = dict(zip(keys, [*answers, *[""] * len(keys)], strict=False))
    (values,) = task.score({"somebody": said}, folder, unsafe=False)["somebody"].values.values()
    return [values[key] for key in keys[: len(answers)]]


# --- Rows and prompts -------------------------------------------------------------------------------------------------


def test_a_template_takes_any_column_and_braces_of_texts_stay(tmp_path: Path) -> None:
    rows = [{"q": "what is {x}?", "a": 10**400, "hint": 0.5}]
    task = made(tmp_path, rows, template="{{Hint}}: {hint}\n{prompt} {q}")
    (example,) = task.training_examples()
    assert example.prompt == "{Hint}: 0.5\nwhat is {x}? what is {x}?"
    assert example.response == f"1{'0' * 400}"
    assert (example.id, example.source) == ("mine/train/0", f"{tmp_path}/train.jsonl line 1")


def chat(*turns: str, system: str = "") -> dict[str, Any]:
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    return {"talk": [*([{"role": "system", "content": system}] if system else []), *said]}


def test_a_chat_is_what_came_before_its_last_answer(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello"), chat("Hi", "Hello", system="Be kind."), chat("Hi", "Hello", "And you?", "Well")]
    task = made(tmp_path, rows, messages="talk", template="{prompt}")
    assert [(one.prompt, one.response) for one in task.training_examples()] == [
        ("Hi", "Hello"),
        ("Be kind.\n\nHi", "Hello"),
        ("User: Hi\n\nAssistant: Hello\n\nUser: And you?", "Well"),
    ]


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ({"q": "x"}, {}, r"line 2, column 'a': found no such column \(there are q\)"),
    ({"q": "x", "a": None}, {}, "line 2, column 'a': found None; expected a text"),
    ({"q": "x", "a": True}, {}, "line 2, column 'a': found True; expected a text"),
    ({"q": "x", "a": float("nan")}, {}, "line 2, column 'a': found nan"),
    ({"q": "x", "a": " "}, {}, "line 2, column 'a': found ' '; expected a response"),
    ({"q": "", "a": "y"}, {}, "line 2: found an empty prompt"),
    ({"q": "\ud800", "a": "y"}, {}, "line 2, column 'q': found half a character"),
    ({"q": "x", "a": ["y"]}, {}, "line 2, column 'a': found .*expected one text"),
    ({"q": "x", "a": "y"}, {"template": "{prompt} {why}"}, "column 'why': found no such column"),
    (chat("Hi"), {"messages": "talk"}, "line 2, column 'talk': found .*expected messages"),
    (chat("Hi", " "), {"messages": "talk"}, "line 2, column 'talk': found an empty last answer"),
    (chat("Hi", "you", "there"), {"messages": "talk"}, "found roles user, assistant, user"),
    ({"talk": "Hi"}, {"messages": "talk"}, "column 'talk': found 'Hi'"),
    ({"talk": [{"role": "user", "content": 3}, {}]}, {"messages": "talk"}, "column 'talk', message 1: found 3"),
]


@pytest.mark.parametrize(("row", "settings", "said"), BAD)
def test_a_row_that_is_wrong_is_named(row: Any, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Also where fewer rows are asked for than come before it."""
    good = chat("Hi", "Hello") if "messages" in settings else {"q": "x", "a": "y", **({"why": 1} if settings else {})}
    with pytest.raises(HarnessError, match=said):
        made(tmp_path, [good, row], train_items=1, **settings).training_examples()


BAD_TESTS: list[tuple[str, Any, str]] = [
    ("numeric_match", {"q": "x", "a": "none"}, "line 1, the response: found 'none'; expected a text with a number"),
    ("numeric_match", {"q": "x", "a": ["1", "2"]}, "expected one text"),
    ("rouge_l", {"q": "x", "a": ["y", ""]}, "expected a response, not an empty one"),
    ("code", {"q": "x", "a": "y", "entry_point": "f(x)", "inputs": [[1]]}, "column 'entry_point': found 'f.x.'"),
    (
        "code",
        {"q": "x", "a": "y", "entry_point": "f", "inputs": [1]},
        "column 'inputs': found .1.; expected a list",
    ),
    ("code", {"q": "x", "a": "y", "entry_point": "f"}, "column 'inputs': found no such column"),
    (
        "code",
        {"q": "x", "a": "y", "entry_point": "f", "inputs": [[float("nan")]]},
        "expected arguments that JSON holds",
    ),
]


@pytest.mark.parametrize(("metric", "row", "said"), BAD_TESTS)
def test_a_test_row_that_its_metric_can_not_read_is_named(metric: str, row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=said):
        made(tmp_path, ROWS, [row], metric=metric).requests()


# --- Metrics ----------------------------------------------------------------------------------------------------------


def test_texts_are_compared_with_each_reference(tmp_path: Path) -> None:
    tests = [{"q": "x", "a": ["a big cat", "one dog"]}, {"q": "y", "a": "so"}]
    task = made(tmp_path, ROWS, tests, metric="exact_match", metric_name="same")
    assert [metric.name for metric in task.metrics] == ["same"]
    assert scored(task, tmp_path, " one dog\n", "So") == [100, 0]
    # of "one big cat", two of three words in order are in "a big cat": precision and recall 2/3
    assert scored(made(tmp_path, ROWS, tests), tmp_path, "one big cat", "so") == pytest.approx([200 / 3, 100])


def test_numbers_are_compared_as_lm_eval_finds_them(tmp_path: Path) -> None:
    tests = [{"q": "x", "a": a} for a in ("It is 1,024.", "3 less than 5: -2", "$7", 8)]
    task = made(tmp_path, ROWS, tests, metric="numeric_match")
    assert scored(task, tmp_path, "So 3 and 1024", "it is -2.", "7 or 8", "It is 8 dollars.") == [100, 100, 0, 100]


@pytest.mark.slow
@pytest.mark.skipif(not probe().available, reason="no sandbox")
def test_functions_are_run_on_the_inputs_of_their_row(tmp_path: Path) -> None:
    solution = "```python\ndef add(a, b):\n    return a + b\n```"
    row = {"q": "Add.", "a": solution, "entry_point": "add", "inputs": [[1, 2], [3, 4]]}
    task = made(tmp_path, ROWS, [row] * 4, metric="code")
    wrong, leaves = "def add(a, b):\n    return 3", "import os\nos._exit(0)\ndef add(a, b): return 3"
    assert scored(task, tmp_path, solution, "def add(a, b): return b + a", wrong, leaves) == [100, 100, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif(not probe().available, reason="no sandbox")
@pytest.mark.parametrize("wrong", ["def add(a, b): return a + c", "def sum(a, b): return a", "import os\nos._exit(1)"])
def test_a_reference_that_does_not_run_is_found_before_anything_is_trained(wrong: str, tmp_path: Path) -> None:
    rows = [{"q": "Add.", "a": a, "entry_point": "add", "inputs": [[1, 2]]} for a in ("def add(a, b): return a", wrong)]
    task = made(tmp_path, ROWS, rows, metric="code")
    with pytest.raises(
        HarnessError, match=r"test\.jsonl line 2, the response: found .*expected Python that defines add"
    ):
        task.warnings(unsafe=False)


def test_without_a_metric_nothing_is_scored(tmp_path: Path) -> None:
    task = made(tmp_path, ROWS, metric="none")
    assert task.metrics == ()
    assert task.score({"somebody": {}}, tmp_path, unsafe=False)["somebody"].values == {}


# --- What is said, and what decides a result --------------------------------------------------------------------------


def test_origin_and_licence_are_the_recipes_words(tmp_path: Path) -> None:
    task = made(tmp_path, ROWS, [*ROWS[:2], {"q": "new", "a": "1"}], origin="our desk", licence="CC BY 4.0")
    said = " ".join(task.protocol())
    assert "origin: our desk; licence: CC BY 4.0" in said
    assert "2 of the 3 test prompts are training prompts too" in said
    assert task.source == "our desk, CC BY 4.0"
    assert "origin: not given; licence: not given" in " ".join(made(tmp_path, ROWS).protocol())


def test_what_is_only_printed_decides_nothing(tmp_path: Path) -> None:
    plain = made(tmp_path, ROWS)
    lines(tmp_path / "copy.jsonl", ROWS)
    printed = made(tmp_path, ROWS, origin="x", licence="y", task="custom")
    moved = Custom(CustomSettings(train="copy.jsonl", test="copy.jsonl", columns=COLUMNS), tmp_path, "other")
    for other in (printed, moved):
        assert other.identity() == plain.identity()
        assert other.training_identity() == plain.training_identity()
        assert (other.training_digest(), other.test_digests()) == (plain.training_digest(), plain.test_digests())
    asked = made(tmp_path, ROWS, template="Q: {prompt}")
    assert asked.identity() != plain.identity()
    assert asked.training_identity() != plain.training_identity()
    judged = made(tmp_path, ROWS, metric="exact_match")
    assert judged.identity() == plain.identity()
    assert judged.scoring_identity() != plain.scoring_identity()


# --- In a recipe ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks of its own, of files in the working folder."""
    monkeypatch.chdir(tmp_path)
    train, test = lines(tmp_path / "train.jsonl", ROWS), lines(tmp_path / "test.jsonl", ROWS[:3])
    (tmp_path / "chat.json").write_text(json.dumps([chat("Hi", "Hello"), chat("Who?", "Me")]))
    few = {"task": "custom", "new_tokens": 4}
    own = {
        "sums": {**few, "train": train, "test": test, "columns": COLUMNS, "metric_name": "overlap"},
        "talks": {**few, "train": "chat.json", "test": "chat.json", "messages": "talk", "metric": "none"},
    }
    values = tiny_recipe | own | {"tasks": list(own), "methods": ["control", "uld"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "mine.yaml"


@pytest.mark.slow
def test_several_tasks_of_a_recipe_train_and_are_scored(recipe: Path, harness: Command) -> None:
    done = harness("run", f"recipe={recipe}", "sums.train_items=4")
    assert done.code == 0, done.err
    assert "overlap" in done.out
    assert "files that the recipe names" in done.out
    assert "samples that the project ships" not in done.out
    (found,) = (recipe.parent / "runs").glob("mine-*/run.json")
    record = json.loads(found.read_text())
    assert {(cell["task"], cell["method"]) for cell in record["cells"]} >= {("sums", "uld"), ("talks", "control")}
    again = Recipe.model_validate(record["recipe"])
    assert again.settings_of("sums").train_items == 4
    listed = harness("data", f"recipe={recipe}").out
    assert "sums: origin not given, licence not given." in listed
    assert "written for this project" not in listed


def test_renaming_a_task_makes_no_stage_new(recipe: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    renamed = recipe.with_name("renamed.yaml")
    values["additions"] = values.pop("sums")
    renamed.write_text(yaml.safe_dump(values | {"tasks": ["additions"]}))
    before, after = (
        {(stage.kind, stage.identity) for stage in make_plan(load_recipe(str(path), more)).stages()}
        for path, more in ((recipe, ["tasks=[sums]"]), (renamed, []))
    )
    assert {stage for stage in after if stage[0] == "teacher"} == {stage for stage in before if stage[0] == "teacher"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sums.trian=x", 'sums.trian: unknown key .* Did you mean "sums.train"'),
        ("sums.columns.promt=x", 'sums.columns.promt: unknown key .* Did you mean "sums.columns.prompt"'),
        ("sums.task=costum", "sums.task: found 'costum'"),
        ("sums.train_items=true", "sums.train_items: found True; expected a number"),
        ("sums.test=null", "sums: found .*set train and test"),
        ("sums.template=Answer!", "template names no column"),
        ("sums.metric=bleu", "sums.metric: found 'bleu'"),
        ("sums.metric_name=My Metric", "sums.metric_name: found 'My Metric'"),
        ("tasks=[sum]", 'tasks.0: unknown task .sum.. Did you mean "sums"'),
        ("my-sums={task: custom, train: a, test: b}", "my-sums: found a task of this name"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(override: str, said: str, recipe: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(recipe), [override])


def test_something_has_to_be_measured(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"talks\.metric: found 'none' beside evaluation.bits_per_byte=false"):
        load_recipe(str(recipe), ["evaluation.bits_per_byte=false"])


def test_what_is_missing_is_said_by_a_plan_and_by_the_listing(recipe: Path, harness: Command) -> None:
    task = load_recipe(str(recipe), ["sums.test=none.csv"]).task("sums")
    assert list(shortfalls({"sums": task})) == ["sums: no rows of test, as the data folder has no none.csv"]
    fewer = load_recipe(str(recipe), ["sums.train_items=9"]).task("sums")
    assert [line.partition(":")[0] for line in shortfalls({"sums": fewer})] == ["sums.train_items=9"]
    listed = harness("data", f"recipe={recipe}", "sums.columns.prompt=Q", "sums.train_items=9")
    assert (listed.code, "no such column" in " ".join(listed.out.replace("│", " ").split())) == (0, True)
    planned = harness("plan", f"recipe={recipe}", "sums.test=none.csv")
    assert planned.code == 2
    assert "none.csv: found no such file" in planned.err
