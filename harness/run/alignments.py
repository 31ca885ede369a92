"""What a method compares in the test responses, for the report's viewer: from tokenizers, without a model.

A small artefact for each task, method and teacher, apart from the training whose row it explains: it is made in
seconds, and again where it is lost. What trained models add (KD by token, alignments by entropies) is in
:mod:`harness.training.traces`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.markup import escape

from harness.base.progress import Progress
from harness.data.templates import TextSide
from harness.data.terms import pairs
from harness.data.tokens import STUDENT, TokenizedExample, token_side
from harness.models.resolve import is_downloaded
from harness.models.uri import parse_uri
from harness.plan.alignments import KIND, SHOWN, shown
from harness.plan.stages import Cell, Plan
from harness.run.demand import circumstances
from harness.run.workbench import Workbench
from harness.store.artefacts import ALIGNMENTS, AlignedItem, Alignments
from harness.store.store import Store
from methods.base import Method, Need, Rows
from methods.library.alignment import group_bytes


def make_alignments(plan: Plan, cells: Sequence[Cell], bench: Workbench, store: Store, progress: Progress) -> None:
    """Store what methods compare in the test responses. Nothing is downloaded, and no run ends, for a picture."""
    missing = {
        one.identity: (cell, one)
        for cell in cells
        for one in shown(plan, cell)
        if store.find(KIND, one.identity) is None
    }
    specs = bench.published.specs.values()
    if not missing or not all(is_downloaded(parse_uri(spec.model)) for spec in specs):
        return
    for identity, (cell, one) in missing.items():
        started = time.monotonic()
        manifest: dict[str, object] = {
            "title": f"alignments of {cell.objective.name}",
            "task": cell.task,
            "method": one.method.name,
        }
        try:
            one.method.prepare(bench.pairs.of(one.role))
            made = aligned(bench.texts.examples(cell.task, "test"), one.method, one.role, bench.published.sides)
            with store.create(KIND, identity, manifest) as folder:
                ALIGNMENTS.write(folder, made)
                manifest |= circumstances(started)
        except Exception as error:
            progress.message(f"[yellow]no alignments to show[/] of {escape(f'{cell.name}: {error!r}')}")


def aligned(
    examples: Sequence[TokenizedExample], method: Method, role: str, sides: Mapping[str, TextSide]
) -> Alignments:
    """The first responses through a prepared method."""
    return {
        "of": len(examples),
        "method": method.name,
        "items": [_aligned(example, method, role, sides) for example in examples[:SHOWN]],
    }


def _aligned(example: TokenizedExample, method: Method, role: str, sides: Mapping[str, TextSide]) -> AlignedItem:
    response, stand_in = example.aligned(role), Need.ENTROPY in method.needs
    groups = group_bytes(response.student_ends, response.teacher_ends) if stand_in else method.align(response)
    whole = method.rows is Rows.ALL and not stand_in  # then positions of the whole sequence are counted
    return {
        "item": example.id,
        "cut": example.cut,
        "student": token_side(sides[STUDENT], example, STUDENT),
        "teacher": token_side(sides[role], example, role),
        "groups": pairs(groups, [example.sides[r].prompt.size if whole else 0 for r in (STUDENT, role)]),
        "stand_in": stand_in,
    }
