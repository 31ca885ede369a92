"""A run again, from its record: the recipe that it had, and what has changed since that could change its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from harness.plan.stages import Plan
from harness.recipe.load import recipe_from
from harness.recipe.schema import Recipe
from harness.results.record import RunRecord, sources_of
from reports.two_runs import Difference, differences


def recipe_of(run: RunRecord, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run as its record has it, every default of then included.

    Args:
        overrides: ``key=value``, such as where the data lies on this machine.

    Raises:
        HarnessError: this version of the harness has no such fields, or an override is wrong.
    """
    values = run.record["recipe"]
    return recipe_from(str(values["name"]), values, overrides)


def changes_since(run: RunRecord, plan: Plan, environment: Mapping[str, object]) -> list[Difference]:
    """What differs now from what a run's record says: fields of the recipe, digests of models and data, versions.

    "identity" is among them where a stage means something else than it did.

    Args:
        plan: of the run's recipe, now.
        environment: of this process.
    """
    then = {**run.record["recipe"], **{name: run.record[name] for name in ("sources", "environment", "identity")}}
    now = plan.recipe.model_dump(mode="json") | {"sources": sources_of(plan), "environment": dict(environment)}
    # written and read as a record is, so that a tuple is a list there too
    return differences(then, json.loads(json.dumps(now | {"identity": plan.identity})))
