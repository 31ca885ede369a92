"""All that a piece of code uses, definition by definition: what a change of code makes new.

Names are followed to what they stand for. Of a class that is named anywhere on the way, a member counts where its name
is read: of ``self`` in a class that inherits from it or that it inherits from, or of any object whose class the text
doesn't say. So nothing that can run is missed, whoever hands it over, but objects of classes that no name leads to
(methods, tasks): these classes are given. What can't be followed counts as a whole module.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.base.code_definition import Definition, Use
from harness.base.code_source import LOOSE, ModuleSource

# Bases from elsewhere that call none of a class's methods but by their names in our code.
_SETTINGS = "pydantic.BaseModel"
_PASSIVE_BASES = {"abc.ABC", "object", "typing.Generic", "typing.Protocol", _SETTINGS}
_OF_A_MODULE = {"__file__", "__name__", "__path__"}  # read of a module, they say nothing of what is in it
_parsed = functools.cache(ModuleSource)  # by what a file says: each is parsed once

OWN_PACKAGES = ("harness", "methods")
Key = tuple[str, str]  # a definition: its module and its name there


@dataclass(frozen=True)
class Closure:
    """Definitions that belong together.

    Attributes:
        definitions: in the order in which they were met.
        digest: of what they say, and of which uses which; no name of a module is in it.
        files: by path below the root, a digest of what is used of the file.
    """

    definitions: tuple[Definition, ...]
    digest: str
    files: Mapping[str, str]

    @cached_property
    def libraries(self) -> frozenset[str]:
        """Top-level names of what is imported from elsewhere and used."""
        return frozenset(name for each in self.definitions for name in each.libraries)

    @property
    def modules(self) -> set[str]:
        """Names of the modules of which something is used."""
        return {each.module for each in self.definitions}


@dataclass(frozen=True)
class Edges:
    """What a definition leads to.

    Attributes:
        targets: definitions that it names; ("module", "") for a whole module.
        read: attributes, and of which class they are read: None for any.
        marks: what each of its marks stands for, as a digest, and the definition whose digest it is.
    """

    targets: tuple[Key, ...]
    read: tuple[tuple[Key | None, tuple[str, ...]], ...]
    marks: tuple[tuple[Key | None, str], ...]


class Sources:
    """The code of the project, and of plug-ins beside it.

    Args:
        root: folder of the project's packages.
        packages: their names.
        others: further modules and packages: top-level name and file or folder.
    """

    def __init__(self, root: Path, packages: Sequence[str], others: Mapping[str, Path] | None = None) -> None:
        self.root = root
        self.places = {name: root / name for name in packages} | dict(others or {})
        self._modules: dict[str, ModuleSource | None] = {}
        self._resolved: dict[Use, tuple[Definition | str | None, tuple[str, ...]]] = {}
        self._edges: dict[Key, Edges] = {}
        self._ancestors: dict[Key, frozenset[Key]] = {}
        self._walks: dict[tuple[tuple[str, ...], ...], _Walk] = {}
        self._closures: dict[tuple[tuple[str, ...], ...], Closure] = {}

    def module(self, name: str) -> ModuleSource | None:
        """The source of a module, or None where there is none of that name."""
        if name not in self._modules:
            self._modules[name] = self._load(name)
        return self._modules[name]

    def path(self, name: str) -> Path | None:
        """The file of a module."""
        top, *rest = name.split(".")
        place = self.places.get(top)
        if place is None:
            return None
        if place.suffix == ".py":
            return place if not rest else None
        folder = place.joinpath(*rest)
        for path in (folder / "__init__.py", folder.parent / f"{folder.name}.py"):
            if path.is_file():
                return path
        return None

    def _load(self, name: str) -> ModuleSource | None:
        path = self.path(name)
        return None if path is None else _parsed(name, path, path.read_text(encoding="utf-8"), frozenset(self.places))

    def closure(
        self,
        entries: Sequence[str],
        classes: Sequence[str] = (),
        without: Sequence[str] = (),
        alone: Sequence[str] = (),
    ) -> Closure:
        """What code uses.

        Args:
            entries: ``module:function``, ``module:Class.member``, or ``module`` for all that is in it.
            classes: ``module:Class``, of objects that are handed over.
            without: modules, packages and definitions, written likewise, that are left out.
            alone: definitions, written likewise, that count as they stand, with the names of what they use.

        Raises:
            LookupError: there is none of these.
        """
        key = tuple(entries), tuple(classes), tuple(without), tuple(alone)
        if key not in self._closures:
            found = self._walk(*key[:3]).found
            self._closures[key] = self._made(found, {place: self.read(*place) for place in map(_key, alone)})
        return self._closures[key]

    def digest(self, modules: Sequence[str]) -> str:
        """Of what modules say, without what they use of others."""
        said = [self.read(*key).digest for module in modules for key in self.all_of(module)]
        return _joined(sorted(said))

    def all_of(self, module: str) -> list[Key]:
        """Every definition of a module.

        Raises:
            LookupError: there is none of that name.
        """
        source = self.module(module)
        if source is None:
            raise LookupError(f"no module {module} below {self.root}")
        members = [f"{name}.{member}" for name in source.names for member in source.members(name)]
        return [(module, name) for name in (*source.names, *members)]

    def _walk(self, entries: tuple[str, ...], classes: tuple[str, ...], without: tuple[str, ...]) -> _Walk:
        """A walk that goes on from one with fewer classes, where there is one: methods share most of their code."""
        key = entries, classes, without
        if key not in self._walks:
            if classes:
                walk = self._walk(entries, classes[:-1], without).copied()
                walk.enter(classes[-1])
            else:
                walk = _Walk(self, frozenset(without))
                for entry in entries:
                    walk.enter(entry)
            self._walks[key] = walk
        return self._walks[key]

    def _made(self, found: Mapping[Key, Definition], alone: Mapping[Key, Definition]) -> Closure:
        said = {self._line(each, found) for each in found.values()}
        said |= {" ".join([each.digest, *(use.name for use in each.uses)]) for each in alone.values()}
        definitions = {**found, **alone}
        by_file: dict[str, list[str]] = {}
        for each in definitions.values():
            by_file.setdefault(each.module, []).append(each.digest)
        files = {self._short(module): _joined(sorted(parts)) for module, parts in sorted(by_file.items())}
        return Closure(tuple(definitions.values()), _joined(sorted(said)), files)

    def read(self, module: str, name: str) -> Definition:
        """A definition.

        Raises:
            LookupError: there is none of that name.
        """
        source = self.module(module)
        owner, _, member = name.partition(".")
        if source is None or not source.defines(owner) or (member and member not in source.members(owner)):
            raise LookupError(f"no {name} in {module} below {self.root}")
        return source.read(name)

    def _short(self, module: str) -> str:
        path = self.path(module)
        assert path is not None
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def _line(self, definition: Definition, found: Mapping[Key, Definition]) -> str:
        """A definition's text, and the texts of what its marks stand for; what is left out has none."""
        marks = self.edges(definition).marks
        return " ".join([definition.digest, *(said if of is None or of in found else "left out" for of, said in marks)])

    def resolve(self, use: Use) -> tuple[Definition | str | None, tuple[str, ...]]:
        """What a use stands for, and which of its attributes are read of that.

        A definition, the name of a module where that is all one can say, or None.
        """
        if use not in self._resolved:
            found, left = self._named(use.module, use.name), use.attributes
            while left and isinstance(found, str):
                inner = None if left[0] in _OF_A_MODULE else self._named(found, left[0])
                if inner is None:
                    found = None if left[0] in _OF_A_MODULE else found
                    break
                found, left = inner, left[1:]
            self._resolved[use] = found, left
        return self._resolved[use]

    def _named(self, module: str, name: str, seen: frozenset[Key] = frozenset()) -> Definition | str | None:
        source = self.module(module)
        if source is None or (module, name) in seen:
            return None
        if not name:
            return module
        if source.defines(name):
            return source.read(name)
        if name in source.loose_names:
            return source.read(LOOSE)
        if name in source.imports and source.is_own(source.imports[name][0]):
            return self._named(*source.imports[name], seen | {(module, name)})
        if self.module(f"{module}.{name}") is not None:
            return f"{module}.{name}"
        return module if source.defines("__getattr__") else None

    def edges(self, definition: Definition) -> Edges:
        """What a definition leads to."""
        key = definition.module, definition.name
        if key not in self._edges:
            source = self.module(definition.module)
            assert source is not None
            targets: dict[Key, None] = {(definition.module, LOOSE): None} if source.defines(LOOSE) else {}
            read: list[tuple[Key | None, tuple[str, ...]]] = [(None, definition.attributes)]
            marks: list[tuple[Key | None, str]] = []
            for use in (*definition.uses, *definition.reads):
                found, attributes = self.resolve(use)
                if isinstance(found, Definition):
                    target = found.module, found.name
                    holder = self.module(found.module)
                    if attributes and holder and holder.class_of(found.name) is not None:
                        read.append((target, attributes[:1]))
                        attributes = attributes[1:]
                    targets[target] = None
                    marks.append((target, found.digest))
                elif found is not None:
                    targets[found, ""] = None
                    marks.append((None, "module"))
                else:
                    marks.append((None, f"{use.module}.{use.name}"))
                if attributes:
                    read.append((None, attributes))
            self._edges[key] = Edges(tuple(targets), tuple(read), tuple(marks))
        return self._edges[key]

    def bases(self, key: Key) -> list[Key | str]:
        """Of a class: those of the project, and names of others."""
        source = self.module(key[0])
        owner = source.class_of(key[1]) if source else None
        if source is None or owner is None:
            return []
        found: list[Key | str] = []
        for module, name in source.bases(owner):
            base = self._named(module, name) if source.is_own(module) else None
            named = f"{module}.{name}".strip(".")
            found.append((base.module, base.name) if isinstance(base, Definition) else named)
        if any(keyword.arg == "metaclass" for keyword in owner.keywords):
            found.append("metaclass")
        return found

    def ancestors(self, key: Key) -> frozenset[Key]:
        """A class and the classes of the project that it inherits from."""
        if key not in self._ancestors:
            own = [base for base in self.bases(key) if not isinstance(base, str)]
            self._ancestors[key] = frozenset({key}.union(*(self.ancestors(base) for base in own)))
        return self._ancestors[key]

    def outside_bases(self, key: Key) -> set[str]:
        """Names of all bases of a class that come from elsewhere."""
        return {base for each in self.ancestors(key) for base in self.bases(each) if isinstance(base, str)}


class _Walk:
    """Follows uses until nothing new is met."""

    def __init__(self, sources: Sources, without: frozenset[str]) -> None:
        self.sources, self.without = sources, without
        self.outside: dict[str, bool] = {}  # modules that are left out as a whole
        self.found: dict[Key, Definition] = {}
        self.members: dict[str, list[Key]] = {}  # classes that were met, by the names of their members
        self.met: dict[Key, None] = {}
        self.read: dict[Key | None, set[str]] = {None: set()}  # attributes, by the class of which; None: of any

    def copied(self) -> _Walk:
        """The same place, to go on from."""
        other = _Walk(self.sources, self.without)
        other.found, other.met = dict(self.found), dict(self.met)
        other.members = {name: list(keys) for name, keys in self.members.items()}
        other.read = {of: set(names) for of, names in self.read.items()}
        return other

    def enter(self, entry: str) -> None:
        """Begin at ``module:name``."""
        module, name = _key(entry)
        if name:
            self.sources.read(module, name)
        pending = [(module, name)] if name else self._all_of(module)
        while pending:
            key = pending.pop()
            if key not in self.found and not self._is_left_out(*key):
                pending += reversed(self._take(key))

    def _all_of(self, module: str) -> list[Key]:
        return [] if self._is_left_out(module, "") else self.sources.all_of(module)

    def _is_left_out(self, module: str, name: str) -> bool:
        if module not in self.outside:
            parts = module.split(".")
            self.outside[module] = any(".".join(parts[: end + 1]) in self.without for end in range(len(parts)))
        return self.outside[module] or not self.without.isdisjoint(
            (f"{module}:{name.partition('.')[0]}", f"{module}:{name}")
        )

    def _take(self, key: Key) -> list[Key]:
        """Note a definition; what it leads to."""
        module, name = key
        source = self.sources.module(module)
        assert source is not None
        definition = self.found[key] = source.read(name)
        more: list[Key] = []
        owner: Key = module, name.partition(".")[0]
        if source.class_of(owner[1]) is not None:
            more += self._meet(source, owner, whole=definition.reads_itself)
            more += self._call(owner, definition.own_attributes)
        edges = self.sources.edges(definition)
        for target in edges.targets:
            more += [target] if target[1] else self._all_of(target[0])
        for of, attributes in edges.read:
            more += self._call(of, attributes)
        return more

    def _meet(self, source: ModuleSource, key: Key, whole: bool) -> list[Key]:
        """A class, and those of its members that are read already."""
        if not whole and key in self.met:
            return []
        outside = self.sources.outside_bases(key)
        fields = source.constants(key[1]) if _SETTINGS in outside else set()  # what they hold is a value, and no code
        members = [member for member in source.members(key[1]) if member not in fields]
        if key not in self.met:
            self.met[key] = None
            for member in members:
                self.members.setdefault(member, []).append(key)
        at_once = whole or not _PASSIVE_BASES.issuperset(outside)
        called = [m for m in members if at_once or any(m in self.read.get(of, ()) for of in self._lineage(key))]
        return [key, *((key[0], f"{key[1]}.{member}") for member in called)]

    def _lineage(self, key: Key) -> list[Key | None]:
        """Classes of which an attribute may be read that a class defines; None for any."""
        below = [other for other in self.met if key in self.sources.ancestors(other)]
        return [None, *self.sources.ancestors(key), *below]

    def _call(self, of: Key | None, attributes: Sequence[str]) -> list[Key]:
        """Attributes are read: the members behind them, in all classes that were met."""
        read = self.read.setdefault(of, set())
        called = []
        for name in attributes:
            if name not in read:
                read.add(name)
                holders = self.members.get(name, [])
                if of is not None and holders:  # an object of that class may be of one below it
                    above = self.sources.ancestors(of)
                    holders = [key for key in holders if key in above or of in self.sources.ancestors(key)]
                called += [(key[0], f"{key[1]}.{name}") for key in holders]
        return called


@functools.cache
def own_sources() -> Sources:
    """The code that runs."""
    return Sources(Path(__file__).parents[2], OWN_PACKAGES)


def _key(place: str) -> Key:
    module, _, name = place.partition(":")
    return module, name


def _joined(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
