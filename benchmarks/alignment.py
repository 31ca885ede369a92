"""Alignment of two tokenisations against the plain ways to do the same, as ratios of time.

    python benchmarks/alignment.py [--tokenizers student/tokenizer.json teacher/tokenizer.json] [--repeats 5]

The text is the responses of the built-in samples. Without --tokenizers, a byte-level BPE and a unigram tokenizer are
trained on them first. Both ways must give the same result. Each section of :data:`SECTIONS` prints one table.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from harness.tasks import samples_folder
from methods.vocabulary import Vocabulary
from methods.warping import EditCosts, token_texts, warp

TRAINED_SIZE = 6000


@dataclass(frozen=True)
class Bench:
    """What every section measures on.

    Attributes:
        student, teacher: vocabularies.
        student_ids, teacher_ids: int64, one text of more than 512 tokens on both sides.
        text: its UTF-8 bytes.
        repeats: how often each way is timed; the best counts.
    """

    student: Vocabulary
    teacher: Vocabulary
    student_ids: np.ndarray
    teacher_ids: np.ndarray
    text: bytes
    repeats: int


Section = Callable[[Bench], None]


def time_warping(bench: Bench) -> None:
    """A path by edit distances: all cells of two loops, one edit distance each, against unique pairs and rows."""
    costs = EditCosts(bench.student, bench.teacher)
    texts = token_texts(bench.student), token_texts(bench.teacher)
    print("| time warping, tokens a side | naive ms | ours ms | naive / ours |\n|---|---|---|---|")
    for size in (128, 256, 512):
        ours, theirs = bench.student_ids[:size], bench.teacher_ids[:size]
        names = [texts[0][i] for i in ours], [texts[1][i] for i in theirs]
        slow, expected = timed(lambda names=names: naive_warping(*names), bench.repeats)
        fast, found = timed(lambda ours=ours, theirs=theirs: warp(costs.costs(ours, theirs)), bench.repeats)
        assert list(zip(*(side.tolist() for side in found), strict=True)) == expected
        print(f"| {size} | {slow * 1e3:.0f} | {fast * 1e3:.1f} | {slow / fast:.0f} |")


def naive_warping(student: list[str], teacher: list[str]) -> list[tuple[int, int]]:
    """Links (teacher, student) of the cheapest path; among equals back diagonally, else by a teacher step."""
    total: list[list[float]] = [[0.0] + [float("inf")] * len(student)]
    for left in teacher:
        above, row = total[-1], [float("inf")]
        for j, right in enumerate(student):
            row.append(Levenshtein.distance(left, right) + min(above[j], above[j + 1], row[j]))
        total.append(row)
    i, j = len(teacher), len(student)
    links = [(i - 1, j - 1)]
    while (i, j) != (1, 1):
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: total[cell[0]][cell[1]])
        links.append((i - 1, j - 1))
    return links[::-1]


SECTIONS: list[Section] = [time_warping]


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Best seconds of some calls, and what the last one gives."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - started)
    return best, result


def sample_text() -> str:
    """Responses of the built-in samples, one after the other."""
    files = [samples_folder() / task / "train.jsonl" for task in ("dolly", "gsm8k")]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return "\n\n".join(row.get("output") or row["answer"] for row in rows)


def trained(text: str) -> tuple[Tokenizer, Tokenizer]:
    """A byte-level BPE tokenizer, and a unigram one with ``▁`` and byte fallback."""
    student = Tokenizer(models.BPE())
    student.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    student.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    student.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=TRAINED_SIZE, initial_alphabet=alphabet, show_progress=False)
    )
    teacher = Tokenizer(models.Unigram())
    teacher.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    teacher.decoder = decoders.Metaspace(prepend_scheme="never")
    teacher.train_from_iterator(
        [text],
        trainers.UnigramTrainer(
            vocab_size=TRAINED_SIZE, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return student, teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizers", nargs=2, type=Path, metavar=("STUDENT", "TEACHER"), help="tokenizer.json files")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    text = sample_text()
    pair = [Tokenizer.from_file(str(p)) for p in arguments.tokenizers] if arguments.tokenizers else trained(text)
    vocabularies = [Vocabulary.of(made, name) for made, name in zip(pair, ("student", "teacher"), strict=True)]
    ids = [np.asarray(made.encode(text, add_special_tokens=False).ids) for made in pair]
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(f"vocabularies of {len(vocabularies[0]):,} and {len(vocabularies[1]):,} tokens\n")
    for section in SECTIONS:
        section(Bench(*vocabularies, *ids, text.encode(), arguments.repeats))


if __name__ == "__main__":
    main()
