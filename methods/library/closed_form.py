"""Losses of a chunk's rows together with their gradients at the logits, in closed form.

Nothing here builds a graph: every function takes tensors and gives values and gradients, without waiting for the
device and without shapes that depend on values. Intermediate results are overwritten where nobody needs them again, and
:func:`fused` functions are what ``torch.compile`` turns into few kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from methods.library.columns import take

IGNORED = -100
P = ParamSpec("P")
R = TypeVar("R")

_compiling = False


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Within, :func:`fused` functions run compiled where ``wanted``; the results differ by rounding at most."""
    global _compiling
    before, _compiling = _compiling, wanted
    try:
        yield
    finally:
        _compiling = before


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the function runs through ``torch.compile`` inside of :func:`compiling`, else as it stands."""

    eager_only = False

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal eager_only
        with torch.no_grad():
            if _compiling and not eager_only:
                from torch._dynamo.exc import TorchDynamoException  # takes seconds, which `harness plan` need not wait

                try:
                    return _compiled(function)(*args, **kwargs)  # type: ignore[no-any-return]
                except TorchDynamoException as error:  # no compiler here, or none that knows this: nothing is lost
                    eager_only = True
                    warnings.warn(f"{function.__qualname__} runs uncompiled: {error}", stacklevel=2)
            return function(*args, **kwargs)

    return run


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once a process; rows and groups of a chunk are symbols, so that no other number compiles again.

    Options and kinds of chunks (all members in order, none merged) do: more of them than torch allows by default.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled


class _Known(torch.autograd.Function):
    """A value whose gradient at the logits is known already."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * scale, None, None


def with_gradient(logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """The scalar ``value``, so that autograd finds ``gradient``, shaped like ``logits``, as its gradient there."""
    known: Tensor = _Known.apply(logits, value, gradient)  # type: ignore[no-untyped-call]
    return known


class Softmax:
    """Probabilities [rows, vocabulary] of logits, made once, and what their logs need.

    log p = (z - max z) + log max p, so that logs are made of those columns only that somebody reads. Whoever
    comes last may write to the probabilities.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits.detach()
        self._probs: Tensor | None = None
        self._ends: tuple[Tensor, Tensor] | None = None

    @property
    def probs(self) -> Tensor:
        if self._probs is None:
            self._probs = self._logits.softmax(-1)
        return self._probs

    def log_probs(self, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """[rows, columns], to be overwritten; of all where none are named, int64."""
        top, of_top = (take(each, rows) for each in self._tops())
        taken = take(self._logits, rows, columns)
        centred = taken - top if rows is None and columns is None else taken.sub_(top)
        return centred.add_(of_top)

    def log_probs_at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """[n], of a token of each row, int64 [n] both."""
        top, of_top = self._tops()
        return self._logits[rows, tokens] - top[rows, 0] + of_top[rows, 0]

    def _tops(self) -> tuple[Tensor, Tensor]:
        """[rows, 1] each: the largest logits, and the logs of their probabilities."""
        if self._ends is None:
            self._ends = self._logits.amax(-1, keepdim=True), self.probs.amax(-1, keepdim=True).log()
        return self._ends


@fused
def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of rows with a target.

    Args:
        logits: [rows, vocabulary].
        targets: int64 [rows], -100 where a row has none.
        scale: scalar, factor of the gradient.

    Returns:
        Scalar sum in nats; squared norm of its gradient; the gradient times ``scale``: softmax less one-hot.
    """
    softmax = Softmax(logits)
    known, chosen = targets != IGNORED, targets.clamp_min(0)
    rows = torch.arange(len(targets), device=targets.device)
    value = -softmax.log_probs_at(rows, chosen).masked_fill(~known, 0.0).sum()
    gradient = softmax.probs
    gradient.scatter_add_(1, chosen.unsqueeze(1), torch.full_like(gradient[:, :1], -1))
    norms = torch.linalg.vector_norm(gradient, dim=-1).masked_fill(~known, 0.0)
    return value, norms.square().sum(), gradient.mul_((known * scale).unsqueeze(1))


def entropy(logits: Tensor) -> Tensor:
    """[rows], in nats, of the distributions that logits [rows, vocabulary] stand for."""
    log_probs = logits.log_softmax(-1)
    return -log_probs.exp().mul_(log_probs).sum(-1)


@torch.no_grad()
def add_smoothing(logits: Tensor, targets: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
    """What smoothed targets (1 - ε) one-hot + ε / V add to the cross-entropy, for ε = 1: Σ (z_target - mean z).

    Szegedy et al., arXiv 1512.00567, section 7. With -log p_k = lse - z_k the normaliser cancels.

    Args:
        logits: [rows, vocabulary].
        targets: int64 [rows], -100 where a row has none.
        gradient: [rows, vocabulary], to which ``scale`` times the gradient is added.
        scale: scalar.
    """
    known = targets != IGNORED
    chosen = targets.clamp_min(0).unsqueeze(1)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    picked = logits.gather(1, chosen).squeeze(1).to(dtype)
    value = (picked - logits.mean(-1, dtype=dtype)).masked_fill(~known, 0.0).sum()
    share = (known * scale).unsqueeze(1).to(gradient.dtype)
    gradient.sub_(share / logits.shape[-1]).scatter_add_(1, chosen, share)
    return value


@fused
def kl(
    student: Tensor, teacher: Tensor, temperature: float, direction: Literal["forward", "reverse"]
) -> tuple[Tensor, Tensor]:
    """τ² times KL(teacher || student), or the reverse, of distributions softened at τ.

    The closed form of ``forward_kl`` and ``reverse_kl`` (methods/library/divergences.py).

    Gradients at the student's logits, p and q being the softened distributions: forward τ (p - q); reverse
    τ p (log p - log q - KL).

    Args:
        student, teacher: logits [rows, vocabulary] over the same vocabulary.

    Returns:
        Scalar sum over rows, in nats, and its gradient [rows, vocabulary].
    """
    log_p = _softened(student, temperature)
    log_q = _softened(teacher, temperature)
    if direction == "forward":
        q = log_q.exp()
        value = log_q.sub_(log_p).mul_(q).sum()
        gradient = log_p.exp_().sub_(q).mul_(temperature)
    else:
        p = log_p.exp()
        ratio = log_p.sub_(log_q)
        rows = log_q.copy_(ratio).mul_(p).sum(-1, keepdim=True)
        value = rows.sum()
        gradient = ratio.sub_(rows).mul_(p).mul_(temperature)
    return temperature**2 * value, gradient


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


@torch.no_grad()
def towards(logits: Tensor, target: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """w_i KL(target row i || row i), both softened at τ: [rows], and its gradient at the logits, [rows, vocabulary].

    Args:
        logits, target: [rows, vocabulary].
        weight: [rows].
    """
    log_p, log_q = _softened(logits, temperature), _softened(target, temperature)
    q = log_q.exp()
    values = log_q.sub_(log_p).mul_(q).sum(-1).mul_(weight)
    return values, log_p.exp_().sub_(q).mul_((weight / temperature)[:, None])


class _Towards(torch.autograd.Function):
    """Whose gradient is made with the value, some rows at a time, in the one matrix that stays."""

    @staticmethod  # Any: torch's context, which takes what is put on it
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, target: Tensor, of_target: Tensor, weight: Tensor, temperature: float
    ) -> Tensor:
        gradient, values = torch.zeros_like(logits), []
        for row, other, share in zip(*(torch.split(each, 16) for each in (index, of_target, weight)), strict=True):
            value, at_rows = towards(logits[row], target[other], share, temperature)
            values.append(value)
            gradient.index_add_(0, row, at_rows)
        ctx.save_for_backward(gradient)
        return torch.cat(values).sum()

    @staticmethod  # Any: as above
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * scale, *[None] * 5


def forward_kl_towards(
    logits: Tensor, index: Tensor, target: Tensor, of_target: Tensor, weight: Tensor, temperature: float
) -> Tensor:
    """Σ_i w_i KL(target row i || row i), both softened; scalar, whose gradient reaches the logits alone.

    Args:
        logits, target: [rows, vocabulary], over the same vocabulary.
        index, of_target: int64 [pairs], the rows of either that are compared.
        weight: [pairs].
    """
    made: Tensor = _Towards.apply(logits, index, target, of_target, weight, temperature)  # type: ignore[no-untyped-call]
    return made
