"""lm-eval's gsm8k task on local rows: the prompt's form, both filters against their regexes, errors that name lines."""

import json
import random
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from harness.base.errors import HarnessError
from harness.evaluate import gsm8k
from tests.harness.run.by_hand import simple_evaluate

SETTINGS = {"few_shot": 5, "few_shot_seed": 1234, "limit": None}
ANSWERS = ["18", "3", "70000", "1,080", "20"]  # of the test rows
OUTPUTS = [
    " She has 16 - 3 = 13.\n#### 18",  # both filters find it
    " The answer is 3.",  # only the flexible one: it takes the last number
    " It costs $70,000 in all.\n#### 70,000\n\nQuestion: How old is 5?\nAnswer: 9",  # cut at the stop string
    "#### 1080 or so, at least 7",  # strict takes what follows ####; flexible the last number
    "",  # nothing
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gsm8k")
    train = [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}.\n#### {2 * i}"} for i in range(20)]
    test = [{"question": f"How many in box {i}?", "answer": f"So many.\n#### {n}"} for i, n in enumerate(ANSWERS)]
    for name, rows in {"train": train, "test": test}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl", folder / "test.jsonl"


@pytest.fixture(scope="module")
def asked(data: tuple[Path, Path]) -> list[gsm8k.LmEvalRequest]:
    return gsm8k.requests(*data, **SETTINGS)


def test_the_prompt_has_the_official_form(asked: list[gsm8k.LmEvalRequest]) -> None:
    for i, request in enumerate(asked):
        *shots, question = request.prompt.split("\n\n")
        assert question == f"Question: How many in box {i}?\nAnswer:"
        assert len(shots) == len(set(shots)) == 5
        for text in shots:
            assert re.fullmatch(r"Question: What is (\d+) \+ \1\?\nAnswer: \1 \+ \1 = (\d+)\.\n#### \2", text)


def test_generation_is_asked_as_the_task_says(asked: list[gsm8k.LmEvalRequest]) -> None:
    assert [request.id for request in asked] == [f"gsm8k/test/{i}" for i in range(5)]
    assert {request.stop for request in asked} == {("Question:", "</s>", "<|im_end|>")}
    assert {request.max_new_tokens for request in asked} == {256}


def test_few_shot_examples_follow_the_seed_and_not_the_limit(
    data: tuple[Path, Path], asked: list[gsm8k.LmEvalRequest]
) -> None:
    assert gsm8k.requests(*data, few_shot=5, few_shot_seed=1234, limit=2) == asked[:2]
    assert gsm8k.requests(*data, few_shot=5, few_shot_seed=7, limit=2) != asked[:2]
    assert gsm8k.requests(*data, few_shot=0, few_shot_seed=7, limit=1)[0].prompt == (
        "Question: How many in box 0?\nAnswer:"
    )


def test_scores_are_those_of_the_filters(data: tuple[Path, Path], asked: list[gsm8k.LmEvalRequest]) -> None:
    outputs = {request.id: output for request, output in zip(asked, OUTPUTS, strict=True)}
    scored = gsm8k.score(*data, outputs, **SETTINGS)
    assert [item.id for item in scored] == list(outputs)
    assert [item.scores["strict_match"] for item in scored] == [1, 0, 1, 1, 0]
    assert [item.scores["flexible_extract"] for item in scored] == [1, 1, 1, 0, 0]
    for item, output, answer in zip(scored, OUTPUTS, ANSWERS, strict=True):
        assert item.scores == by_hand(output, answer)


def by_hand(output: str, answer: str) -> dict[str, float]:
    """The two regexes of lm-eval's gsm8k.yaml, and its comparison without commas, dollars and a last full stop."""
    output = output.split("Question:")[0]

    def bare(text: str) -> str:
        return re.sub(r",|\$|(?s:.*)#### |\.$", "", text).lower()

    strict = re.findall(r"#### (\-?[0-9\.\,]+)", output)
    numbers = [a or b for a, b in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", output)]
    return {
        "strict_match": float(bool(strict) and bare(strict[0]) == bare(answer)),
        "flexible_extract": float(bool(numbers) and bare(numbers[-1]) == bare(answer)),
    }


def test_a_missing_output_is_named(data: tuple[Path, Path], asked: list[gsm8k.LmEvalRequest]) -> None:
    outputs = {request.id: "" for request in asked[:-1]}
    with pytest.raises(HarnessError, match=r"no output for gsm8k/test/4; expected one for every request"):
        gsm8k.score(*data, outputs, **SETTINGS)


def test_nothing_is_printed_downloaded_or_reseeded(
    data: tuple[Path, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    random.seed(5)
    state = random.getstate()
    gsm8k.requests(*data, few_shot=1, few_shot_seed=1, limit=1)
    assert capfd.readouterr() == ("", "")
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: found '{' \(Expecting property name"),
        ('{"question": 5, "answer": "#### 5"}', r"line 2, field 'question': found 5; expected a text"),
        ('{"question": "5?"}', r"line 2, field 'answer': found no such field \(there are question\)"),
        ("[1]", r"line 2: found a JSON list"),
        ('{"question": "5?", "answer": "five"}', r"line 2, field 'answer': found no final answer"),
        ('{"question": "5?", "answer": "#### 5 "}', r"line 2, field 'answer': found the final answer '5 '"),
    ],
)
def test_a_bad_row_is_named(data: tuple[Path, Path], tmp_path: Path, line: str, message: str) -> None:
    bad = tmp_path / "test.jsonl"
    bad.write_text('{"question": "4?", "answer": "#### 4"}\n' + line + "\n")
    with pytest.raises(HarnessError, match=message):
        gsm8k.requests(data[0], bad, **SETTINGS)


def test_missing_and_too_short_files_are_named(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"none.jsonl: found a file that can't be read"):
        gsm8k.requests(data[0], tmp_path / "none.jsonl", **SETTINGS)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(HarnessError, match=r"found no rows"):
        gsm8k.requests(data[0], tmp_path / "empty.jsonl", **SETTINGS)
    with pytest.raises(HarnessError, match=r"found 20 rows; expected a GSM8K jsonl file of at least 21"):
        gsm8k.requests(*data, few_shot=21, few_shot_seed=1, limit=1)


def test_the_version_is_said() -> None:
    from importlib.metadata import version

    assert gsm8k.task_version() == f"lm-eval {version('lm-eval')}, gsm8k 3.0"


def test_the_module_imports_nothing_heavy() -> None:
    check = (
        "import sys, harness.evaluate.gsm8k, harness.evaluate.programs.evalplus, harness.evaluate.rouge\n"
        "heavy = {'lm_eval', 'evalplus', 'datasets', 'torch', 'rouge_score', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[3])


def test_prompts_and_scores_are_those_of_simple_evaluate(data: tuple[Path, Path], tmp_path: Path) -> None:
    """lm-eval's own entry point, called by hand with a model that says the same: what a user of lm-eval would get."""
    asked = gsm8k.requests(*data, few_shot=3, few_shot_seed=77, limit=4)
    outputs = dict(zip((request.prompt for request in asked), OUTPUTS, strict=False))

    results = simple_evaluate(tmp_path, *data, outputs, few_shot=3, seed=77, limit=4)
    by_id = {request.id: outputs[request.prompt] for request in asked}
    ours = gsm8k.score(*data, by_id, few_shot=3, few_shot_seed=77, limit=4)
    for theirs, name in (("strict-match", "strict_match"), ("flexible-extract", "flexible_extract")):
        mean = sum(item.scores[name] for item in ours) / len(ours)
        assert results["results"]["by_hand"][f"exact_match,{theirs}"] == mean
        assert 0 < mean < 1
        for sample in [sample for sample in results["samples"]["by_hand"] if sample["filter"] == theirs]:
            assert ours[sample["doc_id"]].scores[name] == sample["exact_match"]


SCORE, NEVER = ["12", "$12", "12.", "1,200", "-3", "-$3", "0.5"], ["12 ", "12 apples", "twelve", "+3", "1/2"]


@pytest.mark.parametrize("final", [*SCORE, *NEVER])
def test_lm_eval_scores_on_what_is_read_and_never_on_what_is_refused(
    tmp_path: Path, final: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": "?", "answer": f"So.\n#### {final}"}) + "\n")
    files = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    with pytest.raises(HarnessError) if final in NEVER else nullcontext() as error:
        assert len(gsm8k.read_tests(files[1])) == 1
    if error is not None:
        assert f"test.jsonl line 1, field 'answer': found the final answer '{final}'" in str(error.value)
    monkeypatch.setattr(gsm8k, "read_tests", gsm8k.read_training)
    best = max(
        max(item.scores.values())
        for answer in {final, final.strip(), re.sub("[^0-9-]", "", final), "12", "1"}
        for item in gsm8k.score(*files, {"gsm8k/test/0": f"#### {answer}"}, few_shot=0, few_shot_seed=1, limit=None)
    )
    assert best == (final in SCORE)
