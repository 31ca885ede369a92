"""Results on disk: one folder per finished stage, found by the stage's identity.

``<runs>/store/<kind>/<identity>/`` holds the stage's files and ``manifest.json``, with the digest of each file. A
folder takes its name only when it is complete, so whatever stands under its name can be read. What a stage needs to
go on after an interruption (checkpoints) stands beside it in a work folder that one process at a time may use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.base.errors import HarnessError
from harness.base.files import (
    disk_errors,
    is_file,
    new_directory,
    read_json,
    remove_abandoned,
    scratch_below,
    sha256_file,
    write_json,
)

FORMAT = 2
"""Of manifests and identities: raise it when either changes. Stages of another one are left alone."""

MANIFEST = "manifest.json"
_WORK = ".work-"
_NAME_LENGTH = 24  # hex digits of an identity in a folder's name; the manifest holds all 64


_READ_ONCE_BYTES = 2**26
_known: dict[Path, tuple[tuple[int, ...], str]] = {}  # of large files: what a change changes, and their digest


class CorruptArtefactError(Exception):
    """A stored file differs from the digest in its manifest."""


@dataclass(frozen=True)
class Artefact:
    """A finished stage.

    Attributes:
        folder: holds the files.
        manifest: identity, values, inputs, outputs, environment, seconds, peak memory.
    """

    folder: Path
    manifest: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """A file of the stage, its digest checked.

        Raises:
            CorruptArtefactError: the file is missing or changed.
        """
        path = self.folder / name
        expected = self.manifest["outputs"].get(name)
        if expected is None or not is_file(path) or _digest(path) != expected:
            raise CorruptArtefactError(f"{path} is missing or differs from its manifest")
        return path

    def checked(self) -> Path:
        """The folder, once every file in it has been checked."""
        for name in self.manifest["outputs"]:
            self.file(name)
        return self.folder

    def is_whole(self) -> bool:
        """Whether every file is as it was written."""
        try:
            self.checked()
        except CorruptArtefactError:
            return False
        return True

    def json(self, name: str) -> Any:
        """A JSON file of the stage."""
        return read_json(self.file(name))


def _digest(path: Path) -> str:
    """SHA-256 of a file; a large one is read once in a process, unless it has changed: students share their start."""
    stat = path.stat()
    if stat.st_size < _READ_ONCE_BYTES:
        return sha256_file(path)
    now = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if path not in _known or _known[path][0] != now:
        _known[path] = now, sha256_file(path)
    return _known[path][1]


class Store:
    """The finished stages under a runs folder."""

    def __init__(self, runs: Path) -> None:
        self.root = runs / "store"

    def find(self, kind: str, identity: str) -> Artefact | None:
        """The finished stage of that identity, or None. A dropped one (its weights were removed) is not found.

        The empty identity is no stage's: what a recipe does not ask for is looked up by it.
        """
        artefact = self._read(kind, identity)
        return None if artefact is None or artefact.manifest.get("dropped") else artefact

    @contextlib.contextmanager
    def create(self, kind: str, identity: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """A folder to fill; it becomes the stage's when the block ends without an error. Its checkpoints go then.

        Args:
            manifest: completed in the block by the caller, and here by format, identity and output digests.
        """
        final = self.folder_of(kind, identity)
        if final.exists() and self.find(kind, identity) is None:
            if (other := _format_of(final)) not in (None, FORMAT):
                final.rename(final.with_name(f"{final.name}.format-{other}"))
            elif final.is_dir():  # dropped or damaged
                shutil.rmtree(final)
            else:
                final.unlink()
        with new_directory(final) as folder:
            yield folder
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            outputs = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
            complete = manifest | {"format": FORMAT, "kind": kind, "identity": identity, "outputs": outputs}
            write_json(folder / MANIFEST, complete)
        shutil.rmtree(self.work_folder(kind, identity), ignore_errors=True)

    def manifests(self, kind: str) -> list[Mapping[str, Any]]:
        """Manifests of all stages of a kind, dropped ones too."""
        found: list[Mapping[str, Any]] = []
        for path in sorted(self.root.glob(f"{kind}/[!.]*/{MANIFEST}")):
            try:
                manifest = read_json(path)
            except (OSError, ValueError):
                continue
            if is_manifest(manifest) and manifest["format"] == FORMAT:
                found.append(manifest)
        return found

    def left_alone(self) -> str:
        """A line on stages of other formats; empty where there are none."""
        lines = []
        for known, folders in self.other_formats().items():
            age = "an older" if known < FORMAT else "a newer"
            kinds = Counter(folder.parent.name for folder in folders)
            named = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
            lines.append(f"{len(folders)} stages of {age} format are left alone in {self.root}: {named}")
        return "; ".join(lines)

    def other_formats(self) -> dict[int, list[Path]]:
        """Folders of stages that this version can't read, by their format. Nothing changes or removes them."""
        found: dict[int, list[Path]] = {}
        for folder in sorted(self.root.glob("*/[!.]*")):
            if (known := _format_of(folder)) not in (None, FORMAT):
                found.setdefault(known, []).append(folder)
        return found

    def sweep(self, older_than_s: float = 7 * 24 * 3600) -> None:
        """Remove what killed processes left half-written; checkpoints, which wait for their run, when they are old.

        Where the file system knows no locks, only age tells what is left from what is at work.
        """
        for folder in self.root.glob("*/.*"):
            if not folder.is_dir():
                continue
            abandoned = None if folder.name.startswith(_WORK) else remove_abandoned(folder)
            if abandoned is None and time.time() - folder.stat().st_mtime > older_than_s:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def scratch(self) -> Path:
        """Where a run's temporary folders are; :meth:`sweep` removes those of killed ones."""
        return self.root / "scratch"

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """A block of a run, whose temporary folders lie in the store; meanwhile :meth:`alone` refuses."""
        with self._held(fcntl.LOCK_SH), scratch_below(self.scratch):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A block during which no run uses the store.

        Raises:
            HarnessError: one does.
        """
        with self._held(fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    @contextlib.contextmanager
    def _held(self, how: int) -> Iterator[None]:
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, how)
            except BlockingIOError:
                raise HarnessError(
                    str(self.root), "a run at work", "a store that nobody uses", "Wait for it to end."
                ) from None
            yield

    def discard(self, artefact: Artefact) -> None:
        """Remove a stage, so that it runs again."""
        shutil.rmtree(artefact.folder, ignore_errors=True)

    def drop_files(self, artefact: Artefact, keep: Set[str]) -> None:
        """Remove all files but those named; the manifest stays, marked, so that the stage counts as not finished."""
        write_json(artefact.folder / MANIFEST, {**artefact.manifest, "dropped": True})
        for name in artefact.manifest["outputs"]:
            if name not in keep:
                (artefact.folder / name).unlink(missing_ok=True)

    def read_dropped(self, kind: str, identity: str, name: str) -> Any | None:
        """A JSON file of a stage, dropped or not; None where there is none."""
        artefact = self._read(kind, identity)
        try:
            return artefact.json(name) if artefact is not None else None
        except CorruptArtefactError:
            return None

    def read_manifest(self, kind: str, identity: str) -> Mapping[str, Any] | None:
        """The manifest of a stage, dropped or not; None where there is none."""
        artefact = self._read(kind, identity)
        return None if artefact is None else artefact.manifest

    @contextlib.contextmanager
    def work(self, kind: str, identity: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """A folder for checkpoints that outlives an interruption; :meth:`create` removes it once the stage is stored.

        Waits while another process works on the same stage, which may be stored afterwards.

        Args:
            on_wait: called before that.
        """
        folder = self.work_folder(kind, identity)
        with contextlib.ExitStack() as held:
            while True:
                with disk_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    lock = held.enter_context((folder / "lock").open("w"))
                    _lock(lock, on_wait)
                if _is_open(lock, folder / "lock"):  # else the folder went when the other process had stored the stage
                    break
            yield folder

    def _read(self, kind: str, identity: str) -> Artefact | None:
        """What stands under an identity, dropped or not; None where nothing does that this version understands."""
        folder = self.folder_of(kind, identity)
        try:
            manifest = read_json(folder / MANIFEST)
        except (OSError, ValueError):
            return None
        known = is_manifest(manifest) and (manifest["identity"], manifest["format"]) == (identity, FORMAT)
        return Artefact(folder, manifest) if known else None

    def work_folder(self, kind: str, identity: str) -> Path:
        """Where a stage's checkpoints are, held by :meth:`work`."""
        return self.root / kind / f"{_WORK}{identity[:_NAME_LENGTH]}"

    def folder_of(self, kind: str, identity: str) -> Path:
        """Where a stage is, or would be."""
        return self.root / kind / identity[:_NAME_LENGTH]

    @staticmethod
    def is_work(folder: Path) -> bool:
        """Whether it is one of :meth:`work`."""
        return folder.name.startswith(_WORK)

    def complaints(self, folder: Path) -> list[str]:
        """What of a stage's folder is missing or changed, a line each; its dropped files are neither."""
        if _format_of(folder) not in (None, FORMAT):
            return []
        try:
            manifest = read_json(folder / MANIFEST)
        except (OSError, ValueError):
            manifest = None
        if not is_manifest(manifest):
            return [f"{folder / MANIFEST} is missing or damaged"]
        lines = []
        for name in manifest["outputs"]:
            try:  # a damaged name may be none or too long for one, for which Path.exists raises
                if not manifest.get("dropped") or os.path.exists(folder / name):
                    Artefact(folder, manifest).file(name)
            except CorruptArtefactError as error:
                lines.append(str(error))
        return lines


def is_manifest(value: Any) -> bool:
    """Whether it has a manifest's form: digests of files within the stage's folder, stages that it was made from."""
    if not isinstance(value, dict) or not {"identity", "format"} <= value.keys():
        return False
    outputs, inputs = value.get("outputs"), value.get("inputs", {})
    if not isinstance(outputs, dict) or not isinstance(inputs, dict):
        return False
    within = all(is_within(name) and isinstance(digest, str) for name, digest in outputs.items())
    return within and all(isinstance(one, dict) and {"kind", "identity"} <= one.keys() for one in inputs.values())


def is_within(name: str) -> bool:
    """Whether a relative path leads to a file below the folder that it is taken in."""
    parts = name.split("/")
    return "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(parts)


def _format_of(folder: Path) -> int | None:
    """The format of the stage in a folder; None where its manifest can't be read."""
    try:
        known = read_json(folder / MANIFEST).get("format")
    except (OSError, ValueError, AttributeError):
        return None
    return known if isinstance(known, int) else None


def _lock(file: IO[str], on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_open(file: IO[str], path: Path) -> bool:
    """Whether it is the file that stands under the path now."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
