"""Files and digests. Whatever is written appears whole or not at all: temporary name first, rename last."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from harness.base.errors import HarnessError

Json = Any
"""What ``json.loads`` gives, and ``json.dumps`` takes: mypy can't say which until whoever reads it does."""


def digest_of(value: Json) -> str:
    """SHA-256 (hex) of a JSON-able value; the order of keys in a mapping does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_json(text: str) -> Json:
    """What a JSON text says.

    Raises:
        ValueError: it is none, or one that Python can't hold: nested too deep, numbers of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or mappings that are nested too deep") from None


def read_json(path: Path) -> Json:
    """What a JSON file in UTF-8 says.

    Raises:
        OSError: it can't be read.
        ValueError: as :func:`parse_json`.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def expanded(text: str | Path) -> Path:
    """A path as people write it: ``~`` is a home. That of nobody, where ``Path.expanduser`` raises, stays as it is."""
    try:
        return Path(os.path.expanduser(text))
    except ValueError:  # no name of anybody: a NUL, half a character
        return Path(text)


def is_file(path: Path) -> bool:
    """Whether a file is there: not where a name is none or too long for one, for which ``Path.is_file`` raises."""
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Whether a folder is there: as :func:`is_file`."""
    return os.path.isdir(path)


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old content or the new, never a part.

    Raises:
        HarnessError: the disk is full or the folder can't be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.fchmod(handle, 0o644)  # mkstemp makes it private; results are there to be shared
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Json) -> None:
    """Write a JSON file atomically, indented so that a person can read it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``final`` that takes its name only when the block ends without an error.

    If ``final`` exists already when the block ends (another process was faster), the new folder is dropped. What a
    process that was killed left of the same folder goes first.
    """
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in final.parent.glob(f".{glob.escape(final.name)}.*"):
            remove_abandoned(left)
    with _own_folder(final.parent, f".{final.name}.") as temporary:
        temporary.chmod(0o755)  # mkdtemp makes it private; what is kept is readable like any other file
        with disk_errors(final):
            yield temporary
            try:
                os.rename(temporary, final)
            except OSError:
                if not final.is_dir():
                    raise


_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)


@contextmanager
def scratch_below(folder: Path) -> Iterator[None]:
    """Have temporary folders made in a folder, not in the system's: they may be large, and go with what is there."""
    before = _scratch.set(folder)
    try:
        yield
    finally:
        _scratch.reset(before)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A temporary folder for as long as the block runs: see :func:`scratch_below`."""
    parent = _scratch.get() or Path(tempfile.gettempdir())
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with _own_folder(parent, f".{name}-") as folder:
        yield folder


def remove_abandoned(folder: Path) -> bool | None:
    """Remove a temporary folder of a process that is no more: one that lives holds a lock on its own.

    Returns:
        Whether it was removed; None where the file system knows no locks, and nobody can say.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None
    finally:
        os.close(handle)


@contextmanager
def _own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder that is locked while the block runs, and removed at its end where it still has its name."""
    while True:
        with disk_errors(parent):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.is_dir():
            break
        os.close(handle)  # taken for abandoned before it had its lock
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" and "not writable" into errors that say what to do, whichever library met them."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number = _error_number(error)
        where = str(getattr(error, "filename", None) or path)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise HarnessError(
                str(path),
                f"a full disk ({_free_bytes(path) / 2**20:.0f} MiB free)",
                "room to write",
                "Free some space or choose another folder (HARNESS_RUNS, HARNESS_CACHE), then run the same command "
                "again: it goes on where it stopped.",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise HarnessError(
                where, "a file or folder that may not be written", "a writable folder", "Change its rights."
            ) from error
        if number in (errno.ENOTDIR, errno.EEXIST):
            raise HarnessError(
                where, "a file where a folder has to be", "a folder", "Choose another folder."
            ) from error
        raise


def _error_number(error: Exception) -> int | None:
    """The system's error number; safetensors gives it in words only, and torch.save not even that."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, SafetensorError):
        told = re.search(r"\(os error (\d+)\)", str(error))
        return int(told[1]) if told else None
    failed_write = "inline_container" in str(error) and "PytorchStreamReader" not in str(error)
    return errno.ENOSPC if failed_write else None


def _free_bytes(path: Path) -> int:
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def gigabytes(size: float) -> str:
    """Bytes in words, to three digits; more than 1,000 GB whole, less than 0.1 GB in MB."""
    if 0 < size < 1e8:
        return f"{size / 1e6:.3g} MB"
    return f"{size / 1e9:,.0f} GB" if size >= 1e12 else f"{size / 1e9:.3g} GB"
