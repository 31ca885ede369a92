"""Byte spans, groups and vocabulary maps: growth with length, against TRL, and against all pairs.

    python benchmarks/spans.py STUDENT TEACHER [--data FOLDER] [--map SOURCE TARGET] [--out spans.json]

All four are tokenizer.json files; STUDENT and TEACHER are byte-level, since TRL reads no others. FOLDER holds
gsm8k/train.jsonl; without it the project's own samples are repeated. TRL is optional; spans and groups are timed from
the same encodings, tokenisation is not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, write
from rapidfuzz.distance import Levenshtein
from tokenizers import Encoding, Tokenizer

from methods.alignment import Groups, group_bytes
from methods.maps import UNMAPPED, exact_map, nearest_map, prefix_map
from methods.vocabulary import TokenKind, Vocabulary

ANSWERS = 1000
REPEATS = 7
CHECKED = 300
SAMPLES = Path(__file__).parents[1] / "harness" / "tasks" / "samples"


def answers(data: Path | None) -> list[str]:
    """GSM8K's first answers, or the built-in ones as often as it takes."""
    rows = ((data or SAMPLES) / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["answer"] for row in rows]
    return (texts * -(-ANSWERS // len(texts)))[:ANSWERS]


def seconds(job: Callable[[], Any]) -> float:
    """The shortest of several runs: the others measure what else the machine does."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return min(times)


class Pair:
    """Two tokenizers and the encodings of the same texts."""

    def __init__(self, paths: Sequence[Path], texts: Sequence[str]) -> None:
        self.texts, self.bytes = list(texts), [text.encode() for text in texts]
        self.tokenizers = [Tokenizer.from_file(str(path)) for path in paths]
        self.vocabularies = [
            Vocabulary.of(made, path.parent.name) for made, path in zip(self.tokenizers, paths, strict=True)
        ]
        self.encodings: list[list[Encoding]] = [
            made.encode_batch(self.texts, add_special_tokens=False) for made in self.tokenizers
        ]

    @property
    def tokens(self) -> int:
        return sum(len(encoding.ids) for side in self.encodings for encoding in side)

    def ours(self) -> list[Groups]:
        student, teacher = (
            [vocabulary.ends(np.asarray(e.ids, dtype=np.int64), text) for e, text in zip(side, self.bytes, strict=True)]
            for vocabulary, side in zip(self.vocabularies, self.encodings, strict=True)
        )
        return list(map(group_bytes, student, teacher))

    def peer(self) -> list[tuple[list[list[int]], list[list[int]]]]:
        """TRL's spans and groups; its function takes a tokenizer, here one that has encoded already."""
        from trl.experimental.gold.gold_trainer import ULDLoss
        from trl.experimental.utils import encode_with_byte_offsets

        student, teacher = (
            encode_with_byte_offsets(_Encoded(made, side), self.texts)
            for made, side in zip(self.tokenizers, self.encodings, strict=True)
        )
        return [ULDLoss._align_by_byte_offsets(s[1], t[1]) for s, t in zip(student, teacher, strict=True)]


class _Encoded:
    """Gives encodings that were made before."""

    def __init__(self, tokenizer: Tokenizer, encodings: list[Encoding]) -> None:
        self.pre_tokenizer, self.decoder, self.encodings = tokenizer.pre_tokenizer, tokenizer.decoder, encodings

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Encoding]:
        return self.encodings


def growth(paths: Sequence[Path], texts: Sequence[str]) -> list[dict[str, float]]:
    """Spans and groups of one response that becomes longer."""
    print("| one response of tokens | ms | ns a token |\n|---|---|---|")
    rows = []
    for count in (1, 10, 100, 1000):
        pair = Pair(paths, ["".join(texts[:count])])
        spent = seconds(pair.ours)
        rows.append({"tokens": pair.tokens, "seconds": spent})
        print(f"| {pair.tokens:,} | {1e3 * spent:.2f} | {1e9 * spent / pair.tokens:.0f} |")
    return rows


def against_trl(paths: Sequence[Path], texts: Sequence[str]) -> dict[str, float]:
    """Spans and groups of all answers."""
    pair = Pair(paths, texts)
    found = {"answers": len(texts), "tokens": pair.tokens, "seconds": seconds(pair.ours)}
    print(f"\n{len(texts):,} answers, {pair.tokens:,} tokens on both sides: {1e3 * found['seconds']:.0f} ms", end="")
    try:
        theirs = seconds(pair.peer)
    except ImportError:
        print("; trl is not installed, so there is nothing to compare with")
        return found
    assert [groups.to_lists() for groups in pair.ours()] == pair.peer()
    from importlib.metadata import version

    times = theirs / found["seconds"]
    print(f"; trl {version('trl')} takes {1e3 * theirs:.0f} ms for the same groups: {times:.1f} times as long")
    return found | {"trl_seconds": theirs}


def measure_map(name: str, paths: Sequence[Path]) -> tuple[float, float]:
    """Seconds, and the peak memory of a fresh process in MiB, with what it takes to read both tokenizers."""
    source, target = (Vocabulary.of(Tokenizer.from_file(str(path))) for path in paths)
    started = time.perf_counter()
    {"exact": exact_map, "prefix": prefix_map, "nearest": nearest_map}[name](source, target)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def maps(paths: Sequence[Path]) -> dict[str, Any]:
    """Each vocabulary map, made in a process of its own; the nearest one's entries beside a search through all."""
    source, target = (Vocabulary.of(Tokenizer.from_file(str(path))) for path in paths)
    print(f"\n{len(source):,} tokens mapped to {len(target):,}\n\n| map | s | MiB in all |\n|---|---|---|")
    found: dict[str, Any] = {"source": len(source), "target": len(target)}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in ("exact", "prefix", "nearest"):
            spent, memory = pool.apply(measure_map, (name, paths))
            found[name] = {"seconds": spent, "process_mib": memory}
            print(f"| {name} | {spent:.2f} | {memory:.0f} |")
    mapping, exact = nearest_map(source, target), exact_map(source, target)
    text = [token.decode("utf-8", "surrogateescape") for token in target.token_bytes]
    allowed = np.flatnonzero(target.kinds <= TokenKind.FALLBACK)
    searched = np.flatnonzero((source.kinds == TokenKind.ORDINARY) & (exact == UNMAPPED))
    chosen = np.random.default_rng(0).choice(searched, min(CHECKED, searched.size), replace=False)
    started = time.perf_counter()
    for index in chosen:
        query = source.token_bytes[index].decode("utf-8", "surrogateescape")
        distances = [Levenshtein.distance(query, text[i]) for i in allowed]
        assert mapping[index] == allowed[int(np.argmin(distances))], query
    spent = time.perf_counter() - started
    whole = spent / chosen.size * searched.size
    print(f"\nAll pairs, one by one, would take {whole:.0f} s; {chosen.size} random entries are at the true minimum.")
    return found | {"all_pairs_seconds": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--map", type=Path, nargs=2, metavar=("SOURCE", "TARGET"))
    parser.add_argument("--out", type=Path, help="JSON file; by default in benchmarks/results")
    arguments = parser.parse_args()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    texts, paths = answers(arguments.data), (arguments.student, arguments.teacher)
    print(f"{machine('cpu')}, numpy {np.__version__}\n")
    found = {"growth": growth(paths, texts), "against_trl": against_trl(paths, texts)}
    found["maps"] = maps(arguments.map or paths)
    print(f"\nnumbers: {write(arguments.out, 'spans', 'cpu', found)}")


if __name__ == "__main__":
    main()
