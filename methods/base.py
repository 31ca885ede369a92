"""What the author of a method imports; each name is documented where it is defined, below ``methods/library``."""

from methods.library.chunk import AlignedChunk, Hidden, LossSums, Members, OutputHead, Side
from methods.library.method import (
    Held,
    KDOptions,
    Method,
    Need,
    NonNegative,
    OnPolicyOptions,
    Positive,
    Rows,
    SoftenedOptions,
    Start,
    TeacherKind,
    TemperatureOptions,
)
from methods.library.reading import RowFunction
from methods.library.registry import ENTRY_POINT_GROUP, UnknownMethodError, find, register, registered
from methods.library.rollout_share import Share

__all__ = [
    "ENTRY_POINT_GROUP",
    "AlignedChunk",
    "Held",
    "Hidden",
    "KDOptions",
    "LossSums",
    "Members",
    "Method",
    "Need",
    "NonNegative",
    "OnPolicyOptions",
    "OutputHead",
    "Positive",
    "RowFunction",
    "Rows",
    "Share",
    "Side",
    "SoftenedOptions",
    "Start",
    "TeacherKind",
    "TemperatureOptions",
    "UnknownMethodError",
    "find",
    "register",
    "registered",
]
