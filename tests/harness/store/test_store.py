"""The store: whatever stands under a stage's name is whole, whenever the process that wrote it was stopped."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.base.errors import HarnessError
from harness.base.files import new_directory, scratch_folder, sha256_file
from harness.store.store import FORMAT, Artefact, CorruptArtefactError, Store

ONE, TWO = "1" * 64, "2" * 64


def stored(store: Store, identity: str = ONE, **files: str) -> Artefact:
    with store.create("kind", identity, {"title": "t"}) as folder:
        (folder / "sub").mkdir()
        for name, text in (files or {"a.json": "[1]", "sub/b": "b"}).items():
            (folder / name).write_text(text)
    found = store.find("kind", identity)
    assert found is not None
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_stage_is_found_by_its_identity_and_kind(store: Store) -> None:
    artefact = stored(store)
    assert artefact.json("a.json") == [1]
    assert artefact.checked() == artefact.folder
    assert set(artefact.manifest["outputs"]) == {"a.json", "sub/b"}
    assert store.find("kind", TWO) is None
    assert store.find("other", ONE) is None


def test_names_share_a_beginning_only_by_chance_and_are_told_apart(store: Store) -> None:
    """A folder's name holds a part of the identity; the manifest holds all of it."""
    stored(store)
    assert store.find("kind", ONE[:-1] + "f") is None


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udc80", "../" * 2000])
@pytest.mark.parametrize("dropped", [False, True])
def test_a_manifest_that_names_no_file_is_damaged(name: str, dropped: bool, store: Store) -> None:
    artefact = stored(store)
    manifest = json.loads((artefact.folder / "manifest.json").read_text())
    manifest |= {"outputs": {name: "0" * 64}, "dropped": dropped}
    (artefact.folder / "manifest.json").write_text(json.dumps(manifest))
    assert not Artefact(artefact.folder, manifest).is_whole()
    assert store.complaints(artefact.folder) or dropped  # of a dropped stage, that may be a file which went


def test_the_manifest_takes_what_the_block_adds(store: Store) -> None:
    manifest = {"title": "t"}
    with store.create("kind", ONE, manifest):
        manifest |= {"seconds": "3"}
    found = store.find("kind", ONE)
    assert found is not None
    assert found.manifest["seconds"] == "3"


def test_an_exception_leaves_nothing_to_find(store: Store) -> None:
    with contextlib.suppress(ZeroDivisionError), store.create("kind", ONE, {}) as folder:
        (folder / "half").touch()
        raise ZeroDivisionError
    assert store.find("kind", ONE) is None
    assert not list(store.root.rglob("half"))
    stored(store)


DIE = """
import os, sys
from pathlib import Path
from harness.store.store import Store

with Store(Path(sys.argv[1])).create("kind", sys.argv[2], {}) as folder:
    (folder / "half").write_text("x")
    os._exit(9)
"""


def test_a_killed_process_leaves_nothing_to_find_and_does_no_harm(store: Store) -> None:
    done = subprocess.run([sys.executable, "-c", DIE, str(store.root.parent), ONE], check=False)
    assert done.returncode == 9
    assert list(store.root.rglob("half"))  # nobody was left to clean up
    assert store.find("kind", ONE) is None
    assert stored(store).json("a.json") == [1]
    assert not list(store.root.rglob("half"))  # whoever makes the stage removes what the dead one left of it


def test_sweep_removes_what_nobody_works_on(store: Store, stack: ExitStack) -> None:
    """Old or young, one that a process at work has stays; young checkpoints wait for their run to go on."""
    kept = stored(store)
    old, young = store.root / "kind" / ".old.x", store.root / "kind" / ".young.x"
    for folder in (old, young):
        folder.mkdir()
    at_work = stack.enter_context(new_directory(store.root / "kind" / "at-work"))
    with store.work("kind", TWO) as work:
        pass
    with store.work("kind", "3" * 64) as orphan:
        pass
    for folder, days in ((old, 8), (orphan, 8), (kept.folder, 8), (at_work, 8), (work, 2)):
        os.utime(folder, (time.time() - days * 86400,) * 2)
    store.sweep()
    assert not old.exists()
    assert not orphan.exists()
    assert not young.exists()
    assert at_work.exists()
    assert work.exists()
    assert kept.folder.exists()


def test_sweep_goes_by_age_where_there_are_no_locks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young = store.root / "kind" / ".old.x", store.root / "kind" / ".young.x"
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 8 * 86400,) * 2)

    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    store.sweep()
    assert not old.exists()
    assert young.exists()
    with store.create("kind", ONE, {}) as folder:
        assert folder.is_dir()


def test_temporary_folders_of_a_run_lie_in_its_store_and_go_with_it(store: Store) -> None:
    with store.in_use():
        with scratch_folder("score") as folder:
            assert folder.parent == store.scratch
            store.sweep()
            assert folder.is_dir()
        assert not folder.exists()
    killed = store.scratch / ".score-x"
    killed.mkdir()
    store.sweep()
    assert not killed.exists()
    with scratch_folder("score") as elsewhere:
        assert not elsewhere.is_relative_to(store.root)


def test_a_store_in_use_is_not_tidied(store: Store) -> None:
    with store.in_use(), store.in_use(), pytest.raises(HarnessError, match="a run at work"), store.alone():
        pass
    with store.alone():
        pass


@pytest.mark.parametrize("damage", ["changed", "missing", "unknown"])
def test_a_damaged_file_is_not_read(store: Store, damage: str) -> None:
    artefact = stored(store)
    if damage == "changed":
        (artefact.folder / "a.json").write_text("[2]")
    elif damage == "missing":
        (artefact.folder / "a.json").unlink()
    name = "nowhere" if damage == "unknown" else "a.json"
    with pytest.raises(CorruptArtefactError):
        artefact.json(name)
    assert artefact.is_whole() == (damage == "unknown")
    store.discard(artefact)
    assert store.find("kind", ONE) is None


def test_a_large_file_is_read_once_until_it_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact, read = stored(store), list[str]()

    def digest(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("harness.store.store._READ_ONCE_BYTES", 0)
    monkeypatch.setattr("harness.store.store.sha256_file", digest)
    assert artefact.checked() == artefact.checked()
    assert sorted(read) == ["a.json", "b"]
    (artefact.folder / "a.json").write_text("[2]")
    os.utime(artefact.folder / "a.json", ns=(0, 0))  # a clock may be too coarse to tell this write from the first
    assert not artefact.is_whole()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"identity": 1}'])
def test_a_damaged_manifest_is_no_stage(store: Store, text: str) -> None:
    artefact = stored(store)
    (artefact.folder / "manifest.json").write_text(text)
    assert store.find("kind", ONE) is None
    assert store.read_dropped("kind", ONE, "a.json") is None
    assert stored(store).json("a.json") == [1]


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_a_stage_of_another_format_is_no_stage_and_is_left_alone(store: Store, other: int) -> None:
    artefact = stored(store)
    manifest = json.loads((artefact.folder / "manifest.json").read_text())
    (artefact.folder / "manifest.json").write_text(json.dumps(manifest | {"format": other}))
    assert store.find("kind", ONE) is None
    assert store.other_formats() == {other: [artefact.folder]}
    assert stored(store, ONE, **{"c.json": "[2]"}).json("c.json") == [2]
    ((folder,),) = store.other_formats().values()
    assert json.loads((folder / "a.json").read_text()) == [1]
    store.sweep(older_than_s=-1)
    assert store.other_formats() == {other: [folder]}


def test_a_store_of_one_format_has_no_others(store: Store) -> None:
    assert store.other_formats() == {}
    stored(store)
    (store.root / "kind" / "odd").mkdir()
    (store.root / "kind" / "odd" / "manifest.json").write_text("[]")
    assert store.other_formats() == {}


def test_dropped_files_are_gone_and_the_rest_stays_readable(store: Store) -> None:
    artefact = stored(store)
    store.drop_files(artefact, keep={"a.json"})
    assert store.find("kind", ONE) is None  # whoever needs the weights makes them again
    assert store.read_dropped("kind", ONE, "a.json") == [1]
    assert store.read_dropped("kind", ONE, "sub/b") is None
    assert not (artefact.folder / "sub" / "b").exists()
    assert stored(store).checked()


def test_a_finished_stage_is_not_thrown_away_by_a_slower_process(store: Store) -> None:
    """Both found nothing and began; the second to finish must not take away what others read by now."""
    with store.create("kind", ONE, {}) as slow:
        (slow / "a.json").write_text("[1]")
        first = stored(store)
    with store.create("kind", ONE, {}) as slower:
        (slower / "other").touch()
    assert first.checked()


def test_checkpoints_stay_until_the_stage_is_stored(store: Store) -> None:
    """A full disk while the trained model is saved must not cost the training."""
    with contextlib.suppress(EOFError), store.create("kind", ONE, {}):
        with store.work("kind", ONE) as work:
            (work / "checkpoint").touch()
        raise EOFError
    with store.create("kind", ONE, {}), store.work("kind", ONE) as work:
        assert (work / "checkpoint").exists()
    assert not work.exists()


HOLD = """
import sys
from pathlib import Path
from harness.store.store import Store

with Store(Path(sys.argv[1])).work("kind", sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_work_on_one_stage(store: Store) -> None:
    command = [sys.executable, "-c", HOLD, str(store.root.parent), ONE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with store.work("kind", TWO, on_wait=lambda: pytest.fail("another stage is free")):
            pass
        waits: list[bool] = []

        def let_go() -> None:
            waits.append(True)
            other.kill()

        with store.work("kind", ONE, let_go):  # the lock dies with its process
            assert waits == [True]


def test_a_process_that_waited_has_a_folder_of_its_own(store: Store) -> None:
    """The one it waited for removes the folder, and with it the file on which both had a lock."""
    with ExitStack() as other:
        other.enter_context(store.work("kind", ONE))

        def stored() -> None:
            shutil.rmtree(store.work_folder("kind", ONE))
            other.close()

        with store.work("kind", ONE, stored) as folder:
            assert folder.is_dir()
            with pytest.raises(_HeldError), store.work("kind", ONE, _raise_held):
                pass


class _HeldError(Exception):
    pass


def _raise_held() -> None:
    raise _HeldError
