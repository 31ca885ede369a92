"""What a recipe would run and what that costs, for a terminal; rows that are not there are made up for it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from harness.plan.builder import make_plan
from harness.plan.costs.made_up_rows import in_words, with_made_up_rows
from harness.plan.stages import demanded_stages
from harness.recipe.schema import Recipe
from harness.store.store import Store
from harness.tasks.files import shortfalls
from harness.terminal.costs_table import costs_table
from harness.terminal.progress import plan_table


def plan_view(recipe: Recipe, store: Store) -> RenderableType:
    """Cells and stages with their states, what a run would miss, and the costs of what would run."""
    with with_made_up_rows(recipe) as (tasks, made_up):
        made = make_plan(recipe, tasks)
        parts: list[RenderableType] = [plan_table(made, store, made_up)]
        seen = {name: task for name, task in tasks.items() if name not in made_up}
        warnings = [*in_words(recipe, made_up), *shortfalls(seen)]
        if recipe.evaluation.engine == "vllm":
            from harness.generation import vllm as vllm_engine  # takes transformers, for which others need not wait

            if vllm_engine.installed() is None:
                warnings.append(f"evaluation.engine: a run stops here, as vLLM is not installed. {vllm_engine.HOW}")
        parts += [Text(line, "yellow") for line in warnings]
        if demanded := demanded_stages(made, store):
            parts.append(costs_table(made, store, demanded))
    return Group(*parts)
