"""Grade-school mathematics (GSM8K, arXiv 2110.14168), scored by lm-evaluation-harness's own task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from harness.base.files import sha256_file
from harness.data.rows import Example, Request
from harness.evaluate import gsm8k
from harness.tasks.base import ItemScores, Metric, Task, TaskSettings
from harness.tasks.sets import DevSplit, HubSet, PublishedSet


class GSM8KSettings(TaskSettings):
    template: Literal["bare", "lm_eval"] = Field(
        "lm_eval", description="how training prompts read: the bare question (the paper), or as lm-eval asks"
    )
    few_shot: int = Field(5, ge=0, description="solved examples before the question, at evaluation")
    few_shot_seed: int = Field(1234, description="lm-eval's seed for choosing them")


class GSM8K(Task[GSM8KSettings]):
    name, source = "gsm8k", "github.com/openai/grade-school-math, MIT"
    summary = "grade-school mathematics, exact match"
    Settings = GSM8KSettings
    metrics = (Metric("exact_match_strict"), Metric("exact_match_flexible", headline=False))
    train_files = ("gsm8k/train.jsonl",)
    test_files = ("gsm8k/test.jsonl",)
    fields = ("question, answer", "question, answer")
    readers = (gsm8k.read_training, gsm8k.read_tests)
    published: ClassVar[Mapping[str, PublishedSet]] = {  # arXiv 2110.14168; lengths of its files
        "gsm8k/train.jsonl": PublishedSet("GSM8K's training set", 7473, (235, 94), (288, 144)),
        "gsm8k/test.jsonl": PublishedSet("GSM8K's test set", 1319, (240, 98), (293, 142)),
    }
    hub_sets: ClassVar[Mapping[str, HubSet]] = {
        "gsm8k": HubSet(
            "openai/gsm8k",
            "main",
            {"train": train_files, "test": test_files},
            ("question", "answer"),
            # of github.com/openai/grade-school-math, commit 3101c7d5
            digests={
                "gsm8k/train.jsonl": "6043ef64147b59871f4fd3adf669c306fe0a4c27e5a5c4bfb761f3f084895a13",
                "gsm8k/test.jsonl": "752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac",
            },
        )
    }
    dev_splits: ClassVar[Mapping[str, DevSplit]] = {
        "gsm8k": DevSplit(train_files, "gsm8k/train.jsonl", "gsm8k/test.jsonl")
    }
    libraries = ("lm-eval",)
    text = "mathematics"
    rewards = True

    @classmethod
    def made_up_row(cls, file: str, number: int, prompt: str, response: str) -> dict[str, Any]:
        return {"question": prompt, "answer": f"{response[7:]}\n#### 1"}

    def training_examples(self) -> list[Example]:
        return self._examples(gsm8k.read_training(self.train_file, self.settings.train_items), "gsm8k/train")

    def reference_examples(self) -> list[Example]:
        return self._examples(gsm8k.read_tests(self.test_file, self.settings.test_items), "gsm8k/test")

    def training_identity(self) -> dict[str, Any]:
        return super().training_identity() | {"template": self.settings.template}

    def test_digests(self) -> list[str]:
        # few-shot examples come from the training file
        return [*super().test_digests(), *([sha256_file(self.train_file)] if self.settings.few_shot else [])]

    def requests(self) -> list[Request]:
        settings = self.settings
        return [
            Request(request.id, request.prompt, request.stop, rendered=True)
            for request in gsm8k.requests(
                self.train_file,
                self.test_file,
                few_shot=settings.few_shot,
                few_shot_seed=settings.few_shot_seed,
                limit=settings.test_items,
            )
        ]

    def request_sizes(self) -> Sequence[int]:
        """A question after ``few_shot`` rows of the mean size; lm-eval takes long to load."""
        rows = [prompt + response for prompt, response in self.text_sizes("train")]
        shots = self.settings.few_shot * (sum(rows) // max(len(rows), 1) + 2)
        return [prompt + shots for prompt, _ in self.text_sizes("test")]

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        settings = self.settings
        scores = {}
        for student, answers in outputs.items():
            items = gsm8k.score(
                self.train_file,
                self.test_file,
                answers,
                few_shot=settings.few_shot,
                few_shot_seed=settings.few_shot_seed,
                limit=settings.test_items,
            )
            scores[student] = ItemScores(
                {
                    "exact_match_strict": {item.id: 100 * item.scores["strict_match"] for item in items},
                    "exact_match_flexible": {item.id: 100 * item.scores["flexible_extract"] for item in items},
                }
            )
        return scores

    def reward(self, row: str, response: str) -> float:
        """Whether the last number is the row's, as lm-eval's flexible filter finds it."""
        said = gsm8k.final_number(response)
        return float(said is not None and said == self._answers[row])

    @cached_property
    def _answers(self) -> Mapping[str, str | None]:
        """The last number of each training row."""
        return {one.id: gsm8k.final_number(one.response) for one in self.training_examples()}

    def protocol(self) -> list[str]:
        trained = "as lm-eval asks" if self.settings.template == "lm_eval" else "the bare question"
        count = len(gsm8k.read_tests(self.test_file, self.settings.test_items))
        return [
            f"lm-evaluation-harness's gsm8k, version {gsm8k.task_version()}, {self.settings.few_shot}-shot (seed "
            f"{self.settings.few_shot_seed}), greedy, {count} items, at most {self.settings.new_tokens} new tokens; "
            f"exact match, strict and flexible filters; trained with the prompt {trained}."
        ]

    def _examples(self, rows: Sequence[Mapping[str, Any]], prefix: str) -> list[Example]:
        asked = self.settings.template == "lm_eval"
        return [
            Example(
                f"{prefix}/{number}",
                f"Question: {row['question']}\nAnswer:" if asked else row["question"],
                # lm-eval joins question and answer with a space, which belongs to the answer's first token.
                f" {row['answer']}" if asked and row["answer"] else row["answer"],
                row["source"],
            )
            for number, row in enumerate(rows)
        ]
