"""methods.library.rows_cpu and comparison_cpu: the plain definitions and autograd, in float64, are the truth."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.base import Method, Side
from methods.fkd import FKD
from methods.gold import GOLD
from methods.library import comparison_cpu, cpu_loops, rows_cpu
from methods.library.compared import Columns
from methods.library.divergences import generalized_jsd, sorted_l1
from methods.library.merging import LOG_FLOOR, Merge, merge
from methods.mined import MinED
from methods.sft import SFT
from methods.uld import ULD
from tests.harness.training.test_loss import walked
from tests.methods import contract

Weights = tuple[float, float]
ROOT = Path(__file__).parents[3]


def close(found: Tensor, wanted: Tensor, logits: Tensor) -> None:
    """To float32's rounding: of what is added up, and of the logits whose exponentials are taken."""
    size = float(logits[logits.isfinite()].abs().max()) if logits.isfinite().any() else 0.0
    torch.testing.assert_close(found.double(), wanted.double(), rtol=3e-6 + 5e-7 * size, atol=2e-6 + 5e-7 * size)


def normal(rows: int, columns: int, spread: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, columns, generator=generator)


def log_sum_exp(logits: Tensor) -> Tensor:
    return rows_cpu.cross_entropy(logits, torch.full((len(logits),), -100), torch.tensor(1.0))[-1]


# --- rows ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.one_of(st.floats(-120, 120, width=32), st.sampled_from([-torch.inf, 0.0, -87.0, -3e38])), min_size=1),
    st.floats(-100, 100, width=32),
)
@settings(deadline=None)
def test_log_sum_exp_of_any_row(row: list[float], most: float) -> None:
    logits = torch.tensor([row, row[::-1]])
    logits[1, 0] = most  # a finite one, and another row
    logits[0, -1] = -most
    close(log_sum_exp(logits), logits.double().logsumexp(-1), logits)


@pytest.mark.parametrize("columns", [1, 2, 2047, 2048, 2049, 5000, 262_144])
@pytest.mark.parametrize("scale", [0.25, 0.0])
def test_cross_entropy(columns: int, scale: float) -> None:
    logits, targets = normal(5, columns, 4, columns), torch.tensor([0, columns - 1, -100, columns // 2, -100])
    value, norm, upstream, lse = rows_cpu.cross_entropy(logits, targets, torch.tensor(scale))
    leaf = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(leaf, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(wanted, leaf)
    close(value, wanted.detach(), logits)
    close(norm, gradient.square().sum(), logits)
    close(upstream, scale * gradient, logits)
    close(lse, logits.double().logsumexp(-1), logits)
    assert torch.equal(upstream[targets < 0], torch.zeros(2, columns))


def test_a_row_that_is_nearly_sure_has_its_small_gradient() -> None:
    logits = torch.zeros(1, 100)
    logits[0, 3] = 15.0
    _, norm, *_ = rows_cpu.cross_entropy(logits, torch.tensor([3]), torch.tensor(1.0))
    missing = 99 / (99 + float(torch.tensor(15.0, dtype=torch.float64).exp()))
    assert float(norm.sqrt()) == pytest.approx(missing * (1 + 1 / 99) ** 0.5, rel=2e-2)


@pytest.mark.parametrize("fault", [torch.nan, -torch.tensor(torch.nan), torch.inf])
def test_what_is_no_number_stays_none(fault: float) -> None:
    logits = normal(3, 3000, 1, 0)
    logits[1, 2500] = fault
    value, _, upstream, lse = rows_cpu.cross_entropy(logits, torch.tensor([1, 2, 3]), torch.tensor(1.0))
    assert value.isnan()
    assert upstream[1].isnan().all()
    assert upstream[[0, 2]].isfinite().all()
    assert lse.isnan().tolist() == [False, True, False]


_HASHED = """
import hashlib, torch
from methods.library import rows_cpu
torch.manual_seed(0)
made = rows_cpu.cross_entropy(3 * torch.randn(60, 1000), torch.zeros(60, dtype=torch.int64), torch.tensor(1.0))
print(hashlib.sha256(b"".join(each.numpy().tobytes() for each in made)).hexdigest())
"""


def test_a_process_that_loads_rounds_as_the_one_that_compiled(tmp_path: Path) -> None:
    """To the last bit: a training may go on in another process."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _HASHED]
    compiled, loaded = (
        subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert list(tmp_path.glob("*/*/*.nbc"))
    assert loaded == compiled


# --- groups ----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """Two sides in groups, some rows in none, and what is compared column by column: pairs, or None for ULD."""

    student: Side
    teacher: Side
    groups: int
    how: Merge
    pairs: tuple[Tensor, Tensor] | None
    weights: Weights = (0.6, 0.4)

    @classmethod
    def of(
        cls,
        students: Tensor,
        teachers: Tensor,
        sizes: tuple[list[int], list[int]],
        how: Merge = "bayesian",
        pairs: tuple[Tensor, Tensor] | None = None,
        weights: Weights = (0.6, 0.4),
    ) -> Case:
        ours, theirs = (
            grouped(logits, of, k) for k, (logits, of) in enumerate(zip((students, teachers), sizes, strict=True))
        )
        return cls(ours, theirs, len(sizes[0]), how, pairs, weights)

    def truth(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value, its gradient at the student's logits, and the teacher's probability on shared columns."""
        leaf = self.student.logits.double().requires_grad_()
        sides = self.student.with_logits(leaf), self.teacher.with_logits(self.teacher.logits.double())
        for side in sides:
            side.tokens = side.tokens.clamp_min(0)  # that of a group of one is not read
        ours, theirs = (merge(side, self.groups, self.how) for side in sides)
        rest, covered = [torch.arange(side.shape[1]) for side in (ours, theirs)], torch.zeros(())
        matched, by_rank = 0.0, 1.0
        value = torch.zeros((), dtype=torch.float64)
        if self.pairs is not None:
            (matched, by_rank), (mine, its) = self.weights, self.pairs
            rest = [all_but(side.shape[1], used) for side, used in zip((ours, theirs), self.pairs, strict=True)]
            value = value + matched * generalized_jsd(ours[:, mine], theirs[:, its], 0.0, LOG_FLOOR).sum()
            rows = self.teacher.logits.double().softmax(-1)[self.kept(self.teacher)]
            covered = rows[:, its].sum()
        if min(len(some) for some in rest) > 0:
            value = value + by_rank * sorted_l1(ours[:, rest[0]].exp(), theirs[:, rest[1]].exp()).sum()
        (gradient,) = torch.autograd.grad(value, leaf) if value.requires_grad else (torch.zeros_like(leaf),)
        return value.detach(), gradient, covered

    def kept(self, side: Side) -> Tensor:
        numbers = side.group.tolist()
        places = [numbers.index(group) for group in range(self.groups)]
        if self.how == "bayesian":
            places = [len(numbers) - 1 - numbers[::-1].index(group) for group in range(self.groups)]
        return side.index[places]

    def found(self, scale: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, gradient, coverage and squared norm, by loops; the gradient as it was added to something else."""
        before = normal(*self.student.logits.shape, 1.0, 7)
        upstream, lse = before.clone(), log_sum_exp(self.student.logits)
        hybrid = None
        if self.pairs is not None:
            hybrid = comparison_cpu.hybrid_of(self.columns(*self.pairs), self.weights, 0.0)
        sides = self.student.members(), self.teacher.members()
        sums = comparison_cpu.compare_into(*sides, lse, self.groups, self.how, hybrid, upstream, scale)
        assert sums.bound is None
        return sums.value, (upstream - before) / scale, sums.covered, sums.squared_norm

    def columns(self, mine: Tensor, its: Tensor) -> Columns:
        widths = self.student.logits.shape[1], self.teacher.logits.shape[1]
        student_of_teacher = torch.full((widths[1],), -1).index_copy(0, its, mine)
        made = Columns.of(student_of_teacher, *widths)
        assert sorted(zip(*(each.tolist() for each in made[1:3]), strict=True)) == sorted(
            zip(mine.tolist(), its.tolist(), strict=True)
        )
        return made

    def check(self, gradients: bool = True) -> None:
        value, gradient, covered = self.truth()
        made = self.found()
        size = max(float(side.logits.abs().max()) for side in (self.student, self.teacher))
        logits = torch.tensor([size])
        close(made[0], value, logits)
        close(made[2], covered, logits)
        if gradients:
            torch.testing.assert_close(made[1].double(), gradient, rtol=1e-4, atol=2e-6 * (1 + size))
            close(made[3].sqrt(), gradient.norm(), logits)

    def check_wide(self) -> None:
        """Some ranks of so many are level within rounding: either sign will do."""
        self.check(gradients=False)
        _, gradient, _ = self.truth()
        assert (self.found()[1] - gradient).norm() < 1e-3 * gradient.norm()


def grouped(logits: Tensor, sizes: list[int], seed: int) -> Side:
    """Groups of rows between two that are in none; a token of the prompt, -100, is alone in its group."""
    count, generator = sum(sizes), torch.Generator().manual_seed(seed)
    tokens = torch.randint(logits.shape[1], (count,), generator=generator)
    tokens[0] = -100 if sizes[0] == 1 else tokens[0]
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    assert len(logits) == count + 2
    return Side(logits, torch.full((count + 2,), -100), torch.arange(1, count + 1), group, tokens, False)


def all_but(width: int, used: Tensor) -> Tensor:
    taken = set(used.tolist())
    return torch.tensor([column for column in range(width) if column not in taken], dtype=torch.int64)


def some_pairs(widths: tuple[int, int], share: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count = int(share * min(widths))
    mine, its = (torch.randperm(width, generator=generator)[:count] for width in widths)
    return mine, its


GROUPS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=5)
WIDTHS = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(
    GROUPS,
    WIDTHS,
    st.sampled_from([0.1, 3.0, 30.0]),
    st.sampled_from(["bayesian", "observed"]),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
    st.sampled_from([(0.6, 0.4), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)]),
    st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_any_groups(
    groups: list[tuple[int, int]],
    widths: tuple[int, int],
    spread: float,
    how: Merge,
    share: float | None,
    weights: Weights,
    seed: int,
) -> None:
    """Groups of one and of several, vocabularies of one token, all columns shared or none, unlikely members' tokens."""
    sizes = [ours for ours, _ in groups], [theirs for _, theirs in groups]
    students, teachers = (
        normal(sum(of) + 2, width, spread, seed + k) for k, (of, width) in enumerate(zip(sizes, widths, strict=True))
    )
    pairs = None if share is None else some_pairs(widths, share, seed)
    # A logit is rounded by 2e-6 at 30: what is level within that has either sign.
    Case.of(students, teachers, sizes, how, pairs, weights).check(gradients=spread < 30)


@pytest.mark.parametrize("share", [None, 0.6])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_wide_rows_of_several_blocks(share: float | None, spread: float) -> None:
    sizes = [1, 2, 1], [1, 1, 3]
    widths = 5000, 4097
    students, teachers = (normal(sum(of) + 2, width, spread, width) for of, width in zip(sizes, widths, strict=True))
    pairs = None if share is None else some_pairs(widths, share, 0)
    case = Case.of(students, teachers, sizes, "bayesian", pairs)
    case.check_wide()


def test_a_vocabulary_of_262_144() -> None:
    widths = 262_144, 151_936
    students, teachers = (normal(4, width, 3, width) for width in widths)
    case = Case.of(students, teachers, ([1, 1], [1, 1]), "bayesian", some_pairs(widths, 0.7, 0))
    case.check_wide()


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("columns", [50, 1000, 5000])
@pytest.mark.parametrize("offset", [0.0, 20.0, 1000.0])
def test_equal_sides_are_level_to_the_last_bit(share: float | None, columns: int, offset: float) -> None:
    logits = normal(6, columns, 4.0, columns) + offset
    pairs = None if share is None else (torch.arange(columns // 2), torch.arange(columns // 2))
    case = Case.of(logits, logits.clone(), ([1, 1, 1, 1], [1, 1, 1, 1]), "bayesian", pairs, (0.0, 1.0))
    value, gradient, _, norm = case.found()
    assert (float(value), float(gradient.norm()), float(norm)) == (0, 0, 0)


def test_a_member_below_the_floor_counts_as_the_floor() -> None:
    """Its probability is e^-40; the group's masses are 1e-8 of its last row, and nothing passes through its row."""
    students, teachers = normal(4, 30, 1.0, 0), normal(4, 30, 1.0, 1)
    students[1, 7] = teachers[1, 7] = -40.0
    case = Case.of(students, teachers, ([2], [2]))
    case.student.tokens.fill_(7)
    case.teacher.tokens.fill_(7)
    value, gradient, _ = case.truth()
    found = case.found(scale=1e8)
    assert float(found[0]) == pytest.approx(float(value), rel=1e-4)
    assert float(found[3].sqrt()) == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert torch.equal(found[1][1], torch.zeros(30))


@pytest.mark.parametrize("target", [10, -1])
def test_what_a_vocabulary_does_not_have_is_an_error(target: int) -> None:
    with pytest.raises(IndexError, match="targets"):
        rows_cpu.cross_entropy(normal(2, 10, 1.0, 0), torch.tensor([1, target]), torch.tensor(1.0))
    case = Case.of(normal(4, 10, 1.0, 0), normal(4, 8, 1.0, 1), ([2], [2]))
    case.student.tokens[0] = 10
    with pytest.raises(IndexError, match="tokens"):
        case.found()
    case.student.tokens[0], case.teacher.index[0] = 0, 4
    with pytest.raises(IndexError, match="rows"):
        case.found()


def test_loops_hold_no_number_of_another_file() -> None:
    """What is compiled is kept by a digest of the loops' own sources."""
    folder = Path(rows_cpu.__file__).parent
    for path in folder.glob("*_numba.py"):
        ours = {
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("methods", "harness"))
        }
        assert {name for name in ours if not name.endswith("_numba")} <= {"methods.library.jit"}, path.name


@pytest.mark.parametrize("share", [None, 0.5])
def test_zeros_and_what_is_smaller_than_a_float(share: float | None) -> None:
    """Rows whose masses are tied, or vanish: 0 apart where both are the same."""
    logits = torch.full((6, 12), -200.0)
    logits[1, :3], logits[2, :6] = torch.tensor([0.0, -1.0, -95.0]), 0.0
    logits[3] = -torch.inf
    logits[3, 4], logits[4] = 5.0, torch.arange(12) % 3
    pairs = None if share is None else (torch.arange(6), torch.arange(6))
    case = Case.of(logits, logits.clone(), ([1, 1, 1, 1], [1, 1, 1, 1]), "bayesian", pairs, (1.0, 1.0))
    value, gradient, _, norm = case.found()
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert gradient.isfinite().all()
    rows = torch.softmax(logits[1:5], -1)
    at_shared = -rows[:, :6].clamp_min(1e-8) if share else torch.zeros(4, 6)
    wanted = torch.cat([at_shared, torch.zeros(4, 6)], -1)
    wanted[logits[1:5] - logits[1:5].logsumexp(-1, keepdim=True) < LOG_FLOOR] = 0
    wanted -= rows * wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(gradient[1:5], wanted, rtol=1e-5, atol=1e-6)
    assert float(norm) == pytest.approx(float(gradient.square().sum()), rel=1e-5, abs=1e-9)


def test_groups_of_many_unlikely_tokens_have_masses_that_vanish() -> None:
    """Eight tokens at the floor are e^-147, which no float32 holds; the coverage is still what the kept row says."""
    students, teachers = torch.zeros(11, 30), torch.zeros(11, 30)
    students[:, 0] = teachers[:, 0] = 60.0  # the tokens of all members are others
    case = Case.of(students, teachers, ([9], [9]), "bayesian", (torch.arange(20), torch.arange(20)), (1.0, 1.0))
    case.student.tokens.fill_(7)
    case.teacher.tokens.fill_(7)
    _, gradient, covered = case.truth()
    found = case.found()
    assert float(found[2]) == pytest.approx(float(covered), rel=1e-5)
    torch.testing.assert_close(found[1].double(), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("share", [None, 0.5])
def test_a_row_that_is_no_number_is_a_loss_that_is_none(whose: str, share: float | None) -> None:
    logits = {"student": normal(5, 40, 1, 0), "teacher": normal(5, 30, 1, 1)}
    logits[whose][2, 11] = torch.nan
    pairs = None if share is None else some_pairs((40, 30), share, 0)
    value, gradient, *_ = Case.of(logits["student"], logits["teacher"], ([1, 1, 1], [1, 1, 1]), pairs=pairs).found()
    assert value.isnan()
    assert gradient[2].isnan().all()
    assert gradient[[1, 3]].isfinite().all()


@pytest.mark.parametrize("share", [None, 0.5])
def test_threads_share_groups_out(share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [1, 2, 1, 3, 1], [2, 1, 1, 1, 2]
    students, teachers = normal(10, 50, 3, 0), normal(9, 40, 3, 1)
    pairs = None if share is None else some_pairs((50, 40), share, 0)
    case = Case.of(students, teachers, sizes, pairs=pairs)
    alone = case.found()
    monkeypatch.setattr(cpu_loops, "_ENTRIES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(one, other) for one, other in zip(alone, case.found(), strict=True))


# --- the trainer's walk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [SFT(), ULD(), ULD(pairing="bytes"), ULD(sort="top_k"), GOLD(), GOLD(beta=0.5), GOLD(sort="counted"),
     GOLD(fidelity="released"), GOLD(merge="observed", matched_weight=None, unmatched_weight=None), FKD(), MinED()],
    ids=lambda method: " ".join(map(str, (method.name, *method.options.model_dump(exclude_defaults=True).values()))),
)  # fmt: skip
def test_a_walk_with_loops(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that have loops, and some that have none, beside the same by torch."""
    walk, rows, weights = walked(contract.bench(method, dtype=torch.float32))
    called: list[bool] = []
    compare_into = comparison_cpu.compare_into
    monkeypatch.setattr(comparison_cpu, "compare_into", lambda *a, **k: (called.append(True), compare_into(*a, **k))[1])
    parts, gradients = walk.run(rows, weights, [True, True])
    has_loops = method.name in ("uld", "gold") and method.options.sort in ("auto", "exact")  # type: ignore[attr-defined]
    has_loops = has_loops and getattr(method.options, "beta", 0.0) == 0
    assert bool(called) == has_loops
    monkeypatch.setattr(cpu_loops, "enabled", False)
    plain, wanted = walk.run(rows, weights, [True, True])
    for name in ("loss", "ce", "kd", "ce_gradient", "kd_gradient"):
        torch.testing.assert_close(getattr(parts, name), getattr(plain, name), rtol=1e-4, atol=1e-6)
    assert parts.diagnostics.keys() == plain.diagnostics.keys()
    for name, pair in parts.diagnostics.items():
        torch.testing.assert_close(pair, plain.diagnostics[name], equal_nan=True, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert ours is not None
        assert theirs is not None
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
