"""What a person sees while a run works, and a plan as a table."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from harness.plan import Plan, Stage
    from harness.store import Store

# Rough seconds of each kind of stage, relative to another: only the overall bar's time left depends on them.
_WEIGHTS = {"teacher": 3.0, "warm_start": 4.0, "rows": 2.0, "student": 4.0, "answers": 1.5, "bits": 0.3, "scores": 0.5}


class TerminalProgress:
    """Two bars, one for the stage and one for the whole run; finished cells stay as lines above them."""

    def __init__(self, console: Console, plan: Plan, store: Store) -> None:
        self.console, self.plan, self.store = console, plan, store
        self.missing = [stage for stage in plan.stages() if store.find(stage.kind, stage.identity) is None]
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.total = self.bars.add_task("all stages", total=self._weight(self.missing), visible=False)
        self.stages = self.bars.add_task("[bold]all stages", total=len(self.missing) or 1)
        self.stage = self.bars.add_task("", total=1, visible=False)
        self.reported: set[str] = set()

    def __enter__(self) -> TerminalProgress:
        if self.missing:
            self.bars.start()
            self.console.print(f"{len(self.plan.cells)} cells, {len(self.missing)} stages to run")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report_cells()
        self.bars.stop()

    def message(self, text: str) -> None:
        self.console.print(text)

    def begin(self, stage: str, total: int) -> None:
        self.bars.reset(self.stage, total=total, description=stage, visible=True)
        if not self.console.is_terminal:
            self.console.print(f"  {stage}")

    def advance(self, done: int) -> None:
        self.bars.update(self.stage, completed=done)

    def finish(self) -> None:
        self.bars.update(self.stage, visible=False)
        self._report_cells()

    def _report_cells(self) -> None:
        """A line for each cell whose answers have been scored since the last call."""
        left = [stage for stage in self.missing if self.store.find(stage.kind, stage.identity) is None]
        self.bars.update(self.stages, completed=len(self.missing) - len(left))
        fresh = {stage.identity for stage in self.missing} - {stage.identity for stage in left}
        for cell in self.plan.cells:
            if cell.scores.identity in fresh and cell.name not in self.reported:
                self.reported.add(cell.name)
                self.console.print(f"[green]done[/]  {cell.name}")

    def _weight(self, stages: list[Stage]) -> float:
        return sum(_WEIGHTS.get(stage.kind, 1.0) for stage in stages) or 1.0


def plan_table(plan: Plan, store: Store) -> Group:
    """Stages by task, what is stored and what would run; below, the cells."""
    stages = Table(title=f"{plan.recipe.name}: {len(plan.cells)} cells", title_justify="left")
    for column in ("task", "stage", "seed", "state", "identity"):
        stages.add_column(column)
    demanded = _demanded(plan, store)
    counts = {"stored": 0, "would run": 0, "not needed": 0}
    for stage in plan.stages():
        state = "stored" if store.find(stage.kind, stage.identity) else "would run"
        if state == "would run" and stage.identity not in demanded:
            state = "not needed"  # all that reads it is stored
        counts[state] += 1
        style = {"stored": "green", "would run": "yellow", "not needed": "dim"}[state]
        fidelity = " (released)" if stage.objective and stage.objective.fidelity == "released" else ""
        stages.add_row(stage.task, stage.title + fidelity, str(stage.seed), Text(state, style), stage.identity[:12])
    summary = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    return Group(stages, Text(f"{len(plan.stages())} stages: {summary}."))


def _demanded(plan: Plan, store: Store) -> set[str]:
    """Identities of stages that would have to run, seen from the cells' last stages."""
    wanted: set[str] = set()
    pending = [end for cell in plan.cells for end in (cell.scores, cell.bits) if end is not None]
    while pending:
        stage = pending.pop()
        if stage.identity not in wanted and store.find(stage.kind, stage.identity) is None:
            wanted.add(stage.identity)
            pending.extend(stage.inputs.values())
    return wanted
