"""The report as one page that needs nothing else: its style, script, figures and data are inside it.

Answers come from models and are not to be trusted: all text is escaped, and the page's policy lets no script run but
its own and no request leave.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import drawn
from reports.appendix import appendices
from reports.context import PAPER_HEADER, ReportContext, counted_tables, paper_grid, protocols
from reports.drawn import DrawnPart
from reports.exhibits import NO_EVIDENCE, Evidence, Item, ShownAlignment
from reports.figures import Style
from reports.learnt import learnt_tables
from reports.legends import explanations
from reports.published import beside_published
from reports.table import DASH, METRIC_LABELS, Group, Table
from reports.to_markdown import SIGNIFICANT_DIGITS
from reports.verdict import verdict

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000  # of a page; what would be over it is left out, and the page says so
ITEM_BYTES, ALIGNMENT_BYTES = 1_300_000, 2_200_000
LONGEST_TEXT = 4_000  # characters of a prompt or an answer

KINDS = {"none": "no teacher", "same-tokenizer": "same tokenizer", "cross-tokenizer": "cross tokenizer", "both": "both"}


def html(
    table: Table,
    context: ReportContext,
    evidence: Evidence = NO_EVIDENCE,
    figures: Sequence[DrawnPart] | None = None,
) -> str:
    """The whole page; its figures are drawn if not given. Raises ValueError naming a task without protocol lines."""
    looks, parts = drawn.looks(table), drawn.draw(table, evidence, context.costs) if figures is None else figures
    items = _within(list(map(_cut, evidence.items)), ITEM_BYTES)
    alignments = _packed(evidence.alignments, ALIGNMENT_BYTES)
    values: dict[str, Any] = {
        "context": context,
        "evidence": evidence,
        "table": table,
        "students": [(student, _rows(groups, looks)) for student, groups in table.students()],
        "summary": _summary(table),
        "verdict": verdict(table),
        "explanations": explanations(table),
        "protocols": protocols(table, context),
        "looks": looks,
        "differences": next((part for part in parts if part.heading == drawn.DIFFERENCES), None),
        "figures": [part for part in parts if part.heading != drawn.DIFFERENCES],
        "items": items,
        "items_left_out": _left_out(len(evidence.items) - len(items), "items"),
        "alignments": alignments,
        "alignment_notes": _alignment_notes(evidence, len(alignments["alignments"])),
        "learnt": learnt_tables(table, context.learnt),
        "outcomes": counted_tables(context),
        "frames": _frames(table, context),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.globals.update(
        hash=_policy_hash, swatch=_swatch, grid=_grid, metric_label=lambda name: METRIC_LABELS.get(name, name)
    )
    return environment.get_template("template.html").render(values | {"sections": _sections(values)})


def _sections(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(id, heading) of the sections that the page has."""
    evidence = values["evidence"]
    has_manifest = evidence.manifest or evidence.recipe or values["context"].references or not evidence.stages.empty
    known = [
        ("verdict", "Verdict", values["verdict"]),
        ("results", "Results", True),
        ("learnt", "What was learnt", values["learnt"]),
        ("outcomes", "Outcomes", values["outcomes"]),
        ("figures", "Figures", values["figures"]),
        ("alignments", "Alignments", values["alignments"]["alignments"]),
        ("answers", "Answers", values["items"]),
        *((name, heading, True) for name, heading, _, _ in values["frames"]),
        ("protocol", "How the numbers were made", True),
        ("failures", "Failures", evidence.failures),
        ("manifest", "Manifest", has_manifest),
    ]
    return [(name, heading) for name, heading, there in known if there]


def _frames(table: Table, context: ReportContext) -> list[tuple[str, str, pd.DataFrame, list[str]]]:
    """(id, heading, frame, what has to be said with it) of the tables below the answers."""
    known: list[tuple[str, str, pd.DataFrame, list[str]]] = []
    if context.paper:
        comparison = beside_published(table, context.paper, context.recipe_values)
        beside = pd.DataFrame(paper_grid(comparison), columns=list(PAPER_HEADER))
        known.append(("published", "Beside the published numbers", beside, list(comparison.lines())))
    known += [
        (f"tests-{number}", heading, frame, [explanation])
        for number, (heading, explanation, frame) in enumerate(appendices(table), start=1)
    ]
    if context.appendix is not None:
        known.append(("diagnostics", "Diagnostics", context.appendix, [DIAGNOSTICS]))
    return [part for part in known if not part[2].empty or (part[3] and part[0] == "published")]


DIAGNOSTICS = "What training reported of itself: means over steps and seeds, where a column does not say otherwise."


def _summary(table: Table) -> str:
    rows = [row for group in table.groups for row in group.rows if row.role == "student"]
    counts = {column.task: len(column.seeds) for column in table.columns if not column.is_average}
    students = [student for student, _ in table.students()]
    if len(set(counts.values())) == 1:
        tasks = f"{', '.join(counts)}, {_seeds(next(iter(counts.values())))} each"
    else:
        tasks = ", ".join(f"{task} ({_seeds(count)})" for task, count in counts.items())
    return f"{len(rows)} {'way' if len(rows) == 1 else 'ways'} to train {', '.join(students)} on {tasks}."


def _seeds(count: int) -> str:
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def _rows(groups: Sequence[Group], looks: Mapping[str, Style]) -> list[dict[str, Any]]:
    """The rows of one student as the template reads them."""
    return [
        {
            "label": row.label,
            "role": row.role,
            "look": looks.get(row.label) if row.role == "student" else None,
            "teacher": ": ".join(part for part in (KINDS[group.teacher_kind], row.teacher) if part),
            "seeds": row.n_seeds,
            "cells": row.cells,
        }
        for group in groups
        for row in group.rows
    ]


# Parts


def _cut(item: Item) -> Item:
    """The item with texts that are pleasant to read and to load."""
    answers = tuple(replace(answer, text=_shortened(answer.text)) for answer in item.answers)
    return replace(item, prompt=_shortened(item.prompt), answers=answers)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT} more characters)"


def _within(parts: Sequence[Any], most: int) -> list[Any]:
    """As many of the parts, in their order, as fit into so many bytes."""
    kept, size = [], 0
    for part in parts:
        size += _size(json.dumps(asdict(part), ensure_ascii=False))
        if size > most:
            break
        kept.append(part)
    return kept


def _size(text: str) -> int:
    """Bytes of a text in the page, where these characters are written in up to six."""
    return len(text.encode()) + 5 * sum(text.count(character) for character in "<>&'") + 1


def _packed(alignments: Sequence[ShownAlignment], most: int) -> dict[str, list[Any]]:
    """Alignments as the page's script reads them: tokens and groups that several of them share stand there once.

    Test items go in turn through the tasks, all methods of an item together, as far as so many bytes reach.

    Returns:
        "sides": name, tokens and ends; "groups": pairs of student and teacher tokens, a list of one token being its
        number; "alignments": the other fields, with places in these lists for "student", "teacher" and "groups".
    """
    packed: dict[str, list[Any]] = {"sides": [], "groups": [], "alignments": []}
    places: dict[tuple[str, str], int] = {}
    used = 0

    def place(kind: str, value: Any) -> int:
        nonlocal used
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if (kind, text) not in places:
            places[kind, text] = len(packed[kind])
            packed[kind].append(value)
            used += _size(text)
        return places[kind, text]

    for item in _in_turn(alignments):
        for a in item:
            groups = [[_alone(members) for members in group] for group in a.groups]
            fields: dict[str, Any] = {"task": a.task, "item": a.item, "row": a.row, "method": a.method}
            fields |= {"kind": a.teacher_kind, "kd": list(a.kd), "traced": a.traced, "standIn": a.stand_in}
            sides = {"student": place("sides", asdict(a.student)), "teacher": place("sides", asdict(a.teacher))}
            place("alignments", fields | sides | {"groups": place("groups", groups)})
        if used > most:
            break
    return packed


def _in_turn(alignments: Sequence[ShownAlignment]) -> list[list[ShownAlignment]]:
    """The alignments of each test item, the first items of all tasks first."""
    items: dict[str, dict[str, list[ShownAlignment]]] = {}
    for alignment in alignments:
        items.setdefault(alignment.task, {}).setdefault(alignment.item, []).append(alignment)
    numbered = [(number, item) for of_task in items.values() for number, item in enumerate(of_task.values())]
    return [item for _, item in sorted(numbered, key=lambda pair: pair[0])]


def _alone(members: Sequence[int]) -> int | list[int]:
    return members[0] if len(members) == 1 else list(members)


def _alignment_notes(evidence: Evidence, shown: int) -> list[str]:
    """Which responses can be chosen, and what is not there."""
    notes = [
        f"{task}: {'all' if count == whole else f'the first {count} of'} {whole} test responses."
        for task, count, whole in evidence.aligned
    ]
    if not all(alignment.traced for alignment in evidence.alignments):
        notes.append(
            "Responses marked with KD were read by the trained models: they alone have KD by token, and the links of "
            "methods that align by the models' entropies, such as CDM. For the others these methods stand with the "
            "groups of shared bytes."
        )
    left_out = _left_out(len(evidence.alignments) - shown, "alignments")
    return [*notes, left_out] if left_out else notes


def _left_out(count: int, what: str) -> str:
    return f"{count} more {what} are left out, to keep the page small." if count else ""


def _swatch(look: Style) -> Markup:
    """A line and a marker as figures draw them, for a legend."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true" stroke="{colour}">'
        '<line x1="1" x2="33" y1="7" y2="7" stroke-width="3" stroke-dasharray="{dash}"/>'
        '<path d="{marker}" fill="{fill}" stroke-width="1.5"/></svg>'
    ).format(colour=look.colour, dash=look.dash or "none", marker=_MARKERS[look.marker], fill=_fill(look))


def _fill(look: Style) -> str:
    return "var(--paper)" if look.dash else look.colour


_MARKERS = {  # matplotlib's names as paths about (17, 7)
    "o": "M12.5 7a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "s": "M13 3h8v8h-8z",
    "D": "M17 2l5 5l-5 5l-5-5z",
    "^": "M17 2l5 9h-10z",
    "v": "M17 12l5-9h-10z",
    "P": "M15.5 2h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "X": "M13 1.5l4 3.5l4-3.5l1.5 1.5l-3.5 4l3.5 4l-1.5 1.5l-4-3.5l-4 3.5l-1.5-1.5l3.5-4l-3.5-4z",
}


def _grid(frame: pd.DataFrame, name: str) -> Markup:
    """A frame of any columns as a sortable table in a box of its own."""
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    head = Markup().join(
        Markup('<th scope="col"{}>{}</th>').format(Markup(' class="number"') if n else "", column)
        for n, column in zip(numeric, frame.columns, strict=True)
    )
    body = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup().join(_grid_cell(v, n) for v, n in zip(row, numeric, strict=True)))
        for row in frame.itertuples(index=False, name=None)
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table class="sortable"><thead><tr>{}</tr>'
        "</thead><tbody>{}</tbody></table></div>"
    ).format(name, head, body)


def _grid_cell(value: object, numeric: bool) -> Markup:
    if value is None or value is pd.NA or value != value:  # NaN alone differs from itself
        return Markup("<td{}>{}</td>").format(Markup(' class="number"') if numeric else "", DASH)
    if not numeric:
        return Markup("<td>{}</td>").format(value)
    text = f"{value:.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else str(value)
    return Markup('<td class="number" data-value="{}">{}</td>').format(value, text)


def _policy_hash(text: str) -> str:
    """What a content security policy calls an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
