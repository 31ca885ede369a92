"""Two tokenizers' tokens above one another, group by group, as text that reads in a pipe too."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from methods.library.alignment import IntArray

_COLOURS = ("cyan", "yellow", "green", "magenta")  # of groups, in turn
_LABEL = 9  # cells before the first column
_LINKS_SHOWN = 24


@dataclass(frozen=True)
class ShownSide:
    """One model's tokens.

    Attributes:
        name: of the model.
        tokens: as they are shown, EOS last.
        group: int64 [n], group of each token, -1 where it is in none.
        alone: bool [n], whether the exact map has no partner for a token.
        size: tokens of the vocabulary.
    """

    name: str
    tokens: tuple[str, ...]
    group: IntArray
    alone: npt.NDArray[np.bool_]
    size: int


@dataclass(frozen=True)
class PairView:
    """A text as the student and one teacher see it.

    Attributes:
        groups: number of alignment groups on shared bytes.
        shared: how many tokens of each vocabulary the exact map pairs.
        links: (teacher token, student token) of CDM's path.
        confirmed: bool [links], whether a link stays within a group.
        weights: what the path's costs are weighted by, in words.
        note: where the text is from, its length, whether a limit cut it.
    """

    student: ShownSide
    teacher: ShownSide
    groups: int
    shared: int
    links: tuple[tuple[int, int], ...]
    confirmed: npt.NDArray[np.bool_]
    weights: str
    note: str


def visible(spelling: bytes, special: bool = False) -> str:
    """A token's bytes so that none of them is invisible, and without a blank.

    ``␣``, ``↵`` and ``⇥`` stand for a space, a line break and a tab, counted where there are many (``␣×16``);
    ``‹F09F›`` for bytes that are a part of a character. Special tokens stand as they are called.
    """
    text = spelling.decode("utf-8", "surrogateescape")
    if special:
        return text.replace(" ", _NAMES[" "])
    shown = ""
    for cut, part in groupby(text, key=lambda character: "\udc80" <= character <= "\udcff"):
        if cut:  # bytes that are no character, as surrogateescape writes them
            shown += "‹" + "".join(f"{ord(byte) - 0xDC00:02X}" for byte in part) + "›"
        else:
            shown += "".join(_repeated(character, len(list(same))) for character, same in groupby(part))
    return f"◌{shown}" if text and unicodedata.combining(text[0]) else shown


_NAMES = {" ": "␣", "\n": "↵", "\t": "⇥"}


def _repeated(character: str, count: int) -> str:
    if character in _NAMES:
        return f"{_NAMES[character]}×{count}" if count > 4 else _NAMES[character] * count
    return (character if character.isprintable() else f"‹U+{ord(character):04X}›") * count


# --- how it is shown --------------------------------------------------------------------------------------------------


def rendered(pair: PairView, width: int) -> RenderableType:
    """Everything about a pair, for a console of so many cells."""
    title = Text.assemble((pair.teacher.name, "bold"), " → ", (pair.student.name, "bold"), f"   ({pair.note})")
    blocks = [block for columns in _lines(_columns(pair), width) for block in (_block(columns), Text())]
    shares = [f"{100 * pair.shared / side.size:.0f} %" for side in (pair.student, pair.teacher)]
    shared = Text(
        f"The exact map pairs {pair.shared:,} tokens: {shares[0]} of the student's {pair.student.size:,}, "
        f"{shares[1]} of the teacher's {pair.teacher.size:,}."
    )
    return Group(title, Text(), *blocks, _summary(pair), Text(), _links(pair), shared, Text(), _legend(pair))


@dataclass(frozen=True)
class _Column:
    """A group, or the part of it that fits on a line: what stands in each of its rows."""

    head: Text
    student: Text
    teacher: Text
    link: Text

    @property
    def cells(self) -> tuple[Text, ...]:
        return self.head, self.student, self.teacher, self.link

    @property
    def width(self) -> int:
        return max(cell.cell_len for cell in self.cells)


def _columns(pair: PairView) -> list[_Column]:
    """A column a group, in order, and one for the tokens in no group."""
    astray = {pair.student.group[s] for (_, s), ok in zip(pair.links, pair.confirmed, strict=True) if not ok}
    astray |= {pair.teacher.group[t] for (t, _), ok in zip(pair.links, pair.confirmed, strict=True) if not ok}
    columns = []
    for number in (*range(pair.groups), -1):
        members = [np.flatnonzero(side.group == number) for side in (pair.student, pair.teacher)]
        if not any(side.size for side in members):
            continue
        colour = "red" if number < 0 else _COLOURS[number % len(_COLOURS)]
        sizes = f"{members[0].size}:{members[1].size}"
        head = "none" if number < 0 else f"{number + 1}" if sizes == "1:1" else f"{number + 1} ({sizes})"
        columns.append(
            _Column(
                Text(head, "dim"),
                _tokens(pair.student, members[0], colour),
                _tokens(pair.teacher, members[1], colour),
                Text("✗", "red") if number in astray else Text("✓", "dim green"),
            )
        )
    return columns


def _tokens(side: ShownSide, members: IntArray, colour: str) -> Text:
    """Tokens side by side; a blank separates them, since blanks of theirs are visible."""
    parts = [Text(side.tokens[i] + ("°" if side.alone[i] else ""), colour) for i in members]
    return Text(" ").join(parts)


def _lines(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """Columns line by line; a group that is wider than a line goes on in the next one."""
    room = max(width - _LABEL, 20)
    line: list[_Column] = []
    used = 0
    for column in (part for whole in columns for part in _parts(whole, room)):
        needed = column.width + (3 if line else 0)
        if line and used + needed > room:
            yield line
            line, used, needed = [], 0, column.width
        line.append(column)
        used += needed
    if line:
        yield line


def _parts(column: _Column, room: int) -> Iterator[_Column]:
    if column.width <= room:
        yield column
        return
    rows = [_folded(cell, room) for cell in (column.student, column.teacher)]
    for place, (student, teacher) in enumerate(zip_longest(*rows, fillvalue=Text())):
        head = column.head if place == 0 else Text("…", "dim")
        yield _Column(head, student, teacher, column.link)


def _folded(tokens: Text, room: int) -> list[Text]:
    """Tokens over as many lines as they need; one that is longer than a line is broken."""
    lines = [Text()]
    for token in tokens.split(" "):
        parts = [token]
        while parts[-1].cell_len > room:
            cut = next(n for n in range(len(parts[-1]), 0, -1) if cell_len(parts[-1].plain[:n]) <= room)
            parts[-1:] = list(parts[-1].divide([cut]))
        for part in parts:
            if lines[-1] and lines[-1].cell_len + 1 + part.cell_len > room:
                lines.append(part)
            else:
                lines[-1] = Text.assemble(lines[-1], " ", part) if lines[-1] else part
    return lines


def _block(columns: Sequence[_Column]) -> Text:
    """Four lines: numbers of the groups, both sides' tokens, and whether CDM's links stay within."""
    rows = []
    for label, cells in zip(
        ("group", "student", "teacher", "CDM"), zip(*(c.cells for c in columns), strict=True), strict=True
    ):
        row = Text.assemble((label.ljust(_LABEL), "bold"), no_wrap=True, overflow="ignore")
        padded = [
            Text.assemble(cell, " " * (column.width - cell.cell_len))
            for cell, column in zip(cells, columns, strict=True)
        ]
        row.append_text(Text.assemble((" │ ", "dim")).join(padded))
        row.rstrip()
        rows.append(row)
    return Text("\n", no_wrap=True, overflow="ignore").join(rows)


def _links(pair: PairView) -> Text:
    """CDM's links that leave their group."""
    astray = [link for link, ok in zip(pair.links, pair.confirmed, strict=True) if not ok]
    stay = len(pair.links) - len(astray)
    text = Text(
        f"CDM links {len(pair.links)} pairs of tokens by edit distance (entropy weights: {pair.weights}); "
        f"{_share(stay, len(pair.links))} stay within a group of bytes"
    )
    if not astray:
        return text.append(".")
    text.append("; teacher–student pairs that do not: ")
    shown = [
        Text.assemble(
            (pair.teacher.tokens[t], _colour(pair.teacher.group[t])),
            " ↔ ",
            (pair.student.tokens[s], _colour(pair.student.group[s])),
            (f" ({_number(pair.teacher.group[t])}, {_number(pair.student.group[s])})", "dim"),
        )
        for t, s in astray[:_LINKS_SHOWN]
    ]
    text.append_text(Text("; ").join(shown))
    return text.append(f"; and {len(astray) - _LINKS_SHOWN} more." if len(astray) > _LINKS_SHOWN else ".")


def _summary(pair: PairView) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for name in ("tokens", "in 1-1 groups", "merged", "in no group", "without a partner"):
        table.add_column(name, justify="right")
    sizes = [Counter(side.group[side.group >= 0].tolist()) for side in (pair.student, pair.teacher)]
    single = {number for number in range(pair.groups) if sizes[0][number] == sizes[1][number] == 1}
    for label, side in (("student", pair.student), ("teacher", pair.teacher)):
        whole, dropped = len(side.tokens), int((side.group < 0).sum())
        counts = (len(single), whole - len(single) - dropped, dropped, int(side.alone.sum()))
        table.add_row(label, str(whole), *(_share(count, whole) for count in counts))
    return table


def _legend(pair: PairView) -> Text:
    """What the signs mean that stand above."""
    tokens = "".join((*pair.student.tokens, *pair.teacher.tokens))
    signs = [
        f"{sign} {meaning}" for sign, meaning in (("␣", "space"), ("↵", "line break"), ("⇥", "tab")) if sign in tokens
    ]
    if "‹" in tokens:
        signs.append("‹F0› byte of a character that is cut")
    if any(np.bincount(side.group + 1)[1:].max(initial=0) > 1 for side in (pair.student, pair.teacher)):
        signs.append("(n:m) tokens of student and teacher in a group")
    if pair.student.alone.any() or pair.teacher.alone.any():
        signs.append("° no token of the other vocabulary has the same bytes")
    if not pair.confirmed.all():
        signs.append("✗ a link of CDM's leads out of the group")
    return Text("; ".join(signs) + ".", "dim")


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.0f} %)" if whole else f"{part}"


def _colour(group: int) -> str:
    return "red" if group < 0 else _COLOURS[group % len(_COLOURS)]


def _number(group: int) -> str:
    return "none" if group < 0 else str(group + 1)
