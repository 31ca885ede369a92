"""What a page shows besides table and protocol: training, answers, alignments, manifest. All of it may be missing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

STEP_COLUMNS = ("row", "task", "seed", "step", "loss", "ce", "kd", "ratio", "second kd", "second ratio")
"""One row per optimiser step of a student. ``row`` is the label of its row in the table; losses are means per token in
nats; ratio is the norm of the KD term's gradient at the logits over that of CE; "second" is a dual teacher's other
term. NaN where there is none."""


@dataclass(frozen=True)
class ShownAnswer:
    """What one student said to an item; ``scores`` are (metric, value in the metric's unit, unit)."""

    row: str
    text: str
    stop: str  # "eos", "stop string" or "length"
    scores: tuple[tuple[str, float, str], ...] = ()


@dataclass(frozen=True)
class Item:
    """A test item with the answers of several students, side by side, and the (first) reference where it is known."""

    task: str
    id: str
    prompt: str
    answers: tuple[ShownAnswer, ...]
    reference: str = ""


@dataclass(frozen=True)
class TokenSide:
    """A response as one model cuts it: the text of each token, and where each ends, in bytes of the response."""

    name: str
    tokens: tuple[str, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class ShownAlignment:
    """Which tokens of a response one distillation term compares, and what it costs there.

    ``groups`` are pairs of student and teacher token numbers; a token in no group is masked. ``kd`` has a number for
    each student token (None: it carries no KD), or is empty where the term's loss is not a sum over tokens. ``traced``:
    seen by the trained models, so that KD is known; else from the tokenizers alone. ``stand_in``: groups on shared
    bytes, since the method's own follow the models' entropies and were not kept.
    """

    task: str
    item: str
    row: str
    method: str
    student: TokenSide
    teacher: TokenSide
    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    kd: tuple[float | None, ...] = ()
    teacher_kind: str = ""  # of the row
    traced: bool = True
    stand_in: bool = False


@dataclass(frozen=True)
class Evidence:
    """Everything that the HTML page adds. Text is plain, and answers of models are not to be trusted."""

    steps: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(STEP_COLUMNS)), compare=False)
    items: Sequence[Item] = ()
    alignments: Sequence[ShownAlignment] = ()
    aligned: Sequence[tuple[str, int, int]] = ()  # (task, responses with an alignment, all of its test responses)
    recipe: str = ""  # YAML
    manifest: Sequence[tuple[str, str]] = ()  # versions, digests
    stages: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)  # what is stored; any columns
    failures: Sequence[tuple[str, str]] = ()  # (what, why)


NO_EVIDENCE = Evidence()
