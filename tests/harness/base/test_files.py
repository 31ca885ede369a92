"""Files appear whole or not at all; a full or unwritable disk is one error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.base.errors import HarnessError
from harness.base.files import (
    digest_of,
    disk_errors,
    expanded,
    is_file,
    is_folder,
    new_directory,
    sha256_file,
    write_json,
    write_text,
)

Fill = Callable[[Path], object]
BIG = torch.zeros(2**20)
WRITERS: dict[str, Fill] = {
    "text": lambda path: write_text(path, "x" * 2**22),
    "safetensors": lambda path: save_file({"rows": BIG}, path),  # says it in words only
    "torch.save": lambda path: torch.save({"rows": BIG}, path),  # does not even say it: checkpoints of the optimiser
    "write_bytes": lambda path: path.write_bytes(b"x" * 2**22),
}


def test_a_path_that_somebody_wrote_is_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pathlib raises: a home of nobody, a name that is too long, one with a NUL."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    assert expanded("~/file") == tmp_path / "file"
    for nobody in ("~nobody of this name/x", "~\0", "~\ud800"):
        assert expanded(nobody) == Path(nobody)
    assert (is_file(tmp_path / "file"), is_folder(tmp_path)) == (True, True)
    for odd in ("~nobody of this name", "a" * 300, "a\0b"):
        assert (is_file(tmp_path / odd), is_folder(tmp_path / odd)) == (False, False)


def test_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text"
    write_text(path, "old")
    write_text(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [p.name for p in path.parent.iterdir()] == ["text"]
    assert path.stat().st_mode & 0o777 == 0o644  # results are shared, mkstemp's rights are not


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_folder_never_appears(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), new_directory(tmp_path / "final") as folder:
        (folder / "part").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_faster_of_two_writers_wins(tmp_path: Path) -> None:
    with new_directory(tmp_path / "final") as slow:
        (slow / "slow").touch()
        with new_directory(tmp_path / "final") as fast:
            (fast / "fast").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["final", "fast"]


def test_digests_follow_meaning_and_bytes(tmp_path: Path) -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})
    write_json(tmp_path / "one", [1])
    write_json(tmp_path / "two", [1])
    assert sha256_file(tmp_path / "one") == sha256_file(tmp_path / "two")


# --- Full disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; needs root."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if done.returncode:
        pytest.skip("can't mount a tmpfs here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("fill", WRITERS.values(), ids=list(WRITERS))
def test_a_full_disk_is_one_error_whoever_meets_it(tiny_disk: Path, fill: Fill) -> None:
    with pytest.raises(HarnessError) as error, new_directory(tiny_disk / "final") as folder:
        fill(folder / "file")
    assert "a full disk" in error.value.found
    assert "goes on where it stopped" in error.value.fix
    assert list(tiny_disk.iterdir()) == []  # the part that was written does not keep the disk full


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_noticed_to_the_last_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    monkeypatch.setattr(os, call, _raise(OSError(number, os.strerror(number))))
    with pytest.raises(HarnessError, match="a full disk"):
        write_text(tmp_path / "text", "x")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    wrong = [
        RuntimeError("shape mismatch"),
        RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamReader failed reading zip archive"),
        OSError(errno.EIO, "broken"),
        ValueError("x"),
    ]
    for error in wrong:
        with pytest.raises(type(error), match=r".") as raised, disk_errors(tmp_path):
            raise error
        assert raised.value is error


# --- Folders that can't be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: new_directory(path).__enter__()])
def test_a_file_in_the_place_of_a_folder_is_one_error(tmp_path: Path, write: Fill) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="a file where a folder has to be"):
        write(tmp_path / "file" / "new")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: new_directory(path).__enter__()])
def test_an_unwritable_folder_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Fill, number: int
) -> None:
    """Through a stand-in, because root may write everywhere."""
    monkeypatch.setattr(os, "mkdir", _raise(OSError(number, os.strerror(number), str(tmp_path / "new"))))
    with pytest.raises(HarnessError, match="may not be written"):
        write(tmp_path / "new" / "file")


def _raise(error: Exception) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call
