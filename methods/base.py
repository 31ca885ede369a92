"""What a distillation method is: which teacher it needs, how it aligns, and its loss on one chunk of rows.

A method never sees models, batches or padding. The engine cuts the response rows of a batch into chunks that are
closed under the method's alignment groups, and hands each chunk over as an :class:`AlignedChunk`.
"""

from __future__ import annotations

import difflib
import enum
import importlib
import pkgutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.library.alignment import AlignedResponse, Groups
from methods.library.closed_form import with_gradient
from methods.library.vocabulary import TokenizerPair

ENTRY_POINT_GROUP = "ctkd_harness.methods"

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class TeacherKind(enum.Enum):
    """Which teacher a method learns from."""

    NONE = "none"
    SAME_TOKENIZER = "same-tokenizer"
    CROSS_TOKENIZER = "cross-tokenizer"


class Start(enum.Enum):
    """Which weights training starts from."""

    PRETRAINED = "pretrained"
    WARM_START = "warm start"


class Rows(enum.Enum):
    """Which rows of hidden states group indices count."""

    PREDICTING = "predicting"
    """Row i predicts response token i (it stands one position before it)."""
    AFTER = "after"
    """Row i has just consumed response token i; it predicts token i + 1."""
    ALL = "all"
    """Row i is position i of the whole sequence, prompt included; needs one tokenizer on both sides."""


class Need(enum.Enum):
    """What a method asks of the engine beyond the rows of a chunk."""

    WHOLE_RESPONSE = "whole response"
    """Every chunk is one response, so that a method can take means over it."""
    ENTROPY = "entropy"
    """:meth:`Method.align` runs at every step, with the entropies of both models' next-token distributions."""
    ROLLOUTS = "rollouts"
    """Some micro-batches hold responses that the student samples; the options are :class:`OnPolicyOptions`."""


class KDOptions(BaseModel):
    """Options that every method has. The total loss is ``ce_weight * CE + kd_weight * KD``."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    ce_weight: NonNegative = Field(0.5, description="weight of the cross-entropy on the reference response")
    kd_weight: NonNegative = Field(0.5, description="weight of the distillation term")
    fidelity: Literal["described", "released"] = Field(
        "described", description="as the paper describes the method, or as its authors' code computes it"
    )
    normalize: Literal["tokens", "rows", "samples"] = Field(
        "tokens",
        description="what the KD sum is divided by, over the accumulation window and all ranks: the student's "
        "response tokens, the rows or groups that carry KD, or the responses (parity with released code)",
    )


class SoftenedOptions(KDOptions):
    """Options of methods that soften both distributions with a temperature."""

    temperature: Positive = Field(2.0, description="τ, divides the logits of both sides; CDM's scripts use 2")


class OnPolicyOptions(KDOptions):
    """Options of methods that can learn from the student's own responses (GKD, arXiv 2306.13649; GOLD)."""

    rollout_share: Share = Field(
        0.0, description="λ, share of micro-batches whose responses the student samples; the teacher scores them live"
    )
    rollout_temperature: Positive = Field(1.0, description="divides the student's logits when it samples")
    rollout_top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sample from the likeliest tokens that together have this probability"
    )
    rollout_tokens: Annotated[int, Field(ge=1)] = Field(128, description="the most tokens of a sampled response")


@dataclass(frozen=True)
class LossSums:
    """What a method returns for a chunk.

    Attributes:
        kd: scalar, the SUM of the distillation loss over the chunk (the engine divides by the window's count).
        diagnostics: by name, without gradient, a sum over the chunk and what it is a share of: another sum, or None
            for the response tokens.
        gradient: of ``kd`` at the chunk's student logits, [rows, vocabulary], where the method has it in closed form;
            then ``kd`` needs no graph. See :meth:`LossSums.closed`.
        squared_norm: scalar, of that gradient, where :meth:`Method.loss_into` has added it already.
    """

    kd: Tensor
    diagnostics: Mapping[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    gradient: Tensor | None = None
    squared_norm: Tensor | None = None

    @classmethod
    def closed(
        cls,
        logits: Tensor,
        kd: Tensor,
        gradient: Tensor,
        diagnostics: Mapping[str, tuple[Tensor, Tensor | None]] | None = None,
    ) -> LossSums:
        """A loss whose gradient at ``logits`` is known; autograd finds it too."""
        return cls(with_gradient(logits, kd, gradient), diagnostics or {}, gradient)


class Members(NamedTuple):
    """What :class:`Side` holds of groups, as a loss in closed form takes it."""

    logits: Tensor
    row: Tensor
    group: Tensor
    tokens: Tensor
    in_order: bool


class Side:
    """One model's rows of a chunk.

    Attributes:
        logits: [rows, vocabulary], the head's output; requires grad on the student's side.
        targets: int64 [rows], the token that each row predicts, -100 where it predicts no response token.
        index: int64 [members], row of each member of a group.
        group: int64 [members], group of each member, ascending.
        tokens: int64 [members], the response token that each member is (-100: one of the prompt). Where rows are
            PREDICTING, the member's row predicts it.
        in_order: True where ``index`` is 0, 1, ..., rows - 1, so that rows need no gathering.
        weight: [members], how much each counts in a mean over its group; None: all alike.
    """

    def __init__(
        self,
        logits: Tensor,
        targets: Tensor,
        index: Tensor,
        group: Tensor,
        tokens: Tensor,
        in_order: bool,
        weight: Tensor | None = None,
    ) -> None:
        self.logits, self.targets, self.index, self.group, self.tokens = logits, targets, index, group, tokens
        self.in_order, self.weight = in_order, weight
        self._log_probs: dict[float, Tensor] = {}

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """[rows, vocabulary] log-probabilities of ``logits / temperature``; computed once per temperature."""
        if temperature not in self._log_probs:
            logits = self.logits if temperature == 1.0 else self.logits / temperature
            self._log_probs[temperature] = logits.log_softmax(-1)
        return self._log_probs[temperature]

    def first_columns(self, columns: int) -> Side:
        """The same rows over the first ``columns`` entries of the vocabulary."""
        return self.with_logits(self.logits[:, :columns])

    def over_columns(self, columns: Tensor) -> Side:
        """The same rows over chosen entries of the vocabulary, int64 [columns], in their order."""
        chosen = self.logits.index_select(1, columns.to(self.logits.device))
        return self.with_logits(chosen)

    def with_logits(self, logits: Tensor) -> Side:
        """The same rows and groups over other logits."""
        return Side(logits, self.targets, self.index, self.group, self.tokens, self.in_order, self.weight)

    def paired_logits(self) -> Tensor:
        """[members, vocabulary]: the logits of the groups' members, in the order of the groups."""
        return self.logits if self.in_order else self.logits.index_select(0, self.index)

    def members(self) -> Members:
        """The rows and their groups as tensors, without gradient."""
        return Members(self.logits.detach(), self.index, self.group, self.tokens, self.in_order)

    def spread(self, gradient: Tensor) -> Tensor:
        """[rows, vocabulary]: the gradient at the logits of one at :meth:`paired_logits`, or at their first columns."""
        columns = self.logits.shape[-1]
        if not self.in_order:
            gradient = gradient.new_zeros(len(self.logits), gradient.shape[-1]).index_add_(0, self.index, gradient)
        missing = columns - gradient.shape[-1]
        return nn.functional.pad(gradient, (0, missing)) if missing else gradient

    def mean_logits(self, groups: int) -> Tensor:
        """[groups, vocabulary]: the mean of the logits of each group's members, weighted where there are weights."""
        logits = self.paired_logits()
        weight = self.logits.new_ones(self.index.shape) if self.weight is None else self.weight.to(self.logits.dtype)
        total = weight.new_zeros(groups).index_add(0, self.group, weight)
        share = (weight / total[self.group]).unsqueeze(-1)
        return logits.new_zeros(groups, logits.shape[-1]).index_add(0, self.group, logits * share)

    def paired_log_probs(self, temperature: float = 1.0) -> Tensor:
        """[members, vocabulary]: the rows of the groups' members, in the order of the groups."""
        rows = self.log_probs(temperature)
        return rows if self.in_order else rows.index_select(0, self.index)


@dataclass(frozen=True)
class AlignedChunk:
    """Rows of both models, closed under the method's groups: every member of a group is in the same chunk.

    Attributes:
        student: rows with gradient. Rows outside every group may stand between the members.
        teacher: rows without gradient.
        groups: number of groups in the chunk.
    """

    student: Side
    teacher: Side
    groups: int

    def paired_over_shared_columns(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Paired log-probabilities of student and teacher over one vocabulary, both [members, columns].

        Sizes of one model family pad their logits differently (Qwen2: 151,936 and 152,064 for 151,646 tokens); the
        columns that both have are kept and renormalised.
        """
        student, teacher = self._over_shared_columns()
        return student.paired_log_probs(temperature), teacher.paired_log_probs(temperature)

    def paired_logits_over_shared_columns(self) -> tuple[Tensor, Tensor]:
        """The logits of :meth:`paired_over_shared_columns`, without gradient, for a loss in closed form."""
        student, teacher = self._over_shared_columns()
        return student.paired_logits().detach(), teacher.paired_logits()

    def members(self) -> tuple[Members, Members]:
        """Both sides as tensors, without gradient, for a loss in closed form."""
        return self.student.members(), self.teacher.members()

    def _over_shared_columns(self) -> tuple[Side, Side]:
        columns = min(self.student.logits.shape[-1], self.teacher.logits.shape[-1])
        student, teacher = (
            side if side.logits.shape[-1] == columns else side.first_columns(columns)
            for side in (self.student, self.teacher)
        )
        return student, teacher


class Method(ABC):
    """A distillation method: one file of this folder, or of a plug-in that declares an entry point.

    Class attributes:
        name: how recipes call it.
        paper: where it is described.
        summary: one line for ``harness methods``.
        teacher: which teacher it needs.
        start: which weights the student starts from.
        fidelities_differ: whether ``fidelity: released`` computes something else than ``described``.
        aligns_on_device: whether :meth:`align_all` takes entropies as tensors on a device that is not the CPU.
        Options: the fields that a recipe may set, with their defaults.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    teacher: ClassVar[TeacherKind]
    start: ClassVar[Start] = Start.WARM_START
    fidelities_differ: ClassVar[bool] = False
    aligns_on_device: ClassVar[bool] = False

    Options: ClassVar[type[KDOptions]] = KDOptions

    def __init__(self, options: KDOptions | None = None, **values: Any) -> None:
        self.options: Any = options if options is not None else self.Options(**values)

    @property
    def needs(self) -> frozenset[Need]:
        """What the method asks of the engine."""
        samples = isinstance(self.options, OnPolicyOptions) and self.options.rollout_share > 0
        return frozenset({Need.ROLLOUTS}) if samples else frozenset()

    @property
    def zero_at_identity(self) -> bool:
        """Whether KD is 0 when student and teacher are the same model with the same tokenizer."""
        return True

    @property
    def rows(self) -> Rows:
        """Which rows the group indices of :meth:`align` count."""
        return Rows.PREDICTING

    @property
    def normalize(self) -> str:
        """What the engine divides the KD sum by: "tokens", "rows" or "samples"."""
        return str(self.options.normalize)

    @property
    def caveat(self) -> str:
        """What a reader of the method's row must know, such as that its KD term moves nothing; printed under tables."""
        return ""

    def refuses(self, pair: TokenizerPair) -> str | None:
        """The reason why the method does not apply to this pair of tokenizers, or None."""
        if self.teacher is TeacherKind.SAME_TOKENIZER and not pair.same_tokenizer:
            return (
                f"{self.name} compares distributions over one vocabulary, but the tokenizers of teacher and student "
                f"differ: {pair.difference()}"
            )
        if self.teacher is TeacherKind.SAME_TOKENIZER and pair.student.eos[:1] != pair.teacher.eos[:1]:
            return (
                f"{self.name} compares the same tokens, but responses end with token {pair.student.eos[:1]} of "
                f"{pair.student.name} and {pair.teacher.eos[:1]} of {pair.teacher.name}"
            )
        return None

    def prepare(self, pair: TokenizerPair) -> None:  # noqa: B027 - most methods need nothing
        """Compute once per pair of tokenizers what the loss needs: vocabulary maps."""

    def align(self, response: AlignedResponse) -> Groups:
        """Groups of student and teacher tokens that are compared; runs on the CPU.

        Once per example, but at every step for methods with ``Need.ENTROPY``.
        """
        raise NotImplementedError(f"{self.name} has no teacher to align with")

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        """:meth:`align` for a batch; a method that aligns many responses in less time than one by one overrides it."""
        return [self.align(response) for response in responses]

    @abstractmethod
    def loss(self, chunk: AlignedChunk) -> LossSums:
        """The sum of the distillation loss over the chunk, differentiable with respect to ``chunk.student``."""

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        """As :meth:`loss`, by a kernel that adds ``scale`` times the gradient to ``upstream``.

        None where the method has no such form, as by default; then :meth:`loss` is asked. It runs without a graph.

        Args:
            chunk: logits as the heads give them, in bfloat16 too.
            lse: float32 [rows], log of the sum of the exponentials of each of the student's rows.
            upstream: [rows, vocabulary], the gradient at the student's logits so far, in their dtype.
        """
        return None

    def trainable(self) -> nn.Module | None:
        """Parameters of the method's own that are trained with the student."""
        return None


_REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


class UnknownMethodError(KeyError):
    """No method of that name; ``suggestion`` is the nearest name there is, or None."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.suggestion = next(iter(difflib.get_close_matches(name, registered(), n=1)), None)


def register(method: M) -> M:
    """Class decorator: make a method known by its ``name``.

    Raises:
        ValueError: another class holds that name already.
    """
    known = _REGISTRY.setdefault(method.name, method)
    if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"two methods are called {method.name!r}: {known!r} and {method!r}")
    return method


def registered() -> dict[str, type[Method]]:
    """All methods, sorted by name: the files of this folder, and entry points of group ``ctkd_harness.methods``."""
    for module in _method_modules():
        importlib.import_module(module)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(entry.load())
        except Exception as error:  # a broken plug-in must not take the other methods with it
            warnings.warn(f"plug-in {entry.name} ({entry.value}) can't be used: {error}", stacklevel=2)
    return dict(sorted(_REGISTRY.items()))


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UnknownMethodError: there is none.
    """
    try:
        return registered()[name]
    except KeyError:
        raise UnknownMethodError(name) from None


def _method_modules() -> Iterator[str]:
    import methods

    infrastructure = {"base", "alignment", "vocabulary", "maps", "divergences", "dual", "merging", "warping"}
    infrastructure |= {"closed_form"}
    for module in pkgutil.iter_modules(methods.__path__):
        if module.name not in infrastructure:
            yield f"methods.{module.name}"
