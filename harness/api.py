"""The harness from Python: load a recipe, look at its plan, run it, and read what it made.

    from harness import api

    recipe = api.load_recipe("quickstart", "train.steps=20", methods=["control", "sft", "uld"])
    run = api.run(recipe)
    run.table()
    run.cell(method="uld", task="gsm8k", seed=0).answers()

The command line is written on this module. Bad input raises :class:`HarnessError`: what is wrong, what was found, what
was expected, what to do. Heavy libraries load inside the functions, so that the import itself takes no time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.base.errors import HarnessError, unknown
from harness.base.files import expanded
from harness.base.heard_warnings import hear_warnings
from harness.base.installation import claim_packages, runs_folder
from harness.base.provenance import commit
from harness.recipe.overrides import as_overrides

if TYPE_CHECKING:
    from harness.base.progress import Progress
    from harness.base.promises import Checked
    from harness.litmus.trial import Watched
    from harness.plan.stages import Plan, Stage
    from harness.recipe.fields import FieldsPart
    from harness.recipe.load import recipe_names
    from harness.recipe.lock import Lock, TuningMetric, lock_beside, write_lock
    from harness.recipe.schema import Recipe
    from harness.recipe.starting import OwnPair, first_recipe, model_uri, readable_rows
    from harness.results.bundle import export_run, import_bundle, open_bundle
    from harness.results.run import CellResult, Run, WrittenReport
    from harness.results.upkeep import damaged_files, prune_store, store_contents
    from harness.run.profiling import profile
    from harness.store.contents import StoredFolder
    from harness.store.store import Store
    from harness.tasks.base import Task
    from harness.tuning.tune import tune, tuned, tuning_plan
    from reports import RunComparison
    from reports.known_truth import Litmus
    from reports.two_runs import Difference

__all__ = [
    "CellResult",
    "Checked",
    "HarnessError",
    "Lock",
    "OwnPair",
    "Plan",
    "Progress",
    "Recipe",
    "Run",
    "StoredFolder",
    "TuningMetric",
    "WrittenReport",
    "__version__",
    "changes_since",
    "check_method",
    "check_task",
    "commit",
    "compare",
    "damaged_files",
    "data_folder",
    "download_data",
    "export_run",
    "first_recipe",
    "hear_warnings",
    "import_bundle",
    "leads",
    "litmus",
    "load_recipe",
    "lock_beside",
    "make_dev_folder",
    "missing_stages",
    "model_uri",
    "open_bundle",
    "open_run",
    "plan",
    "profile",
    "prune_store",
    "readable_rows",
    "recipe_fields",
    "recipe_names",
    "recipe_of",
    "run",
    "store",
    "store_contents",
    "tasks_of",
    "tune",
    "tuned",
    "tuning_plan",
    "write_lock",
]

claim_packages()  # before anything else imports methods or reports

_ELSEWHERE = {
    **dict.fromkeys(("CellResult", "Run", "WrittenReport"), "harness.results.run"),
    "Checked": "harness.base.promises",
    **dict.fromkeys(("Lock", "TuningMetric", "lock_beside", "write_lock"), "harness.recipe.lock"),
    "Plan": "harness.plan.stages",
    "Progress": "harness.base.progress",
    "Recipe": "harness.recipe.schema",
    "recipe_names": "harness.recipe.load",
    **dict.fromkeys(("OwnPair", "first_recipe", "model_uri", "readable_rows"), "harness.recipe.starting"),
    "StoredFolder": "harness.store.contents",
    **dict.fromkeys(("export_run", "import_bundle", "open_bundle"), "harness.results.bundle"),
    **dict.fromkeys(("damaged_files", "prune_store", "store_contents"), "harness.results.upkeep"),
    "profile": "harness.run.profiling",
    **dict.fromkeys(("tune", "tuned", "tuning_plan"), "harness.tuning.tune"),
}


def __getattr__(name: str) -> Any:
    """Functions of other modules, and types of what functions take and give; imported when they are asked for."""
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def recipe_fields(part: str | None = None) -> list[FieldsPart]:
    """What a recipe may set: of all of it, or of a part, task or method, with types, defaults and meanings.

    Raises:
        HarnessError: no such part; names the nearest.
    """
    from harness.recipe.fields import parts

    return parts(part)


def load_recipe(name: str | Path, /, *overrides: str, **fields: Any) -> Recipe:
    """A recipe with whatever should differ from it, validated.

        load_recipe("quickstart", "train.steps=20", "seeds=[0,1]")
        load_recipe("my.yaml", methods=["control", "gold"], train={"steps": 20}, student={"model": "path:/my/model"})

    Args:
        name: of a recipe that the project ships, or the path of a YAML file.
        overrides: ``key=value`` as on the command line: dots in the key, the value is YAML.
        fields: the same as values of Python. Mappings merge key by key, so that ``train={"steps": 20}`` leaves the
            other fields of ``train`` as they are; whatever else replaces what the recipe has.

    Raises:
        HarnessError: no such recipe, or one with problems: all of them at once.
    """
    from harness.recipe.load import load_recipe as load

    return load(str(name), as_overrides(overrides, fields))


def recipe_of(run: Run, /, *overrides: str, **fields: Any) -> Recipe:
    """The recipe of an earlier run, with every default as it was then, to run it again.

    Args:
        run: from :func:`open_run`; run.json is enough, the store may be elsewhere.
        overrides, fields: as in :func:`load_recipe`, such as where the data lies on this machine.

    Raises:
        HarnessError: this version of the harness has no such fields, or an override is wrong.
    """
    from harness.results.repeat import recipe_of as recipe

    return recipe(run.recorded, as_overrides(overrides, fields))


def changes_since(run: Run, made: Plan) -> list[Difference]:
    """What differs from an earlier run if a plan of its recipe runs now: fields, digests, versions, the device.

    Where a stage means something else than it did then, "identity" is among them.
    """
    from harness.base.identity import environment
    from harness.results.repeat import changes_since as changes

    return changes(run.recorded, made, environment())


def check_method(name: str) -> Iterator[Checked]:
    """Hold a method, built in or a plug-in's, to what every method promises; one promise after the other.

    Raises:
        HarnessError: there is no such method.
    """
    from harness.training import contract
    from methods.base import registered

    if name not in registered():
        raise unknown("method", name, registered())
    return contract.check_method(name)


def check_task(name: str, root: Path | str | None = None) -> list[Checked]:
    """Hold a task, built in or a plug-in's, to what every task promises.

    Args:
        root: folder of its data; None for the samples that come with it.

    Raises:
        HarnessError: there is no such task.
    """
    from harness.tasks import contract

    return list(contract.check_task(name, None if root is None else expanded(root)))


def litmus(
    method: str | None = None, /, *overrides: str, runs: Path | str | None = None, watched: Watched | None = None
) -> Litmus:
    """What a method, also a plug-in's, learns where the truth is known; None for all (docs/known_truth.md).

    Raises:
        HarnessError: no such method, a wrong override, or a training that fails.
    """
    from harness.litmus.trial import litmus as made

    return made(method, overrides, runs_folder(runs), watched)


def plan(recipe: Recipe) -> Plan:
    """The cells of a recipe (task, method, seed) and their stages with identities; executes nothing.

    ``plan(recipe).stages()`` lists them all, inputs before what reads them; :func:`missing_stages` what would run.

    Raises:
        HarnessError: a model's name or a data file is wrong, or a method lacks its teacher.
    """
    from harness.plan.builder import make_plan

    return make_plan(recipe)


def missing_stages(made: Plan, runs: Path | str | None = None) -> list[Stage]:
    """The stages of a plan that a run would have to make; those that nothing unfinished reads are none of them.

    Args:
        runs: folder of results, as in :func:`run`.
    """
    from harness.plan.stages import demanded_stages

    demanded = demanded_stages(made, store(runs))
    return [stage for stage in made.stages() if stage.identity in demanded]


def run(
    recipe: Recipe | Plan,
    progress: Progress | None = None,
    *,
    runs: Path | str | None = None,
    unsafe_execution: bool = False,
    stop_after: float | None = None,
) -> Run:
    """Train and evaluate what a recipe asks for; what is stored already is not made again.

    An interrupted run goes on where it stopped when it is called again. Under a launcher (``torchrun``) every process
    calls this; all but the first train along until the run is over. With ``launch.executor: slurm`` it submits jobs and
    returns; called again, it says how far they are, and gives the run when they are done.

    Args:
        recipe: from :func:`load_recipe`, or its plan.
        progress: told about every stage and every warning; None tells nobody.
        runs: folder of results, shared by all runs; None for that of the environment variable HARNESS_RUNS, or
            ``runs`` in the working folder.
        unsafe_execution: whether generated code may run without a sandbox where none can start.
        stop_after: seconds; cells come seed by seed then, and what is not done by then is left to the next call.

    Returns:
        The run. Stages that failed are no exception: they are rows with a reason, and in :attr:`Run.failures`.

    Raises:
        HarnessError: bad input, found before anything is trained wherever it can be; models or data are not there.
    """
    from rich.markup import escape

    from harness.base.progress import Silent
    from harness.base.ranks import Ranks
    from harness.cluster.executors import runner_for
    from harness.plan.stages import Plan
    from harness.results.readings import note_readings
    from harness.results.record import run_folder, write_record
    from harness.results.run import Run
    from harness.tasks import tasks
    from methods.base import registered

    told = progress or Silent()
    with hear_warnings(lambda text: told.message(f"[yellow]{escape(text)}[/]")) as heard:
        tasks(), registered()  # a plug-in that can't be used is said in every run
        made = recipe if isinstance(recipe, Plan) else plan(recipe)
        folder, ranks = run_folder(runs_folder(runs), made), Ranks.join()
        runner = runner_for(made.recipe.launch)(made, store(runs), folder, told, unsafe_execution, ranks)
        if ranks.rank > 0:
            runner.follow()
            ranks.end()
            return Run(folder)
        try:
            with ranks.leading(), runner.store.in_use():
                runner.run(stop_after)
        finally:  # whatever stops a run, its folder shows the cells that are done
            if not made.recipe.stages:
                readings = note_readings(made, runner.store)
                write_record(folder, made, runner.failures, runner.environment(), heard, readings)
    return Run(folder, runner.failures.values())


def open_run(folder: Path | str, runs: Path | str | None = None) -> Run:
    """A run that was made earlier, here or elsewhere; needs no model.

    Args:
        folder: of the run, or its name within ``runs``.
        runs: as in :func:`run`.

    Raises:
        HarnessError: there is no run, or another version of the harness wrote it.
    """
    from harness.results.compare import folder_of
    from harness.results.run import Run

    found = Run(folder_of(Path(folder), runs_folder(runs)))
    found.recorded  # noqa: B018 - read now, so that the error comes where the folder is named
    return found


def compare(first: Run, second: Run) -> RunComparison:
    """Two runs side by side: what differs in settings, versions and sources, and each number of both."""
    from harness.results.compare import compare_runs

    return compare_runs(first.recorded, second.recorded)


def store(runs: Path | str | None = None) -> Store:
    """The finished stages below a folder of results, as in :func:`run`; it need not exist yet."""
    from harness.store.store import Store

    return Store(runs_folder(runs))


def tasks_of(recipe: Recipe) -> dict[str, Task]:
    """A recipe's tasks by name, with their settings and their data folder, which need not be there."""
    return {name: recipe.task(name) for name in recipe.tasks}


def data_folder(root: str) -> Path:
    """The folder of data sets that ``data.root`` names.

    Raises:
        HarnessError: it is no folder.
    """
    from harness.tasks import build

    return build.data_folder(root)


def download_data(name: str, root: Path | str) -> list[str]:
    """Put a data set of the Hugging Face hub into a folder, in the form that its task reads.

    Args:
        name: "gsm8k" or "dolly_hub".
        root: folder of data sets, as in ``data.root``.

    Returns:
        What was written, a line each.

    Raises:
        HarnessError: no such set, or the hub can't be reached.
    """
    from harness.tasks import hub

    return list(hub.download(name, expanded(root)))


def make_dev_folder(folder: Path | str, root: Path | str | None = None) -> list[str]:
    """Make a folder of data sets whose test sets are held-out training rows: settings are chosen there.

    Args:
        folder: is made; a recipe names it as ``data.root``.
        root: folder of data sets to split; None for the samples that the project ships.

    Returns:
        What was written, a line each.

    Raises:
        HarnessError: ``folder`` exists, or ``root`` holds nothing to split.
    """
    from harness.tasks.base import samples_folder
    from harness.tasks.dev import write_dev_folder

    return write_dev_folder(samples_folder() if root is None else expanded(root), Path(folder))


def leads() -> bool:
    """Whether this process shows what a run does and made: of those that a launcher starts, the first."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"
