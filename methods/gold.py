"""General On-policy Logit Distillation (GOLD): shared tokens one by one, the others by rank, over merged rows.

Hugging Face, "Unlocking On-Policy Distillation for Any Model Family" (2025-10-29) and ``trl.experimental.gold``:

    L = Σ_g [w_m · GJSD_β(S_g, T_g over the tokens of both vocabularies) + w_u · Σ_k |S_g(k) - T_g(k)| over the others]

g: groups of tokens that end on the same byte; S, T: their merged masses (methods/library/merging.py), not renormalised,
so that the matched part may be negative; (k): sorted. This is the loss on given responses.

Facts of TRL 1.16 that hold here too: in the GJSD, masses below 1e-8 count as 1e-8 on both sides, and get no gradient,
but for a teacher with the student's own tokenizer, where TRL computes the JSD of GKD, which has no floor; where one
side has no unmatched columns, the unmatched part is 0; columns beyond the tokenizer, which pad the logits of many
models, are unmatched and count in V_teacher. Temperatures bring no factor τ².

``sort: counted`` and ``top_k`` shorten the unmatched part, and say by how much it can be wrong (methods/uld.py).

Options that are not GOLD's: ``unmatched: rest`` puts what is left of 1 into the GJSD as one more token, so that with
equal weights (1, unless set) it is one of whole distributions and never negative, as in CSD (methods/csd.py).
``match: weight`` and ``merge: mean_log`` with β = 0 and both weights 1 are H-KL of X-Token (methods/x_token.py), but
that its sorted part ends with the shorter side.

``released``: what TRL 1.16 computes with ``use_uld_loss`` and ``uld_use_hybrid_loss`` set, the other ``uld_`` options
left alone: ``observed`` merging, vocabularies matched by string, β 0.5, w_m = |matched| / V_teacher and w_u = 1 - w_m,
the last token of either side left out, whatever it is (EOS, unless the response was cut), the floor for every
tokenizer, means over the groups of a response and then over responses. ``merge``, ``match``, β and the weights still
count where a recipe sets them, and λ and temperatures are the recipe's. (With nothing set TRL has no cross-tokenizer
loss but GKD's JSD: CE 0, KD 1, λ 0.5, temperature 0.9.) TRL compares a tail that ends on different bytes too; here both
sides end on one byte, so that there is none but in cut responses. ``described`` mends all of these.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from methods.base import (
    AlignedChunk,
    Held,
    LossSums,
    Members,
    Method,
    Need,
    NonNegative,
    OnPolicyOptions,
    Rows,
    TeacherKind,
    TemperatureOptions,
    register,
)
from methods.library.alignment import AlignedResponse, Groups, group_bytes
from methods.library.closed_form import fused
from methods.library.compared import Columns
from methods.library.divergences import Sort, SortOptions, distance_by, generalized_jsd_parts, sort_error
from methods.library.kernels import comparison_for
from methods.library.maps import exact_map
from methods.library.merging import LOG_FLOOR, Merge, Merged
from methods.library.projection import weighted_map
from methods.library.vocabulary import TokenizerPair

_RELEASED: dict[str, Any] = {
    "merge": "observed",
    "match": "string",
    "beta": 0.5,
    "matched_weight": None,
    "unmatched_weight": None,
}


class GOLDOptions(SortOptions, TemperatureOptions, OnPolicyOptions):
    merge: Merge = Field(
        "bayesian", description="how the rows of a group become one; TRL has observed where nothing is set"
    )
    beta: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="β of the GJSD; 0: KL(T || S), as in the blog's runs; 1: KL(S || T); released: TRL's 0.5",
    )
    matched_weight: NonNegative | None = Field(
        1.0,
        description="w_m; the blog's recipe sets both weights to 1; none: |matched| / V_teacher, TRL's default "
        "(released), so that the parts count by how much of the vocabulary is shared: often hardly any KD is left",
    )
    unmatched_weight: NonNegative | None = Field(1.0, description="w_u; none: 1 - |matched| / V_teacher (released)")
    unmatched: Literal["sorted", "rest"] = Field(
        "sorted", description="the others by rank, or what is left of 1 as one mass in the GJSD"
    )
    match: Literal["bytes", "string", "weight"] = Field(
        "bytes",
        description="which tokens are the same: equal bytes, equal strings as in TRL (Ġ is not ▁), or also the token "
        "of the teacher that begins the student's, as in X-Token's H-KL",
    )
    positions: Literal["all", "disagreement"] = Field(
        "all",
        description="all groups, or those where the student's first choice is not the teacher's; others count 0",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_released(cls, given: Any) -> Any:
        is_released = isinstance(given, dict) and given.get("fidelity") == "released"
        return _RELEASED | given if is_released else given


@register
class GOLD(Method[GOLDOptions]):
    name, paper, teacher = "gold", "TRL GOLD, Hugging Face blog 2025-10-29", TeacherKind.CROSS_TOKENIZER
    summary = "generalised JSD over shared tokens, sorted L1 over the others, groups of tokens merged"
    fidelities_differ = sorts = True
    released_normalize = "samples"
    Options = GOLDOptions

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | ({Need.ONE_RESPONSE} if self._released else set())

    @property
    def held(self) -> Held:
        if self.options.merge in ("product", "mean_log"):
            return Held(8.6, 4.2, 7.2e5) if self.options.counts else Held(7, 2.2, 3e4)
        if self.options.unmatched == "rest":
            return Held(3.4, 1.8, 3e4)
        return Held(6.7, 4.2, 7.2e5) if self.options.counts else Held(5, 2, 3e4)

    @property
    def held_into(self) -> Held | None:
        options = self.options
        plain = options.temperatures == (1.0, 1.0) and self._floor == LOG_FLOOR
        plain = plain and options.positions == "all" and options.merge in ("bayesian", "observed")
        plain = plain and options.unmatched == "sorted" and options.sorts_by_kernels
        return Held(0, 0, options.bytes_of_counts) if plain else None

    @property
    def held_by_loops(self) -> Held | None:
        has_loops = self.held_into is not None and self.options.sorts_by_loops and self.options.beta == 0
        return Held(0, 0) if has_loops else None

    @property
    def rows(self) -> Rows:
        return Rows.AFTER if self.options.merge == "observed" else Rows.PREDICTING

    _floor = LOG_FLOOR

    def prepare(self, pair: TokenizerPair) -> None:
        match = self.options.match
        mapped = weighted_map(pair) if match == "weight" else exact_map(pair.teacher, pair.student, match)
        self.student_of_teacher = torch.from_numpy(mapped)
        # GKD's JSD, which GOLD is for a teacher with the student's tokenizer, has no floor
        self._floor = -math.inf if pair.same_tokenizer and not self._released else LOG_FLOOR
        self._columns: dict[tuple[int, int, torch.device], Columns] = {}
        self._hybrids: dict[tuple[int, int, torch.device], Any] = {}

    def align(self, response: AlignedResponse) -> Groups:
        kept = slice(-1 if self._released else None)
        groups = group_bytes(response.student_ends[kept], response.teacher_ends[kept])
        alone, tokens = float(groups.only_one_to_one().count), float(response.student_ids.size)
        merged = groups.student_index.size - alone
        return replace(groups, notes={"aligned 1-1": (alone, tokens), "tokens merged": (merged, tokens)})

    def loss(self, chunk: AlignedChunk) -> LossSums:
        options, (student, teacher) = self.options, chunk.members()
        columns = self._columns_of(student.logits, teacher.logits)
        sort = options.sort_of(student.logits)
        made = _hybrid(
            student,
            teacher,
            chunk.groups,
            columns,
            self._weights(columns),
            options.beta,
            options.merge,
            options.temperatures,
            self._floor,
            sort,
            options.positions == "disagreement",
            options.unmatched == "rest",
        )
        diagnostics: dict[str, tuple[Tensor, Tensor | None]] = {"teacher mass covered": (made.covered, made.kept)}
        if options.positions == "disagreement":
            diagnostics["positions kept"] = made.kept, torch.full_like(made.kept, chunk.groups)
        diagnostics |= sort_error(made.bound, chunk.groups, sort)
        kd, gradient = made.value, made.gradient
        if self._released:
            kd, gradient = kd / chunk.response_groups, gradient.div_(chunk.response_groups)
        return LossSums.closed(chunk.student.logits, kd, gradient, diagnostics)

    def loss_into(self, chunk: AlignedChunk, lse: Tensor, upstream: Tensor, scale: float) -> LossSums | None:
        options, sort = self.options, self.options.sort_of(upstream)
        kernels = comparison_for(upstream, chunk.teacher.logits)
        if kernels is None or self.held_into is None or not kernels.takes(sort.is_exact, options.beta):
            return None
        share = 1 / chunk.response_groups if self._released else 1
        hybrid = self._hybrid_of(kernels, upstream, chunk.teacher.logits)
        sums = kernels.compare_into(
            *chunk.members(), lse, chunk.groups, options.merge, hybrid, upstream, scale * share, exact=sort.is_exact
        )
        diagnostics: dict[str, tuple[Tensor, Tensor | None]] = {
            "teacher mass covered": (sums.covered, torch.full_like(sums.covered, chunk.groups))
        }
        diagnostics |= sort_error(sums.bound, chunk.groups, sort, by_kernels=True)
        value, norm = sums.value, sums.squared_norm
        if self._released:
            value, norm = value * share, norm * share**2
        return LossSums(value, diagnostics, squared_norm=norm)

    def _hybrid_of(self, kernels: Any, student: Tensor, teacher: Tensor) -> Any:
        """What a kernel compares column by column, for logits of this width; made once."""
        key = student.shape[-1], teacher.shape[-1], student.device
        if key not in self._hybrids:
            columns = self._columns_of(student, teacher)
            self._hybrids[key] = kernels.hybrid_of(columns, self._weights(columns), self.options.beta)
        return self._hybrids[key]

    def _weights(self, columns: Columns) -> tuple[float, float]:
        """w_m and w_u."""
        share = columns.teacher_matched.numel() / columns.student_of_teacher.numel()
        matched, unmatched = self.options.matched_weight, self.options.unmatched_weight
        return share if matched is None else matched, 1 - share if unmatched is None else unmatched

    def _columns_of(self, student: Tensor, teacher: Tensor) -> Columns:
        """The columns for logits of this width; made once, since a model keeps its width."""
        key = student.shape[-1], teacher.shape[-1], student.device
        if key not in self._columns:
            self._columns[key] = Columns.of(self.student_of_teacher.to(student.device), *key[:2])
        return self._columns[key]


class _Hybrid(NamedTuple):
    """Sums over the groups of a chunk: the loss, its gradient at the student's logits, and what was compared.

    Attributes:
        value: scalar, weighted.
        gradient: [rows, vocabulary].
        covered: scalar, shares of the teacher's mass that the matched columns hold.
        kept: scalar, groups that count.
        bound: scalar, the most by which a shortened sort makes ``value`` too small.
    """

    value: Tensor
    gradient: Tensor
    covered: Tensor
    kept: Tensor
    bound: Tensor


@fused
def _hybrid(
    student: Members,
    teacher: Members,
    groups: int,
    columns: Columns,
    weights: tuple[float, float],
    beta: float,
    how: Merge,
    temperatures: tuple[float, float],
    floor: float,
    sort: Sort,
    only_disagreements: bool,
    as_rest: bool,
) -> _Hybrid:
    """The loss of a chunk's groups. A part whose weight is 0 is not computed."""
    ours, theirs = (Merged(side, groups, how, tau) for side, tau in zip((student, teacher), temperatures, strict=True))
    student_matched, teacher_matched = columns.student_matched, columns.teacher_matched
    shared = theirs.masses(teacher_matched)
    covered = shared.sum(-1)
    kept = torch.ones_like(covered)
    if only_disagreements:  # the likeliest token differs; one without a partner from every other
        kept *= columns.student_of_teacher[theirs.likeliest()] != ours.likeliest()
    value, bound = torch.zeros_like(covered), torch.zeros_like(covered)
    gradients: list[tuple[Tensor | None, Tensor]] = []

    def include(part: tuple[Tensor, Tensor], of: Tensor, weight: float) -> None:
        """A part with its weight: distances, of which some may not count in the end, and their gradient."""
        distance, gradient = part
        value.add_(distance, alpha=weight)
        weighted = gradient.mul_((weight * kept).unsqueeze(-1)) if only_disagreements or weight != 1 else gradient
        gradients.append((of, weighted))

    if weights[0] != 0:
        logs = ours.log_masses(student_matched), theirs.log_masses(teacher_matched)
        include(generalized_jsd_parts(*logs, beta, floor, shared), student_matched, weights[0])
    if as_rest and weights[1] != 0:
        include(_rest_jsd(ours.masses(student_matched), covered, beta), student_matched, weights[1])
    if not as_rest and weights[1] != 0 and columns.student_rest.numel() > 0 and columns.teacher_rest.numel() > 0:
        masses, rest = ours.masses(columns.student_rest), theirs.masses(columns.teacher_rest)
        distance, signs, error = distance_by(sort, masses, rest)
        include((distance, masses.mul_(signs)), columns.student_rest, weights[1])
        bound, total = weights[1] * error, covered + rest.sum(-1)
    else:
        total = theirs.masses().sum(-1)
    share = covered / total.clamp_min(torch.finfo(covered.dtype).tiny)
    gradient = ours.at_logits(*gradients) if gradients else torch.zeros_like(student.logits)
    return _Hybrid((value * kept).sum(), gradient, (share * kept).sum(), kept.sum(), (bound * kept).sum())


def _rest_jsd(masses: Tensor, covered: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The part of the GJSD of what the shared tokens leave of 1, 1e-8 at least.

    Args:
        masses: [groups, shared], of the student; overwritten.
        covered: [groups], the teacher's mass of the shared tokens.

    Returns:
        [groups], and its gradient at the logs of the masses.
    """
    least = math.exp(LOG_FLOOR)
    rest = 1 - masses.sum(-1, keepdim=True)
    left, given = (side.clamp_min(least).log() for side in (rest, 1 - covered.unsqueeze(-1)))
    value, at_rest = generalized_jsd_parts(left, given, beta, -math.inf)
    at_rest = (at_rest / rest.clamp_min(least)).masked_fill(rest <= least, 0.0)  # of log(1 - Σ exp(s))
    return value, masses.mul_(at_rest.neg_())
