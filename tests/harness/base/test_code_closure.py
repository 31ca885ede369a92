"""What a piece of code uses, on small packages written for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base import code_source as source
from harness.base.code_closure import Closure, Sources

Written = Callable[..., Closure]


@pytest.fixture
def used(tmp_path: Path) -> Written:
    """What ``pack.main:entry`` uses, of files that are given by name."""
    numbers = iter(range(1000))

    def make(
        files: dict[str, str], classes: tuple[str, ...] = (), without: tuple[str, ...] = (), entry: str = "entry"
    ) -> Closure:
        root = tmp_path / str(next(numbers))
        for name, text in {"pack/__init__.py": "", **files}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return Sources(root, ["pack"]).closure([f"pack.main:{entry}"], classes, without)

    return make


def names(closure: Closure) -> set[str]:
    return {each.name for each in closure.definitions}


MAIN = '''"""A module."""
from pack.lib import area

FACTOR = 2
OTHER = 3


def entry(r):  # of a circle
    """The area."""
    return FACTOR * area(r)


def unused():
    return OTHER
'''
LIB = "def area(r):\n    return helper(r) ** 2\n\n\ndef helper(r):\n    return r\n\n\ndef unused():\n    return 0\n"


def test_what_is_used_is_followed_through_modules_and_nothing_else(used: Written) -> None:
    found = used({"pack/main.py": MAIN, "pack/lib.py": LIB})
    assert names(found) == {"entry", "FACTOR", "area", "helper"}
    assert set(found.files) == {"pack/main.py", "pack/lib.py"}


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("of a circle", "roughly", False),
        ("The area.", "Of a circle.", False),
        ("FACTOR = 2", "FACTOR = (\n    2\n)", False),
        ("OTHER = 3", "OTHER = 4", False),
        ("FACTOR = 2", "FACTOR = 4", True),
        ("FACTOR * area", "FACTOR + area", True),
        ("entry(r)", "entry(s)", True),
        ("import area", "import helper as area", True),
    ],
)
def test_the_digest_is_of_what_the_code_says(used: Written, old: str, new: str, changes: bool) -> None:
    assert MAIN.count(old) == 1
    before, after = (used({"pack/main.py": text, "pack/lib.py": LIB}) for text in (MAIN, MAIN.replace(old, new)))
    assert (before.digest != after.digest) is changes


def test_names_and_places_of_modules_do_not_count(used: Written) -> None:
    before = used({"pack/main.py": MAIN, "pack/lib.py": LIB})
    moved = used({"pack/main.py": MAIN.replace("pack.lib", "pack.room.shapes"), "pack/room/shapes.py": LIB})
    relative = used({"pack/main.py": MAIN.replace("pack.lib", ".lib"), "pack/lib.py": LIB})
    renamed = MAIN.replace("import area", "import area as size").replace("area(r)", "size(r)")
    together = used({"pack/main.py": MAIN.replace("from pack.lib import area\n", "") + LIB.replace("unused", "other")})
    by_module = MAIN.replace("from pack.lib import area", "from pack import lib").replace("* area", "* lib.area")
    lazy = MAIN.replace("from pack.lib import area\n", "").replace(
        "    return F", "    from pack.lib import area\n    return F"
    )
    exported = {"pack/lib/__init__.py": "from pack.lib.shapes import area\n", "pack/lib/shapes.py": LIB}
    assert moved.digest == relative.digest == together.digest == before.digest
    assert used({"pack/main.py": renamed, "pack/lib.py": LIB}).digest == before.digest
    assert used({"pack/main.py": lazy, "pack/lib.py": LIB}).digest == before.digest
    assert used({"pack/main.py": MAIN, **exported}).digest == before.digest
    as_module = [{"pack/main.py": by_module.replace("lib", name), f"pack/{name}.py": LIB} for name in ("lib", "shapes")]
    assert names(used(as_module[0])) == names(before)
    assert set(before.files.values()) == set(moved.files.values())


def test_two_definitions_of_one_name_are_told_apart(used: Written) -> None:
    """Both are used: which of them where must not be lost with the names of their modules."""
    main = "from pack.a import f as one\nfrom pack.b import f as two\ndef entry(x):\n    return one(x) - two(x)\n"
    files = {"pack/a.py": "def f(x):\n    return x\n", "pack/b.py": "def f(x):\n    return 2 * x\n"}
    swapped = main.replace("one(x) - two(x)", "two(x) - one(x)")
    assert used({"pack/main.py": main, **files}).digest != used({"pack/main.py": swapped, **files}).digest


CLASSES = """
from abc import ABC
from dataclasses import dataclass
from threading import Thread


class Base(ABC):
    default = 1

    def __init__(self):
        self.x = 1

    def run(self):
        return self.step() + self.default

    def step(self):
        return 0

    def unused(self):
        return 9


class Below(Base):
    def step(self):
        return 2

    def other(self):
        return 3


class Called(Thread):
    def run(self):
        return 1


@dataclass
class Plain:
    field: int = 1

    def method(self):
        return self.field
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return Base().run()", {"Base", "Base.run", "Base.step", "Base.default"}),
        ("return Below().run()", {"Base", "Below", "Base.run", "Base.step", "Below.step", "Base.default"}),
        ("return Base.step", {"Base", "Base.step"}),
        ("return Called()", {"Called", "Called.run"}),  # a base from elsewhere may call any of them
        ("return Plain().field", {"Plain"}),
        ("return Plain().method()", {"Plain", "Plain.method"}),
        ("return getattr(Base(), 'step')", {"Base", "Base.step"}),
        ("x = Below()\n    return x.other()", {"Base", "Below", "Below.other"}),
    ],
)
def test_members_count_where_their_name_is_read(used: Written, body: str, expected: set[str]) -> None:
    named = ", ".join(name for name in ("Base", "Below", "Called", "Plain") if name in body)
    lines = f"from pack.lib import {named}\ndef entry():\n    {body}\n"
    assert names(used({"pack/main.py": lines, "pack/lib.py": CLASSES})) == {"entry"} | expected


def test_a_class_that_is_handed_over_counts_by_what_is_read_of_it(used: Written) -> None:
    files = {
        "pack/main.py": "from pack.lib import Base\ndef entry(given: Base):\n    return given.run()\n",
        "pack/lib.py": CLASSES,
    }
    assert "Below.step" not in names(used(files))
    found = names(used(files, ("pack.lib:Below",)))
    assert {"Below.step", "Base.run"} <= found
    assert "Below.other" not in found


def test_what_is_read_of_an_argument_is_read_of_its_class(used: Written) -> None:
    files = {
        "pack/main.py": "from pack.lib import Base, Plain\ndef entry(given: 'Plain | None'):\n"
        "    Base()\n    return given.step\n",
        "pack/lib.py": CLASSES,
    }
    assert "Base.step" not in names(used(files))


def test_what_is_left_out_says_nothing(used: Written) -> None:
    files = {"pack/main.py": MAIN, "pack/lib.py": LIB}
    changed = {"pack/main.py": MAIN, "pack/lib.py": LIB.replace("** 2", "** 3")}
    for without in ("pack.lib", "pack.lib:area"):
        one, other = used(files, without=(without,)), used(changed, without=(without,))
        assert names(one) == {"entry", "FACTOR"}
        assert one.digest == other.digest


def test_local_names_are_no_definitions(used: Written) -> None:
    main = "OTHER = 1\ndef entry(OTHER):\n    return [OTHER for OTHER in OTHER]\n"
    assert names(used({"pack/main.py": main})) == {"entry"}


@pytest.mark.parametrize(
    "main",
    [
        "from pack import lib\ndef entry():\n    return vars(lib)\n",
        "COMMAND = 'import pack.lib; pack.lib.main()'\ndef entry():\n    return COMMAND\n",
        "import importlib\ndef entry():\n    return importlib.import_module('pack.lib')\n",
        "import pack.lib  # for what it does\ndef entry():\n    return 1\n",
    ],
    ids=["as a value", "in a text", "by importlib", "for its effect"],
)
def test_what_can_not_be_followed_counts_as_a_whole_module(used: Written, main: str) -> None:
    assert {"area", "helper", "unused"} <= names(used({"pack/main.py": main, "pack/lib.py": LIB}))


def test_the_place_of_a_module_is_not_what_is_in_it(used: Written) -> None:
    main = "import pack.lib\ndef entry():\n    return pack.__file__, pack.lib.__file__\n"
    files = {"pack/main.py": main, "pack/lib.py": LIB, "pack/__init__.py": "def __getattr__(name):\n    return name\n"}
    assert names(used(files)) == {"entry"}
    assert "__getattr__" in names(used({**files, "pack/main.py": main.replace("pack.__file__", "pack.anything")}))


def test_statements_that_run_at_import_count_with_their_module(used: Written) -> None:
    loose = "import warnings\nwarnings.simplefilter('ignore')\n"
    files = {"pack/main.py": MAIN, "pack/lib.py": LIB + loose}
    assert names(used(files)) == {"entry", "FACTOR", "area", "helper", source.LOOSE}
    assert used(files).digest != used({**files, "pack/lib.py": LIB + loose.replace("ignore", "error")}).digest


def test_fields_of_settings_are_values_and_no_code(used: Written) -> None:
    """Whoever hands settings over says in an identity what they hold; how they are checked and reckoned is code."""
    main = (
        "from pydantic import BaseModel, Field, field_validator\n"
        "class Settings(BaseModel):\n    x: int = Field(1, description='a')\n"
        "    @field_validator('x')\n    def check(cls, x):\n        return x + 0\n"
        "    @property\n    def twice(self):\n        return 2 * self.x\n"
        "def entry(given: Settings):\n    return given.x + given.twice\n"
    )
    before = used({"pack/main.py": main})
    for old, new, changes in (
        ("'a'", "'b'", False),
        ("Field(1", "Field(2", False),
        ("x + 0", "x + 1", True),
        ("2 * self.x", "3 * self.x", True),
    ):
        assert main.count(old) == 1
        assert (used({"pack/main.py": main.replace(old, new)}).digest != before.digest) is changes, new


def test_libraries_are_those_that_are_used(used: Written) -> None:
    main = (
        "from typing import TYPE_CHECKING\nimport json, math\nif TYPE_CHECKING:\n    import csv\n"
        "def entry(x: 'csv.Dialect'):\n    import re\n    return re.compile(math.pi)\n"
    )
    assert used({"pack/main.py": main}).libraries == {"math", "re"}


def test_there_must_be_what_is_asked_for(used: Written) -> None:
    with pytest.raises(LookupError, match=r"no nowhere in pack\.main"):
        used({"pack/main.py": MAIN}, entry="nowhere")
    with pytest.raises(LookupError, match=r"no module pack\.nowhere"):
        Sources(Path(), ["pack"]).closure(["pack.nowhere"])


def test_what_stands_alone_counts_with_the_names_that_it_calls(tmp_path: Path) -> None:
    lib = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
    digests = []
    for place, called in (("a", "one"), ("a", "two"), ("b", "one")):
        root = tmp_path / f"{place}{called}"
        (root / "pack").mkdir(parents=True)
        (root / "pack" / f"{place}.py").write_text(lib)
        wire = f"from pack.{place} import {called}\n\n\ndef wire():\n    return {called}()\n"
        (root / "pack" / "main.py").write_text(wire)
        found = Sources(root, ["pack"]).closure([f"pack.{place}:one"], alone=["pack.main:wire"])
        assert [each.name for each in found.definitions] == ["one", "wire"]  # and what it calls is not followed
        digests.append(found.digest)
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


def test_each_file_is_parsed_once(used: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used({"pack/main.py": MAIN, "pack/lib.py": LIB})
    parsed: list[str] = []
    own = source.ast.parse
    monkeypatch.setattr(
        source.ast, "parse", lambda text, *rest, **more: parsed.append(text) or own(text, *rest, **more)
    )
    Sources(tmp_path / "0", ["pack"]).closure(["pack.main:entry"])
    assert parsed == []
    (tmp_path / "0/pack/lib.py").write_text(LIB + "\n")
    Sources(tmp_path / "0", ["pack"]).closure(["pack.main:entry"])
    assert parsed == [LIB + "\n"]
