"""Recipes: overrides, chains, interpolation; whatever is wrong is said at once, with its path."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.base.errors import HarnessError
from harness.models.spec import ModelSpec
from harness.plan.objectives import make_objectives
from harness.recipe.load import RecipeError, find_recipe, load_recipe, recipe_names
from harness.recipe.schema import Limits
from harness.recipe.training import Training
from harness.tasks.gsm8k import GSM8KSettings
from methods.base import Need, TeacherKind, registered
from reports.published import _lookup, published, published_pairs

MINIMAL: dict[str, Any] = {
    "student": {"model": "path:student"},
    "teachers": {"same": {"model": "path:same"}, "cross": {"model": "path:cross"}},
    "tasks": ["dolly"],
    "methods": ["sft"],
    **{stage: {"steps": 1} for stage in ("teacher", "warm_start", "train")},
}


def written(folder: Path, name: str = "mine", **fields: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return str(path)


def problems(folder: Path, *overrides: str, **fields: Any) -> list[str]:
    """What is wrong with the minimal recipe once these fields and overrides are in it."""
    with pytest.raises(RecipeError) as error:
        load_recipe(written(folder, **(MINIMAL | fields)), overrides)
    return error.value.problems


# --- Overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=20", "train.steps", 20),
        ("train.learning_rate=2e-5", "train.learning_rate", 2e-5),  # YAML 1.1 takes this for text
        ("train.learning_rate=5.0e-4", "train.learning_rate", 5e-4),
        ("teacher.lora={rank: 4, alpha: 3e1}", "teacher.lora.alpha", 30.0),
        ("teacher.lora.targets=[q_proj,v_proj]", "teacher.lora.targets", ("q_proj", "v_proj")),
        ("methods=[sft,uld]", "methods", ("sft", "uld")),
        ("methods=uld", "methods", ("uld",)),  # one name needs no brackets
        ("seeds=3", "seeds", (3,)),
        ("teachers.same=null", "teachers.same", None),
        ("teachers.same=", "teachers.same", None),
        ('name="2024"', "name", "2024"),  # quoted: text, though it looks like a number
        ("title=a=b", "title", "a=b"),
        ("data.root=~/data", "data.root", "~/data"),
        ("keep_students=false", "keep_students", False),
        ("dolly.new_tokens=64", "task_settings.dolly.new_tokens", 64),
    ],
)
def test_an_override_replaces_a_field(tmp_path: Path, override: str, path: str, value: Any) -> None:
    found: Any = load_recipe(written(tmp_path, **MINIMAL), [override])
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins_and_leaves_its_neighbours_alone() -> None:
    recipe = load_recipe("quickstart", ["train.steps=5", "train.steps=6"])
    assert recipe.train.steps == 6
    assert recipe.train.learning_rate == load_recipe("quickstart").train.learning_rate


@pytest.mark.parametrize("override", ["train", "=3", "train.steps=[", "dolly"])
def test_an_override_that_is_none_is_an_error(override: str) -> None:
    with pytest.raises(HarnessError, match="override"):
        load_recipe("quickstart", [override])


@pytest.mark.parametrize("override", ["train=[1]", "tasks.0=gsm8k", "train=3", "student=x"])
def test_an_override_of_another_shape_names_its_field(tmp_path: Path, override: str) -> None:
    (problem,) = problems(tmp_path, override)
    assert problem.startswith(override.partition("=")[0].partition(".")[0] + ": found ")


def test_scientific_notation_is_a_number_in_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + "method_options: {uld: {kd_weight: 2e-1, ce_weight: 1.5e0}}\n")
    assert load_recipe(str(path)).method_options["uld"] == {"kd_weight": 0.2, "ce_weight": 1.5}


# --- Chains and interpolation -----------------------------------------------------------------------------------------


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    written(tmp_path, "base", **MINIMAL, limits={"length": 99, "overlong": "drop"}, seeds=[1, 2])
    written(tmp_path, "middle", extends="base", limits={"length": 88}, seeds=[3])
    recipe = load_recipe(written(tmp_path, "top", extends="middle", methods=["control"]))
    assert (recipe.limits.length, recipe.limits.overlong) == (88, "drop")  # mappings merge
    assert recipe.seeds == (3,)  # lists are replaced
    assert recipe.methods == ("control",)
    assert recipe.name == "top"


def test_extends_takes_shipped_names_and_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_recipe(written(tmp_path, extends="quickstart", seeds=[7])).seeds == (7,)
    (tmp_path / "sub").mkdir()
    written(tmp_path, "base", **MINIMAL)
    written(tmp_path / "sub", extends="../base.yaml")
    monkeypatch.chdir("/")  # beside the file, wherever the command is given
    assert load_recipe(str(tmp_path / "sub" / "mine.yaml")).name == "mine"


def test_a_chain_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, "a", extends="b")
    written(tmp_path, "b", extends="a")
    with pytest.raises(HarnessError, match="extends itself"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_extending_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match='Did you mean "quickstart"'):
        load_recipe(written(tmp_path, extends="quickstrat"))


def test_values_of_another_shape_replace_those_of_the_base(tmp_path: Path) -> None:
    written(tmp_path, "base", **MINIMAL)
    (problem,) = problems(tmp_path, extends="base", limits=[1])
    assert problem.startswith("limits: found [1]")


OWN = {"student": {"model": "path:own", "template": "chat"}}


def test_another_model_takes_nothing_of_the_one_before(tmp_path: Path) -> None:
    """Else quickstart's pruning, and its name, would be done to any student that somebody puts in."""
    before, recipe = load_recipe("quickstart"), load_recipe(written(tmp_path, extends="quickstart", **OWN))
    assert (before.student.layers, before.student.name) == (24, "SmolLM2-135M (24 of 30 layers)")
    assert recipe.student.model_dump() == ModelSpec(model="path:own", template="chat").model_dump()
    assert recipe.teachers.same == ModelSpec(model="path:own")  # of the student, by reference: another model too
    assert recipe.teachers.cross == before.teachers.cross


@pytest.mark.parametrize("overrides", [["student.model=path:own", "student.layers=3"], ["student={model: path:own}"]])
def test_another_model_on_the_command_line_too_in_any_order(overrides: list[str]) -> None:
    for given in (overrides, overrides[::-1]):
        student = load_recipe("quickstart", given).student
        assert (student.model, student.name) == ("path:own", "")
        assert student.layers == (3 if len(overrides) == 2 else None)


def test_the_same_model_keeps_what_was_said_of_it(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["student.template=chat"])
    assert (recipe.student.layers, recipe.student.template) == (24, "chat")


def test_null_unsets_any_field_and_an_empty_mapping_empties(tmp_path: Path) -> None:
    own = {"limits": {"length": 99}, "seeds": [3], "variants": {"half": {"method": "gold"}}, "gsm8k": {"few_shot": 1}}
    written(tmp_path, "base", **MINIMAL | own | {"train": {"steps": 1, "learning_rate": 1, "lora": {"rank": 4}}})
    unset = dict.fromkeys(("seeds", "gsm8k"), None) | {"limits": {"length": None}, "variants": {}}
    recipe = load_recipe(written(tmp_path, extends="base", train={"learning_rate": None, "lora": None}, **unset))
    defaults = Training(steps=1)
    assert (recipe.train, recipe.seeds, recipe.limits, recipe.variants) == (defaults, (0,), Limits(), {})
    assert recipe.settings_of("gsm8k") == GSM8KSettings()
    assert load_recipe(written(tmp_path, extends="base", limits=None)).limits == Limits()
    assert load_recipe(written(tmp_path, extends="base", limits={})).limits == Limits()
    assert load_recipe(written(tmp_path, extends="base"), ["baseline=null"]).baseline is None


def test_title_and_notes_are_of_one_recipe(tmp_path: Path) -> None:
    """They name its models and its numbers."""
    written(tmp_path, "base", **MINIMAL, title="Of base", notes=["Of base."])
    recipe = load_recipe(written(tmp_path, extends="base"))
    assert (recipe.name, recipe.title, recipe.notes) == ("mine", "", ())


def test_interpolation_follows_overrides(tmp_path: Path) -> None:
    fields = MINIMAL | {"teachers": {"same": {"model": "${student.model}"}}}
    recipe = load_recipe(written(tmp_path, **fields), ["student.model=path:other"])
    assert recipe.teachers.same.model == "path:other"


@pytest.mark.parametrize("value", ["${student.nope}", "${", "2024-01-01"])
def test_a_value_that_can_not_be_resolved_names_its_field(tmp_path: Path, value: str) -> None:
    (problem,) = problems(tmp_path, f"title={value}")
    assert problem.startswith("title: ")


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trian=3", "train"),
        ("student.layer=2", "layers"),
        ("teachers.corss={}", "cross"),
        ("teachers.same.modle=x", "model"),
        ("teacher.lora.rnk=3", "rank"),
        ("warm_start.schedul=cosine", "schedule"),
        ("limits.lenght=3", "length"),
        ("data.roots=x", "root"),
        ("evaluation.batchsize=3", "batch_size"),
        ("gsm8k.few_shots=3", "few_shot"),
        ("codem.bencmarks=[]", "benchmarks"),
        ("method_options.uld.kd_weigth=1", "kd_weight"),
        ("method_options.all.temprature=1", "temperature"),
        ("method_options.udl={}", "uld"),
    ],
)
def test_an_unknown_key_names_the_nearest_at_every_level(override: str, meant: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", [override])
    (problem,) = error.value.problems
    assert problem.startswith(override.partition("=")[0] + ": unknown ")
    above = override.partition("=")[0].rpartition(".")[0] + "."
    whole = f"{above if 'unknown key' in problem else ''}{meant}".removeprefix(".")  # of options, the name alone
    assert f'Did you mean "{whole}"?' in problem


def test_an_unknown_key_without_a_near_one_lists_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"limits.zzz: unknown key \(value 3\). There are length, overlong"):
        load_recipe("quickstart", ["limits.zzz=3"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("methods=[sdt]", "methods.0: unknown method 'sdt'. Did you mean \"sft\"?"),
        ("tasks=[dolly,gsm8]", "tasks.1: unknown task 'gsm8'. Did you mean \"gsm8k\"?"),
        ("methods=[sft,sft]", "methods: found ['sft', 'sft']; one of them stands there twice"),
        ("seeds=[0,0]", "seeds: found [0, 0]; one of them stands there twice"),
        ("methods=[]", "methods: found []; "),
        ("methods=[[sft]]", "methods.0: found ['sft']; "),
        ("dolly.decoding=samplin", 'Did you mean "sampling"?'),
        ("fidelity=[relesed]", 'Did you mean "released"?'),
        ("train.steps=many", "train.steps: found 'many'; input should be a valid integer"),
        ("train.learning_rate=-1", "train.learning_rate: found -1; input should be greater than 0"),
        ("keep_students=maybe", "keep_students: found 'maybe'; "),
        ("codem={samples: 5, pass_at: [1, 10]}", "pass_at must hold different numbers from 1 to samples, which is 5"),
        ("student.model=pth:folder", "student.model: found 'pth:folder'; expected hf:"),
        ("student.model=pth:folder", "Did you mean path:?"),
        ("student=null", "student: found None; "),
        ("method_options.uld.kd_weight=-1", "method_options.uld.kd_weight: found -1; "),
        ("method_options.all.ce_weight=abc", "method_options.all.ce_weight: found 'abc'; "),
        ("method_options.uld=3", "method_options.uld: found 3; expected a mapping"),
        ("method_options=3", "method_options: found 3; "),
    ],
)
def test_a_wrong_value_is_one_line_with_its_path(tmp_path: Path, override: str, words: str) -> None:
    found = problems(tmp_path, override)
    assert any(words in problem for problem in found), found
    assert all("\n" not in problem for problem in found)


def test_training_without_a_length_is_an_error(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "train.steps=null")
    assert problem.startswith("train: ")
    assert "set steps or epochs" in problem


def test_every_error_comes_at_once() -> None:
    wrong = ["trian.steps=1", "methods=[sdt]", "train.steps=x", "limits.length=0", "method_options.uld.kd_weight=x"]
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", wrong)
    paths = {problem.partition(":")[0] for problem in error.value.problems}
    assert paths == {"trian", "methods.0", "train.steps", "limits.length", "method_options.uld.kd_weight"}
    assert "5 errors" in str(error.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    fields = {key: value for key, value in MINIMAL.items() if key not in ("student", "train")}
    with pytest.raises(RecipeError) as error:
        load_recipe(written(tmp_path, **fields))
    assert {problem.partition(":")[0] for problem in error.value.problems} == {"student", "train"}


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "", "\x00", "just text"])
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(HarnessError, match=r"bad\.yaml"):
        load_recipe(str(path))


def test_a_key_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + "on: 3\n")  # YAML reads "on" as true
    with pytest.raises(RecipeError, match="keys should be strings"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["quikstart", "nowhere/mine.yaml", "mine.yml"])
def test_an_unknown_recipe_is_an_error(name: str) -> None:
    with pytest.raises(HarnessError) as error:
        load_recipe(name)
    assert repr(name) in str(error.value)
    assert ("Did you mean" in str(error.value)) == (name == "quikstart")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("baseline=contrl", ["baseline: unknown method 'contrl'", 'Did you mean "control"?']),
        ("baseline=dual(fkd, udl)", ["baseline: unknown method 'udl' in 'dual(fkd, udl)'", 'Did you mean "uld"?']),
        ("baseline=3", ["baseline: found 3"]),
        ("paper=phi_qwn", ["paper: unknown pair of models 'phi_qwn'", 'Did you mean "phi_qwen"?']),
        (
            "paper=x",
            ["paper: unknown pair of models 'x'", "There are llama_gemma, llama_opt, phi_qwen, "],
        ),
    ],
)
def test_a_wrong_baseline_or_paper(tmp_path: Path, override: str, words: list[str]) -> None:
    (problem,) = problems(tmp_path, override)
    assert [word for word in words if word not in problem] == []


@pytest.mark.parametrize("name", ["gsm8k.bits_per_byte", "dolly"])
def test_a_primary_column_is_one_of_the_recipes_tasks(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, f"primary=[dolly.rouge_l,{name}]")
    assert f"primary.1: found '{name}'; expected TASK.METRIC of a task of the recipe" in problem


@pytest.mark.parametrize("override", ["baseline=null", "baseline=uld", "baseline=dual(fkd,uld)", "paper=llama_opt"])
def test_a_baseline_is_any_method_whether_it_runs_or_not(tmp_path: Path, override: str) -> None:
    """Else every run of fewer methods would have to change the baseline too."""
    recipe = load_recipe(written(tmp_path, **MINIMAL), [override])
    key, _, value = override.partition("=")
    assert getattr(recipe, key) == (None if value == "null" else value)


# --- What ships, and what counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert make_objectives(recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch_size": 2}, {"gradient_checkpointing": True}, {"chunk_rows": 7}, {"checkpoint_every": 3},
        {"compile": "on"}, {"report_to": ("tensorboard",)},
    ],
)  # fmt: skip
def test_speed_is_no_part_of_a_training_stage(change: dict[str, Any]) -> None:
    """Else a run on a smaller device would train everything again."""
    assert Training(steps=1, **change).identity() == Training(steps=1).identity()


@pytest.mark.parametrize(
    ("batch", "most", "processes", "sampled", "made"),
    [
        (32, 8, 8, False, 4),  # phi_qwen_all on 8 GPUs: four of each device at once
        (32, 8, 4, False, 8),
        (32, None, 2, False, 16),
        (4, 8, 1, False, 4),
        (4, 3, 1, False, 2),
        (12, 4, 2, False, 3),
        (12, 4, 2, True, 2),  # 3 would hold responses of two draws
        (32, 8, 8, True, 4),
        (8, None, 8, True, 1),
        (7, 4, 1, False, 1),
    ],
)
def test_micro_batches_only_bound_memory(
    batch: int, most: int | None, processes: int, sampled: bool, made: int
) -> None:
    """Whole numbers of them make a step, none is larger than asked for, and none straddles what is drawn together."""
    training = Training(steps=1, batch_size=batch, micro_batch_size=most)
    found = training.micro_batch(processes, sampled)
    assert found == made
    assert batch % (found * processes) == 0
    assert training.drawn_together % found == 0 or not sampled


def test_the_papers_recipes_run_on_eight_gpus() -> None:
    for name in OF_THE_PAPER:
        recipe = load_recipe(name)
        for training in (recipe.teacher, recipe.warm_start, recipe.train):
            size = training.micro_batch(8, sampled=True)
            assert (training.batch_size % (8 * size), size <= training.micro_batch_size) == (0, True), name


def test_processes_that_can_not_have_equal_shares_are_told() -> None:
    with pytest.raises(ValueError, match="4, for 8 processes"):
        Training(steps=1, batch_size=4).micro_batch(8)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 4}, {"learning_rate": 1e-3}, {"schedule": "linear"}, {"warmup": 0.1}, {"weight_decay": 0.0},
        {"adam_betas": (0.9, 0.99)}, {"max_grad_norm": 2.0}, {"lora": {"rank": 4}},
    ],
)  # fmt: skip
def test_what_changes_weights_is_part_of_a_training_stage(change: dict[str, Any]) -> None:
    assert Training(steps=1, **change).identity() != Training(steps=1).identity()


def test_an_option_of_all_reaches_every_method_with_a_teacher_that_has_it() -> None:
    overrides = ["methods=[sft,fkd,uld]", "method_options={all: {kd_weight: 0.3, temperature: 3}, uld: {kd_weight: 1}}"]
    sft, fkd, uld = make_objectives(load_recipe("quickstart", overrides))
    assert sft.methods[0].options.kd_weight == 0
    assert (fkd.methods[0].options.kd_weight, fkd.methods[0].options.temperature) == (0.3, 3)
    assert uld.methods[0].options.kd_weight == 1  # a method's own option wins


def test_a_fidelity_of_all_reaches_every_method() -> None:
    options = "method_options={all: {fidelity: released}, rkd: {fidelity: described}}"
    overrides = ["methods=[control,fkd,uld,rkd]", options]
    made = make_objectives(load_recipe("quickstart", overrides))
    assert [objective.name for objective in made] == ["control", "fkd (released)", "uld (released)", "rkd"]


def test_a_method_with_a_fidelity_of_its_own_is_one_row() -> None:
    """Two rows of one name would be averaged as if they were two seeds."""
    overrides = ["methods=[control,fkd,uld]", "fidelity=[described,released]", "method_options.uld.fidelity=released"]
    made = make_objectives(load_recipe("quickstart", overrides))
    assert [objective.name for objective in made] == ["control", "fkd", "fkd (released)", "uld (released)"]


# --- Variants: one method in several rows -----------------------------------------------------------------------------


VARIANTS = "variants={half: {method: gold, rollout_share: 0.5, kd_weight: 1}, hot: {method: fkd, temperature: 4}}"


def test_all_methods_are_those_whose_teacher_is_there_and_the_variants() -> None:
    same = {name for name, kind in registered().items() if kind.teacher is TeacherKind.SAME_TOKENIZER}
    taught = [name for name, kind in registered().items() if Need.REWARDS not in kind().needs]  # these are named
    every = load_recipe("known_truth", ["methods=all", "variants={mine: {method: uld}}"])
    assert every.methods == (*taught, "gold_trl", "cdm_bytes", "cdm_mean", "uld_bytes", "x_token_learnt", "mine")
    alone = load_recipe("known_truth", ["methods=all", "variants={}", "teachers.same=null"])
    assert set(alone.methods) == set(taught) - same
    assert {"fkd", "rkd"} <= same


def test_a_variant_is_a_row_of_its_own_with_its_methods_options_and_its_own() -> None:
    options = "method_options={all: {kd_weight: 0.3}, gold: {beta: 0.25, rollout_tokens: 9}}"
    overrides = [VARIANTS, options, "methods=[gold,half,hot]", "baseline=half"]
    gold, half, hot = make_objectives(load_recipe("quickstart", overrides))
    assert [objective.name for objective in (gold, half, hot)] == ["gold", "half", "hot"]
    assert type(half.methods[0]) is type(gold.methods[0])
    values = {name: getattr(half.methods[0].options, name) for name in ("beta", "rollout_tokens", "rollout_share")}
    assert values == {"beta": 0.25, "rollout_tokens": 9, "rollout_share": 0.5}
    assert [[part.weight for part in made.parts] for made in (gold, half, hot)] == [[0.3], [1.0], [0.3]]
    assert gold.methods[0].options.rollout_share == 0
    assert (gold.samples, half.samples, hot.roles) == (False, True, ("same",))


def test_a_variant_comes_in_both_fidelities_unless_it_names_one() -> None:
    overrides = ["fidelity=[described,released]", "methods=[a,b]"]
    variants = "variants={a: {method: cdm, k: 5}, b: {method: cdm, k: 6, fidelity: described}}"
    made = make_objectives(load_recipe("quickstart", [*overrides, variants]))
    assert [objective.name for objective in made] == ["a", "a (released)", "b"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("variants={uld: {method: gold}}", "variants.uld: found 'uld'; expected a name of its own"),
        ("variants={teacher: {method: gold}}", "variants.teacher: found 'teacher'; expected a name of its own"),
        ("variants={'a(b, c)': {method: gold}}", "variants.a(b, c): found 'a(b, c)'; expected a name of its own"),
        ("variants={x: {rollout_share: 1}}", "variants.x: found {'rollout_share': 1}; expected a mapping with the"),
        ("variants={x: {method: gld}}", "variants.x.method: unknown method 'gld'. Did you mean \"gold\"?"),
        ("variants={x: {method: gold, rolout_share: 1}}", 'unknown option (value 1). Did you mean "rollout_share"?'),
        (
            "variants={x: {method: gold, rollout_share: {start: 0, ende: 1}}}",
            'variants.x.rollout_share.ende: unknown option (value 1). Did you mean "rollout_share.end"?',
        ),
        (
            "variants={x: {method: gold, rollout_share: true}}",
            "rollout_share: found True; expected a number",
        ),
        ("variants={x: {method: gold, rollout_share: 2}}", "variants.x.rollout_share: found 2; input should be less"),
        ("variants=3", "variants: found 3; "),
    ],
)
def test_a_wrong_variant_is_one_line_with_its_path(tmp_path: Path, override: str, words: str) -> None:
    found = problems(tmp_path, override)
    assert any(words in problem for problem in found), found


def test_options_of_a_variant_stand_with_it(tmp_path: Path) -> None:
    overrides = ["variants={x: {method: gold}}", "methods=[x]", "method_options.x.beta=1"]
    said = "method_options.x: found a variant; expected a method. Its own options stand in variants.x."
    assert said in problems(tmp_path, *overrides)


def test_options_of_all_are_checked_for_the_method_behind_a_variant(tmp_path: Path) -> None:
    overrides = ["variants={x: {method: gold}}", "methods=[x]", "method_options.all.beta=7"]
    assert any("method_options.all.beta: found 7" in problem for problem in problems(tmp_path, *overrides))


# --- The recipes that come with the harness ---------------------------------------------------------------------------

OF_THE_PAPER = ("phi_qwen_all", "llama_gemma_all", "llama_opt_all")
EVERY_METHOD = {"sft", "control", "fkd", "rkd", "mined", "uld", "cdm", "gold", "gold_on_policy", "one_to_one"}


@pytest.mark.parametrize("name", [*OF_THE_PAPER, "gemma_smol_all"])
def test_large_recipes_train_every_method_with_three_seeds(name: str) -> None:
    recipe = load_recipe(name)
    labels = {objective.label for objective in make_objectives(recipe)}
    assert labels == EVERY_METHOD | {"dual(fkd, cdm)"}
    assert recipe.seeds == (0, 1, 2)
    (on_policy,) = [o for o in make_objectives(recipe) if o.label == "gold_on_policy"]
    (gold, *_) = [o for o in make_objectives(recipe) if o.label == "gold"]
    assert (on_policy.samples, gold.samples) == (True, False)
    for objective in (gold, on_policy):
        options = objective.methods[0].options
        assert (options.matched_weight, options.unmatched_weight, options.beta) == (1, 1, 0)


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_papers_recipes_have_the_settings_that_are_published(name: str) -> None:
    """Nothing is listed as different beside the published numbers, which have their own record of the settings."""
    recipe = load_recipe(name)
    source = published(recipe.paper)
    accepted = {key: value if isinstance(value, list) else [value] for key, value in source.settings.items()}
    values = recipe.model_dump(mode="json")
    found = {key: _lookup(values, key) for key in accepted}
    assert {key: value for key, value in found.items() if value not in accepted[key]} == {}
    columns = {f"{task}.{metric}" for task, metric in _metrics(recipe)}
    assert {key for key in source.columns if key.partition(".")[0] in recipe.tasks} <= columns
    released = {o.label for o in make_objectives(recipe) if o.fidelity == "released"}
    assert released == {"fkd", "rkd", "mined", "uld", "cdm", "gold"}


def _metrics(recipe: Any) -> list[tuple[str, str]]:
    """What the recipe's tasks measure where all their data is there."""
    names = [f"rouge_l_{name}" if name != "dolly" else "rouge_l" for name in recipe.settings_of("dolly").sets]
    code = [f"{name}_plus" for name in recipe.settings_of("codem").benchmarks]
    found = {"dolly": names, "codem": code, "gsm8k": ["exact_match_strict"]}
    return [(task, metric) for task in recipe.tasks for metric in found[task]]


@pytest.mark.parametrize("name", recipe_names())
def test_commands_in_a_header_parse(name: str) -> None:
    """Every `harness run` and `harness plan` of a header loads the recipe with its overrides."""
    header = find_recipe(name).read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    commands = [line.lstrip("# ").split("  ")[0] for line in header if line.startswith("#   harness ")]
    assert any(line.startswith("harness run") for line in commands)
    for command in commands:
        words = shlex.split(command)[1:]
        if words[0] in ("run", "plan"):
            assert words[1] == f"recipe={name}"
            load_recipe(name, [word for word in words[2:] if "=" in word])


def test_all_published_pairs_are_known_and_no_others(tmp_path: Path) -> None:
    """A recipe is checked without the reports' libraries; both read the same files."""
    for pair in published_pairs():
        assert load_recipe("smoke", [f"paper={pair}"]).paper == pair
    with pytest.raises(RecipeError, match=re.escape(", ".join(published_pairs()))):
        load_recipe("smoke", ["paper=x"])
