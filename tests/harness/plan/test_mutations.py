"""One token changed in one place that decides a result: every stage that it can reach is new, and no other.

Places are found by their text, wherever it stands. What each can reach is written here by hand.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.base.code_closure import OWN_PACKAGES as PACKAGES
from harness.base.code_closure import Sources, own_sources
from harness.plan.builder import make_plan
from harness.plan.stages import Stage
from harness.recipe.load import validate
from tests.copies import copy_to_change

NONE: set[str] = set()
SCORES = {"scores"}
ANSWERS = {"answers", "scores"}
BITS = {"bits"}
CELL = {"student", "answers", "scores", "bits"}
ROWS = CELL | {"rows"}
ALL = ROWS | {"teacher", "warm_start"}

TASKS = {"dolly", "gsm8k", "codem", "countdown"}
SAME, CROSS = {"fkd", "rkd"}, {"uld", "mined", "one_to_one", "cdm", "gold", "sampled"}
METHODS = {"sft", "control"} | SAME | CROSS
FEW = {"sft", "sampled"}
Stages = dict[tuple[str, str, str], Stage]  # by kind, title and task


@dataclass(frozen=True)
class Place:
    """A piece of code, what it becomes, and what is new then.

    Attributes:
        old: stands once in all files.
        kinds: of the stages that are new.
        tasks: whose.
        methods: whose students are new, where students are.
    """

    old: str
    new: str
    kinds: set[str]
    tasks: set[str] = field(default_factory=lambda: TASKS)
    methods: set[str] = field(default_factory=lambda: METHODS)


DOLLY, GSM8K, CODEM, COUNTDOWN = {"dolly"}, {"gsm8k"}, {"codem"}, {"countdown"}
PLACES = [
    # seeds and orders
    Place('.digest()[:4], "big") >> 1', '.digest()[:4], "big") >> 2', ALL),
    Place('seed_of("order", stage.task, phase', 'seed_of("orders", stage.task, phase', ALL),
    Place('"distillation" if "start" in stage.inputs', '"distilling" if "start" in stage.inputs', ALL),
    Place('seed_of("bucket", self.seed, self.epoch)', 'seed_of("bucket", self.epoch, self.seed)', ALL),
    Place("POOL = 50", "POOL = 51", ALL),
    Place('seed_of("sampling", item, seed)', 'seed_of("sampled", item, seed)', CELL, methods={"sampled"}),
    Place('seed_of("rollout", self.seed, step, micro_batch) <', 'seed_of("rollout", self.seed, step, micro_batch) <=',
          CELL, methods={"sampled"}),
    # weights and normalisation
    Place("part.role or STUDENT, part.weight)", "part.role or STUDENT, 3 * part.weight)", CELL),
    Place("Objective(stage.title, asked.ce_weight, terms,", "Objective(stage.title, 2 * asked.ce_weight, terms,", CELL),
    Place("1 / MOST <= found <= MOST", "1 / MOST <= found < MOST", ALL),
    Place("return term.weight / self.divisors[1 + k]", "return term.weight / self.divisors[k]", ALL),
    Place("rows = slice(first - self.first + part.start", "rows = slice(first + part.start", ALL),
    Place("self.objective.ce_weight / self.divisors[0], dt", "self.objective.ce_weight * self.divisors[0], dt", ALL),
    Place("return [max(known[place], 1.0) for place in places]", "return [max(known[place], 2.0) for place in places]",
          ALL),
    Place("loss = parts.loss * self.accelerator.num_processes", "loss = parts.loss", ALL),
    # masks, cuts, rows
    Place("np.full(stop - start, -100, dtype=np.int64)", "np.full(stop - start, 0, dtype=np.int64)", ALL),
    Place("room = {role: max_length - prompt.size - 1 for", "room = {role: max_length - prompt.size for", ALL),
    Place("np.append(response, eos[role])", "np.append(response, eos[role] + 1)", ALL),
    Place("return 0, side.length", "return 1, side.length", ALL),
    Place("allowed[starts] = True", "allowed[starts] = False", ALL),
    Place("mask[row, : side.length] = 1", "mask[row, : side.length] = 0", ROWS, methods=SAME | CROSS - {"sampled"}),
    Place("LONGEST = 200", "LONGEST = 201", ROWS),  # which held-out responses have rows, and are traced
    # templates and tokens
    Place("TEMPLATE_DATE = date(2024, 7, 26)", "TEMPLATE_DATE = date(2024, 7, 27)", ALL),
    Place("prompt[len(self.bos) :] if self.template", "prompt[1 :] if self.template", ALL),
    Place('_SPACE = "▁"', '_SPACE = "_"', ALL),
    Place("spelling = source.token_bytes[index]", "spelling = source.token_bytes[index - 1]", CELL,
          methods={"mined", "cdm"}),
    # models
    Place("(2 * i * (total - 1) + gaps) // (2 * gaps)", "(2 * i * (total - 1)) // (2 * gaps)", ALL),
    Place("lora_alpha=lora.alpha", "lora_alpha=lora.rank", ROWS | {"teacher"}, methods=SAME | CROSS),
    Place("self.soft_cap * torch.tanh(logits / self.soft_cap)", "torch.tanh(logits / self.soft_cap)", ALL),
    # losses
    Place("value = -softmax.log_probs_at(rows", "value = softmax.log_probs_at(rows", ALL),
    Place("gradient[target] -= np.float32(total)", "gradient[target] += np.float32(total)", ALL),
    Place("np.float64(top - logits[row, target])", "np.float64(top + logits[row, target])", ALL),
    Place("r = x * _TWOS - n", "r = x * _TWOS + n", ALL),
    Place("return temperature**2 * value, gradient", "return temperature * value, gradient", CELL,
          methods=SAME | {"one_to_one"}),
    Place('"forward" if self._released else "reverse"', '"forward" if self._released else "forward"', CELL,
          methods={"rkd"}),
    Place('kept = slice(-1 if self._released else None)', 'kept = slice(-2 if self._released else None)', CELL,
          methods={"gold", "sampled"}),
    Place(
        "-> Groups:\n        return group_bytes(response.student_ends, response.teacher_ends).only_one_to_one()",
        "-> Groups:\n        return group_bytes(response.student_ends, response.teacher_ends)",
        CELL,
        methods={"one_to_one"},
    ),
    Place("mapped[index] = theirs.get(spelling, UNMAPPED)", "mapped[index] = theirs.get(spelling, 0)", CELL,
          methods={"one_to_one", "mined", "cdm", "gold", "sampled"}),
    Place('1, place, reaching, "amax"', '1, place, reaching, "amin"', CELL, methods={"mined"}),
    Place("return distance, signs, 2 * least", "return distance, signs, least", CELL,
          methods={"uld", "gold", "sampled"}),
    Place("self._realised.clamp_min(LOG_FLOOR).mul_(", "self._realised.mul_(", CELL,
          methods={"uld", "gold", "sampled"}),
    Place("ahead[k] >= held[1, k]", "ahead[k] > held[1, k]", CELL, methods={"uld", "gold", "sampled"}),
    Place("gradient[k] - factor * made[k]", "gradient[k] + factor * made[k]", CELL, methods={"uld", "gold", "sampled"}),
    Place("row[columns[column]] += given[column]", "row[columns[column]] -= given[column]", CELL,
          methods={"uld", "gold", "sampled"}),
    # prompts
    Place('_PREAMBLE = "Below is an instruction that describes a task"', '_PREAMBLE = "Below is a task"', ALL,
          DOLLY | CODEM),
    Place('f"Reach {problem.target} with the numbers', 'f"Make {problem.target} with the numbers', ALL, COUNTDOWN),
    Place("f\"Question: {row['question']}\\nAnswer:\"", "f\"Q: {row['question']}\\nAnswer:\"", ALL, GSM8K),
    Place('("<|endoftext|>",),', '("<|end|>",),', ANSWERS, DOLLY),
    # answers
    Place("return prompt[: request.prompt_tokens]", "return prompt[-request.prompt_tokens :]", ANSWERS),
    Place("noise = -torch.log(-torch.log(", "noise = torch.log(-torch.log(", CELL, methods={"sampled"}),
    Place("scores[:, self.size :] = -torch.inf", "scores[:, self.size :] = 0", CELL, methods={"sampled"}),
    # which maker is handed what
    Place("return make_teacher(stage, folder, self.tools", "return make_warm_start(stage, folder, self.tools",
          ROWS | {"teacher"}, methods=SAME | CROSS),
    Place("bench.signal\n        return make_rows", "bench.signal_\n        return make_rows", ROWS,
          methods=SAME | CROSS - {"sampled"}),
    Place("traced = stage.seed == self.plan", "traced = stage.seed != self.plan", CELL),
    Place("bench.prompts, bench.published", "bench.texts, bench.published", ANSWERS),
    Place("return make_bits(stage, folder, bench.texts", "return make_bits(stage, folder, bench.prompts", BITS),
    # scores
    Place('RougeScorer(["rougeL"], tokenizer', 'RougeScorer(["rouge2"], tokenizer', SCORES, DOLLY),
    Place('END_OF_TEXT = "<|endoftext|>"', 'END_OF_TEXT = "</s>"', SCORES, DOLLY),
    Place('return "right" if value == target else', 'return "right" if value >= target else', SCORES, COUNTDOWN),
    Place("100 * item.scores[\"strict_match\"]", "100 * item.scores[\"flexible_extract\"]", SCORES, GSM8K),
    Place('passed[_task_id(item)] += said == "pass"', 'passed[_task_id(item)] += said != "fail"', SCORES, CODEM),
    Place("fast_check=True, min_time_limit=60.0", "fast_check=True, min_time_limit=6.0", SCORES, CODEM),
    Place("[values[:-1].sum() for values in torch.split", "[values.sum() for values in torch.split", BITS),
    # what decides nothing here: other engines and formats, costs, words
    Place("MEMORY_SHARE = 0.8", "MEMORY_SHARE = 0.7", NONE),
    Place('"scores": 0.5,', '"scores": 0.6,', NONE),
    Place('"optimiser steps; wins over epochs"', '"steps of the optimiser; wins over epochs"', NONE),
]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, without data."""
    root = tmp_path_factory.mktemp("code")
    for package in PACKAGES:
        copy_to_change(own_sources().root / package, root / package, "*.jsonl", "*.pyc")
    return root


@pytest.fixture(scope="module")
def texts(scratch: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in sorted(scratch.rglob("*.py"))}


@pytest.fixture
def planned(tiny_recipe: dict[str, Any]) -> Callable[[Sources], Stages]:
    """Stages of all tasks with few methods, and of one task with all."""
    made = []
    for tasks, methods in ((TASKS, FEW), (DOLLY, METHODS)):
        fields = copy.deepcopy(tiny_recipe) | {"name": "tiny", "tasks": sorted(tasks), "methods": sorted(methods)}
        fields |= {"variants": {"sampled": {"method": "gold", "rollout_share": 0.5}}}
        fields |= {"countdown": {"train_items": 8, "test_items": 4}, "evaluation": {"references": ["untrained"]}}
        recipe = validate("tiny", fields)
        made.append((recipe, make_plan(recipe).tasks))

    def stages(sources: Sources) -> Stages:
        found = (stage for recipe, tasks in made for stage in make_plan(recipe, tasks, sources).stages())
        return {(stage.kind, stage.title, stage.task): stage for stage in found}

    return stages


class _Changed:
    """Code with one file changed, for as long as the block lasts."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def __enter__(self) -> Sources:
        self.before, self.state = self.path.read_bytes(), self.path.stat()
        self.path.write_text(self.text, encoding="utf-8")
        root = next(folder.parent for folder in self.path.parents if folder.name in PACKAGES)
        return Sources(root, PACKAGES)

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.before)
        os.utime(self.path, ns=(self.state.st_atime_ns, self.state.st_mtime_ns))


def place_of(place: Place, texts: dict[Path, str]) -> Path:
    found = [path for path, text in texts.items() if place.old in text]
    assert len(found) == 1, f"{place.old!r} stands in {len(found)} files: {found}"
    assert texts[found[0]].count(place.old) == 1
    return found[0]


def expected(place: Place) -> tuple[set[str], set[str], set[str]]:
    """Kinds of what is new, its tasks and its methods, among those of :func:`planned`."""
    if not place.kinds:
        return set(), set(), set()
    tasks = place.tasks if place.methods & FEW else place.tasks & DOLLY
    methods = place.methods if "dolly" in tasks else place.methods & FEW
    kinds = place.kinds if "dolly" in tasks else place.kinds - {"rows"}  # which those few do not read
    return kinds, tasks, methods if "student" in place.kinds else set()


@pytest.mark.parametrize("places", [PLACES[::4], pytest.param(PLACES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_one_token_makes_what_it_can_reach_new_and_nothing_else(
    places: list[Place],
    scratch: Path,
    texts: dict[Path, str],
    planned: Callable[[Sources], Stages],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = planned(Sources(scratch, PACKAGES))
    assert {stage.kind for stage in before.values()} == ALL
    lines, wrong = [], []
    found = {place.old: place_of(place, texts) for place in PLACES}
    for place in places:
        path = found[place.old]
        with _Changed(path, texts[path].replace(place.old, place.new)) as sources:
            after = planned(sources)
        new = [after[key] for key in after if after[key].identity != before[key].identity]
        kinds, tasks = {stage.kind for stage in new}, {stage.task for stage in new}
        methods = {stage.objective.label for stage in new if stage.kind == "student" and stage.objective}
        where = path.relative_to(scratch).as_posix()
        lines.append(f"{where:44} {place.old.strip()[:48]:48} {', '.join(sorted(kinds)) or '-':60} {len(new)}")
        if (kinds, tasks, methods) != expected(place):
            wrong.append(f"{where} {place.old!r}: {sorted(kinds)} {sorted(tasks)} {sorted(methods)}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert not wrong, "\n".join(wrong)
