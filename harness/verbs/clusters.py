"""What the scripts call that `launch.executor=slurm` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.base.errors import HarnessError
from harness.verbs.keeping import console

cluster_verbs = typer.Typer()


@cluster_verbs.command("slurm-job", hidden=True)
def slurm_job(
    folder: Annotated[Path, typer.Argument(help="Of the scripts.")],
    step: Annotated[str, typer.Argument(help="Name of an array, or collect.")],
    index: Annotated[int | None, typer.Argument(help="Of the job in it.", min=0)] = None,
) -> None:
    """Do one job of a run, or collect what all have done."""
    from harness.cluster import slurm_job as of_slurm
    from harness.terminal.progress import TerminalProgress

    if step != "collect":
        if index is None:
            raise HarnessError("job", f"{step} without a number", "a number within the array")
        of_slurm.slurm_job(folder, step, index, lambda plan, store: TerminalProgress(console, plan, store))
        return
    done = of_slurm.collect(folder, console.print)
    console.print(done.report())
    if any(not failure.skipped for failure in done.failures):
        raise typer.Exit(1)
