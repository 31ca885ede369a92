"""Alignment of two tokenisations, and CDM's map of tokens, against the plain ways to do the same, as ratios of time.

    python benchmarks/alignment.py [--tokenizers student/tokenizer.json teacher/tokenizer.json] [--repeats 5]
                                   [--responses 8] [--out alignment.json]

The text is the responses of the built-in samples, as often as it takes. Without --tokenizers, a byte-level BPE and a
unigram tokenizer are trained on them first. Both ways must give the same result. Each section of :data:`SECTIONS`
prints one table; the JSON file holds the same rows. Times are the process's own CPU time, which other processes change
less than the clock's, of one thread; the best of the repeats counts, for the plain loops the best of two at most.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, parsed, write
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from harness.tasks.base import samples_folder
from methods.cdm import CDM
from methods.library.alignment import Groups, group_bytes
from methods.library.contextual import contextual
from methods.library.maps import UNMAPPED, exact_map
from methods.library.vocabulary import TokenizerPair, Vocabulary
from methods.library.warping import EditCosts, token_texts, warp_all

TRAINED_SIZE = 6000


@dataclass(frozen=True)
class Cut:
    """The first tokens of a response: ids of student and teacher, int64, and the bytes that each side's spell."""

    ids: tuple[np.ndarray, np.ndarray]
    texts: tuple[bytes, bytes]


@dataclass(frozen=True)
class Bench:
    """What every section measures on.

    Attributes:
        student, teacher: vocabularies.
        ids, ends: by response and side, int64: tokens, more than 512 of each, and where they end.
        texts: by response, UTF-8.
        repeats: how often each way is timed; the best counts.
    """

    student: Vocabulary
    teacher: Vocabulary
    ids: list[tuple[np.ndarray, ...]]
    ends: list[tuple[np.ndarray, ...]]
    texts: list[bytes]
    repeats: int

    def cut(self, size: int) -> list[Cut]:
        """Every response, as many tokens on each side."""
        return [
            Cut((ids[0][:size], ids[1][:size]), (text[: ends[0][size - 1]], text[: ends[1][size - 1]]))
            for ids, ends, text in zip(self.ids, self.ends, self.texts, strict=True)
        ]


Row = dict[str, float | int | str]
Section = Callable[[Bench], list[Row]]


def row(what: str, size: str, tokens: int, plain: float, ours: float) -> Row:
    """One line of a table: seconds become milliseconds, their ratio, and our tokens a second on one core."""
    return {
        "what": what,
        "size": size,
        "plain ms": plain * 1e3,
        "ours ms": ours * 1e3,
        "plain / ours": plain / ours,
        "tokens/s": tokens / ours,
    }


def time_warping(bench: Bench) -> list[Row]:
    """Paths by edit distances: two loops over all cells, one edit distance each, against a batch at once."""
    costs = EditCosts(bench.student, bench.teacher)
    texts = token_texts(bench.student), token_texts(bench.teacher)
    found = []
    for size in (128, 256, 512):
        pairs = [cut.ids for cut in bench.cut(size)]
        names = [([texts[0][i] for i in ours], [texts[1][i] for i in theirs]) for ours, theirs in pairs]
        slow, expected = timed(lambda names=names: [naive_warping(*pair) for pair in names], min(bench.repeats, 2))
        fast, paths = timed(lambda pairs=pairs: warp_all([costs.costs(*pair) for pair in pairs]), bench.repeats)
        assert [list(zip(*(side.tolist() for side in path), strict=True)) for path in paths] == expected
        found.append(row("time warping", f"{len(pairs)} x {size} tokens a side", 2 * size * len(pairs), slow, fast))
    return found


def spans_and_groups(bench: Bench) -> list[Row]:
    """Byte spans and the groups that close on shared bytes: a loop over tokens and growing texts against arrays."""
    found = []
    for size in (128, 512):
        pairs = bench.cut(size)
        fast, groups = timed(lambda pairs=pairs: [byte_groups(bench, cut) for cut in pairs], bench.repeats)
        slow, lists = timed(lambda pairs=pairs: [naive_groups(bench, *cut.ids) for cut in pairs], min(bench.repeats, 2))
        assert [one.to_lists() for one in groups] == lists
        found.append(row("spans and groups", f"{len(pairs)} x {size} tokens a side", 2 * size * len(pairs), slow, fast))
    return found


def contextual_map(bench: Bench) -> list[Row]:
    """CDM's map at each position, both ways: every edit distance of k x k tokens against a chunk of positions at once.

    Likely tokens are drawn from the text's, those with the position's first letter first, so that they resemble.
    """
    method = CDM()
    method.prepare(TokenizerPair(bench.student, bench.teacher))
    texts = token_texts(bench.teacher), token_texts(bench.student)
    maps = [spelt_alike(*pair) for pair in ((bench.teacher, bench.student), (bench.student, bench.teacher))]
    random = np.random.default_rng(0)
    found = []
    for positions, k in ((32, 100), (256, 100)):
        letters = random.choice(list("abcdefghilmnoprstw"), positions)
        ids = [torch.from_numpy(np.stack([likely(side, letter, k, random) for letter in letters])) for side in texts]
        fast, mapped = timed(lambda ids=ids: contextual(*ids, method.to_student, method.to_teacher, 0.3), bench.repeats)
        some = min(positions, 32)  # the plain way takes seconds; its time is that of as many positions
        slow, expected = timed(
            lambda ids=ids, some=some: [naive_map(*ids, texts, maps, p) for p in range(some)], min(bench.repeats, 2)
        )
        assert [(mapped[0][p].tolist(), mapped[1][p].tolist()) for p in range(some)] == expected
        size = f"{positions} positions, k = {k}"
        found.append(row("contextual map", size, positions, slow * positions / some, fast))
    return found


def likely(texts: Sequence[str], letter: str, k: int, random: np.random.Generator) -> np.ndarray:
    """int64 [k]: different tokens, half of them with one first letter where there are as many."""
    alike = np.asarray([i for i, text in enumerate(texts) if text.startswith(letter)])
    chosen = random.permutation(alike)[: k // 2]
    others = random.permutation(np.setdiff1d(np.arange(len(texts)), chosen))[: k - chosen.size]
    return random.permutation(np.concatenate([chosen, others]))


def spelt_alike(source: Vocabulary, target: Vocabulary) -> list[int]:
    """CDM's static partners: tokens that spell the same bytes, but for a lone space, which no token stands for."""
    found = exact_map(source, target).tolist()
    return [UNMAPPED if spelling == b" " else to for to, spelling in zip(found, source.token_bytes, strict=True)]


def naive_map(
    theirs: torch.Tensor, ours: torch.Tensor, texts: Sequence[Sequence[str]], maps: Sequence[Sequence[int]], p: int
) -> tuple[list[int], list[int]]:
    """Partners of one position's teacher and student tokens: exact ones, else the nearest free pairs first."""
    sides = theirs[p].tolist(), ours[p].tolist()
    both = []
    for one in (0, 1):
        source, target, static = sides[one], sides[1 - one], maps[one]
        partner = {s: static[s] for s in source if static[s] != UNMAPPED}
        taken, pairs = set(partner.values()), []
        for i, s in enumerate(source):
            for j, t in enumerate(target):
                left, right = texts[one][s], texts[1 - one][t]
                if s not in partner and (left or right):
                    distance = Levenshtein.distance(left, right) / (len(left) + len(right))
                    if distance < 0.3:
                        pairs.append((distance, i, j))
        for _, i, j in sorted(pairs):
            if source[i] not in partner and target[j] not in taken:
                partner[source[i]] = target[j]
                taken.add(target[j])
        both.append([partner.get(s, UNMAPPED) for s in source])
    return both[0], both[1]


def byte_groups(bench: Bench, cut: Cut) -> Groups:
    student, teacher = (
        vocabulary.ends(ids, text)
        for vocabulary, ids, text in zip((bench.student, bench.teacher), cut.ids, cut.texts, strict=True)
    )
    return group_bytes(student, teacher)


def naive_groups(bench: Bench, ours: np.ndarray, theirs: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
    """The walk of two pointers that the field's scripts write, over the texts that both sides have read so far."""
    sides = (bench.student, bench.teacher)
    groups: tuple[list[list[int]], list[list[int]]] = ([], [])
    open_groups: tuple[list[int], list[int]] = ([], [])
    read, place = [b"", b""], [0, 0]
    ids = ours.tolist(), theirs.tolist()
    while place[0] < len(ids[0]) or place[1] < len(ids[1]):
        behind = 0 if len(read[0]) <= len(read[1]) else 1
        if place[behind] == len(ids[behind]):
            break
        piece = sides[behind].token_bytes[ids[behind][place[behind]]]
        if place[behind] == 0 and sides[behind].dummy_space != "never":
            piece = piece.removeprefix(b" ")
        read[behind] += piece
        open_groups[behind].append(place[behind])
        place[behind] += 1
        if read[0] == read[1]:
            for made, members in zip(groups, open_groups, strict=True):
                made.append(list(members))
                members.clear()
    return groups


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


SECTIONS: list[Section] = [time_warping, spans_and_groups, contextual_map]


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Best CPU seconds of some calls, and what the last one gives."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.process_time()
        result = call()
        best = min(best, time.process_time() - started)
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
    parser.add_argument("--responses", type=int, default=8, help="in a batch")
    arguments = parsed(parser)
    arguments.device = "cpu"
    torch.set_num_threads(1)
    text = sample_text()
    pair = [Tokenizer.from_file(str(p)) for p in arguments.tokenizers] if arguments.tokenizers else trained(text)
    vocabularies = [Vocabulary.of(made, name) for made, name in zip(pair, ("student", "teacher"), strict=True)]
    parts = text.split("\n\n")
    step = max(1, len(parts) // arguments.responses)
    texts = ["\n\n".join(parts[k * step :] + parts[: k * step])[:4000] for k in range(arguments.responses)]
    ids = [
        tuple(np.asarray(made.encode(one, add_special_tokens=False).ids, dtype=np.int64) for made in pair)
        for one in texts
    ]
    ends = [
        tuple(v.ends(side, one.encode()) for v, side in zip(vocabularies, sides, strict=True))
        for one, sides in zip(texts, ids, strict=True)
    ]
    bench = Bench(*vocabularies, ids, ends, [one.encode() for one in texts], arguments.repeats)
    where = f"one thread, Python {platform.python_version()}, numpy {np.__version__}"
    sizes = f"vocabularies of {len(vocabularies[0]):,} and {len(vocabularies[1]):,} tokens"
    print(f"{machine('cpu')}, {where}; {sizes}\n")
    print("| what | size | plain ms | ours ms | plain / ours | ours, tokens/s a core |\n|---|---|---|---|---|---|")
    rows = [made for section in SECTIONS for made in section(bench)]
    for made in rows:
        row = "{plain ms:,.1f} | {ours ms:,.2f} | {plain / ours:,.0f} | {tokens/s:,.0f}".format(**made)
        print(f"| {made['what']} | {made['size']} | {row} |")
    numbers = write(arguments, "alignment", {"where": where, "vocabularies": sizes, "rows": rows})
    print(f"\nnumbers: {numbers}")


if __name__ == "__main__":
    main()
