"""What methods learnt where the truth is known: tables of distances, claims and broken methods, in plain cells.

Distances to the truth are bits per byte above what the source itself says of the test texts. A distance to a teacher is
KL(teacher || student) in bits a token where both have one tokenizer, else the mean difference of the log-likelihoods of
byte-aligned chunks, in bits a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Cells = list[list[str]]
"""A table: its header, then its lines."""


@dataclass(frozen=True)
class Learnt:
    """A student of one setting.

    Attributes:
        row: method or variant.
        weights: "KD alone", "with CE", or empty for a row without a teacher.
        text: "many passes" or "fresh text".
        temperature: τ; None for a method that has none.
        truth: bits per byte above the truth.
        teacher: distance to its own teacher; None for a row without one.
    """

    row: str
    weights: str
    text: str
    temperature: float | None
    truth: float
    teacher: float | None = None


@dataclass(frozen=True)
class Claim:
    """What a row's KD term alone must do, and did.

    Attributes:
        row: method or variant.
        claim: in words.
        found: in words.
        kept: whether it does.
        excuse: why it is known not to; empty where it is expected to.
    """

    row: str
    claim: str
    found: str
    kept: bool
    excuse: str = ""

    @property
    def as_expected(self) -> bool:
        """A failure that is expected is one that must be there."""
        return self.kept != bool(self.excuse)


@dataclass(frozen=True)
class Broken:
    """A row's method, broken on purpose.

    Attributes:
        row: method or variant that was broken.
        how: in words.
        truth: bits per byte above the truth that its student ends with; infinite for a training that came apart.
        caught: whether the row's claim fails.
        elsewhere: what else catches it; empty where this must.
    """

    row: str
    how: str
    truth: float
    caught: bool
    elsewhere: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether it is caught, here or by what is named."""
        return self.caught or bool(self.elsewhere)


@dataclass(frozen=True)
class Litmus:
    """All of it.

    Attributes:
        entropy, truth: bits per byte of the source, exactly, and of what it says of the test texts.
        start: bits per byte above the truth of the student before distillation.
        teachers: the same of each teacher, by "same" and "cross".
        start_to_teachers: the start's distance to each.
    """

    entropy: float
    truth: float
    start: float
    teachers: dict[str, float]
    start_to_teachers: dict[str, float]
    learnt: Sequence[Learnt]
    claims: Sequence[Claim]
    broken: Sequence[Broken]

    @property
    def as_expected(self) -> bool:
        """Whether every claim is kept or its failure known, and every broken method caught."""
        return all(claim.as_expected for claim in self.claims) and all(one.as_expected for one in self.broken)

    def lines(self) -> list[str]:
        """What the tables are measured against, in words."""
        known = ", ".join(f"{role}-tokenizer {distance:.3f}" for role, distance in self.teachers.items())
        far = ", ".join(
            f"{distance:.2f} {_UNITS[role]} from the {role}-tokenizer teacher"
            for role, distance in self.start_to_teachers.items()
        )
        return [
            f"The source has {self.entropy:.4f} bits a byte exactly, and says {self.truth:.4f} of the test texts.",
            f"Above that: the student before distillation {self.start:.3f}; teachers: {known}.",
            f"The student before distillation is {far}.",
        ]

    def tables(self) -> list[tuple[str, Cells]]:
        """Titles and tables; those without a line are left out."""
        found = [
            ("Distance to the truth, in bits a byte above it", self._of("truth", 3)),
            ("Distance to the own teacher: bits a token (same tokenizer) or bits a byte", self._of("teacher", 2)),
            ("Claims: what the KD term alone must do", _claims(self.claims)),
            ("Methods that are broken on purpose", _broken(self.broken)),
        ]
        return [(title, cells) for title, cells in found if len(cells) > 1]

    def to_markdown(self) -> str:
        """The lines and tables as Markdown."""
        parts = ["\n".join(self.lines())]
        for title, cells in self.tables():
            head, *rest = (f"| {' | '.join(line)} |" for line in cells)
            marks = [" ---: " if numbers else " --- " for numbers in self.numeric(cells)]
            rule = "|".join(["", *marks, ""])
            parts.append("\n".join([f"**{title}**\n", head, rule, *rest]))
        return "\n\n".join(parts) + "\n"

    @staticmethod
    def numeric(cells: Cells) -> list[bool]:
        """Which columns of a table hold numbers."""
        return [all(line[place][:1] in "–0123456789-" for line in cells[1:]) for place in range(len(cells[0]))]

    def _of(self, what: str, digits: int) -> Cells:
        """A line a row, a column a setting."""
        taught = [one for one in self.learnt if one.weights]
        columns = list(dict.fromkeys((one.text, one.weights, one.temperature) for one in taught))
        columns.sort(key=lambda column: (column[0] != "many passes", column[1] != "KD alone", column[2] or 0.0))
        settled = [column for column in columns if column[2] is not None] or columns
        values = {
            (one.row, one.text, one.weights, one.temperature): value
            for one in self.learnt
            if (value := getattr(one, what)) is not None
        }
        cells = [["row", *(_heading(*column) for column in settled)]]
        for row in dict.fromkeys(one.row for one in self.learnt):
            found = [_value(values, row, *column) for column in settled]
            if any(value is not None for value in found):
                cells.append([row, *("–" if value is None else f"{value:.{digits}f}" for value in found)])
        return cells


_UNITS = {"same": "bits a token", "cross": "bits a byte"}


def _value(
    values: dict[tuple[str, str, str, float | None], float], row: str, text: str, weights: str, tau: float | None
) -> float | None:
    """A row without a temperature is what it is at 1, and one without a teacher what it is with CE."""
    known = values.get((row, text, weights, tau))
    if known is None and tau == 1.0:
        known = values.get((row, text, weights, None))
        if known is None and weights == "with CE":
            known = values.get((row, text, "", None))
    return known


def _heading(text: str, weights: str, temperature: float | None) -> str:
    return f"{text}, {weights}" + ("" if temperature is None else f", τ {temperature:g}")


def _claims(claims: Sequence[Claim]) -> Cells:
    said = {(True, False): "kept", (False, True): "fails, as known", (False, False): "FAILS", (True, True): "KEPT"}
    lines = [[one.row, one.claim, one.found, said[one.kept, bool(one.excuse)], one.excuse] for one in claims]
    return [["row", "claim", "found", "outcome", "why"], *lines]


def _broken(broken: Sequence[Broken]) -> Cells:
    lines = [
        [
            one.row,
            one.how,
            f"{one.truth:.3f}" if math.isfinite(one.truth) else "–",
            "caught" if one.caught else "not here" if one.elsewhere else "NOT CAUGHT",
            "" if one.caught else one.elsewhere,
        ]
        for one in broken
    ]
    return [["row", "broken", "above the truth", "outcome", "what catches it"], *lines]
