"""Two teachers in one objective: how recipes write it, what its weights are, and its loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan.objectives import ObjectiveSpec, make_objectives
from harness.recipe.load import load_recipe
from methods.base import Need, UnknownMethodError, registered
from methods.cdm import CDM
from methods.fkd import FKD
from methods.library.dual import is_dual, parts_of
from methods.library.vocabulary import TokenizerPair, Vocabulary
from tests import tiny
from tests.harness.data.test_batches import STUDENT
from tests.harness.recipe.test_recipe import problems
from tests.methods.test_values import CROSS, SAME, Term, cross_entropy, distil, divisor, fkd, model, runs


def objectives(*overrides: str) -> list[ObjectiveSpec]:
    return make_objectives(load_recipe("quickstart", overrides))


@pytest.mark.parametrize("name", ["dual(fkd, cdm)", "dual(fkd,cdm)", "dual( cdm , fkd )"])
def test_a_name_says_which_method_learns_from_which_teacher(name: str) -> None:
    assert is_dual(name)
    assert parts_of(name) == ("fkd", "cdm")


@pytest.mark.parametrize("name", ["dual(fkd)", "dual(fkd, rkd)", "dual(uld, cdm)", "dual(fkd, sft)", "dual(a, b, c)"])
def test_other_pairs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parts_of(name)


def test_an_unknown_part_suggests_the_nearest() -> None:
    with pytest.raises(UnknownMethodError) as caught:
        parts_of("dual(fkd, cdmm)")
    assert (caught.value.name, caught.value.suggestion) == ("cdmm", "cdm")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("methods=[dual(fkd, cdmm)]", "methods.0: unknown method 'cdmm' in 'dual(fkd, cdmm)'. Did you mean \"cdm\"?"),
        ("methods=[dual(fkd)]", "methods.0: found 'dual(fkd)'; expected dual(METHOD, METHOD), such as dual(fkd, cdm)."),
        ("method_options.dual.same_weight=2", "method_options.dual.same_weight: found 2; input should be less"),
        ("method_options.dual.tau=2", "method_options.dual.tau: unknown option (value 2)."),
    ],
)
def test_mistakes_are_named(override: str, expected: str, tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, override)
    assert problem.startswith(expected)


def test_weights_are_shared_out_between_the_teachers() -> None:
    """L = α CE + (1 - α) [s KD_same + (1 - s) KD_cross]"""
    options = "method_options={all: {ce_weight: 0.4, kd_weight: 0.6}, dual: {same_weight: 0.25}, cdm: {k: 7}}"
    (made,) = objectives("methods=[dual(fkd, cdm)]", options)
    assert made.label == made.name == "dual(fkd, cdm)"
    assert (made.ce_weight, *(part.weight for part in made.parts)) == (0.4, 0.6 * 0.25, 0.6 * 0.75)
    assert [method.name for method in made.methods] == ["fkd", "cdm"]
    assert made.methods[1].options.k == 7
    assert made.roles == ("same", "cross")
    assert made.teacher_kind == "both"


def test_options_of_one_pair_win_over_those_of_all_pairs() -> None:
    options = 'method_options={dual: {same_weight: 0.25}, "dual(fkd, cdm)": {same_weight: 0.75}}'
    one, other = objectives("methods=[dual(fkd, cdm), dual(rkd, uld)]", options)
    assert [round(sum(part.weight for part in made.parts), 9) for made in (one, other)] == [0.5, 0.5]
    assert one.parts[0].weight == 0.5 * 0.75
    assert other.parts[0].weight == 0.5 * 0.25


def test_both_fidelities_of_a_dual_teacher_are_one_row() -> None:
    """No script was released for it."""
    assert [o.name for o in objectives("methods=[dual(fkd, cdm)]", "fidelity=[described,released]")] == [
        "dual(fkd, cdm)"
    ]


def test_a_released_part_stands_in_the_label() -> None:
    (made,) = objectives("methods=[dual(fkd, cdm)]", "method_options.cdm.fidelity=released")
    assert made.name == "dual(fkd, cdm (released))"
    assert made.methods[1].options.fidelity == "released"


def test_weights_of_the_parts_are_no_part_of_the_identity() -> None:
    """The pair's own count."""
    changes = ([], ["method_options.cdm.ce_weight=0.3"], ["method_options.dual.ce_weight=0.3"])
    plain, of_part, of_pair = (objectives("methods=[dual(fkd, cdm)]", *change)[0].identity() for change in changes)
    assert plain == of_part
    assert plain != of_pair


def test_the_loss_is_the_weighted_sum_of_both_terms() -> None:
    """FKD against its formula; CDM, which has a test of its own, against itself alone."""
    cdm = CDM(k=20)
    student, teacher = (Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for f in ("byte_level", "unigram"))
    cdm.prepare(TokenizerPair(student, teacher))
    alone = distil([Term(cdm, CROSS, 1.0)], **{CROSS: model(CROSS)})
    parts = distil(
        [Term(FKD(temperature=2), SAME, 0.15), Term(cdm, CROSS, 0.45)],
        ce_weight=0.4,
        **{r: model(r) for r in (SAME, CROSS)},
    )
    every = runs(SAME, model(STUDENT), model(SAME))
    tokens = divisor(every, "tokens")
    expected = 0.4 * cross_entropy(every) + 0.15 * fkd(every) + 0.45 * float(alone.kd[0])
    assert float(parts.kd[1]) == pytest.approx(float(alone.kd[0]), rel=1e-9)
    assert float(parts.loss.detach()) == pytest.approx(expected / tokens, rel=1e-9)


def test_every_pair_of_kinds_can_be_combined() -> None:
    """Whatever one method needs of the engine, the other gets its own groups and rows."""
    kinds = registered()
    needs = {name: kind().needs for name, kind in kinds.items()}
    assert Need.ENTROPY in needs["cdm"]
    for same in (n for n, k in kinds.items() if k.teacher.value == "same-tokenizer"):
        for cross in (n for n, k in kinds.items() if k.teacher.value == "cross-tokenizer"):
            methods = (kinds[same](), kinds[cross]())
            pair = [Vocabulary.of(tiny.tokenizer(f).backend_tokenizer, f, (2,)) for f in ("byte_level", "unigram")]
            methods[1].prepare(TokenizerPair(*pair))
            parts = distil(
                [Term(methods[0], SAME, 0.5), Term(methods[1], CROSS, 0.5)], **{r: model(r) for r in (SAME, CROSS)}
            )
            assert all(float(kd) > 0 for kd in parts.kd), (same, cross)
