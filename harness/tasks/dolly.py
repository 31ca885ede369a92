"""Instruction following: databricks-dolly-15k in DSKD's split (arXiv 2406.17328), Alpaca prompts, ROUGE-L.

Trained on Dolly and evaluated on up to five test sets, each a column of its own, as in DSKD and CDM. The hub's Dolly in
a split of this project is another data set: `dolly.split` takes one or the other for training and test, never of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from harness.base.files import is_file, sha256_file
from harness.data.rows import Example, Request, answer_key
from harness.tasks import dolly_hub
from harness.tasks.alpaca import FIELDS, AlpacaRow, alpaca_examples, read_tests, read_training
from harness.tasks.base import ItemScores, Metric, Task, TaskSettings
from harness.tasks.sets import TRAINING, DataNeed, DevSplit, HubSet, PublishedSet

SetName = Literal["dolly", "selfinst", "vicuna", "sinst", "unni"]
SplitName = Literal["dskd", "hub"]


@dataclass(frozen=True)
class EvaluationSet:
    """Where the items of a test set are.

    Attributes:
        label: in tables.
        metric: its name in results.
        files: below the data folder; the first one that exists is read.
    """

    label: str
    metric: str
    files: tuple[str, ...]


SETS: Mapping[str, EvaluationSet] = {
    "dolly": EvaluationSet("Dolly", "rouge_l", ("dolly/test.jsonl", "dolly/valid.jsonl")),
    # A metric of its own, as published numbers are found by it: they are of DSKD's split.
    "dolly_hub": EvaluationSet("Dolly (hub split)", "rouge_l_hub", (dolly_hub.TEST,)),
    "selfinst": EvaluationSet("SelfInst", "rouge_l_selfinst", ("selfinst/valid.jsonl",)),
    "vicuna": EvaluationSet("Vicuna", "rouge_l_vicuna", ("vicuna/valid.jsonl",)),
    # Of items whose responses have 11 tokens or more, as both papers evaluate them.
    "sinst": EvaluationSet("S-NI", "rouge_l_sinst", ("sinst/valid_11_.jsonl",)),
    "unni": EvaluationSet("UnNI", "rouge_l_unni", ("unni/valid_11_.jsonl",)),
}


@dataclass(frozen=True)
class DollySplit:
    """A division of Dolly into rows to train on and rows to test on.

    Attributes:
        own_set: name of its test set in `SETS`.
        train_files: below the data folder; the first one that exists is read.
        protocol: what a report has to say of it.
    """

    own_set: str
    train_files: tuple[str, ...]
    protocol: tuple[str, ...] = ()


SPLITS: Mapping[str, DollySplit] = {
    "dskd": DollySplit("dolly", ("dolly/train.jsonl", "dolly/train_subset_union.jsonl")),
    "hub": DollySplit(
        "dolly_hub",
        (dolly_hub.TRAIN,),
        (
            f"Dolly (hub split), dolly.split=hub: {dolly_hub.REPOSITORY} in a split of this project, not DSKD's; "
            f"{dolly_hub.RULE}. DSKD's test rows may stand among its training rows: no number of Dolly here is to be "
            "compared with a published one.",
        ),
    ),
}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


class DollySettings(TaskSettings):
    split: SplitName = Field(
        "dskd",
        description="rows to train on and the set dolly: DSKD's split, or this project's own of the hub's Dolly (hub); "
        "never parts of both, as test rows of one may be training rows of the other",
    )
    sets: Annotated[tuple[SetName, ...], BeforeValidator(_as_list)] = Field(
        ("dolly",), min_length=1, description="test sets: dolly, selfinst, vicuna, sinst, unni"
    )
    decoding: Literal["sampling", "greedy"] = Field("sampling", description="T=1, top_p 1, top_k off; or greedy")
    sampling_seeds: Annotated[tuple[int, ...], BeforeValidator(_as_list)] = Field(
        (10,), min_length=1, description="an answer for each; scores are their mean (CDM: 10; DSKD: 10, 20, 30, 40, 50)"
    )
    prompt_tokens: int | None = Field(
        256, ge=1, description="longer prompts are cut at their end, at evaluation; null leaves them whole"
    )
    bos: bool = Field(
        True, description="BOS before plain prompts, where a tokenizer puts one; false, in training too: as in DSKD"
    )
    rouge_tokens: Literal["rouge_score", "unicode"] = Field(
        "rouge_score",
        description="words of ROUGE-L: rouge-score's, of a-z and 0-9 alone, as published; unicode: of every script",
    )
    unni_items: int = Field(1000, ge=1, description="the first N of UnNI's many items (CDM: 1,000; DSKD: 10,000)")

    @field_validator("sets", "sampling_seeds")
    @classmethod
    def _are_distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("one of them stands there twice")
        return values


class Dolly(Task[DollySettings]):
    name = "dolly"
    source = (
        "databricks-dolly-15k, CC BY-SA 3.0, in the split of github.com/songmzhang/DSKD, or, with dolly.split=hub, in "
        "one of this project (`harness data --root FOLDER --download dolly_hub`); its further test sets: "
        "Self-Instruct, Vicuna and Super-NaturalInstructions, Apache-2.0, and Unnatural Instructions, MIT"
    )
    summary = "instruction following, ROUGE-L"
    Settings = DollySettings
    train_files = SPLITS["dskd"].train_files
    test_files = SETS["dolly"].files
    fields = (FIELDS, f"{FIELDS} (output, or text, may be a list of references)")
    readers = (read_training, read_tests)
    # Of DSKD (arXiv 2406.17328) and its files, as the CDM paper takes them (arXiv 2502.11104); lengths of the files, of
    # 5,005 training rows, and for UnNI, which was not at hand, those of S-NI. The hub's Dolly has 15,011 rows.
    published: ClassVar[Mapping[str, PublishedSet]] = {
        "dolly/train.jsonl": PublishedSet("Dolly's training set", 11_435, (173, 420), (470, 557)),
        "dolly/test.jsonl": PublishedSet("Dolly's test set", 500, (167, 241), (429, 688)),
        dolly_hub.TRAIN: PublishedSet("the hub's Dolly to train on", 13_511, (173, 420), (470, 557)),
        dolly_hub.TEST: PublishedSet("the hub's Dolly to test on", dolly_hub.TEST_ROWS, (167, 241), (429, 688)),
        "selfinst/valid.jsonl": PublishedSet("SelfInst", 242, (196, 167), (294, 412)),
        "vicuna/valid.jsonl": PublishedSet("Vicuna", 80, (105, 37), (1207, 460)),
        "sinst/valid_11_.jsonl": PublishedSet("S-NI", 1694, (439, 227), (88, 44)),
        "unni/valid_11_.jsonl": PublishedSet("UnNI", 1000, (439, 227), (88, 44)),
    }
    hub_sets: ClassVar[Mapping[str, HubSet]] = {
        "dolly_hub": HubSet(
            dolly_hub.REPOSITORY,
            None,
            {"train": dolly_hub.FILES},
            dolly_hub.FIELDS,
            make=dolly_hub.split_rows,
            otherwise="a split of this project, not DSKD's",
        )
    }
    dev_splits: ClassVar[Mapping[str, DevSplit]] = {
        "dolly": DevSplit(SPLITS["dskd"].train_files, "dolly/train.jsonl", "dolly/test.jsonl", "dolly/dev.jsonl"),
        "dolly_hub": DevSplit(SPLITS["hub"].train_files, dolly_hub.TRAIN, dolly_hub.TEST, dolly_hub.DEV),
    }
    libraries = ("rouge-score",)
    scoring = frozenset({"rouge_tokens"})
    text = "instructions"
    rewards = True

    @classmethod
    def data_needs(cls, settings: TaskSettings | None = None) -> list[DataNeed]:
        train, test = cls.fields
        if isinstance(settings, DollySettings):
            trained, sets = {TRAINING: SPLITS[settings.split]}, [SETS[name] for name in _sets(settings)]
        else:
            trained = {f"{TRAINING}, {SETS[each.own_set].label}": each for each in SPLITS.values()}
            sets = list(SETS.values())
        read, read_test = cls.readers
        training = [DataNeed(what, each.train_files, train, read) for what, each in trained.items()]
        return training + [DataNeed(f"test, {each.label}", each.files, test, read_test) for each in sets]

    @property
    def split(self) -> DollySplit:
        """The split that is asked for."""
        return SPLITS[self.settings.split]

    @property
    def sets(self) -> tuple[str, ...]:
        """Names in `SETS` of the test sets that are asked for."""
        return _sets(self.settings)

    @property
    def prompt_tokens(self) -> int | None:
        return self.settings.prompt_tokens

    @property
    def samples_answers(self) -> bool:
        return self.settings.decoding == "sampling"

    @property
    def train_file(self) -> Path:
        return self._first(self.split.train_files)

    @property
    def test_file(self) -> Path:
        return self._first(SETS[self.split.own_set].files)

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        return tuple(Metric(SETS[name].metric) for name in self._sets_there())

    def training_examples(self) -> list[Example]:
        examples = alpaca_examples(self.train_file, f"{self.split.own_set}/train", self.settings.train_items)
        return [replace(example, bos=self.settings.bos) for example in examples]

    def reference_examples(self) -> list[Example]:
        """Of the first test set alone, so that bits per byte stays the same number when sets are added after it."""
        return [
            Example(item, row.prompt, row.responses[0], row.source, self.settings.bos)
            for item, row in self._items(next(iter(self._sets_there()))).items()
        ]

    def requests(self) -> list[Request]:
        """All prompts of all sets, once for each sampling seed."""
        return [
            Request(
                item,
                row.prompt,
                ("<|endoftext|>",),
                prompt_tokens=self.settings.prompt_tokens,
                seed=seed,
                bos=self.settings.bos,
            )
            for seed in self._seeds()
            for name in self._sets_there()
            for item, row in self._items(name).items()
        ]

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        """An item's score is the mean over its sampled answers."""
        from harness.evaluate import rouge

        items, tokens = {name: self._scored(name) for name in self._sets_there()}, self.settings.rouge_tokens

        def mean(answers: Mapping[str, str], item: str, row: AlpacaRow) -> float:
            return fmean(rouge.score(answers[answer_key(item, seed)], row.responses, tokens) for seed in self._seeds())

        return {
            student: ItemScores(
                {
                    SETS[name].metric: {item: mean(answers, item, row) for item, row in rows.items()}
                    for name, rows in items.items()
                }
            )
            for student, answers in outputs.items()
        }

    def reward(self, row: str, response: str) -> float:
        """ROUGE-L of the row's own response, over 100."""
        from harness.evaluate import rouge

        return rouge.score(response, [self._responses[row]], self.settings.rouge_tokens) / 100

    @cached_property
    def _responses(self) -> Mapping[str, str]:
        """Of the training rows, by id."""
        return {one.id: one.response for one in self.training_examples()}

    def identity(self) -> dict[str, Any]:
        """Settings that decide generation and scores: sampling seeds where something is sampled, say.

        DSKD's split goes without saying: its identity is what it was before there was another.
        """
        unused = {"sampling_seeds"} if self.settings.decoding == "greedy" else set()
        unused |= {"unni_items"} if "unni" not in self.settings.sets else set()
        unused |= {"split"} if self.settings.split == "dskd" else set()
        return {name: value for name, value in super().identity().items() if name not in unused}

    def training_identity(self) -> dict[str, Any]:
        split = {} if self.settings.split == "dskd" else {"split": self.settings.split}
        return super().training_identity() | {"bos": self.settings.bos} | split

    def test_digests(self) -> list[str]:
        return [sha256_file(path) for path in self._sets_there().values()]

    def protocol(self) -> list[str]:
        settings, there = self.settings, self._sets_there()
        sizes = {SETS[name].label: len(self._scored(name)) for name in there}
        words = "" if settings.rouge_tokens == "rouge_score" else ", words of every script (rouge_tokens=unicode)"
        lines = [
            f"ROUGE-L F1 with stemmer{words}, best over references, × 100, text cut at <|endoftext|>; "
            f"{', '.join(f'{label} {count} items' for label, count in sizes.items())}; Alpaca prompt, "
            f"{self._prompt_limit()}, {self._bos()}; {self._decoding()}; at most {settings.new_tokens} new tokens.",
            *self._not_scored(),
            *self.split.protocol,
        ]
        if len(settings.sets) > 1:
            lines.append(f"Bits per byte: of the references of {next(iter(sizes))}.")
        missing = [SETS[name] for name in self.sets if name not in there]
        if missing:
            named = "; ".join(f"{each.label} ({' or '.join(each.files)})" for each in missing)
            lines.append(f"Asked for and not evaluated, as the data folder has no such file: {named}.")
        return lines

    def _prompt_limit(self) -> str:
        limit = self.settings.prompt_tokens
        return "never cut" if limit is None else f"cut at its end after {limit} tokens"

    def _bos(self) -> str:
        return "BOS before it where a tokenizer puts one" if self.settings.bos else "no BOS before it, nor in training"

    def _decoding(self) -> str:
        if self.settings.decoding == "greedy":
            return "greedy"
        seeds = ", ".join(map(str, self.settings.sampling_seeds))
        several = len(self.settings.sampling_seeds) > 1
        return f"sampling at T=1, {f'mean over the seeds {seeds}' if several else f'seed {seeds}'}"

    def _seeds(self) -> tuple[int | None, ...]:
        return (None,) if self.settings.decoding == "greedy" else tuple(self.settings.sampling_seeds)

    def _sets_there(self) -> dict[str, Path]:
        """The file of each test set that is asked for and has one.

        Raises:
            HarnessError: none of them has.
        """
        found = {
            name: next((self.root / file for file in SETS[name].files if is_file(self.root / file)), None)
            for name in self.sets
        }
        there = {name: path for name, path in found.items() if path is not None}
        return there or {name: self._first(SETS[name].files) for name in self.sets[:1]}  # which raises

    def _not_scored(self) -> list[str]:
        """What is left out as no answer could raise its score: nothing, of the published sets but for one item."""
        left_out = [
            item for name in self._sets_there() for item in self._items(name).keys() - self._scored(name).keys()
        ]
        if not left_out:
            return []
        shown, more = sorted(left_out)[:5], len(left_out) - 5
        named = ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
        unicode = " dolly.rouge_tokens=unicode reads every script." if self.settings.rouge_tokens != "unicode" else ""
        return [
            f"Not scored, as their references have no word that ROUGE-L could find, so that every answer would get 0 "
            f"(DSKD counts such items as 0): {named}.{unicode}"
        ]

    def _scored(self, name: str) -> dict[str, AlpacaRow]:
        """Those of :meth:`_items` that some answer scores on."""
        from harness.evaluate import rouge

        tokens = self.settings.rouge_tokens
        return {item: row for item, row in self._items(name).items() if rouge.can_score(row.responses, tokens)}

    def _items(self, name: str) -> dict[str, AlpacaRow]:
        """Rows of a test set by the id of their item."""
        limits = [self.settings.test_items, self.settings.unni_items if name == "unni" else None]
        limit = min((limit for limit in limits if limit is not None), default=None)
        return {f"{name}/{number}": row for number, row in enumerate(read_tests(self._sets_there()[name], limit))}


def _sets(settings: DollySettings) -> tuple[str, ...]:
    """Names in `SETS` of the test sets that are asked for: `dolly` means the split's own."""
    return tuple(SPLITS[settings.split].own_set if name == "dolly" else name for name in settings.sets)
