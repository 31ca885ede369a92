"""Two teachers at once: a same-tokenizer method and a cross-tokenizer method in one objective.

Chen et al., arXiv 2502.11104, abstract and section 5 (no script was released):
L = ce_weight · CE + kd_weight · [s · KD_same + (1 - s) · KD_cross],   s = same_weight

Recipes write it ``dual(fkd, cdm)``. Each part has its method's own options; weights are the pair's.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from methods.library.method import NonNegative, TeacherKind
from methods.library.registry import find

_NAME = re.compile(r"dual\(\s*([\w-]+)\s*,\s*([\w-]+)\s*\)")


class DualOptions(BaseModel):
    """Weights of a dual-teacher objective."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ce_weight: NonNegative = Field(0.5, description="weight of the cross-entropy on the reference response")
    kd_weight: NonNegative = Field(0.5, description="weight of both distillation terms together")
    same_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="s, the share of the same-tokenizer teacher in the distillation term"
    )


def is_dual(name: str) -> bool:
    """Whether a recipe means two teachers by this name."""
    return name.startswith("dual(") and name.endswith(")")


def parts_of(name: str) -> tuple[str, str]:
    """Names of the same-tokenizer and the cross-tokenizer method of ``dual(a, b)``, in that order.

    Raises:
        UnknownMethodError: one of them does not exist.
        ValueError: not two methods, or not one for each kind of teacher.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"found {name!r}; expected dual(METHOD, METHOD), such as dual(fkd, cdm)")
    by_kind = {find(part).teacher: part for part in match.groups()}
    if by_kind.keys() != {TeacherKind.SAME_TOKENIZER, TeacherKind.CROSS_TOKENIZER}:
        raise ValueError(
            f"found {name!r}; expected one method with a same-tokenizer teacher and one with a cross-tokenizer teacher"
        )
    return by_kind[TeacherKind.SAME_TOKENIZER], by_kind[TeacherKind.CROSS_TOKENIZER]
