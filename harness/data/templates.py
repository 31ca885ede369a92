"""One model's way to turn text into tokens: tokenizer, template, BOS, and what ends a response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import Tokenizer

from harness.base.errors import HarnessError
from harness.data.rendering import Renderer, TemplateError
from harness.models.cache import Report
from harness.models.load import load_tokenizer
from harness.models.publisher import PublisherSettings
from harness.models.resolve import resolve
from harness.models.uri import parse_uri
from methods.library.alignment import IntArray
from methods.library.vocabulary import TokenKind, UnsupportedTokenizerError, Vocabulary, without_dummy_space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from harness.models.spec import ModelSpec

TEMPLATE_DATE = date(2024, 7, 26)
"""Today, for chat templates that print it: the day that Llama-3.1's takes where it knows none."""
_RESPONSE = "the assistant's response"


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

    Args:
        template: "chat": the model's chat template goes round prompts.
        options: what the chat template asks for beside messages.
        system: a system message before each prompt of a chat.
        publisher: what the model's folder says of ends and BOS.

    Raises:
        HarnessError: no EOS, no chat template where one is asked for, or one that begins an assistant's message
            otherwise than its generation prompt ends.

    Attributes:
        bos: ids before every plain prompt.
        eos_ids: ids that end a response. The first is what training appends: with the template "chat" what the
            model's own chat template writes behind an assistant's message, else the tokenizer's EOS. With "chat", the
            other comes second where the two differ. Then what its publisher lets end an answer: the model may know it.
        eos: the first of them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        template: Literal["plain", "chat"],
        name: str,
        options: Mapping[str, Any] | None = None,
        system: str | None = None,
        publisher: PublisherSettings | None = None,
    ) -> None:
        publisher = publisher or PublisherSettings()
        self.tokenizer, self.template, self.name = tokenizer, template, name
        self.options, self._renderer = dict(options or {}), Renderer(tokenizer)
        self.before: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        if tokenizer.eos_token_id is None:
            raise HarnessError(name, "a tokenizer without an EOS token", "one that can end a response")
        if template == "chat" and not tokenizer.chat_template:
            raise HarnessError(f"template of {name}", "'chat'", "'plain', since this tokenizer has no chat template")
        # Whether the tokenizer puts BOS before a text on its own decides whether the model was trained with it.
        self.bos = [tokenizer.bos_token_id] if self._adds_bos(publisher) else []
        eos, end_of_turn = int(tokenizer.eos_token_id), self._end_of_turn()
        known = (end for end in publisher.ends if 0 <= end < len(tokenizer))
        self.eos_ids = tuple(dict.fromkeys(index for index in (end_of_turn, eos, *known) if index is not None))
        self.eos = self.eos_ids[0]
        if template == "chat":
            self._check_generation_prompt()

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
        chats = [[*self.before, {"role": "user", "content": text}] for text in texts]
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

    def going_on(self, text: bytes) -> list[int]:
        """Tokens of bytes that go on with a text, UTF-8 or not, up to the first that nothing stands for."""
        found: list[int] = []
        for place, part in enumerate(re.split("([\udc80-\udcff]+)", text.decode("utf-8", "surrogateescape"))):
            if place % 2:
                found += self.vocabulary.byte_tokens[[ord(character) - 0xDC00 for character in part]].tolist()
            else:
                found += self._encode([part], self._within_a_text)[0]
        return found[: found.index(-1)] if -1 in found else found

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
        return re.compile("|".join(map(re.escape, self._control_names.values())) or "(?!)")

    def _render(self, chats: Sequence[Sequence[Mapping[str, str]]], **options: Any) -> Any:
        """Chats in the model's own template, as token ids unless ``tokenize=False``."""
        template, where = self._chat_template, f"chat template of {self.name}"
        try:
            return self._renderer.render(chats, chat_template=template, **self.options, **options)
        except TemplateError as error:
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
        """The control token that the chat template writes behind an assistant's message, white space aside.

        A template that no prompt goes through is not asked.
        """
        if self.template == "plain":
            return None
        (rendered,) = self._render([self._exchange], tokenize=False)
        behind = rendered.rpartition(_RESPONSE)[2].lstrip()
        names = {token.content: index for index, token in self.tokenizer.added_tokens_decoder.items()}
        found = [name for name in names if behind.startswith(name)]
        return names[max(found, key=len)] if found else None

    @property
    def _exchange(self) -> list[dict[str, str]]:
        return [
            *self.before,
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": _RESPONSE},
        ]

    def _check_generation_prompt(self) -> None:
        """What a response is trained behind is what the template itself would put before it.

        Compared in text, and where that differs in tokens: Llama 2's template writes the space that its tokenizer puts
        before a response anyway.
        """
        chat = self._exchange
        (whole,) = self._render([chat], tokenize=False)
        (prompt,) = self._render([chat[:-1]], tokenize=False, add_generation_prompt=True)
        if whole.startswith(prompt + _RESPONSE):
            return
        (rendered,) = self._render([chat])
        joined = self.prompts(["question"])[0] + self.responses([_RESPONSE])[0].tolist()
        if rendered[: len(joined)] == joined:
            return
        ours, theirs = (prompt + _RESPONSE)[(same := _same(prompt + _RESPONSE, whole)) :], whole[same:]
        raise HarnessError(
            f"chat template of {self.name}",
            f"{theirs[:60]!r} where a generation prompt is followed by {ours[:60]!r}",
            "a template that begins an assistant's message as its generation prompt ends",
            "Set template_options, such as {enable_thinking: false} for Qwen3, or template: plain.",
        )

    def _adds_bos(self, publisher: PublisherSettings) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and (publisher.adds_bos or self.tokenizer("a")["input_ids"][0] == bos)

    # --- tokens -> text -----------------------------------------------------------------------------------------------

    def answer_text(self, ids: Sequence[int], continues: bool = False) -> str:
        """The text that generated tokens stand for; what is no UTF-8 is replaced.

        Args:
            ids: from the first token behind the prompt; special ones stand for no text.
            continues: whether the answer goes on with the prompt's text, so that each space is the model's. Else it is
                a text of its own, as responses are in training: a space that the tokenizer puts before such is none.
        """
        array = np.asarray(ids, dtype=np.int64)
        spelled = self.vocabulary.spell_on(array) if continues else self.vocabulary.spell(array)[0]
        return spelled.decode("utf-8", errors="replace")

    def control_text(self, token: int) -> str:
        """The name of a special token; "" for any other."""
        return self._control_names.get(token, "")

    @cached_property
    def _control_names(self) -> dict[int, str]:
        return {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}


def _same(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def load_sides(specs: Mapping[str, ModelSpec], report: Report) -> dict[str, TextSide]:
    """Tokenizers of a pair's models by role; models that are not here are downloaded first.

    Args:
        report: called with one line of progress at a time.
    """
    sides = {}
    for role, spec in specs.items():
        local = resolve(parse_uri(spec.model), report=report)
        tokenizer = load_tokenizer(local.folder)
        sides[role] = TextSide(
            tokenizer,
            template=spec.template,
            name=spec.name or spec.model,
            options=spec.template_options,
            system=spec.system,
            publisher=PublisherSettings.of(local.folder),
        )
    return sides
