"""What a recipe sets, in words: what a reader of the table needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.data.tokens import STUDENT
from harness.models.spec import ModelSpec
from harness.plan.objectives import ObjectiveSpec
from harness.plan.stages import Plan
from harness.recipe.schema import Recipe


def settings_in_words(plan: Plan) -> list[tuple[str, str]]:
    """Settings that a reader of the table needs, in words."""
    recipe = plan.recipe
    objectives = [cell.objective for cell in plan.cells]
    weights = {each.label: each.weights for each in objectives}
    models = recipe.models_by_role()
    teachers = [f"{role}: {_model_in_words(spec)}" for role, spec in models.items() if role != STUDENT]
    training = [(name, getattr(recipe, name)) for name in ("teacher", "warm_start", "train")]
    return [
        ("Student", _model_in_words(recipe.student)),
        ("Teachers", "; ".join(teachers) or "none"),
        ("Seeds", _seeds(recipe)),
        (
            "Weights (CE, KD)",
            "; ".join(f"{name} {', '.join(f'{w:g}' for w in each)}" for name, each in weights.items()),
        ),
        *(
            (
                name.replace("_", " ").capitalize(),
                f"{t.steps if t.steps is not None else f'{t.epochs:g} epochs'}"
                f"{' steps' if t.steps is not None else ''}, batch {t.batch_size}, learning rate {t.learning_rate:g} "
                f"({t.schedule}){', steps of like length' if t.bucket == 'length' else ''}"
                f"{f', rows {t.rows[0]} to {t.rows[1] - 1}' if t.rows else ''}"
                f"{', LoRA rank ' + str(t.lora.rank) if t.lora else ''}"
                f"{f', the best of {t.evaluations} looks at held-out rows kept' if t.select == 'best_dev' else ''}",
            )
            for name, t in training
        ),
        *_own_trainings(objectives),
        *_kept_rows(plan),
        ("Data", recipe.data.root or _data(plan)),
        *([("Held out", f"{recipe.dev.rows} training rows of each task")] if recipe.dev.rows else []),
    ]


def _seeds(recipe: Recipe) -> str:
    """The recipe's, and those of tasks that have their own; what the baseline has beside them."""
    by_task = {name: ", ".join(map(str, recipe.seeds_of(name))) for name in recipe.tasks}
    for name in recipe.tasks:
        if further := recipe.further_seeds(name):
            by_task[name] += f" ({recipe.baseline} also {', '.join(map(str, further))})"
    if len(set(by_task.values())) == 1:
        return next(iter(by_task.values()))
    return "; ".join(f"{name} {seeds}" for name, seeds in by_task.items())


def _model_in_words(spec: ModelSpec) -> str:
    """As tables call it, with what the recipe keeps of it."""
    name = spec.name or spec.model
    return name if spec.layers is None else f"{name}, {spec.layers} layers kept"


def _own_trainings(objectives: Sequence[ObjectiveSpec]) -> list[tuple[str, str]]:
    """What rows have of their own: fields of their training, and a KD term that is scaled."""
    own = {each.name: each.training.given for each in objectives if each.training.given}
    scaled = {each.name: part.method.options.kd_scale for each in objectives for part in each.taught}
    scaled = {name: how for name, how in scaled.items() if how != "fixed"}
    words = {"match_ce": "CE / KD", "match_gradient": "the ratio of their gradients' norms"}
    trainings = "; ".join(f"{name}: {_in_words(given)}" for name, given in own.items())
    late = "of the step before, so that it is one step late; 1 in the first"
    return [
        *([("Trainings of their own", trainings)] if own else []),
        *((f"KD of {name}", f"times {words[how]} {late}") for name, how in scaled.items()),
    ]


def _in_words(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _kept_rows(plan: Plan) -> list[tuple[str, str]]:
    """What students learned from instead of the teachers' whole distributions, where they did."""
    kept = plan.recipe.teacher_rows
    stored = [(cell.objective, role) for cell in plan.cells for role in cell.objective.roles]
    stored = [(objective, role) for objective, role in stored if not objective.needs_live(role)]
    if kept.keep == "hidden" or not stored:
        return []
    words = f"the likeliest {kept.k} of each position in float16, the rest as one mass spread evenly"
    softened = dict.fromkeys(
        objective.name
        for objective, role in stored
        for part in objective.taught
        if part.role == role and getattr(part.method.options, "temperature", 1.0) > 1.0
    )
    if softened:
        words += f"; at a temperature above 1 ({', '.join(softened)}) that rest weighs more than the teacher's own"
    live = dict.fromkeys(
        cell.objective.name for cell in plan.cells if any(map(cell.objective.needs_live, cell.objective.roles))
    )
    return [("Teacher rows", f"{words}; whole and live for {', '.join(live)}" if live else words)]


def _data(plan: Plan) -> str:
    """What is read where there is no folder of data."""
    ours = {task.root == task.samples() for task in plan.tasks.values()}
    words = {True: "samples that the project ships", False: "files that the recipe names"}
    return " and ".join(words[one] for one in sorted(ours, reverse=True))
