"""What became of answers, programs and rows, counted: what a score alone doesn't tell."""

from collections.abc import Iterator

import pandas as pd

from reports.table import METRIC_LABELS

OUTCOME_COLUMNS = ("row", "task", "seed", "of", "outcome", "count")
"""One line per row of the table, task, seed and outcome. ``of`` is ANSWERS, PROMPTS, TRAINING, REFERENCES or the metric
whose verdicts on code are counted; what did not happen may be missing."""
ANSWERS, PROMPTS, TRAINING, REFERENCES = "answers", "prompts", "training rows", "references"
JUDGED = "judged answers"  # by a task that has its own words for what it finds
ENDS = ("EOS", "stop string", "length limit")  # of ANSWERS
VERDICTS = ("pass", "fail", "timeout")
CUT, LEFT_OUT, UNREADABLE = "cut", "left out", "unreadable"  # of the others, beside "whole"

_NO_VERDICTS = frozenset({ANSWERS, PROMPTS, TRAINING, REFERENCES, JUDGED})


def empty_outcomes() -> pd.DataFrame:
    return pd.DataFrame(columns=list(OUTCOME_COLUMNS))


def outcome_tables(outcomes: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(heading, what to know, table) of everything that was counted, seeds added up."""
    known = [
        (
            "Verdicts on code",
            "Programs by what their tests said, all seeds. A timeout is a failure that a loaded machine can cause.",
            _verdicts(outcomes),
        ),
        (
            "How answers were judged",
            "All seeds.",
            _counted(outcomes, JUDGED, tuple(dict.fromkeys(outcomes[outcomes["of"] == JUDGED]["outcome"]))),
        ),
        (
            "How answers ended",
            "All seeds. An answer that ends at the length limit is cut there; a prompt that is cut has lost its end.",
            _answers(outcomes),
        ),
        (
            "Rows read",
            "Responses that are cut at limits.length train without an end; prompts that leave no room are left out. "
            "References are those of bits per byte, which leaves out what would be cut. Rows that a tokenizer changes "
            "are unreadable, and left out too.",
            _rows(outcomes),
        ),
    ]
    return [part for part in known if not part[2].empty]


def verdict_lines(outcomes: pd.DataFrame, task: str) -> Iterator[str]:
    """A line for each metric of a task that runs programs: what became of them, row by row."""
    table = _verdicts(outcomes[outcomes["task"] == task])
    for metric, part in table.groupby("metric", sort=False):
        counts = [(str(row["row"]), [int(row[name]) for name in VERDICTS]) for _, row in part.iterrows()]
        late = sum(count[-1] for _, count in counts)
        yield (
            f"{metric}, {'/'.join(VERDICTS)}: {', '.join(f'{row} {_slashed(count)}' for row, count in counts)}; "
            f"{late} timeout{'s' * (late != 1)} in all"
        )


def _verdicts(outcomes: pd.DataFrame) -> pd.DataFrame:
    kinds = [str(of) for of in dict.fromkeys(outcomes["of"]) if of not in _NO_VERDICTS]
    parts = []
    for kind in kinds:
        part = _counted(outcomes, kind, VERDICTS)
        part.insert(1, "metric", METRIC_LABELS.get(kind, kind.replace("_", " ")))
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["task", "metric", "row", *VERDICTS])


def _answers(outcomes: pd.DataFrame) -> pd.DataFrame:
    table = _counted(outcomes, ANSWERS, ENDS)
    if table.empty:
        return table
    table.insert(2, "answers", table[list(ENDS)].sum(axis=1))
    prompts = _counted(outcomes, PROMPTS, (CUT,)).rename(columns={CUT: "prompts cut"})
    return table if prompts.empty else table.merge(prompts, on=["task", "row"], how="left")


def _rows(outcomes: pd.DataFrame) -> pd.DataFrame:
    """By task: most rows of a table read the same; those that don't are told apart."""
    parts = []
    for kind in (TRAINING, REFERENCES):
        part = _counted(outcomes[outcomes["of"] == kind].drop_duplicates(["row", "task", "outcome"]), kind)
        if part.empty:
            continue
        alike = (
            part.groupby([name for name in part.columns if name != "row"], sort=False)["row"].agg(list).reset_index()
        )
        several = alike.groupby("task")["task"].transform("size") > 1
        rows = alike.pop("row").map(", ".join).where(several, "all")
        alike.insert(1, "rows of the table", rows)
        alike.insert(1, "what", kind)
        parts.append(alike)
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    return table if table[UNREADABLE].any() else table.drop(columns=UNREADABLE)


def _counted(
    outcomes: pd.DataFrame, of: str, names: tuple[str, ...] = ("whole", CUT, LEFT_OUT, UNREADABLE)
) -> pd.DataFrame:
    """Columns task, row and the outcomes named, task by task in the order of rows; 0 where nothing was counted."""
    tasks = {task: place for place, task in enumerate(dict.fromkeys(outcomes["task"]))}
    part = outcomes[outcomes["of"] == of].sort_values("task", key=lambda names: names.map(tasks), kind="stable")
    if part.empty:
        return pd.DataFrame(columns=["task", "row", *names])
    table = part.groupby(["task", "row", "outcome"], sort=False)["count"].sum().unstack("outcome", sort=False)
    return table.reindex(columns=list(names)).fillna(0).astype(int).reset_index().rename_axis(columns=None)


def _slashed(counts: list[int]) -> str:
    return "/".join(map(str, counts))
