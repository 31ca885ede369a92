"""Why stages are new: how they differ from the stored stage that is most like them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.base.files import Json
from harness.data.tokens import STUDENT
from harness.plan.stages import Plan, Stage, demanded_stages
from harness.store.store import Store

_DIGEST = re.compile(r"[0-9a-f]{32,}")
_FILES = 3  # files of code that a line names
_NOTHING = "none"


@dataclass(frozen=True)
class Reason:
    """Something that makes stages new.

    Attributes:
        text: a setting, a library or a file of code, with what it was and what it is.
        kinds: of the stages, and how many.
    """

    text: str
    kinds: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.text} ({', '.join(f'{number} {kind}' for kind, number in self.kinds.items())})"


def reasons(plan: Plan, store: Store, unknown: Container[str] = ()) -> list[Reason]:
    """What makes stages that would run new, most stages first.

    A stage that differs only in what it reads adds none: the reason is that of its inputs. Nor does a stage of which
    there is none alike.

    Args:
        unknown: tasks whose stages have identities that only the data decides.
    """
    demanded = demanded_stages(plan, store)
    known: dict[str, dict[tuple[str, str], list[Mapping[str, Json]]]] = {}
    found: dict[str, Counter[str]] = {}
    for stage in plan.stages():
        if stage.identity not in demanded or stage.task in unknown:
            continue
        if stage.kind not in known:
            known[stage.kind] = _by_title(store.manifests(stage.kind))
        alike = known[stage.kind].get((stage.title, stage.task), [])
        for text in min((differences(stage, manifest) for manifest in alike), key=len, default=[]):
            found.setdefault(text, Counter())[stage.kind] += 1
    ordered = sorted(found.items(), key=lambda item: -item[1].total())
    return [Reason(text, dict(kinds)) for text, kinds in ordered]


def differences(stage: Stage, manifest: Mapping[str, Json]) -> list[str]:
    """How a stage differs from a stored one, in words; nothing where only what they read does."""
    ours, theirs = _leaves(json.loads(json.dumps(dict(stage.values)))), _leaves(manifest["values"])
    changed = [key for key in (ours | theirs) if ours.get(key, _NOTHING) != theirs.get(key, _NOTHING)]
    told = dict.fromkeys(
        _told(stage, key, theirs.get(key, _NOTHING), ours.get(key, _NOTHING)) for key in changed if key != "code"
    )
    return [*([_code(stage.code, manifest.get("code", {}))] if "code" in changed else []), *told]


def _by_title(manifests: Sequence[Mapping[str, Json]]) -> dict[tuple[str, str], list[Mapping[str, Json]]]:
    """Manifests by title and task, the newest first."""
    found: dict[tuple[str, str], list[Mapping[str, Json]]] = {}
    for manifest in sorted(manifests, key=lambda one: str(one.get("created", "")), reverse=True):
        if "values" in manifest:
            found.setdefault((str(manifest.get("title")), str(manifest.get("task"))), []).append(manifest)
    return found


def _code(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """The files whose code is new. A file that only moved is none of them."""
    names = [name for name, digest in ours.items() if digest not in theirs.values()]
    names = names or [name for name, digest in theirs.items() if digest not in ours.values()]
    more = f" and {len(names) - _FILES} more" if len(names) > _FILES else ""
    return f"code of {', '.join(names[:_FILES])}{more}" if names else "code"


def _leaves(value: Json, name: str = "") -> dict[str, Json]:
    """Values without members of their own, by dotted names; of lists only those of mappings are opened."""
    if isinstance(value, Mapping):
        members: Iterator[tuple[str, Json]] = ((str(key), item) for key, item in value.items())
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        members = ((str(place), item) for place, item in enumerate(value))
    else:
        return {name: value}
    return {k: v for key, item in members for k, v in _leaves(item, f"{name}.{key}" if name else key).items()}


def _told(stage: Stage, key: str, old: Json, new: Json) -> str:
    name = _name(stage, key.split("."))
    values = [value if isinstance(value, str) else json.dumps(value) for value in (old, new)]
    if any(_DIGEST.search(value) for value in values):  # says nothing to a reader
        return name
    return f"{name} {values[0]} -> {values[1]}"


def _name(stage: Stage, parts: Sequence[str]) -> str:
    """What a recipe, or a person, calls a value of a stage."""
    match parts:
        case ["versions", library]:
            return library
        case ["training", *rest]:
            return ".".join([stage.section, *rest])
        case ["objective", "methods", place, "options", *rest] if stage.objective:
            return ".".join([stage.objective.methods[int(place)].name, *rest])
        case ["objective", "weights", *_]:
            return "weights of CE and KD"
        case ["data", "file"]:
            return f"training rows of {stage.task}"
        case ["requests" | "references", "files", *_]:
            return f"test rows of {stage.task}"
        case ["data" | "requests" | "references", "settings", *rest]:
            return ".".join([stage.task, *rest])
        case ["data", ("limits" | "sides") as part, *rest]:
            return _name(stage, [part, *rest])
        case ["sides" | "teachers", role, *rest]:
            return ".".join([role if role == STUDENT else f"teachers.{role}", *rest]).replace(".source", ".model")
        case ["model", *rest]:
            model = f"teachers.{stage.role}" if stage.role else STUDENT
            return ".".join([model, *rest]).replace(".source", ".model")
    return ".".join(parts)
