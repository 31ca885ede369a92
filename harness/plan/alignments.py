"""Which alignments a report shows of a cell, and their identity."""

from __future__ import annotations

from dataclasses import dataclass

from harness.base.files import digest_of
from harness.plan.builder import model_sources
from harness.plan.stage_code import own_codes
from harness.plan.stages import Cell, Plan
from methods.base import Method

KIND = "alignments"  # in the store
SHOWN = 50  # responses of a task: a page holds them all, method by method


@dataclass(frozen=True)
class Shown:
    """The alignments of one method on one task."""

    method: Method
    role: str
    identity: str


def shown(plan: Plan, cell: Cell) -> list[Shown]:
    """What the page shows of a cell; nothing where its references are not read at all."""
    if cell.bits is None or cell.seed != plan.recipe.seeds_of(cell.task)[0]:  # seeds align alike
        return []
    read = {name: cell.bits.values[name] for name in ("references", "limits")}
    common = {"read": read, "sides": model_sources(plan.recipe), "shown": SHOWN}
    made = []
    for part, own in zip(cell.objective.parts, cell.objective.identity()["methods"], strict=True):
        code = own_codes().of(KIND, plan.tasks[cell.task], [part.method])
        if part.role:
            identity = digest_of({**common, "role": part.role, "method": own, "code": code.digest})
            made.append(Shown(part.method, part.role, identity))
    return made
