"""The tests behind a table's marks as tables of text: of methods, of all rows with all, and of these students."""

import pandas as pd

from reports.analysis import INTERVAL, Comparison
from reports.item_tests import BOOTSTRAP, MCNEMAR, ItemTest
from reports.statistics import RESAMPLES
from reports.table import DASH, Column, Pairwise, Table
from reports.verdict import p_text


def appendices(table: Table) -> list[tuple[str, str, pd.DataFrame]]:
    """(heading, what to know, frame) of each; without those that have nothing to show."""
    base = table.baseline
    made = [
        (
            f"Tests against {base}: would training again show it?",
            f"Difference: row minus {base}, paired by seed. Interval and p are of one t-test, whose error counts "
            "training again and other items; the variance between trainings is that of all rows, or a row's own where "
            "it is larger. Holm: corrected over rows and the columns named for the test. Pooled: with the variance of "
            "all rows alone. Welch: not paired, from the variances of the two rows.",
            _against(table),
        ),
        *(
            (
                f"All with all: {one.column.full_label}{_student(table, one)}",
                "Row minus column, paired by seed. † the row is better, ‡ worse, by the same test"
                + (
                    f"; marks against {base} are those of the table, all other pairs are corrected together."
                    if base
                    else ", corrected over all pairs."
                ),
                _matrix(one),
            )
            for one in table.pairwise
            if any(c.p_corrected is not None for c in one.comparisons.values())
        ),
        (
            "Other items, these students",
            f"What other test items would show of the students that were trained, against {base}. It says nothing of "
            f"training again, and no mark is made of it. Each item's seeds are averaged. {MCNEMAR}: exact, on answers "
            f"right or wrong, by the items on which one of the two is better. {BOOTSTRAP.capitalize()}: paired, "
            f"studentised, {RESAMPLES:,} resamples of items; its interval leaves out 0 where p is at most 0.05. Holm: "
            "over the rows of a column.",
            _items(table),
        ),
    ]
    return [part for part in made if not part[2].empty]


def _student(table: Table, pairwise: Pairwise) -> str:
    return f", {pairwise.student}" if len(table.students()) > 1 else ""


def _against(table: Table) -> pd.DataFrame:
    lines = []
    for one in table.pairwise:
        for label, comparison in one.against.items():
            if comparison.p is not None:
                lines.append(_where(table, one, label) | _said(comparison, one.column))
    return pd.DataFrame(lines)


def _where(table: Table, pairwise: Pairwise, label: str) -> dict[str, str]:
    student = {"student": pairwise.student} if len(table.students()) > 1 else {}
    return {"column": pairwise.column.full_label, **student, "row": label}


def _said(one: Comparison, column: Column) -> dict[str, str]:
    return {
        "difference": f"{one.difference:+.{column.digits}f}",
        INTERVAL: _interval(one.interval, column),
        "p": _p(one.p),
        "p, Holm": _p(one.p_corrected),
        "df": DASH if one.df is None else f"{one.df:.1f}",
        "p, pooled": _p(one.p_pooled),
        "p, Welch": _p(one.p_welch),
        "seeds": str(len(one.seeds)),
        "items": str(one.n_items),
    }


def _matrix(pairwise: Pairwise) -> pd.DataFrame:
    def shown(row: str, other: str) -> str:
        one = pairwise.comparisons.get((row, other))
        return "" if one is None else f"{one.difference:+.{pairwise.column.digits}f}{one.mark}"

    rows = pairwise.rows
    return pd.DataFrame([{"row": row} | {other: shown(row, other) for other in rows} for row in rows])


def _items(table: Table) -> pd.DataFrame:
    lines = []
    for one in table.pairwise:
        for label, comparison in one.against.items():
            if (test := comparison.items) is not None:
                lines.append(_where(table, one, label) | _of_items(test, comparison, one.column))
    return pd.DataFrame(lines)


def _of_items(test: ItemTest, comparison: Comparison, column: Column) -> dict[str, str]:
    return {
        "difference": f"{test.difference:+.{column.digits}f}",
        "test": test.test,
        INTERVAL: _interval(test.interval, column),
        "items better": str(test.better),
        "items worse": str(test.worse),
        "p": p_text(test.p),
        "p, Holm": p_text(test.p_corrected),
        "items": str(comparison.n_items),
        "seeds": str(len(comparison.seeds)),
    }


def _interval(interval: tuple[float, float] | None, column: Column) -> str:
    return DASH if interval is None else "{:+.{d}f} to {:+.{d}f}".format(*interval, d=column.digits)


def _p(p: float | None) -> str:
    return DASH if p is None else p_text(p)
