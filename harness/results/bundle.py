"""A run as one file: its record with what its tables and pages are made of, to be read or joined elsewhere.

A bundle is a zip with the layout of a folder of results (``RUN/run.json``, ``store/KIND/IDENTITY/...``) and
``bundle.json``, which has size and SHA-256 of each file. Nothing in it is code. Nothing of it is believed before all of
it is checked: names, sizes, digests, manifests, the record.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import disk_errors, new_directory, parse_json, scratch_folder, sha256_file
from harness.results.record import RECORD, RunRecord, read_record
from harness.results.upkeep import stages_named_by
from harness.store.artefacts import STEPS, TIMING, TRACES
from harness.store.store import MANIFEST, Artefact, CorruptArtefactError, Store, is_manifest, is_within

INDEX = "bundle.json"
FORMAT = 1
RESULTS = frozenset({"answers", "scores", "bits", "alignments"})
"""Kinds of stages that go into every bundle whole; of others, what reports read."""
_INDEX_BYTES = 64 * 2**20
_PIECE = 2**20
_UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)  # what zipfile raises
_KEPT = frozenset({STEPS.name, TIMING.name, TRACES.name})
_WHEN = (1980, 1, 1, 0, 0, 0)  # of every file: the same results are the same bundle


@dataclass(frozen=True)
class Imported:
    """What an import brought.

    Attributes:
        folder: of the run.
        new: stages that were not here.
        known: stages that were.
    """

    folder: Path
    new: int
    known: int


def export_run(run: RunRecord, store: Store, path: Path, *, students: bool = False, rows: bool = False) -> Path:
    """Write a run's bundle: answers, scores, bits, alignments, traces, curves and all manifests.

    Args:
        path: of the zip, which is replaced.
        students: whether the weights of students go in where they are still stored.
        rows: whether the teachers' rows do.

    Raises:
        HarnessError: the run has no stored result, or a file of it is damaged.
    """
    whole = RESULTS | ({"student"} if students else set()) | ({"rows"} if rows else set())
    files: dict[str, Path | bytes] = {f"{run.folder.absolute().name}/{RECORD}": run.folder / RECORD}
    for kind, identity in sorted(stages_named_by(run.folder / RECORD, store)):
        manifest = store.read_manifest(kind, identity)
        if manifest is not None:
            files |= _files_of(Artefact(store.folder_of(kind, identity), manifest), store, kind in whole)
    if not any(name.startswith("store/scores/") for name in files):
        raise HarnessError(str(run.folder), "no stored scores", "a run with results", "Run the recipe (again).")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_errors(path):
            _write(unfinished, run.folder.absolute().name, files)
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def open_bundle(path: Path) -> Path:
    """Unpack a bundle beside itself, checked; an earlier unpacking of the same bundle is taken.

    Returns:
        The run's folder within ``path`` without its ending.

    Raises:
        HarnessError: it is no bundle, or a file in it is not what it says.
    """
    folder = path.with_suffix("")
    with _opened(path) as bundle:
        index = _index(bundle, path)
        if not folder.exists():
            with new_directory(folder) as unpacked:
                _unpack(bundle, path, index, unpacked)
        elif not (folder / INDEX).is_file() or (folder / INDEX).read_bytes() != bundle.read(INDEX):
            raise HarnessError(str(folder), "another folder", "none: the bundle is unpacked there", "Rename one.")
    return folder / str(index["run"])


def import_bundle(path: Path, runs: Path) -> Imported:
    """Put a bundle's run and stages among those of a folder of results.

    Raises:
        HarnessError: as :func:`open_bundle`; or results of a stage that are here too, and other ones: all are named,
            and nothing has been imported.
    """
    store = Store(runs)
    with _opened(path) as bundle, store.in_use(), scratch_folder("import") as unpacked:
        index = _index(bundle, path)
        _unpack(bundle, path, index, unpacked)
        theirs = Store(unpacked)
        stages = [(m["kind"], m["identity"]) for m in _manifests(theirs)]
        if conflicts := [line for stage in stages if (line := _conflict(store, theirs, *stage))]:
            found = f"{len(conflicts)} stages with other results than those here ({'; '.join(conflicts)})"
            raise HarnessError(
                str(path), found, "the same results of the same stages", "Import into another folder (--runs)."
            )
        new = sum(_take(store, theirs, *stage) for stage in stages)
        folder = runs / str(index["run"])
        if not folder.exists():
            os.rename(unpacked / str(index["run"]), folder)
        return Imported(folder, new, len(stages) - new)


def _files_of(stage: Artefact, store: Store, whole: bool) -> dict[str, Path | bytes]:
    """A stage's files by their names in a bundle; one that is not whole is marked as one whose weights were dropped."""
    manifest = dict(stage.manifest)
    names = [name for name in manifest["outputs"] if (stage.folder / name).exists()]
    if not whole or len(names) < len(manifest["outputs"]):
        names = [name for name in names if name in _KEPT]
        manifest["dropped"] = True
    place = f"{store.root.name}/{stage.folder.parent.name}/{stage.folder.name}"
    try:
        files: dict[str, Path | bytes] = {f"{place}/{name}": stage.file(name) for name in names}
    except CorruptArtefactError as error:
        raise HarnessError(str(stage.folder), str(error), "files as written", "Run the recipe again.") from error
    return files | {f"{place}/{MANIFEST}": json.dumps(manifest, indent=2, sort_keys=True).encode()}


def _write(path: Path, run: str, files: Mapping[str, Path | bytes]) -> None:
    listed = {}
    for name, content in files.items():
        if isinstance(content, Path):
            listed[name] = {"bytes": content.stat().st_size, "sha256": sha256_file(content)}
        else:
            listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    index = json.dumps({"format": FORMAT, "run": run, "files": listed}, indent=2, sort_keys=True).encode()
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in {INDEX: index, **files}.items():
            about = zipfile.ZipInfo(name, _WHEN)
            about.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            about.external_attr = 0o644 << 16
            if isinstance(content, Path):
                with content.open("rb") as source, bundle.open(about, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, _PIECE)
            else:
                bundle.writestr(about, content)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _UNREADABLE as error:
        raise HarnessError(str(path), f"no zip file ({error})", "a bundle of `harness export`") from error


# Any: JSON, whose parts are checked here
def _index(bundle: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """What a bundle says that it holds, and holds: the same names, each within it and once."""
    expected = "a bundle of `harness export`"
    try:
        about = bundle.getinfo(INDEX)
        if about.file_size > _INDEX_BYTES:
            raise ValueError(f"{about.file_size} bytes")
        index = parse_json(bundle.read(INDEX).decode("utf-8"))
        run, files = index["run"], index["files"]
        form = index["format"]
        sizes = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except (KeyError, TypeError, AttributeError, OverflowError, *_UNREADABLE) as error:
        raise HarnessError(f"{path}, {INDEX}", f"none that can be read ({error})", expected) from error
    if form != FORMAT:
        raise HarnessError(f"{path}, {INDEX}", f"format {form!r:.40}", f"format {FORMAT}", "Export the run again.")
    if not isinstance(run, str) or "/" in run or run.startswith(".") or run == "store" or not is_within(run):
        raise HarnessError(f"{path}, {INDEX}", f"a run called {run!r:.60}", "the name of a folder")
    outside = [n for n in sizes if not is_within(n) or not n.startswith(("store/", f"{run}/")) or n.count("/") > 9]
    if outside:
        raise HarnessError(str(path), f"a file {outside[0]!r:.80}", f"files below store/ and {run}/")
    names = [one.filename for one in bundle.infolist()]
    if len(names) != len(set(names)) or set(names) != {INDEX, *sizes}:
        odd = sorted({INDEX, *sizes} ^ set(names)) or sorted(name for name in set(names) if names.count(name) > 1)
        raise HarnessError(str(path), f"{odd[0]!r:.80} missing, twice or not listed", f"the files of {INDEX}")
    return {"run": run, "files": sizes}


# Any: as _index gives it
def _unpack(bundle: zipfile.ZipFile, path: Path, index: Mapping[str, Any], folder: Path) -> None:
    """Write a bundle's files into an empty folder, each checked while it is written; then manifests and record."""
    size = sum(length for length, _ in index["files"].values())
    if size > shutil.disk_usage(folder).free:
        raise HarnessError(str(path), f"{size} bytes of files", "what the disk has room for", "Free some space.")
    for name, (length, digest) in index["files"].items():
        target, read = folder / name, hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(name) as source, target.open("xb") as file:
                left = length + 1
                while left > 0 and (piece := source.read(min(left, _PIECE))):
                    left -= len(piece)
                    read.update(piece)
                    file.write(piece)
        except _UNREADABLE as error:
            raise HarnessError(f"{path}, {name}", f"a file that can't be unpacked ({error})", "a whole one") from error
        if left != 1 or read.hexdigest() != digest:
            raise HarnessError(f"{path}, {name}", "another content than listed", "its digest", "Copy it again.")
    (folder / INDEX).write_bytes(bundle.read(INDEX))
    store = Store(folder)
    for manifest_file in sorted({folder / name for name in index["files"] if name.startswith("store/")}):
        _check_stage_file(path, store, manifest_file)
    try:
        read_record(folder / str(index["run"]))
    except HarnessError as error:
        raise HarnessError(f"{path}, {index['run']}/{RECORD}", error.found, error.expected) from error


def _check_stage_file(path: Path, store: Store, file: Path) -> None:
    """A file of the store belongs to a stage that stands under its own name and knows the file by its digest."""
    parts = file.relative_to(store.root).parts
    stage = store.root.joinpath(*parts[:2])
    try:
        manifest = parse_json((stage / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    name = "/".join(parts[2:])
    if len(parts) < 3 or not is_manifest(manifest) or store.folder_of(parts[0], str(manifest["identity"])) != stage:
        raise HarnessError(f"{path}, store/{'/'.join(parts)}", "no file of a stage", "a stage with its manifest")
    if manifest.get("kind") != parts[0] or (name != MANIFEST and manifest["outputs"].get(name) != sha256_file(file)):
        raise HarnessError(f"{path}, store/{'/'.join(parts)}", "a file that its manifest does not know", "its digest")


# Any: JSON of manifests
def _manifests(store: Store) -> Iterator[Mapping[str, Any]]:
    for folder in sorted(path for path in store.root.iterdir() if path.is_dir()):
        yield from store.manifests(folder.name)


def _conflict(store: Store, theirs: Store, kind: str, identity: str) -> str:
    """What differs of a stage that both have; empty where nothing does. Trainings differ in their seconds anyway."""
    ours, other = store.find(kind, identity), theirs.find(kind, identity)
    if kind not in RESULTS or ours is None or other is None or not ours.is_whole():
        return ""
    mine, yours = ours.manifest["outputs"], other.manifest["outputs"]
    odd = sorted(name for name in mine.keys() | yours.keys() if mine.get(name) != yours.get(name))
    return f"{kind} of {ours.manifest.get('title', identity[:12])}: {', '.join(odd)}" if odd else ""


def _take(store: Store, theirs: Store, kind: str, identity: str) -> bool:
    """Move a stage over where there is none here, or one that lacks files which the other has; whether it was."""
    target, source = store.folder_of(kind, identity), theirs.folder_of(kind, identity)
    if store.find(kind, identity) is not None:
        return False
    if store.read_manifest(kind, identity) is not None and theirs.find(kind, identity) is None:
        return False  # both without weights
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    return True
