"""What a distillation method is: which teacher it needs, how it aligns, its options, and its loss on one chunk of rows.

A method never sees models, batches or padding. The engine cuts the response rows of a batch into chunks that are
closed under the method's alignment groups, and hands each chunk over as an :class:`AlignedChunk`.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from methods.library.alignment import AlignedResponse, Groups, PairedTokens
from methods.library.chunk import AlignedChunk, LossSums, OutputHead
from methods.library.rollout_share import RolloutShare
from methods.library.vocabulary import TokenizerPair

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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

    ONE_RESPONSE = "one response"
    """No chunk has rows of two responses, so that means over a response can be taken piece by piece, with
    :attr:`AlignedChunk.response_groups`."""
    SURVEY = "a survey"
    """Beside ``ONE_RESPONSE``: :meth:`Method.survey` sees all chunks of a response before the loss sees the first;
    what they say together is :meth:`Method.known`."""
    WHOLE_RESPONSE = "whole response"
    """Every chunk is one response, whatever memory that takes."""
    ROW_SCALARS = "numbers of rows"
    """The loss is one of a whole response, but sees a few numbers of each row alone, by :meth:`Side.read`.

    So logits exist for a block of rows at a time, and groups bound no chunk. What :meth:`Method.loss` is handed is a
    response with all its rows on both sides, the one before the first token of :attr:`Rows.AFTER` among them. The loss
    has no kernel and no gradient in closed form, and trains no parameters of its own.
    """
    ENTROPY = "entropy"
    """:meth:`Method.align` runs at every step, with the entropies of both models' next-token distributions."""
    ROLLOUTS = "rollouts"
    """Some micro-batches hold responses that the student samples; the options are :class:`OnPolicyOptions`."""
    HIDDEN = "hidden rows"
    """Each side has its hidden rows, the token that each has read, and its head, which embeds (:attr:`Side.hidden`)."""
    REWARDS = "rewards"
    """The task says a reward of each response that the student samples, :attr:`Method.samples_a_prompt` of them to a
    prompt: :meth:`Method.align_all` sees them one behind the other. Of a method without a teacher, whose groups are of
    the response with itself; the teacher's side is then the student's own, without gradient."""
    START = "start"
    """Beside ``REWARDS``: the teacher's side is the student as training found it."""


class Held(NamedTuple):
    """What a loss holds of a chunk at its peak, its gradient included and the logits that it is given left out.

    Attributes:
        student, teacher: float32 matrices [rows, vocabulary] of either side; one in bfloat16 is a half.
        more: bytes a row that no vocabulary changes.
    """

    student: float
    teacher: float
    more: float = 0.0


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
    kd_scale: Literal["fixed", "match_ce", "match_gradient"] = Field(
        "fixed",
        description="match_ce: KD is multiplied by CE / KD of the step before, as a constant, so that the weights are "
        "shares; match_gradient: by the ratio of their gradients' norms at the logits",
    )


class SoftenedOptions(KDOptions):
    """Options of methods that soften both distributions with a temperature."""

    temperature: Positive = Field(
        1.0, description="τ, divides the logits of both sides; CDM's scripts use 2, which a short training takes badly"
    )


class TemperatureOptions(BaseModel):
    """Temperatures of methods that compare both models' masses as they are; they bring no factor τ²."""

    temperature: Positive = Field(1.0, description="divides the logits of both sides")
    student_temperature: Positive | None = Field(None, description="of the student alone; none: temperature")
    teacher_temperature: Positive | None = Field(None, description="of the teacher alone; none: temperature")

    @property
    def temperatures(self) -> tuple[float, float]:
        """Of student and teacher."""
        both = self.temperature
        return self.student_temperature or both, self.teacher_temperature or both


class OnPolicyOptions(KDOptions):
    """Options of methods that can learn from the student's own responses (GKD, arXiv 2306.13649; GOLD)."""

    rollout_share: RolloutShare = Field(
        0.0,
        description="λ, share of micro-batches whose responses the student samples; the teacher scores them live. "
        "{start, end, over}: a straight line by optimiser step, over a share of them; {target: acceptance, start, "
        "least, most}: the share of the sampled tokens that the teacher would have taken, a running mean",
    )
    rollouts: Literal["student", "skd"] = Field(
        "student",
        description="who writes sampled responses: the student alone, or corrected by its teacher while it writes "
        "(speculative KD): a token that is not among the teacher's likeliest gives way to one that the teacher samples",
    )
    skd_top: Annotated[int, Field(ge=0)] = Field(
        25, description="how many of the teacher's likeliest tokens stay with skd; 0: the teacher writes alone"
    )
    rollout_temperature: Positive = Field(1.0, description="divides the student's logits when it samples")
    rollout_top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sample from the likeliest tokens that together have this probability"
    )
    rollout_tokens: Annotated[int, Field(ge=1)] = Field(128, description="the most tokens of a sampled response")


O_co = TypeVar("O_co", bound=KDOptions, default=KDOptions, covariant=True)


class Method(ABC, Generic[O_co]):
    """A distillation method: one file of this folder, or of a plug-in that declares an entry point.

    It is generic over its options: ``class ULD(Method[ULDOptions])``; without any of its own, ``class Mine(Method)``.

    Class attributes:
        name: how recipes call it.
        paper: where it is described.
        summary: one line for ``harness methods``.
        teacher: which teacher it needs.
        start: which weights the student starts from.
        fidelities_differ: whether ``fidelity: released`` computes something else than ``described``.
        released_rows, released_normalize: what :attr:`rows` and :attr:`normalize` are with ``fidelity: released``; an
            empty text leaves the latter to the options.
        aligns_on_device: whether :meth:`align_all` and :meth:`pair_all` take entropies as tensors on a device that is
            not the CPU.
        sorts: whether the loss sorts whole distributions, which a plan's costs reckon with.
        projectors: matrices from one model's width to the other's that are trained, which a plan's memory reckons with.
        tunes: what `harness tune` tries: options with the values of a grid, `kd_share` for kd_weight as a share of both
            weights, `rate` and `length` for factors of the learning rate and of the steps. All rows tune their rate: in
            a short training whoever alone may raise it wins by that.
        Options: the fields that a recipe may set, with their defaults: what the class is generic over.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    teacher: ClassVar[TeacherKind]
    start: ClassVar[Start] = Start.WARM_START
    fidelities_differ: ClassVar[bool] = False
    released_rows: ClassVar[Rows] = Rows.PREDICTING
    released_normalize: ClassVar[str] = ""
    aligns_on_device: ClassVar[bool] = False
    sorts: ClassVar[bool] = False
    projectors: ClassVar[int] = 0
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"kd_share": (0.5, 0.9), "rate": (0.5, 1.0, 2.0)}

    # no ClassVar, which can't be generic: so mypy holds `Options = ULDOptions` to the parameter of the class
    Options: type[O_co] = KDOptions  # type: ignore[assignment]

    def __init__(self, options: O_co | None = None, **values: Any) -> None:
        self.options = options if options is not None else self.Options(**values)

    @property
    def needs(self) -> frozenset[Need]:
        """What the method asks of the engine."""
        return frozenset() if self.sampling is None else frozenset({Need.ROLLOUTS})

    @property
    def sampling(self) -> OnPolicyOptions | None:
        """The options that say how the student samples responses to learn from; None where it doesn't."""
        options: KDOptions = self.options
        return options if isinstance(options, OnPolicyOptions) and options.rollout_share != 0 else None

    @property
    def samples_a_prompt(self) -> int:
        """How many responses the student samples to one prompt."""
        return 1

    @property
    def pairs_on_device(self) -> bool:
        """Whether :meth:`pair_all` pairs tokens where the models are on a device that is not the CPU.

        With ``Need.ENTROPY`` alone, and not for losses that must know how many groups a response has or that read
        numbers of rows (``Need.ONE_RESPONSE``, ``Need.ROW_SCALARS``).
        """
        return False

    @property
    def answers_of(self) -> str:
        """Role of the teacher ("same", "cross") whose own answers stand in for references; empty where none's do."""
        return ""

    @property
    def zero_at_identity(self) -> bool:
        """Whether KD is 0 when student and teacher are the same model with the same tokenizer."""
        return True

    @property
    def reads_ids(self) -> str:
        """In what the loss depends on which token has which id; empty where it does not, as it should be."""
        return ""

    @property
    def rows(self) -> Rows:
        """Which rows the group indices of :meth:`align` count."""
        return self.released_rows if self._released else Rows.PREDICTING

    @property
    def normalize(self) -> str:
        """What the engine divides the KD sum by: "tokens", "rows" or "samples"."""
        return (self._released and self.released_normalize) or str(self.options.normalize)

    @property
    def _released(self) -> bool:
        return bool(self.options.fidelity == "released")

    @property
    def label_smoothing(self) -> float:
        """Which share of the cross-entropy's target is spread evenly over the vocabulary."""
        return 0.0

    @property
    def held(self) -> Held:
        """What :meth:`loss` holds at its peak: ``train.chunk_rows: auto`` and a plan's memory go by it.

        A promise that the contract measures. By default more than any method here needs.
        """
        return Held(12, 12)

    @property
    def held_into(self) -> Held | None:
        """The same of :meth:`loss_into`, beside the gradient that it adds to; None where it takes none of these."""
        return None

    @property
    def held_by_loops(self) -> Held | None:
        """The same on a CPU, by loops."""
        return None

    @property
    def align_seconds(self) -> float:
        """What :meth:`align` and mapping take on the CPU for one response token, for a plan's costs."""
        return 0.0

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

    def prepare(self, pair: TokenizerPair) -> None:  # most methods need nothing
        """Compute once per pair of tokenizers what the loss needs: vocabulary maps."""

    def build(self, student: OutputHead, teacher: OutputHead) -> None:  # as above
        """Make what is trained beside the student, once both models are known; not asked without a teacher.

        Before every training, a resumed one too, whose checkpoint then puts its parameters in place.

        Numbers that are drawn from torch's own generator of the CPU are the same for one seed of the training.

        Args:
            student, teacher: as training finds them. What is made stands on the student's device.
        """

    def align(self, response: AlignedResponse) -> Groups:
        """Groups of student and teacher tokens that are compared; runs on the CPU.

        Once per example, but at every step for methods with ``Need.ENTROPY``.
        """
        raise NotImplementedError(f"{self.name} has no teacher to align with")

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        """:meth:`align` for a batch; a method that aligns many responses in less time than one by one overrides it."""
        return [self.align(response) for response in responses]

    def pair_all(self, responses: Sequence[AlignedResponse]) -> PairedTokens | None:
        """The groups of :meth:`align_all` where all are of one token a side and made on the models' device.

        So no step waits for them, and the loss sees a group for each token of the student's, of which
        :attr:`AlignedChunk.paired` says which there are. None where :meth:`align_all` is to be asked, as by default.

        Args:
            responses: one or more.
        """
        return None

    @abstractmethod
    def loss(self, chunk: AlignedChunk) -> LossSums:
        """The sum of the distillation loss over the chunk, differentiable with respect to ``chunk.student``."""

    def survey(self, chunk: AlignedChunk) -> Any:
        """With ``Need.SURVEY``: what of a chunk the loss must know in all chunks of its response; nothing of its size.

        Runs without a graph.
        """
        raise NotImplementedError(f"{self.name} asks for no survey")

    def conclude(self, surveys: Sequence[Any]) -> Any:
        """What surveys of all chunks of a response say together, in their order."""
        raise NotImplementedError(f"{self.name} asks for no survey")

    @torch.no_grad()
    def known(self, chunk: AlignedChunk, own: Any = None) -> Any:
        """What :meth:`conclude` says of the response of a chunk, for its loss.

        Args:
            own: what :meth:`survey` says of the chunk, where the loss has it already.
        """
        if chunk.known is not None:
            return chunk.known
        return self.conclude([self.survey(chunk) if own is None else own])

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        """As :meth:`loss`, by a kernel that adds ``scale`` times the gradient to ``upstream``.

        None where the method has no such form, as by default; then :meth:`loss` is asked. It runs without a graph: a
        loss that reaches more than the logits makes one for the sum that it returns.

        Args:
            chunk: logits as the heads give them, in bfloat16 too.
            lse: float32 [rows], log of the sum of the exponentials of each of the student's rows.
            upstream: [rows, vocabulary], the gradient at the student's logits so far, in their dtype.
        """
        return None

    def trainable(self) -> nn.Module | None:
        """Parameters of the method's own that are trained with the student; no part of the student that is stored."""
        return None

    @property
    def own_learning_rate(self) -> float | None:
        """Where the schedule of those parameters begins; None: as the student's."""
        return None
