"""How far students are from teachers on held-out references: small artefacts beside the stages of a plan.

They are measured while a student is at hand, and no student is trained again, no run ends, for the lack of one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.markup import escape

from harness.base.progress import Progress
from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.tokens import STUDENT, TokenizedExample
from harness.evaluate.divergence import FloatArray, Taught, measure
from harness.plan.apart import KIND, READ, ROWS_KIND, Distance, distances, teachers_of
from harness.plan.stages import Cell, Plan, Reference
from harness.run.demand import circumstances
from harness.run.workbench import Workbench
from harness.store.artefacts import APART
from harness.store.store import Store


class DistanceMaker:
    """Measures students of a plan that are stored whole, once each.

    Args:
        plan: whose.
        bench: what is loaded.
        store: where they are.
        progress: told where it can't be done.
    """

    def __init__(self, plan: Plan, bench: Workbench, store: Store, progress: Progress) -> None:
        self.plan, self.bench, self.store, self.progress = plan, bench, store, progress
        self.teachers = teachers_of(plan)
        self._said: dict[str, dict[str, FloatArray]] = {}  # what teachers say of references, by the rows' identity

    def measure(self, cell: Cell | Reference) -> None:
        """A student's distance from each teacher that is stored."""
        missing = [
            one
            for one in distances(self.plan, cell, self.teachers)
            if all(self.store.find(stage.kind, stage.identity) for stage in (one.student, one.teacher))
            and self.store.find(KIND, one.identity) is None
        ]
        if missing:
            try:
                self._measure(cell, missing)
            except Exception as error:
                self.progress.message(
                    f"[yellow]no distance from its teachers[/] of {escape(f'{cell.name}: {error!r}')}"
                )

    def _measure(self, cell: Cell | Reference, wanted: Sequence[Distance]) -> None:
        """Of one student, which reads the references once for all teachers."""
        bench, started = self.bench, time.monotonic()
        examples = bench.texts.examples(cell.task, "test")[:READ]
        teachers = [self._taught(examples, one) for one in wanted]
        pad, student = bench.published.sides[STUDENT].tokenizer.pad_token_id, bench.trained.student(wanted[0].student)
        found = measure(student, teachers, examples, pad=pad, read=bench.trained.read.of(wanted[0].student.identity))
        for one, of_one in zip(wanted, found, strict=True):
            title = f"distance of {cell.name} from the {one.teacher.role}-tokenizer teacher"
            manifest: dict[str, object] = {"title": title, "task": cell.task, "seed": cell.seed}
            manifest["inputs"] = {"rows": {"kind": ROWS_KIND, "identity": one.rows}}
            with self.store.create(KIND, one.identity, manifest) as folder:
                APART.write(folder, of_one)
                manifest |= circumstances(started)

    def _taught(self, examples: Sequence[TokenizedExample], one: Distance) -> Taught:
        """What is compared with a student, kept while it is the same for the next one."""
        said = self._said.setdefault(one.rows, {})
        alike = self.bench.pairs.of(one.teacher.role).same_tokenizer
        rows = self._rows(examples, one)
        return Taught(one.teacher.role, self.bench.signal.head(one.teacher), rows, alike, said)

    def _rows(self, examples: Sequence[TokenizedExample], one: Distance) -> StoredRows:
        """The teacher's rows of the references, made by the first student that is measured."""
        found = self.store.find(ROWS_KIND, one.rows)
        if found is None:
            started, role = time.monotonic(), one.teacher.role
            manifest: dict[str, object] = {"title": f"held-out rows of the {role}-tokenizer teacher"}
            pad = self.bench.published.sides[role].tokenizer.pad_token_id
            with self.store.create(ROWS_KIND, one.rows, manifest) as folder:
                store_rows(self.bench.trained.teacher(one.teacher), role, examples, folder, pad=pad)
                manifest |= circumstances(started)
            found = self.store.find(ROWS_KIND, one.rows)
            assert found is not None
        return StoredRows(found.checked())
