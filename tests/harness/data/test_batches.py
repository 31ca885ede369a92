"""harness.data.batches: text to tokens on a shared byte axis, and batches whose chunks keep every group whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from harness.base.errors import HarnessError
from harness.data.batches import Batch, Collator
from harness.data.chunks import TEACHER_ROWS, row_bounds, row_window
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.terms import AlignedExample, Term
from harness.data.tokens import STUDENT, LeftOut, SideTokens, TokenizedExample, tokenize
from harness.models.heads import Head, hidden_states
from harness.training.loss import Distiller
from harness.training.objective import LossParts, Objective
from methods.base import AlignedChunk, LossSums, Method, Need, Rows, Side, TeacherKind
from methods.library.alignment import Groups
from tests import tiny

CROSS = "cross"
CHAT = (
    "{% for m in messages %}<s>{{ 'me:' if m.role == 'assistant' else m.role + '\n' }}{{ m.content }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>me:{% endif %}"
)
TEXTS = [Example(f"x/{i}", prompt, response, f"file line {i}") for i, (prompt, response) in enumerate(tiny.SAMPLES)]


def tokenizer(family: str, *, bos: bool = False, chat: str | None = None) -> PreTrainedTokenizerFast:
    """A copy of the tiny tokenizer, with BOS before every text or with a chat template."""
    made = copy.deepcopy(tiny.tokenizer(family))
    made.chat_template = chat
    if bos:
        made.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made


def side(family: str, *, bos: bool = False, chat: str | None = None) -> TextSide:
    made = tokenizer(family, bos=bos, chat=chat)
    return TextSide(made, template="chat" if chat else "plain", name=family)


@cache
def sides() -> dict[str, TextSide]:
    return {STUDENT: side("byte_level"), CROSS: side("unigram"), "third": side("byte_fallback")}


# --- text to tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_bos_stands_before_the_prompt_where_the_tokenizer_puts_it(family: str, bos: bool) -> None:
    made = side(family, bos=bos)
    (example,) = tokenize(TEXTS[:1], {STUDENT: made}, 64)
    plain = made.tokenizer.backend_tokenizer.encode(TEXTS[0].prompt, add_special_tokens=False).ids
    tokens = example.sides[STUDENT]
    assert tokens.prompt.tolist() == ([1, *plain] if bos else plain)
    assert 1 not in tokens.response
    assert (tokens.response[-1], tokens.ends[-1]) == (2, len(TEXTS[0].response.encode()))


def test_a_plain_prompt_can_do_without_bos() -> None:
    """And a template keeps what it begins with, though that is the tokenizer's BOS: of some it opens a turn."""
    made = {STUDENT: side("unigram", bos=True), "chat": side("byte_level", bos=True, chat=CHAT)}
    (with_bos,), (without,) = (tokenize([replace(TEXTS[1], bos=bos)], made, 128) for bos in (True, False))
    assert with_bos.sides[STUDENT].prompt.tolist() == [1, *without.sides[STUDENT].prompt.tolist()]
    assert without.sides[STUDENT].prompt[0] != 1
    assert np.array_equal(with_bos.sides["chat"].prompt, without.sides["chat"].prompt)
    for role in made:
        assert np.array_equal(with_bos.sides[role].response, without.sides[role].response)


@pytest.mark.parametrize("bos", [False, True])
def test_each_side_renders_its_own_template_and_shares_the_response(bos: bool) -> None:
    """BOS comes from the template, once; the response's tokens are those of the plain side."""
    chat, plain = side("byte_level", bos=bos, chat=CHAT), side("byte_level", bos=bos)
    (example,) = tokenize(TEXTS[1:2], {STUDENT: chat, "same": plain, CROSS: side("unigram")}, 128)
    rendered = f"<s>user\n{TEXTS[1].prompt}</s>\n<s>me:"
    assert chat.tokenizer.decode(example.sides[STUDENT].prompt) == rendered
    assert example.sides["same"].prompt.size < example.sides[STUDENT].prompt.size
    assert np.array_equal(example.sides[STUDENT].response, example.sides["same"].response)
    assert np.array_equal(example.sides[STUDENT].ends, example.sides["same"].ends)
    assert {int(tokens.ends[-1]) for tokens in example.sides.values()} == {len(TEXTS[1].response.encode())}
    assert chat.plain_prompts([TEXTS[1].prompt])[0] == example.sides["same"].prompt.tolist()


@pytest.mark.parametrize("limit", range(20, 56))
def test_a_cut_response_ends_on_one_byte_for_all_and_has_no_eos(limit: int) -> None:
    whole = {example.id: example for example in tokenize(TEXTS, sides(), 200)}
    for example in tokenize(TEXTS, sides(), limit, overlong="drop"):
        text = next(row.response for row in TEXTS if row.id == example.id).encode()
        assert example.cut == any(tokens.length > limit for tokens in whole[example.id].sides.values())
        assert example.cut or example.response_bytes == len(text)
        for role, tokens in example.sides.items():
            assert tokens.length <= limit
            assert tokens.ends[-1] == example.response_bytes
            assert (tokens.response[-1] == 2) != example.cut
            full = whole[example.id].sides[role]
            assert np.array_equal(tokens.prompt, full.prompt)
            assert np.array_equal(tokens.response, full.response[: tokens.response.size])


def test_a_longer_limit_keeps_no_less() -> None:
    kept = [tokenize(TEXTS[1:2], sides(), limit, overlong="drop") for limit in range(18, 60)]
    lengths = [example[0].response_bytes if example else 0 for example in kept]
    assert lengths == sorted(lengths)
    assert lengths[-1] == len(TEXTS[1].response.encode())
    assert len(set(lengths)) > 10


def test_an_empty_response_names_its_source() -> None:
    with pytest.raises(HarnessError, match=r"^file line 7: found an empty response; expected text to train on"):
        tokenize([*TEXTS, Example("y", "a prompt", "", "file line 7")], sides(), 64)


def test_a_prompt_without_room_names_its_source_and_what_to_do() -> None:
    long = Example("y", "the quick brown fox " * 9, "yes", "file line 7")
    with pytest.raises(HarnessError) as caught:
        tokenize([*TEXTS, long], sides(), 64)
    error = caught.value
    prompts = {made.name: len(made.plain_prompts([long.prompt])[0]) for made in sides().values()}
    assert error.where == "file line 7"
    assert error.found in {
        f"a prompt of {size} tokens for {name} and a limit of 64" for name, size in prompts.items() if size >= 64
    }
    assert "room for a token of the response" in error.expected
    assert "limits.length" in error.fix
    assert "limits.overlong=drop" in error.fix


def test_rows_without_room_can_be_dropped() -> None:
    long = Example("y", "the quick brown fox " * 9, "yes")
    kept = tokenize([TEXTS[0], long, TEXTS[1]], sides(), 64, overlong="drop")
    assert [example.id for example in kept] == ["x/0", "x/1"]


def test_rows_that_a_tokenizer_changes_can_be_dropped_and_are_told_from_others() -> None:
    """A decomposed É under a tokenizer that composes; a SentencePiece space in a text; ½ where it becomes 1⁄2."""
    made = tokenizer("byte_level")
    made.backend_tokenizer.normalizer = normalizers.NFKC()
    both = {STUDENT: TextSide(made, template="plain", name="composing"), CROSS: side("byte_fallback")}
    rows = [
        Example("e", "a", "E\u0301t\u00e9", "file line 1"),
        Example("half", "a", "½ cup", "file line 2"),
        Example("space", "a", "so\u2581what", "file line 3"),
        Example("long", "a" * 90, "fine", "file line 4"),
        Example("fine", "a", "Été, 1 cup", "file line 5"),
    ]
    why: dict[str, LeftOut] = {}
    kept = tokenize(rows, both, 64, "drop", "drop", why)
    assert [example.id for example in kept] == ["fine"]
    assert why == {"e": "unreadable", "half": "unreadable", "space": "unreadable", "long": "overlong"}
    for place in range(3):
        with pytest.raises(HarnessError, match=rf"^file line {place + 1}: .* set limits\.unreadable=drop"):
            tokenize(rows[place:], both, 64, "drop")


def test_a_tokenizer_that_changes_text_names_the_row_and_itself() -> None:
    made = tokenizer("byte_level")
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(HarnessError, match=r"^file line 0: found lower changes text .*Lowercase.* keeps every byte"):
        tokenize(TEXTS, {STUDENT: TextSide(made, template="plain", name="lower")}, 64)


def test_tokenizers_that_cannot_be_used_say_why() -> None:
    with pytest.raises(HarnessError, match="template of x: found 'chat'; expected 'plain'"):
        TextSide(tokenizer("byte_level"), template="chat", name="x")
    endless = tokenizer("byte_level")
    endless.eos_token = None
    with pytest.raises(HarnessError, match="x: found a tokenizer without an EOS token"):
        TextSide(endless, template="plain", name="x")
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="[UNK]")
    with pytest.raises(HarnessError, match="tokenizer of bert: found bert is neither byte-level nor"):
        _ = TextSide(bert, template="plain", name="bert").vocabulary


# --- batches ----------------------------------------------------------------------------------------------------------

NEEDS = [None, Need.ONE_RESPONSE, Need.WHOLE_RESPONSE]


class Means(Method):
    """KD = Σ over groups of the squared distance of mean rows: any overlapping, crossing or n-m groups will do."""

    name, paper, teacher, summary = "means", "a test", TeacherKind.CROSS_TOKENIZER, "a test"

    def __init__(self, rows: Rows = Rows.PREDICTING, need: Need | None = None) -> None:
        super().__init__()
        self._rows, self._need = rows, need
        self.seen: list[tuple[list[int], list[int]]] = []

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset() if self._need is None else frozenset({self._need})

    @property
    def rows(self) -> Rows:
        return self._rows

    def loss(self, chunk: AlignedChunk) -> LossSums:
        self.seen += zip(*(_targets(part, chunk.groups) for part in (chunk.student, chunk.teacher)), strict=True)
        distance = self._means(chunk.student, chunk.groups) - self._means(chunk.teacher, chunk.groups)
        return LossSums(kd=distance.square().sum(), diagnostics={"groups": (torch.tensor(float(chunk.groups)), None)})

    @staticmethod
    def _means(part: Side, groups: int) -> torch.Tensor:
        members = part.paired_log_probs()[:, :50]
        sums = members.new_zeros(groups, 50).index_add(0, part.group, members)
        return sums / torch.bincount(part.group, minlength=groups)[:, None]


def _targets(part: Side, groups: int) -> list[list[int]]:
    """Per group, the tokens that its rows predict."""
    tokens = part.targets[part.index].tolist()
    return [[t for t, group in zip(tokens, part.group.tolist(), strict=True) if group == g] for g in range(groups)]


def tangle(example: TokenizedExample) -> Groups:
    """Groups that overlap (two student tokens in threes), cross (last first), are n-m, and leave tokens out."""
    n, m = example.sides[STUDENT].response.size, example.sides[CROSS].response.size
    student, teacher = [], []
    for i in range(0, n - 2, 4):
        student += [[i, i + 1], [i + 1, i + 2]]
        teacher += [[min(i, m - 1)], sorted({max(0, min(i, m - 1) - k) for k in range(3)})]
    return Groups.from_lists(student[::-1], teacher[::-1])


@cache
def aligned() -> tuple[AlignedExample, ...]:
    two = {role: sides()[role] for role in (STUDENT, CROSS)}
    return tuple(AlignedExample(example, (tangle(example),)) for example in tokenize(TEXTS, two, 48))


def collate(method: Method, examples: Sequence[AlignedExample] | None = None, **options: Any) -> Batch:
    pad = {STUDENT: 0, CROSS: 0}
    return Collator([Term(method, CROSS, 1.0)], pad, **options).collate(aligned() if examples is None else examples)


@cache
def model(role: str) -> Any:
    return tiny.model("opt", len(sides()[role].vocabulary), seed=len(role), dtype=torch.float64).eval()


def distil(method: Method, batch: Batch, **heads: Head) -> LossParts:
    objective = Objective("test", 0.5, (Term(method, CROSS, 1.0),))
    teachers = {} if heads else {CROSS: model(CROSS)}
    return Distiller(model(STUDENT), objective, teachers, heads)(batch, objective.divisors(batch.counts))


def naive(first: int) -> float:
    """Σ |mean - mean|² group by group, from the whole models' logits; row i of a response is position p + first + i."""
    total = 0.0
    for one in aligned():
        rows = []
        for role in (STUDENT, CROSS):
            tokens = one.example.sides[role]
            with torch.no_grad():
                logits = model(role)(input_ids=torch.from_numpy(tokens.sequence)[None]).logits[0]
            rows.append(logits.log_softmax(-1)[tokens.prompt.size + first :, :50])
        for members, others in zip(*one.groups[0].to_lists(), strict=True):
            total += float((rows[0][members].mean(0) - rows[1][others].mean(0)).square().sum())
    return total


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize(("rows", "first"), [(Rows.PREDICTING, -1), (Rows.AFTER, 0)])
@pytest.mark.parametrize("need", NEEDS)
def test_tangled_groups_give_one_loss_for_every_chunk_size(
    chunk_rows: int, rows: Rows, first: int, need: Need | None
) -> None:
    method = Means(rows, need)
    batch = collate(method, chunk_rows=chunk_rows, padding_side="left" if chunk_rows == 5 else "right")
    parts = distil(method, batch)
    groups = sum(one.groups[0].count for one in aligned())
    assert float(parts.kd[0]) == pytest.approx(naive(first), rel=1e-9)
    assert float(parts.diagnostics["groups"][0]) == groups == batch.terms[0].groups == float(batch.counts[2])
    largest = max(stop - start for start, stop in batch.chunks)
    longest = max(one.example.sides[STUDENT].response.size for one in aligned()) + (rows is Rows.AFTER)
    assert largest <= max(chunk_rows, longest if need is Need.WHOLE_RESPONSE else 3)  # the tangles are three rows long


@pytest.mark.parametrize("chunk_rows", [1, 4, 1000])
def test_a_group_sees_the_tokens_that_its_rows_predict(chunk_rows: int) -> None:
    """What GOLD multiplies: the realised tokens of each group, on both sides."""
    method = Means()
    distil(method, collate(method, chunk_rows=chunk_rows))
    expected = []
    for one in aligned():
        student, teacher = one.example.sides[STUDENT].response, one.example.sides[CROSS].response
        expected += [(student[s].tolist(), teacher[t].tolist()) for s, t in zip(*one.groups[0].to_lists(), strict=True)]
    assert sorted(method.seen) == sorted(expected)


def test_rows_after_consumption_predict_the_next_token_or_nothing() -> None:
    method = Means(Rows.AFTER)
    distil(method, collate(method))
    expected = []
    for one in aligned():
        following = [np.append(one.example.sides[role].response[1:], -100) for role in (STUDENT, CROSS)]
        lists = zip(*one.groups[0].to_lists(), strict=True)
        expected += [(following[0][s].tolist(), following[1][t].tolist()) for s, t in lists]
    assert sorted(method.seen) == sorted(expected)


@pytest.mark.parametrize("chunk_rows", [1, 30, 1000])
def test_a_whole_response_is_one_chunk(chunk_rows: int) -> None:
    batch = collate(Means(need=Need.WHOLE_RESPONSE), chunk_rows=chunk_rows)
    sizes = [one.example.sides[STUDENT].response.size for one in aligned()]
    borders = {0, *np.cumsum(sizes).tolist()}
    assert {border for chunk in batch.chunks for border in chunk} <= borders
    assert len(batch.chunks) == len(sizes)


def test_stored_rows_give_what_the_live_teacher_gives() -> None:
    """n + 1 rows a response, whatever the order of the batch; only the head of the teacher is needed."""
    rows = {}
    for one in aligned():
        tokens = one.example.sides[CROSS]
        ids = torch.from_numpy(tokens.sequence)[None]
        with torch.no_grad():
            hidden = hidden_states(model(CROSS), ids, torch.ones_like(ids), torch.arange(tokens.length)[None])[0]
        rows[one.example.id] = hidden[slice(*row_bounds(tokens, TEACHER_ROWS))]
        assert rows[one.example.id].shape[0] == tokens.response.size + 1
    method = Means(Rows.AFTER)
    batch = collate(method, aligned()[::-1], stored={CROSS: rows.__getitem__}, chunk_rows=6)
    assert batch.teachers[CROSS].input_ids is None
    parts = distil(method, batch, **{CROSS: Head.of(model(CROSS))})
    assert float(parts.kd[0]) == pytest.approx(naive(0), rel=1e-9)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("rows", list(Rows))
def test_a_row_stands_one_position_before_the_token_that_it_predicts(padding: str, rows: Rows) -> None:
    batch = collate(Means(rows), padding_side=padding)
    responses = {
        role: np.concatenate([one.example.sides[role].response for one in aligned()]) for role in sides_of(batch)
    }
    for role, part in sides_of(batch).items():
        predicts = part.targets != -100
        following = part.input_ids.flatten()[part.row_index[predicts] + 1]
        assert torch.equal(following, part.targets[predicts])
        assert part.targets[predicts].tolist() == responses[role].tolist()
        assert part.attention_mask.flatten()[part.row_index].all()
    assert batch.counts.tolist()[:2] == [responses[STUDENT].size, len(aligned())]


def sides_of(batch: Batch) -> Mapping[str, Any]:
    return {STUDENT: batch, CROSS: batch.teachers[CROSS]}


def test_a_padded_batch_by_hand() -> None:
    """Prompts 11 12 | 13 and responses 21 22 23 | 24, the shorter sequence padded with 9 on either side."""
    made = [_example([11, 12], 3, "a"), _example([13], 1, "b")]
    for padding in ("right", "left"):
        batch = collate(Means(), made, padding_side=padding)
        short = {"right": ([13, 20, 0, 0, 0], 5), "left": ([0, 0, 0, 13, 20], 8)}[padding]
        assert batch.input_ids.tolist() == [[11, 12, 20, 21, 22], short[0]]
        assert batch.row_index.tolist() == [1, 2, 3, short[1]]
        assert batch.targets.tolist() == [20, 21, 22, 20]
        assert batch.attention_mask.tolist() == [[1] * 5, [int(token > 0) for token in short[0]]]
        assert batch.position_ids[1][batch.attention_mask[1].bool()].tolist() == [0, 1]
        assert batch.teachers[CROSS].row_index.tolist() == [1, 2, 3, 4, short[1], short[1] + 1]
        assert batch.teachers[CROSS].targets.tolist() == [20, 21, 22, -100, 20, -100]


def test_a_packed_batch_by_hand() -> None:
    """The sequences of the test above, one behind the other; the teacher's stay padded."""
    made = [_example([11, 12], 3, "a"), _example([13], 1, "b")]
    batch = collate(Means(), made, packing=True)
    assert batch.attention_mask is None
    assert batch.input_ids.tolist() == [[11, 12, 20, 21, 22, 13, 20]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert batch.row_index.tolist() == [1, 2, 3, 5]
    assert batch.targets.tolist() == [20, 21, 22, 20]
    assert batch.teachers[CROSS].input_ids is not None
    assert batch.teachers[CROSS].input_ids.shape == (2, 5)


def _example(prompt: list[int], response: int, name: str, teacher: int | None = None) -> AlignedExample:
    """Synthetic tokens, response 20, 21, ...; grouped one to one as far as both go."""
    sizes = {STUDENT: response, CROSS: response if teacher is None else teacher}
    tokens = {
        role: SideTokens(np.asarray(prompt, dtype=np.int64), 20 + np.arange(size), 1 + np.arange(size))
        for role, size in sizes.items()
    }
    pairs = np.arange(min(sizes.values()))
    return AlignedExample(TokenizedExample(name, tokens, False, response), (Groups.one_to_one(pairs, pairs),))


@st.composite
def random_examples(draw: st.DrawFn) -> list[AlignedExample]:
    made = []
    for number in range(draw(st.integers(1, 4))):
        n, m = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        members = [st.lists(st.integers(0, size - 1), min_size=1, max_size=3) for size in (n, m)]
        pairs = draw(st.lists(st.tuples(*members), max_size=6))
        plain = _example([11] * draw(st.integers(1, 3)), n, str(number), m).example
        made.append(AlignedExample(plain, (Groups.from_lists([s for s, _ in pairs], [t for _, t in pairs]),)))
    return made


@settings(deadline=None)
@given(random_examples(), st.integers(1, 12), st.sampled_from(list(Rows)), st.sampled_from(NEEDS))
def test_chunks_cover_every_row_once_and_keep_every_group_whole(
    examples: list[AlignedExample], chunk_rows: int, rows: Rows, need: Need | None
) -> None:
    """Whatever the groups: unsorted, overlapping, repeated or none."""
    batch = collate(Means(rows, need), examples, chunk_rows=chunk_rows)
    assert [start for start, _ in batch.chunks] == [0, *(stop for _, stop in batch.chunks[:-1])]
    assert batch.chunks[-1][1] == batch.row_index.numel() == batch.targets.numel()
    assert all(stop > start for start, stop in batch.chunks)
    assert _collated_groups(batch) == sorted(_expected_groups(examples, rows))
    for (start, stop), (s, _, _, _), (in_order, _) in zip(
        batch.chunks, batch.terms[0].slices, batch.terms[0].in_order, strict=True
    ):
        members = batch.terms[0].student_index[slice(*s)].tolist()
        assert all(0 <= member < stop - start for member in members)
        assert in_order == (members == list(range(stop - start)))
    if need is not None:
        of_row = [
            place for place, one in enumerate(examples) for _ in range(*row_bounds(one.example.sides[STUDENT], rows))
        ]
        responses = [set(of_row[start:stop]) for start, stop in batch.chunks]
        assert [[examples[place].groups[0].count for place in places] for places in responses] == [
            [count] for _, count in batch.terms[0].within
        ]


def _collated_groups(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Flat positions of the members of every group, put together again from the chunks."""
    term, found = batch.terms[0], []
    for (start, _), (s, t, (first, last), (teacher_start, teacher_stop)) in zip(batch.chunks, term.slices, strict=True):
        for group in range(last - first):
            mine = term.student_index[slice(*s)][term.student_group[slice(*s)] == group] + start
            other = term.teacher_index[slice(*t)][term.teacher_group[slice(*t)] == group] + teacher_start
            assert (other < teacher_stop).all()
            rows = batch.row_index[mine].tolist(), batch.teachers[CROSS].row_index[other].tolist()
            found.append(rows)
    return sorted(found)


def _expected_groups(examples: Sequence[AlignedExample], rows: Rows) -> list[tuple[list[int], list[int]]]:
    lengths = [max(one.example.sides[role].length for one in examples) for role in (STUDENT, CROSS)]
    expected = []
    for place, one in enumerate(examples):
        prompt = {Rows.PREDICTING: -1, Rows.AFTER: 0}
        shift = prompt[rows] + one.example.sides[STUDENT].prompt.size if rows in prompt else 0
        for members, others in zip(*one.groups[0].to_lists(), strict=True):
            places = (
                [place * length + shift + i for i in part]
                for length, part in zip(lengths, (members, others), strict=True)
            )
            expected.append(tuple(places))
    return expected


def test_rows_that_all_terms_need() -> None:
    assert row_window([]) is Rows.PREDICTING
    assert row_window([Rows.PREDICTING, Rows.AFTER]) is Rows.AFTER
    assert row_window([Rows.ALL, Rows.AFTER]) is Rows.ALL
    tokens = aligned()[0].example.sides[STUDENT]
    p, n = tokens.prompt.size, tokens.response.size
    assert [row_bounds(tokens, rows) for rows in Rows] == [(p - 1, p + n - 1), (p - 1, p + n), (0, p + n)]


def test_a_batch_moves_to_a_device_as_a_whole() -> None:
    """accelerate moves what has a `to`; plain numbers and counts stay, and so does the batch on the first device."""
    batch = collate(Means())
    moved = batch.to("meta")
    tensors = [getattr(moved, field.name) for field in fields(moved) if field.name != "counts"]
    tensors += [moved.terms[0].student_index, moved.teachers[CROSS].input_ids]
    assert {value.device.type for value in tensors if isinstance(value, torch.Tensor)} == {"meta"}
    assert (moved.chunks, moved.terms[0].slices) == (batch.chunks, batch.terms[0].slices)
    assert moved.counts.tolist() == batch.counts.tolist()  # as those of a batch that is still being made
    assert batch.input_ids.device.type == "cpu"


def test_names_of_special_tokens_in_data_are_text() -> None:
    """A data set that speaks of "</s>" must not end its responses there; Unigram's model itself knows the piece."""
    known = {STUDENT: side("byte_level"), CROSS: side("byte_fallback")}
    (example,) = tokenize([Example("y", "What is <s>?", "It is </s> here.")], known, 64)
    for role, made in known.items():
        tokens = example.sides[role]
        assert tokens.response.tolist().count(made.eos) == 1  # the last one
        assert made.tokenizer.decode(tokens.response[:-1]).strip() == "It is </s> here."
        assert tokens.ends[-1] == len(b"It is </s> here.")


def test_a_prompt_without_tokens_is_refused() -> None:
    """Without BOS nothing predicts the first token of the response."""
    with pytest.raises(HarnessError, match="prompt"):
        tokenize([Example("y", "", "yes", "file line 7")], sides(), 64)
