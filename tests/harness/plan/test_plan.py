"""Plans: what is shared, and which change of a recipe makes which stages new."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base import identity
from harness.base.errors import HarnessError
from harness.plan.builder import make_plan
from harness.plan.stages import Plan, Stage, order_seed
from harness.recipe.load import load_recipe, validate
from harness.recipe.training import Training
from harness.tasks.base import samples_folder
from methods.base import Rows, Start, TeacherKind, registered
from tests.copies import copy_to_change
from tests.harness.plan.changed import changed

CELL = {"student", "answers", "scores", "bits"}
ALL = CELL | {"teacher", "warm_start", "rows"}
Planner = Callable[..., Plan]


@pytest.fixture
def planned(tiny_recipe: dict[str, Any]) -> Planner:
    """A plan of the tiny recipe with fields changed by dotted names; one task, three methods."""

    def make(**changes: Any) -> Plan:
        fields = changed(tiny_recipe, changes, name="tiny", tasks=["dolly"], methods=["sft", "fkd", "uld"])
        return make_plan(validate("tiny", fields))

    return make


def kinds_that_differ(one: Plan, other: Plan) -> set[str]:
    """Kinds of stages of which the second plan has one that the first has not."""
    known = {stage.identity for stage in one.stages()}
    return {stage.kind for stage in other.stages() if stage.identity not in known}


def of_kind(plan: Plan, kind: str) -> list[Stage]:
    return [stage for stage in plan.stages() if stage.kind == kind]


def _id(value: Any) -> str:
    return ",".join(sorted(value)) if isinstance(value, set) else str(value)


# --- What is shared ---------------------------------------------------------------------------------------------------


def test_methods_share_teachers_warm_start_and_rows(planned: Planner) -> None:
    plan = planned(methods=list(registered()), tasks=["dolly", "gsm8k"], seeds=[0, 1], baseline_seeds="same")
    for task in ("dolly", "gsm8k"):
        stages = [stage for stage in plan.stages() if stage.task == task]
        count = {kind: len([stage for stage in stages if stage.kind == kind]) for kind in ALL}
        students = 2 * len(registered())
        shared = {"teacher": 2, "rows": 2, "warm_start": 2}  # a warm start for each seed
        assert count == {"student": students, "answers": students, "scores": students, "bits": students} | shared
    assert len(plan.cells) == 4 * len(registered())


def test_inputs_stand_before_what_reads_them_and_once(planned: Planner) -> None:
    stages = planned(seeds=[0, 1]).stages()
    places = {stage.identity: place for place, stage in enumerate(stages)}
    assert len(places) == len(stages)
    for stage in stages:
        assert all(places[needed.identity] < places[stage.identity] for needed in stage.inputs.values())


def test_sft_trains_from_the_pretrained_student_as_long_as_the_others_in_all(planned: Planner) -> None:
    plan = planned(methods=["sft", "control", "uld"], warm_start__steps=3, train__steps=4)
    sft, control, uld = (cell.student for cell in plan.cells)
    assert "start" not in sft.inputs
    assert sft.steps == 7
    assert control.inputs["start"].kind == "warm_start"
    assert control.inputs["start"].identity == uld.inputs["start"].identity
    assert control.steps == uld.steps == 4
    assert set(uld.inputs) == {"start", "cross"}


def test_stages_that_train_carry_what_they_train_with(planned: Planner) -> None:
    """And no others; what is carried is what decides the identity."""
    plan = planned(methods=["sft", "control"], teacher__steps=2, warm_start__steps=3, train__steps=4)
    carried = {stage.title: (stage.section, stage.steps) for stage in plan.stages() if stage.training is not None}
    assert carried == {
        "training of sft": ("warm_start", 7),
        "warm start of the student": ("warm_start", 3),
        "training of control": ("train", 4),
    }
    teachers = planned(methods=["uld"], teacher__steps=2).stages()
    carried = {stage.title: (stage.section, stage.steps) for stage in teachers if stage.kind == "teacher"}
    assert carried == {"fine-tuning of the cross-tokenizer teacher": ("teacher", 2)}
    for stage in (*plan.stages(), *teachers):
        if stage.training is not None:
            assert (stage.values["training"], stage.values["steps"]) == (stage.training.identity(), stage.steps)
        assert (stage.training is not None) == (stage.kind in ("teacher", "warm_start", "student"))


def test_the_parts_of_an_objective_are_methods_with_their_own_teachers(planned: Planner) -> None:
    plan = planned(methods=["control", "dual(fkd, uld)"], method_options={"all": {"kd_weight": 0.5}})
    control, dual = (cell.objective for cell in plan.cells)
    assert [(part.method.name, part.role) for part in control.parts] == [("control", "")]
    assert control.taught == control.roles == ()
    assert [(part.method.name, part.role, part.weight) for part in dual.parts] == [
        ("fkd", "same", 0.25), ("uld", "cross", 0.25)
    ]  # fmt: skip
    assert dual.taught == dual.parts


def test_epochs_count_rows(planned: Planner) -> None:
    plan = planned(train__steps=None, train__epochs=3, train__batch_size=4)
    assert plan.cells[1].student.steps == 3 * 8 // 4


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [
        (9, 8, 10, 20),
        (9, 8, 0.5, 1),
        (8, 8, 10, 10),
        (5005, 32, 7, 7 * 157),
        (100, 8, 1.5, 20),
        (3, 8, 2, 2),
        (9, 8, 0.1, 1),
    ],
)
def test_an_epoch_is_a_pass_over_all_rows(rows: int, batch: int, epochs: float, steps: int) -> None:
    """9 rows at batch 8 take 2 steps a pass: 11 steps made 5.5 passes of 10."""
    assert Training(epochs=epochs, batch_size=batch).total_steps(rows) == steps
    assert Training(epochs=epochs, steps=3, batch_size=batch).total_steps(rows) == 3


def test_released_rows_stand_only_where_they_differ(planned: Planner) -> None:
    plan = planned(methods=list(registered()), fidelity=["described", "released"])
    for name, kind in registered().items():
        found = [cell.objective.fidelity for cell in plan.cells if cell.objective.label == name]
        assert found == ["described", "released"][: 1 + kind.fidelities_differ]


def test_a_method_that_scores_the_prompt_gets_a_live_teacher(planned: Planner) -> None:
    plan = planned(fidelity=["released"])
    for cell in plan.cells:
        live = cell.objective.methods[0].rows is Rows.ALL
        for role in cell.objective.roles:
            assert cell.student.inputs[role].kind == ("teacher" if live else "rows")


def test_every_method_sees_the_same_data_order_in_a_repetition(planned: Planner) -> None:
    """Else tests between methods could not be paired."""
    plan = planned(methods=list(registered()), seeds=[0, 1])
    orders: dict[tuple[int, bool], set[int]] = {}
    for cell in plan.cells:
        starts_warm = cell.objective.start is Start.WARM_START
        orders.setdefault((cell.seed, starts_warm), set()).add(order_seed(cell.student))
    assert all(len(seeds) == 1 for seeds in orders.values())
    assert len(set().union(*orders.values())) == len(orders)


@pytest.mark.parametrize("kind", [TeacherKind.SAME_TOKENIZER, TeacherKind.CROSS_TOKENIZER])
def test_a_method_without_its_teacher_is_an_error(planned: Planner, kind: TeacherKind) -> None:
    name = next(name for name, method in registered().items() if method.teacher is kind)
    role = "same" if kind is TeacherKind.SAME_TOKENIZER else "cross"
    with pytest.raises(HarnessError, match=rf"teachers\.{role}: found none; expected a teacher for method {name}"):
        planned(methods=[name], **{f"teachers__{role}": None})
    planned(methods=["sft"], **{f"teachers__{role}": None})


# --- References -------------------------------------------------------------------------------------------------------

REFERENCES = ["untrained", "warm_start", "teachers"]


def test_references_share_the_stages_that_students_train_from(planned: Planner) -> None:
    plain, plan = planned(seeds=[0, 1]), planned(seeds=[0, 1], evaluation__references=REFERENCES)
    assert [cell.scores.identity for cell in plan.cells] == [cell.scores.identity for cell in plain.cells]
    assert kinds_that_differ(plain, plan) == {"answers", "scores", "bits"}  # nothing is trained for them
    rows = [
        (r.row, r.seed, r.role, r.teacher_kind, *(s.kind for s in r.answers.inputs.values())) for r in plan.references
    ]
    assert rows == [
        ("untrained", 0, "reference", "none"),
        ("warm start", 0, "reference", "none", "warm_start"),
        ("warm start", 1, "reference", "none", "warm_start"),
        ("same-tokenizer teacher", 0, "teacher", "same-tokenizer", "teacher"),
        ("cross-tokenizer teacher", 0, "teacher", "cross-tokenizer", "teacher"),
    ]
    for reference in plan.references:
        assert reference.scores.inputs == {"answers": reference.answers}
        assert reference.bits is not None
        assert reference.bits.inputs == reference.answers.inputs
        assert reference.answers.values["requests"] == plan.cells[0].answers.values["requests"]  # one protocol
    assert plan.identity != plain.identity


def test_references_that_share_nothing_bring_what_they_need(planned: Planner) -> None:
    plan = planned(methods=["sft"], evaluation__references="warm_start")
    assert [stage.kind for stage in plan.stages()][:2] == ["warm_start", "answers"]
    assert not planned(teachers={}, methods=["sft"], evaluation__references=["teachers"]).references


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"student__layers": 1}, {"untrained", "warm start"}),
        ({"warm_start__steps": 3}, {"warm start"}),
        ({"teacher__steps": 3}, {"same-tokenizer teacher", "cross-tokenizer teacher"}),
        ({"train__steps": 3}, set()),
        ({"teachers__cross__name": "x"}, set()),
    ],
    ids=_id,
)
def test_what_makes_the_numbers_of_a_reference_new(planned: Planner, change: dict[str, Any], new: set[str]) -> None:
    before, after = (planned(evaluation__references=REFERENCES, **more) for more in ({}, change))
    rows = list(zip(before.references, after.references, strict=True))
    assert {one.row for one, other in rows if one.scores.identity != other.scores.identity} == new


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"teachers__cross__template": "chat"}, True),
        ({"teachers__same__template": "chat"}, True),
        ({"teachers__cross": None}, True),
        ({"teachers__cross__layers": 1}, False),  # other weights, the same text
        ({"teacher__steps": 3}, False),
        ({"train__steps": 3}, False),
    ],
    ids=_id,
)
def test_bits_of_the_untrained_student_are_of_rows_that_all_tokenizers_cut(
    planned: Planner, change: dict[str, Any], new: bool
) -> None:
    """Its answers are to whole prompts, which are cut for nobody else."""
    asked = {"evaluation__references": ["untrained"], "methods": ["fkd"]}
    (before,), (after,) = planned(**asked).references, planned(**asked, **change).references
    assert before.bits is not None
    assert after.bits is not None
    assert (before.bits.identity != after.bits.identity) is new
    assert before.scores.identity == after.scores.identity


# --- What changes a result --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"train__learning_rate": 2e-3}, CELL),
        ({"train__steps": 3}, CELL),
        ({"train__batch_size": 4}, CELL),
        ({"train__schedule": "linear"}, CELL),
        ({"train__precision": "bfloat16"}, CELL),
        ({"warm_start__learning_rate": 2e-3}, CELL | {"warm_start"}),
        ({"teacher__learning_rate": 2e-3}, CELL | {"teacher", "rows"}),
        ({"teacher__lora__rank": 3}, CELL | {"teacher", "rows"}),
        ({"teacher__lora": None}, CELL | {"teacher", "rows"}),
        ({"teacher__precision": "bfloat16"}, CELL | {"teacher", "rows"}),
        ({"teacher_rows__keep": "top_k"}, CELL | {"rows"}),
        ({"limits__length": 300}, ALL),
        ({"limits__overlong": "error"}, ALL),
        ({"student__template": "chat"}, ALL),  # the limit cuts all sides at a common byte: all see other rows
        ({"teachers__cross__template": "chat"}, ALL),
        ({"student__layers": 1}, CELL | {"warm_start"}),  # other weights, the same text
        ({"student__attention": "eager"}, CELL | {"warm_start"}),
        ({"teachers__cross__layers": 1}, CELL | {"teacher", "rows"}),
        ({"method_options__uld": {"kd_weight": 0.9}}, CELL),
        ({"fidelity": ["released"]}, CELL),
        ({"seeds": [1]}, CELL | {"warm_start"}),
        ({"dolly__train_items": 7}, ALL),
        ({"dolly__test_items": 2}, CELL - {"student"}),
        ({"dolly__new_tokens": 9}, CELL - {"student"}),
        ({"dolly__sampling_seeds": [11]}, CELL - {"student"}),
        ({"dolly__sampling_seeds": [10, 11]}, CELL - {"student"}),
        ({"dolly__decoding": "greedy"}, CELL - {"student"}),
        ({"dolly__prompt_tokens": 99}, CELL - {"student"}),
        ({"dolly__sets": ["dolly", "vicuna"]}, CELL - {"student"}),
    ],
    ids=_id,
)  # fmt: skip
def test_what_changes_results_makes_stages_new(planned: Planner, change: dict[str, Any], new: set[str]) -> None:
    assert kinds_that_differ(planned(), planned(**change)) == new


def test_the_split_of_dolly_counts_even_where_the_rows_are_the_same(planned: Planner, tmp_path: Path) -> None:
    data = copy_to_change(samples_folder(), tmp_path / "data")
    shutil.copytree(data / "dolly", data / "dolly_hub")
    asked = {"data__root": str(data)}
    assert kinds_that_differ(planned(), planned(**asked, dolly__split="dskd")) == set()
    assert kinds_that_differ(planned(**asked), planned(**asked, dolly__split="hub")) == ALL


def test_an_option_of_one_method_touches_no_other(planned: Planner) -> None:
    before, after = planned(), planned(method_options__uld={"kd_weight": 0.9})
    changed = [a.student.identity != b.student.identity for a, b in zip(before.cells, after.cells, strict=True)]
    assert changed == [False, False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"train__micro_batch_size": 1}, {"train__chunk_rows": 7}, {"train__checkpoint_every": 5},
        {"train__compile": "off"}, {"teacher_rows__k": 9},
        {"train__gradient_checkpointing": True}, {"evaluation__batch_size": 3}, {"evaluation__decoding": "slots"},
        {"keep_students": False},
        {"student__name": "x"}, {"name": "x"}, {"title": "x"}, {"notes": ["x"]}, {"train__precision": "float32"},
        {"gsm8k__new_tokens": 3}, {"dolly__unni_items": 5}, {"evaluation__bits_per_byte": False},
        {"methods": ["sft"]}, {"seeds": 0},
    ],
    ids=_id,
)  # fmt: skip
def test_what_only_changes_speed_or_words_makes_nothing_new(planned: Planner, change: dict[str, Any]) -> None:
    if "train__precision" in change and torch.cuda.is_available():
        pytest.skip("auto may mean bf16 on this GPU")
    assert kinds_that_differ(planned(), planned(**change)) == set()


def test_the_number_of_tokens_kept_of_teacher_rows_makes_them_new(planned: Planner) -> None:
    plans = [planned(teacher_rows={"keep": "top_k", "k": k}) for k in (256, 255)]
    assert kinds_that_differ(*plans) == CELL | {"rows"}


def test_samples_are_drawn_by_micro_batch(planned: Planner) -> None:
    """So its size is part of what a student that samples means, and of no other."""
    asked = {"methods": ["uld", "gold"], "method_options__gold": {"rollout_share": 0.5}}
    before, after = planned(**asked), planned(**asked, train__micro_batch_size=1)
    changed = [a.student.identity != b.student.identity for a, b in zip(before.cells, after.cells, strict=True)]
    assert changed == [False, True]
    kinds = [{stage.kind for stage in cell.student.inputs.values()} for cell in before.cells]
    assert kinds == [{"warm_start", "rows"}, {"warm_start", "teacher"}]  # sampled text is scored live


def test_paths_do_not_count_and_contents_do(planned: Planner, tiny_models: Path, tmp_path: Path) -> None:
    before = planned()
    data = copy_to_change(samples_folder(), tmp_path / "data")
    copied = shutil.copytree(tiny_models, tmp_path / "models")
    moved = {
        "data__root": str(data),
        "student__model": f"path:{copied / 'student'}",
        "teachers__cross__model": f"path:{copied / 'cross'}",
    }
    assert planned(**moved).identity == before.identity
    with (data / "dolly/train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "More?", "output": "Yes."}) + "\n")
    assert kinds_that_differ(before, planned(**moved)) == ALL
    shutil.copyfile(samples_folder() / "dolly/train.jsonl", data / "dolly/train.jsonl")
    with (data / "dolly/test.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "More?", "output": "Yes."}) + "\n")
    assert kinds_that_differ(before, planned(**moved)) == CELL - {"student"}
    shutil.copyfile(samples_folder() / "dolly/test.jsonl", data / "dolly/test.jsonl")
    config = copied / "cross" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert kinds_that_differ(before, planned(**moved)) == ALL


def test_new_versions_of_libraries_make_stages_new(planned: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    before, own = planned(), importlib.metadata.version
    for library, new in (("torch", ALL), ("peft", CELL | {"teacher", "rows"}), ("rouge-score", {"scores"})):
        changed = {library: "0"}
        monkeypatch.setattr(importlib.metadata, "version", lambda name, c=changed: c.get(name) or own(name))
        identity.versions.cache_clear()
        assert kinds_that_differ(before, planned()) == new
    monkeypatch.undo()
    identity.versions.cache_clear()
    assert planned().identity == before.identity


# --- Without models ---------------------------------------------------------------------------------------------------

PLAN = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("network")

socket.socket.connect = socket.getaddrinfo = refuse
from harness.plan.builder import make_plan
from harness.recipe.load import load_recipe
plan = make_plan(load_recipe("quickstart"))
assert len(plan.stages()) > 20
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_plan_needs_no_model_no_network_and_no_heavy_library(tmp_path: Path) -> None:
    """Whoever asks what would run must not wait for downloads, nor for transformers' imports."""
    command = [sys.executable, "-c", PLAN]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    heavy = {"transformers", "accelerate", "peft", "datasets", "lm_eval", "evalplus", "pandas", "matplotlib"}
    assert not heavy & set(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


def test_a_variant_is_its_method_with_other_options_and_nothing_more(planned: Planner) -> None:
    """Its name decides nothing: with the same options it is the same student."""
    variants = {"plain": {"method": "gold"}, "half": {"method": "gold", "rollout_share": 0.5}}
    plan = planned(methods=["gold", "plain", "half"], variants=variants)
    gold, plain, half = plan.cells
    assert [cell.name.split(" · ")[1] for cell in plan.cells] == ["gold", "plain", "half"]
    assert plain.scores.identity == gold.scores.identity
    assert half.student.identity != gold.student.identity
    by_options = planned(methods=["gold"], method_options__gold={"rollout_share": 0.5})
    assert half.scores.identity == by_options.cells[0].scores.identity


def test_a_task_may_have_repetitions_of_its_own() -> None:
    overrides = ["tasks=[dolly,gsm8k]", "methods=[sft,uld]", "gsm8k.seeds=[0,3]"]
    recipe = load_recipe("quickstart", [*overrides, "evaluation.references=[warm_start]"])
    made = make_plan(recipe)
    assert [(c.task, c.seed) for c in made.cells if c.objective.name == "uld"] == [
        ("dolly", 0),
        ("gsm8k", 0),
        ("gsm8k", 3),
    ]
    assert [(r.task, r.seed) for r in made.references] == [("dolly", 0), ("gsm8k", 0), ("gsm8k", 3)]
    everywhere = make_plan(load_recipe("quickstart", [*overrides[:2], "seeds=[0,3]"]))
    known = {stage.identity for stage in everywhere.stages()}
    # how often a task is repeated is no part of what a repetition is
    assert {s.identity for cell in made.cells for s in (cell.student, cell.scores)} <= known
