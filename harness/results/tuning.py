"""From the trials that are stored to the lock of a recipe, and from a run's lock to what its report shows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from harness.base.errors import HarnessError
from harness.evaluate.bits_per_byte import corpus_bits_per_byte
from harness.plan.objectives import make_objectives
from harness.plan.tuning import TuningPlan, TuningSettings, TuningTrial, digests, make_tuning_plan, overlay
from harness.recipe.lock import Lock, TrialRecord, TunedRow, TuningMetric, edges_line
from harness.recipe.schema import Recipe
from harness.results.layout import Record
from harness.store.artefacts import ANSWERS, BITS, Answer, Failure
from harness.store.store import Store
from harness.tasks.base import Task
from reports.tuning import TUNING_COLUMNS


def lock_of(plan: TuningPlan, store: Store, failures: Mapping[str, Failure]) -> Lock:
    """The winners of a tuning and every trial behind them.

    A row's winner has the least bits per byte on held-out rows, or the highest score, in the mean over tasks; of equal
    ones the recipe's own setting, else the earlier. A trial that failed on a task can't win.

    Raises:
        HarnessError: no trial of a row has a number.
    """
    by_row: dict[str, list[list[TuningTrial]]] = {}
    for trial in plan.trials:
        numbers = by_row.setdefault(trial.row, [])
        if len(numbers) <= trial.number:
            numbers.append([])
        numbers[trial.number].append(trial)
    bare = plan.recipe.model_copy(update={"tuned": {}, "tuning": {}, "fidelity": plan.recipe.fidelity[:1]})
    objectives = dict(zip(bare.methods, make_objectives(bare), strict=True))
    rows, tuned = {}, {}
    for row, numbers in by_row.items():
        records = [_record(trials, plan, store, failures) for trials in numbers]
        winner = _winner(row, records, plan)
        rows[row] = TunedRow(
            trials=tuple(records), winner=winner, digests={trial.cell.task: digests(trial) for trial in numbers[0]}
        )
        if winner:
            tuned[row] = overlay(bare, objectives[row], numbers[winner][0].point)
    settings = plan.settings
    return Lock(
        recipe=plan.recipe.name,
        budget=settings.budget,
        seed=settings.seed,
        share=settings.share,
        dev_rows=plan.recipe.dev.rows,
        metric=settings.metric,
        rows=rows,
        tuned=tuned,
    )


def _record(
    trials: Sequence[TuningTrial], plan: TuningPlan, store: Store, failures: Mapping[str, Failure]
) -> TrialRecord:
    """One configuration over all tasks."""
    found, failed = {}, []
    for trial in trials:
        if trial.dev.kind == "bits":
            value = corpus_bits_per_byte(BITS.find(store, "bits", trial.dev.identity) or [])
        else:
            value = _score(plan.tasks[trial.cell.task], ANSWERS.find(store, "answers", trial.dev.identity) or [])
        if math.isfinite(value):
            found[trial.cell.task] = value
        else:
            failure = failures.get(trial.dev.identity)
            failed.append(f"{trial.cell.task}: {failure.reason if failure else 'no number'}")
    return TrialRecord(setting=dict(trials[0].point), dev=found, failed="; ".join(failed))


def _score(task: Task, answers: Sequence[Answer]) -> float:
    """What answers to training rows are worth, in percent; NaN without any."""
    worth = [task.reward(answer.id, answer.output) for answer in answers]
    return 100 * math.fsum(worth) / len(worth) if worth else math.nan


def _winner(row: str, records: Sequence[TrialRecord], plan: TuningPlan) -> int:
    tasks, sign = len(plan.tasks), -1 if plan.settings.metric == "score" else 1
    means = [sign * math.fsum(one.dev.values()) / tasks if len(one.dev) == tasks else math.inf for one in records]
    if min(means) == math.inf:
        raise HarnessError(f"tuning of {row}", records[0].failed, "one trial at least with a number on every task")
    return means.index(min(means))


# --- Whether a lock still fits ----------------------------------------------------------------------------------------


def unfit(lock: Lock, recipe: Recipe) -> list[str]:
    """Why a lock does not fit a recipe any more, a line for each row; nothing where it does."""
    dev = recipe.dev.model_copy(update={"rows": lock.dev_rows})
    asked = recipe.model_copy(update={"tuned": {}, "tuning": {}, "dev": dev})
    now: dict[str, dict[str, dict[str, str]]] = {}
    for trial in make_tuning_plan(asked, TuningSettings(1, lock.seed, lock.share, lock.metric)).trials:
        now.setdefault(trial.row, {})[trial.cell.task] = digests(trial)
    lines = []
    for row, by_task in now.items():
        known = lock.rows.get(row)
        if known is None:
            lines.append(f"{row} was not tuned")
            continue
        changed = {
            _CHANGES[part]
            for task, parts in by_task.items()
            for part, digest in parts.items()
            if known.digests.get(task, {}).get(part) != digest
        }
        if changed:
            lines.append(f"{row}: {', '.join(sorted(changed))} changed")
    return lines


_CHANGES = {"recipe": "the recipe", "data": "the training rows", "code": "the method's code"}


# --- What a report shows ----------------------------------------------------------------------------------------------


def tuning_frame(record: Record, results: pd.DataFrame) -> pd.DataFrame:
    """Every setting that was tried: its dev number, whether the row has it, and then what the test set gave."""
    tuning = record["recipe"].get("tuning")
    if not isinstance(tuning, Mapping) or not tuning:
        return pd.DataFrame(columns=list(TUNING_COLUMNS))
    lock = Lock.model_validate({**tuning, "tuned": {}})
    bits = results["metric"] == "bits_per_byte"
    tested = results[(bits if lock.metric == "bits_per_byte" else ~bits) & (results["role"] == "student")]
    lines = []
    for row, tuned in lock.rows.items():
        of_row = tested[tested["method"].str.replace(" ", "") == row.replace(" ", "")]
        test = float(of_row.groupby("task")["value"].mean().mean()) if len(of_row) else math.nan
        for number, trial in enumerate(tuned.trials):
            own = number == tuned.winner
            said = ", ".join(f"{name} {value:g}" for name, value in trial.setting.items())
            dev = math.fsum(trial.dev.values()) / len(trial.dev) if trial.dev and not trial.failed else math.nan
            setting = said + (" (the recipe's own)" if number == 0 else "")
            lines.append((row, setting, dev, own, test if own else math.nan, lock.metric))
    return pd.DataFrame(lines, columns=list(TUNING_COLUMNS))


_IN_WORDS: Mapping[TuningMetric, str] = {"bits_per_byte": "bits per byte of", "score": "the score of answers to"}


def tuning_line(record: Record) -> str:
    """How rows were tuned, a sentence; empty where they were not."""
    tuning = record["recipe"].get("tuning")
    if not isinstance(tuning, Mapping) or not tuning:
        return ""
    lock = Lock.model_validate({**tuning, "tuned": {}})
    best = (
        f"Each row's setting is the best of {lock.budget} that were tried, with seed {lock.seed} and "
        f"{100 * lock.share:g} % of the steps, by {_IN_WORDS[lock.metric]} {lock.dev_rows} training rows of each task "
        "that no row trains on."
    )
    return " ".join(filter(None, (best, edges_line(lock))))
