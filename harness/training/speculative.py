"""Speculative knowledge distillation (SKD): responses that the student writes, and its teacher corrects as it writes.

Xu et al., arXiv 2410.11325: a token that the student samples stays where it is among the teacher's K likeliest at its
place; else the teacher samples one there instead, and the student goes on behind it. K at the size of the vocabulary is
on-policy distillation, K = 0 is text of the teacher's own. The student proposes `BLOCK` tokens, which one pass of the
teacher judges; those behind the first that is refused are dropped. The authors' code judges a fresh draw of the student
instead of the token that it keeps; here it is the token. Their student and teacher have temperatures of their own; here
both sample as the recipe's `rollout_temperature` and `rollout_top_p` say.

Across tokenizers (ours): the text with the proposal is cut by the teacher's tokenizer, and groups of tokens that end on
the same byte stay where each of the teacher's tokens in them is among its K likeliest. At the first group that is
refused, the teacher samples a token behind what has stayed, and its bytes become tokens of the student. A block that
ends inside a word is judged as it stands, so that other tokenizers make the size of a block a part of the result.

All draws are from generators of a row's own: the student's noise is that of plain sampling, one draw a proposal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from harness.data.templates import ByteTokens, TextSide
from harness.data.tokens import STUDENT, TokenizedExample
from harness.generation.decoding import continue_prompts
from harness.generation.per_row import GumbelNoise, generator_of
from harness.models.heads import Head, hidden_states
from methods.library.alignment import IntArray, group_bytes
from methods.library.vocabulary import TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 5
"""Tokens that the student proposes at a time, as the authors' code has it."""


@dataclass
class Draft:
    """A response on its way.

    Attributes:
        prompt, teacher_prompt: token ids.
        ids: of the student, so far; the last one ends it, where it came to an end.
        corrected: how many of them are the teacher's.
        done: whether nothing comes any more.
    """

    prompt: list[int]
    teacher_prompt: list[int]
    ids: list[int] = field(default_factory=list)
    corrected: int = 0
    done: bool = False

    def add(self, tokens: Sequence[int], eos_ids: Sequence[int], most: int) -> int:
        """Let tokens follow, as far as there is room; how many did."""
        tokens = tokens[: most - len(self.ids)]
        self.ids += tokens
        self.done = len(self.ids) >= most or (bool(self.ids) and self.ids[-1] in eos_ids)
        return len(tokens)


class Speculation:
    """Writes responses of a student and a teacher.

    Args:
        student, teacher: on one device.
        sides: their tokenizers, the teacher's under its role.
        role: of the teacher.
        top: K.
        processors: of logits, for either role, but for noise.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        sides: Mapping[str, TextSide],
        role: str,
        top: int,
        processors: Mapping[str, Sequence[LogitsProcessor]],
    ) -> None:
        self.student, self.teacher, self.top, self.processors = student, teacher, top, processors
        self.ours, self.theirs, self.role = sides[STUDENT], sides[role], role
        self.same = self.ours.vocabulary.digest == self.theirs.vocabulary.digest

    @torch.no_grad()
    def write(
        self, examples: Sequence[TokenizedExample], draws: Sequence[tuple[str, int]], new_tokens: int
    ) -> list[Draft]:
        """A response to each prompt.

        Args:
            draws: name and seed of each response's draws, as of :class:`GumbelNoise`.
            new_tokens: the most of each, in the student's tokens.
        """
        drafts = [
            Draft(example.sides[STUDENT].prompt.tolist(), example.sides[self.role].prompt.tolist())
            for example in examples
        ]
        own = [generator_of(name, seed) for name, seed in draws]
        others = [generator_of(f"{name} teacher", seed) for name, seed in draws]
        while rows := [row for row, draft in enumerate(drafts) if not draft.done]:
            # longest first, which pads least
            rows.sort(key=lambda row: -len(drafts[row].prompt) - len(drafts[row].ids))
            noise, correcting = (_Noise([generators[row] for row in rows]) for generators in (own, others))
            self._round([drafts[row] for row in rows], noise, correcting, new_tokens)
        return drafts

    def _round(self, drafts: Sequence[Draft], ours: _Noise, theirs: _Noise, new_tokens: int) -> None:
        """A block of the student's for each response, as far as the teacher takes it, and what it says instead."""
        blocks = continue_prompts(
            self.student,
            self.ours,
            [draft.prompt + draft.ids for draft in drafts],
            new_tokens=BLOCK,
            processors=[*self.processors[STUDENT], ours],
            decoding="batch",
        )
        for place, draft in enumerate(drafts):
            block = blocks[place][: new_tokens - len(draft.ids)]
            blocks[place] = block[: next((n + 1 for n, token in enumerate(block) if token in self.ours.eos_ids), None)]
        refused = []
        for place, count in enumerate(self._taken(drafts, blocks)):
            drafts[place].add(blocks[place][:count], self.ours.eos_ids, new_tokens)
            if count < len(blocks[place]):
                ours.rewind(place, count + 1)  # behind the draw of the token that is refused
                refused.append(place)
        instead = self._corrections([drafts[place] for place in refused], theirs.of(refused)) if refused else []
        for place, tokens in zip(refused, instead, strict=True):
            drafts[place].corrected += drafts[place].add(tokens, self.ours.eos_ids, new_tokens)
            drafts[place].done |= not tokens  # what the teacher says has no tokens of the student's

    def _taken(self, drafts: Sequence[Draft], blocks: Sequence[Sequence[int]]) -> list[int]:
        """How many tokens of each block stay."""
        whole = [draft.ids + list(block) for draft, block in zip(drafts, blocks, strict=True)]
        texts, firsts = [self._texts(ids) for ids in whole], []
        for draft, (own, other) in zip(drafts, texts, strict=True):
            groups = group_bytes(own.ends, other.ends)
            new = groups.student_group[groups.student_index >= len(draft.ids)]
            member = groups.teacher_index[groups.teacher_group >= new[0]] if new.size else np.zeros(0, dtype=np.int64)
            firsts.append((groups, int(member[0]) if member.size else other.ids.size))
        likely = self._likely(drafts, [other.ids for _, other in texts], [first for _, first in firsts])
        taken = []
        for draft, block, (groups, first), row in zip(drafts, blocks, firsts, likely, strict=True):
            bad = [number for index, number in zip(groups.teacher_index, groups.teacher_group, strict=True)
                   if index >= first and not row[index - first]]  # fmt: skip
            kept = len(block)
            if bad:
                kept = max(int(groups.student_index[groups.student_group == bad[0]][0]) - len(draft.ids), 0)
            taken.append(kept)
        return taken

    def _texts(self, ids: list[int]) -> tuple[ByteTokens, ByteTokens]:
        """A response so far in both models' tokens, its end among them."""
        ended = bool(ids) and ids[-1] in self.ours.eos_ids
        own = np.asarray(ids[:-1] if ended else ids, dtype=np.int64)
        text, ends = self.ours.vocabulary.spell(own)
        ours = ByteTokens(own, ends, cut=False)
        theirs = ours if self.same else self.theirs.responses_of_bytes([text])[0]
        if not ended or theirs.cut:
            return ours, theirs
        return _ended(ours, ids[-1]), _ended(theirs, ids[-1] if self.same else self.theirs.eos)

    def _likely(self, drafts: Sequence[Draft], texts: Sequence[IntArray], firsts: Sequence[int]) -> list[list[bool]]:
        """Of the teacher's tokens of each text, from a first one on, whether each is among its likeliest."""
        spans = [
            (len(draft.teacher_prompt) - 1 + first, len(draft.teacher_prompt) - 1 + text.size)
            for draft, text, first in zip(drafts, texts, firsts, strict=True)
        ]
        logits = self._logits([d.teacher_prompt + t.tolist() for d, t in zip(drafts, texts, strict=True)], spans)
        found = []
        for rows, text, first in zip(logits, texts, firsts, strict=True):
            own = rows.gather(1, torch.from_numpy(text[first:]).to(rows.device)[:, None])
            found.append(((rows > own).sum(-1) < self.top).tolist())
        return found

    def _corrections(self, drafts: Sequence[Draft], noise: _Noise) -> list[list[int]]:
        """What the teacher samples behind each draft, in the student's tokens; none where it has no tokens for that."""
        begun = [self._texts(draft.ids)[1].ids.tolist() for draft in drafts]
        read = [draft.teacher_prompt + ids for draft, ids in zip(drafts, begun, strict=True)]
        scores = torch.cat(self._logits(read, [(len(ids) - 1, len(ids)) for ids in read]))
        spoken = self.theirs.vocabulary.kinds <= TokenKind.FALLBACK
        spoken[list(self.theirs.eos_ids)] = True
        silent = torch.ones(scores.shape[-1], dtype=torch.bool)
        silent[: spoken.size] = torch.from_numpy(~spoken)[: silent.numel()]
        scores = scores.masked_fill(silent.to(scores.device), -torch.inf)
        for processor in (*self.processors[self.role], noise):
            scores = processor(torch.zeros(0), scores)
        chosen = scores.argmax(-1).tolist()
        return [
            self._in_ours(draft.ids, *each) for draft, each in zip(drafts, zip(begun, chosen, strict=True), strict=True)
        ]

    def _in_ours(self, ids: list[int], begun: list[int], token: int) -> list[int]:
        """The student's tokens of one that the teacher said behind a text."""
        if self.same:
            return [token]
        if token in self.theirs.eos_ids:
            return [self.ours.eos]
        spell = self.theirs.vocabulary.spell
        before, after = (spell(np.asarray(text, dtype=np.int64))[0] for text in (begun, [*begun, token]))
        new = after[len(before) :]
        return self.ours.going_on(new) if ids else self.ours.responses_of_bytes([new])[0].ids.tolist()

    def _logits(self, texts: Sequence[list[int]], spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Of the teacher at rows of each text, [rows, vocabulary] in float32 at least."""
        device, width = next(self.teacher.parameters()).device, max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=device)
        places = torch.arange(width, device=device)
        mask = (places < torch.tensor([[len(text)] for text in texts], device=device)).long()
        head = Head.of(self.teacher)
        # in the precision of its weights, as where it teaches: autocast is the student's
        with torch.autocast(device.type, enabled=False):
            hidden = hidden_states(self.teacher, ids, mask, places.expand_as(ids), padded_behind=True)
            found = [head.logits(rows[slice(*span)]) for rows, span in zip(hidden, spans, strict=True)]
        return [logits if logits.dtype == torch.float64 else logits.float() for logits in found]


def _ended(text: ByteTokens, eos: int) -> ByteTokens:
    return ByteTokens(np.append(text.ids, eos), np.append(text.ends, text.ends.max(initial=0)), cut=False)


class _Noise(GumbelNoise):
    """Noise of rows whose draws go on from block to block, and can be taken back.

    Args:
        of_rows: what each draws from.
    """

    def __init__(self, of_rows: Sequence[torch.Generator]) -> None:
        super().__init__([])
        self.of_rows = of_rows
        self.places: list[int] = []
        self.states: list[list[Tensor]] = [[] for _ in of_rows]

    def of(self, rows: Sequence[int]) -> _Noise:
        """Noise of some rows, ready to be drawn."""
        made = _Noise([self.of_rows[row] for row in rows])
        made.add(range(len(rows)))
        return made

    def rewind(self, row: int, draws: int) -> None:
        """Go on behind so many draws of a row."""
        if draws < len(self.states[row]):
            self.of_rows[row].set_state(self.states[row][draws])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for place, generator in zip(self.places, self.generators, strict=True):
            self.states[place].append(generator.get_state())
        return super().__call__(input_ids, scores)

    def add(self, places: Sequence[int]) -> None:
        super().add(places)
        self.places += places

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self.places = [self.places[row] for row in rows]

    def _generator(self, place: int) -> torch.Generator:
        return self.of_rows[place]
