"""Every method against its formula, written out a row at a time over the full logits of two tiny models in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness.data.batches import Batch, Collator
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.terms import Term, align
from harness.data.tokens import STUDENT, TokenizedExample, tokenize
from harness.training.loss import Distiller
from harness.training.objective import LossParts, Objective
from methods.base import AlignedChunk, LossSums, Method, TeacherKind, UnknownMethodError, find, register, registered
from methods.fkd import FKD
from methods.library.alignment import AlignedResponse, Groups, pair_identical
from methods.library.vocabulary import TokenizerPair, Vocabulary
from methods.rkd import RKD
from methods.sft import SFT, Control
from methods.uld import ULD
from tests import tiny

SAME, CROSS = "same", "cross"
FAMILIES = {STUDENT: "byte_level", SAME: "byte_level", CROSS: "unigram"}
TIGHT = {"rel": 1e-9, "abs": 0.0}


@dataclass(frozen=True)
class Run:
    """All logits of one example, and where its responses stand.

    Attributes:
        zs, zt: [length, vocabulary], logits of student and teacher at every position.
        ids: the student's response tokens.
        ps, pt: tokens before the response; ns, nt: tokens of the response.
    """

    zs: Tensor
    zt: Tensor
    ids: list[int]
    ps: int
    ns: int
    pt: int
    nt: int


@cache
def model(role: str, padding: int = 0) -> Any:
    """The tiny model of a role, its vocabulary padded by some columns that no token uses."""
    size = len(tiny.tokenizer(FAMILIES[role])) + padding
    return tiny.model("opt", size, seed=list(FAMILIES).index(role), dtype=torch.float64).eval()


@cache
def examples() -> list[TokenizedExample]:
    """The four samples for all three models; the limit cuts one response, which so has no EOS."""
    sides = {role: TextSide(tiny.tokenizer(family), template="plain", name=role) for role, family in FAMILIES.items()}
    texts = [Example(str(i), prompt, response) for i, (prompt, response) in enumerate(tiny.SAMPLES)]
    made = tokenize(texts, sides, max_length=48)
    assert [example.cut for example in made].count(True) == 1
    return made


@torch.no_grad()
def runs(role: str, student: Any, teacher: Any) -> list[Run]:
    made = []
    for example in examples():
        mine, other = example.sides[STUDENT], example.sides[role]
        zs, zt = (
            m(input_ids=torch.from_numpy(side.sequence)[None]).logits[0]
            for m, side in ((student, mine), (teacher, other))
        )
        sizes = mine.prompt.size, mine.response.size, other.prompt.size, other.response.size
        made.append(Run(zs, zt, mine.response.tolist(), *sizes))
    return made


def distil(terms: Sequence[Term], *, ce_weight: float = 0.3, student: Any = None, **teachers: Any) -> LossParts:
    student = student or model(STUDENT)
    objective = Objective("test", ce_weight, tuple(terms))
    batch = collate(terms)
    return Distiller(student, objective, teachers)(batch, objective.divisors(batch.counts))


def collate(terms: Sequence[Term]) -> Batch:
    return Collator(terms, dict.fromkeys(FAMILIES, 0), chunk_rows=10).collate([align(e, terms) for e in examples()])


# --- the formulas -----------------------------------------------------------------------------------------------------


def cross_entropy(every: Sequence[Run]) -> float:
    """CE = Σ -log p_S(y_j), at the position before y_j."""
    return float(sum(-r.zs[r.ps - 1 + j].log_softmax(-1)[y] for r in every for j, y in enumerate(r.ids)))


def forward_row(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """τ² Σ p_T log(p_T / p_S) over the columns that both have."""
    columns = min(s.size(0), t.size(0))
    p, q = (t[:columns] / tau).softmax(-1), (s[:columns] / tau).softmax(-1)
    return tau**2 * (p * (p / q).log()).sum()


def reverse_row(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """τ² Σ p_S log(p_S / p_T)"""
    return forward_row(t, s, tau)


def response_kl(every: Sequence[Run], row: Callable[..., Tensor], tau: float = 2.0) -> float:
    """Described: the rows p-1 .. p+n-2, which predict the response."""
    return float(sum(row(r.zs[i], r.zt[i], tau) for r in every for i in range(r.ps - 1, r.ps + r.ns - 1)))


def sequence_kl(every: Sequence[Run], row: Callable[..., Tensor], tau: float = 2.0) -> float:
    """Released: every position of the sequence, the prompt and the last one too."""
    return float(sum(row(r.zs[i], r.zt[i], tau) for r in every for i in range(r.ps + r.ns)))


def sorted_l1_rows(every: Sequence[Run], first: int, taus: tuple[float, float] = (1.0, 1.0)) -> float:
    """Σ_k |p_(k) - q_(k)|, token by token from position p + first on, as far as the shorter response goes."""
    total = 0.0
    for r in every:
        for i in range(min(r.ns, r.nt)):
            p = (r.zs[r.ps + first + i] / taus[0]).softmax(-1).sort(descending=True).values.tolist()
            q = (r.zt[r.pt + first + i] / taus[1]).softmax(-1).sort(descending=True).values.tolist()
            p, q = p + [0.0] * (len(q) - len(p)), q + [0.0] * (len(p) - len(q))
            total += sum(abs(a - b) for a, b in zip(p, q, strict=True))
    return total


fkd, rkd = partial(response_kl, row=forward_row), partial(response_kl, row=reverse_row)
fkd_released = partial(sequence_kl, row=forward_row)
uld, uld_released = partial(sorted_l1_rows, first=-1), partial(sorted_l1_rows, first=0)

# method, role of its teacher, its formula, the place of its divisor: (response tokens, responses)
VALUES = [
    pytest.param(FKD(temperature=2), SAME, fkd, "tokens", id="fkd"),
    pytest.param(FKD(temperature=1), SAME, partial(fkd, tau=1.0), "tokens", id="fkd at temperature 1"),
    pytest.param(FKD(fidelity="released", temperature=2), SAME, fkd_released, "samples", id="fkd released"),
    pytest.param(RKD(temperature=2), SAME, rkd, "tokens", id="rkd"),
    pytest.param(RKD(temperature=3), SAME, partial(rkd, tau=3.0), "tokens", id="rkd at temperature 3"),
    pytest.param(RKD(fidelity="released", temperature=2), SAME, fkd_released, "samples", id="rkd released is fkd"),
    pytest.param(ULD(), CROSS, uld, "tokens", id="uld"),
    pytest.param(ULD(), SAME, uld, "tokens", id="uld with one tokenizer"),
    pytest.param(ULD(fidelity="released"), CROSS, uld_released, "tokens", id="uld released"),
    pytest.param(ULD(temperature=2), CROSS, partial(uld, taus=(2.0, 2.0)), "tokens", id="uld at temperature 2"),
    pytest.param(
        ULD(student_temperature=2, teacher_temperature=0.7),
        CROSS,
        partial(uld, taus=(2.0, 0.7)),
        "tokens",
        id="uld at two temperatures",
    ),
    pytest.param(ULD(normalize="samples"), CROSS, uld, "samples", id="uld per response"),
    pytest.param(ULD(normalize="rows"), CROSS, uld, "rows", id="uld per pair"),
]


def divisor(every: Sequence[Run], normalize: str) -> float:
    counts = {"tokens": [r.ns for r in every], "samples": [1 for _ in every], "rows": [min(r.ns, r.nt) for r in every]}
    return float(sum(counts[normalize]))


@pytest.mark.parametrize(("method", "role", "formula", "normalize"), VALUES)
def test_a_method_is_its_formula(
    method: Method, role: str, formula: Callable[[Sequence[Run]], float], normalize: str
) -> None:
    every = runs(role, model(STUDENT), model(role))
    ce, kd = cross_entropy(every), formula(every)
    parts = distil([Term(method, role, 0.7)], **{role: model(role)})
    assert kd > 1e-3
    assert float(parts.ce) == pytest.approx(ce, **TIGHT)
    assert float(parts.kd[0]) == pytest.approx(kd, **TIGHT)
    expected = 0.3 * ce / divisor(every, "tokens") + 0.7 * kd / divisor(every, normalize)
    assert float(parts.loss.detach()) == pytest.approx(expected, **TIGHT)


@pytest.mark.parametrize("method", [SFT(), Control()], ids=["sft", "control"])
def test_without_a_teacher_the_loss_is_the_cross_entropy(method: Method) -> None:
    every = runs(SAME, model(STUDENT), model(SAME))
    parts = distil([], ce_weight=method.options.ce_weight)
    assert parts.kd.numel() == 0
    assert float(parts.loss.detach()) == pytest.approx(cross_entropy(every) / divisor(every, "tokens"), **TIGHT)


def test_terms_on_two_teachers_and_all_kinds_of_rows_add_up() -> None:
    """One window of rows has to serve whole sequences, predicting rows and rows after consumption at once."""
    one, two = runs(SAME, model(STUDENT), model(SAME)), runs(CROSS, model(STUDENT), model(CROSS))
    terms = [
        Term(ULD(), CROSS, 0.1),
        Term(FKD(fidelity="released", temperature=2), SAME, 0.2),
        Term(RKD(temperature=2), SAME, 0.3),
        Term(ULD(fidelity="released"), CROSS, 0.4),
        Term(ULD(), SAME, 0.5),
    ]
    parts = distil(terms, **{SAME: model(SAME), CROSS: model(CROSS)})
    expected = [uld(two), fkd_released(one), rkd(one), uld_released(two), uld(one)]
    assert parts.kd.tolist() == pytest.approx(expected, **TIGHT)
    tokens, samples = divisor(one, "tokens"), divisor(one, "samples")
    shares = [
        term.weight * kd / d for term, kd, d in zip(terms, expected, [tokens, samples, *[tokens] * 3], strict=True)
    ]
    assert float(parts.loss.detach()) == pytest.approx(0.3 * cross_entropy(one) / tokens + sum(shares), **TIGHT)


@pytest.mark.parametrize(("student_padding", "teacher_padding"), [(0, 8), (8, 0), (3, 8)])
@pytest.mark.parametrize(
    ("method", "formula"),
    [(FKD(temperature=2), fkd), (FKD(fidelity="released", temperature=2), fkd_released), (RKD(temperature=2), rkd)],
    ids=["fkd", "fkd released", "rkd"],
)
def test_logits_padded_to_other_sizes_are_compared_over_the_shared_columns(
    method: Method, formula: Callable[[Sequence[Run]], float], student_padding: int, teacher_padding: int
) -> None:
    """As Qwen2-0.5B and Qwen2-7B: 151,936 and 152,064 columns for one tokenizer."""
    student, teacher = model(STUDENT, student_padding), model(SAME, teacher_padding)
    every = runs(SAME, student, teacher)
    assert every[0].zs.shape[-1] - student_padding == every[0].zt.shape[-1] - teacher_padding
    parts = distil([Term(method, SAME, 1.0)], student=student, same=teacher)
    assert float(parts.kd[0]) == pytest.approx(formula(every), **TIGHT)
    assert float(parts.ce) == pytest.approx(cross_entropy(every), **TIGHT)


# --- options, reasons, registry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "values"),
    [(FKD, {"temperature": 0}), (FKD, {"kd_weight": -1}), (ULD, {"teacher_temperature": 0}),
     (ULD, {"fidelity": "exact"}), (ULD, {"ce_weight": float("nan")}), (SFT, {"normalize": "bytes"})],
)  # fmt: skip
def test_options_are_checked(method: type[Method], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        method(**values)


def vocabulary(family: str) -> Vocabulary:
    return Vocabulary.of(tiny.tokenizer(family).backend_tokenizer, family)


@pytest.mark.parametrize("method", [FKD(), RKD(), RKD(fidelity="released")])
def test_same_tokenizer_methods_refuse_other_pairs_with_a_reason(method: Method) -> None:
    reason = method.refuses(TokenizerPair(vocabulary("byte_level"), vocabulary("unigram")))
    assert reason is not None
    assert reason.startswith(f"{method.name} compares distributions over one vocabulary")
    assert "byte_level has 400 tokens and unigram" in reason
    assert method.refuses(TokenizerPair(vocabulary("unigram"), vocabulary("unigram"))) is None


def test_same_tokenizer_methods_refuse_models_that_end_a_response_otherwise() -> None:
    """A base student and an instruct teacher of one family: one vocabulary, two EOS tokens."""
    made = tiny.tokenizer("byte_level").backend_tokenizer
    pair = TokenizerPair(Vocabulary.of(made, "base", eos=[2]), Vocabulary.of(made, "instruct", eos=[1]))
    assert FKD().refuses(pair) is not None


@pytest.mark.parametrize("method", [ULD(), SFT(), Control()])
def test_other_methods_take_any_pair(method: Method) -> None:
    assert method.refuses(TokenizerPair(vocabulary("byte_level"), vocabulary("unigram"))) is None


@pytest.mark.parametrize(
    ("name", "suggestion"), [("udl", "uld"), ("fdk", "fkd"), ("contrl", "control"), ("zzzz", None)]
)
def test_an_unknown_method_suggests_the_nearest(name: str, suggestion: str | None) -> None:
    with pytest.raises(UnknownMethodError) as caught:
        find(name)
    assert (caught.value.name, caught.value.suggestion) == (name, suggestion)


def test_a_name_can_be_taken_once() -> None:
    before = registered()

    class Impostor(SFT):
        name = "uld"

    with pytest.raises(ValueError, match=r"two methods are called 'uld': .*ULD.*Impostor"):
        register(Impostor)
    assert register(ULD) is ULD  # the same class again, as on a second import, is no conflict
    assert registered() == before


PLUGIN = """
from methods.base import LossSums, Method, TeacherKind, register

@register
class Nothing(Method):
    name, paper, teacher, summary = "nothing", "none", TeacherKind.NONE, "a plug-in"

    def loss(self, chunk):
        return LossSums(kd=chunk.student.logits.sum() * 0)
"""


def test_an_installed_distribution_can_bring_a_method(tmp_path: Path) -> None:
    """Found through its entry point, in a process of its own so that no other test sees it."""
    information = tmp_path / "plug_in-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[ctkd_harness.methods]\nnothing = plug_in_module:Nothing\n")
    (tmp_path / "plug_in_module.py").write_text(PLUGIN)
    code = "from methods.base import find, registered; print(find('nothing').__module__, *registered())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    module, *names = found.stdout.split()
    assert module == "plug_in_module"
    assert sorted(names) == sorted([*registered(), "nothing"])


# --- a method's own parameters ----------------------------------------------------------------------------------------


class Scaled(Method):
    """KD = a · Σ KL, where a is trained with the student."""

    name, paper, teacher, summary = "scaled", "a test", TeacherKind.SAME_TOKENIZER, "a test"

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(1, 1, bias=False, dtype=torch.float64)

    def align(self, response: AlignedResponse) -> Groups:
        return pair_identical(response)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        student, teacher = chunk.paired_over_shared_columns()
        return LossSums(kd=self.own.weight.sum() * (teacher.exp() * (teacher - student)).sum())

    def trainable(self) -> nn.Module:
        return self.own


def test_a_methods_own_parameters_get_their_gradient() -> None:
    method = Scaled()
    distil([Term(method, SAME, 0.7)], same=model(SAME)).loss.backward()
    every = runs(SAME, model(STUDENT), model(SAME))
    expected = 0.7 * fkd(every, tau=1.0) / divisor(every, "tokens")
    assert method.own.weight.grad is not None
    assert float(method.own.weight.grad) == pytest.approx(expected, **TIGHT)
