"""What one definition of a source file says, and what it uses.

The text of a definition is its syntax tree less comments, docstrings and layout. A name that stands for another
definition is a mark in it, and where that one is found stands beside it: so no name of a module is part of a text, and
a module that moves leaves all texts as they were.
"""

from __future__ import annotations

import ast
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

Statements = Sequence[ast.stmt]
Scope = Mapping[str, "Use | None"]  # names that are local, and where their class comes from, if the text says it
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_NO_FIELDS = ("ctx", "type_comment", "type_ignores", "kind")


@dataclass(frozen=True)
class Use:
    """A name in a definition that stands for something of the project.

    Attributes:
        module: where the name comes from.
        name: what it is called there; empty for the module itself.
        attributes: those that are read of it by name.
    """

    module: str
    name: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Definition:
    """What one definition says.

    Attributes:
        module: in which it stands.
        name: its own, ``Class.member`` for a member.
        digest: of its text.
        uses: in the order of the marks in the text.
        attributes: names that are read of objects of any kind.
        own_attributes: names that a method reads of ``self``.
        reads: attributes of arguments whose class stands in the annotation.
        libraries: top-level names of what is imported from elsewhere and used.
        reads_itself: whether ``getattr(self, ...)`` takes a name that only a run knows.
    """

    module: str
    name: str
    digest: str
    uses: tuple[Use, ...]
    attributes: tuple[str, ...]
    own_attributes: tuple[str, ...]
    reads: tuple[Use, ...]
    libraries: frozenset[str]
    reads_itself: bool


class Import(NamedTuple):
    """A name that an import binds.

    Attributes:
        name: that is bound.
        module: that is imported.
        there: the name there; empty for the module itself.
    """

    name: str
    module: str
    there: str


class Namespace(ABC):
    """What names at the top level of a module stand for.

    Args:
        name: of the module, dotted.
        packages: top-level names of what belongs to the project.
        is_package: whether names are imported there for others.

    Attributes:
        imports: (module, name there) by name; the latter is empty for a module.
        for_types: names that only type checkers import.
    """

    imports: dict[str, tuple[str, str]]
    for_types: set[str]

    def __init__(self, name: str, packages: frozenset[str], is_package: bool) -> None:
        self.name, self.packages, self.is_package = name, packages, is_package

    @abstractmethod
    def defines(self, name: str) -> bool:
        """Whether a name is defined in the module itself."""

    def is_own(self, module: str) -> bool:
        """Whether a module belongs to the project."""
        return module.partition(".")[0] in self.packages

    def imported(self, statements: Iterable[ast.stmt]) -> dict[str, tuple[str, str]]:
        """What the names stand for that imports among statements bind."""
        found = {}
        for name, module, there in self.bound(statements):
            is_top = not there and module.startswith(f"{name}.")  # `import a.b` binds a
            found[name] = (name if is_top else module, there)
        return found

    def bound(self, statements: Iterable[ast.stmt]) -> Iterator[Import]:
        """What imports among statements bind."""
        for node in statements:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.asname or alias.name.partition(".")[0], alias.name, "")
            elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
                for alias in node.names:
                    yield Import(alias.asname or alias.name, self._absolute(node), alias.name)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


class DefinitionReader:
    """Writes the text of definitions, and notes what they use."""

    def __init__(self, module: Namespace) -> None:
        self.module = module
        self.parts: list[str] = []
        self.uses: dict[Use, int] = {}
        self.attributes: dict[str, None] = {}
        self.own_attributes: dict[str, None] = {}
        self.reads: dict[Use, None] = {}
        self.libraries: set[str] = set()
        self.local_imports: dict[str, tuple[str, str]] = {}
        self.reads_itself = False

    def made(self, name: str) -> Definition:
        digest = hashlib.sha256(" ".join([name, *self.parts]).encode()).hexdigest()
        return Definition(
            self.module.name,
            name,
            digest,
            tuple(self.uses),
            tuple(self.attributes),
            tuple(self.own_attributes),
            tuple(self.reads),
            frozenset(self.libraries),
            self.reads_itself,
        )

    def definition(self, statement: ast.stmt, less: set[int]) -> None:
        """A top-level statement; of a class all but the members whose ids are in ``less``."""
        self._note_imports([statement])
        if isinstance(statement, ast.ClassDef):
            self._class(statement, {}, less)
        else:
            self.node(statement, {})

    def statements(self, statements: Statements) -> None:
        self._note_imports(statements)
        for statement in statements:
            self.node(statement, {})

    def mark(self, use: Use) -> None:
        self.parts.append(f"§{self.uses.setdefault(use, len(self.uses))}")

    def node(self, node: ast.AST, bound: Scope) -> None:
        """Write a node; ``bound`` holds the names that are local where it stands."""
        if isinstance(node, ast.stmt) and (is_docstring(node) or isinstance(node, (ast.Import, ast.ImportFrom))):
            return
        if isinstance(node, ast.Name):
            self._name(node.id, bound, ())
        elif isinstance(node, ast.Attribute):
            self._attribute(node, bound)
        elif isinstance(node, ast.Constant):
            self._constant(node)
        elif isinstance(node, (*FUNCTIONS, ast.Lambda)):
            self._function(node, bound)
        elif isinstance(node, ast.ClassDef):
            self._class(node, bound, set())
        elif isinstance(node, _Comprehension):
            self._fields(node, {**bound, **dict.fromkeys(names_bound([g.target for g in node.generators]))})
        else:
            if isinstance(node, ast.Call):
                self._look_at_getattr(node)
            self._fields(node, bound)

    def _fields(self, node: ast.AST, bound: Scope, without: Sequence[str] = ()) -> None:
        self.parts.append(f"{type(node).__name__}(")
        for field, value in ast.iter_fields(node):
            if field in _NO_FIELDS or field in without or value is None or value == []:
                continue
            self.parts.append(field)
            if field in ("annotation", "returns") and isinstance(value, ast.Constant) and isinstance(value.value, str):
                value = ast.parse(value.value, mode="eval").body
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.keyword) and each.arg == "description":  # of a setting: as a docstring
                    continue
                if isinstance(each, ast.AST):
                    self.node(each, bound)
                else:
                    self.parts.append(repr(each))
        self.parts.append(")")

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, bound: Scope) -> None:
        body: Sequence[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else node.body
        statements = all_statements((each for each in body if isinstance(each, ast.stmt)), into_functions=True)
        outer = {name for each in statements if isinstance(each, ast.Global) for name in each.names}
        outer |= self.local_imports.keys()
        inner = {**bound, **{name: None for name in names_bound(body) if name not in outer}}
        for each in ast.walk(node.args):
            if isinstance(each, ast.arg):
                inner[each.arg] = self._class_named(each.annotation, bound)
        self._fields(node, bound, without=("body",))
        self.parts.append("body")
        for each in body:
            self.node(each, inner)

    def _class(self, node: ast.ClassDef, bound: Scope, less: set[int]) -> None:
        self._fields(node, bound, without=("body",))
        fields = [each for each in node.body if not isinstance(each, (*FUNCTIONS, ast.ClassDef))]
        own = {**bound, **dict.fromkeys(names_bound(fields))}
        for each in node.body:
            if id(each) not in less:
                self.node(each, bound if isinstance(each, (*FUNCTIONS, ast.ClassDef)) else own)

    def _name(self, name: str, bound: Scope, attributes: tuple[str, ...]) -> None:
        """Write a name, and note of what ``attributes`` are read one after the other."""
        module, there = self._origin(name)
        if name not in bound and module and not self.module.is_own(module):
            if name in self.local_imports or name not in self.module.for_types:
                self.libraries.add(module.partition(".")[0])
            self.parts.append(".".join(part for part in (module, there) if part))
        elif name not in bound and module:
            self.mark(Use(module, there, attributes))
        else:
            self.parts.append(name)
            if name in ("self", "cls") and attributes:
                self.own_attributes[attributes[0]] = None
                self.attributes |= dict.fromkeys(attributes[1:])
            elif attributes and (known := bound.get(name)) is not None:
                self.reads[replace(known, attributes=attributes)] = None
            else:
                self.attributes |= dict.fromkeys(attributes)

    def _origin(self, name: str) -> tuple[str, str]:
        """Where a name that is not local comes from: (module, name there); empty for Python's own."""
        found = self.local_imports.get(name) or self.module.imports.get(name)
        return found or ((self.module.name, name) if self.module.defines(name) else ("", ""))

    def _class_named(self, annotation: ast.expr | None, bound: Scope) -> Use | None:
        """The class of the project that an annotation names, be it with None."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.BinOp) and isinstance(annotation.right, ast.Constant):
            annotation = annotation.left
        if not isinstance(annotation, ast.Name) or annotation.id in bound:
            return None
        module, there = self._origin(annotation.id)
        return Use(module, there) if module and self.module.is_own(module) else None

    def _attribute(self, node: ast.Attribute, bound: Scope) -> None:
        chain: list[str] = []
        of: ast.expr = node
        while isinstance(of, ast.Attribute):
            chain.insert(0, of.attr)
            of = of.value
        self.parts.append("Attribute(")
        if isinstance(of, ast.Name):
            self._name(of.id, bound, tuple(chain))
        else:
            self.attributes |= dict.fromkeys(chain)
            self.node(of, bound)
        self.parts += [*chain, ")"]

    def _constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            self.parts.append(f"{type(node.value).__name__} {node.value!r}")
            return
        named = [name for name in _MODULE_NAME.findall(node.value) if self.module.is_own(name)]
        for name in named:  # of a module, where there is one: what another process runs, say
            self.mark(Use(name, ""))
        text = _MODULE_NAME.sub(lambda found: "§" if found[0] in named else found[0], node.value)
        self.parts.append(f"str {text!r}")

    def _look_at_getattr(self, call: ast.Call) -> None:
        if not (isinstance(call.func, ast.Name) and call.func.id == "getattr" and len(call.args) > 1):
            return
        of, name = call.args[:2]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            self.attributes[name.value] = None
        elif isinstance(of, ast.Name) and of.id in ("self", "cls"):
            self.reads_itself = True

    def _note_imports(self, statements: Statements) -> None:
        """Imports inside functions hold for the whole definition."""
        self.local_imports |= self.module.imported(all_statements(statements, into_functions=True))


def names_bound(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Names that nodes bind in the scope where they stand."""
    for node in nodes:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.name
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, _Comprehension):  # its own names are its own, but for x := ...
            yield from (n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            yield node.id
        for field in ("name", "rest"):  # except ... as name, and patterns
            if isinstance(value := getattr(node, field, None), str):
                yield value
        if not isinstance(node, ast.alias):
            yield from names_bound(list(ast.iter_child_nodes(node)))


def all_statements(statements: Iterable[ast.stmt], into_functions: bool) -> Iterator[ast.stmt]:
    """Statements and those inside of them, also of functions if wanted."""
    for statement in statements:
        yield statement
        if into_functions or not isinstance(statement, FUNCTIONS):
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                inner = getattr(statement, field, None)
                if isinstance(inner, list):
                    yield from all_statements(inner, into_functions)


def is_for_types(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
    )


def is_docstring(statement: ast.AST) -> bool:
    """A text that stands alone: a docstring, or a comment on the constant before it."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
