"""Tuning from Python: what :mod:`harness.api` gives as `tune`, `tuned` and `tuning_plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.errors import HarnessError
from harness.base.installation import runs_folder
from harness.base.progress import Silent
from harness.base.ranks import Ranks
from harness.plan.tuning import TuningPlan, TuningSettings, make_tuning_plan
from harness.recipe.lock import Lock, TuningMetric, read_lock, with_lock
from harness.results.record import run_folder
from harness.results.tuning import lock_of, unfit
from harness.run.runner import Runner
from harness.run.shared import SharedRunner
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.base.progress import Progress
    from harness.recipe.schema import Recipe


def tune(
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    budget: int = 6,
    seed: int = 0,
    share: float = 0.5,
    metric: TuningMetric = "bits_per_byte",
    runs: Path | str | None = None,
) -> Lock:
    """Try settings for every row of a recipe on held-out training rows; :func:`tuned` gives the recipe what won.

    What is stored already is not made again: an interrupted tuning goes on where it stopped.

    Args:
        budget: settings that each row has tried, its own included.
        seed: of the one repetition.
        share: of the recipe's steps that a trial trains.
        metric: what settings are judged by: bits per byte of the held-out rows, or the score of answers to them.
        runs: folder of results, as in :func:`run`.

    Raises:
        HarnessError: bad input, or no trial of a row gave a number.
    """
    made, kept = tuning_plan(recipe, budget, seed, share, metric), Store(runs_folder(runs))
    folder = run_folder(kept.root.parent, made)
    kind = SharedRunner if recipe.launch.workers > 1 else Runner
    runner = kind(made, kept, folder, progress or Silent(), ranks=Ranks.join())
    if runner.ranks.rank > 0:
        runner.follow()
        runner.ranks.end()
    else:
        with runner.ranks.leading():
            runner.run()
    return lock_of(made, runner.store, runner.failures)


def tuning_plan(
    recipe: Recipe, budget: int = 6, seed: int = 0, share: float = 0.5, metric: TuningMetric = "bits_per_byte"
) -> TuningPlan:
    """The stages of :func:`tune`; executes nothing."""
    return make_tuning_plan(recipe, TuningSettings(budget, seed, share, metric))


def tuned(recipe: Recipe, lock: Lock | Path | str, *, stale: bool = False) -> Recipe:
    """The recipe with the settings that a tuning found, which its record and report tell of.

    Args:
        lock: from :func:`tune`, or its file.
        stale: whether to take settings that were found with another recipe, other training rows or other code.

    Raises:
        HarnessError: the lock does not fit the recipe any more; or it is none.
    """
    found = lock if isinstance(lock, Lock) else read_lock(Path(lock))
    if not stale and (reasons := unfit(found, recipe)):
        raise HarnessError(
            "lock file" if isinstance(lock, Lock) else str(lock),
            f"settings that were found otherwise: {'; '.join(reasons)}",
            "settings of this recipe",
            "Run `harness tune` again, or take them as they are (--stale-lock), or leave them out (--untuned).",
        )
    return with_lock(recipe, found)
