"""What a recipe may say of λ, the share of micro-batches whose responses the student samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]


class LinearShare(BaseModel):
    """λ in a straight line by optimiser step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Share = Field(description="λ of the first step")
    end: Share = Field(description="λ that it comes to, and stays at")
    over: PositiveShare = Field(1.0, description="share of the steps that the way takes")

    @model_validator(mode="after")
    def _samples(self) -> Self:
        if max(self.start, self.end) == 0:
            raise ValueError("start and end are 0: leave rollout_share at 0")
        return self


class AcceptedShare(BaseModel):
    """λ that follows how many of the student's tokens its teacher would have taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Literal["acceptance"] = Field(description="what is followed")
    start: Share = Field(0.5, description="acceptance that the mean begins with")
    least: PositiveShare = Field(0.1, description="λ is no less: without samples nothing is known of them")
    most: PositiveShare = Field(1.0, description="λ is no more")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least {self.least:g} is above most {self.most:g}")
        return self


TAGS = ("as number", "as line", "as acceptance")
"""What the place of an error has beside the names that a recipe writes."""


def _tag(given: object) -> str:
    if isinstance(given, AcceptedShare) or (isinstance(given, Mapping) and "target" in given):
        return TAGS[2]
    return TAGS[1] if isinstance(given, LinearShare | Mapping) else TAGS[0]


RolloutShare = Annotated[
    Annotated[Share, Tag(TAGS[0])] | Annotated[LinearShare, Tag(TAGS[1])] | Annotated[AcceptedShare, Tag(TAGS[2])],
    Discriminator(_tag),
]


def mean_share(asked: float | LinearShare | AcceptedShare) -> float:
    """Mean of λ over a training; where it is steered, the middle of what it may be."""
    if isinstance(asked, LinearShare):
        return asked.end + asked.over * (asked.start - asked.end) / 2
    if isinstance(asked, AcceptedShare):
        return (asked.least + asked.most) / 2
    return asked
