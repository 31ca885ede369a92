"""What a person sees while a run works, and a plan as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from harness.base.files import gigabytes
from harness.plan.reasons import reasons
from harness.plan.stages import demanded_stages
from harness.terminal.columns import Listing
from harness.terminal.stage_log import StageLog

if TYPE_CHECKING:
    from harness.plan.stages import Plan, Stage
    from harness.store.store import Store

# Rough seconds of each kind of stage, relative to another: only the overall bar's time left depends on them.
_WEIGHTS = {
    "teacher": 3.0,
    "warm_start": 4.0,
    "rows": 2.0,
    "said": 3.0,
    "student": 4.0,
    "answers": 1.5,
    "bits": 0.3,
    "scores": 0.5,
}


class TerminalProgress:
    """Two bars, one for the stage and one for the whole run; finished cells stay as lines above them.

    A log or a pipe has lines in their place: when a stage starts, how far it is, what it took.

    Args:
        asked: kinds of stages that are made; None for all.
    """

    def __init__(self, console: Console, plan: Plan, store: Store, asked: Container[str] | None = None) -> None:
        self.console, self.plan, self.store = console, plan, store
        demanded = demanded_stages(plan, store)
        made = (stage for stage in plan.stages() if asked is None or stage.kind in asked)
        self.missing = [stage for stage in made if stage.identity in demanded]
        self.ends = {cell.name: demanded & {end.identity for end in cell.ends} for cell in plan.evaluated}
        self.finished: set[str] = set()  # grows only: a student's weights may be removed once they are read
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.everything = self.bars.add_task("[bold]all stages", total=_weight(self.missing) or 1)
        self.reported: set[str] = set()
        self.own = _Line(self, "")

    def __enter__(self) -> TerminalProgress:
        if self.missing:
            self.bars.start()
            cells = len(self.plan.cells)
            self.console.print(f"{cells} cell{'s' * (cells != 1)}, {len(self.missing)} stages to run")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update()
        self.bars.stop()

    def message(self, text: str) -> None:
        self.console.print(text)

    def begin(self, stage: str, total: int) -> None:
        self.own.begin(stage, total)

    def advance(self, done: int, loss: float | None = None) -> None:
        self.own.advance(done, loss)

    def finish(self) -> None:
        self.own.finish()

    def beside(self, name: str) -> _Line:
        """A bar, or lines, of another process."""
        return _Line(self, f"{name}: ")

    def stages_done(self) -> tuple[float, str]:
        """The share of the run that is done, and how many stages, in words."""
        done = self._update()
        return _weight(done) / (_weight(self.missing) or 1), f"{len(done)} of {len(self.missing)} stages are done"

    def _update(self) -> list[Stage]:
        """Move the overall bar, and print a line for each cell that has got its numbers since the last call.

        Returns:
            What is done of the stages that had to run.
        """
        self.finished |= {s.identity for s in self.missing if self.store.find(s.kind, s.identity) is not None}
        done = [stage for stage in self.missing if stage.identity in self.finished]
        self.bars.update(self.everything, completed=_weight(done))
        for cell in self.plan.evaluated:
            ends = self.ends[cell.name]
            if ends and cell.name not in self.reported and ends <= self.finished:
                self.reported.add(cell.name)
                self.console.print(f"[green]done[/]  {cell.name}")
        return done


class _Line:
    """What one process of a run is at: a bar, or lines of a log."""

    def __init__(self, whole: TerminalProgress, name: str) -> None:
        self.whole, self.name = whole, name
        self.bar = whole.bars.add_task("", total=1, visible=False)
        console = whole.console
        self.log = None if console.is_terminal else StageLog(lambda line: console.print(f"{name}{line}", markup=False))

    def message(self, text: str) -> None:
        self.whole.message(text)

    def begin(self, stage: str, total: int) -> None:
        self.whole.bars.reset(self.bar, total=total, description=f"{self.name}{stage}", visible=True)
        if self.log is not None:
            self.log.begin(stage, total)

    def advance(self, done: int, loss: float | None = None) -> None:
        self.whole.bars.update(self.bar, completed=done)
        if self.log is not None:
            self.log.advance(done, loss)

    def finish(self) -> None:
        self.whole.bars.update(self.bar, visible=False)
        share, stages = self.whole.stages_done()
        if self.log is not None:
            self.log.finish(share, stages)


def _weight(stages: list[Stage]) -> float:
    return sum(_WEIGHTS.get(stage.kind, 1.0) for stage in stages)


def plan_table(plan: Plan, store: Store, unknown: Container[str] = ()) -> Group:
    """What is stored and what would run: stages that cells share, then a row for each cell.

    Args:
        unknown: tasks whose stages have identities that only the data decides.
    """
    demanded = demanded_stages(plan, store)
    shared = Listing("task", "stage", "seed", "identity", "state", title=f"{plan.recipe.name}: stages that cells share")
    beside = f" and {len(plan.references)} references" if plan.references else ""
    cells = Listing("task", "method", "seed", *_OF_A_CELL, title=f"{len(plan.cells)} cells{beside}")
    for stage in plan.stages():
        if stage.kind not in _OF_A_CELL.values():
            state = _state(stage, store, demanded)
            identity = "unknown" if stage.task in unknown else stage.identity[:12]
            shared.add_row(stage.task, stage.title, str(stage.seed), identity, state)
    for reference in plan.references:
        stages = {"answers": reference.answers, "scores": reference.scores, "bits": reference.bits}
        states = [_state(stages.get(kind), store, demanded) for kind in _OF_A_CELL.values()]
        cells.add_row(reference.task, reference.row, str(reference.seed), *states)
    for cell in plan.cells:
        stages = {"student": cell.student, "answers": cell.answers, "scores": cell.scores, "bits": cell.bits}
        states = [_state(stages.get(kind), store, demanded) for kind in _OF_A_CELL.values()]
        cells.add_row(cell.task, cell.objective.name, str(cell.seed), *states)
    counts = Counter(str(_state(stage, store, demanded)) for stage in plan.stages())
    summary = ", ".join(f"{number} {state}" for state, number in counts.items())
    lines = [f"{len(plan.stages())} stages: {summary}. Nothing was executed."]
    if why := reasons(plan, store, unknown):
        lines += ["New beside what is stored, by", *(f"  {reason}" for reason in why)]
    if left := store.left_alone():
        lines.append(left)
    return Group(shared, cells, Text("\n".join(lines)))


def stored_table(plan: Plan, store: Store) -> Group:
    """What there is of the stages that a recipe asked for alone."""
    table = Listing("task", "stage", "identity", "rows", title=f"{plan.recipe.name}: teachers")
    for stage in plan.ends:
        found = store.find(stage.kind, stage.identity)
        size = "" if found is None or stage.kind != "rows" else gigabytes(int(found.manifest["bytes"]))
        table.add_row(stage.task, stage.title, stage.identity[:12], Text("failed", "red") if found is None else size)
    ending = "Run the same without stages to train students from them." if plan.ends else "No method needs a teacher."
    return Group(table, Text(f"They are in {store.root}. {ending}"))


_OF_A_CELL = {"training": "student", "answers": "answers", "scores": "scores", "bits per byte": "bits"}


def _state(stage: Stage | None, store: Store, demanded: set[str]) -> Text:
    if stage is None:
        return Text("-", "dim")
    if store.find(stage.kind, stage.identity) is not None:
        return Text("stored", "green")
    # What nobody asks for any more: all that reads it is stored.
    return Text("would run", "yellow") if stage.identity in demanded else Text("not needed", "dim")
