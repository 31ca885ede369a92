"""What a table settles, in words: which rows differ from the baseline, by how much and how surely; which do not."""

from collections.abc import Iterator, Sequence

from reports.analysis import FEWEST_ITEMS, INTERVAL, Comparison
from reports.gap import Gap
from reports.learnt import share
from reports.power import comparisons_of, findable
from reports.table import Column, Pairwise, Table

MOST_NAMED = 12  # rows that a sentence lists


def verdict(table: Table) -> list[str]:
    """What every format says first: whether the pair can tell anything, then each column that is tested.

    Columns that say the same share a line.
    """
    several = len(table.students()) > 1
    columns: dict[str, list[str]] = {}
    for pairwise in table.pairwise:
        if pairwise.column.key in table.named:
            student = f"{pairwise.student}, " if several else ""
            said = " ".join(_sentences(table, pairwise))
            columns.setdefault(said, []).append(f"{student}{pairwise.column.full_label}")
    lines = [f"{'; '.join(names) if several else ', '.join(names)}: {said}" for said, names in columns.items()]
    return [*_no_leader(table), *lines]


def p_text(p: float) -> str:
    """Four decimals, as far as the resamples of a bootstrap reach."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def amount(value: float, column: Column) -> str:
    """A difference without its sign, in words: percentages differ by points. What would read as 0 has one digit."""
    text = f"{abs(value):.{column.digits}f}"
    return f"{text if float(text) or not value else f'{abs(value):.1g}'}{' points' if column.unit == '%' else ''}"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"; long lists end with a count."""
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _sentences(table: Table, pairwise: Pairwise) -> Iterator[str]:
    made = list(pairwise.comparisons.values())
    if max(len(one.seeds) for one in made) < 2:
        yield (
            "one training seed, so that no row can be told from another: training again might turn any difference "
            "round. Two seeds are the least."
        )
        return
    if (items := min(one.n_items for one in made)) < FEWEST_ITEMS:
        yield f"{items} test items, so that no row can be told from another. {FEWEST_ITEMS} are the least for a test."
        return
    if all(one.p is None for one in made):
        yield "all differences are the same in every seed, so that nothing tells how far chance reaches."
        return
    if pairwise.base:
        yield from _against(table, pairwise)
        yield from _from_whom(pairwise)
    yield _best(pairwise)


def _against(table: Table, pairwise: Pairwise) -> Iterator[str]:
    """Which rows differ from the baseline; the correction is that of their marks, not of the pairwise table."""
    column, base = pairwise.column, pairwise.base
    found = {label: one for label, one in pairwise.against.items() if one.found}
    for better in (True, False):
        said = [_how_sure(label, one, column) for label, one in found.items() if one.better == better]
        if said:
            yield f"{'Better' if better else 'Worse'} than {base}: {'; '.join(said)}."
    if open_ := [label for label in pairwise.against if label not in found]:
        seen = ""
        if pairwise.noise is not None:
            least = findable(pairwise.noise, pairwise.noise.seeds, comparisons_of(table, pairwise))
            seen = f" (differences under {amount(least, column)} would mostly go unseen)"
        yield f"Not told apart from {base}: {listed(open_)}{seen}."


def _how_sure(label: str, one: Comparison, column: Column) -> str:
    assert one.interval is not None  # of what is found
    assert one.p_corrected is not None
    low, high = sorted(abs(end) for end in one.interval)
    if one.interval[0] < 0 < one.interval[1]:
        low = -low
    return (
        f"{label} by {amount(one.difference, column)} ({INTERVAL} {low:.{column.digits}f} to "
        f"{high:.{column.digits}f}, p {p_text(one.p_corrected)} after correction)"
    )


def _best(pairwise: Pairwise) -> str:
    if not pairwise.best:
        return "No row can be told from the best."
    first, *others = pairwise.best
    if not others:
        return f"Best: {first}, told from every other row."
    return f"Best: {first}; {listed(others)} can't be told from it."


def _no_leader(table: Table) -> Iterator[str]:
    """What a pair of models can't settle, as a teacher is no better than the baseline; said before all else."""
    columns: dict[tuple[str, ...], list[str]] = {}
    some: dict[str, list[str]] = {}
    for pairwise in table.pairwise:
        if pairwise.column.key not in table.named or not pairwise.gaps:
            continue
        teachers = {gap.teacher: gap for gap in pairwise.gaps.values()}
        behind = {name: gap for name, gap in teachers.items() if not gap.leads}
        where = pairwise.column.full_label
        if len(behind) == len(teachers):
            said = tuple(f"{name} by {_lead(gap, pairwise.column)}" for name, gap in behind.items())
            columns.setdefault(said, []).append(where)
        else:
            for name in behind:
                some.setdefault(name, []).append(where)
    for said, names in columns.items():
        yield (
            f"{', '.join(names)}: no teacher is told from {table.baseline} as the better one (ahead: {listed(said)}), "
            "so that this pair of models can't rank methods there."
        )
    for name, names in some.items():
        yield (
            f"{', '.join(names)}: {name} is not told from {table.baseline} as the better one; rows that learn from it "
            "can't be ranked there."
        )


def _lead(gap: Gap, column: Column) -> str:
    return f"{gap.lead:+.{column.digits}f}{' points' if column.unit == '%' else ''}"


def _from_whom(pairwise: Pairwise) -> Iterator[str]:
    """What was learnt from whom, as far as intervals leave out 0."""
    for sign, verb in ((1, "Learnt"), (-1, "Moved away from the teacher")):
        said = []
        for teacher in dict.fromkeys(gap.teacher for gap in pairwise.gaps.values()):
            rows = [
                f"{label} {share(gap)}"
                for label, gap in pairwise.gaps.items()
                if gap.teacher == teacher and gap.interval is not None and sign * gap.interval[sign < 0] > 0
            ]
            if rows:
                said.append(f"{listed(rows)} of the way to {teacher}")
        if said:
            yield f"{verb}: {'; '.join(said)}."
