"""How prompts begin and how responses end: templates, control tokens, and students that learn where to stop."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from harness.base.errors import HarnessError
from harness.data import rendering
from harness.data.batches import Collator
from harness.data.rows import Example, Request
from harness.data.templates import TextSide
from harness.data.terms import AlignedExample, Term, align
from harness.data.tokens import STUDENT, TokenizedExample, tokenize
from harness.evaluate.programs.problems import read_problems
from harness.generation.per_row import text_until_stop
from harness.models.load import load_tokenizer
from harness.models.publisher import PublisherSettings
from harness.recipe.training import Training
from harness.training.loss import Distiller
from harness.training.objective import Objective
from harness.training.trainer import train
from methods.base import Method, TeacherKind, find, registered
from methods.library.maps import UNMAPPED, exact_map, nearest_map, prefix_map
from methods.library.vocabulary import TokenizerPair, TokenKind, Vocabulary
from methods.library.warping import EditCosts
from tests import tiny


@dataclass(frozen=True)
class Style:
    """A publisher's chat template, in its control tokens' own words.

    Attributes:
        template: Jinja.
        control: control tokens that the tokenizer has beside its own.
        end: what ends an assistant's message.
        parts: the prompt of "question" in pieces, control tokens apart.
    """

    template: str
    control: tuple[str, ...]
    end: str
    parts: tuple[str, ...]


CHATML = Style(
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    ("<|im_start|>", "user\nquestion", "<|im_end|>", "\n", "<|im_start|>", "assistant\n"),
)
GEMMA = Style(
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ("<start_of_turn>", "<end_of_turn>"),
    "<end_of_turn>",
    ("<s>", "<start_of_turn>", "user\nquestion", "<end_of_turn>", "\n", "<start_of_turn>", "model\n"),
)
LLAMA3 = Style(  # as 3.1's: it prints the date, and begins the next turn whether asked or not
    "{{ bos_token }}{% if strftime_now is defined %}{% set date_string = strftime_now(\"%d %b %Y\") %}{% endif %}"
    "<|head|>system<|/head|>\n\nToday Date: {{ date_string }}\n\n<|eot_id|>{% for m in messages %}"
    "<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{{ '<|head|>assistant<|/head|>\n\n' }}",  # Jinja would take the last newline of a file
    ("<|head|>", "<|/head|>", "<|eot_id|>"),
    "<|eot_id|>",
    ("<s>", "<|head|>", "system", "<|/head|>", "\n\nToday Date: 26 Jul 2024\n\n", "<|eot_id|>", "<|head|>", "user",
     "<|/head|>", "\n\nquestion", "<|eot_id|>", "<|head|>", "assistant", "<|/head|>", "\n\n"),
)  # fmt: skip
LLAMA2 = Style(
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    (),
    "</s>",
    ("<s>", "[INST] question [/INST]"),
)
STYLES = {"chatml": CHATML, "gemma": GEMMA, "llama3": LLAMA3, "llama2": LLAMA2}
STYLE = pytest.mark.parametrize("style", list(STYLES))
NO_DUMMY_SPACE = ("byte_level", "byte_level_digits", "byte_fallback_bare")
FAMILY = pytest.mark.parametrize("family", tiny.MORE_FAMILIES)


def tokenizer(family: str, template: str, control: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    made = copy.deepcopy(tiny.tokenizer(family))
    made.add_special_tokens({"additional_special_tokens": list(control)})
    made.chat_template = template
    return made


def side(family: str, style: str, template: Any = "chat") -> TextSide:
    made = STYLES[style]
    text = made.template
    if family in NO_DUMMY_SPACE:  # Llama 2 writes the space that its tokenizer puts before a response
        text = text.replace("' ' + m.content", "m.content")
    return TextSide(tokenizer(family, text, made.control), template=template, name=f"{family} {style}")


# --- ends -------------------------------------------------------------------------------------------------------------


@STYLE
@FAMILY
def test_training_ends_a_response_as_the_template_does(family: str, style: str) -> None:
    """And EOS, which the model may know from pre-training, ends one as well; without the template it does alone."""
    chat, plain = side(family, style), side(family, style, "plain")
    end, eos = chat.tokenizer.convert_tokens_to_ids(STYLES[style].end), chat.tokenizer.eos_token_id
    assert chat.eos_ids == ((end, eos) if end != eos else (eos,))
    assert plain.eos_ids == (eos,)
    for made in (chat, plain):
        assert made.vocabulary.eos == made.eos_ids
        (example,) = tokenize([Example("x", "question", "an answer")], {STUDENT: made}, 99)
        tokens = example.sides[STUDENT]
        assert (tokens.response[-1], tokens.response[:-1].tolist()) == (
            made.eos,
            made.responses(["an answer"])[0].tolist(),
        )
        assert tokens.ends[-2:].tolist() == [9, 9]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ 'USER ' + m.content + ' BOT' if m.role == 'user' else m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n### </s>{% endfor %}"  # text first
        "{% if add_generation_prompt %}assistant: {% endif %}",
    ],
)
def test_eos_ends_what_the_template_does_not(template: str) -> None:
    assert TextSide(tokenizer("byte_level", template), template="chat", name="x").eos_ids == (2,)


def test_a_template_without_a_place_for_an_answer_is_refused_where_it_is_used() -> None:
    made = tokenizer(
        "byte_level", "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert TextSide(made, template="plain", name="x").eos_ids == (2,)
    with pytest.raises(HarnessError, match=r"found '' where a generation prompt is followed by "):
        TextSide(made, template="chat", name="x")


def test_an_end_is_a_control_token_whatever_the_file_says() -> None:
    """Some files declare their end of turn as text; as an end it covers none."""
    made = tokenizer("byte_level", CHATML.template, CHATML.control[:1])
    made.add_tokens(["<|im_end|>"])
    found = TextSide(made, template="chat", name="x")
    index = made.convert_tokens_to_ids("<|im_end|>")
    assert index in found.eos_ids
    assert Vocabulary.of(made.backend_tokenizer).kinds[index] == TokenKind.ORDINARY
    assert found.vocabulary.kinds[index] == TokenKind.SPECIAL
    assert found.vocabulary.widths[index] == 0


def test_a_template_that_fails_matters_only_where_it_is_used() -> None:
    made = tokenizer("byte_level", "{{ raise_exception('no assistants here') }}")
    assert TextSide(made, template="plain", name="x").eos_ids == (2,)
    with pytest.raises(HarnessError, match=r"chat template of x: found an error \(no assistants here\); .*plain"):
        TextSide(made, template="chat", name="x")


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
POWER = "{{ 9 ** (9 ** 9) > 0 }}"  # one step of the interpreter, which no timer of Python's interrupts
DOUBLED = "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
LONG = "{{ 'a' * 10 ** 12 }}"
WIDE = "{% for a in range(9999) %}{{ 'a' * 99999 }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        pytest.param(NESTED, "more than 2 s", marks=pytest.mark.slow),
        pytest.param(POWER, "more than 2 s", marks=pytest.mark.slow),
        pytest.param(DOUBLED, "filled memory", marks=pytest.mark.slow),
        pytest.param(WIDE, "filled memory", marks=pytest.mark.slow),
        (LONG, "filled memory"),
    ],
)
def test_a_template_that_loops_or_fills_memory_is_an_error(
    template: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And harms nothing else: the next one is rendered."""
    made = tokenizer("byte_level", template)
    assert TextSide(made, template="plain", name="x").prompts(["question"])  # never rendered
    code = "import harness.data.rendering as r; r.SECONDS, r.MEMORY, r.ANSWER = 2, 2**28, 2**20; r.main()"
    monkeypatch.setattr(rendering, "SECONDS", 2)
    monkeypatch.setattr(rendering, "ANSWER", 2**20)
    monkeypatch.setattr(rendering, "_CODE", code)
    monkeypatch.setattr(rendering, "_PROCESSES", [])
    with pytest.raises(HarnessError, match=rf"chat template of x: found an error \(it .*{found}.*template: plain"):
        TextSide(made, template="chat", name="x")
    assert side("byte_level", "chatml").prompts(["question"])
    rendering._PROCESSES[0].close()


@pytest.mark.parametrize("make", [exact_map, prefix_map, nearest_map])
@pytest.mark.parametrize("student", ["chat", "plain"])
@pytest.mark.parametrize("teacher", ["chat", "plain"])
def test_the_ends_that_are_trained_are_paired(make: Any, student: Any, teacher: Any) -> None:
    """Whatever their names, and one to one: <|im_end|> with </s>, where a chat student has a plain teacher."""
    ours, theirs = side("byte_level", "chatml", student), side("byte_fallback", "gemma", teacher)
    both = min(len(ours.eos_ids), len(theirs.eos_ids))  # only a chat has two
    assert both == 1 + (student == teacher == "chat")
    for source, target in ((ours, theirs), (theirs, ours)):
        mapped = make(source.vocabulary, target.vocabulary)
        assert [int(mapped[index]) for index in source.eos_ids[:both]] == list(target.eos_ids[:both])
        special = mapped[source.vocabulary.kinds == TokenKind.SPECIAL]
        assert np.unique(special[special != UNMAPPED]).size == (special != UNMAPPED).sum()
    ends = [np.asarray(made.eos_ids[:both]) for made in (ours, theirs)]
    costs = EditCosts(ours.vocabulary, theirs.vocabulary).costs(*ends)
    assert costs.diagonal().tolist() == [0] * both


def test_an_end_too_many_has_no_partner() -> None:
    ours, theirs = side("byte_level", "chatml"), TextSide(tiny.tokenizer("unigram"), template="plain", name="plain")
    there, back = exact_map(ours.vocabulary, theirs.vocabulary), exact_map(theirs.vocabulary, ours.vocabulary)
    assert [int(there[index]) for index in ours.eos_ids] == [theirs.eos, UNMAPPED]
    assert back[theirs.eos] == ours.eos


@pytest.mark.parametrize(
    "name", [name for name, kind in registered().items() if kind.teacher is TeacherKind.SAME_TOKENIZER]
)
def test_one_tokenizer_with_two_ends_is_no_pair_for_methods_that_compare_the_same_tokens(name: str) -> None:
    chat, plain = side("byte_level", "chatml"), side("byte_level", "chatml", "plain")
    method = find(name)()
    assert method.refuses(TokenizerPair(chat.vocabulary, chat.vocabulary)) is None
    reason = method.refuses(TokenizerPair(chat.vocabulary, plain.vocabulary))
    assert reason is not None
    assert f"{chat.eos_ids[:1]}" in reason
    assert f"{plain.eos_ids[:1]}" in reason


# --- prompts ----------------------------------------------------------------------------------------------------------


@STYLE
@pytest.mark.parametrize("family", ["byte_level", "byte_level_digits", "byte_fallback_bare"])
def test_a_prompt_is_its_control_tokens_and_the_text_between(family: str, style: str) -> None:
    made = side(family, style)
    (prompt,) = made.prompts(["question"])
    control = {*STYLES[style].control, "<s>", "</s>"}
    expected = []
    for part in STYLES[style].parts:
        whole = made.tokenizer.convert_tokens_to_ids([part]) if part in control else made.responses([part])[0].tolist()
        expected += whole
    assert prompt == expected


@STYLE
@FAMILY
def test_names_of_control_tokens_are_text_in_what_the_user_says(family: str, style: str) -> None:
    """Of all of them, in batches with others, and nothing is lost."""
    made = side(family, style)
    names = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<pad>", "<s>", "</s>"]
    if family == "unigram":  # see the next test
        names = names[:4]
    special = np.flatnonzero(made.vocabulary.kinds == TokenKind.SPECIAL)
    texts = ["question", *(f"{name}a{name}{name} {name}\nb" for name in names), "question"]
    neutral, *attacks, again = made.prompts(texts)
    assert neutral == again
    for text, prompt in zip(texts[1:-1], attacks, strict=True):
        assert [i for i in prompt if i in special] == [i for i in neutral if i in special]
        assert text in made.tokenizer.decode(prompt, skip_special_tokens=False)


def test_a_name_that_can_only_be_read_as_its_control_token_is_an_error() -> None:
    """The Unigram model of the tokenizers library finds "</s>" among its pieces."""
    with pytest.raises(HarnessError, match=r"^chat template of unigram chatml: found an error .*</s>"):
        side("unigram", "chatml").prompts(["a </s> b"])


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("style", "written"), [("gemma", 1), ("llama3", 1), ("chatml", 0)])
def test_bos_stands_where_the_template_writes_it_and_never_twice(adds: bool, style: str, written: int) -> None:
    made = tokenizer("byte_level", STYLES[style].template, STYLES[style].control)
    if adds:
        made.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    chat = TextSide(made, template="chat", name="x")
    for prompt in chat.prompts(["question", "a <s> question"]):
        assert prompt.count(1) == written
    assert chat.plain_prompts(["question"])[0].count(1) == int(adds)


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        (LLAMA3.template, "Today Date: 26 Jul 2024\n"),
        (
            "{{ strftime_now('%Y-%m-%d %H:%M') }}{% for m in messages %}{{ m.content }}"
            "{% if m.role == 'user' %}</s>{% endif %}{% endfor %}",
            "2024-07-26 00:00",
        ),
    ],
)
def test_a_template_that_prints_the_date_prints_the_same_one_every_day(template: str, printed: str) -> None:
    made = TextSide(tokenizer("byte_level", template, LLAMA3.control), template="chat", name="x")
    for prompt in made.prompts(["question", "a </s> question"]):
        assert printed in made.tokenizer.decode(prompt)


def test_a_date_that_can_not_be_fixed_is_an_error() -> None:
    made = tokenizer("byte_level", "{% set form = '%Y' %}{{ strftime_now(form) }}{{ messages[0].content }}")
    with pytest.raises(HarnessError, match=r"chat template of x: found today's date .* prompts that are the same tomo"):
        TextSide(made, template="chat", name="x")
    assert TextSide(made, template="plain", name="x").eos_ids == (2,)


# --- students that learn to stop --------------------------------------------------------------------------------------

TEXTS = [Example(f"x/{i}", prompt, response) for i, (prompt, response) in enumerate(tiny.SAMPLES)]
CROSS = "cross"


def cross_tokenizer_methods() -> list[Method]:
    kinds = [kind for kind in registered().values() if kind.teacher is TeacherKind.CROSS_TOKENIZER]
    return [
        kind(fidelity=fidelity)
        for kind in kinds
        for fidelity in (("described", "released") if kind.fidelities_differ else ("described",))
    ]


@cache
def sides() -> dict[str, TextSide]:
    """A chat student whose responses end with <|im_end|>, and a plain teacher whose responses end with </s>."""
    teacher = TextSide(tiny.tokenizer("byte_fallback"), template="plain", name="teacher")
    return {STUDENT: side("byte_level", "chatml"), CROSS: teacher}


@cache
def examples() -> tuple[TokenizedExample, ...]:
    return tuple(tokenize(TEXTS, sides(), 200))


def fit(model: Any, objective: Objective, teachers: dict[str, Any], rows: list[AlignedExample], work: Path) -> None:
    collator = Collator(objective.terms, {STUDENT: 0, CROSS: 0})
    training = Training(steps=60, learning_rate=5e-3, batch_size=4)
    train(Distiller(model, objective, teachers), rows, collator, training, steps=60, seed=0, work=work)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A teacher that was trained to say the four responses, and to end them."""
    made = tiny.model("gemma2", len(sides()[CROSS].vocabulary), seed=1)
    rows = [AlignedExample(row, ()) for row in tokenize(TEXTS, {STUDENT: sides()[CROSS]}, 200)]
    fit(made, Objective("sft", 1.0, ()), {}, rows, tmp_path_factory.mktemp("teacher"))
    at_end, before = end_probability(made, CROSS)
    assert at_end > 0.9
    assert before < 0.01
    return made


def student() -> Any:
    """Not trained at all; its head is not tied, so that its rows can change places alone."""
    return tiny.model("llama", len(sides()[STUDENT].vocabulary))


def rows_of(model: Any, role: str) -> list[torch.Tensor]:
    """For each example, [response tokens, vocabulary] probabilities of what comes next, EOS last."""
    rows = []
    for example in examples():
        tokens = example.sides[role]
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(tokens.sequence)[None]).logits[0]
        rows.append(logits[tokens.prompt.size - 1 : -1].softmax(-1))
    return rows


def end_probability(model: Any, role: str = STUDENT) -> tuple[float, float]:
    """Mean probability of the end after the response, and of an end before it."""
    rows = [row[:, sides()[role].eos] for row in rows_of(model, role)]
    return float(torch.stack([row[-1] for row in rows]).mean()), float(torch.cat([row[:-1] for row in rows]).mean())


def kd(method: Method, model: Any, teacher: Any) -> float:
    terms = (Term(method, CROSS, 1.0),)
    batch = Collator(terms, {STUDENT: 0, CROSS: 0}).collate([align(example, terms) for example in examples()])
    objective = Objective(method.name, 0.0, terms)
    return float(Distiller(model, objective, {CROSS: teacher})(batch, objective.divisors(batch.counts)).kd[0].detach())


def blind(method: Method, teacher: Any) -> bool:
    """Whether the loss is the same if the end and a letter change places in the student's vocabulary."""
    model = student()
    before = kd(method, model, teacher)
    places = [sides()[STUDENT].eos, sides()[STUDENT].tokenizer.convert_tokens_to_ids("a")]
    with torch.no_grad():
        model.lm_head.weight[places] = model.lm_head.weight[places[::-1]]
    return abs(kd(method, model, teacher) - before) < 1e-5 * abs(before)


SLOW = "at their own rate its maps find one token in nine after 60 steps, and no end; at 0.02 they find all"
UNTAUGHT = {
    ("dskd", "described"): SLOW,
    ("dskd", "released"): SLOW,
    ("gold", "released"): "vocabularies are matched by string, and <|im_end|> is not </s>",
    ("mined", "released"): "a control, whose KD term has no gradient",
    ("multilevelot", "released"): "ranks are paired, and the student is drawn to its own choice",
}
OFTEN = ("cdm", "gold", "mined")  # as described; each takes seconds, and all of them are slow together
METHODS = pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            method,
            id=f"{method.name}-{method.options.fidelity}",
            marks=[] if method.name in OFTEN and method.options.fidelity == "described" else [pytest.mark.slow],
        )
        for method in cross_tokenizer_methods()
    ],
)


@METHODS
def test_a_student_learns_to_stop_where_its_teacher_stops(method: Method, teacher: Any, tmp_path: Path) -> None:
    """Without cross-entropy: all that it learns of ends comes from the teacher, which writes them otherwise.

    Two kinds of loss can't teach it, by construction, beside those of ``UNTAUGHT``:

    - one that is blind to which token is which (sorted distributions) makes the student as sure as its teacher, of
      whatever token it likes best already;
    - one whose minimum is not the teacher's distribution (released CDM divides one side only by the temperature, and
      has the student's own logits on both sides) leaves the student nearly flat: where a teacher ends with 0.96, the
      best student ends with 0.04. The end becomes likelier where the teacher ends, and that is all.
    """
    method.prepare(TokenizerPair(sides()[STUDENT].vocabulary, sides()[CROSS].vocabulary))
    model, terms = student(), (Term(method, CROSS, 1.0),)
    at_start, _ = end_probability(model)
    sure_at_start = mean_surety(model)
    rows = [align(example, terms) for example in examples()]
    fit(model.requires_grad_(True), Objective(method.name, 0.0, terms), {CROSS: teacher}, rows, tmp_path)
    at_end, before = end_probability(model)
    if (method.name, method.options.fidelity) in UNTAUGHT:
        assert at_end < 0.05
    elif blind(method, teacher):
        assert at_end < 0.05
        assert mean_surety(model) > 0.7 > 0.3 > sure_at_start
    elif method.zero_at_identity:
        assert at_end > 0.5
        assert at_end > 5 * before
    else:
        assert at_end > 5 * at_start
        assert at_end > 1.3 * before


@METHODS
def test_with_its_cross_entropy_every_method_teaches_the_end(method: Method, teacher: Any, tmp_path: Path) -> None:
    """As recipes train, with CE and KD at 0.5 each: P(end) after the response rises, and stays low before it."""
    method.prepare(TokenizerPair(sides()[STUDENT].vocabulary, sides()[CROSS].vocabulary))
    model, terms = student(), (Term(method, CROSS, 0.5),)
    at_start, _ = end_probability(model)
    rows = [align(example, terms) for example in examples()]
    fit(model.requires_grad_(True), Objective(method.name, 0.5, terms), {CROSS: teacher}, rows, tmp_path)
    at_end, before = end_probability(model)
    assert at_end > 0.3 > 0.05 > at_start
    assert at_end > 5 * before


def mean_surety(model: Any) -> float:
    """Mean probability of the likeliest token after the response, whichever it is."""
    return float(torch.stack([row[-1].max() for row in rows_of(model, STUDENT)]).mean())


@pytest.mark.parametrize(("name", "expected"), [("uld", True), ("cdm", False), ("one_to_one", False)])
def test_only_sorted_distributions_are_blind_to_the_end(name: str, expected: bool, teacher: Any) -> None:
    method = find(name)()
    method.prepare(TokenizerPair(sides()[STUDENT].vocabulary, sides()[CROSS].vocabulary))
    assert blind(method, teacher) is expected


# --- What a template and a publisher say ------------------------------------------------------------------------------

THINKING = (  # as Qwen3's: its generation prompt lacks the empty block that it writes before an answer
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@FAMILY
def test_a_template_that_begins_an_answer_otherwise_than_its_prompt_ends_is_refused(family: str) -> None:
    """A student trained behind its generation prompt would learn an answer that the template never writes there."""
    made = tokenizer(family, THINKING, ("<|im_start|>", "<|im_end|>"))
    with pytest.raises(HarnessError, match=r"chat template of x: found .<think>.*enable_thinking: false"):
        TextSide(made, template="chat", name="x")
    off = TextSide(made, template="chat", name="x", options={"enable_thinking": False})
    (whole,) = made.apply_chat_template(
        [[{"role": "user", "content": "question"}, {"role": "assistant", "content": "an answer"}]], tokenize=False
    )
    assert whole.startswith(made.decode(off.prompts(["question"])[0]) + "an answer") or family != "byte_level"
    assert TextSide(made, template="plain", name="x").eos_ids  # and nothing is asked of it where it is not used


@STYLE
@FAMILY
def test_templates_that_write_what_their_prompt_ends_with_are_taken(family: str, style: str) -> None:
    assert side(family, style).eos_ids


def test_a_system_message_stands_before_each_prompt() -> None:
    made = tokenizer("byte_level", CHATML.template, CHATML.control)
    found = TextSide(made, template="chat", name="x", system="Be brief.").prompts(["question"])[0]
    text = made.decode(found)
    assert text.index("Be brief.") < text.index("question")
    assert text.count("<|im_start|>") == 3


def test_ends_of_the_publisher_end_an_answer_and_are_not_trained(tmp_path: Path) -> None:
    """generation_config.json of Llama 3 lists three, of Qwen two; tokenizers know one."""
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2, 99999]}')
    publisher = PublisherSettings.of(tmp_path)
    made = TextSide(tiny.tokenizer("byte_level"), template="plain", name="x", publisher=publisher)
    assert (made.eos, made.eos_ids) == (2, (2, 5))


@pytest.mark.parametrize("asked", [True, False, None])
def test_bos_that_only_the_settings_ask_for_comes_first(tmp_path: Path, asked: bool | None) -> None:
    """DeepSeek's tokenizer.json has no template for it, and transformers' fast tokenizers don't read the setting."""
    tiny.tokenizer("byte_level").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": asked}))
    loaded = load_tokenizer(tmp_path)
    assert loaded("a")["input_ids"][0] != loaded.bos_token_id
    found = TextSide(loaded, template="plain", name="x", publisher=PublisherSettings.of(tmp_path))
    assert found.bos == ([loaded.bos_token_id] if asked else [])
    assert found.prompts(["a"])[0][: len(found.bos)] == found.bos


# --- Answers ----------------------------------------------------------------------------------------------------------

BODIES = ["    return first + second\n", "   x = 1\n", " y", "\tz\n", "\n\n  a", "  ", "é  ü", "x", ""]


@FAMILY
@pytest.mark.parametrize("body", BODIES)
def test_an_answer_that_continues_its_prompt_keeps_every_byte(family: str, body: str) -> None:
    """The first line of most canonical solutions begins with four spaces; decoders of SentencePiece drop one."""
    made = TextSide(tiny.tokenizer(family), template="plain", name=family)
    (ids,) = made._encode([body], made._within_a_text)
    assert made.answer_text(ids, continues=True) == body
    (ids,) = made._encode([body])  # and as a response of its own, as in training
    assert made.answer_text(ids) == body or (body, made.vocabulary.dummy_space) == (" y", "unless space")


@FAMILY
@pytest.mark.shared_data
def test_canonical_solutions_come_back_byte_for_byte(family: str, shared_data: Path) -> None:
    problems = read_problems(next(shared_data.rglob("HumanEvalPlus*.jsonl*")))
    made = TextSide(tiny.tokenizer(family), template="plain", name=family)
    assert len(problems) == 164
    solutions = [problem["canonical_solution"] for problem in problems.values()]
    encoded = made._encode(solutions, made._within_a_text)
    assert [made.answer_text(ids, continues=True) for ids in encoded] == solutions


def test_a_stop_string_that_is_a_special_token_ends_an_answer() -> None:
    """It stands for no text, so no text ever holds it."""
    made = TextSide(tokenizer("byte_level", CHATML.template, CHATML.control), template="plain", name="x")
    end = made.tokenizer.convert_tokens_to_ids("<|im_start|>")
    (ids,) = made._encode(["abc"])
    request = Request("x", "", stop=("<|im_start|>", "zz"))
    assert text_until_stop(made, request, [*ids, end, *ids]) == ("abc", True)
    assert text_until_stop(made, Request("x", "", stop=("",)), [*ids, end, *ids]) == ("abcabc", False)
