"""What is kept of code between plans: never stale, never trusted where it is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.base.code_closure import Closure, Sources
from harness.plan import code_cache
from harness.plan.code_cache import CodeCache, FoundCode

ASKED = (["pack.main:entry"], [], [], [])
MAIN = "import json\nfrom pack.lib import area\n\n\ndef entry(r):\n    return json.dumps(2 * area(r))\n"
LIB = "def area(r):\n    return r ** 2\n"


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "code"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {"__init__.py": "", "main.py": MAIN, "lib.py": LIB}.items():
        (tmp_path / "pack").mkdir(exist_ok=True)
        (tmp_path / "pack" / name).write_text(text)
    return tmp_path


def found(root: Path, others: dict[str, Path] | None = None) -> tuple[FoundCode, bool]:
    """What a fresh process gets, and whether it had to look."""
    sources = Sources(root, ["pack"], others)
    looked = []

    def look() -> Closure:
        looked.append(1)
        return sources.closure(*ASKED)

    cache = CodeCache(sources)
    code = cache.get(ASKED, look)
    cache.keep()
    return code, bool(looked)


def test_the_second_time_nothing_is_looked_for(root: Path) -> None:
    closure = Sources(root, ["pack"]).closure(*ASKED)
    expected = FoundCode(closure.digest, closure.files, ["json"])
    assert found(root) == (expected, True)
    assert found(root) == (expected, False)


def test_a_change_is_seen_that_leaves_size_and_time(root: Path) -> None:
    before, _ = found(root)
    lib = root / "pack" / "lib.py"
    state = lib.stat()
    lib.write_text(LIB.replace("2", "3"))
    os.utime(lib, ns=(state.st_atime_ns, state.st_mtime_ns))
    after, looked = found(root)
    assert looked
    assert after.digest != before.digest
    lib.write_text(LIB)
    assert found(root) == (before, False)  # and back


def test_what_was_found_in_one_place_is_good_for_a_copy(root: Path, tmp_path: Path) -> None:
    before, _ = found(root)
    (tmp_path / "copy").mkdir()
    os.rename(root / "pack", tmp_path / "copy" / "pack")
    assert found(tmp_path / "copy") == (before, False)


def test_a_plug_in_beside_it_counts(root: Path) -> None:
    found(root)
    (root / "plug_in.py").write_text("A = 1\n")
    others = {"plug_in": root / "plug_in.py"}
    assert found(root, others)[1]
    assert not found(root, others)[1]
    (root / "plug_in.py").write_text("A = 2\n")
    assert found(root, others)[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: "[1]",
        lambda text: '{"digest": 1, "found": {}}',
        lambda text: text.replace('"pack/lib.py": "', '"pack/lib.py": "0'),
        lambda text: json.dumps(json.loads(text) | {"found": {}}),
        lambda text: text.replace('"libraries"', '"library"'),
    ],
)
def test_a_damaged_file_is_made_again(root: Path, kept: Path, damage: object) -> None:
    before, _ = found(root)
    (path,) = kept.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))  # type: ignore[operator]
    assert path.read_text() != whole
    assert found(root) == (before, True)
    assert path.read_text() == whole


def test_a_folder_that_cannot_be_written_only_costs_time(root: Path, kept: Path) -> None:
    kept.parent.mkdir()
    kept.write_text("a file")
    assert found(root)[1]
    assert found(root)[1]


def test_nothing_is_written_of_a_file_that_changed_meanwhile(root: Path, kept: Path) -> None:
    sources = Sources(root, ["pack"])
    cache = CodeCache(sources)

    def look() -> Closure:
        (root / "pack" / "lib.py").write_text(LIB.replace("2", "3"))
        return sources.closure(*ASKED)

    cache.get(ASKED, look)
    cache.keep()
    assert not kept.exists()


def test_two_plans_at_once_keep_what_both_found(root: Path) -> None:
    caches = [CodeCache(Sources(root, ["pack"])) for _ in range(2)]
    asked = [ASKED, (["pack.lib:area"], [], [], [])]
    for cache, what in zip(caches, asked, strict=True):
        cache.get(what, lambda what=what, cache=cache: cache.sources.closure(*what))  # type: ignore[misc]
    for cache in caches:
        cache.keep()
    fresh = CodeCache(Sources(root, ["pack"]))
    for what in asked:
        fresh.get(what, lambda: pytest.fail("it looked again"))


def test_old_states_go(root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "KEPT", 3)
    for number in range(5):
        (root / "pack" / "lib.py").write_text(f"{LIB}\nN = {number}\n")
        found(root)
        for path in kept.iterdir():  # as if a second had passed
            os.utime(path, ns=(path.stat().st_atime_ns - 10**9, path.stat().st_mtime_ns - 10**9))
    assert len(list(kept.iterdir())) == 3
    assert not found(root)[1]
