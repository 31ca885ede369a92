"""On-policy distillation: micro-batches whose responses the student samples itself.

Agarwal et al., arXiv 2306.13649 (GKD), section 3: with probability λ a micro-batch keeps its prompts, and the student
answers them. The answer's bytes are tokenised for the teacher, which scores them live. Such responses carry no
cross-entropy, and where their length cut them, no EOS. A method that compares responses to one prompt (GRPO) has the
first prompt of so many answered as often, in the place of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from harness.base.identity import seed_of
from harness.data.batches import Collator
from harness.data.read_ahead import Sample
from harness.data.templates import TextSide
from harness.data.terms import AlignedExample, Term, align
from harness.data.tokens import STUDENT, TokenizedExample, join_sampled
from harness.generation.decoding import continue_prompts
from harness.generation.per_row import GumbelNoise
from harness.training.rewards import Reward, rewarded_groups
from harness.training.speculative import Draft, Speculation
from methods.base import Need
from methods.library.rollout_share import AcceptedShare, LinearShare

if TYPE_CHECKING:
    from transformers import PreTrainedModel
from methods.library.alignment import AlignedResponse, Groups


@dataclass(frozen=True)
class RolloutSettings:
    """How the student samples; the fields of :class:`methods.library.method.OnPolicyOptions`.

    Attributes:
        a_prompt: responses to one prompt.
        corrected: whether the teacher corrects them as they are written, by its ``top`` likeliest tokens.
    """

    share: float | LinearShare | AcceptedShare
    temperature: float
    top_p: float
    tokens: int
    a_prompt: int = 1
    corrected: bool = False
    top: int = 25

    @classmethod
    def of(cls, terms: Sequence[Term]) -> RolloutSettings | None:
        """The settings of an objective's terms, or None where none of them samples.

        Raises:
            ValueError: two terms want different samples; they share each micro-batch.
        """
        found = {
            cls(
                o.rollout_share,
                o.rollout_temperature,
                o.rollout_top_p,
                o.rollout_tokens,
                method.samples_a_prompt,
                o.rollouts == "skd",
                o.skd_top,
            )
            for method, o in ((term.method, term.method.sampling) for term in terms)
            if o is not None
        }
        scorers = {term.teacher for term in terms if term.method.sampling is not None}
        if len(scorers) > 1 and any(settings.corrected for settings in found):
            raise ValueError(f"one teacher corrects what a student writes, but these would: {sorted(scorers)}")
        if len(found) > 1:
            raise ValueError(f"the methods of one objective sample alike, but these differ: {sorted(map(str, found))}")
        return next(iter(found), None)


class Rollouts:
    """Makes sampled micro-batches.

    Args:
        settings: how to sample.
        terms: the objective's terms; those that don't ask for rollouts sit sampled micro-batches out.
        sides: the pair's tokenizers by role.
        collator: of the run.
        max_length: the most tokens of prompt and response together, on every side.
        seed: of the draws; a hash of named coordinates.
        reward: what the task says of responses, where a term asks for it.
        teachers: live ones by role, of which one corrects what the student writes, where the settings say so.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        terms: Sequence[Term],
        sides: Mapping[str, TextSide],
        collator: Collator,
        max_length: int,
        seed: int,
        reward: Reward | None = None,
        teachers: Mapping[str, PreTrainedModel] | None = None,
    ) -> None:
        self.settings, self.terms, self.sides, self.collator = settings, list(terms), sides, collator
        self.max_length, self.seed, self.reward, self.teachers = max_length, seed, reward, teachers or {}
        self.scorers = frozenset(term.teacher for term in terms if Need.ROLLOUTS in term.method.needs)

    def drawn(self, step: int, micro_batch: int, share: float) -> bool:
        """Whether a micro-batch of an optimiser step is sampled: the same draw on any rank, and after a resume.

        Args:
            micro_batch: its place among those of the step, over all ranks.
            share: λ of the step, by :func:`~harness.training.rollout_share.share_at`.
        """
        return seed_of("rollout", self.seed, step, micro_batch) < share * 2**31

    @torch.no_grad()
    def samples(self, student: PreTrainedModel, parts: Sequence[Sequence[AlignedExample]], step: int) -> list[Sample]:
        """A batch of the prompts of each part with responses that the student samples, all at once, on the CPU."""
        given = [aligned.example for part in parts for aligned in part]
        examples = [given[place - place % self.settings.a_prompt] for place in range(len(given))]
        drafts = self._sample(student, examples, step)
        joined = join_sampled(examples, [draft.ids for draft in drafts], self.sides, self.max_length)
        groups = zip(*[self._groups(term, joined, drafts) for term in self.terms], strict=True)
        made = iter([AlignedExample(*each) for each in zip(joined, groups, strict=True)])
        answered = [tuple(next(made) for _ in part) for part in parts]
        return [
            {"batch": self.collator.collate(part, self.scorers), "examples": part, "sampled": self.scorers}
            for part in answered
        ]

    def _sample(self, student: PreTrainedModel, examples: Sequence[TokenizedExample], step: int) -> list[Draft]:
        """Each response, up to what ended it, that one included."""
        prompts = [example.sides[STUDENT].prompt.tolist() for example in examples]
        # From one generator an example, so that the other rows of a batch don't matter.
        seed = seed_of("rollout", self.seed, step)
        draws = [(self._draw_of(example, place), seed) for place, example in enumerate(examples)]
        room = max(1, self.max_length - min(map(len, prompts)))  # what is over an example's own limit is cut later
        write = self._corrected if self.settings.corrected else self._alone
        training = student.training
        student.eval()
        try:
            return write(student, examples, draws, min(self.settings.tokens, room))
        finally:
            student.train(training)

    def _alone(
        self,
        student: PreTrainedModel,
        examples: Sequence[TokenizedExample],
        draws: Sequence[tuple[str, int]],
        new_tokens: int,
    ) -> list[Draft]:
        """The student's own."""
        side = self.sides[STUDENT]
        prompts = [example.sides[STUDENT].prompt.tolist() for example in examples]
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        made = continue_prompts(
            student,
            side,
            [prompts[place] for place in order],
            new_tokens=new_tokens,
            processors=[*self._processors(STUDENT), GumbelNoise([draws[place] for place in order])],
        )
        ends = (next((n + 1 for n, token in enumerate(ids) if token in side.eos_ids), None) for ids in made)
        found = {place: Draft(prompts[place], [], ids[:end]) for place, ids, end in zip(order, made, ends, strict=True)}
        return [found[place] for place in range(len(prompts))]

    def _corrected(
        self,
        student: PreTrainedModel,
        examples: Sequence[TokenizedExample],
        draws: Sequence[tuple[str, int]],
        new_tokens: int,
    ) -> list[Draft]:
        """Corrected by the teacher."""
        (role,) = self.scorers
        processors = {name: self._processors(name) for name in (STUDENT, role)}
        writing = Speculation(student, self.teachers[role], self.sides, role, self.settings.top, processors)
        return writing.write(examples, draws, new_tokens)

    def _processors(self, role: str) -> list[LogitsProcessor]:
        """Of a model's logits, but for noise."""
        settings = self.settings
        processors: list[LogitsProcessor] = [_KnownTokens(len(self.sides[role].vocabulary))]
        if settings.temperature != 1:
            processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
        return processors

    def _draw_of(self, example: TokenizedExample, place: int) -> str:
        """What its draws are named by: the row, and which of the responses to its prompt it is."""
        number = place % self.settings.a_prompt
        return f"{example.id} {number}" if number else example.id

    def _groups(
        self, term: Term, examples: Sequence[TokenizedExample], drafts: Sequence[Draft]
    ) -> Sequence[Groups | AlignedResponse]:
        """Of each example, where the term learns from samples; else none."""
        needs = term.method.needs
        if Need.REWARDS in needs:
            return rewarded_groups(term, examples, self.reward, self.sides[STUDENT])
        if Need.ROLLOUTS not in needs:
            return [Groups.one_to_one([], [])] * len(examples)
        made = [align(example, [term]).groups[0] for example in examples]
        if self.settings.corrected:
            return [_noted(groups, draft) for groups, draft in zip(made, drafts, strict=True)]
        return made


def _noted(groups: Groups | AlignedResponse, draft: Draft) -> Groups | AlignedResponse:
    """Groups that tell how much of their response is the teacher's."""
    if isinstance(groups, AlignedResponse):
        return groups
    told = {"tokens of the teacher": (float(draft.corrected), float(len(draft.ids)))}
    return replace(groups, notes={**groups.notes, **told})


class _KnownTokens(LogitsProcessor):  # type: ignore[misc]
    """Never sample a padding column of the head, which is no token."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.size :] = -torch.inf
        return scores
