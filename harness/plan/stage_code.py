"""Which code makes each kind of stage: what a change of code makes new.

A stage's code is what its entry point uses, definition by definition, with the task and the methods that the recipe
hands over. Comments, docstrings and names of modules are no part of it, so a module can move at no cost.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.base.code_closure import Closure, Sources, own_sources
from harness.base.errors import HarnessError
from harness.base.identity import versions
from harness.plan.code_cache import CodeCache
from harness.tasks.base import Task
from methods.base import Method

_TRAININGS, _EVALUATIONS = "harness.run.trainings", "harness.run.evaluations"
ENTRY_POINTS: Mapping[str, Sequence[str]] = {
    "teacher": (f"{_TRAININGS}:make_teacher",),
    "warm_start": (f"{_TRAININGS}:make_warm_start",),
    "rows": (f"{_TRAININGS}:make_rows",),
    "said": (f"{_EVALUATIONS}:make_said",),
    "student": (f"{_TRAININGS}:make_student",),
    "answers": (f"{_EVALUATIONS}:make_answers",),
    "bits": (f"{_EVALUATIONS}:make_bits",),
    "scores": (f"{_EVALUATIONS}:score_answers", f"{_EVALUATIONS}:store_scores"),
    "alignments": ("harness.run.alignments:aligned",),
    "held_out": ("harness.data.teacher_rows:store_rows",),
    "apart": ("harness.evaluate.divergence:measure",),
}
_MAKERS, _WORKBENCH = "harness.run.makers:Makers", "harness.run.workbench:Workbench"
_DISTANCES = "harness.run.apart:DistanceMaker"


def _wiring(kind: str, *members: str) -> tuple[str, ...]:
    own = (f"{_MAKERS}.{member}" for member in ("make", f"make_{kind}", *members))
    return (_MAKERS, *own, f"{_WORKBENCH}.of")


WIRING: Mapping[str, Sequence[str]] = {
    "teacher": _wiring("teacher", "tools", "train"),
    "warm_start": _wiring("warm_start", "tools", "train"),
    "rows": _wiring("rows", "traces"),
    "said": _wiring("said"),
    "student": _wiring("student", "tools", "lessons", "traces", "train"),
    "answers": _wiring("answers"),
    "bits": _wiring("bits"),
    "scores": (f"{_MAKERS}.score",),
    "alignments": (f"{_WORKBENCH}.of",),
    "held_out": (f"{_DISTANCES}._rows", f"{_WORKBENCH}.of"),
    "apart": (
        _DISTANCES,
        *(f"{_DISTANCES}.{member}" for member in ("measure", "_measure", "_taught")),
        f"{_WORKBENCH}.of",
    ),
}
"""What hands things to entry points: it counts as it stands, with the names of what it calls, and is not followed."""

CANNOT_CHANGE_A_RESULT: Mapping[str, str] = {
    "harness.base.code_closure": "names what is kept",
    "harness.base.compilation": "tells what was compiled",
    "harness.base.errors": "words of errors, which are never stored as results",
    "harness.base.progress": "tells what happens, and gives nothing back",
    "harness.store.store": "gives back the files that were put in, by their digests",
    "harness.plan.stages:Stage.identity": "names a result",
    "harness.plan.objectives:ObjectiveSpec.identity": "names a result",
}
"""What entry points use that decides no result, with the reason."""

ON_REQUEST: Mapping[str, str] = {
    "rollouts": "harness.training.rollouts:Rollouts",
    "rewards": "harness.training.rewards",
    "skd": "harness.training.speculative:Speculation",
    "top_k": "harness.models.top_rows",
    "lora": "harness.models.lora",
    "best_dev": "harness.training.selection",
    "vllm": "harness.generation.vllm",
    "bits": "harness.evaluate.bits_per_byte",
}
"""What runs only where a recipe asks for it: elsewhere it is no part of a stage's code."""

_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft")


@dataclass(frozen=True)
class StageCode:
    """The code of a stage.

    Attributes:
        digest: part of the stage's identity.
        files: what is used of each file, as digests; no part of it, but what tells which file changed.
        versions: of installed libraries that decide a result.
    """

    digest: str
    files: Mapping[str, str]
    versions: Mapping[str, str]


class StageCodes:
    """The code of all stages of a plan.

    Args:
        sources: where it stands.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources, self._cache = sources, CodeCache(sources)

    def of(self, kind: str, task: Task, methods: Sequence[Method] = (), asked: Sequence[str] = ()) -> StageCode:
        """The code that makes a stage.

        Args:
            kind: of the stage.
            task, methods: that it is handed.
            asked: which of :data:`ON_REQUEST` the recipe asks for.
        """
        what = _asked(kind, task, methods, asked, self.sources)
        found = self._cache.get(what, lambda: self.sources.closure(*what))
        deciding = [name for name in (*_LIBRARIES, *task.libraries) if name.replace("-", "_") in found.libraries]
        return StageCode(found.digest, found.files, versions(*deciding))

    def keep(self) -> None:
        """Write what was found for the next plan."""
        self._cache.keep()


@functools.cache
def own_codes() -> StageCodes:
    """Of the code that runs."""
    return StageCodes(own_sources())


def closure_of(kind: str, task: Task, methods: Sequence[Method], asked: Sequence[str], sources: Sources) -> Closure:
    """The definitions behind a :class:`StageCode`."""
    return sources.closure(*_asked(kind, task, methods, asked, sources))


def _asked(
    kind: str, task: Task, methods: Sequence[Method], asked: Sequence[str], sources: Sources
) -> tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str]]:
    """Of :meth:`Sources.closure`: entries, classes, what is left out, and what counts as it stands."""
    without = [*CANNOT_CHANGE_A_RESULT, *(place for name, place in ON_REQUEST.items() if name not in asked)]
    classes = sorted({_place_of(type(one), sources) for one in (task, *methods)})
    return ENTRY_POINTS[kind], classes, without, WIRING[kind]


def _place_of(kind: type, sources: Sources) -> str:
    """Where a class is defined; the package of a plug-in is read with it.

    Raises:
        HarnessError: in no file.
    """
    module = kind.__module__
    top, *rest = module.split(".")
    if top not in sources.places:
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            raise HarnessError(
                f"{module}.{kind.__qualname__}",
                "a class that stands in no file",
                "a file, so that a change of its code makes its results new",
                "Put it into a module of your own.",
            )
        path = Path(file)
        above = len(rest) + (path.name == "__init__.py")
        sources.places[top] = path if above == 0 else path.parents[above - 1]
    return f"{module}:{kind.__qualname__.partition('.')[0]}"
