"""Group Relative Policy Optimisation (GRPO): no teacher, but a task that can say whether an answer is right.

DeepSeekMath, arXiv 2402.03300, section 4.1, and TRL's ``GRPOTrainer``: to each prompt the student samples G responses,
of which response i earns the reward R_i, and every token of it counts as that differs from its group's:

    A_i = (R_i - mean(R)) / (std(R) + 1e-4),   std with G - 1

    L = Σ_i Σ_t [-min(ρ A_i, clip(ρ, 1 ± ε) A_i) + β (e^d - d - 1)],   ρ = p_S / p_old,   d = log p_0 - log p_S

p_S: of the token that was sampled, at the temperature that it was sampled at; p_old: the policy that sampled it; p_0:
the student as training found it (the warm start), asked for only where β is not 0. Groups whose rewards are all alike
teach nothing.

A sample serves one optimiser step, at whose beginning it was drawn, so that p_old is p_S itself and ρ is 1: nothing is
clipped, and the gradient is that of -A_i log p_S, which is what is computed. There is no ε to set.

``normalize: tokens`` divides by the response tokens of the whole step, as DAPO (arXiv 2503.14476) and TRL unless told
otherwise; ``samples`` takes the mean over a response and then over responses, as the paper. Cross-entropy on references
stands beside it only where ``rollout_share`` leaves some micro-batches to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator
from torch import Tensor

from methods.base import (
    AlignedChunk,
    LossSums,
    Method,
    Need,
    NonNegative,
    OnPolicyOptions,
    Side,
    TeacherKind,
    register,
)
from methods.library.alignment import AlignedResponse, Groups
from methods.library.rollout_share import AcceptedShare, RolloutShare

_EPSILON = 1e-4


class GRPOOptions(OnPolicyOptions):
    ce_weight: NonNegative = Field(0.0, description="weight of the cross-entropy on references, where any are read")
    kd_weight: NonNegative = Field(1.0, description="weight of the policy's loss")
    rollout_share: RolloutShare = Field(1.0, description="as of other methods; 1: the student's own responses alone")
    rollouts: Literal["student"] = Field("student", description="no teacher corrects them")
    skd_top: Literal[25] = Field(25, description="unused: no teacher corrects them")
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="G, responses to one prompt; TRL's default")
    beta: NonNegative = Field(0.0, description="β of the KL to the warm start; 0 as in TRL: no second model is held")

    @field_validator("rollout_share")
    @classmethod
    def _samples(cls, share: RolloutShare) -> RolloutShare:
        if share == 0 or isinstance(share, AcceptedShare):
            raise ValueError("a number above 0, or a line: only samples are rewarded, and no teacher accepts any")
        return share


@register
class GRPO(Method[GRPOOptions]):
    name, paper, teacher = "grpo", "arXiv 2402.03300", TeacherKind.NONE
    summary = "reinforcement by the task's own verifier: what no teacher gains with as many sampled tokens"
    Options = GRPOOptions
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (0.0, 0.04), "rate": (0.5, 1.0, 2.0)}

    @property
    def needs(self) -> frozenset[Need]:
        means = {Need.ONE_RESPONSE} if self.normalize == "samples" else set()
        return super().needs | {Need.REWARDS} | means | ({Need.START} if self.options.beta else set())

    @property
    def samples_a_prompt(self) -> int:
        return self.options.group_size

    def align(self, response: AlignedResponse) -> Groups:
        return self.align_all([response])[0]

    def align_all(self, responses: Sequence[AlignedResponse]) -> list[Groups]:
        size, made = self.options.group_size, []
        for start in range(0, len(responses), size):
            made += _weighted(responses[start : start + size])
        return made

    def loss(self, chunk: AlignedChunk) -> LossSums:
        advantage = chunk.teacher.weight
        assert advantage is not None
        own = self._realised(chunk.student)
        value, diagnostics = -advantage.to(own.dtype) * own, {}
        if self.options.beta:
            gap = self._realised(chunk.teacher) - own
            kl = gap.exp() - gap - 1
            value = value + self.options.beta * kl
            diagnostics["KL to the start"] = kl.detach().sum(), kl.new_full((), len(kl))
        kd = value.sum()
        return LossSums(kd / chunk.response_groups if self.normalize == "samples" else kd, diagnostics)

    def _realised(self, side: Side) -> Tensor:
        """[members], log-probability of each token that was sampled."""
        rows = side.paired_log_probs(self.options.rollout_temperature)
        return rows.gather(1, side.tokens[:, None]).squeeze(1)


def advantages(rewards: Sequence[float]) -> npt.NDArray[np.float64]:
    """float64 [G], of the responses to one prompt; 0 where there is but one."""
    values = np.asarray(rewards, dtype=np.float64)
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    found: npt.NDArray[np.float64] = (values - values.mean()) / (spread + _EPSILON)
    return found


def _weighted(responses: Sequence[AlignedResponse]) -> list[Groups]:
    """Every token of a response with itself, weighted by its advantage; none where nobody said a reward."""
    rewards = [response.reward for response in responses if response.reward is not None]
    if len(rewards) < len(responses):
        return [Groups.one_to_one([], []) for _ in responses]
    differ = float(len(set(rewards)) > 1)
    made = []
    for response, reward, advantage in zip(responses, rewards, advantages(rewards), strict=True):
        every = np.arange(response.student_ids.size)
        notes = {"reward": (reward, 1.0), "rewards differ": (differ, 1.0)}
        made.append(Groups(every, every, every, every, every.size, np.full(every.size, advantage), notes))
    return made
