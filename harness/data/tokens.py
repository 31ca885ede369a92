"""Examples -> tokens and byte spans: what each model of a pair sees of a prompt and its response.

Prompt and response are tokenised apart and joined, as at generation. All models of a pair see the same response
bytes: where one of them is over its limit, the response is cut on all sides at the last byte boundary they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from harness.base.errors import HarnessError
from harness.data.rows import Example
from harness.data.templates import ByteTokens, TextSide
from harness.store.artefacts import ShownTokens
from methods.library.alignment import AlignedResponse, IntArray, cut_at_common_boundary
from methods.library.vocabulary import UnsupportedTokenizerError

STUDENT = "student"
OnBadRow = Literal["error", "drop"]
"""What to do with a row that can't be trained on, or measured."""
LeftOut = Literal["overlong", "unreadable"]
"""Why a row was dropped: its prompt leaves no room, or a tokenizer changes its response."""


@dataclass(frozen=True)
class SideTokens:
    """What one model sees of an example.

    Attributes:
        prompt: int64 [p]; response: int64 [n], with EOS unless the response was cut.
        ends: int64 [n], byte ends of the response's tokens; EOS has width zero.
    """

    prompt: IntArray
    response: IntArray
    ends: IntArray

    @property
    def length(self) -> int:
        return int(self.prompt.size + self.response.size)

    @property
    def sequence(self) -> IntArray:
        return np.concatenate([self.prompt, self.response])


@dataclass(frozen=True)
class TokenizedExample:
    """An example as every model of the pair sees it.

    Attributes:
        sides: by the role of the model: "student", and the roles of its teachers.
        cut: whether a limit cut the response (then it has no EOS).
        response_bytes: UTF-8 bytes of the response that the tokens spell.
    """

    id: str
    sides: Mapping[str, SideTokens]
    cut: bool
    response_bytes: int

    def aligned(self, teacher: str) -> AlignedResponse:
        student, other = self.sides[STUDENT], self.sides[teacher]
        return AlignedResponse(
            student.response, other.response, student.ends, other.ends, student.prompt.size, other.prompt.size
        )


def tokenize(
    examples: Sequence[Example],
    sides: Mapping[str, TextSide],
    max_length: int,
    overlong: OnBadRow = "error",
    unreadable: OnBadRow = "error",
    left_out: dict[str, LeftOut] | None = None,
) -> list[TokenizedExample]:
    """Tokenise examples for every model of a pair; one call into the tokenizers library a side.

    Args:
        max_length: the most tokens of prompt and response together, EOS included, on any side.
        overlong: what to do with a prompt that leaves no room for a response.
        unreadable: what to do with a response that a tokenizer changes, as one that normalises text may.
        left_out: takes the ids of dropped rows, each with the reason.

    Raises:
        HarnessError: an empty response, a prompt that leaves no room, a tokenizer that changes text.
    """
    for example in examples:
        if not example.response:
            raise HarnessError(example.source or example.id, "an empty response", "text to train on")
    prompts = {role: side.prompts([example.prompt for example in examples]) for role, side in sides.items()}
    responses = {role: side.responses([example.response for example in examples]) for role, side in sides.items()}
    tokenized = []
    dropped = {} if left_out is None else left_out
    for number, example in enumerate(examples):
        rendered = {role: prompts[role][number] for role in sides}
        if not example.bos:
            rendered = {role: sides[role].without_bos(prompt) for role, prompt in rendered.items()}
        one = {role: np.asarray(prompt, dtype=np.int64) for role, prompt in rendered.items()}
        for role, prompt in one.items():
            if not prompt.size:  # nothing would predict the first token of the response
                where = example.source or example.id
                raise HarnessError(
                    where, f"a prompt without a token for {sides[role].name}", "a prompt, or a BOS token"
                )
        try:
            joined = _join(example, one, {role: responses[role][number] for role in sides}, sides, max_length)
        except _UnreadableError:
            if unreadable == "error":
                raise
            dropped[example.id] = "unreadable"
            continue
        if joined is not None:
            tokenized.append(joined)
        elif overlong == "error":
            longest = max(one, key=lambda role: one[role].size)
            raise HarnessError(
                example.source or example.id,
                f"a prompt of {one[longest].size} tokens for {sides[longest].name} and a limit of {max_length}",
                "room for a token of the response and its end, and a byte boundary that all models share before it",
                "Raise limits.length, or set limits.overlong=drop to leave such rows out.",
            )
        else:
            dropped[example.id] = "overlong"
    return tokenized


class _UnreadableError(HarnessError):
    """A response that a tokenizer changes."""


def _join(
    example: Example,
    prompts: Mapping[str, IntArray],
    responses: Mapping[str, IntArray],
    sides: Mapping[str, TextSide],
    max_length: int,
) -> TokenizedExample | None:
    """One example with its byte spans, cut to the limit; None where a limit leaves no response token."""
    text = example.response.encode()
    try:
        ends = {role: sides[role].vocabulary.ends(ids, text) for role, ids in responses.items()}
    except UnsupportedTokenizerError as error:
        fix = "Write the row as the tokenizer reads it, or set limits.unreadable=drop to leave such rows out."
        expected = "a tokenizer that keeps every byte of the response"
        raise _UnreadableError(example.source or example.id, str(error), expected, fix) from error
    room = {role: max_length - prompt.size - 1 for role, prompt in prompts.items()}  # one place is EOS's
    return _cut_and_end(example.id, prompts, responses, ends, room, {role: side.eos for role, side in sides.items()})


def _cut_and_end(
    name: str,
    prompts: Mapping[str, IntArray],
    responses: Mapping[str, IntArray],
    ends: Mapping[str, IntArray],
    limits: Mapping[str, int],
    eos: Mapping[str, int] | None,
) -> TokenizedExample | None:
    """Responses cut to their limits at a byte boundary that all sides share, or ended.

    Args:
        limits: the most tokens of each side's response, EOS left out.
        eos: what ends each side's response where nothing is cut; None for one that has no end.

    Returns:
        None where a limit leaves no response token.
    """
    room = [limits[role] for role in prompts]
    if min(room) < 1:
        return None
    kept = cut_at_common_boundary([ends[role] for role in prompts], room)
    if kept is not None and min(kept) < 1:
        return None
    joined = {}
    for place, role in enumerate(prompts):
        response, own_ends = responses[role], ends[role]
        if kept is not None:
            response, own_ends = response[: kept[place]], own_ends[: kept[place]]
        elif eos is not None:
            response, own_ends = np.append(response, eos[role]), np.append(own_ends, own_ends.max(initial=0))
        joined[role] = SideTokens(prompts[role], response, own_ends)
    last = next(iter(joined.values())).ends[-1:]
    return TokenizedExample(name, joined, kept is not None or eos is None, int(last.sum()))


def join_sampled(
    examples: Sequence[TokenizedExample],
    responses: Sequence[Sequence[int]],
    sides: Mapping[str, TextSide],
    max_length: int,
) -> list[TokenizedExample]:
    """Examples with responses that the student sampled, tokenised from their bytes for the other models.

    Models with the student's tokenizer see the student's own tokens, its end among them. A response that its length
    cut gets no end on any side; one that leaves a teacher no room is empty.

    Args:
        responses: token ids of each response; the last one ends it, where the student came to an end.
    """
    student = sides[STUDENT]
    last = [ids[-1] if ids and ids[-1] in student.eos_ids else None for ids in responses]
    own = [
        np.asarray(ids if end is None else ids[:-1], dtype=np.int64) for ids, end in zip(responses, last, strict=True)
    ]
    spelled = [student.vocabulary.spell(ids) for ids in own]
    same = {role for role, side in sides.items() if side.vocabulary.digest == student.vocabulary.digest}
    tokens = {
        role: [ByteTokens(ids, ends, cut=False) for ids, (_, ends) in zip(own, spelled, strict=True)]
        if role in same
        else side.responses_of_bytes([text for text, _ in spelled])
        for role, side in sides.items()
    }
    joined = []
    for place, (example, end) in enumerate(zip(examples, last, strict=True)):
        eos = None if end is None else {role: end if role in same else side.eos for role, side in sides.items()}
        joined.append(_join_sampled(example, {role: made[place] for role, made in tokens.items()}, max_length, eos))
    return joined


def _join_sampled(
    example: TokenizedExample,
    tokens: Mapping[str, ByteTokens],
    max_length: int,
    eos: Mapping[str, int] | None,
) -> TokenizedExample:
    """One example with a sampled response; an empty one where nothing of it is left."""
    prompts = {role: example.sides[role].prompt for role in tokens}
    limits = {role: max_length - prompt.size - 1 for role, prompt in prompts.items()}
    if any(made.cut for made in tokens.values()):  # a model without tokens for some bytes: all see what is before them
        covered = min(int(made.ends.max(initial=0)) for made in tokens.values())
        for role, made in tokens.items():
            limits[role] = min(limits[role], int(np.searchsorted(made.ends, covered, side="right")))
        eos = None
    ids, ends = {role: made.ids for role, made in tokens.items()}, {role: made.ends for role, made in tokens.items()}
    joined = _cut_and_end(example.id, prompts, ids, ends, limits, eos)
    if joined is not None:
        return joined
    nothing = np.zeros(0, dtype=np.int64)
    return TokenizedExample(example.id, {r: SideTokens(p, nothing, nothing) for r, p in prompts.items()}, True, 0)


def token_side(side: TextSide, example: TokenizedExample, role: str) -> ShownTokens:
    """The response's tokens as one model cuts it."""
    tokens = example.sides[role]
    ends = tokens.ends.tolist()
    texts = []
    for token, (start, end) in zip(tokens.response.tolist(), pairwise([0, *ends]), strict=True):
        spelled = side.vocabulary.token_bytes[token][start - end :] if end > start else b""
        # A token may end inside a character; one without bytes (EOS, a dummy prefix) is shown by its name.
        texts.append(spelled.decode(errors="backslashreplace") or str(side.tokenizer.convert_ids_to_tokens(token)))
    return {"name": side.name, "tokens": texts, "ends": ends}
