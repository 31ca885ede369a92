"""CDM's pairs that stay on a GPU beside the groups that a host lays of the same paths, on a CPU that plays the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.data.batches import Batch, Collator
from harness.data.chunk_memory import teacher_rows_beside
from harness.data.terms import AlignedExample, Term, align
from harness.data.tokens import STUDENT
from harness.litmus.mutants import mutants_of
from harness.training.contract import (
    BrokenPromiseError,
    a_batch_aligns_like_its_responses,
    batching_does_not_matter,
)
from harness.training.loss import Distiller
from harness.training.objective import LossParts, Objective
from harness.training.rollout_share import accepted
from methods.alm import ALM
from methods.base import AlignedChunk, LossSums, Method, Need, Side
from methods.cdm import CDM
from methods.fkd import FKD
from methods.library.alignment import AlignedResponse, PairedTokens
from methods.library.vocabulary import TokenizerPair
from methods.library.warping_device import DeviceCosts
from tests.methods import contract
from tests.methods.test_cdm import PAIR, chunk

PIECES = pytest.mark.parametrize("pieces", ["one_to_one", "first"])


@contextmanager
def on_device(patch: pytest.MonkeyPatch) -> Iterator[list[PairedTokens]]:
    """A block in which entropies are handed over as where models are on a GPU; the pairs that were made."""
    made: list[PairedTokens] = []
    pair_all = CDM.pair_all

    def spy(self: CDM, responses: Any) -> PairedTokens | None:
        found = pair_all(self, responses)
        made.extend([] if found is None else [found])
        return found

    with patch.context() as within:
        within.setattr("harness.data.batches._within_reach", lambda entropies, method: entropies)
        within.setattr("methods.cdm.stays_on_device", lambda where: isinstance(where, Tensor))
        within.setattr(CDM, "pair_all", spy)
        yield made


def passed(distiller: Distiller, batch: Batch, divisors: list[float]) -> tuple[LossParts, Tensor]:
    """The loss of a batch, and the gradient at all of the student's parameters."""
    distiller.student.zero_grad()
    parts: LossParts = distiller(batch, divisors)
    parts.loss.backward()  # type: ignore[no-untyped-call]
    return parts, torch.cat([p.grad.flatten() for p in distiller.student.parameters()])


def compare(distiller: Distiller, batch: Batch, patch: pytest.MonkeyPatch, paired: bool = True) -> LossParts:
    """Both ways give one loss, one gradient, and the same notes; ``paired``: whether the device's way makes pairs."""
    divisors = distiller.objective.divisors(batch.counts)
    wanted, gradient = passed(distiller, batch, divisors)
    with on_device(patch) as made:
        found, other = passed(distiller, batch, divisors)
    assert bool(made) is paired
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.kd, wanted.kd, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.kd_gradient, wanted.kd_gradient, rtol=1e-10, atol=0)
    torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-14)
    assert found.diagnostics.keys() == wanted.diagnostics.keys()
    for name, pair in wanted.diagnostics.items():
        torch.testing.assert_close(found.diagnostics[name], pair, rtol=1e-12, atol=0, equal_nan=True, msg=name)
    return wanted


@PIECES
@pytest.mark.parametrize("settings", [{}, {"chunk_rows": 1}, {"chunk_rows": 7, "padding_side": "left"}], ids=str)
def test_a_batch_is_the_same_either_way(pieces: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = contract.bench(CDM(pieces=pieces, temperature=2, k=60))
    parts = compare(made.distiller(), made.batch(**settings), monkeypatch)
    aligned, tokens = parts.diagnostics["aligned 1-1"].tolist()
    assert 0 < aligned < tokens, "rows that have no pair are what this is about"


def test_a_response_may_have_no_token_of_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is empty, and the other responses' rows stand behind it."""
    made = contract.bench(CDM())
    examples = list(made.examples)
    for place, fields in ((0, ("teacher_ids", "teacher_ends")), (2, ("student_ids", "student_ends"))):
        (response,) = examples[place].groups
        assert isinstance(response, AlignedResponse)
        cut = replace(response, **{name: np.zeros(0, dtype=np.int64) for name in fields})
        examples[place] = replace(examples[place], groups=(cut,))
    compare(made.distiller(), made.batch(examples, chunk_rows=9), monkeypatch)


def both(made: contract.Bench, other: contract.Bench) -> tuple[Distiller, list[AlignedExample]]:
    """Two benches' terms in the first one's objective."""
    assert made.teacher is not None
    assert other.teacher is not None
    terms = (Term(other.method, other.role, 0.4), Term(made.method, made.role, 0.3))
    examples: list[AlignedExample] = []
    for ours, theirs in zip(made.examples, other.examples, strict=True):
        merged = replace(ours.example, sides={**ours.example.sides, **theirs.example.sides})
        examples.append(align(merged, terms))
    made.objective = Objective("both", 0.5, terms)
    return Distiller(made.student, made.objective, {other.role: other.teacher, made.role: made.teacher}), examples


@PIECES
def test_batching_does_not_matter(pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_device(monkeypatch) as made:
        batching_does_not_matter(CDM(pieces=pieces))
    assert made


@pytest.mark.parametrize("window", [FKD(), FKD(fidelity="released"), ALM()], ids=lambda method: method.rows.value)
def test_beside_a_term_of_other_rows(window: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """dual(fkd, cdm) and others: one term's groups beside the other's pairs, in the same chunks.

    Rows of the prompt, or behind the response, are no pair; a chunk of none but these is passed over.
    """
    made, other = contract.bench(CDM()), contract.bench(window)
    distiller, examples = both(made, other)
    handed: dict[str, list[AlignedChunk]] = {"host": [], "device": []}
    loss = CDM.loss

    def spy(self: CDM, given: AlignedChunk) -> LossSums:
        handed["host" if given.paired is None else "device"].append(given)
        return loss(self, given)

    monkeypatch.setattr(CDM, "loss", spy)
    compare(distiller, made.batch(examples, chunk_rows=3), monkeypatch)
    ours, theirs = ([pair for each in handed[way] for pair in pairs_of(each)] for way in ("host", "device"))
    assert len(ours) == len(theirs) > 20
    for pair, wanted in zip(theirs, ours, strict=True):
        torch.testing.assert_close(pair, wanted, rtol=1e-12, atol=1e-12)
    tokens = sum(each.example.sides[STUDENT].response.size for each in examples)
    assert sum(each.groups for each in handed["device"]) == tokens


def pairs_of(given: AlignedChunk) -> list[list[Tensor]]:
    """Of each group, one token a side: the logits and the target of its row, and the token; student and teacher."""
    chosen = torch.ones(given.groups, dtype=torch.bool) if given.paired is None else given.paired
    parts: list[Tensor] = []
    for side in (given.student, given.teacher):
        rows = side.index[chosen]
        parts += [side.logits[rows].detach(), side.targets[rows], side.tokens[chosen]]
    return [list(pair) for pair in zip(*parts, strict=True)]


def test_losses_of_whole_responses_can_not_pair_tokens() -> None:
    class Whole(CDM):
        needs = frozenset({Need.ENTROPY, Need.ROW_SCALARS})

    with pytest.raises(ValueError, match="pairs tokens on the device, where it can't ask for numbers of rows too"):
        Collator((Term(Whole(), "cross", 1.0),), {STUDENT: 0, "cross": 0})


def test_room_for_a_teachers_row_beside_each_of_the_students() -> None:
    """Where pairs are made on a device: elsewhere a chunk holds the rows that its groups have."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert teacher_rows_beside(CDM(), 0.7, gpu) == 1.0
    assert teacher_rows_beside(CDM(), 1.3, gpu) == 1.3
    for method, on in ((CDM(), cpu), (CDM(pieces="mean"), gpu), (CDM(alignment="bytes"), gpu), (FKD(), gpu)):
        assert teacher_rows_beside(method, 0.7, on) == 0.7


def test_what_breaks_groups_breaks_them_on_a_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant whose groups are other ones makes no pairs, which would be whole."""
    made = contract.bench(CDM())
    breaks = [mutant for mutant in mutants_of(CDM()) if "align_all" in mutant.changes(CDM())]
    assert breaks
    for mutant in breaks:
        broken = mutant.broken(CDM())
        made.objective = Objective("broken", 0.5, (Term(broken, made.role, 1.0),))
        broken.prepare(TokenizerPair(*(made.sides[role].vocabulary for role in (STUDENT, made.role))))
        compare(made.distiller(), made.batch(), monkeypatch, paired=False)


@PIECES
def test_the_contract_holds_pairs_to_groups(pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_device(monkeypatch) as made:
        a_batch_aligns_like_its_responses(CDM(pieces=pieces))
        assert made
        pairs = DeviceCosts.pairs
        monkeypatch.setattr(DeviceCosts, "pairs", lambda *args, firsts: pairs(*args, firsts=not firsts))
        with pytest.raises(BrokenPromiseError, match="response 0 is paired otherwise than aligned"):
            a_batch_aligns_like_its_responses(CDM(pieces=pieces))


@pytest.mark.parametrize("options", [{"pieces": "mean"}, {"fidelity": "released"}], ids=str)
def test_pieces_of_several_tokens_are_groups(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = contract.bench(CDM(**options))
    compare(made.distiller(), made.batch(chunk_rows=9), monkeypatch, paired=False)


def test_nothing_counts_of_a_row_that_has_no_pair() -> None:
    """Not even a teacher's row without a number."""
    method, made = CDM(k=20), chunk(6)
    method.prepare(PAIR)
    paired = torch.tensor([True, False, True, True, False, True])
    made.teacher.logits[~paired] = torch.nan
    rows, number, nothing = paired.nonzero()[:, 0], torch.arange(4), torch.zeros(4, dtype=torch.int64)
    sides = (Side(side.logits, nothing, rows, number, nothing, False) for side in (made.student, made.teacher))
    wanted, found = method.loss(AlignedChunk(*sides, 4)), method.loss(replace(made, paired=paired))
    torch.testing.assert_close(found.kd, wanted.kd)
    gradients = [torch.autograd.grad(sums.kd, made.student.logits)[0] for sums in (found, wanted)]
    torch.testing.assert_close(*gradients)
    for name, pair in wanted.diagnostics.items():
        torch.testing.assert_close(found.diagnostics[name], pair, msg=name)
    assert [float(each) for each in accepted(replace(made, paired=paired), top=10**6)] == [4.0, 4.0]
