"""Distance of a model from a teacher: by the model's whole logits, by hand on small ends, 0 from itself."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.rows import Example
from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.templates import TextSide
from harness.data.tokens import STUDENT, TokenizedExample, tokenize
from harness.evaluate.bits_per_byte import measure as bits
from harness.evaluate.divergence import Taught, chunk_difference, measure
from harness.evaluate.references import RowsRead
from harness.models.heads import Head
from harness.store.artefacts import Apart
from tests.tiny import model, tokenizer

TEXTS = [("Add.", "three apples and two pears"), ("Say it:", "naïve café 🌈"), ("", "a"), ("Long", "x " * 60)]


def side(family: str) -> TextSide:
    return TextSide(tokenizer(family), template="plain", name=family)


def distances(
    tmp_path: Path, student: str, teacher: str, alike: bool, other: int = 1
) -> tuple[list[Apart], list[TokenizedExample], tuple[Any, Any]]:
    sides = {STUDENT: side(student), "cross": side(teacher)}
    rows = [Example(str(n), prompt or "p", text) for n, (prompt, text) in enumerate(TEXTS)]
    examples = tokenize(rows, sides, 60)
    models = [model("llama", len(sides[STUDENT].vocabulary), seed=0).eval()]
    models.append(model("gemma2", len(sides["cross"].vocabulary), seed=other).eval() if other else models[0])
    store_rows(models[1], "cross", examples, tmp_path, pad=0)
    taught = Taught("cross", Head.of(models[1]), StoredRows(tmp_path), alike)
    (found,) = measure(models[0], [taught], examples, pad=0, batch_size=2)
    return found, examples, (models[0], models[1])


@torch.no_grad()
def log_probs(made: Any, example: TokenizedExample, role: str) -> torch.Tensor:
    """[n, vocabulary]: of the model's own logits, one response at a time."""
    tokens = example.sides[role]
    logits = made(torch.from_numpy(tokens.sequence)[None]).logits[0].double()
    return logits.log_softmax(-1)[tokens.prompt.size - 1 : tokens.length - 1]


def test_chunks_are_those_of_whole_logits_between_common_bytes(tmp_path: Path) -> None:
    found, examples, models = distances(tmp_path, "byte_level", "unigram", alike=False)
    assert [one.id for one in found] == ["0", "1", "2"]  # the limit cuts the last
    for one, example in zip(found, examples, strict=False):
        sums = []
        for role, made in zip((STUDENT, "cross"), models, strict=True):
            tokens = example.sides[role]
            rows = log_probs(made, example, role)
            at = {-1: 0.0}  # before the response; a dummy prefix ends at 0
            for place, (token, end) in enumerate(zip(tokens.response[:-1], tokens.ends[:-1], strict=True)):
                at[int(end)] = at[max(at)] + float(rows[place, token])
            sums.append(at)
        common = sorted(sums[0].keys() & sums[1].keys())
        pieces = [abs((sums[0][b] - sums[0][a]) - (sums[1][b] - sums[1][a])) for a, b in itertools.pairwise(common)]
        assert one.chunks == pytest.approx(sum(pieces) / math.log(2), rel=1e-4)
        assert (one.bytes, one.kl) == (example.response_bytes, None)


def test_kl_is_that_of_whole_distributions(tmp_path: Path) -> None:
    found, examples, models = distances(tmp_path, "byte_level", "byte_level", alike=True)
    for one, example in zip(found, examples, strict=False):
        p, q = log_probs(models[1], example, "cross"), log_probs(models[0], example, STUDENT)
        assert one.kl == pytest.approx(float((p.exp() * (p - q)).sum()) / math.log(2), rel=1e-4)
        assert one.tokens == len(p)


def test_a_model_is_at_no_distance_from_itself(tmp_path: Path) -> None:
    found, examples, (student, _) = distances(tmp_path, "byte_level", "byte_level", alike=True, other=0)
    assert max(one.chunks for one in found) < 1e-3
    assert max(abs(one.kl or 0.0) for one in found) < 1e-4
    assert min(one.bits for one in bits(student, examples, pad=0)) > 1  # of likelihoods that are far from 1


def test_teachers_beside_each_other_are_as_alone_and_say_theirs_once(tmp_path: Path) -> None:
    """A second student finds what the first one's teachers said, without asking their heads again."""
    alone, examples, (student, teacher) = distances(tmp_path, "byte_level", "unigram", alike=False)
    taught = Taught("cross", Head.of(teacher), StoredRows(tmp_path), False)
    both = measure(student, [taught, taught], examples, pad=0, batch_size=2)
    assert both == [alone, alone]
    asked = dataclasses.replace(
        taught, head=dataclasses.replace(taught.head, weight=torch.zeros_like(taught.head.weight))
    )
    assert measure(student, [asked], examples, pad=0, batch_size=2) == [alone]
    assert measure(student, [dataclasses.replace(asked, said={})], examples, pad=0, batch_size=2) != [alone]


def test_rows_that_were_read_are_not_read_again(tmp_path: Path) -> None:
    """What bits per byte read of the first references stands for reading them; the rest is read as ever."""
    alone, examples, (student, teacher) = distances(tmp_path, "byte_level", "unigram", alike=False)
    kept = RowsRead(size=1)  # byte: the first batch
    bits(student, examples, pad=0, batch_size=2, on_rows=lambda rows: kept.keep("one", rows))
    assert list(kept.of("one")) == ["0", "1"]
    assert kept.of("another") == {}
    taught = Taught("cross", Head.of(teacher), StoredRows(tmp_path), False)
    (found,) = measure(student, [taught], examples, pad=0, batch_size=2, read=kept.of("one"))
    assert [one.id for one in found] == ["0", "1", "2"]
    assert [one.chunks for one in found] == pytest.approx([one.chunks for one in alone], rel=1e-5)
    nothing = {name: torch.zeros_like(rows) for name, rows in kept.of("one").items()}
    (others,) = measure(student, [taught], examples, pad=0, batch_size=2, read=nothing)
    assert [a.chunks == b.chunks for a, b in zip(others, found, strict=True)] == [False, False, True]


def test_pieces_by_hand() -> None:
    """Bytes 0-2-5-6 here, 0-5-6 there, with a prefix of no bytes there; ends of the responses don't count."""
    ours, theirs = np.array([-1.0, -2.0, -4.0, -9.0]), np.array([-0.5, -1.0, -7.0, -1.0])
    ends, other = np.array([2, 5, 6, 6]), np.array([0, 5, 6, 6])
    assert chunk_difference(ours, theirs, ends, other) == pytest.approx(abs(-3 + 1.5) + abs(-4 + 7))
