"""methods.library.merging: hand values, plain loops over groups, and what a joint probability is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.base import AlignedChunk, Members, Side
from methods.library.alignment import group_bytes
from methods.library.merging import Merge, Merged, merge
from methods.uld import ULD

MERGES: tuple[Merge, ...] = ("bayesian", "observed", "product", "mean_log")
EVERY = pytest.mark.parametrize("how", MERGES)


def side(probabilities: Tensor, groups: Sequence[Sequence[int]], tokens: Sequence[int]) -> Side:
    """Rows of given distributions; ``tokens`` are those of the rows."""
    index = torch.tensor([row for group in groups for row in group])
    number = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([len(group) for group in groups]))
    own = torch.tensor(tokens)
    return Side(probabilities.log(), own, index, number, own[index], False)


def random_side(sizes: Sequence[int], seed: int = 0, columns: int = 11, scale: float = 3.0) -> Side:
    """Groups of the given sizes; rows that belong to none stand between them."""
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * sum(sizes)
    logits = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    chosen = torch.randperm(rows, generator=generator)[: sum(sizes)].sort().values
    tokens = torch.randint(columns, (rows,), generator=generator)
    number = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Side(logits.requires_grad_(), tokens, chosen, number, tokens[chosen], False)


def by_loops(made: Side, groups: int, how: Merge, tau: float = 1.0) -> Tensor:
    """Masses [groups, vocabulary], one group after the other."""
    masses = []
    for number in range(groups):
        members = [k for k, group in enumerate(made.group.tolist()) if group == number]
        rows = [(made.logits[made.index[k]] / tau).softmax(-1) for k in members]
        realised = [row[made.tokens[k]] for row, k in zip(rows, members, strict=True)]
        if how in ("product", "mean_log"):
            joint = torch.ones_like(rows[0])
            for row in rows:
                joint = joint * row
            masses.append(joint / joint.sum() if how == "product" else joint ** (1 / len(rows)))
            continue
        mass, others = (rows[-1], realised[:-1]) if how == "bayesian" else (rows[0], realised[1:])
        for factor in others:
            mass = mass * (factor if factor > 1e-8 else 1e-8)
        masses.append(mass)
    return torch.stack(masses)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("observed", [0.30, 0.15, 0.05]),
        ("bayesian", [0.12, 0.30, 0.18]),
        ("product", [0.12 / 0.30, 0.15 / 0.30, 0.03 / 0.30]),
        ("mean_log", [0.12**0.5, 0.15**0.5, 0.03**0.5]),
    ],
)
def test_by_hand(how: Merge, expected: list[float]) -> None:
    rows = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64)
    merged = merge(side(rows, [[0, 1]], [0, 1]), 1, how).exp()
    assert merged[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("how", "mass", "loss"), [("observed", 1.2e-4, 0.4999), ("bayesian", 0.81, 0.0950)])
def test_a_number_that_one_side_splits(how: Merge, mass: float, loss: float) -> None:
    """ "201", " y" against "2", "0", "1", " y": ten tokens a side, 0.9 for what comes next and the rest for all others.

    Both models agree. ``observed`` reads the rows after a token: there the same token hardly comes again.
    """
    student_ids, teacher_ids, after = [5, 6], [2, 0, 1, 6], 7
    groups = group_bytes(np.array([3, 5]), np.array([1, 2, 3, 5]))
    assert groups.to_lists() == ([[0], [1]], [[0, 1, 2], [3]])
    sides = []
    for ids, lists in zip((student_ids, teacher_ids), groups.to_lists(), strict=True):
        following = [*ids[1:], after] if how == "observed" else ids
        rows = torch.full((len(ids), 10), 0.1 / 9, dtype=torch.float64)
        rows[torch.arange(len(ids)), following] = 0.9
        sides.append(side(rows, lists, ids))
    merged = merge(sides[1], 2, how).exp().sum(-1).tolist()
    assert merged == pytest.approx([mass, 1.0], rel=0.03)
    kd = ULD(pairing="bytes", merge=how).loss(AlignedChunk(sides[0], sides[1], 2)).kd
    assert float(kd) / 2 == pytest.approx(loss, abs=5e-5)
    assert float(kd) / 2 == pytest.approx((1 - merged[0]) / 2, rel=1e-12)


@EVERY
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_equals_loops_over_groups(how: Merge, tau: float) -> None:
    """Values, and gradients under weights that tell all masses apart."""
    made = random_side([1, 3, 2, 1, 1, 4, 2])
    merged, expected = merge(made, 7, how, tau).exp(), by_loops(made, 7, how, tau)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-15)
    weights = torch.linspace(1, 2, merged.numel(), dtype=torch.float64).view_as(merged)
    (gradient,), (wanted,) = (torch.autograd.grad((x * weights).sum(), made.logits) for x in (merged, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)
    assert wanted.abs().sum() > 0


@EVERY
def test_a_group_of_one_keeps_its_row(how: Merge) -> None:
    alone, among = random_side([1] * 5), random_side([1, 2, 1])
    torch.testing.assert_close(merge(alone, 5, how).exp(), alone.logits[alone.index].softmax(-1))
    torch.testing.assert_close(merge(among, 3, how)[2].exp(), among.logits[among.index[3]].softmax(-1))


def test_the_chain_rule() -> None:
    """The bayesian mass of a group's last token is the probability of the whole group; all masses together, of what
    comes before it.
    """
    made = random_side([3, 2])
    rows = made.logits.softmax(-1)
    step = [float(rows[i, token].detach()) for i, token in zip(made.index, made.tokens, strict=True)]
    merged = merge(made, 2, "bayesian").exp().detach()
    assert float(merged[0, made.tokens[2]]) == pytest.approx(step[0] * step[1] * step[2])
    assert float(merged[1, made.tokens[4]]) == pytest.approx(step[3] * step[4])
    assert merged.sum(-1).tolist() == pytest.approx([step[0] * step[1], step[3]])


@pytest.mark.parametrize("how", ["bayesian", "observed"])
def test_an_unlikely_token_counts_at_least_the_floor(how: Merge) -> None:
    """And a probability below it gets no gradient, as with TRL's clamp."""
    rows = torch.tensor([[1 - 1e-12, 1e-12], [1e-12, 1 - 1e-12]], dtype=torch.float64)
    made = side(rows, [[0, 1]], [1, 0])
    made.logits.requires_grad_()
    merged = merge(made, 1, how)
    assert merged.exp().sum().item() == pytest.approx(1e-8)
    (gradient,) = torch.autograd.grad(merged[0, 0], made.logits)
    kept = 1 if how == "bayesian" else 0
    assert gradient[1 - kept].eq(0).all()
    assert gradient[kept].ne(0).any()


@EVERY
def test_the_graph_does_not_grow_with_the_groups(how: Merge) -> None:
    """A loop over groups that writes into one tensor makes the backward pass grow with the square of their number."""

    def nodes(groups: int) -> int:
        seen, open_nodes = set(), [merge(random_side([1, 2] * groups), 2 * groups, how).grad_fn]
        while open_nodes:
            node = open_nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                open_nodes += [before for before, _ in node.next_functions]
        return len(seen)

    assert nodes(2) == nodes(50)


@EVERY
@pytest.mark.parametrize("members", [1, 2, 12])
def test_the_likeliest_token_is_known_of_masses_that_are_no_longer_floats(how: Merge, members: int) -> None:
    """A dozen tokens of 1e-8 leave 1e-88 of a group's masses in float32: nothing."""
    logits = torch.zeros(2 * members, 8)
    logits[:, 0] = -17.5  # of the tokens that were realised
    kept = [members - 1, 2 * members - 1] if how != "observed" else [0, members]
    logits[kept] = torch.tensor([[0.0, 1, 2, 3, 4, 9, 6, 7], [0.0, 1, 2, 9, 4, 5, 6, 7]])
    group, tokens = torch.arange(2).repeat_interleave(members), torch.zeros(2 * members, dtype=torch.int64)
    merged = Merged(Members(logits, torch.arange(2 * members), group, tokens, True), 2, how)
    assert merged.likeliest().tolist() == [5, 3]
    vanished = not merged.masses().any()
    assert vanished == (members == 12 and how in ("bayesian", "observed"))


@EVERY
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 3, 2, 1], [20, 1]])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("in_loops", [False, True])
def test_the_closed_form_is_what_autograd_finds(
    how: Merge,
    tau: float,
    sizes: list[int],
    in_order: bool,
    in_parts: bool,
    in_loops: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With rows between the groups' members or without, and realised tokens below the floor."""
    monkeypatch.setattr("methods.library.cpu_loops.enabled", in_loops)
    made = random_side(sizes, scale=12.0)
    if in_order:
        rows = made.logits.detach()[made.index].requires_grad_()
        made = Side(rows, made.targets[made.index], torch.arange(len(rows)), made.group, made.tokens, True)
    realised = made.logits.detach()[made.index].div(tau).log_softmax(-1).gather(1, made.tokens[:, None])
    assert (realised < -18.43).any() or len(sizes) == sum(sizes) or tau != 1
    expected = merge(made, len(sizes), how, tau)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), made.logits)
    members = Members(made.logits.detach(), made.index, made.group, made.tokens, in_order)
    merged = Merged(members, len(sizes), how, tau)
    columns = torch.randperm(expected.shape[1], generator=torch.Generator().manual_seed(6))
    for some in (None, columns[:3]):
        of_some = expected.detach() if some is None else expected.detach()[:, some]
        torch.testing.assert_close(merged.log_masses(some), of_some, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(merged.masses(some), of_some.exp(), rtol=1e-13, atol=1e-300)
    parts = [(None, weights.clone())]
    if in_parts:  # a column may have a share in several
        parts = [(part, (weights / 2)[:, part]) for part in (columns[:3], columns[3:])] + [(None, weights / 2)]
    found = merged.at_logits(*parts)
    torch.testing.assert_close(found, gradient, rtol=1e-11, atol=1e-12)
