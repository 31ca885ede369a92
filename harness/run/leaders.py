"""A warning while a run goes on: a teacher that is no better than a student without one can't tell methods apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.markup import escape

from harness.base.progress import Progress
from harness.evaluate.bits_per_byte import corpus_bits_per_byte
from harness.plan.stages import Cell, Evaluated, Plan, Reference
from harness.store.artefacts import BITS
from harness.store.store import Store


class Leaders:
    """Bits per byte of what was evaluated so far, teachers beside warm start and baseline.

    Args:
        plan: of the run.
        store: where bits are.
        progress: told once of each teacher that does not lead.
    """

    def __init__(self, plan: Plan, store: Store, progress: Progress) -> None:
        self.plan, self.store, self.progress = plan, store, progress
        self.teachers: dict[str, float] = {}
        self.others: dict[str, float] = {}
        self.said: set[tuple[str, str]] = set()

    def look(self, made: Evaluated) -> None:
        """Take in what was just evaluated."""
        bits = None if made.bits is None else BITS.find(self.store, "bits", made.bits.identity)
        if not bits:
            return
        if isinstance(made, Reference) and made.teacher:
            spec = self.plan.recipe.models_by_role()[made.teacher]
            self.teachers.setdefault(spec.name or spec.model, corpus_bits_per_byte(bits))
        elif isinstance(made, Reference) and made.label == "warm start":
            self.others.setdefault(made.label, corpus_bits_per_byte(bits))
        elif isinstance(made, Cell) and made.objective.label == self.plan.recipe.baseline:
            self.others.setdefault(made.objective.label, corpus_bits_per_byte(bits))
        for teacher, other in behind(self.teachers, self.others):
            if (teacher, other) not in self.said:
                self.said.add((teacher, other))
                self.progress.message(
                    f"[yellow]{made.task}: teacher {escape(teacher)} is no better than {other}[/] on the references "
                    f"({self.teachers[teacher]:.3f} bits a byte, {self.others[other]:.3f}): nothing learnt from it can "
                    "show, and rows that learn from it can't be ranked. A longer fine-tuning, another teacher or a "
                    "weaker student would."
                )


def behind(teachers: Mapping[str, float], others: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Each teacher with what it does not lead; numbers are bits per byte."""
    for teacher, its in teachers.items():
        for other, bits in others.items():
            if its >= bits:
                yield teacher, other
