"""GOLD and ULD against TRL's own loss: values and gradients in float32, on text that byte-level tokenizers cut.

TRL takes byte-level tokenizers only, matches vocabularies by string and takes a mean over each response's groups.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.tokens import STUDENT, TokenizedExample, tokenize
from methods.base import Method
from methods.gold import GOLD, Columns
from methods.library.alignment import pair_positions
from methods.library.maps import exact_map
from methods.library.vocabulary import TokenizerPair
from methods.uld import ULD
from tests import tiny
from tests.methods.contract import loss_of_logits

# Tokens of 300 are all among those of 400, so that one side has no unmatched ones; 350 learnt from other text.
TEXTS = {300: tuple(tiny.TEXT), 350: tuple(tiny.TEXT[1::2]), 400: tuple(tiny.TEXT)}
PAIRS = pytest.mark.parametrize(("ours", "theirs"), list(permutations(TEXTS, 2)))
# β of the hybrid loss and both its weights; None: without it
HYBRID = [None, (0.0, None), (0.5, None), (1.0, None), (0.0, 1.0)]


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL's module; imported here, since that takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        return pytest.importorskip("trl.experimental.gold.gold_trainer", reason="TRL, the peer, is not installed")


@cache
def text_side(size: int) -> TextSide:
    return TextSide(tiny.tokenizer("byte_level", size, TEXTS[size]), template="plain", name=str(size))


def pair_of(ours: int, theirs: int) -> TokenizerPair:
    return TokenizerPair(text_side(ours).vocabulary, text_side(theirs).vocabulary)


@cache
def examples(ours: int, theirs: int) -> list[TokenizedExample]:
    texts = [Example(str(i), prompt, response) for i, (prompt, response) in enumerate(tiny.SAMPLES)]
    return tokenize(texts, {STUDENT: text_side(ours), "cross": text_side(theirs)}, max_length=256)


def random_logits(example: TokenizedExample, role: str, width: int, seed: int) -> Tensor:
    """[length, width], wide enough that some merged masses are below TRL's floor of 1e-8."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(example.sides[role].length, width, generator=generator)


def trl_loss(
    loss_of: Any, made: list[TokenizedExample], student: list[Tensor], teacher: list[Tensor]
) -> tuple[float, list[Tensor]]:
    """TRL's loss of a padded batch, and its gradient at each example's student logits."""
    given: dict[str, Tensor] = {}
    for name, role, logits in (("student", STUDENT, student), ("teacher", "cross", teacher)):
        width, length = logits[0].shape[-1], max(len(row) for row in logits)
        given[f"{name}_logits"] = torch.zeros(len(made), length, width)
        given[f"{name}_labels"] = torch.full((len(made), length), -100)
        given[f"{name}_input_ids"] = torch.zeros(len(made), length, dtype=torch.long)
        given[f"{name}_byte_offsets"] = torch.zeros(len(made), length, 2, dtype=torch.long)
        for number, (example, row) in enumerate(zip(made, logits, strict=True)):
            side = example.sides[role]
            place, response = slice(side.length), slice(side.prompt.size, side.length)
            given[f"{name}_logits"][number, place] = row
            given[f"{name}_input_ids"][number, place] = torch.from_numpy(side.sequence)
            given[f"{name}_labels"][number, response] = torch.from_numpy(side.response)
            given[f"{name}_byte_offsets"][number, response, 1] = torch.from_numpy(side.ends)  # it reads no starts
    given["student_logits"].requires_grad_()
    loss = loss_of(**given)
    (gradient,) = torch.autograd.grad(loss, given["student_logits"])
    return float(loss.detach()), [g[: len(s)] for g, s in zip(gradient, student, strict=True)]


def assert_near(found: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]]) -> None:
    """Within 1e-5, relative: of gradients both as a whole and at their largest difference."""
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert theirs.abs().max() > 0
        assert float((ours - theirs).norm()) < 1e-5 * float(theirs.norm())
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def configured(**settings: Any) -> SimpleNamespace:
    """What ULDLoss reads of a GOLDConfig, with skipping of EOS switched off and KD alone."""
    defaults = {
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": 1.0,
        "uld_teacher_temperature": 1.0,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
    }
    return SimpleNamespace(**defaults | settings)


def ours_for(extended: bool, merge: str, hybrid: tuple[float, float | None] | None) -> Method:
    """The method of ours that a setting of TRL's is, per group."""
    if hybrid is not None:
        weights = {"matched_weight": hybrid[1], "unmatched_weight": hybrid[1]}
        return GOLD(merge=merge, match="string", beta=hybrid[0], normalize="rows", **weights)
    if extended:
        return ULD(pairing="bytes", merge=merge, normalize="rows")
    # by position nothing is merged; what is left of the strategy is which rows are read
    return ULD(fidelity="released" if merge == "observed" else "described", normalize="rows")


@PAIRS
@pytest.mark.parametrize("hybrid", HYBRID)
@pytest.mark.parametrize("merge", ["observed", "bayesian"])
@pytest.mark.parametrize("extended", [True, False], ids=["bytes", "position"])
@pytest.mark.parametrize("padding", [(0, 0), (5, 9)], ids=["tight", "padded"])
def test_loss_and_gradient_are_trls(
    trl: Any,
    ours: int,
    theirs: int,
    padding: tuple[int, int],
    extended: bool,
    merge: str,
    hybrid: tuple[float, float | None] | None,
) -> None:
    method = ours_for(extended, merge, hybrid)
    method.prepare(pair_of(ours, theirs))
    beta, weight = hybrid or (None, None)
    config = configured(
        use_extended_uld=extended,
        uld_token_merge_strategy=merge,
        uld_use_hybrid_loss=hybrid is not None,
        uld_hybrid_matched_weight=weight,
        uld_hybrid_unmatched_weight=weight,
        beta=beta,
    )
    peer = trl.ULDLoss(config, text_side(ours).tokenizer, text_side(theirs).tokenizer)
    for number, example in enumerate(examples(ours, theirs)[1::2]):  # emoji and digits; one at a time
        student = random_logits(example, STUDENT, ours + padding[0], 2 * number)
        teacher = random_logits(example, "cross", theirs + padding[1], 2 * number + 1)
        sizes = example.sides[STUDENT].response.size, example.sides["cross"].response.size
        groups = None if extended else [pair_positions(*sizes)]
        found = loss_of_logits(method, [example], [student], [teacher], groups)
        assert_near(found, trl_loss(peer, [example], [student], [teacher]))


@pytest.mark.parametrize("hybrid", [None, (0.5, None)])
def test_temperatures_are_trls(trl: Any, hybrid: tuple[float, float | None] | None) -> None:
    """One for the student, another for the teacher."""
    apart = {"student_temperature": 2.0, "teacher_temperature": 0.7}
    if hybrid is None:
        method: Method = ULD(pairing="bytes", normalize="rows", **apart)
    else:
        weights = {"matched_weight": None, "unmatched_weight": None}
        method = GOLD(match="string", beta=hybrid[0], normalize="rows", **weights, **apart)
    method.prepare(pair_of(350, 400))
    config = configured(
        use_extended_uld=True,
        uld_token_merge_strategy="bayesian",
        uld_use_hybrid_loss=hybrid is not None,
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=None if hybrid is None else hybrid[0],
        **{f"uld_{name}": value for name, value in apart.items()},
    )
    peer = trl.ULDLoss(config, text_side(350).tokenizer, text_side(400).tokenizer)
    example = examples(350, 400)[1]
    student, teacher = random_logits(example, STUDENT, 350, 0), random_logits(example, "cross", 400, 1)
    assert_near(
        loss_of_logits(method, [example], [student], [teacher]), trl_loss(peer, [example], [student], [teacher])
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_with_one_tokenizer_it_is_trls_jsd(trl: Any, beta: float) -> None:
    """GKD's, which GOLDTrainer computes for such a teacher, at logits of spread 5: far below the floor of 1e-8."""
    method = GOLD(beta=beta, matched_weight=1, unmatched_weight=1, normalize="rows")
    method.prepare(TokenizerPair(text_side(400).vocabulary, text_side(400).vocabulary))
    made = tokenize([Example("0", *tiny.SAMPLES[3])], {r: text_side(400) for r in (STUDENT, "cross")}, max_length=256)
    student, teacher = (random_logits(made[0], STUDENT, 400, seed) * 5 / 3 for seed in (0, 1))
    found = loss_of_logits(method, made, [student], [teacher])
    side = made[0].sides[STUDENT]
    rows = slice(side.prompt.size - 1, side.length - 1)
    student.requires_grad_()
    loss = trl.GOLDTrainer.generalized_jsd_loss(student[None, rows], teacher[None, rows], beta=beta, reduction="sum")
    (gradient,) = torch.autograd.grad(loss / side.response.size, student)
    assert student[rows].log_softmax(-1).min() < -18.5
    assert_near(found, (float(loss.detach()) / side.response.size, [gradient]))


@PAIRS
def test_released_is_trl_with_its_own_defaults(trl: Any, ours: int, theirs: int, tmp_path: Path) -> None:
    """Several responses at once: EOS skipped, means over each response's groups, then over responses."""
    settings = {"use_uld_loss": True, "uld_use_hybrid_loss": True}
    config = trl.GOLDConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **settings)
    method = GOLD(fidelity="released")
    method.prepare(pair_of(ours, theirs))
    made = examples(ours, theirs)
    student = [random_logits(e, STUDENT, ours + 5, i) for i, e in enumerate(made)]
    teacher = [random_logits(e, "cross", theirs + 9, 9 + i) for i, e in enumerate(made)]
    found = loss_of_logits(method, made, student, teacher)
    peer = trl.ULDLoss(config, text_side(ours).tokenizer, text_side(theirs).tokenizer)
    assert_near(found, trl_loss(peer, made, student, teacher))


@PAIRS
def test_the_comparison_reaches_all_that_differs(ours: int, theirs: int) -> None:
    """Merged groups, masses below the floor, and unmatched columns on both sides or on one."""
    pair = pair_of(ours, theirs)
    columns = Columns.of(torch.from_numpy(exact_map(pair.teacher, pair.student, "string")), ours, theirs)
    assert columns.teacher_matched.numel() > 250
    assert bool(columns.student_rest.numel() and columns.teacher_rest.numel()) == (350 in (ours, theirs))
    for example in examples(ours, theirs)[1::2]:
        groups = GOLD().align(example.aligned("cross"))
        assert groups.count < max(side.response.size for side in example.sides.values())
        assert random_logits(example, STUDENT, ours, 0).softmax(-1).min() < 1e-8
