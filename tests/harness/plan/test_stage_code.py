"""Which code is part of a stage's identity: all of it but what is declared here, with the reason."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.code_closure import OWN_PACKAGES as PACKAGES
from harness.base.code_closure import Closure, Sources, own_sources
from harness.base.errors import HarnessError
from harness.plan.builder import make_plan
from harness.plan.stage_code import (
    CANNOT_CHANGE_A_RESULT,
    ENTRY_POINTS,
    ON_REQUEST,
    WIRING,
    StageCodes,
    closure_of,
    own_codes,
)
from harness.plan.stages import Plan
from harness.recipe.load import validate
from harness.tasks import tasks
from harness.tasks.base import Task
from methods.base import registered
from tests.copies import copy_to_change

# Files and folders of which no stage uses anything, and why that can't change a result.
BESIDE_RESULTS = {
    "harness/__init__.py": "names for a notebook",
    "harness/__main__.py": "starts the command line",
    "harness/cli.py": "asks and shows",
    "harness/verbs/asked.py": "asks",
    "harness/verbs/clusters.py": "asks and shows",
    "harness/verbs/keeping.py": "asks and shows",
    "harness/verbs/starting.py": "asks, and writes a recipe",
    "harness/recipe/starting.py": "writes a recipe",
    "harness/data/pair.py": "says what is found of a pair",
    "harness/recipe/overrides.py": "what it reads stands in the values of stages",
    "harness/tuning/tune.py": "asks and shows",
    "harness/terminal": "shows",
    "harness/litmus": "measures what is stored, and stores nothing",
    "harness/cluster": "has stages made elsewhere",
    "harness/recipe/launch.py": "says what machines do, which changes no result",
    "harness/results": "reads what is stored",
    "harness/recipe/fields.py": "lists settings",
    "harness/recipe/lock.py": "what it reads stands in the values of stages",
    "harness/recipe/load.py": "what it reads stands in the values of stages",
    "harness/recipe/references.py": "what it reads stands in the values of stages",
    "harness/recipe/yaml_text.py": "what it reads stands in the values of stages",
    "harness/recipe/problems.py": "refuses, before anything is planned",
    "harness/plan/builder.py": "what it decides stands in the values of stages",
    "harness/plan/tuning.py": "what it decides stands in the values of stages",
    "harness/plan/stage_code.py": "decides identities",
    "harness/plan/code_cache.py": "keeps what decides identities",
    "harness/plan/reasons.py": "explains identities",
    "harness/plan/costs": "estimates",
    "harness/api.py": "asks and shows",
    "harness/base/code_closure.py": "decides identities",
    "harness/base/code_definition.py": "decides identities",
    "harness/base/code_source.py": "decides identities",
    "harness/base/compilation.py": "tells what was compiled",
    "harness/base/errors.py": "words",
    "harness/base/profiled.py": "holds what was measured beside the stages",
    "harness/base/progress.py": "words",
    "harness/base/installation.py": "finds packages and recipes",
    "harness/base/heard_warnings.py": "words",
    "harness/base/promises.py": "words",
    "harness/base/provenance.py": "says what code made a result",
    "harness/run/profiling.py": "measures, and stores nothing",
    "harness/plan/apart.py": "names what is measured beside the stages",
    "harness/run/leaders.py": "warns",
    "harness/run/demand.py": "has stages made that are not stored",
    "harness/run/preflight.py": "refuses, before anything is made",
    "harness/run/runner.py": "walks a plan",
    "harness/plan/jobs.py": "cuts a plan for several processes",
    "harness/run/shared.py": "has several processes walk a plan",
    "harness/run/worker.py": "has stages made that it is given",
    "harness/run/workers.py": "hands out what stages are made where",
    "harness/store/store.py": "keeps what was made",
    "harness/store/contents.py": "lists what is kept",
    "harness/base/stopping.py": "ends a run that is asked to end",
    "harness/tasks/contract.py": "tests a task",
    "harness/training/contract.py": "tests a method",
    "harness/training/contract_bench.py": "tests a method",
    "methods/__init__.py": "losses for a notebook",
    "methods/base.py": "names what stands elsewhere, where it counts",
    "harness/tasks/__init__.py": "finds tasks, which count where they are handed over",
    "harness/tasks/build.py": "gives tasks their settings, which stand in the values of stages",
    "harness/tasks/dev.py": "writes data files, whose digests stand in the values of stages",
    "harness/tasks/hub.py": "downloads data files, whose digests stand in the values of stages",
    "harness/data/align.py": "aligns a text for a notebook",
    "methods/library/on_logits.py": "losses for a notebook",
    "harness/tasks/files.py": "says which data files are there",
    "methods/library/dual.py": "what it decides stands in the values of stages",
}


@pytest.fixture(scope="module")
def all_tasks() -> list[Task]:
    return [task(task.Settings(), None) for task in tasks().values()]


def closures(found: Sources, given: list[Task], without: bool = True) -> list[tuple[str, Closure]]:
    """Of every kind of stage with every task and method, and all that a recipe can ask for."""
    methods = [kind() for kind in registered().values()]
    if without:
        return [
            (kind, closure_of(kind, task, methods, list(ON_REQUEST), found)) for kind in ENTRY_POINTS for task in given
        ]
    classes = [f"{type(one).__module__}:{type(one).__name__}" for one in (*given, *methods)]
    return [(kind, found.closure(ENTRY_POINTS[kind], classes)) for kind in ENTRY_POINTS]


def files(root: Path) -> set[str]:
    """All files that say something."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return {
        path.relative_to(root).as_posix()
        for path in paths
        if path.name != "__init__.py" or ast.parse(path.read_text(encoding="utf-8")).body[1:]
    }


def is_below(name: str, place: str) -> bool:
    return name == place or name.startswith((f"{place}.", f"{place}/"))


def test_every_file_is_part_of_a_stage_or_declared(all_tasks: list[Task]) -> None:
    reached = {file for _, closure in closures(own_sources(), all_tasks) for file in closure.files}
    there = files(own_sources().root)
    declared = {file for file in there if any(is_below(file, place) for place in BESIDE_RESULTS)}
    assert there - reached - declared == set()
    assert reached & declared == set()
    assert {place for place in BESIDE_RESULTS if not any(is_below(file, place) for file in there)} == set()


def test_entry_points_and_what_is_left_out_are_there() -> None:
    found = own_sources()
    places = [place for of in (*ENTRY_POINTS.values(), *WIRING.values()) for place in of]
    for place in (*places, *CANNOT_CHANGE_A_RESULT, *ON_REQUEST.values()):
        module, _, name = place.partition(":")
        assert found.path(module) or (found.root / module.replace(".", "/")).is_dir(), place
        if name:
            found.read(module, name)


def test_progress_gives_nothing_back() -> None:
    tree = ast.parse((own_sources().root / "harness/base/progress.py").read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions
    assert all(isinstance(each.returns, ast.Constant) and each.returns.value is None for each in functions)


def test_errors_are_raised_and_never_read(all_tasks: list[Task]) -> None:
    used = {
        each.name
        for _, closure in closures(own_sources(), all_tasks, without=False)
        for each in closure.definitions
        if each.module == "harness.base.errors"
    }
    assert used <= {"HarnessError", "suggest"}


def test_no_code_is_imported_by_a_name_that_only_a_run_knows(all_tasks: list[Task]) -> None:
    """It would be part of no identity."""
    for _, closure in closures(own_sources(), all_tasks):
        for each in closure.definitions:
            assert not {"import_module", "__import__", "run_module", "run_path"} & set(each.attributes), each


# --- Moves ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(tiny_recipe: dict[str, Any]) -> Callable[[Sources | None], Plan]:
    recipe = validate("tiny", tiny_recipe | {"name": "tiny", "tasks": ["dolly"], "methods": ["sft", "gold"]})
    return lambda sources: make_plan(recipe, None, sources)


def test_a_module_that_moves_and_a_comment_cost_nothing(
    tmp_path: Path, planned: Callable[[Sources | None], Plan]
) -> None:
    root = own_sources().root
    for package in PACKAGES:
        copy_to_change(root / package, tmp_path / package, "*.jsonl", "*.pyc")
    before = planned(None).identity
    assert planned(Sources(tmp_path, PACKAGES)).identity == before
    moves = {
        "harness.training.trainer": "harness.run.steps",
        "methods.library.divergences": "methods.library.distances",
    }
    for old, new in moves.items():
        (tmp_path / f"{old.replace('.', '/')}.py").rename(tmp_path / f"{new.replace('.', '/')}.py")
    for path in [path for package in PACKAGES for path in (tmp_path / package).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for old, new in moves.items():
            text = text.replace(old, new)
        text = re.sub(r'^(\s+)"""(?=\w)', r'\1"""So: ', text, flags=re.MULTILINE)
        path.write_text(text + "\n# the end\n", encoding="utf-8")
    after = planned(Sources(tmp_path, PACKAGES))
    assert after.identity == before
    assert "harness/run/steps.py" in after.cells[0].student.code


# --- Plug-ins ---------------------------------------------------------------------------------------------------------

PLUG_IN = """
from methods.base import LossSums, Method, TeacherKind
from plug_in.scale import FACTOR

class Mine(Method):
    name = "mine"
    teacher = TeacherKind.CROSS_TOKENIZER

    def loss(self, chunk):
        return LossSums(kd=FACTOR * chunk.student.logits.sum())
"""


def test_the_package_of_a_plug_in_is_part_of_its_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_tasks: list[Task]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plug_in").mkdir()
    for name, text in {"__init__": "", "mine": PLUG_IN, "scale": "FACTOR = 2\n"}.items():
        (tmp_path / "plug_in" / f"{name}.py").write_text(text)
    import plug_in.mine  # type: ignore[import-not-found]

    digests = []
    for factor in (2, 3):
        (tmp_path / "plug_in" / "scale.py").write_text(f"FACTOR = {factor} + 0\n")
        code = StageCodes(Sources(own_sources().root, PACKAGES)).of("student", all_tasks[0], [plug_in.mine.Mine()])
        assert "scale.py" in code.files
        digests.append(code.digest)
    assert digests[0] != digests[1]
    for name in [name for name in sys.modules if name.startswith("plug_in")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_class_without_a_file_is_an_error(all_tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__name__": "typed_in"}
    exec(PLUG_IN.replace("from plug_in.scale import FACTOR", "FACTOR = 2"), namespace)
    monkeypatch.setitem(sys.modules, "typed_in", types.ModuleType("typed_in"))
    with pytest.raises(HarnessError, match="a class that stands in no file"):
        own_codes().of("student", all_tasks[0], [namespace["Mine"]()])
