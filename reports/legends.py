"""How to read a table: what bold print, marks and spreads mean in it, and what is missing; the same in every format."""

from collections.abc import Iterator, Sequence

from reports.analysis import FEWEST_ITEMS, INTERVAL, LEVEL
from reports.statistics import RESAMPLES
from reports.table import Column, Table
from reports.verdict import listed

FEW_ITEMS = 30  # below them a bootstrap interval over items holds less than it says
ARROWS = "↑ higher is better, ↓ lower is better."


def explanations(table: Table) -> list[str]:
    """The lines below a table."""
    lines = [*_bold(table), ARROWS, *_spreads(table), *_more_seeds(table), *_marks(table)]
    averaged = [column.full_label for column in table.columns if column.in_average]
    if any(column.is_average for column in table.columns):
        lines.append(
            f"Average: of {', '.join(averaged)}, seed by seed{_averaged_seeds(table)}, only where a row has them all; "
            "no interval, no test, never bold."
        )
    if table.hidden:
        lines.append(f"Not printed, but in table.csv: {', '.join(column.full_label for column in table.hidden)}.")
    return lines


def _averaged_seeds(table: Table) -> str:
    """Which seeds the average is over, where its tasks differ in theirs."""
    seeds = [set(column.seeds) for column in table.columns if column.in_average]
    common = sorted(set.intersection(*seeds))
    if all(of_one == seeds[0] for of_one in seeds):
        return ""
    if not common:
        return " (its tasks have no seed in common)"
    if len(common) == 1:
        return f" over seed {common[0]}, the only one that all of them have"
    return f" over the seeds that all of them have ({', '.join(map(str, common))})"


def _more_seeds(table: Table) -> Iterator[str]:
    """Rows that were trained more often than the others."""
    more: dict[str, tuple[int, int]] = {}
    for _, row, column, cell in table.cells():
        if row.role == "student" and not column.is_average and 1 < len(column.seeds) < cell.n_seeds:
            more.setdefault(row.label, (cell.n_seeds, len(column.seeds)))
    for label, (own, others) in more.items():
        yield (
            f"{label} has {own} training seeds, the others {others}: it is in every difference, and its further seeds "
            "sharpen its mean."
        )


def _bold(table: Table) -> Iterator[str]:
    if any(cell.best for *_, cell in table.cells()):
        yield (
            "Bold: the best of its column within a student, and what can't be told from it by the test below; teachers "
            "and references do not compete. In a column without bold print no row can be told from the best."
        )
    elif table.pairwise:
        yield "Nothing is bold: in no column can a row be told from the best."


def _spreads(table: Table) -> Iterator[str]:
    """Which kinds of spread the table shows, and where one is missing."""
    filled = [cell for _, _, column, cell in table.cells() if cell.mean is not None and not column.is_average]
    single = [cell for cell in filled if cell.n_seeds == 1]
    if len(single) < len(filled):
        yield "±: sample standard deviation over training seeds."
    if any(cell.interval is not None for cell in single):
        yield (
            f"(low–high): one training seed, {INTERVAL} by bootstrap over test items ({RESAMPLES:,} resamples), "
            "which says nothing of other seeds."
        )
        if few := [c for c in table.columns if c.items and c.items[0] < FEW_ITEMS and not c.is_average]:
            named = ", ".join(f"{column.full_label} {column.items[0]}" for column in few)
            yield (
                f"Fewer than {FEW_ITEMS} items bound little ({named}): an interval over so few is too narrow more "
                "often than it says."
            )
        if any(cell.interval is None for cell in single):
            yield "One seed and no interval: all items scored the same, or their scores are missing."
    elif single:
        yield "A number without ±: one training seed, and no item-level scores to tell how sure it is."


def _marks(table: Table) -> Iterator[str]:
    """What marks stand for, and which columns can't have any."""
    if not table.baseline:
        return
    compared = [(column, cell.comparison) for _, _, column, cell in table.cells() if cell.comparison is not None]
    if not compared:
        yield (
            f"No marks of significance: no row here has item-level scores to compare with those of {table.baseline!r}."
        )
        return
    tested = [column for column, one in compared if one.p_corrected is not None]
    if tested:
        students = " of a student" if len(table.students()) > 1 else ""
        columns = _names(tested)
        over = "rows" + (f" and {len(columns)} columns together" if len(columns) > 1 else "")
        yield (
            f"† better, ‡ worse than {table.baseline}: a test of methods, {100 * LEVEL:g} % level after Holm's "
            f"correction over the {over}{students} ({', '.join(columns)}). It counts what training again and other "
            "test items would change: differences are paired by seed, and Student's t has the variance between "
            "trainings that all rows share, or a row's own where it is larger."
        )
    if single := _names([column for column, one in compared if column.key in table.named and len(one.seeds) < 2]):
        yield (
            f"No mark where a row has one training seed ({', '.join(single)}): what training again would change, one "
            "seed can't tell."
        )
    if few := _names([column for column, one in compared if column.key in table.named and one.n_items < FEWEST_ITEMS]):
        yield f"No mark where fewer than {FEWEST_ITEMS} items were scored ({', '.join(few)})."
    if other := _names([column for column, _ in compared if column.key not in table.named]):
        yield f"Not named for the test, and without marks: {listed(other)}."


def _names(columns: Sequence[Column]) -> list[str]:
    return list(dict.fromkeys(column.full_label for column in columns))
