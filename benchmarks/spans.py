"""Byte spans, groups and vocabulary maps: growth with length, against TRL, and against all pairs.

    python benchmarks/spans.py [--student-tokenizer FILE --teacher-tokenizer FILE] [--map SOURCE TARGET] [--data FOLDER]

Tokenizers are built in, or tokenizer.json files that are byte-level, since TRL reads no others; SOURCE and TARGET may
be of any kind. FOLDER holds gsm8k/train.jsonl; without it the project's own samples are repeated. TRL is optional;
spans and groups are timed from the same encodings, tokenisation is not counted. Times are processor time; the nearest
map measures its distances on all cores, whose times are added up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Place,
    add_real_inputs,
    cost,
    machine,
    markdown,
    parsed,
    peer,
    peer_version,
    read_tokenizer,
    rows_of_text,
    trained_tokenizer,
    write,
)
from rapidfuzz.distance import Levenshtein
from tokenizers import Encoding, Tokenizer

from methods.library.alignment import Groups, group_bytes
from methods.library.maps import UNMAPPED, exact_map, nearest_map, prefix_map
from methods.library.vocabulary import TokenKind, Vocabulary

ANSWERS = 1000
CHECKED = 300
SIZES = {"student": 20_000, "teacher": 16_000}
"""Tokens of the built-in tokenizers."""
MAPS = {"exact": exact_map, "prefix": prefix_map, "nearest": nearest_map}
seconds = partial(cost, device="cpu", most=7)


class Pair:
    """Two tokenizers and the encodings of the same texts."""

    def __init__(self, paths: Sequence[Path], texts: Sequence[str]) -> None:
        self.texts, self.bytes = list(texts), [text.encode() for text in texts]
        self.tokenizers = [Tokenizer.from_file(str(path)) for path in paths]
        self.vocabularies = [Vocabulary.of(made, path.stem) for made, path in zip(self.tokenizers, paths, strict=True)]
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
        from trl.experimental.utils import encode_with_byte_offsets

        student, teacher = (
            encode_with_byte_offsets(_Encoded(made, side), self.texts)
            for made, side in zip(self.tokenizers, self.encodings, strict=True)
        )
        return [peer().ULDLoss._align_by_byte_offsets(s[1], t[1]) for s, t in zip(student, teacher, strict=True)]


class _Encoded:
    """Gives encodings that were made before."""

    def __init__(self, tokenizer: Tokenizer, encodings: list[Encoding]) -> None:
        self.pre_tokenizer, self.decoder, self.encodings = tokenizer.pre_tokenizer, tokenizer.decoder, encodings

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Encoding]:
        return self.encodings


def growth(paths: Sequence[Path], texts: Sequence[str]) -> list[dict[str, float]]:
    """Spans and groups of one response that becomes longer."""
    rows = []
    for count in (1, 10, 100, 1000):
        pair = Pair(paths, ["".join(texts[:count])])
        rows.append({"tokens": pair.tokens, "seconds": seconds(pair.ours).seconds})
    table = [[row["tokens"], row["seconds"] * 1e3, row["seconds"] / row["tokens"] * 1e9] for row in rows]
    print(markdown(["one response of tokens", "ms", "ns a token"], table))
    return rows


def against_trl(paths: Sequence[Path], texts: Sequence[str]) -> dict[str, float]:
    """Spans and groups of all answers."""
    pair = Pair(paths, texts)
    found = {"answers": len(texts), "tokens": pair.tokens, "seconds": seconds(pair.ours).seconds}
    said = f"\n{len(texts):,} answers, {pair.tokens:,} tokens on both sides: {1e3 * found['seconds']:.0f} ms"
    if peer() is None:
        print(f"{said}; trl is not installed, so there is nothing to compare with")
        return found
    assert [groups.to_lists() for groups in pair.ours()] == pair.peer()
    found["trl_seconds"] = theirs = seconds(pair.peer).seconds
    times = theirs / found["seconds"]
    print(f"{said}; trl {peer_version()} takes {1e3 * theirs:.0f} ms for the same groups: {times:.1f} times as long")
    return found


def measure_map(name: str, paths: Sequence[Path]) -> dict[str, float]:
    """Seconds of making a map once, and peak memory above both vocabularies'."""
    source, target = (Vocabulary.of(Tokenizer.from_file(str(path))) for path in paths)
    spent = cost(lambda: MAPS[name](source, target), "cpu", most=1)
    return {"seconds": spent.seconds, "bytes": spent.bytes}


def maps(paths: Sequence[Path]) -> dict[str, Any]:
    """Each vocabulary map, made in a process of its own; the nearest one's entries beside a search through all."""
    source, target = (Vocabulary.of(Tokenizer.from_file(str(path))) for path in paths)
    place = Place("cpu")
    made = {name: place.run(measure_map, name, paths) for name in MAPS}
    print(f"\n{len(source):,} tokens mapped to {len(target):,}\n")
    print(
        markdown(["map", "s", "peak MiB"], [[name, row["seconds"], row["bytes"] / 2**20] for name, row in made.items()])
    )
    mapping, exact = nearest_map(source, target), exact_map(source, target)
    text = [token.decode("utf-8", "surrogateescape") for token in target.token_bytes]
    allowed = np.flatnonzero(target.kinds <= TokenKind.FALLBACK)
    searched = np.flatnonzero((source.kinds == TokenKind.ORDINARY) & (exact == UNMAPPED))
    chosen = np.random.default_rng(0).choice(searched, min(CHECKED, searched.size), replace=False)
    started = time.process_time()
    for index in chosen:
        query = source.token_bytes[index].decode("utf-8", "surrogateescape")
        distances = [Levenshtein.distance(query, text[i]) for i in allowed]
        assert mapping[index] == allowed[int(np.argmin(distances))], query
    whole = (time.process_time() - started) / chosen.size * searched.size
    print(f"\nAll pairs, one by one, would take {whole:.0f} s; {chosen.size} random entries are at the true minimum.")
    return {"source": len(source), "target": len(target), **made, "all_pairs_seconds": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_real_inputs(parser)
    parser.add_argument("--size", type=int, help="tokens of either built-in tokenizer, in place of 20,000 and 16,000")
    parser.add_argument("--map", type=Path, nargs=2, metavar=("SOURCE", "TARGET"), help="map other tokenizers' tokens")
    arguments = parsed(parser)
    arguments.device = "cpu"
    torch.set_num_threads(1)
    texts = [answer for _, answer in rows_of_text(arguments.data)]
    texts = (texts * -(-ANSWERS // len(texts)))[:ANSWERS]
    given = {"student": arguments.student_tokenizer, "teacher": arguments.teacher_tokenizer}
    print(f"{machine('cpu')}, numpy {np.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{role}.json" for role in given]
        for (role, path), copy in zip(given.items(), paths, strict=True):
            made = read_tokenizer(path) if path else trained_tokenizer(role, arguments.size or SIZES[role])
            made.backend_tokenizer.save(str(copy))
        found = {"growth": growth(paths, texts), "against_trl": against_trl(paths, texts)}
        found |= {"maps": maps(arguments.map or paths)}
    print(f"\nnumbers: {write(arguments, 'spans', found)}")


if __name__ == "__main__":
    main()
