"""The harness from Python: what the command line prints, as objects and data frames."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import AutoModelForCausalLM

import harness
from harness import api, cli, verbs
from harness.base.errors import HarnessError
from tests.conftest import Command
from tests.harness.broken import replace_loss


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    evaluation = {"references": ["warm_start"]}
    path.write_text(yaml.safe_dump(tiny_recipe | {"methods": ["control", "uld"], "evaluation": evaluation}))
    return path


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.stages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def begin(self, stage: str, total: int) -> None:
        self.stages.append(stage)

    def advance(self, done: int, loss: float | None = None) -> None: ...

    def finish(self) -> None: ...


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[api.Run, Told]:
    """Two methods on two tasks, two seeds of one of them."""
    told = Told()
    recipe = api.load_recipe(recipe_file, "tasks=[dolly,gsm8k]", "baseline_seeds=same", gsm8k={"seeds": [0, 1]})
    return api.run(recipe, told, runs=tmp_path_factory.mktemp("runs")), told


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_overrides_as_text_and_as_values_are_the_same() -> None:
    as_text = api.load_recipe(
        "quickstart", "train.steps=7", "methods=[sft,uld]", "train.learning_rate=3e-5", "title=É 🌈"
    )
    values: dict[str, Any] = {"train": {"steps": 7, "learning_rate": 3e-5}, "methods": ("sft", "uld"), "title": "É 🌈"}
    assert api.load_recipe("quickstart", **values) == as_text
    assert as_text.train.steps == 7
    assert as_text.title == "É 🌈"
    dotted = api.load_recipe("quickstart", "methods=[sft,uld]", **{"train.steps": 7, "train.learning_rate": 3e-5})
    assert dotted.train == as_text.train
    assert dotted.train.batch_size == api.load_recipe("quickstart").train.batch_size


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: api.load_recipe("quikstart"), 'Did you mean "quickstart"?'),
        (lambda: api.load_recipe("quickstart", train={"stps": 1}), 'Did you mean "train.steps"?'),
        (lambda: api.load_recipe("quickstart", seeds=object()), "override seeds: found <object"),
        (lambda: api.plan(api.load_recipe("quickstart", data={"root": "/nowhere"})), "no folder /nowhere"),
        (lambda: api.open_run("/nowhere"), "no run.json in /nowhere"),
    ],
)
def test_bad_input_is_one_error(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(HarnessError, match=re.escape(words)):
        call()


# --- plans and runs ---------------------------------------------------------------------------------------------------


def test_a_plan_says_what_would_run(recipe_file: Path, finished: tuple[api.Run, Told], tmp_path: Path) -> None:
    made = api.plan(api.load_recipe(recipe_file, tasks=["dolly"]))
    assert [cell.name for cell in made.cells] == ["dolly · control · seed 0", "dolly · uld · seed 0"]
    assert len(api.missing_stages(made, tmp_path)) == len(made.stages())
    assert api.missing_stages(made, finished[0].folder.parent) == []


def test_a_run_tells_its_stages(finished: tuple[api.Run, Told]) -> None:
    run, told = finished
    assert "warm start of the student · dolly · seed 0" in told.stages
    assert len(told.stages) == len(set(told.stages))
    assert run.failures == []


def test_the_numbers_are_those_that_the_command_line_prints(
    finished: tuple[api.Run, Told], recipe_file: Path, harness: Command
) -> None:
    run = finished[0]
    asked = ["tasks=[dolly,gsm8k]", "baseline_seeds=same", "gsm8k.seeds=[0,1]", "--runs", run.folder.parent]
    printed = harness("run", f"recipe={recipe_file}", *asked).out
    assert str(run.folder) in printed  # the same run, and nothing was made again
    assert "to run" not in printed
    table = run.table().set_index("method")
    assert list(table.index) == ["warm start", "control", "uld"]
    for method in table.index:
        assert f"{table.loc[method, 'dolly.bits_per_byte.mean']:.3f}" in _line(printed, method)
        assert table.loc[method, "gsm8k.bits_per_byte.n"] == 2
    written = pd.read_csv(run.folder / "table.csv", keep_default_na=False, na_values=[""])
    assert list(written.columns) == list(run.table().columns)


def _line(printed: str, method: str) -> str:
    return next(line for line in printed.splitlines() if line.strip().startswith(f"{method} "))


def test_the_frames_agree_with_one_another(finished: tuple[api.Run, Told]) -> None:
    run = finished[0]
    results, items = run.results(), run.items()
    assert len(results) == 3 * (2 + 2 * 3)  # rows x (metrics of Dolly, and of GSM8K with two seeds)
    of_items = items.groupby(["cell", "metric"]).apply(
        lambda part: (part["value"] * part["weight"]).sum() / part["weight"].sum(), include_groups=False
    )
    for row in results.itertuples():
        assert of_items[row.cell, row.metric] == pytest.approx(row.value)
        assert (items["cell"].eq(row.cell) & items["metric"].eq(row.metric)).sum() == row.n_items == 3
    results["value"] = 0.0  # a copy: whoever changes a frame changes no number of the run
    assert run.results()["value"].ne(0).any()


def test_a_cell_has_answers_scores_steps_traces_and_a_student(finished: tuple[api.Run, Told]) -> None:
    cell = finished[0].cell(method="uld", task="gsm8k", seed=0)
    answers, scores, steps = cell.answers(), cell.scores(), cell.steps()
    assert list(answers["id"]) == list(scores.index) == ["gsm8k/test/0", "gsm8k/test/1", "gsm8k/test/2"]
    assert {"prompt", "output", "stop", "tokens"} <= set(answers.columns)
    assert set(scores.columns) == {"exact_match_strict", "exact_match_flexible"}
    assert list(steps["step"]) == [1, 2]
    assert steps["kd_0"].gt(0).all()
    trace = cell.traces()[0]
    assert trace["method"] == "uld"
    assert len(trace["student"]["tokens"]) == len(trace["kd"])
    assert AutoModelForCausalLM.from_pretrained(cell.student()).config.vocab_size > 0
    assert finished[0].cell("uld", "gsm8k", 1).traces() == []
    assert finished[0].cell("warm start", "dolly").answers().shape == (3, 7)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"method": "uld"},
            "found 3 of them; expected the task and seed of one. There are uld · dolly · seed 0; uld · ",
        ),
        (
            {"method": "udl", "task": "dolly"},
            "found none; expected a cell of the run. There are warm start, control, uld",
        ),
        ({"method": "uld", "task": "dolly", "seed": 1}, "found none"),
    ],
)
def test_a_cell_that_is_not_one(finished: tuple[api.Run, Told], asked: dict[str, Any], words: str) -> None:
    with pytest.raises(HarnessError, match=re.escape(words)):
        finished[0].cell(**asked)


def test_a_row_that_trains_nothing_has_no_student(finished: tuple[api.Run, Told]) -> None:
    with pytest.raises(HarnessError, match="found a row that trains none"):
        finished[0].cell("warm start", "dolly").student()


def test_a_removed_student_is_said(recipe_file: Path, finished: tuple[api.Run, Told]) -> None:
    runs = finished[0].folder.parent
    run = api.run(api.load_recipe(recipe_file, "tasks=[dolly]", "seeds=[3]", keep_students=False), runs=runs)
    with pytest.raises(HarnessError, match=r"removed once they were evaluated; .* keep_students=true"):
        run.cell("uld").student()
    assert len(run.cell("uld").steps()) == 2


def test_a_report_anywhere_and_a_run_opened_again(finished: tuple[api.Run, Told], tmp_path: Path) -> None:
    run = finished[0]
    again = api.open_run(run.folder.name, runs=run.folder.parent)
    pd.testing.assert_frame_equal(again.table(), run.table())
    written = again.report(tmp_path / "elsewhere")
    assert {file.parent for file in written.files} == {tmp_path / "elsewhere"}
    assert "uld" in (tmp_path / "elsewhere" / "report.md").read_text()


def test_two_runs_are_compared(finished: tuple[api.Run, Told], recipe_file: Path) -> None:
    run = finished[0]
    other = api.run(api.load_recipe(recipe_file, "tasks=[dolly]", "methods=[control]"), runs=run.folder.parent)
    differing = {difference.name for difference in api.compare(run, other).settings}
    assert {"methods", "tasks"} <= differing


def test_failures_are_rows_and_not_exceptions(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.uld import ULD

    replace_loss(monkeypatch, ULD, lambda self, chunk: 1 / 0)
    run = api.run(api.load_recipe(recipe_file, tasks=["dolly"]), runs=tmp_path)
    assert [failure.reason.partition(" (")[0] for failure in run.failures] == ["ZeroDivisionError: division by zero"]
    assert api.open_run(run.folder).failures == run.failures
    results = run.results().set_index("method")
    assert set(results.loc["uld", "status"]) == {"failed"}
    assert set(results.loc["control", "status"]) == {"done"}
    with pytest.raises(HarnessError, match="answers of dolly · uld · seed 0: found ZeroDivisionError"):
        run.cell("uld").answers()


def test_teachers_alone_make_a_run_without_a_table(recipe_file: Path, tmp_path: Path) -> None:
    recipe = api.load_recipe(recipe_file, "stages=[teacher]", tasks=["dolly"])
    run = api.run(recipe, runs=tmp_path)
    assert run.failures == []
    assert api.missing_stages(api.plan(recipe), tmp_path) == []
    with pytest.raises(HarnessError, match=r"no run\.json"):
        run.table()


# --- warnings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution whose method can't be imported."""
    information = tmp_path / "site" / "broken-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[ctkd_harness.methods]\nnew = broken_module_of_mine:New\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("broken_plug_in")
def test_a_plug_in_that_fails_is_said_once_in_the_log_and_in_the_report(
    recipe_file: Path, tmp_path: Path, harness: Command
) -> None:
    words = "plug-in new (broken_module_of_mine:New) can't be used: No module named 'broken_module_of_mine'"
    asked = ("run", f"recipe={recipe_file}", "tasks=[dolly]", "methods=[control]", "--runs", tmp_path / "runs")
    done = harness(*asked)
    assert done.code == 0
    assert done.err.count(words) == 1
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/run.json"))
    assert (folder / "report.md").read_text().count(words) == 1
    told = Told()
    api.run(api.load_recipe(recipe_file, tasks=["dolly"], methods=["control"]), told, runs=tmp_path / "runs")
    assert sum(words in message for message in told.messages) == 1
    wrong = harness("plan", f"recipe={recipe_file}", "methods=[new]")
    assert wrong.code == 2
    assert words in wrong.err


def test_what_an_earlier_call_heard_stays_in_the_record(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that fell back to eager, say: the second call only reads what the first one trained."""
    import warnings

    from harness.run.runner import Runner

    own = Runner.run

    def warned(self: Runner, *given: Any) -> None:
        warnings.warn("loss runs uncompiled", stacklevel=1)
        own(self, *given)

    recipe = api.load_recipe(recipe_file, tasks=["dolly"], methods=["control"])
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", warned)
        api.run(recipe, runs=tmp_path)
    run = api.run(recipe, runs=tmp_path)
    assert "loss runs uncompiled" in json.loads((run.folder / "run.json").read_text())["notes"]
    assert run.recorded.record["warnings"] == ["loss runs uncompiled"]


def test_the_command_line_is_written_on_the_api() -> None:
    """Whatever a verb does, a notebook can do too."""
    own = [path for path in Path(verbs.__file__).parent.glob("*.py") if path.name != "clusters.py"]  # of scripts alone
    files = [Path(cli.__file__), *own]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    found = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in found if name and name.startswith(("harness.", "methods", "reports"))}
    beside = {name for name in ours if not name.startswith(("harness.terminal.", "harness.verbs."))}
    assert beside == {"harness.api", "harness.base.errors", "harness.base.stopping"}


def test_the_package_gives_the_api_when_asked() -> None:
    assert harness.api is api
    with pytest.raises(AttributeError, match="no attribute 'apj'"):
        harness.apj  # noqa: B018


def test_version_and_commit(harness: Command) -> None:
    done = harness("--version")
    assert done.code == 0
    assert done.out.startswith(f"harness {api.__version__}")
    assert api.commit()[:40] in done.out
