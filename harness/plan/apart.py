"""From which teachers a student's distance is measured, and the identities of what is stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.base.device import compute_dtype
from harness.base.files import digest_of
from harness.plan.stage_code import own_codes
from harness.plan.stages import Cell, Plan, Reference, Stage

KIND = "apart"  # in the store: distances of a student from a teacher
ROWS_KIND = "held_out"  # and what they are measured with: a teacher's rows of held-out references
READ = 64  # the first references of a task: enough to tell near from far


@dataclass(frozen=True)
class Distance:
    """A student's from a teacher.

    Attributes:
        student, teacher: the stages that trained them.
        rows: identity of the teacher's rows.
        identity: of the distance.
    """

    student: Stage
    teacher: Stage
    rows: str
    identity: str


def distances(plan: Plan, cell: Cell | Reference, teachers: Sequence[Stage]) -> list[Distance]:
    """Of a trained student from each teacher of its task; none where its references are not read at all.

    Args:
        teachers: all of the plan, see :func:`teachers_of`.
    """
    if cell.bits is None or (student := cell.bits.inputs.get("student")) is None:
        return []
    made, own = [], plan.recipe.teacher_seed(cell.task, cell.seed)
    for role in dict.fromkeys(stage.role for stage in teachers if stage.task == cell.task):
        same_task = [stage for stage in teachers if (stage.task, stage.role) == (cell.task, role)]
        teacher = next((stage for stage in same_task if stage.seed == own), same_task[0])
        rows = _identity(plan, cell, ROWS_KIND, teacher)
        made.append(Distance(student, teacher, rows, _identity(plan, cell, KIND, student, rows)))
    return made


def teachers_of(plan: Plan) -> list[Stage]:
    """The teachers that a plan trains."""
    return [stage for stage in plan.stages() if stage.kind == "teacher"]


def _identity(plan: Plan, cell: Cell | Reference, kind: str, of: Stage, rows: str = "") -> str:
    recipe, bits = plan.recipe, cell.bits
    assert bits is not None
    lora = ["lora"] if recipe.teacher.lora else []
    return digest_of(
        {
            "kind": kind,
            "of": of.identity,
            "rows": rows,
            "references": bits.values["references"],
            "limits": recipe.limits.model_dump(),
            "read": READ,
            "dtype": compute_dtype(recipe.teacher.precision),
            "code": own_codes().of(kind, plan.tasks[cell.task], asked=lora if kind == ROWS_KIND else []).digest,
        }
    )
