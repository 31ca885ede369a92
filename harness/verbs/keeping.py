"""The verbs that read, join and keep results: see :mod:`harness.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# A log or a pipe has no width of its own: one that holds the table, rather than 80.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

Runs = Annotated[
    Path,
    typer.Option("--runs", envvar="HARNESS_RUNS", help="Folder of results, shared by all runs.", show_default=True),
]

verbs = typer.Typer()


@verbs.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="Folder of a run, or its exported file.", show_default=False)],
    runs: Runs = Path("runs"),
) -> None:
    """Rebuild table and files from stored results, without a model; an exported file is unpacked beside itself."""
    from harness import api

    for folder in run:
        console.print(api.open_run(api.open_bundle(folder) if folder.suffix == ".zip" else folder, runs).report())


@verbs.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="The zip to write.", show_default=False)],
    students: Annotated[bool, typer.Option("--students", help="With the weights of students that are stored.")] = False,
    rows: Annotated[bool, typer.Option("--rows", help="With the teachers' rows.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Write a run's results as one file: to publish, or to join with others' on another machine."""
    from harness import api

    opened = api.open_run(run, runs)
    made = api.export_run(opened.recorded, opened.store, file, students=students, rows=rows)
    console.print(f"{made}, {made.stat().st_size / 1e6:.1f} MB", markup=False)


@verbs.command("import")
def import_files(
    files: Annotated[list[Path], typer.Argument(help="Exported runs.", show_default=False)], runs: Runs = Path("runs")
) -> None:
    """Put exported results among those here, all digests checked; a run of the whole recipe then makes one table."""
    from harness import api

    for file in files:
        done = api.import_bundle(file, runs)
        console.print(f"{done.folder}: {done.new} stages are new, {done.known} were here", markup=False)


@verbs.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Folder of another.", show_default=False)],
    runs: Runs = Path("runs"),
) -> None:
    """Show two runs side by side: what differs in their settings, then each number of both and the difference."""
    from harness import api
    from harness.terminal.comparison_view import comparison_view

    console.print(comparison_view(api.compare(api.open_run(first, runs), api.open_run(second, runs))))


@verbs.command()
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


@verbs.command()
def store(
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and check its digest.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Show what no run names, and what runs left.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --prune: remove it.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """List what is stored, with sizes; verify it, or prune what no run names. Exit code 1 where a file is damaged."""
    from harness import api
    from harness.terminal.store_view import damaged_view, pruned_view, store_view

    stored = api.store(runs)
    if prune:
        console.print(pruned_view(api.prune_store(stored, dry=not yes), not yes), soft_wrap=True)
    else:
        console.print(store_view(stored.root, api.store_contents(stored)))
    if verify:
        damaged = api.damaged_files(stored)
        console.print(damaged_view(damaged), soft_wrap=True)
        if damaged:
            raise typer.Exit(1)
