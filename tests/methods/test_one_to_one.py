"""Strict 1:1 against a plain transcription of its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.data.tokens import STUDENT
from methods.library.alignment import Groups
from methods.library.maps import exact_map
from methods.library.vocabulary import TokenizerPair, Vocabulary
from methods.one_to_one import OneToOne
from tests import tiny
from tests.methods import contract


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"top_k": 16}], ids=["plain", "softened", "top_k"])
def test_loss_equals_the_formula(options: dict[str, float]) -> None:
    """Models run whole, groups found by comparing byte spans one by one, distributions restricted by hand."""
    method = OneToOne(**options)
    made = contract.bench(method)
    families = {STUDENT: "byte_level", "cross": "byte_fallback"}
    student, teacher = (Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for f in families.values())
    mapping = exact_map(teacher, student)
    columns = [(int(s), t) for t, s in enumerate(mapping) if s >= 0]
    tau, total, tokens, pairs = options.get("temperature", 1.0), 0.0, 0, 0
    for aligned in made.examples:
        sides = aligned.example.sides
        ours, theirs = sides[STUDENT], sides["cross"]
        logits = []
        for side, model in ((ours, made.student), (theirs, made.teacher)):
            ids = torch.from_numpy(side.sequence).unsqueeze(0)
            logits.append(model(input_ids=ids).logits[0, side.prompt.size - 1 : -1])
        tokens += ours.response.size
        for i, j in _same_tokens(ours.ends, theirs.ends):
            p = (logits[0][i, [s for s, _ in columns]] / tau).log_softmax(-1)
            q = (logits[1][j, [t for _, t in columns]] / tau).log_softmax(-1)
            if "top_k" in options:
                kept = p.topk(16).indices
                p, q = p[kept].log_softmax(-1), q[kept].log_softmax(-1)
            total += (tau**2 * (p.exp() * (p - q)).sum()).item()
            pairs += 1
    parts = made.loss(made.batch())
    assert pairs > 20
    assert float(parts.kd[0]) == pytest.approx(total, rel=1e-9)
    assert float(parts.diagnostics["aligned 1-1"][0]) == pairs
    expected = 0.3 * float(parts.ce) / tokens + 0.7 * total / tokens
    assert float(parts.loss.detach()) == pytest.approx(expected, rel=1e-9)


def _same_tokens(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int]]:
    """Walk both sides; a pair where both have moved by one token since the last common boundary."""
    i, j, start, pairs = 0, 0, (0, 0), []
    while i < len(ours) and j < len(theirs):
        if ours[i] == theirs[j]:
            if (i, j) == start:
                pairs.append((i, j))
            i, j = i + 1, j + 1
            start = (i, j)
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return pairs


def test_only_groups_of_one_token_a_side_remain() -> None:
    groups = Groups.from_lists([[0], [1, 2], [3], [4]], [[0], [1], [2, 3], [4]])
    assert groups.only_one_to_one().to_lists() == ([[0], [4]], [[0], [4]])


def test_identical_tokenizers_share_everything() -> None:
    vocabulary = Vocabulary.of(tiny.tokenizer("byte_level").backend_tokenizer, "same", (2,))
    method = OneToOne()
    method.prepare(TokenizerPair(vocabulary, vocabulary))
    for columns in method.shared.on(torch.device("cpu")).values():
        assert columns.tolist() == list(range(len(vocabulary)))
