"""Tasks: prompts to the letter, limits, protocol lines; a wrong row is named by file, line and field."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.base.errors import HarnessError
from harness.base.files import sha256_file
from harness.data.rows import read_rows
from harness.evaluate.programs import evalplus as code
from harness.evaluate.programs import sandbox
from harness.evaluate.programs.evalplus import Solution, Verdict
from harness.evaluate.programs.sandbox import SandboxStatus, SandboxUnavailable
from harness.tasks import tasks
from harness.tasks.alpaca import alpaca_prompt
from harness.tasks.base import Task, samples_folder
from tests.conftest import Command
from tests.copies import copy_to_change

WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n"
)


def made(name: str, root: Path | None = None, **settings: Any) -> Task:
    kind = tasks()[name]
    if name == "countdown":  # makes its rows: 90,000 by default
        settings = {"train_items": 9, "test_items": 3} | settings
    return kind(kind.Settings(**settings), root)


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# --- Prompts ----------------------------------------------------------------------------------------------------------


def test_the_alpaca_prompt_is_dskds_to_the_letter() -> None:
    """One character more and a published number is not comparable."""
    assert alpaca_prompt("Do it.") == WITHOUT_INPUT.format(instruction="Do it.")
    assert alpaca_prompt("Do it.", "x") == WITH_INPUT.format(instruction="Do it.", input="x")


def test_dolly_rows(tmp_path: Path) -> None:
    write(
        tmp_path / "dolly/train.jsonl",
        {"instruction": "a", "output": "b"},
        {"instruction": "c", "input": "d", "output": "e"},
    )
    write(
        tmp_path / "dolly/test.jsonl",
        {"instruction": "f", "input": None, "output": ["g", "h"]},
        {"instruction": "i", "output": "j"},
    )
    task = made("dolly", tmp_path, decoding="greedy")
    assert [(e.id, e.prompt, e.response) for e in task.training_examples()] == [
        ("dolly/train/0", WITHOUT_INPUT.format(instruction="a"), "b"),
        ("dolly/train/1", WITH_INPUT.format(instruction="c", input="d"), "e"),
    ]
    assert [(e.id, e.response) for e in task.reference_examples()] == [("dolly/0", "g"), ("dolly/1", "j")]
    requests = task.requests()
    assert [(r.id, r.prompt) for r in requests] == [(e.id, e.prompt) for e in task.reference_examples()]
    assert {(r.stop, r.seed, r.prompt_tokens, r.key == r.id) for r in requests} == {
        (("<|endoftext|>",), None, 256, True)
    }
    assert not any(r.rendered for r in requests)  # a chat template goes round them
    scores = task.score({"one": {"dolly/0": "h", "dolly/1": "no"}}, tmp_path, False)
    assert scores["one"].values == {"rouge_l": {"dolly/0": 100.0, "dolly/1": 0.0}}  # the best over references


@pytest.fixture
def five_sets(tmp_path: Path) -> Path:
    """A folder with three items of each test set, in the papers' layout."""
    for name in ("dolly/valid", "selfinst/valid", "vicuna/valid", "sinst/valid_11_", "unni/valid_11_"):
        rows: list[dict[str, Any]] = [{"instruction": f"{name} {i}", "output": f"{name} answer {i}"} for i in range(3)]
        if name == "sinst/valid_11_":
            rows[1] |= {"input": "some context", "output": ["red apples", "green pears and plums"]}
        write(tmp_path / f"{name}.jsonl", *rows)
    write(tmp_path / "dolly/train.jsonl", {"instruction": "a", "output": "b"})
    return tmp_path


ALL_SETS = ("dolly", "selfinst", "vicuna", "sinst", "unni")


def test_each_test_set_is_a_column_with_its_own_items(five_sets: Path) -> None:
    task = made("dolly", five_sets, sets=ALL_SETS, sampling_seeds=(10, 20), unni_items=2, prompt_tokens=99)
    names = [metric.name for metric in task.metrics]
    assert names == ["rouge_l", "rouge_l_selfinst", "rouge_l_vicuna", "rouge_l_sinst", "rouge_l_unni"]
    assert all(metric.headline for metric in task.metrics)
    requests = task.requests()
    expected = {f"{name}/{i}" for name in ALL_SETS for i in range(2 if name == "unni" else 3)}
    assert {request.id for request in requests} == expected
    assert len({request.key for request in requests}) == len(requests) == 2 * len(expected)  # once for each seed
    assert {(request.seed, request.prompt_tokens) for request in requests} == {(10, 99), (20, 99)}
    asked = {request.id: request.prompt for request in requests}
    assert asked["sinst/1"] == WITH_INPUT.format(instruction="sinst/valid_11_ 1", input="some context")
    assert asked["vicuna/2"] == WITHOUT_INPUT.format(instruction="vicuna/valid 2")
    assert {e.id for e in task.reference_examples()} == {f"dolly/{i}" for i in range(3)}  # bits per byte: Dolly alone


def test_scores_are_means_over_sampling_seeds_of_rouge_score_itself(five_sets: Path) -> None:
    """Each answer scored by rouge-score by hand: the best over references, then the mean over an item's answers."""
    from rouge_score.rouge_scorer import RougeScorer

    task = made("dolly", five_sets, sets=ALL_SETS, sampling_seeds=(10, 20))
    said = {
        "sinst/1": ("He eats red apples.", "Pears, green pears!"),
        "vicuna/2": ("vicuna answers: 2", "  vicuna valid answer 2 <|endoftext|> vicuna vicuna"),
    }
    answers = {
        request.key: said.get(request.id, ("the answers", ""))[request.seed == 20] for request in task.requests()
    }
    scores = task.score({"one": answers}, five_sets, False)["one"].values

    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def by_hand(answer: str, *references: str) -> float:
        return max(100 * scorer.score(reference, answer)["rougeL"].fmeasure for reference in references)

    references = ("red apples", "green pears and plums")
    first, second = (by_hand(answer, *references) for answer in said["sinst/1"])
    assert scores["rouge_l_sinst"]["sinst/1"] == pytest.approx((first + second) / 2)
    assert (first, second) == pytest.approx((100 * 2 / 3, 100 * 4 / 7))  # 2 words of 4 and 2; 2 of 3 and 4
    vicuna = by_hand("vicuna answers: 2", "vicuna/valid answer 2"), 100
    assert scores["rouge_l_vicuna"]["vicuna/2"] == pytest.approx(sum(vicuna) / 2)
    assert scores["rouge_l"]["dolly/0"] == pytest.approx(by_hand("the answers", "dolly/valid answer 0") / 2)
    assert {metric: len(items) for metric, items in scores.items()} == {m.name: 3 for m in task.metrics}


def test_a_missing_test_set_is_named_and_is_no_column(five_sets: Path) -> None:
    whole = made("dolly", five_sets, sets=ALL_SETS)
    assert "not evaluated" not in " ".join(whole.protocol())
    digests = whole.test_digests()
    (five_sets / "unni/valid_11_.jsonl").unlink()
    (five_sets / "selfinst/valid.jsonl").unlink()
    task = made("dolly", five_sets, sets=ALL_SETS)
    assert [metric.name for metric in task.metrics] == ["rouge_l", "rouge_l_vicuna", "rouge_l_sinst"]
    assert {request.id.partition("/")[0] for request in task.requests()} == {"dolly", "vicuna", "sinst"}
    (line,) = [line for line in task.protocol() if "not evaluated" in line]
    assert "SelfInst (selfinst/valid.jsonl); UnNI (unni/valid_11_.jsonl)" in line
    assert task.test_digests() == [digests[0], *digests[2:4]]  # stages of an evaluation on fewer sets are other ones
    with pytest.raises(HarnessError, match=r"none of unni/valid_11_\.jsonl under"):
        made("dolly", five_sets, sets=("unni", "selfinst")).requests()


CHINESE = [{"instruction": "天", "output": "天空是蓝的。"}, {"instruction": "b", "output": ["- 😌😊", "…"]}]


@pytest.mark.parametrize(("tokens", "scored"), [("rouge_score", ["dolly/0"]), ("unicode", ["dolly/0", "dolly/1"])])
def test_items_that_no_answer_scores_on_are_left_out_and_named(tmp_path: Path, tokens: str, scored: list[str]) -> None:
    """An identical answer in Chinese scored 0.0, like any other."""
    write(tmp_path / "dolly/test.jsonl", {"instruction": "a", "output": "blue sky"}, *CHINESE)
    task = made("dolly", tmp_path, decoding="greedy", rouge_tokens=tokens)
    assert len(task.requests()) == 3
    same = {"dolly/0": "blue sky", "dolly/1": "天空是蓝的。", "dolly/2": "- 😌😊"}
    scores = task.score({"same": same, "none": dict.fromkeys(same, "no")}, tmp_path, False)
    assert scores["same"].values == {"rouge_l": dict.fromkeys(scored, 100.0)}
    assert scores["none"].values == {"rouge_l": dict.fromkeys(scored, 0.0)}
    first, left_out, *_ = task.protocol()
    assert f"Dolly {len(scored)} items" in first
    assert ("words of every script" in first) == (tokens == "unicode")
    missing = ", ".join(item for item in same if item not in scored)
    assert left_out.startswith("Not scored, as their references have no word that ROUGE-L could find")
    assert f": {missing}." in left_out
    assert ("dolly.rouge_tokens=unicode reads every script" in left_out) == (tokens == "rouge_score")


def test_how_rouge_finds_words_decides_scores_and_no_answer() -> None:
    task, other = made("dolly"), made("dolly", rouge_tokens="unicode")
    assert task.identity() == other.identity()
    assert task.scoring_identity() == {"rouge_tokens": "rouge_score"} != other.scoring_identity()
    assert made("codem", samples=2).identity() == made("codem", samples=2, pass_at=(2,)).identity()
    assert made("codem", samples=2).scoring_identity() != made("codem", samples=2, pass_at=(2,)).scoring_identity()


@pytest.fixture
def both_splits(five_sets: Path) -> Path:
    """Beside DSKD's files those of the hub split."""
    write(five_sets / "dolly_hub/train.jsonl", {"instruction": "hub a", "input": "", "output": "b", "category": "c"})
    rows = [{"instruction": f"hub {i}", "input": "", "output": f"hub answer {i}", "category": "c"} for i in range(2)]
    write(five_sets / "dolly_hub/test.jsonl", *rows)
    return five_sets


def test_the_hub_split_is_another_data_set(both_splits: Path) -> None:
    task = made("dolly", both_splits, split="hub", sets=ALL_SETS, decoding="greedy")
    names = [metric.name for metric in task.metrics]
    assert names == ["rouge_l_hub", "rouge_l_selfinst", "rouge_l_vicuna", "rouge_l_sinst", "rouge_l_unni"]
    (trained,) = task.training_examples()
    assert (trained.id, trained.prompt) == ("dolly_hub/train/0", WITHOUT_INPUT.format(instruction="hub a"))
    assert [(row.id, row.response) for row in task.reference_examples()] == [
        ("dolly_hub/0", "hub answer 0"),
        ("dolly_hub/1", "hub answer 1"),
    ]
    requests = {request.id: request.prompt for request in task.requests()}
    assert requests["dolly_hub/1"] == WITHOUT_INPUT.format(instruction="hub 1")
    assert not [prompt for prompt in requests.values() if "dolly/valid" in prompt]
    scores = task.score({"one": dict.fromkeys(requests, "hub answer 1")}, both_splits, False)["one"].values
    assert scores["rouge_l_hub"] == {"dolly_hub/0": pytest.approx(200 / 3), "dolly_hub/1": 100.0}
    assert list(scores) == names
    first, second, *more = task.protocol()
    assert "Dolly (hub split) 2 items, SelfInst 3 items" in first
    assert all(
        words in second for words in ("not DSKD's", "sorted by SHA-256", "500 rows", "1,000", "databricks-dolly")
    )
    assert more == ["Bits per byte: of the references of Dolly (hub split)."]
    assert task.training_digest() == sha256_file(both_splits / "dolly_hub/train.jsonl")
    assert task.test_digests()[0] == sha256_file(task.test_file) == sha256_file(both_splits / "dolly_hub/test.jsonl")
    only = made("dolly", both_splits, split="hub", sets="vicuna")
    assert "not DSKD's" in " ".join(only.protocol())  # its students were trained on it


def test_the_hub_split_names_what_is_missing_and_the_download(five_sets: Path) -> None:
    for call in ("training_examples", "training_digest", "reference_examples"):
        with pytest.raises(HarnessError, match=r"none of dolly_hub/t\w+\.jsonl under .*--download dolly_hub`"):
            getattr(made("dolly", five_sets, split="hub"), call)()
    (line,) = [
        line for line in made("dolly", five_sets, split="hub", sets=ALL_SETS).protocol() if "not evaluated" in line
    ]
    assert "Dolly (hub split) (dolly_hub/test.jsonl)" in line
    (five_sets / "dolly/train.jsonl").unlink()
    with pytest.raises(HarnessError) as error:
        made("dolly", five_sets).training_examples()
    assert "--download" not in str(error.value)


def test_the_hub_split_is_part_of_identities_and_dskds_is_not() -> None:
    """Those of DSKD's split are written down as they were before there was another."""
    task = made("dolly")
    assert task.training_identity() == {"train_items": None, "bos": True}
    assert task.identity() == {
        "test_items": None,
        "new_tokens": 256,
        "sets": ["dolly"],
        "decoding": "sampling",
        "sampling_seeds": [10],
        "prompt_tokens": 256,
        "bos": True,
    }
    assert task.identity() == made("dolly", split="dskd").identity()
    hub = made("dolly", split="hub")
    assert hub.identity() == task.identity() | {"split": "hub"}
    assert hub.training_identity() == task.training_identity() | {"split": "hub"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "DSKD"}, "'dskd' or 'hub'"),
        ({"split": ["dskd", "hub"]}, "'dskd' or 'hub'"),  # never both
        ({"sets": ["dolly_hub"]}, "'dolly', 'selfinst'"),
        ({"sets": ["dolly", "dolly"]}, "stands there twice"),
        ({"sampling_seeds": [1, 1]}, "stands there twice"),
        ({"sets": []}, "at least 1"),
        ({"sampling_seeds": []}, "at least 1"),
        ({"sets": ["vicunna"]}, "vicuna"),
        ({"prompt_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_dolly(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        made("dolly", **settings)


def test_one_set_or_seed_needs_no_list() -> None:
    settings = made("dolly", sets="vicuna", sampling_seeds=20).settings
    assert (settings.sets, settings.sampling_seeds) == (("vicuna",), (20,))


@pytest.mark.parametrize(
    ("template", "prompt", "response"),
    [("lm_eval", "Question: How many?\nAnswer:", " 1\n#### 1"), ("bare", "How many?", "1\n#### 1")],
)
def test_gsm8k_templates(tmp_path: Path, template: str, prompt: str, response: str) -> None:
    """lm-eval joins question and answer with a space, which belongs to the answer's first token."""
    for split in ("train", "test"):
        write(tmp_path / f"gsm8k/{split}.jsonl", {"question": "How many?", "answer": "1\n#### 1"})
    task = made("gsm8k", tmp_path, template=template)
    (trained,), (held_out,) = task.training_examples(), task.reference_examples()
    assert (trained.prompt, trained.response) == (held_out.prompt, held_out.response) == (prompt, response)
    assert task.training_identity()["template"] == template


def test_gsm8k_asks_and_scores_as_lm_eval() -> None:
    task = made("gsm8k", test_items=2, few_shot=0)
    requests = task.requests()
    assert all(r.rendered for r in requests)
    assert [r.prompt for r in requests] == [e.prompt for e in task.reference_examples()]  # trained as it is asked
    references = [e.response for e in task.reference_examples()]
    right = {r.id: reference for r, reference in zip(requests, references, strict=True)}
    scores = task.score({"right": right, "wrong": dict.fromkeys(right, "none")}, Path(), False)
    assert set(scores["right"].values["exact_match_strict"].values()) == {100.0}
    assert set(scores["wrong"].values["exact_match_flexible"].values()) == {0.0}


def test_codem_prompts() -> None:
    completion, instructed = made("codem", test_items=1), made("codem", test_items=1, prompt="alpaca")
    (head,), (asked,) = completion.requests(), instructed.requests()
    problem = json.loads(completion.test_file.read_text().splitlines()[0])
    assert head.prompt == problem["prompt"].strip() + "\n"  # EvalPlus's own way
    assert head.rendered
    assert "\ndef " in head.stop
    assert asked.prompt.startswith(alpaca_prompt("")[:40])
    assert problem["prompt"].strip() in asked.prompt
    assert not asked.rendered
    (reference,) = completion.reference_examples()
    assert reference.prompt == alpaca_prompt("Complete this Python function.", problem["prompt"].strip())


@pytest.mark.parametrize("name", ["dolly", "codem"])
def test_rows_come_in_three_forms(tmp_path: Path, name: str) -> None:
    """DSKD's files hold instruction and prompt, the CDM paper's release prefix and text, with or without the prefix."""
    write(
        tmp_path / f"{name}/train.jsonl",
        {"instruction": "a", "prompt": "not read", "output": "b"},
        {"prompt": "### Instruction:\nc", "output": "d"},
        {"prefix": "e: ", "text": "f"},
        {"prefix": "e: ", "text": "e: f e: "},
    )
    assert [(row.prompt, row.response) for row in made(name, tmp_path).training_examples()] == [
        (WITHOUT_INPUT.format(instruction="a"), "b"),
        ("### Instruction:\nc", "d"),
        ("e: ", "f"),
        ("e: ", "f e: "),
    ]


def test_test_rows_come_in_the_same_forms(tmp_path: Path) -> None:
    """`{prompt, output}` was read to train on, and refused to test on."""
    write(
        tmp_path / "dolly/test.jsonl",
        {"instruction": "a", "prompt": "not read", "output": "b"},
        {"prompt": "### Instruction:\nc", "output": ["d", "e"]},
        {"prefix": "f: ", "text": ["f: g", "h"]},
    )
    task = made("dolly", tmp_path, decoding="greedy")
    asked = [WITHOUT_INPUT.format(instruction="a"), "### Instruction:\nc", "f: "]
    assert [request.prompt for request in task.requests()] == asked
    assert [(row.prompt, row.response) for row in task.reference_examples()] == list(zip(asked, "bdg", strict=True))
    scores = task.score({"one": dict(zip((r.key for r in task.requests()), "beh", strict=True))}, tmp_path, False)
    assert set(scores["one"].values["rouge_l"].values()) == {100.0}


def test_codem_leaves_out_rows_without_output(tmp_path: Path) -> None:
    """CodeAlpaca has two of them; there is nothing to learn from."""
    rows = [{"instruction": str(i), "output": output} for i, output in enumerate(["x", "", "y"])]
    write(tmp_path / "codem/train.jsonl", *rows)
    examples = made("codem", tmp_path).training_examples()
    assert [example.id for example in examples] == ["codem/train/0", "codem/train/2"]


def test_codem_scores_each_benchmark_with_statuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Columns are base and plus of each benchmark; a timeout fails, and is kept as one."""
    problem = json.loads((samples_folder() / "codem/test.jsonl").read_text().splitlines()[0])
    write(tmp_path / "codem/test.jsonl", problem | {"task_id": "HumanEval/0"}, problem | {"task_id": "HumanEval/1"})
    write(tmp_path / "codem/mbpp_test.jsonl", problem | {"task_id": "Mbpp/2"})
    task = made("codem", tmp_path, benchmarks=("humaneval", "mbpp"))
    assert [(m.name, m.headline) for m in task.metrics] == [
        ("humaneval", False),
        ("humaneval_plus", True),
        ("mbpp", False),
        ("mbpp_plus", True),
    ]
    said = {"HumanEval/0": ("pass", "timeout"), "HumanEval/1": ("pass", "pass"), "Mbpp/2": ("fail", "fail")}
    monkeypatch.setattr(code, "evaluate", judge(lambda solution: said[solution.task_id]))
    scores = task.score({"one": dict.fromkeys(said, "")}, tmp_path, False)["one"]
    assert scores.values == {
        "humaneval": {"HumanEval/0": 100.0, "HumanEval/1": 100.0},
        "humaneval_plus": {"HumanEval/0": 0.0, "HumanEval/1": 100.0},
        "mbpp": {"Mbpp/2": 0.0},
        "mbpp_plus": {"Mbpp/2": 0.0},
    }
    assert scores.details["statuses"]["humaneval_plus"] == {"HumanEval/0": "timeout", "HumanEval/1": "pass"}
    assert json.loads(json.dumps(scores.details)) == scores.details


def test_codem_samples_give_pass_at_k(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 programs 1 passes: pass@1 is 1/4; two drawn of them hold it in 3 of 6 cases."""
    task = made("codem", test_items=2, samples=4, pass_at=(1, 2))
    requests = task.requests()
    assert len({request.key for request in requests}) == 8  # each draws for itself
    assert {request.seed for request in requests} == {10}
    assert {request.seed for request in made("codem").requests()} == {None}  # greedy
    assert len({request.prompt for request in requests}) == 2
    assert (task.samples_answers, made("codem").samples_answers) == (True, False)
    assert [metric.name for metric in task.metrics] == [
        "humaneval",
        "humaneval_pass_at_2",
        "humaneval_plus",
        "humaneval_plus_pass_at_2",
    ]
    good = requests[1].id
    answers = {request.key: f"    return {'right' if request.id == good else 'wrong'}" for request in requests}
    monkeypatch.setattr(
        code, "evaluate", judge(lambda s: ("pass", "pass") if "return right" in s.code else ("fail", "fail"))
    )
    scores = task.score({"one": answers}, Path(), False)["one"]
    first, second = (request.id.partition("#")[0] for request in (requests[0], requests[4]))
    assert scores.values["humaneval"] == {first: 25.0, second: 0.0}
    assert scores.values["humaneval_plus_pass_at_2"] == {first: 50.0, second: 0.0}
    assert scores.details["statuses"]["humaneval"][good] == "pass"


def test_problems_that_no_program_passes_alone_are_no_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HumanEval/32 fails in this version of EvalPlus whatever is answered: beside others a 0, alone no number."""
    problem = json.loads((samples_folder() / "codem/test.jsonl").read_text().splitlines()[0])
    write(tmp_path / "codem/test.jsonl", problem | {"task_id": "HumanEval/32"}, problem | {"task_id": "HumanEval/33"})
    monkeypatch.setattr(code, "evaluate", judge(lambda solution: ("fail", "fail")))
    answers = {"one": {"HumanEval/32": "", "HumanEval/33": ""}}
    for items, expected in ((1, {}), (2, {"HumanEval/32": 0.0, "HumanEval/33": 0.0})):
        task = made("codem", tmp_path, test_items=items)
        assert task.score(answers, tmp_path, False)["one"].values == {"humaneval": expected, "humaneval_plus": expected}


def judge(verdict: Callable[[Solution], tuple[Any, Any]]) -> Callable[..., list[Verdict]]:
    """In place of an evaluation."""
    return lambda path, solutions, **_: [Verdict(s.owner, s.task_id, *verdict(s)) for s in solutions]


@pytest.mark.parametrize(
    ("available", "unsafe", "warned", "ran_in"),
    [
        (True, True, "", "bubblewrap 1"),  # the flag never switches off a sandbox that works
        (False, True, "without a sandbox (--unsafe-execution)", "no sandbox"),
        (False, False, "generated code will not be run: forbidden here", None),
    ],
)
def test_codem_says_where_code_runs(
    monkeypatch: pytest.MonkeyPatch, available: bool, unsafe: bool, warned: str, ran_in: str | None
) -> None:
    status = SandboxStatus(available, Path("bwrap"), "bubblewrap 1", "" if available else "forbidden here")
    monkeypatch.setattr(sandbox, "probe", lambda: status)
    task = made("codem", test_items=1)
    assert warned in " ".join(task.warnings(unsafe))
    assert bool(task.warnings(unsafe)) == bool(warned)
    answers = {"one": {request.id: "" for request in task.requests()}}
    if ran_in is None:
        with pytest.raises(SandboxUnavailable):
            task.score(answers, Path(), unsafe)
        return
    monkeypatch.setattr(code, "evaluate", judge(lambda solution: ("fail", "fail")))
    scores = task.score(answers, Path(), unsafe)["one"]
    assert scores.details["ran_in"] == ran_in
    assert ("without a sandbox" in scores.caveat) == bool(warned)


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("dolly", {"test_items": 7}, ["ROUGE-L", "7 items", "sampling at T=1, seed 10", "256 new tokens"]),
        ("dolly", {"decoding": "greedy", "new_tokens": 9}, ["greedy", "9 new tokens", "at its end after 256 tokens"]),
        ("dolly", {"sampling_seeds": (10, 20)}, ["mean over the seeds 10, 20"]),
        ("dolly", {"prompt_tokens": 99}, ["cut at its end after 99 tokens"]),
        ("dolly", {"prompt_tokens": None}, ["never cut", "BOS before it where a tokenizer puts one"]),
        ("dolly", {"bos": False}, ["no BOS before it, nor in training"]),
        ("dolly", {"sets": ALL_SETS, "test_items": 7}, ["Dolly 7 items", "UnNI (unni", "of the references of Dolly"]),
        ("gsm8k", {"test_items": 7}, ["lm-eval", "gsm8k 3", "5-shot (seed 1234)", "7 items", "as lm-eval asks"]),
        ("gsm8k", {"template": "bare", "few_shot": 0}, ["0-shot", "the bare question"]),
        ("codem", {"test_items": 7}, ["EvalPlus 0.3", "humaneval", "greedy", "7 problems", "768 new", "mismatch"]),
        ("codem", {"prompt": "alpaca"}, ["inside the Alpaca prompt"]),
        ("countdown", {"operators": "+-", "seed": 3}, ["3 generated", "3 or 4 numbers up to 99", "+ -, seed 3", "256"]),
        ("codem", {"samples": 5, "pass_at": (1, 5)}, ["pass@1, pass@5", "5 samples at T=1, seed 10", "unbiased"]),
    ],
)  # fmt: skip
def test_protocol_lines_say_how_numbers_are_made(name: str, settings: dict[str, Any], words: list[str]) -> None:
    text = " ".join(made(name, **settings).protocol())
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dolly", {"sets": ("dolly", "vicuna")}), ("dolly", {"sampling_seeds": (10, 20)}),
        ("dolly", {"decoding": "greedy"}), ("dolly", {"prompt_tokens": 99}), ("dolly", {"prompt_tokens": None}),
        ("dolly", {"sets": ("dolly", "unni"), "unni_items": 7}), ("gsm8k", {"few_shot": 4}),
        ("gsm8k", {"few_shot_seed": 1}), ("gsm8k", {"template": "bare"}), ("countdown", {"seed": 1}),
        ("dolly", {"bos": False}),
    ],
)  # fmt: skip
def test_an_option_of_a_protocol_is_part_of_the_identity_and_is_printed(name: str, settings: dict[str, Any]) -> None:
    """But for the size of a set that is not there: its absence is what is printed."""
    task, other = made(name), made(name, **settings)
    assert other.identity() != task.identity()
    assert other.protocol() != task.protocol()


def test_prompts_of_dolly_can_do_without_bos_everywhere() -> None:
    for bos in (True, False):
        task = made("dolly", bos=bos, train_items=2, test_items=2)
        rows = [*task.training_examples(), *task.reference_examples(), *task.requests()]
        assert {row.bos for row in rows} == {bos}
    assert made("dolly", bos=False).training_identity() != made("dolly").training_identity()


def test_sampling_seeds_do_not_count_where_nothing_is_sampled() -> None:
    greedy = made("dolly", decoding="greedy")
    assert greedy.identity() == made("dolly", decoding="greedy", sampling_seeds=(1, 2)).identity()


def test_few_shot_examples_make_the_training_file_part_of_the_test() -> None:
    train = sha256_file(samples_folder() / "gsm8k/train.jsonl")
    assert train in made("gsm8k").test_digests()
    assert train not in made("gsm8k", few_shot=0).test_digests()


# --- Bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2: found '{'"),
        ("[1]", "line 2: found a JSON list; expected a JSON object"),
        ({"output": "b"}, "line 2, field 'instruction': found no such field (there are output)"),
        ({"instruction": 1, "output": "b"}, "line 2, field 'instruction': found 1; expected a text"),
        ({"instruction": "a", "output": {}}, "line 2, field 'output': found {}; expected a text"),
        (
            {"prompt": "a"},
            "line 2, field 'output': found no such field (there are prompt); expected one in every row. ",
        ),
        ({"prefix": "a", "text": None}, "line 2, field 'text': found None; expected a text. Rows hold"),
        ({"instruction": "a", "input": math.nan, "output": "b"}, "line 2, field 'input': found nan; expected a text"),
        (
            {"instruction": "a", "input": ["ctx"], "output": "b"},
            "line 2, field 'input': found ['ctx']; expected a text",
        ),
        ({"instruction": "a", "input": "\ud83d!", "output": "b"}, "line 2, field 'input': found half a character, "),
        (
            {"instruction": "a", "output": "b\udc00"},
            r"line 2, field 'output': found half a character, '\udc00', at place 1",
        ),
        ({"prompt": "\udc00", "output": "b"}, r"line 2, field 'prompt': found half a character, '\udc00', at place 0"),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "line 2, field 'instruction': found no such field (there are ",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: Any, words: str) -> None:
    """To train on and to test on alike: a NaN was the word nan, a list its Python, half a character a traceback."""
    root, good = tmp_path / "data", {"instruction": "a", "output": "b"}
    for split, call in (("train", "training_examples"), ("test", "reference_examples")):
        path = write(root / f"dolly/{split}.jsonl", good, row)
        with pytest.raises(HarnessError) as error:
            getattr(made("dolly", root), call)()
        assert f"{path} {words}" in str(error.value)
    write(root / "gsm8k/train.jsonl", {"question": "\ud83d?", "answer": "#### 1"})
    with pytest.raises(HarnessError, match="half a character"):
        made("gsm8k", root).training_examples()


def test_a_list_of_references_is_nothing_to_train_on(tmp_path: Path) -> None:
    path = write(tmp_path / "dolly/train.jsonl", {"instruction": "a", "output": ["b"]})
    with pytest.raises(HarnessError, match=re.escape(f"{path} line 1, field 'output': found ['b']; expected a text")):
        made("dolly", tmp_path).training_examples()


@pytest.mark.parametrize("output", [[], [""], ["a", ""], ""])
def test_a_test_row_without_reference_is_named(tmp_path: Path, output: Any) -> None:
    path = write(tmp_path / "dolly/test.jsonl", {"instruction": "a", "output": output})
    with pytest.raises(HarnessError) as error:
        made("dolly", tmp_path).requests()
    assert str(error.value).startswith(f"{path} line 1, field 'output': found {output!r}")


def test_what_a_run_refuses_is_not_counted(harness: Command, tmp_path: Path) -> None:
    """`harness data` counted rows of messages, which no run reads."""
    root = copy_to_change(samples_folder(), tmp_path / "data")
    path = write(root / "dolly/train.jsonl", {"messages": [{"role": "user", "content": "a"}]})
    said = f"{path} line 1, field 'instruction': found no such field (there are messages)"
    fields = ["recipe=quickstart", f"data.root={root}", "tasks=[dolly]", "methods=[sft]"]
    assert said in harness("run", *fields, "--runs", tmp_path / "runs").err
    listed = harness("data", *fields)
    assert "field'instruction':foundnosuchfield(therearemessages)" in "".join(re.sub("[│|]", "", listed.out).split())


@pytest.mark.parametrize("name", [name for name, task in tasks().items() if task.train_files])
def test_missing_data_says_which_files_and_what_to_do(tmp_path: Path, name: str) -> None:
    task = made(name, tmp_path)
    for call in (task.training_examples, task.reference_examples, task.test_digests):
        with pytest.raises(HarnessError, match=r"Set data\.root to the folder that holds it") as error:
            call()
        assert str(tmp_path) in str(error.value)


def test_a_row_behind_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"a": 1}, "{")
    assert len(read_rows(path, limit=1)) == 1


def test_gzip_is_read_and_a_cut_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    path.write_bytes(whole)
    assert len(read_rows(path)) == 1000
    for content in (whole[:-9], b"no gzip", whole[:12] + b"\x00" * 30):
        path.write_bytes(content)
        with pytest.raises(HarnessError, match="can't be read"):
            read_rows(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"\n\n"])
def test_a_file_without_rows_or_of_other_bytes_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(HarnessError) as error:
        read_rows(path)
    assert error.value.where == str(path)


# --- Real data --------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "settings", "train", "test"),
    [
        ("dolly", {}, 5005, 500),
        ("dolly", {"sets": ALL_SETS}, 5005, 500),
        ("gsm8k", {}, 7473, 1319),
        ("codem", {"benchmarks": ("humaneval", "mbpp")}, 2015, 164 + 378),
    ],
)
def test_real_data_sets_load(shared_data: Path, name: str, settings: dict[str, Any], train: int, test: int) -> None:
    task = made(name, shared_data, **settings)
    assert len(task.training_examples()) == train
    assert len(task.reference_examples()) == test
    assert all(example.response.strip() for example in [*task.training_examples(), *task.reference_examples()])
    said = ["164 problems, of which 163 can be passed (HumanEval/32", "378 can be passed (Mbpp/255", "0.997)"]
    protocol = " ".join(task.protocol())
    assert [words for words in (said if name == "codem" else [str(test)]) if words not in protocol] == []


@pytest.mark.shared_data
def test_our_dolly_prompts_are_those_that_dskds_files_carry(shared_data: Path) -> None:
    task = made("dolly", shared_data, sets=ALL_SETS, decoding="greedy")
    carried = [json.loads(line)["prompt"] for line in task.train_file.read_text().splitlines()]
    assert [example.prompt for example in task.training_examples()] == carried
    files = ("dolly/valid", "selfinst/valid", "vicuna/valid", "sinst/valid_11_")
    lines = [line for name in files for line in (shared_data / f"{name}.jsonl").read_text().splitlines()]
    assert [request.prompt for request in task.requests()] == [json.loads(line)["prompt"] for line in lines]
    sizes = " ".join(task.protocol())
    # of SelfInst's 242 one has no word that rouge-score finds in its reference, which is "- 😌😊"
    assert all(words in sizes for words in ("Dolly 500 items", "SelfInst 241", "Vicuna 80", "S-NI 1694", "UnNI ("))
    assert "every answer would get 0 (DSKD counts such items as 0): selfinst/147." in sizes
