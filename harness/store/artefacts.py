"""The files that stages store: their names, what they hold, and how they are written and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from harness.base.files import Json, write_json, write_text
from harness.store.store import Artefact, Store

T = TypeVar("T")

MODEL = "model"
"""Folder of a model that was trained, whole: config, safetensors, tokenizer."""
ADAPTER = "adapter"
"""Folder of the adapters of a teacher that LoRA trained."""
ROWS_INDEX = "rows.json"
"""Where a teacher's rows of an example are: its id -> shard, first row, row after the last."""
ROWS_SHARDS = "rows-*.safetensors"
"""Pattern of the files of a teacher's rows, which sorts them by number."""


def rows_shard(number: int) -> str:
    """Name of a file of a teacher's rows."""
    return ROWS_SHARDS.replace("*", f"{number:05d}")


# --- Records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        id: of the test item.
        seed: of the sampling; None for a greedy answer.
        prompt: what it was given, in text, before the model's own template.
        output: decoded answer, cut before the first stop string; special tokens left out.
        tokens: generated tokens, the one that ended the answer included.
        stop: "eos", "stop string" or "length".
        prompt_cut: whether the prompt was longer than the request allows, and lost its end.
    """

    id: str
    seed: int | None
    prompt: str
    output: str
    tokens: int
    stop: str
    prompt_cut: bool


@dataclass(frozen=True)
class Bits:
    """Bits that a model needs for one response.

    Attributes:
        id: of the example.
        bits: -log2 of the response's probability, EOS left out.
        bytes: UTF-8 bytes of the response.
    """

    id: str
    bits: float
    bytes: int


@dataclass(frozen=True)
class Apart:
    """How far a model is from a teacher on one response.

    Attributes:
        id: of the example.
        chunks: Σ |difference of log2-likelihoods| over the pieces that end on one byte for both, EOS left out.
        bytes: UTF-8 bytes of the response.
        kl: Σ KL(teacher || model) over the response tokens, in bits; None where vocabularies differ.
        tokens: that this is over.
    """

    id: str
    chunks: float
    bytes: int
    kl: float | None
    tokens: int


@dataclass(frozen=True)
class Timing:
    """What a training took on the machine that made it, without loading and storing.

    Attributes:
        seconds: of its steps.
        gpus: that it ran on, all ranks together; 0 for the CPU.
        gpu_peak_bytes: the most that torch allocated on the first rank's GPU; None on the CPU. Both are None where an
            earlier version stored the training.
    """

    seconds: float
    gpus: int | None = None
    gpu_peak_bytes: int | None = None


class ShownTokens(TypedDict):
    """A response in one model's tokens: the model's name, the text of each token, and where it ends, in bytes."""

    name: str
    tokens: list[str]
    ends: list[int]


class ShownPair(TypedDict):
    """A response in the tokens of student and teacher; groups are pairs of lists of token numbers."""

    item: str
    student: ShownTokens
    teacher: ShownTokens
    groups: list[tuple[list[int], list[int]]]


class Trace(ShownPair):
    """What a term of a loss compared in a response.

    ``kd`` is each student token's share of the KD sum, in the loss's own unit, None outside every group; empty where
    the loss is no sum over parts of the response.
    """

    method: str
    kd: list[float | None]


class AlignedItem(ShownPair):
    """A response as a method aligns it, without a model.

    ``cut``: whether a limit cut it. ``stand_in``: whether the groups are those of shared bytes, since the method's own
    depend on what the models make of the response.
    """

    cut: bool
    stand_in: bool


class Alignments(TypedDict):
    """The first responses of a task as a method aligns them; ``of`` counts all of them."""

    of: int
    method: str
    items: list[AlignedItem]


@dataclass(frozen=True)
class Failure:
    """Why a stage has no result: printed as a footnote, never cached."""

    stage: str
    reason: str
    skipped: bool = False


# --- Files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JsonFile(Generic[T]):
    """A JSON file of a stage.

    Attributes:
        name: of the file.
        parse: makes what is read of its JSON.
        plain: makes JSON of what is written.
        compact: on one line; else a person can read it.
    """

    name: str
    parse: Callable[[Json], T]
    plain: Callable[[T], Json]
    compact: bool = False

    def write(self, folder: Path, value: T) -> None:
        """Into a stage's folder, whole or not at all."""
        path, plain = folder / self.name, self.plain(value)
        if self.compact:
            write_text(path, json.dumps(plain, ensure_ascii=False, separators=(",", ":")))
        else:
            write_json(path, plain)

    def load(self, folder: Path) -> T:
        """From a folder, unchecked."""
        return self.parse(json.loads((folder / self.name).read_text(encoding="utf-8")))

    def read(self, artefact: Artefact) -> T:
        """Of a stored stage.

        Raises:
            CorruptArtefactError: the file is missing or changed.
        """
        return self.parse(artefact.json(self.name))

    def find(self, store: Store, kind: str, identity: str) -> T | None:
        """Of a stage; None where none is stored whole, or it has no such file."""
        artefact = store.find(kind, identity)
        if artefact is None or self.name not in artefact.manifest["outputs"] or not artefact.is_whole():
            return None
        return self.read(artefact)

    def kept(self, store: Store, kind: str, identity: str) -> T | None:
        """Of a stage, its weights dropped or not; None where there is no such file, or a damaged one."""
        value = store.read_dropped(kind, identity, self.name)
        return None if value is None else self.parse(value)


def _as_it_is(value: Any) -> Any:
    return value


def _records(kind: Callable[..., T]) -> tuple[Callable[[Json], list[T]], Callable[[list[T]], Json]]:
    """How a list of dataclass objects is read and written."""
    return (lambda rows: [kind(**row) for row in rows]), (lambda items: [asdict(item) for item in items])


STEPS: JsonFile[list[dict[str, float]]] = JsonFile("steps.json", _as_it_is, _as_it_is)
"""What a training showed at each optimiser step: loss, ce, kd_k, kd_ce_ratio_k, grad_norm, learning_rate, tokens."""

TIMING: JsonFile[Timing] = JsonFile("timing.json", lambda read: Timing(**read), asdict)
"""What a training took."""

TRACES: JsonFile[list[Trace]] = JsonFile("traces.json", _as_it_is, _as_it_is)
"""Of a student: what it compared in a few responses."""

ALIGNMENTS: JsonFile[Alignments] = JsonFile("alignments.json", _as_it_is, _as_it_is, compact=True)
"""What a method compares in the test responses."""

ANSWERS: JsonFile[list[Answer]] = JsonFile("answers.json", *_records(Answer))
"""What a model answered to a task's prompts, in their order."""

BITS: JsonFile[list[Bits]] = JsonFile("bits.json", *_records(Bits))
"""What a model makes of a task's reference responses."""

APART: JsonFile[list[Apart]] = JsonFile("apart.json", *_records(Apart))
"""How far a model is from a teacher on held-out references."""

SCORES: JsonFile[dict[str, dict[str, float]]] = JsonFile("scores.json", _as_it_is, _as_it_is)
"""Metric -> item -> value."""

DETAILS: JsonFile[Mapping[str, Any]] = JsonFile("details.json", _as_it_is, dict)  # Any: whatever a task keeps
"""What else a task keeps of how scores came about; not every task does."""

KEPT_OF_STUDENTS = frozenset({STEPS.name, TIMING.name, TRACES.name})
"""Files of a student that stay where its weights are removed: reports read them."""
