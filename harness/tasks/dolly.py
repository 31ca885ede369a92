"""Instruction following: databricks-dolly-15k in DSKD's split (arXiv 2406.17328), Alpaca prompts, ROUGE-L."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.batches import Example
from harness.errors import HarnessError
from harness.tasks.alpaca import alpaca_prompt
from harness.tasks.base import ItemScores, Metric, Request, Task, TaskSettings, read_rows


class DollySettings(TaskSettings):
    decoding: Literal["sampling", "greedy"] = Field("sampling", description="T=1, top_p 1, top_k off; or greedy")
    sampling_seed: int = Field(10, description="seed of the sampled answers (the paper's script: 10)")


class Dolly(Task):
    name, source = "dolly", "databricks-dolly-15k, CC BY-SA 3.0, in the split of github.com/songmzhang/DSKD"
    summary = "instruction following, ROUGE-L"
    Settings = DollySettings
    metrics = (Metric("rouge_l"),)
    train_files = ("dolly/train.jsonl", "dolly/train_subset_union.jsonl")
    test_files = ("dolly/test.jsonl", "dolly/valid.jsonl")
    libraries = ("rouge-score",)
    scorers = ("harness.evaluate.rouge",)

    def training_examples(self) -> list[Example]:
        fields = {"instruction": str, "output": str}
        rows = read_rows(self.train_file, fields, self.settings.train_items)
        return [
            Example(f"dolly/train/{number}", _prompt(row), row["output"], row["source"])
            for number, row in enumerate(rows)
        ]

    def reference_examples(self) -> list[Example]:
        return [
            Example(f"dolly/{number}", _prompt(row), _references(row)[0], row["source"])
            for number, row in enumerate(self._test_rows())
        ]

    def requests(self) -> list[Request]:
        return [Request(f"dolly/{n}", _prompt(row), ("<|endoftext|>",)) for n, row in enumerate(self._test_rows())]

    def score(self, outputs: Mapping[str, Mapping[str, str]], work: Path, unsafe: bool) -> Mapping[str, ItemScores]:
        from harness.evaluate import rouge

        references = {f"dolly/{number}": _references(row) for number, row in enumerate(self._test_rows())}
        return {
            student: ItemScores(
                {"rouge_l": {item: rouge.score(answers[item], references[item]) for item in references}}
            )
            for student, answers in outputs.items()
        }

    def protocol(self) -> list[str]:
        greedy = self.settings.decoding == "greedy"
        decoding = "greedy" if greedy else f"sampling at T=1, seed {self.settings.sampling_seed}"
        return [
            f"ROUGE-L F1 with stemmer, best over references, × 100; {len(self._test_rows())} items; Alpaca prompt; "
            f"{decoding}; at most {self.settings.new_tokens} new tokens."
        ]

    def _test_rows(self) -> list[dict[str, Any]]:
        rows = read_rows(self.test_file, {"instruction": str, "output": (str, list)}, self.settings.test_items)
        for row in rows:
            if not _references(row) or not all(isinstance(text, str) and text for text in _references(row)):
                raise HarnessError(f"{row['source']}, field 'output'", f"{row['output']!r:.40}", "one or more texts")
        return rows


def _prompt(row: Mapping[str, Any]) -> str:
    return alpaca_prompt(row["instruction"], row.get("input") or "")


def _references(row: Mapping[str, Any]) -> list[str]:
    return [row["output"]] if isinstance(row["output"], str) else list(row["output"])
