"""What any method must keep, tried on two tiny models with different tokenizers: ``check_method("uld")``.

Needs neither pytest nor a checkout, so that a plug-in in a package of its own is held to it too.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harness.base.promises import BrokenPromiseError, Checked
from harness.data.batches import Batch
from harness.data.terms import align
from harness.data.tokens import STUDENT, SideTokens
from harness.training.contract_bench import Bench, StoppedError, bench, run
from methods.base import Method, Need, Rows, TeacherKind, find
from methods.library.alignment import AlignedResponse
from methods.library.maps import UNMAPPED
from methods.library.vocabulary import TokenizerPair, Vocabulary


def _promise(kept: bool | torch.Tensor, detail: str) -> None:
    if not kept:
        raise BrokenPromiseError(detail)


def _close(
    name: str, found: float | torch.Tensor, expected: float | torch.Tensor, tolerance: float, least: float = 0.0
) -> None:
    """Numbers that differ by at most ``tolerance`` of the expected one, or of ``least`` where that is more."""
    left, right = float(found), float(expected)
    near = abs(left - right) <= tolerance * max(abs(right), least)  # NaN is not near
    _promise(near, f"{name}: found {left:.9g}, expected {right:.9g}")


def finite_and_positive(method: Method) -> None:
    """The loss is finite, and with a teacher its distillation term is not 0."""
    made = bench(method, dtype=torch.float32)
    parts = made.loss(made.batch())
    _promise(torch.isfinite(parts.loss), f"the loss is {float(parts.loss.detach())}")
    if method.teacher is not TeacherKind.NONE:
        _promise(float(parts.kd[0]) != 0, "the distillation term is 0")


def gradient_reaches_the_student_only(method: Method) -> None:
    """Every parameter of the student gets a finite gradient, none of the teacher does."""
    made = bench(method)
    made.loss(made.batch()).loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in made.student.named_parameters():
        reached = parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0
        _promise(reached, f"the student's {name} has no finite gradient but 0")
    if made.teacher is not None:
        for name, parameter in made.teacher.named_parameters():
            _promise(parameter.grad is None and not parameter.requires_grad, f"the teacher's {name} has a gradient")
        own = [name for name, _ in made.distiller().named_parameters() if name.startswith("teacher")]
        _promise(not own, f"parameters of a teacher are trained: {own}")


def zero_at_identity(method: Method) -> None:
    """The distillation term is 0 where student and teacher are one model with one tokenizer.

    Of the loss only: a distance that is no square has no gradient at its minimum (ULD's L1).
    """
    made = bench(method, identical=True)
    parts = made.loss(made.batch())
    _promise(abs(float(parts.kd[0])) < 1e-9 * float(parts.ce), f"the distillation term is {float(parts.kd[0]):.3g}")


def ids_do_not_matter(method: Method) -> None:
    """Other ids for the same tokens, on both sides, change nothing; control tokens keep theirs, since 0 pads."""
    made = bench(method)
    expected = made.loss(made.batch())
    orders = {role: _new_ids(len(side.vocabulary), seed=len(role)) for role, side in made.sides.items()}
    if made.role == "same":
        orders["same"] = orders[STUDENT]
    vocabularies = [_renumbered(made.sides[role].vocabulary, orders[role]) for role in (STUDENT, made.role)]
    method.prepare(TokenizerPair(vocabularies[0], vocabularies[1]))
    for role, model in ((STUDENT, made.student), (made.role, made.teacher)):
        assert model is not None
        with torch.no_grad():
            for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
                weight[torch.from_numpy(orders[role])] = weight.clone()
    examples = [
        replace(
            aligned.example,
            sides={
                role: SideTokens(orders[role][side.prompt], orders[role][side.response], side.ends)
                for role, side in aligned.example.sides.items()
            },
        )
        for aligned in made.examples
    ]
    made.examples = [align(example, made.objective.terms) for example in examples]
    found = made.loss(made.batch())
    _close("cross-entropy", found.ce, expected.ce, 1e-9)
    _close("distillation term", found.kd[0], expected.kd[0], 1e-9)
    _close("squared norm of its gradient", found.kd_gradient[0], expected.kd_gradient[0], 1e-8)


def _new_ids(size: int, seed: int) -> npt.NDArray[np.int64]:
    """int64 [size]: the new id of each token."""
    return np.concatenate([np.arange(3), 3 + np.random.default_rng(seed).permutation(size - 3)])


def _renumbered(vocabulary: Vocabulary, new_ids: npt.NDArray[np.int64]) -> Vocabulary:
    old = np.argsort(new_ids)
    return replace(
        vocabulary,
        token_bytes=tuple(vocabulary.token_bytes[i] for i in old),
        kinds=vocabulary.kinds[old],
        pieces=tuple(vocabulary.pieces[i] for i in old),
    )


def batching_does_not_matter(method: Method) -> None:
    """Chunk size, padding side, order and batch split give the same loss and the same gradients."""
    made = bench(method)
    whole = made.batch()
    divisors = made.objective.divisors(whole.counts)
    expected = _loss_and_gradient(made, [whole], divisors)
    variants = {
        "chunks of one row": [made.batch(chunk_rows=1)],
        "chunks of seven rows": [made.batch(chunk_rows=7)],
        "left padding": [made.batch(padding_side="left")],
        "reversed": [made.batch(made.examples[::-1])],
        "one at a time": [made.batch([example]) for example in made.examples],
        "three and one": [made.batch(made.examples[:3]), made.batch(made.examples[3:], chunk_rows=5)],
    }
    for name, batches in variants.items():
        loss, gradient = _loss_and_gradient(made, batches, divisors)
        _close(f"loss with {name}", loss, expected[0], 1e-10)
        worst = float((gradient - expected[1]).abs().max())
        near = torch.allclose(gradient, expected[1], rtol=1e-9, atol=1e-11)
        _promise(near, f"gradient with {name}: {worst:.3g} away at most")


def _loss_and_gradient(made: Bench, batches: Sequence[Batch], divisors: Sequence[float]) -> tuple[float, torch.Tensor]:
    made.student.zero_grad()
    total = 0.0
    for batch in batches:
        parts = made.loss(batch, divisors)
        parts.loss.backward()  # type: ignore[no-untyped-call]
        total += float(parts.loss.detach())
    return total, torch.cat([p.grad.flatten() for p in made.student.parameters()])


def a_batch_aligns_like_its_responses(method: Method) -> None:
    """``align_all`` gives what ``align`` gives, with random entropies where it reads them; one token is a response.

    So does ``pair_all``, of a method that has it, where the models are.
    """
    made = bench(method)
    random = np.random.default_rng(0)
    responses = [aligned.example.aligned(made.role) for aligned in made.examples]
    first = responses[0]
    fields = ("student_ids", "teacher_ids", "student_ends", "teacher_ends")
    responses.append(replace(first, **{name: getattr(first, name)[:1] for name in fields}))
    responses = [
        replace(
            one,
            student_entropy=random.random(len(one.student_ids)),
            teacher_entropy=random.random(len(one.teacher_ids)),
        )
        for one in responses
    ]
    for number, (whole, response) in enumerate(zip(method.align_all(responses), responses, strict=True)):
        _promise(_same(whole, method.align(response)), f"response {number} is aligned otherwise in a batch")
    _promise(method.align_all([]) == [], "no responses are not aligned to no groups")
    on = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = method.pair_all([_with_tensors(response, on) for response in responses])
    if pairs is None:
        return
    for number, (found, response) in enumerate(zip(pairs.partners, responses, strict=True)):
        groups, partners = method.align(response), np.full(len(response.student_ids), UNMAPPED)
        alone = len(groups.student_index) == len(groups.teacher_index) == groups.count
        _promise(alone, f"response {number} is paired, but has groups of several tokens")
        partners[groups.student_index] = groups.teacher_index
        _promise(np.array_equal(found.cpu().numpy(), partners), f"response {number} is paired otherwise than aligned")


def _with_tensors(response: AlignedResponse, device: str) -> AlignedResponse:
    """With its entropies on a device."""
    ours, theirs = (
        torch.as_tensor(each, device=device) for each in (response.student_entropy, response.teacher_entropy)
    )
    return replace(response, student_entropy=ours, teacher_entropy=theirs)


def nothing_is_changed(method: Method) -> None:
    """A loss changes neither batch nor weights, and a second time it is the same."""
    made = bench(method)
    batch = made.batch()
    models = [model for model in (made.student, made.teacher) if model is not None]
    before, weights = copy.deepcopy(batch), copy.deepcopy([model.state_dict() for model in models])
    first = made.loss(batch).loss
    first.backward()  # type: ignore[no-untyped-call]
    again = made.loss(batch).loss
    once, twice = float(first.detach()), float(again.detach())
    _promise(once == twice, f"the loss is {once}, then {twice}")
    _promise(_same(before, batch), "the batch has been changed")
    _promise(_same(weights, [dict(model.state_dict()) for model in models]), "weights have been changed")


def _same(left: Any, right: Any) -> bool:  # Any: of one type, which is found out here
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if hasattr(left, "__dataclass_fields__"):
        return all(_same(getattr(left, name), getattr(right, name)) for name in left.__dataclass_fields__)
    return bool(left == right)


def a_masked_example_adds_nothing(method: Method) -> None:
    """An example without a response; methods that score the prompt are held to the cross-entropy alone."""
    made = bench(method)
    empty = np.zeros(0, dtype=np.int64)
    first = made.examples[0].example
    masked = replace(
        first, id="masked", sides={role: SideTokens(side.prompt, empty, empty) for role, side in first.sides.items()}
    )
    extra = align(masked, made.objective.terms)
    plain = made.batch()
    divisors = made.objective.divisors(plain.counts)
    alone, more = made.loss(plain, divisors), made.loss(made.batch([*made.examples, extra]), divisors)
    _close("cross-entropy", more.ce, alone.ce, 1e-9)
    if method.rows is not Rows.ALL and method.teacher is not TeacherKind.NONE:
        _close("distillation term", more.kd[0], alone.kd[0], 1e-9)


def gradient_equals_finite_differences(method: Method) -> None:
    """In float64, along random directions of all parameters, a quarter at a time; not of a head that is held fixed."""
    made = bench(method)
    batch = made.batch(chunk_rows=20)
    made.student.zero_grad()
    made.loss(batch).loss.backward()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    step = 1e-6
    fixed = made.student.get_output_embeddings().weight if Need.HIDDEN in method.needs else None
    parameters = [each for each in made.student.named_parameters() if each[1] is not fixed]
    for quarter in (parameters[start::4] for start in range(4)):
        moved = []
        for _, parameter in quarter:
            direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            moved.append((parameter, direction / direction.norm()))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for parameter, direction in moved:
                    parameter.add_(sign * step * direction)
                values.append(float(made.loss(batch).loss.detach()))
                for parameter, direction in moved:
                    parameter.sub_(sign * step * direction)
        predicted = torch.stack([(parameter.grad * direction).sum() for parameter, direction in moved]).sum()
        measured = (values[0] - values[1]) / (2 * step)
        names = ", ".join(name for name, _ in quarter)
        _close(f"slope of {names} by differences", measured, predicted, 1e-5, least=1e-2)


def accumulation_does_not_matter(method: Method, folder: Path) -> None:
    """Four responses at once, or one by one: the same losses and gradient norms, step by step."""
    at_once = run(method, folder / "a", batch_size=4, micro_batch_size=4)
    one_by_one = run(method, folder / "b", batch_size=4, micro_batch_size=1)
    least = 1e-2 if Need.REWARDS in method.needs else 1e-3  # advantages of a group cancel, and leave rounding alone
    for left, right in zip(at_once, one_by_one, strict=True):
        for key in ("loss", "ce", "grad_norm", *(["kd_0"] if "kd_0" in left else [])):
            if key == "ce" and math.isnan(left[key]) and math.isnan(right[key]):  # where all is sampled
                continue
            _close(f"{key} of step {left['step']:g}, one by one", right[key], left[key], 2e-5, least=least)


def resumed_equals_straight(method: Method, folder: Path) -> None:
    """Stopped after the second step and resumed in a new trainer: loss by loss the same as without a stop."""
    straight = run(method, folder / "a", checkpoint_every=2)
    interrupted = folder / "b"
    try:
        run(method, interrupted, checkpoint_every=2, stop_after=3)
    except StoppedError:
        pass
    else:
        raise BrokenPromiseError("the training was meant to stop")
    resumed = run(method, interrupted, checkpoint_every=2)
    for left, right in zip(straight, resumed, strict=True):
        for key in ("step", "loss", "ce", "grad_norm"):
            same = np.array_equal(left[key], right[key], equal_nan=True)
            _promise(same, f"{key} of step {left['step']:g}: {left[key]} straight, {right[key]} resumed")


PROMISES: Mapping[str, Callable[..., None]] = {
    "the loss is finite": finite_and_positive,
    "the gradient reaches the student only": gradient_reaches_the_student_only,
    "KD is 0 where student and teacher are one": zero_at_identity,
    "ids of tokens do not matter": ids_do_not_matter,
    "batching does not matter": batching_does_not_matter,
    "a batch aligns like its responses": a_batch_aligns_like_its_responses,
    "nothing is changed": nothing_is_changed,
    "a masked example adds nothing": a_masked_example_adds_nothing,
    "the gradient equals finite differences": gradient_equals_finite_differences,
    "accumulation does not matter": accumulation_does_not_matter,
    "a resumed training equals a straight one": resumed_equals_straight,
}
"""Each raises :class:`BrokenPromiseError` where a method breaks it."""
_IN_A_FOLDER = (accumulation_does_not_matter, resumed_equals_straight)
_WITH_A_TEACHER = (zero_at_identity, ids_do_not_matter, a_batch_aligns_like_its_responses)


def not_promised(promise: str, method: Method) -> str | None:
    """Why a promise is none of the method's, or None where it is."""
    check = PROMISES[promise]
    if check in _WITH_A_TEACHER and method.teacher is TeacherKind.NONE:
        return f"{method.name} has no teacher"
    if check is zero_at_identity and not method.zero_at_identity:
        return f"{method.name} does not promise it"
    if check is ids_do_not_matter and method.reads_ids:
        return f"{method.name} {method.reads_ids}"
    return None


def keep(promise: str, method: Method, folder: Path) -> None:
    """Hold a method to one promise.

    Args:
        folder: for checkpoints of its trainings.

    Raises:
        BrokenPromiseError: it breaks it.
    """
    check = PROMISES[promise]
    if check in _IN_A_FOLDER:
        check(method, folder)
    else:
        check(method)


def check_method(name: str) -> Iterator[Checked]:
    """Hold a registered method to every promise, in every fidelity that it has; one result at a time.

    Raises:
        UnknownMethodError: no method of that name.
    """
    kind = find(name)
    for fidelity in ("described", "released") if kind.fidelities_differ else ("described",):
        for promise in PROMISES:
            method = kind(fidelity=fidelity)
            title = f"{promise} ({fidelity})" if kind.fidelities_differ else promise
            if (reason := not_promised(promise, method)) is not None:
                yield Checked(title, None, reason)
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    keep(promise, method, Path(folder))
                except BrokenPromiseError as broken:
                    yield Checked(title, False, str(broken))
                except Exception as error:  # a method that fails breaks its promise
                    yield Checked(title, False, f"{type(error).__name__}: {error}")
                else:
                    yield Checked(title, True)
