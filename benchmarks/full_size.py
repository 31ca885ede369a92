"""Optimiser steps of a recipe's methods at full size with random weights: seconds a step, peak memory, beside the plan.

    python benchmarks/full_size.py phi_qwen_all --tokenizers FOLDER [--steps 20] [--narrow] ['methods=[cdm]' ...]

One GPU; no download: shapes are those of harness/architectures.yaml, tokenizers stand in: FOLDER holds qwen3.json,
llama2.json, llama3.json and gemma3.json, those that the recipe needs (tests/stand_ins.py). Rows are GSM8K's, the
project's samples unless data.root says otherwise. Each method trains a fresh student; teacher rows are made first where
a method reads stored ones. With random weights losses mean nothing; times and memory do.
--narrow: 2 layers, 32 wide, to try the script on a CPU; train.batch_size=4 and warm_start.batch_size=4 make it short.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import machine, markdown, parsed, reset_peak, write
from transformers import AutoModelForCausalLM

from harness.base.device import compute_dtype, device
from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.templates import TextSide
from harness.data.terms import Term, align
from harness.data.tokens import STUDENT, TokenizedExample, tokenize
from harness.models.heads import Head
from harness.plan.builder import make_plan
from harness.plan.costs.devices import DEVICES, GIB
from harness.plan.costs.stages import Coster
from harness.plan.stages import Plan, Stage, order_seed
from harness.recipe.load import load_recipe
from harness.training.distil import TeacherSources, distil, pad_ids
from harness.training.late_log import reading_at_once
from harness.training.objective import Objective
from methods.library.vocabulary import TokenizerPair

sys.path.append(str(Path(__file__).parents[1]))
from tests.stand_ins import config_of, tokenizer_of


class Bench:
    """Models and rows of a recipe, made when they are asked for; one teacher at a time."""

    def __init__(self, plan: Plan, tokenizers: Path, narrow: bool, work: Path, steps: int) -> None:
        self.plan, self.recipe, self.narrow, self.work, self.steps = plan, plan.recipe, narrow, work, steps
        self.specs = self.recipe.models_by_role()
        made = {role: tokenizer_of(spec.model, tokenizers) for role, spec in self.specs.items()}
        self.sides = {role: TextSide(each, template="plain", name=role) for role, each in made.items()}
        rows = plan.tasks["gsm8k"].training_examples()[: steps * self.recipe.train.batch_size]
        self.examples: list[TokenizedExample] = tokenize(rows, self.sides, self.recipe.limits.length, "drop")
        self.rows: dict[str, tuple[StoredRows, Head]] = {}
        student = self.sides[STUDENT].vocabulary
        self.pairs = {role: TokenizerPair(student, side.vocabulary, work / "maps") for role, side in self.sides.items()}

    def model(self, role: str, dtype: str) -> Any:
        """A random model of the recipe's shape."""
        config = config_of(self.specs[role].model, self.sides[role].tokenizer, self.narrow)
        torch.manual_seed(0)
        with torch.device(device()):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=self.specs[role].attention, dtype=getattr(torch, dtype)
            )

    def embeddings(self, role: str) -> Any:
        """The input embeddings of a teacher, which is made again for them."""
        return self.model(role, "float32").get_input_embeddings()

    def stored(self, role: str) -> tuple[StoredRows, Head]:
        """Rows of a teacher and its head; the rest of it is gone."""
        if role not in self.rows:
            model, folder = self.model(role, compute_dtype(self.recipe.teacher.precision)), self.work / role
            folder.mkdir(exist_ok=True)
            store_rows(model, role, self.examples, folder, pad=pad_ids(self.sides)[role])
            self.rows[role] = StoredRows(folder), Head.of(model).alone(partial(self.embeddings, role))
        return self.rows[role]

    def teachers(self, stage: Stage, roles: tuple[str, ...]) -> TeacherSources:
        """Stored rows where the stage reads them, else live models."""
        given = TeacherSources()
        for role in roles:
            if stage.inputs[role].kind == "rows":
                given.stored[role], given.heads[role] = self.stored(role)
            else:
                given.live[role] = self.model(role, compute_dtype(self.recipe.teacher.precision))
        return given

    def run(self, stage: Stage) -> dict[str, float]:
        """Seconds a step, the first left out, and peak bytes of a GPU, of a student's training."""
        objective = stage.objective
        assert objective is not None
        assert stage.training is not None
        reset_peak(device().type)  # before a live teacher is made: the training before may still hold memory
        teachers = self.teachers(stage, objective.roles)
        terms: list[Term] = []
        for part in objective.taught:
            part.method.prepare(self.pairs[part.role])
            terms.append(Term(part.method, part.role, part.weight))
        student = self.model(STUDENT, "float32")
        reset_peak(device().type)  # what making the teachers' rows took does not count
        ends: list[float] = []
        with tempfile.TemporaryDirectory(dir=self.work) as folder, reading_at_once():
            distil(
                student,
                Objective(stage.title, objective.ce_weight, tuple(terms)),
                teachers,
                [align(example, terms) for example in self.examples],
                stage.training.model_copy(update={"checkpoint_every": None}),
                sides=self.sides,
                max_length=self.recipe.limits.length,
                steps=self.steps,
                seed=order_seed(stage),
                work=Path(folder),
                on_step=lambda step: ends.append(time.perf_counter()),
            )
        found = {"seconds": (ends[-1] - ends[0]) / (len(ends) - 1)}
        return found | ({"bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="of the recipe, as `harness run` takes them")
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder of qwen3.json, llama2.json and so on")
    parser.add_argument("--steps", type=int, default=20, help="of each method, 2 at least: the first is not timed")
    parser.add_argument("--narrow", action="store_true", help="2 layers, 32 wide")
    arguments = parsed(parser, named=("recipe", "tokenizers"))
    if arguments.steps < 2:
        parser.error(f"--steps: found {arguments.steps}; expected 2 at least, since the first is not timed")
    arguments.device = device().type
    first = ["data.root=", "tasks=[gsm8k]", "seeds=[0]"]
    plan = make_plan(load_recipe(arguments.recipe, [*first, *arguments.overrides]))
    print(f"{machine(arguments.device)}; {arguments.recipe}, {arguments.steps} steps, random weights\n")
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(plan, arguments.tokenizers, arguments.narrow, Path(work), arguments.steps)
        rows = measured(bench, Coster(plan))
    planned = f"planned, {DEVICES[0].name}"
    columns = ["method", "s a step", planned, "peak GiB", planned]
    print(markdown(columns, [[row.get(key) for key in KEYS] for row in rows]))
    values = {"recipe": arguments.recipe, "steps": arguments.steps, "methods": rows}
    print(f"\nnumbers: {write(arguments, f'full-size-{Path(arguments.recipe).stem}-{arguments.device}', values)}")
    if any("error" in row for row in rows):
        sys.exit(1)


KEYS = ("method", "seconds", "planned seconds", "peak GiB", "planned GiB")


def measured(bench: Bench, coster: Coster) -> list[dict[str, Any]]:
    """What each method takes beside what its plan says; where it fails, such as for memory, the reason."""
    rows = []
    for cell in bench.plan.cells:
        name, planned = cell.objective.name, coster.cost(cell.student)
        row: dict[str, Any] = {
            "method": name,
            "planned seconds": planned.seconds(DEVICES[0]) / cell.student.steps,
            "planned GiB": planned.memory / GIB,
        }
        try:
            row |= bench.run(cell.student)
        except Exception as error:  # the other methods' numbers are not lost over it
            traceback.print_exc()
            row |= {"method": f"{name}: failed", "error": f"{type(error).__name__}: {error}"}
        if "bytes" in row:
            row["peak GiB"] = row["bytes"] / GIB
        print(f"{row['method']}: {row.get('seconds', 0):.2f} s a step", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
