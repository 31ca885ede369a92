"""The rows of a table as objectives: methods with their options, teachers and weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harness.base.errors import HarnessError
from harness.base.files import Json
from harness.recipe.schema import ROLE_OF_KIND, Recipe
from harness.recipe.training import RowTraining
from methods.base import Method, Need, Rows, Start, TeacherKind, find
from methods.library.dual import DualOptions, is_dual, parts_of

KIND_OF_ROLE = {role: kind for kind, role in ROLE_OF_KIND.items()}


@dataclass(frozen=True)
class Part:
    """A method's part in an objective.

    Attributes:
        method: built with the recipe's options.
        role: of the teacher that it learns from; empty where it has none.
        weight: factor of its distillation term.
    """

    method: Method
    role: str
    weight: float

    @classmethod
    def of(cls, method: Method, weight: float) -> Part:
        """With the teacher that the method asks for."""
        return cls(method, ROLE_OF_KIND.get(method.teacher, ""), weight)

    @property
    def needs_live(self) -> bool:
        """Whether stored rows are not enough: the method scores the prompt too, or what the student samples."""
        return self.method.rows is Rows.ALL or Need.ROLLOUTS in self.method.needs


@dataclass(frozen=True)
class ObjectiveSpec:
    """A row of the table: a method with its options, or the two methods of a dual teacher.

    Attributes:
        label: in tables; the name that the recipe calls the row by.
        parts: one, or the two of a dual teacher.
        ce_weight: factor of the cross-entropy.
        training: fields of `train` that the row has of its own.
    """

    label: str
    parts: tuple[Part, ...]
    ce_weight: float
    training: RowTraining = field(default_factory=RowTraining)

    @property
    def label_smoothing(self) -> float:
        """Share of the cross-entropy's target that is spread evenly over the vocabulary."""
        return self.methods[0].label_smoothing if len(self.methods) == 1 else 0.0

    @classmethod
    def of(cls, label: str, method: Method) -> ObjectiveSpec:
        """One method with its own weights; where a teacher's answers stand in for references, theirs together."""
        ce, kd = method.options.ce_weight, method.options.kd_weight
        return cls(label, (Part.of(method, kd),), ce + kd if method.answers_of else ce)

    @property
    def losses(self) -> tuple[Part, ...]:
        """The parts with a loss beside the cross-entropy: those with a teacher, and those that rewards teach."""
        return tuple(part for part in self.parts if part.role or Need.REWARDS in part.method.needs)

    @property
    def corrected(self) -> bool:
        """Whether a teacher corrects what the student samples while it writes."""
        return any(method.sampling is not None and method.sampling.rollouts == "skd" for method in self.methods)

    @property
    def rewarded(self) -> bool:
        """Whether the task says what sampled responses are worth."""
        return any(Need.REWARDS in method.needs for method in self.methods)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Built with the recipe's options; one, or two."""
        return tuple(part.method for part in self.parts)

    @property
    def taught(self) -> tuple[Part, ...]:
        """The parts that learn from a teacher."""
        return tuple(part for part in self.parts if part.role)

    @property
    def fidelity(self) -> str:
        return str(self.methods[0].options.fidelity) if len(self.methods) == 1 else "described"

    @property
    def fidelities_differ(self) -> bool:
        return len(self.methods) == 1 and self.methods[0].fidelities_differ

    @property
    def name(self) -> str:
        """The label, with the fidelity where it is not the default."""
        return f"{self.label} (released)" if self.fidelity == "released" else self.label

    @property
    def start(self) -> Start:
        return self.methods[0].start

    @property
    def roles(self) -> tuple[str, ...]:
        """Role of the teacher of each method that has one."""
        return tuple(part.role for part in self.taught)

    @property
    def answers_of(self) -> str:
        """Role of the teacher whose answers stand in for references; empty where none's do."""
        return next((method.answers_of for method in self.methods if method.answers_of), "")

    @property
    def answers_share(self) -> float:
        """Of the prompts that they stand in for."""
        return self.parts[0].weight / self.ce_weight if self.answers_of and self.ce_weight else 0.0

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the cross-entropy on references, and of each part."""
        kd = tuple(part.weight for part in self.parts)
        return (self.ce_weight - kd[0] if self.answers_of else self.ce_weight, *kd)

    @property
    def learns_from(self) -> tuple[str, ...]:
        """Roles of all teachers, whichever way."""
        return (*self.roles, *([self.answers_of] if self.answers_of else []))

    @property
    def teacher_kind(self) -> str:
        """As tables group rows."""
        if self.answers_of:
            return KIND_OF_ROLE[self.answers_of].value
        return "both" if len(self.methods) > 1 else self.methods[0].teacher.value

    def needs_live(self, role: str) -> bool:
        """Whether the stored rows of a teacher are not enough."""
        return any(part.role == role and part.needs_live for part in self.parts)

    @property
    def samples(self) -> bool:
        """Whether the student samples responses while it trains."""
        return any(Need.ROLLOUTS in m.needs for m in self.methods)

    def identity(self) -> dict[str, Json]:
        weights = {"ce_weight", "kd_weight"}  # those that count stand below; a dual teacher's parts have others
        return {
            "methods": [
                {"method": m.name, "options": m.options.model_dump(mode="json", exclude=weights)} for m in self.methods
            ],
            "weights": [self.ce_weight, *(part.weight for part in self.parts)],
        }


def make_objectives(recipe: Recipe) -> list[ObjectiveSpec]:
    """Methods and variants with their options: a row for each fidelity in which they differ."""
    objectives = []
    for name in recipe.methods:
        if is_dual(name):
            objectives.append(replace(_dual(recipe, name), training=recipe.training_of(name)))
            continue
        kind = find(recipe.method_of(name)[0])
        own = _own_fidelity(recipe, name)
        # "released" of a method whose code does what its paper says is the same row
        fidelities = ((own,) if own else recipe.fidelity) if kind.fidelities_differ else ("described",)
        made = [ObjectiveSpec.of(name, _method(recipe, name, fidelity)) for fidelity in fidelities]
        objectives += [replace(one, training=recipe.training_of(name)) for one in made]
    return objectives


def _dual(recipe: Recipe, name: str) -> ObjectiveSpec:
    """Two methods under one cross-entropy; their own weights give way to the pair's."""
    same, cross = parts_of(name)
    shared = {k: v for k, v in recipe.method_options.get("all", {}).items() if k in DualOptions.model_fields}
    options = DualOptions.model_validate(shared | recipe.method_of(name)[1])
    untuned = recipe.model_copy(update={"tuned": {}})  # what was tuned of a method's own row is not its part's
    methods = tuple(_method(untuned, part, _own_fidelity(untuned, part) or "described") for part in (same, cross))
    names = [f"{m.name} (released)" if _is_released(m) else m.name for m in methods]
    shares = options.same_weight, 1 - options.same_weight
    parts = tuple(Part.of(m, options.kd_weight * share) for m, share in zip(methods, shares, strict=True))
    return ObjectiveSpec(f"dual({', '.join(names)})", parts, options.ce_weight)


def _own_fidelity(recipe: Recipe, name: str) -> str | None:
    """The fidelity that a recipe's options ask of a method, if they do; it wins over the recipe's list."""
    asked = (recipe.method_options.get("all", {}) | recipe.method_of(name)[1]).get("fidelity")
    return None if asked is None else str(asked)


def _is_released(method: Method) -> bool:
    return method.fidelities_differ and method.options.fidelity == "released"


def _method(recipe: Recipe, name: str, fidelity: str) -> Method:
    """A method or variant with the recipe's options.

    Raises:
        HarnessError: the recipe names no teacher for it.
    """
    method, own = recipe.method_of(name)
    kind = find(method)
    shared = {k: v for k, v in recipe.method_options.get("all", {}).items() if k in kind.Options.model_fields}
    if kind.teacher is TeacherKind.NONE:
        # the control is a distillation run without its KD term: all else that `all` says holds for it too
        learns = "answers_of" in kind.Options.model_fields
        shared = {k: v for k, v in shared.items() if kind.start is Start.WARM_START and (learns or k != "kd_weight")}
    made = kind(kind.Options.model_validate(shared | own | {"fidelity": fidelity}))
    role = made.answers_of or ROLE_OF_KIND.get(kind.teacher)
    if role is not None and getattr(recipe.teachers, role) is None:
        raise HarnessError(
            f"teachers.{role}", "none", f"a teacher for method {name}", "Name a model, or leave the method out."
        )
    return made
