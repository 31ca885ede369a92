"""From trials to a lock, from a lock to a recipe and its report: on results that are written by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import api
from harness.base.errors import HarnessError
from harness.data.rows import held_out
from harness.evaluate.gsm8k import final_number
from harness.plan.builder import make_plan
from harness.plan.stages import Stage
from harness.plan.tuning import TuningPlan, TuningSettings, make_tuning_plan
from harness.recipe.load import recipe_from, validate
from harness.recipe.lock import Lock, edges_line, lock_beside, read_lock, with_lock, write_lock
from harness.recipe.schema import Recipe
from harness.results.readings import note_readings, reading_line
from harness.results.tuning import lock_of, tuning_frame, tuning_line, unfit
from harness.store.artefacts import ANSWERS, BITS, Answer, Bits, Failure
from harness.store.store import Store
from reports.tuning import tuning_tables

ROWS = ["control", "fkd", "uld"]
Loader = Callable[..., Recipe]


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> Loader:
    def load(**fields: Any) -> Recipe:
        values = copy.deepcopy(tiny_recipe) | {"name": "tiny", "methods": ROWS}
        for task in ("dolly", "gsm8k"):
            values[task] = values[task] | {"train_items": 20}
        return validate("tiny", values | fields)

    return load


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def put(store: Store, stage: Stage, bits_per_byte: float) -> None:
    """A result of one item."""
    with store.create(stage.kind, stage.identity, {}) as folder:
        BITS.write(folder, [Bits("x", 8 * bits_per_byte, 8)])


def tuned(
    store: Store, recipe: Recipe, found: Mapping[str, list[list[float]]], failures: Mapping[str, Failure] | None = None
) -> tuple[TuningPlan, Lock]:
    """A lock of results by row: of each setting the bits per byte on each task; NaN for none."""
    plan = make_tuning_plan(recipe, TuningSettings(3))
    for trial in plan.trials:
        value = found[trial.row][trial.number][list(plan.tasks).index(trial.cell.task)]
        if math.isfinite(value):
            put(store, trial.dev, value)
    return plan, lock_of(plan, store, failures or {})


FOUND = {
    "control": [[1.0, 2.0], [0.9, 2.1], [1.5, 1.5]],  # all the same in the mean: its own
    "fkd": [[1.0, 2.0], [0.8, 1.8], [0.8, 1.8]],  # of two the earlier
    "uld": [[3.0, 3.0], [0.1, math.nan], [2.0, 3.0]],  # what failed on a task can't win
}


def test_the_least_mean_over_tasks_wins_and_ties_go_to_the_recipes_own(store: Store, recipe: Loader) -> None:
    plan, lock = tuned(store, recipe(), FOUND)
    assert {row: one.winner for row, one in lock.rows.items()} == {"control": 0, "fkd": 1, "uld": 2}
    assert set(lock.tuned) == {"fkd", "uld"}
    assert (lock.budget, lock.seed, lock.share, lock.dev_rows) == (3, 0, 0.5, 2)
    assert lock.rows["uld"].trials[1].failed == "gsm8k: no number"
    point = next(trial.point for trial in plan.trials if (trial.row, trial.number) == ("fkd", 1))
    weights = [lock.tuned["fkd"][name] for name in ("ce_weight", "kd_weight")]
    assert weights == pytest.approx([1 - point["kd_share"], point["kd_share"]])
    assert point["rate"] == 1
    assert "train" not in lock.tuned["fkd"]  # the recipe's rate, and all steps


def test_settings_may_be_judged_by_answers(store: Store, recipe: Loader) -> None:
    """The most wins; what answers are worth is counted by hand here: one of two sums, then both."""
    asked = recipe(tasks=["gsm8k"], methods=["uld"])
    plan = make_tuning_plan(asked, TuningSettings(3, metric="score"))
    task = plan.tasks["gsm8k"]
    first, second = held_out(task.training_examples(), 2, task.question)[1]
    number = final_number(first.response)
    said = [[number, "none"], [f"it is {number}.", second.response], [first.response, second.response]]
    for trial, outputs in zip(plan.trials, said, strict=True):
        assert (trial.dev.kind, trial.dev.inputs) == ("answers", {"student": trial.cell.student})
        with store.create("answers", trial.dev.identity, {}) as folder:
            answers = [
                Answer(one.id, None, "", str(text), 1, "eos", False)
                for one, text in zip((first, second), outputs, strict=True)
            ]
            ANSWERS.write(folder, answers)
    lock = lock_of(plan, store, {})
    assert [trial.dev for trial in lock.rows["uld"].trials] == [{"gsm8k": 50.0}, {"gsm8k": 100.0}, {"gsm8k": 100.0}]
    assert (lock.rows["uld"].winner, lock.metric) == (1, "score")
    record: Any = {"recipe": with_lock(asked, lock).model_dump(mode="json")}
    columns = ["method", "task", "metric", "role", "value"]
    results = [
        ("uld", "gsm8k", "bits_per_byte", "student", 1.5),
        ("uld", "gsm8k", "exact_match_strict", "student", 40.0),
    ]
    frame = tuning_frame(record, pd.DataFrame(results, columns=columns))
    assert [value for value in frame["test"] if math.isfinite(value)] == [40.0]
    ((_, explained, _),) = tuning_tables(frame)
    assert "in percent" in explained
    assert "by the score of answers to 2 training rows" in tuning_line(record)
    assert unfit(lock, asked) == []


def test_what_can_not_be_judged_by_answers_is_refused(recipe: Loader) -> None:
    with pytest.raises(HarnessError, match=r"metric: found score, which codem can't say of answers to training rows"):
        make_tuning_plan(recipe(tasks=["codem", "gsm8k"]), TuningSettings(3, metric="score"))
    wrong: Any = "accuracy"
    with pytest.raises(HarnessError, match=r"metric: found 'accuracy'; expected one of bits_per_byte, score"):
        TuningSettings(3, metric=wrong)


def test_a_row_without_any_number_is_an_error_that_says_why(store: Store, recipe: Loader) -> None:
    asked = recipe(tasks=["dolly"])
    failed = make_tuning_plan(asked, TuningSettings(3)).trials[0].dev.identity
    nothing = {"control": [[math.nan]] * 3, "fkd": [[1.0]] * 3, "uld": [[1.0]] * 3}
    with pytest.raises(HarnessError, match=r"tuning of control: found dolly: it broke; expected one trial at least"):
        tuned(store, asked, nothing, {failed: Failure("training", "it broke")})


def test_a_lock_is_what_was_written_and_makes_a_recipe(store: Store, recipe: Loader, tmp_path: Path) -> None:
    _, lock = tuned(store, recipe(), FOUND)
    path = tmp_path / "tiny.lock.json"
    write_lock(path, lock)
    assert read_lock(path) == lock
    made = api.tuned(recipe(seeds=[0, 1], title="Another"), path)
    assert made.tuned == lock.tuned
    assert made.dev.rows == 2
    fkd = next(cell.objective for cell in make_plan(made).cells if cell.objective.name == "fkd")
    assert fkd.parts[0].weight == lock.tuned["fkd"]["kd_weight"]
    again = recipe_from("tiny", made.model_dump(mode="json"))  # as a run's record has it
    assert [s.identity for s in make_plan(again).stages()] == [s.identity for s in make_plan(made).stages()]


def test_a_lock_of_another_recipe_is_refused_unless_told(store: Store, recipe: Loader) -> None:
    _, lock = tuned(store, recipe(), FOUND)
    assert unfit(lock, recipe()) == []
    assert unfit(lock, recipe(methods=["uld"])) == []
    other = recipe(methods=["uld", "cdm"], method_options={"uld": {"kd_weight": 0.7}})
    assert unfit(lock, other) == ["uld: the recipe changed", "cdm was not tuned"]
    with pytest.raises(HarnessError, match=r"found otherwise: uld: the recipe changed; cdm was not tuned; expected"):
        api.tuned(other, lock)
    assert api.tuned(other, lock, stale=True).tuned == lock.tuned


@pytest.mark.parametrize(
    ("part", "said"), [("data", "the training rows changed"), ("code", "the method's code changed")]
)
def test_data_and_code_are_held_too(store: Store, recipe: Loader, part: str, said: str) -> None:
    _, lock = tuned(store, recipe(), FOUND)
    digests = {task: one | {part: "other"} for task, one in lock.rows["fkd"].digests.items()}
    rows = {**lock.rows, "fkd": lock.rows["fkd"].model_copy(update={"digests": digests})}
    assert unfit(lock.model_copy(update={"rows": rows}), recipe()) == [f"fkd: {said}"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}'])
def test_a_file_that_is_no_lock_is_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.lock.json"
    path.write_text(text)
    with pytest.raises(HarnessError, match=r"x\.lock\.json: found what is no lock"):
        read_lock(path)


def test_where_a_lock_is() -> None:
    assert lock_beside("studies/mine.yaml") == Path("studies/mine.lock.json")
    assert lock_beside("quickstart") == Path("quickstart.lock.json")


def test_the_report_shows_every_setting_and_the_winners_test(store: Store, recipe: Loader) -> None:
    _, lock = tuned(store, recipe(), FOUND)
    record: Any = {"recipe": with_lock(recipe(), lock).model_dump(mode="json")}
    results = pd.DataFrame(
        [
            (method, task, "bits_per_byte", "student", value)
            for method, values in {"control": (1.0, 3.0), "fkd": (0.5, 1.5), "uld": (2.0, 2.0)}.items()
            for task, value in zip(("dolly", "gsm8k"), values, strict=True)
        ],
        columns=["method", "task", "metric", "role", "value"],
    )
    frame = tuning_frame(record, results)
    assert len(frame) == 9
    chosen = frame[frame["chosen"]].set_index("row")
    assert dict(chosen["dev"]) == pytest.approx({"control": 1.5, "fkd": 1.3, "uld": 2.5})
    assert dict(chosen["test"]) == pytest.approx({"control": 2.0, "fkd": 1.0, "uld": 2.0})
    ((heading, _, shown),) = tuning_tables(frame)
    assert heading == "Settings that were tried"
    assert list(shown["dev"])[:4] == ["1.5000", "1.5000", "1.5000", "1.5000"]
    assert list(shown["test"]).count("") == 6
    assert "–" in set(shown["dev"])
    assert "best of 3 that were tried, with seed 0 and 50 % of the steps" in tuning_line(record)
    bare: Any = {"recipe": recipe().model_dump(mode="json")}
    assert tuning_line(bare) == ""
    assert tuning_tables(tuning_frame(bare, results)) == []


# --- Readings of test sets --------------------------------------------------------------------------------------------


def read(store: Store, recipe: Recipe) -> dict[str, int]:
    """Store a result of each task, and note it."""
    plan = make_plan(recipe)
    for cell in plan.cells:
        if cell.bits is not None and store.find("bits", cell.bits.identity) is None:
            put(store, cell.bits, 1.0)
    return note_readings(plan, store)


def test_other_settings_are_another_reading_and_more_seeds_are_none(store: Store, recipe: Loader) -> None:
    assert note_readings(make_plan(recipe()), store) == {}  # nothing is stored
    first = {"dolly": 1, "gsm8k": 1}
    assert read(store, recipe()) == first
    assert read(store, recipe()) == first
    assert read(store, recipe(seeds=[0, 1], title="Again", primary=["dolly.bits_per_byte"])) == first
    assert read(store, recipe(tasks=["dolly"])) == {"dolly": 1}
    assert read(store, recipe(method_options={"uld": {"kd_weight": 0.7}})) == {"dolly": 2, "gsm8k": 2}
    only = copy.deepcopy(recipe().model_dump(mode="json")["dolly"]) | {"new_tokens": 9}
    assert read(store, recipe(dolly=only)) == {"dolly": 3, "gsm8k": 1}
    assert read(store, recipe(name="another")) == first
    assert read(store, recipe()) == first


def test_a_second_reading_is_said() -> None:
    said: Any = {"readings": {"dolly": 1, "gsm8k": 2, "codem": 11, "countdown": 23}}
    line = reading_line(said)
    assert "gsm8k's is the 2nd, codem's is the 11th, countdown's is the 23rd" in line
    assert "dolly" not in line
    once: Any = {"readings": {"dolly": 1}}
    before: Any = {}
    assert (reading_line(once), reading_line(before)) == ("", "")


def test_winners_at_the_edge_of_what_was_tried_are_told() -> None:
    """Of settings with two values every winner is at an edge, which says nothing."""

    def row(winner: int, *rates: float) -> dict[str, Any]:
        trials = [
            {"setting": {"rate": rate, "kd_share": 0.5 + 0.4 * (place % 2)}, "dev": {}}
            for place, rate in enumerate(rates)
        ]
        return {"trials": trials, "winner": winner, "digests": {}}

    rows = {"a": row(2, 1, 0.5, 2), "b": row(2, 1, 0.5, 2), "c": row(0, 1, 0.5, 2), "d": row(1, 1, 0.5, 2)}
    fields = {"recipe": "r", "budget": 3, "seed": 0, "share": 0.5, "dev_rows": 2, "tuned": {}}
    assert edges_line(Lock.model_validate(fields | {"rows": rows})) == (
        "Better settings may lie beyond what was tried: the best have rate 2, the most that was tried, in a, b; "
        "rate 0.5, the least that was tried, in d."
    )
    assert edges_line(Lock.model_validate(fields | {"rows": {"c": rows["c"], "e": row(1, 1, 2)}})) == ""
