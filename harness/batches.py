"""Examples -> tokens and byte spans -> padded batches with their rows, groups and chunks.

Prompt and response are tokenised apart and joined, as at generation. All models of a pair see the same response
bytes: where one of them is over its limit, the response is cut on all sides at the last byte boundary they share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from harness import models
from harness.errors import HarnessError
from methods.alignment import AlignedResponse, Groups, IntArray, cut_at_common_boundary
from methods.base import Method, Need, Rows
from methods.vocabulary import TokenKind, UnsupportedTokenizerError, Vocabulary, without_dummy_space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from harness.recipe import ModelSpec

EntropyArray = npt.NDArray[np.float64]
STUDENT = "student"
TEMPLATE_DATE = date(2024, 7, 26)
"""Today, for chat templates that print it: the day that Llama-3.1's takes where it knows none."""
_RESPONSE = "the assistant's response"
Overlong = Literal["error", "drop"]


@dataclass(frozen=True)
class Example:
    """A row of a task: the same prompt and response text for every model.

    Attributes:
        id: unique within the task, stable between runs.
        prompt: text before the response, in the task's layout (a model's own template may go around it).
        response: the reference that is trained on or measured; never empty.
        source: where it comes from (file and line), for messages.
    """

    id: str
    prompt: str
    response: str
    source: str = ""


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


def load_sides(specs: Mapping[str, ModelSpec], report: models.Report) -> dict[str, TextSide]:
    """Tokenizers of a pair's models by role; models that are not here are downloaded first.

    Args:
        report: called with one line of progress at a time.
    """
    sides = {}
    for role, spec in specs.items():
        local = models.resolve(models.parse_uri(spec.model), report=report)
        tokenizer = models.load_tokenizer(local.folder)
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
        one = {role: np.asarray(prompts[role][number], dtype=np.int64) for role in sides}
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
    return _cut_and_end(example.id, prompts, responses, ends, sides, room)


def _cut_and_end(
    name: str,
    prompts: Mapping[str, IntArray],
    responses: Mapping[str, IntArray],
    ends: Mapping[str, IntArray],
    sides: Mapping[str, TextSide],
    limits: Mapping[str, int],
    ended: bool = True,
) -> TokenizedExample | None:
    """Responses cut to their limits at a byte boundary that all sides share, or ended by each side's own EOS.

    Args:
        limits: the most tokens of each side's response, EOS left out.
        ended: whether an EOS follows where nothing is cut.

    Returns:
        None where a limit leaves no response token.
    """
    room = [limits[role] for role in sides]
    if min(room) < 1:
        return None
    kept = cut_at_common_boundary([ends[role] for role in sides], room)
    if kept is not None and min(kept) < 1:
        return None
    joined = {}
    for place, role in enumerate(sides):
        response, own_ends = responses[role], ends[role]
        if kept is not None:
            response, own_ends = response[: kept[place]], own_ends[: kept[place]]
        elif ended:
            response, own_ends = np.append(response, sides[role].eos), np.append(own_ends, own_ends.max(initial=0))
        joined[role] = SideTokens(prompts[role], response, own_ends)
    last = next(iter(joined.values())).ends[-1:]
    return TokenizedExample(name, joined, kept is not None or not ended, int(last.sum()))


def join_sampled(
    examples: Sequence[TokenizedExample],
    responses: Sequence[Sequence[int]],
    sides: Mapping[str, TextSide],
    max_length: int,
) -> list[TokenizedExample]:
    """Examples with responses that the student sampled, tokenised from their bytes for the other models.

    Models with the student's tokenizer see the student's own tokens. A response that its length cut gets no EOS on
    any side; one that leaves a teacher no room is empty.

    Args:
        responses: token ids of each response; the last one is the student's EOS where it came to an end.
    """
    student = sides[STUDENT]
    ended = [bool(ids) and ids[-1] in student.eos_ids for ids in responses]
    own = [np.asarray(ids[: len(ids) - end], dtype=np.int64) for ids, end in zip(responses, ended, strict=True)]
    spelled = [student.vocabulary.spell(ids) for ids in own]
    tokens = {
        role: [ByteTokens(ids, ends, cut=False) for ids, (_, ends) in zip(own, spelled, strict=True)]
        if side.vocabulary.digest == student.vocabulary.digest
        else side.responses_of_bytes([text for text, _ in spelled])
        for role, side in sides.items()
    }
    return [
        _join_sampled(example, {role: made[place] for role, made in tokens.items()}, sides, max_length, ended[place])
        for place, example in enumerate(examples)
    ]


def _join_sampled(
    example: TokenizedExample,
    tokens: Mapping[str, ByteTokens],
    sides: Mapping[str, TextSide],
    max_length: int,
    ended: bool,
) -> TokenizedExample:
    """One example with a sampled response; an empty one where nothing of it is left."""
    prompts = {role: example.sides[role].prompt for role in sides}
    limits = {role: max_length - prompt.size - 1 for role, prompt in prompts.items()}
    if any(made.cut for made in tokens.values()):  # a model without tokens for some bytes: all see what is before them
        covered = min(int(made.ends.max(initial=0)) for made in tokens.values())
        for role, made in tokens.items():
            limits[role] = min(limits[role], int(np.searchsorted(made.ends, covered, side="right")))
        ended = False
    ids, ends = {role: made.ids for role, made in tokens.items()}, {role: made.ends for role, made in tokens.items()}
    joined = _cut_and_end(example.id, prompts, ids, ends, sides, limits, ended)
    if joined is not None:
        return joined
    nothing = np.zeros(0, dtype=np.int64)
    return TokenizedExample(example.id, {r: SideTokens(p, nothing, nothing) for r, p in prompts.items()}, True, 0)


@dataclass(frozen=True)
class Term:
    """One distillation term of an objective.

    Attributes:
        method: its loss.
        teacher: role of the teacher it learns from.
        weight: factor of its KD sum in the total loss.
    """

    method: Method
    teacher: str
    weight: float


class OnDevice:
    """A dataclass whose tensors move to a device together, as accelerate's data loaders ask."""

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        return replace(self, **{f.name: _move(getattr(self, f.name), device, non_blocking) for f in fields(self)})  # type: ignore[arg-type, type-var]


def _move(value: Any, device: Any, non_blocking: bool) -> Any:
    if isinstance(value, torch.Tensor | OnDevice):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, dict):
        return {key: _move(item, device, non_blocking) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], OnDevice):
        return [_move(item, device, non_blocking) for item in value]
    return value


@dataclass
class TermBatch(OnDevice):
    """Groups of one term over all rows of a batch. Row numbers count the rows of :class:`Batch`.

    Attributes:
        student_index, student_group, teacher_index, teacher_group: int64 [members], groups ascending.
        student_tokens, teacher_tokens: int64 [members], the response token that each member is, -100 for one of the
            prompt.
        slices: for each chunk, (student members, teacher members, groups, teacher rows) as (start, stop) pairs.
        in_order: for each chunk, whether (student, teacher) members are its rows in their order.
        groups: number of groups.
        teacher_weight: float64 [teacher members] or None, see :class:`Groups`.
        notes: what the alignment says of itself, summed over the batch.
    """

    student_index: torch.Tensor
    student_group: torch.Tensor
    teacher_index: torch.Tensor
    teacher_group: torch.Tensor
    student_tokens: torch.Tensor
    teacher_tokens: torch.Tensor
    slices: list[tuple[tuple[int, int], ...]]
    in_order: list[tuple[bool, bool]]
    groups: int
    teacher_weight: torch.Tensor | None = None
    notes: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class TeacherBatch(OnDevice):
    """One teacher's part of a batch: its tokens for a live forward pass, or its stored rows.

    Attributes:
        input_ids, attention_mask, position_ids: int64 [batch, length]; None where rows are stored.
        row_index: int64 [rows], flat positions in [batch * length] of the rows that go through the head.
        targets: int64 [rows], the response token that each row predicts, or -100.
        stored: [rows, hidden] stored rows, or None.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    row_index: torch.Tensor
    targets: torch.Tensor
    stored: torch.Tensor | None


@dataclass
class Batch(OnDevice):
    """A padded batch of the student, its teachers' parts, and how the loss walks over its rows.

    Attributes:
        input_ids, attention_mask, position_ids: int64 [batch, length].
        row_index: int64 [rows], flat positions in [batch * length] of the rows that go through the head.
        targets: int64 [rows], the response token that each row predicts, or -100.
        chunks: (start, stop) of the student rows of each chunk.
        counts: float64 [2 + terms]: response tokens, responses, and the groups of each term (0 where they are made
            at the step).
        unaligned: what the step needs to make ``chunks`` and ``terms``, where a method aligns by entropies.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    row_index: torch.Tensor
    targets: torch.Tensor
    chunks: list[tuple[int, int]]
    teachers: dict[str, TeacherBatch]
    terms: list[TermBatch]
    counts: torch.Tensor
    unaligned: Unaligned | None = None


@dataclass(frozen=True)
class AlignedExample:
    """A tokenised example with the groups of every term, or what a term will align at the step."""

    example: TokenizedExample
    groups: tuple[Groups | AlignedResponse, ...]


def align(example: TokenizedExample, terms: Sequence[Term]) -> AlignedExample:
    """Align an example for every term; done once, but for the methods that need a model's entropies for it."""
    groups: list[Groups | AlignedResponse] = []
    for term in terms:
        response = example.aligned(term.teacher)
        groups.append(response if Need.ENTROPY in term.method.needs else term.method.align(response))
    return AlignedExample(example, tuple(groups))


@dataclass(frozen=True)
class Layout:
    """Where the rows of a batch are, so that the groups of its examples become chunks.

    Attributes:
        starts: int64 [batch + 1], where each example's student rows start.
        student_shift, teacher_shift: for each term, int64 [batch]: row number of index 0 of each example's groups.
        student_tokens, teacher_tokens: for each term, int64 [rows]: the response token that a member of a group in
            that row is, or -100.
        chunk_rows: the most student rows in a chunk, unless one group or response needs more.
        whole: whether every chunk is one response.
    """

    starts: IntArray
    student_shift: tuple[IntArray, ...]
    teacher_shift: tuple[IntArray, ...]
    student_tokens: tuple[IntArray, ...]
    teacher_tokens: tuple[IntArray, ...]
    chunk_rows: int
    whole: bool

    def place(self, groups: Sequence[Sequence[Groups]]) -> tuple[list[tuple[int, int]], list[TermBatch]]:
        """Chunks of the batch and the groups of each term in them; ``groups[k][i]`` are term k's of example i."""
        terms = [self._join(number, parts) for number, parts in enumerate(groups)]
        chunks = chunk_bounds(self.starts, terms, self.chunk_rows, self.whole)
        tokens = zip(self.student_tokens, self.teacher_tokens, strict=True)
        return chunks, [slice_term(term, chunks, *own) for term, own in zip(terms, tokens, strict=True)]

    def _join(self, term: int, parts: Sequence[Groups]) -> Groups:
        """The groups of one term over the whole batch, members as row numbers of the batch."""
        offsets = np.concatenate([[0], np.cumsum([part.count for part in parts])]).astype(np.int64)
        shifts = self.student_shift[term], self.teacher_shift[term]
        names = {name for part in parts for name in part.notes}
        notes = {name: [part.notes.get(name, (0.0, 0.0)) for part in parts] for name in names}
        weighted = any(part.teacher_weight is not None for part in parts)
        weights = [
            np.ones(part.teacher_index.size) if part.teacher_weight is None else part.teacher_weight for part in parts
        ]
        return Groups(
            np.concatenate([part.student_index + shift for part, shift in zip(parts, shifts[0], strict=True)]),
            np.concatenate([part.student_group + start for part, start in zip(parts, offsets, strict=False)]),
            np.concatenate([part.teacher_index + shift for part, shift in zip(parts, shifts[1], strict=True)]),
            np.concatenate([part.teacher_group + start for part, start in zip(parts, offsets, strict=False)]),
            int(offsets[-1]),
            np.concatenate(weights) if weighted else None,
            {name: (sum(a for a, _ in pairs), sum(b for _, b in pairs)) for name, pairs in sorted(notes.items())},
        )


@dataclass(frozen=True)
class Unaligned:
    """A batch of which some terms are aligned at the step, by the entropies of its rows.

    Attributes:
        layout: where its rows are.
        groups: by term and example, groups or what is still to be aligned.
    """

    layout: Layout
    groups: tuple[tuple[Groups | AlignedResponse, ...], ...]

    def place(
        self, terms: Sequence[Term], student: EntropyArray, teachers: Mapping[str, EntropyArray]
    ) -> tuple[list[tuple[int, int]], list[TermBatch]]:
        """Chunks and groups, as by :meth:`Layout.place`.

        Args:
            student, teachers: float64 [rows], entropies of the batch's rows, of each teacher by role.
        """
        placed = []
        for number, (term, parts) in enumerate(zip(terms, self.groups, strict=True)):
            made: list[Groups] = []
            for place, part in enumerate(parts):
                if isinstance(part, AlignedResponse):
                    first = self.layout.student_shift[number][place], self.layout.teacher_shift[number][place]
                    ours = student[first[0] : first[0] + part.student_ids.size]
                    theirs = teachers[term.teacher][first[1] : first[1] + part.teacher_ids.size]
                    part = term.method.align(replace(part, student_entropy=ours, teacher_entropy=theirs))
                made.append(part)
            placed.append(made)
        return self.layout.place(placed)


class Collator:
    """Builds a :class:`Batch` from aligned examples.

    Args:
        terms: the objective's distillation terms, in the order of each example's groups.
        pad: padding token id by role.
        chunk_rows: the most student rows in a chunk, unless one group or response needs more.
        padding_side: "right" or "left"; losses don't depend on it.
        stored: rows of a teacher by role and example id, ``stored[role](example_id) -> [rows, hidden]``.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        pad: Mapping[str, int],
        *,
        chunk_rows: int = 256,
        padding_side: Literal["left", "right"] = "right",
        stored: Mapping[str, Any] | None = None,
    ) -> None:
        self.terms, self.pad, self.chunk_rows, self.padding_side = list(terms), pad, chunk_rows, padding_side
        self.stored = stored or {}
        self.roles = frozenset(term.teacher for term in terms)
        self.windows = {
            STUDENT: row_window([term.method.rows for term in terms]),
            **dict.fromkeys(self.roles, TEACHER_ROWS),
        }
        for role in self.roles:
            if any(term.method.rows is Rows.ALL for term in terms if term.teacher == role):
                if role in self.stored:
                    raise ValueError(f"the stored rows of {role!r} leave out the prompt, which a method scores")
                self.windows[role] = Rows.ALL

    def __call__(self, examples: Sequence[AlignedExample]) -> dict[str, Any]:
        """The batch under the key "batch", as transformers' Trainer wants a mapping, and what it was made from."""
        return {"batch": self.collate(examples), "examples": tuple(examples)}

    def collate(self, examples: Sequence[AlignedExample], sampled: frozenset[str] | None = None) -> Batch:
        """The batch of the examples.

        Args:
            sampled: where the responses are the student's own, roles of the teachers that score them; such a batch
                carries no cross-entropy.
        """
        plain = [aligned.example for aligned in examples]
        student = [example.sides[STUDENT] for example in plain]
        window = self.windows[STUDENT]
        starts = _row_starts(student, window)
        input_ids, mask, positions, offsets = self._pad(STUDENT, student)
        groups = tuple(tuple(aligned.groups[k] for aligned in examples) for k in range(len(self.terms)))
        layout = self._layout(plain, starts)
        unaligned: Unaligned | None = None
        chunks: list[tuple[int, int]] = []
        batch_terms: list[TermBatch] = []
        known = [[part for part in parts if isinstance(part, Groups)] for parts in groups]
        if all(len(parts) == len(examples) for parts in known):
            chunks, batch_terms = layout.place(known)
        else:
            unaligned = Unaligned(layout, groups)
        targets = np.concatenate([_targets(side, window) for side in student])
        counts = [sum(side.response.size for side in student), len(student)]
        counts += [sum(part.count for part in parts) for parts in known]
        return Batch(
            input_ids,
            mask,
            positions,
            _row_index(student, window, offsets),
            torch.from_numpy(targets if sampled is None else np.full_like(targets, -100)),
            chunks,
            {role: self._teacher(role, plain) for role in (self.roles if sampled is None else sampled)},
            batch_terms,
            torch.tensor(counts, dtype=torch.float64),
            unaligned,
        )

    def _teacher(self, role: str, examples: Sequence[TokenizedExample]) -> TeacherBatch:
        sides, window = [example.sides[role] for example in examples], self.windows[role]
        targets = torch.from_numpy(np.concatenate([_targets(side, window) for side in sides]))
        if role in self.stored:
            rows = torch.cat([self.stored[role](example.id) for example in examples])
            return TeacherBatch(None, None, None, torch.arange(rows.shape[0]), targets, rows)
        input_ids, mask, positions, offsets = self._pad(role, sides)
        return TeacherBatch(input_ids, mask, positions, _row_index(sides, window, offsets), targets, None)

    def _pad(self, role: str, sides: Sequence[SideTokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, IntArray]:
        """Ids, mask and positions [batch, length], and the flat position where each sequence starts."""
        length = max(side.length for side in sides)
        ids = np.full((len(sides), length), self.pad[role], dtype=np.int64)
        mask = np.zeros((len(sides), length), dtype=np.int64)
        positions = np.zeros((len(sides), length), dtype=np.int64)
        starts = np.zeros(len(sides), dtype=np.int64)
        for row, side in enumerate(sides):
            starts[row] = length - side.length if self.padding_side == "left" else 0
            place = slice(starts[row], starts[row] + side.length)
            ids[row, place], mask[row, place], positions[row, place] = side.sequence, 1, np.arange(side.length)
        offsets = starts + np.arange(len(sides)) * length
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(positions), offsets

    def _layout(self, examples: Sequence[TokenizedExample], starts: IntArray) -> Layout:
        shifts: dict[str, list[IntArray]] = {"student": [], "teacher": []}
        tokens: dict[str, list[IntArray]] = {"student": [], "teacher": []}
        for term in self.terms:
            kind = term.method.rows
            for name, role in (("student", STUDENT), ("teacher", term.teacher)):
                sides = [example.sides[role] for example in examples]
                first = [_shift(kind, self.windows[role], side) for side in sides]
                shifts[name].append(_row_starts(sides, self.windows[role])[:-1] + np.asarray(first, dtype=np.int64))
                tokens[name].append(np.concatenate([_tokens(kind, side, self.windows[role]) for side in sides]))
        return Layout(
            starts,
            tuple(shifts["student"]),
            tuple(shifts["teacher"]),
            tuple(tokens["student"]),
            tuple(tokens["teacher"]),
            self.chunk_rows,
            self._whole_responses(),
        )

    def _whole_responses(self) -> bool:
        return any(Need.WHOLE_RESPONSE in term.method.needs for term in self.terms)


# A teacher's rows of a response: from the row that predicts the first token to the row after the last one, so that
# one set of stored rows serves PREDICTING and AFTER.
TEACHER_ROWS = Rows.AFTER


def row_window(kinds: Sequence[Rows]) -> Rows:
    """The widest of the windows that an objective's terms need: PREDICTING < AFTER < ALL."""
    order = [Rows.PREDICTING, Rows.AFTER, Rows.ALL]
    return order[max((order.index(kind) for kind in kinds), default=0)]


def row_bounds(side: SideTokens, window: Rows) -> tuple[int, int]:
    """First and one past the last position whose rows go through the head.

    PREDICTING: p-1 .. p+n-1, n rows. AFTER: one more, n+1 rows. ALL: every position of the sequence.
    """
    first = side.prompt.size - 1
    if window is Rows.ALL:
        return 0, side.length
    return first, first + side.response.size + (1 if window is Rows.AFTER else 0)


def _shift(kind: Rows, window: Rows, side: SideTokens) -> int:
    """What to add to a group's index of ``kind`` to get a row number within the example's window."""
    position = {Rows.PREDICTING: side.prompt.size - 1, Rows.AFTER: side.prompt.size, Rows.ALL: 0}[kind]
    return int(position - row_bounds(side, window)[0])


def _row_starts(sides: Sequence[SideTokens], window: Rows) -> IntArray:
    """int64 [batch + 1]: where each example's rows start among the rows of the batch."""
    sizes = [stop - start for start, stop in (row_bounds(side, window) for side in sides)]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _row_index(sides: Sequence[SideTokens], window: Rows, offsets: IntArray) -> torch.Tensor:
    bounds = [row_bounds(side, window) for side in sides]
    return torch.from_numpy(
        np.concatenate([np.arange(a, b) + offset for (a, b), offset in zip(bounds, offsets, strict=True)])
    )


def _targets(side: SideTokens, window: Rows) -> IntArray:
    start, stop = row_bounds(side, window)
    targets = np.full(stop - start, -100, dtype=np.int64)
    first = side.prompt.size - 1 - start
    targets[first : first + side.response.size] = side.response
    return targets


def _tokens(kind: Rows, side: SideTokens, window: Rows) -> IntArray:
    """int64 [rows]: the response token that a group's member in each row is; one before it where rows come AFTER."""
    targets = _targets(side, window)
    return targets if kind is Rows.PREDICTING else np.concatenate([[-100], targets[:-1]])


def chunk_bounds(starts: IntArray, terms: Sequence[Groups], most: int, whole: bool) -> list[tuple[int, int]]:
    """Cut the rows of a batch into contiguous chunks that no group straddles.

    Args:
        starts: int64 [batch + 1], where each example's rows start.
        terms: the groups of each term, members as row numbers of the batch.
        most: rows in a chunk, unless one group needs more.
        whole: whether every chunk is one response.

    Returns:
        (start, stop) of each chunk; together they cover all rows.
    """
    rows = int(starts[-1])
    allowed = np.ones(rows + 1, dtype=bool)  # allowed[r]: a chunk may end before row r
    if whole:
        allowed[:] = False
        allowed[starts] = True
    for groups in terms:
        if groups.count:
            first = np.full(groups.count, rows, dtype=np.int64)
            last = np.zeros(groups.count, dtype=np.int64)
            np.minimum.at(first, groups.student_group, groups.student_index)
            np.maximum.at(last, groups.student_group, groups.student_index)
            inside = np.zeros(rows + 2, dtype=np.int64)  # +1 where a group forbids cuts, -1 where it ends
            np.add.at(inside, first + 1, 1)
            np.add.at(inside, last + 1, -1)
            allowed &= np.cumsum(inside)[: rows + 1] == 0
    cuts = np.flatnonzero(allowed)
    bounds = [0]
    while bounds[-1] < rows:
        within = cuts[(cuts > bounds[-1]) & (cuts <= bounds[-1] + (0 if whole else most))]
        bounds.append(int(within[-1]) if within.size else int(cuts[cuts > bounds[-1]][0]))
    return list(pairwise(bounds))


def slice_term(
    groups: Groups, chunks: Sequence[tuple[int, int]], student_tokens: IntArray, teacher_tokens: IntArray
) -> TermBatch:
    """Sort a batch's groups by chunk and make member indices relative to their chunk's first row.

    Args:
        student_tokens, teacher_tokens: int64 [rows], the response token that a member in each row is.
    """
    first = np.full(groups.count, np.iinfo(np.int64).max)
    np.minimum.at(first, groups.student_group, groups.student_index)
    stops = np.asarray([stop for _, stop in chunks])
    chunk_of_group = np.searchsorted(stops, first, side="right")
    order = np.argsort(chunk_of_group, kind="stable")
    number = np.empty(groups.count, dtype=np.int64)
    number[order] = np.arange(groups.count)
    group_bounds = np.searchsorted(chunk_of_group[order], np.arange(len(chunks) + 1))
    student_index, student_group, _ = _reorder(groups.student_index, number[groups.student_group])
    teacher_index, teacher_group, teacher_order = _reorder(groups.teacher_index, number[groups.teacher_group])
    students, teachers = student_tokens[student_index], teacher_tokens[teacher_index]
    spans = [(int(a), int(b)) for a, b in pairwise(group_bounds)]
    members = [(_members(student_group, span), _members(teacher_group, span)) for span in spans]
    slices: list[tuple[tuple[int, int], ...]] = []
    in_order: list[tuple[bool, bool]] = []
    for (start, stop), span, (s, t) in zip(chunks, spans, members, strict=True):
        rows = _extent(teacher_index[slice(*t)])
        student_index[slice(*s)] -= start
        teacher_index[slice(*t)] -= rows[0]
        student_group[slice(*s)] -= span[0]
        teacher_group[slice(*t)] -= span[0]
        slices.append((s, t, span, rows))
        student_rows, teacher_rows = student_index[slice(*s)], teacher_index[slice(*t)]
        in_order.append((_is_range(student_rows, stop - start), _is_range(teacher_rows, rows[1] - rows[0])))
    return TermBatch(
        torch.from_numpy(student_index),
        torch.from_numpy(student_group),
        torch.from_numpy(teacher_index),
        torch.from_numpy(teacher_group),
        torch.from_numpy(students),
        torch.from_numpy(teachers),
        slices,
        in_order,
        groups.count,
        None if groups.teacher_weight is None else torch.from_numpy(groups.teacher_weight[teacher_order]),
        dict(groups.notes),
    )


def _reorder(index: IntArray, group: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    order = np.argsort(group, kind="stable")
    return index[order].copy(), group[order].copy(), order


def _members(group: IntArray, span: tuple[int, int]) -> tuple[int, int]:
    return int(np.searchsorted(group, span[0])), int(np.searchsorted(group, span[1]))


def _extent(index: IntArray) -> tuple[int, int]:
    return (int(index.min()), int(index.max()) + 1) if index.size else (0, 0)


def _is_range(index: IntArray, rows: int) -> bool:
    return index.size == rows and bool(np.array_equal(index, np.arange(rows)))
