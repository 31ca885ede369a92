"""The house: its rooms, the arrows between them, and how long a file and a function may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"harness", "methods", "reports", "recipes", "tests", "benchmarks"}
MAY_IMPORT = {
    "harness": {"harness", "methods", "reports"},
    "methods": {"methods"},
    "reports": {"reports"},
}
FILES = [(package, path) for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (inside, node.module) if part)
            for alias in node.names:  # a name, or a module of a package
                inner = f"{module}.{alias.name}"
                yield inner if (ROOT / f"{inner.replace('.', '/')}.py").is_file() else module


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_imports_follow_the_arrows(package: str, path: Path) -> None:
    found = {name.partition(".")[0] for name in imports(path)} & OURS
    assert found <= MAY_IMPORT[package]


# From the top: a room of harness/ uses rooms of lower floors only, so no two rooms of one floor know one another.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("verbs",),
    ("api",),
    ("cluster", "litmus", "tuning"),
    ("terminal", "results", "run"),
    ("plan", "training"),
    ("recipe", "generation"),
    ("tasks",),
    ("evaluate",),
    ("data",),
    ("models", "store"),
    ("base",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines


def room_of(module: str) -> str:
    """The part of harness/ that a module is in; "" for the package itself, which everybody may import."""
    return [*module.split("."), ""][1]


def test_every_room_has_its_floor() -> None:
    inside = (path for path in (ROOT / "harness").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
    assert {path.stem for path in inside} - {"__init__"} <= FLOOR.keys()


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_uses_only_rooms_below_it(room: str) -> None:
    place = ROOT / "harness" / room
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
        used = {room_of(name) for name in imports(path) if name.partition(".")[0] == "harness"} - {"", room}
        above = {name for name in used & FLOOR.keys() if FLOOR[name] <= FLOOR[room]}
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}, which stands no lower"


def test_methods_are_made_of_the_library_and_never_the_other_way_round() -> None:
    """Whoever reads methods/library needs no method for it, and methods/ lists methods."""
    for path in sorted((ROOT / "methods" / "library").rglob("*.py")):
        ours = {name for name in imports(path) if name.partition(".")[0] == "methods"}
        assert {name for name in ours if not name.startswith("methods.library")} == set(), path.name


def test_files_import_one_another_in_no_circle() -> None:
    used = {module_of(path): set(imports(path)) for _, path in FILES}
    used = {name: {other for other in names if other in used and other != name} for name, names in used.items()}
    while free := {name for name, names in used.items() if not names & used.keys()}:
        used = {name: names for name, names in used.items() if name not in free}
    assert not used, f"in circles, or above one: {', '.join(sorted(used))}"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_files_and_functions_are_short(package: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {node.name: size for node in functions if (size := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION}
    assert not long


SAME_EVERYWHERE = {"FloatArray", "BoolArray"}  # what NumPy has no short name for, in rooms that share nothing


def test_one_name_means_one_thing() -> None:
    """Of classes and of types with a name of their own."""
    places: dict[str, list[str]] = {}
    for _, path in FILES:
        for name in types_of(ast.parse(path.read_text(encoding="utf-8"))):
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SAME_EVERYWHERE} == {}


def types_of(tree: ast.Module) -> Iterator[str]:
    """Public names of classes, and of constants that are written like classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = [node.name]
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [each.id for each in targets if isinstance(each, ast.Name)]
        yield from (name for name in names if name[0].isupper() and name != name.upper())


def test_recipes_hold_no_code() -> None:
    assert {path.suffix for path in (ROOT / "recipes").iterdir() if path.is_file()} == {".yaml"}


def test_importing_a_method_needs_no_engine() -> None:
    """Whoever takes a loss out of this project must not take the harness with it, nor wait for what compiles loops."""
    loaded = _loaded_by("import methods.base; methods.base.registered()")
    assert not [name for name in loaded if name.partition(".")[0] in {"harness", "reports", "transformers", "numba"}]


def test_help_loads_no_heavy_library() -> None:
    """`harness --help` has to answer at once."""
    heavy = {"torch", "transformers", "pandas", "numpy", "pydantic", "yaml", "lm_eval", "evalplus", "peft"}
    code = "import contextlib, sys; sys.argv = ['harness', '--help']\nfrom harness.cli import main\n"
    code += "with contextlib.suppress(SystemExit): main()"
    loaded = {name.partition(".")[0] for name in _loaded_by(code)}
    assert "harness" in loaded
    assert not loaded & heavy


def _loaded_by(code: str) -> list[str]:
    """Modules that a fresh process holds after some code."""
    code += "\nimport sys; print('\\nLOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("LOADED ")[2].split()
