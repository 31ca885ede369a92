"""What is loaded and kept: rows tokenised and aligned once, maps kept, teachers freed where nothing calls them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from harness import tasks
from harness.data.terms import align
from harness.plan.stages import Stage
from harness.run import makers, trainings
from harness.run.workbench import TrainedModels
from methods.library.warping import EditDistances
from tests.conftest import Done
from tests.harness.run.place import Place, alone


def test_rows_that_a_limit_leaves_out_or_cuts_are_counted(place: Place) -> None:
    """Against the training file's rows, in the student's tokens."""
    length = 100
    done = place.run("methods=[control]", f"limits.length={length}", "evaluation.bits_per_byte=false")
    assert done.code == 0, done.out + done.err
    task = tasks.tasks()["dolly"](tasks.tasks()["dolly"].Settings(train_items=8), None)
    sides = {
        role: AutoTokenizer.from_pretrained(spec["model"].removeprefix("path:"))
        for role, spec in (("student", place.fields["student"]), *place.fields["teachers"].items())
    }
    expected = {"whole": 0, "cut": 0, "left out": 0}
    for example in task.training_examples():
        sizes = [
            [len(side(text, add_special_tokens=False)["input_ids"]) for text in (example.prompt, example.response)]
            for side in sides.values()
        ]
        bos = [side("a")["input_ids"][0] == side.bos_token_id for side in sides.values()]
        room = [length - 1 - prompt - extra for (prompt, _), extra in zip(sizes, bos, strict=True)]
        if min(room) < 1:
            expected["left out"] += 1
        elif all(response <= free for (_, response), free in zip(sizes, room, strict=True)):
            expected["whole"] += 1
        else:
            expected["cut"] += 1
    counted = pd.read_csv(place.folder_of(done) / "outcomes.csv").query("of == 'training rows'")
    assert counted.set_index("outcome")["count"].to_dict() == expected
    assert min(expected["left out"], expected["cut"] + expected["whole"]) > 0


def test_a_teachers_fine_tuning_has_the_memory_of_the_teacher_before(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first one, whose rows have just been made, nothing is left when what was freed is given back."""
    known: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []

    def release() -> None:
        gc.collect()
        alive[-1:] = [[there() is not None for there in known]]

    own_teacher, own_make = TrainedModels.teacher, makers.make_teacher

    def tuned(self: TrainedModels, stage: Stage) -> Any:
        model = own_teacher(self, stage)
        known.append(weakref.ref(model))
        return model

    def make(*args: Any) -> dict[str, Any]:
        found.append(alive[-1])
        return own_make(*args)

    found: list[list[bool]] = []
    monkeypatch.setattr("harness.run.workbench.release_memory", release)
    monkeypatch.setattr(TrainedModels, "teacher", tuned)
    monkeypatch.setattr(makers, "make_teacher", make)
    alone(tiny_recipe, tmp_path, stages=["teacher"]).run()
    first, second = found
    assert not first
    assert second
    assert not any(second)


@pytest.mark.parametrize("keep", ["hidden", pytest.param("top_k", marks=pytest.mark.slow)])
def test_no_training_has_a_teacher_beside_it_that_it_does_not_call(
    keep: str, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that was evaluated or made rows before; but a live one stays."""
    beside: dict[str, bool] = {}
    own = trainings._train

    def train(stage: Stage, *args: Any) -> Any:
        done = own(stage, *args)
        beside[stage.objective.name if stage.objective else stage.kind] = runner.bench.trained._teacher is not None
        return done

    monkeypatch.setattr(trainings, "_train", train)
    runner = alone(
        tiny_recipe,
        tmp_path,
        stages=[],
        methods=["gold", "control", "uld"],
        method_options={"gold": {"rollout_share": 0.5, "rollout_tokens": 4}},
        teacher_rows={"keep": keep, "k": 8},
        evaluation={"references": ["teachers"]},
    )
    runner.run()
    assert beside == {"teacher": False, "warm_start": False, "gold": True, "control": False, "uld": False}


def test_all_trainings_of_a_run_share_what_methods_keep_of_a_pair(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    runner = alone(tiny_recipe, tmp_path, stages=[])
    kept = [runner.bench.pairs.of(role).shared(EditDistances) for role in ("cross", "same", "cross")]
    assert kept[0] is kept[2]
    assert kept[0] is not kept[1]


def test_a_map_that_is_slow_to_make_is_kept_with_the_runs(whole: tuple[Place, Done]) -> None:
    """MinED's, over all tasks; exact maps are made in no time."""
    kept = list(whole[0].runs.glob("store/maps/*"))
    assert sorted(path.name.partition("-")[0] for path in kept) == ["nearest"]


def test_training_rows_are_aligned_once_for_all_seeds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = []

    def noted(example: Any, terms: Any) -> Any:
        if terms:
            aligned.append((example.id, terms[0].method.name))
        return align(example, terms)

    monkeypatch.setattr("harness.run.workbench.align", noted)
    place.run("methods=[uld,gold]", "seeds=[7,8]")
    assert {method for _, method in aligned} == {"uld", "gold"}
    assert len(aligned) == len(set(aligned))
