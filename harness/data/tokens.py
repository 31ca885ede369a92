"""Examples -> tokens and byte spans: what each model of a pair sees of a prompt and its response.

Prompt and response are tokenised apart and joined, as at generation. All models of a pair see the same response
bytes: where one of them is over its limit, the response is cut on all sides at the last byte boundary they share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import Tokenizer

from harness.base.errors import HarnessError
from harness.data.rows import Example
from harness.models.cache import Report
from harness.models.load import load_tokenizer
from harness.models.resolve import resolve
from harness.models.uri import parse_uri
from methods.library.alignment import AlignedResponse, IntArray, cut_at_common_boundary
from methods.library.vocabulary import TokenKind, UnsupportedTokenizerError, Vocabulary, without_dummy_space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from harness.models.spec import ModelSpec

STUDENT = "student"
TEMPLATE_DATE = date(2024, 7, 26)
"""Today, for chat templates that print it: the day that Llama-3.1's takes where it knows none."""
_RESPONSE = "the assistant's response"
Overlong = Literal["error", "drop"]


@dataclass(frozen=True)
class ByteTokens:
    """A byte string in one model's tokens.

    Attributes:
        ids, ends: int64 [n], the tokens and where each ends, in bytes.
        cut: whether bytes after the last end are left out, since the model has no tokens that spell them.
    """

    ids: IntArray
    ends: IntArray
    cut: bool


class TextSide:
    """One model's way to turn text into tokens: its tokenizer, its template, its BOS, and how its responses end.

    Attributes:
        bos: ids before every plain prompt.
        eos_ids: ids that end a response. The first is what training appends: with the template "chat" what the
            model's own chat template writes behind an assistant's message, else the tokenizer's EOS. Where the two
            differ, the other comes second: the model may know it from before.
        eos: the first of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, template: Literal["plain", "chat"], name: str) -> None:
        self.tokenizer, self.template, self.name = tokenizer, template, name
        if tokenizer.eos_token_id is None:
            raise HarnessError(name, "a tokenizer without an EOS token", "one that can end a response")
        if template == "chat" and not tokenizer.chat_template:
            raise HarnessError(f"template of {name}", "'chat'", "'plain', since this tokenizer has no chat template")
        # Whether the tokenizer puts BOS before a text on its own decides whether the model was trained with it.
        self.bos = [tokenizer.bos_token_id] if self._adds_bos() else []
        eos, end_of_turn = int(tokenizer.eos_token_id), self._end_of_turn()
        ordered = (end_of_turn, eos) if template == "chat" else (eos, end_of_turn)
        self.eos_ids = tuple(dict.fromkeys(index for index in ordered if index is not None))
        self.eos = self.eos_ids[0]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        try:
            return Vocabulary.of(self.tokenizer.backend_tokenizer, self.name, self.eos_ids)
        except UnsupportedTokenizerError as error:
            raise HarnessError(
                f"tokenizer of {self.name}", str(error), "a byte-level or SentencePiece tokenizer"
            ) from error

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the rendered prompts, BOS included; names of control tokens in ``texts`` are text.

        A chat template says itself whether BOS stands at the beginning. Where it prints today's date, that is
        :data:`TEMPLATE_DATE`, so that a prompt is the same tomorrow.
        """
        if self.template == "plain" or not texts:
            return self.plain_prompts(texts)
        chats = [[{"role": "user", "content": text}] for text in texts]
        prompts: list[list[int]] = self._render(chats, add_generation_prompt=True)
        for place, text in enumerate(texts):
            if self._control_tokens.search(text):  # transformers can keep them as text, but slowly
                (prompts[place],) = self._render(
                    [chats[place]], add_generation_prompt=True, sanitize_control_tokens=True
                )
        return prompts

    def plain_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they stand, without the chat template, BOS included."""
        return [self.bos + ids for ids in self._encode(texts)]

    def without_bos(self, prompt: list[int]) -> list[int]:
        """One of ``prompts`` less its BOS; what a chat template begins with is the template's, and stays."""
        return prompt[len(self.bos) :] if self.template == "plain" else prompt

    def responses(self, texts: Sequence[str]) -> list[IntArray]:
        """Token ids of the responses, without special tokens."""
        return [np.asarray(ids, dtype=np.int64) for ids in self._encode(texts)]

    def responses_of_bytes(self, texts: Sequence[bytes]) -> list[ByteTokens]:
        """Tokens of responses that another model sampled: bytes that need not be UTF-8.

        Stretches of UTF-8 go through the tokenizer, in one call for those that begin a response and one for the rest;
        every other byte becomes the token that stands for it alone. Where there is none, or the tokenizer would
        change the text, the response is cut.
        """
        # even places: text; odd places: bytes that are part of no character, which stand as lone surrogates
        split = [re.split("([\udc80-\udcff]+)", text.decode("utf-8", "surrogateescape")) for text in texts]
        first = self._encode([parts[0] for parts in split])
        later = iter(self._encode([text for parts in split for text in parts[2::2]], self._within_a_text))
        spelled = []
        for text, parts, begun in zip(texts, split, first, strict=True):
            found = list(begun)
            for stray in parts[1::2]:
                found += self.vocabulary.byte_tokens[[ord(character) - 0xDC00 for character in stray]].tolist()
                found += next(later)
            ids = np.asarray(found, dtype=np.int64)
            no_text = (ids < 0) | (self.vocabulary.kinds[ids] >= TokenKind.SPECIAL)
            ids = ids[: np.append(no_text, True).argmax()]
            ends = self.vocabulary.ends_while_equal(ids, text)
            spelled.append(ByteTokens(ids[: ends.size], ends, cut=ends.max(initial=0).item() < len(text)))
        return spelled

    def _encode(self, texts: Sequence[str], backend: Tokenizer | None = None) -> list[list[int]]:
        backend = self.tokenizer.backend_tokenizer if backend is None else backend
        # "</s>" in a data set is text: it must not end a response
        backend.encode_special_tokens, before = True, backend.encode_special_tokens
        try:
            return [encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=False)]
        finally:
            backend.encode_special_tokens = before

    @cached_property
    def _within_a_text(self) -> Tokenizer:
        """The tokenizer as it cuts text that goes on: without a dummy space in front."""
        backend = self.tokenizer.backend_tokenizer
        return backend if self.vocabulary.dummy_space == "never" else without_dummy_space(backend)

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        """Finds names of control tokens in a text."""
        names = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(map(re.escape, names)) or "(?!)")

    def _render(self, chats: Sequence[Sequence[Mapping[str, str]]], **options: Any) -> Any:
        """Chats in the model's own template, as token ids unless ``tokenize=False``."""
        template, where = self._chat_template, f"chat template of {self.name}"
        try:
            return self.tokenizer.apply_chat_template(chats, chat_template=template, return_dict=False, **options)
        except Exception as error:  # a template is a program of its publisher's, and refuses in its own way
            expected = "one that renders a user's and an assistant's message"
            raise HarnessError(where, f"an error ({error})", expected, "Set template: plain.") from error

    @cached_property
    def _chat_template(self) -> str:
        """The chat template with a fixed date where it asks for today's."""

        def fixed(call: re.Match[str]) -> str:
            return call[1] + TEMPLATE_DATE.strftime(call[2]) + call[1]

        template = re.sub(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", fixed, self.tokenizer.get_chat_template())
        if "strftime_now(" in template:
            where, expected = f"chat template of {self.name}", "prompts that are the same tomorrow"
            raise HarnessError(where, "today's date in a form that is computed", expected, "Set template: plain.")
        return template

    def _end_of_turn(self) -> int | None:
        """The control token that the chat template writes behind an assistant's message, white space aside."""
        if not self.tokenizer.chat_template:
            return None
        chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _RESPONSE}]
        try:
            (rendered,) = self._render([chat], tokenize=False)
        except HarnessError:
            if self.template == "chat":
                raise
            return None
        behind = rendered.rpartition(_RESPONSE)[2].lstrip()
        names = {token.content: index for index, token in self.tokenizer.added_tokens_decoder.items()}
        found = [name for name in names if behind.startswith(name)]
        return names[max(found, key=len)] if found else None

    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][0] == bos


def load_sides(specs: Mapping[str, ModelSpec], report: Report) -> dict[str, TextSide]:
    """Tokenizers of a pair's models by role; models that are not here are downloaded first.

    Args:
        report: called with one line of progress at a time.
    """
    sides = {}
    for role, spec in specs.items():
        local = resolve(parse_uri(spec.model), report=report)
        tokenizer = load_tokenizer(local.folder)
        sides[role] = TextSide(tokenizer, template=spec.template, name=spec.name or spec.model)
    return sides


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
    overlong: Overlong = "error",
) -> list[TokenizedExample]:
    """Tokenise examples for every model of a pair; one call into the tokenizers library a side.

    Args:
        max_length: the most tokens of prompt and response together, EOS included, on any side.
        overlong: what to do with a prompt that leaves no room for a response.

    Raises:
        HarnessError: an empty response, a prompt that leaves no room, a tokenizer that changes text.
    """
    for example in examples:
        if not example.response:
            raise HarnessError(example.source or example.id, "an empty response", "text to train on")
    prompts = {role: side.prompts([example.prompt for example in examples]) for role, side in sides.items()}
    responses = {role: side.responses([example.response for example in examples]) for role, side in sides.items()}
    tokenized = []
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
        joined = _join(example, one, {role: responses[role][number] for role in sides}, sides, max_length)
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
    return tokenized


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
        raise HarnessError(
            example.source or example.id, str(error), "a tokenizer that keeps every byte of the response"
        ) from error
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


def token_side(side: TextSide, example: TokenizedExample, role: str) -> dict[str, Any]:
    """The response's tokens as one model cuts it: the model's name, text of each token, byte ends."""
    tokens = example.sides[role]
    ends = tokens.ends.tolist()
    texts = []
    for token, (start, end) in zip(tokens.response.tolist(), pairwise([0, *ends]), strict=True):
        spelled = side.vocabulary.token_bytes[token][start - end :] if end > start else b""
        # A token may end inside a character; one without bytes (EOS, a dummy prefix) is shown by its name.
        texts.append(spelled.decode(errors="backslashreplace") or str(side.tokenizer.convert_ids_to_tokens(token)))
    return {"name": side.name, "tokens": texts, "ends": ends}
