"""The report as one page that needs nothing else: its style, script, figures and data are inside it.

Answers come from models and are not to be trusted: all text is escaped, and the page's policy lets no script run but
its own and no request leave.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import figures
from reports.analysis import INTERVAL
from reports.context import (
    PAPER_HEADER,
    ReportContext,
    explanations,
    paper_grid,
    protocols,
    tests_against_baseline,
)
from reports.evidence import NO_EVIDENCE, Alignment, Evidence, Item
from reports.outcomes import outcome_tables
from reports.published import beside_published
from reports.table import DASH, METRIC_LABELS, Cell, Column, Group, Row, Table
from reports.to_markdown import SIGNIFICANT_DIGITS

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000  # of a page; what would be over it is left out, and the page says so
ITEM_BYTES, ALIGNMENT_BYTES = 1_300_000, 2_200_000
LONGEST_TEXT = 4_000  # characters of a prompt or an answer

KINDS = {"none": "no teacher", "same-tokenizer": "same tokenizer", "cross-tokenizer": "cross tokenizer", "both": "both"}


def html(table: Table, context: ReportContext, evidence: Evidence = NO_EVIDENCE) -> str:
    """The whole page. Raises ValueError naming a task that has no protocol lines."""
    looks = figures.styles([row.label for group in table.groups for row in group.rows if row.role == "student"])
    items = _within(list(map(_cut, evidence.items)), ITEM_BYTES)
    alignments = _packed(evidence.alignments, ALIGNMENT_BYTES)
    values: dict[str, Any] = {
        "context": context,
        "evidence": evidence,
        "table": table,
        "students": [(student, _rows(groups, looks)) for student, groups in table.students()],
        "summary": _summary(table),
        "explanations": explanations(table),
        "protocols": protocols(table, context),
        "looks": looks,
        "figures": _figures(table, evidence, looks),
        "items": items,
        "items_left_out": _left_out(len(evidence.items) - len(items), "items"),
        "alignments": alignments,
        "alignment_notes": _alignment_notes(evidence, len(alignments["alignments"])),
        "outcomes": outcome_tables(context.outcomes),
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
    has_manifest = evidence.manifest or evidence.recipe or not evidence.stages.empty
    known = [
        ("results", "Results", True),
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
    known.append(("tests", f"Tests against {table.baseline}", tests_against_baseline(table), []))
    if context.appendix is not None:
        known.append(("diagnostics", "Diagnostics", context.appendix, [DIAGNOSTICS]))
    return [part for part in known if not part[2].empty or (part[3] and part[0] == "published")]


DIAGNOSTICS = "What training reported of itself: means over steps and seeds, where a column does not say otherwise."


def _summary(table: Table) -> str:
    rows = [row for group in table.groups for row in group.rows if row.role == "student"]
    tasks = list(dict.fromkeys(column.task for column in table.columns if not column.is_average))
    seeds = max((row.n_seeds for row in rows), default=0)
    students = [student for student, _ in table.students()]
    return (
        f"{len(rows)} {'way' if len(rows) == 1 else 'ways'} to train {', '.join(students)} "
        f"on {', '.join(tasks)}, {seeds} {'seed' if seeds == 1 else 'seeds'} each."
    )


def _rows(groups: Sequence[Group], looks: Mapping[str, figures.Style]) -> list[dict[str, Any]]:
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


# Figures


def _figures(
    table: Table, evidence: Evidence, looks: Mapping[str, figures.Style]
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(heading, what to know, figures with captions); without those that have nothing to show."""
    several = len(table.students()) > 1
    scores = score_frame(table)
    known = [
        (
            "Scores",
            f"{SPREAD} Dots: single seeds, where there are several. Grey: teachers and references.",
            _score_figures(scores, table.columns, looks, several),
        ),
        (
            "Training",
            "Means over seeds. Losses are in nats a token; a dual teacher's cross-tokenizer term is the thinner line. "
            "KD/CE: the norm of the distillation term's gradient at the student's logits over that of the "
            "cross-entropy, before weights; far from 1, one of the two decides alone.",
            _training_figures(evidence.steps, looks),
        ),
        (
            "Speed against score",
            "Seconds that the training of a student took, without loading and storing; teachers and their rows, which "
            "all methods share, are left out. Means over seeds. They are wall-clock times of the machine of this run, "
            "which may have had other work at the same time: compare them with care, and not with those of other runs.",
            _speed_figures(scores, evidence.costs, table.columns, looks),
        ),
    ]
    return [(heading, text, drawn) for heading, text, drawn in known if drawn]


SPREAD = (
    f"Lines: {INTERVAL} of the mean, by bootstrap over test items; without item-level scores one sample standard "
    "deviation over seeds."
)


def score_frame(table: Table) -> pd.DataFrame:
    """Every number of the table: student, column (its key), row, mean, low, high, seeds (their values)."""
    rows = []
    for group in table.groups:
        for row in group.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.mean is not None:
                    low, high = _interval(cell)
                    seeds = tuple(value for _, value in cell.values)
                    rows.append((group.student, column.key, _name(row), cell.mean, low, high, seeds))
    return pd.DataFrame(rows, columns=["student", "column", "row", "mean", "low", "high", "seeds"])


def _name(row: Row) -> str:
    """The row's label, which for teachers does not tell one from another outside their group."""
    return f"teacher {row.teacher}" if row.role == "teacher" and row.teacher else row.label


def _interval(cell: Cell) -> tuple[float, float]:
    if cell.interval is not None:
        return cell.interval
    if cell.mean is None or cell.std is None:
        return math.nan, math.nan
    return cell.mean - cell.std, cell.mean + cell.std


def _axis(column: Column) -> str:
    return column.full_label if column.unit == column.label else f"{column.full_label}, {column.unit}"


def _caption(column: Column) -> str:
    return f"{column.full_label}: {'higher' if column.higher_is_better else 'lower'} is better"


def _score_figures(
    scores: pd.DataFrame, columns: Sequence[Column], looks: Mapping[str, figures.Style], several: bool
) -> list[tuple[str, str]]:
    drawn: list[tuple[str, str]] = []
    for column in columns:
        for student, part in scores[scores["column"] == column.key].groupby("student", sort=False):
            name = f"f-score-{len(drawn)}"
            caption = f"{student}, {_caption(column)}" if several else _caption(column)
            drawn.append((caption, figures.score_bars(part, looks, name=name, label=_axis(column))))
    return drawn


def _training_figures(steps: pd.DataFrame, looks: Mapping[str, figures.Style]) -> list[tuple[str, str]]:
    known = [
        (["loss"], "total loss"),
        (["ce"], "cross-entropy"),
        (["kd", "second kd"], "distillation term (KD)"),
        (["ratio", "second ratio"], "KD/CE gradient norm"),
    ]
    drawn: list[tuple[str, str]] = []
    steps = steps[steps["row"].isin(list(looks))]
    for task, part in steps.groupby("task", sort=False):
        for number, (columns, label) in enumerate(known):
            name = f"f-steps-{len(drawn)}-{number}"
            svg = figures.curves(part, columns, looks, name=name, label=label)
            if svg is not None:
                drawn.append((f"{task}: {label}", svg))
    return drawn


def _speed_figures(
    scores: pd.DataFrame, costs: pd.DataFrame, columns: Sequence[Column], looks: Mapping[str, figures.Style]
) -> list[tuple[str, str]]:
    drawn: list[tuple[str, str]] = []
    seconds = costs.groupby(["task", "row"], sort=False)["seconds"].mean().reset_index()
    for column in columns:
        points = scores[scores["column"] == column.key].merge(seconds[seconds["task"] == column.task], on="row")
        if not points.empty:
            name = f"f-speed-{len(drawn)}"
            svg = figures.speed_against_score(points, looks, name=name, label=_axis(column))
            drawn.append((_caption(column), svg))
    return drawn


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


def _packed(alignments: Sequence[Alignment], most: int) -> dict[str, list[Any]]:
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


def _in_turn(alignments: Sequence[Alignment]) -> list[list[Alignment]]:
    """The alignments of each test item, the first items of all tasks first."""
    items: dict[str, dict[str, list[Alignment]]] = {}
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


def _swatch(look: figures.Style) -> Markup:
    """A line and a marker as figures draw them, for a legend."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true" stroke="{colour}">'
        '<line x1="1" x2="33" y1="7" y2="7" stroke-width="3" stroke-dasharray="{dash}"/>'
        '<path d="{marker}" fill="{fill}" stroke-width="1.5"/></svg>'
    ).format(colour=look.colour, dash=look.dash or "none", marker=_MARKERS[look.marker], fill=_fill(look))


def _fill(look: figures.Style) -> str:
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
