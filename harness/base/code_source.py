"""Source files as definitions. Read from text, nothing is imported.

A definition is a function, a constant, a class without its members, or a member of one.
"""

from __future__ import annotations

import ast
import dis
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import CodeType

from harness.base.code_definition import (
    FUNCTIONS,
    Definition,
    DefinitionReader,
    Namespace,
    Use,
    all_statements,
    is_docstring,
    is_for_types,
    names_bound,
)

_NAME = re.compile(r"[A-Za-z_]\w*")

# Decorators that leave a method to its callers; any other may have called it, as pydantic's validators do.
_PLAIN_DECORATORS = {
    "abstractmethod",
    "cached_property",
    "classmethod",
    "contextmanager",
    "no_grad",
    "override",
    "property",
    "staticmethod",
}

LOOSE = "<module>"
"""Name of the statements of a module that define nothing: they run whoever imports it."""


class ModuleSource(Namespace):
    """One file.

    Args:
        name: dotted.
        path: of the file.
        text: what it says.
        packages: top-level names of what belongs to the project.

    Attributes:
        imports: what names stand for: (module, name there), the latter empty for a module.
        for_types: names that only type checkers import.
    """

    def __init__(self, name: str, path: Path, text: str, packages: frozenset[str]) -> None:
        super().__init__(name, packages, path.name == "__init__.py")
        tree = ast.parse(text, str(path))
        self.imports = self.imported(all_statements(tree.body, into_functions=False))
        self._statements: dict[str, list[ast.stmt]] = {}
        self._loose: list[ast.stmt] = []
        for statement in tree.body:
            self._sort(statement)
        self._tree, self.for_types = tree, _typing_imports(tree)
        self._members: dict[str, dict[str, list[ast.stmt]]] = {}
        self._read: dict[str, Definition] = {}

    def _sort(self, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)) or is_docstring(statement):
            return
        simple = isinstance(statement, (*FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign))
        names = list(dict.fromkeys(names_bound([statement]))) if simple else []
        for name in names:
            self._statements.setdefault(name, []).append(statement)
        if not names and not is_for_types(statement):
            self._loose.append(statement)

    @property
    def names(self) -> list[str]:
        """Of all that is defined at the top level."""
        return [*self._statements, *([LOOSE] if self._loose or self.imported_for_effect else [])]

    def defines(self, name: str) -> bool:
        return name in self._statements or (name == LOOSE and LOOSE in self.names)

    @cached_property
    def loose_names(self) -> frozenset[str]:
        """Names that loose statements give a value."""
        return frozenset(names_bound(self._loose))

    @cached_property
    def imported_for_effect(self) -> list[str]:
        """Modules of the project that are imported, and by no name used: for what they do when they are."""
        if self.is_package:  # there, names are imported for others
            return []
        used = _names_in(compile(self._tree, self.name, "exec", optimize=2)) | self.for_types
        bound = self.bound(all_statements(self._tree.body, into_functions=False))
        return sorted({module for name, module, _ in bound if name not in used and self.is_own(module)})

    def class_of(self, name: str) -> ast.ClassDef | None:
        """The class of that name, or None."""
        found = self._statements.get(name, [None])[-1]
        return found if isinstance(found, ast.ClassDef) else None

    def bases(self, owner: ast.ClassDef) -> list[tuple[str, str]]:
        """Where the bases of a class come from: (module, name there); ("", "") for what is no name."""
        found = []
        for base in owner.bases:
            named = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(named, ast.Name):
                here = (self.name, named.id) if self.defines(named.id) else ("", named.id)
                found.append(self.imports.get(named.id, here))
            elif isinstance(named, ast.Attribute) and isinstance(named.value, ast.Name):
                module, there = self.imports.get(named.value.id, ("", named.value.id))
                found.append((".".join(part for part in (module, there) if part), named.attr))
            else:
                found.append(("", ""))
        return found

    def members(self, name: str) -> Mapping[str, list[ast.stmt]]:
        """What of a class counts only where its name is read: methods, and constants of a class that none decorates."""
        if name not in self._members:
            found: dict[str, list[ast.stmt]] = {}
            owner = self.class_of(name)
            decorated = owner is not None and not all(self._is_own_name(each) for each in owner.decorator_list)
            for statement in owner.body if owner else ():
                if isinstance(statement, FUNCTIONS):
                    plain = all(_decorator(each) in _PLAIN_DECORATORS for each in statement.decorator_list)
                    names = [statement.name] if plain and not _is_dunder(statement.name) else []
                elif isinstance(statement, (ast.Assign, ast.AnnAssign)) and not decorated:
                    names = list(names_bound([statement]))
                else:
                    names = []
                for each in names:
                    found.setdefault(each, []).append(statement)
            self._members[name] = found
        return self._members[name]

    def constants(self, name: str) -> set[str]:
        """Those members of a class that are no methods."""
        members = self.members(name)
        return {each for each in members if not all(isinstance(one, FUNCTIONS) for one in members[each])}

    def _is_own_name(self, decorator: ast.expr) -> bool:
        return isinstance(decorator, ast.Name) and self.is_own(self.imports.get(decorator.id, (self.name, ""))[0])

    def read(self, name: str) -> Definition:
        """The definition of a top-level name, or of ``Class.member``."""
        if name not in self._read:
            self._read[name] = self._definition(name)
        return self._read[name]

    def _definition(self, name: str) -> Definition:
        owner, _, member = name.partition(".")
        reader = DefinitionReader(self)
        if member:
            reader.statements(self.members(owner)[member])
            if member in (constants := self.constants(owner)):  # it reads others by their bare names
                nodes = (node for each in self.members(owner)[member] for node in ast.walk(each))
                names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
                reader.own_attributes |= dict.fromkeys(sorted(names & constants))
        elif name == LOOSE:
            reader.statements(self._loose)
            for module in self.imported_for_effect:
                reader.mark(Use(module, ""))
        else:
            for statement in self._statements[name]:
                reader.definition(statement, {id(each) for of in self.members(name).values() for each in of})
        return reader.made(name)


def _typing_imports(tree: ast.Module) -> set[str]:
    """Names that only type checkers import."""
    blocks = [statement for statement in tree.body if is_for_types(statement)]
    imports = [node for block in blocks for node in ast.walk(block) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names}


def _names_in(code: CodeType) -> set[str]:
    """Names that code reads, and words of its texts: with postponed evaluation, an annotation is a text."""
    found = {str(each.argval) for each in dis.get_instructions(code) if each.opname == "LOAD_NAME"}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= {*constant.co_names, *_names_in(constant)}
        elif isinstance(constant, str):
            found |= set(_NAME.findall(constant))
    return found


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _decorator(node: ast.expr) -> str:
    """The last part of a decorator's name: ``no_grad`` of ``@torch.no_grad()``."""
    called = node.func if isinstance(node, ast.Call) else node
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
