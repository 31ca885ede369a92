"""Texts of a source whose entropy is computed exactly: what a student learnt is measured against the truth itself.

A prompt is a word of the chain (:mod:`harness.base.word_chain`), its response the words that follow. No model can have
fewer bits per byte than the chain itself, in the mean over texts; what a student has above that is what it does not
know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.base.identity import seed_of
from harness.base.word_chain import WordChain
from harness.data.rows import Example, Request
from harness.tasks.base import ItemScores, Metric, Task, TaskSettings


class KnownTruthSettings(TaskSettings):
    train_items: int = Field(4096, ge=1, description="training texts")
    test_items: int = Field(150, ge=1, description="test texts")
    new_tokens: int = Field(32, ge=1, description="the most tokens that a student may answer with")
    words: int = Field(12, ge=1, le=1000, description="of a response")
    seed: int = Field(0, description="of the texts: another one gives others of the same source")


class KnownTruth(Task[KnownTruthSettings]):
    name = "known_truth"
    source = "made by the harness, in any number; known_truth.seed draws others"
    summary = "texts of a Markov chain over words, whose entropy is known exactly"
    Settings = KnownTruthSettings
    metrics = (Metric("well_formed"),)
    train_files = ()
    test_files = ()
    chain = WordChain.drawn()

    def training_examples(self) -> list[Example]:
        return self._examples("train", self.settings.train_items)

    def question(self, example: Example) -> str:
        """The whole text: prompts are single words of the chain, and its texts are independent of one another."""
        return example.prompt + example.response

    def reference_examples(self) -> list[Example]:
        return self._examples("test", self.settings.test_items)

    def requests(self) -> list[Request]:
        return [Request(example.id, example.prompt) for example in self.reference_examples()]

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        """An answer is well formed where it has as many words as a response, all of the source's."""
        return {
            student: ItemScores({"well_formed": {item: 100.0 * self._is_well_formed(answers[item]) for item in items}})
            for items in [[request.id for request in self.requests()]]
            for student, answers in outputs.items()
        }

    def protocol(self) -> list[str]:
        settings = self.settings
        return [
            f"{settings.test_items} generated texts of a first word and {settings.words} more, seed {settings.seed}; "
            f"the source's entropy is {self.entropy_per_byte:.4f} bits a byte exactly, and what it says of these texts "
            f"is {self.true_bits_per_byte:.4f}: nobody can know more. Well formed: greedy answers of "
            f"{settings.words} known words, at most {settings.new_tokens} new tokens."
        ]

    @cached_property
    def entropy_per_byte(self) -> float:
        """Of the source: bits of a response over its bytes, both in the mean over all texts; exact."""
        words = self.settings.words
        return self.chain.entropy(words) / self.chain.mean_bytes(words)

    @cached_property
    def true_bits_per_byte(self) -> float:
        """What the source itself says of the references: the least that a model can reach on them, but for luck."""
        texts, examples = self._texts("test", self.settings.test_items), self.reference_examples()
        return sum(map(self.chain.bits, texts)) / sum(len(example.response.encode()) for example in examples)

    def training_identity(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", include={"train_items", "words", "seed"})

    def training_digest(self) -> str:
        return _digest(self.training_examples())

    def test_digests(self) -> list[str]:
        return [_digest(self.reference_examples())]

    def _examples(self, split: str, count: int) -> list[Example]:
        made = f"known_truth.seed={self.settings.seed}, {split} text"
        return [
            Example(f"known_truth/{split}/{place}", text[0], f" {' '.join(text[1:])}", f"{made} {place}")
            for place, text in enumerate(self._texts(split, count))
        ]

    def _texts(self, split: str, count: int) -> list[tuple[str, ...]]:
        """The first texts of a split; those of the other are drawn by another seed."""
        settings = self.settings
        return list(islice(self.chain.texts(settings.words, seed_of(self.name, split, settings.seed)), count))

    def _is_well_formed(self, answer: str) -> bool:
        words = answer.split()
        return len(words) == self.settings.words and set(words) <= set(self.chain.words)


def _digest(examples: list[Example]) -> str:
    rows = [[example.prompt, example.response] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
