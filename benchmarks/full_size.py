"""Optimiser steps of a recipe's methods at full size with random weights: seconds a step, peak memory, beside the plan.

    python benchmarks/full_size.py phi_qwen_all --tokenizers FOLDER [--steps 20] [--narrow] ['methods=[cdm]' ...]

One GPU; no download: shapes are those of harness/architectures.yaml, tokenizers stand in (tests/stand_ins.py). Rows
are GSM8K's, the project's samples unless data.root says otherwise. Each method trains a fresh student; teacher rows are
made first where a method reads stored ones. With random weights losses mean nothing; times and memory do.
--narrow: 2 layers, 32 wide, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from harness.batches import Collator, Term, align
from harness.costs import DEVICES, GIB, Coster
from harness.device import compute_dtype, device
from harness.heads import Head
from harness.loss import Distiller, Objective
from harness.plan import Plan, Stage, make_plan
from harness.recipe import load_recipe
from harness.rollouts import Rollouts, RolloutSettings
from harness.teacher import StoredRows, store_rows
from harness.tokens import STUDENT, TextSide, TokenizedExample, tokenize
from harness.train import train
from methods.base import Start
from methods.vocabulary import TokenizerPair
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

    def model(self, role: str, dtype: str) -> Any:
        """A random model of the recipe's shape."""
        config = config_of(self.specs[role].model, self.sides[role].tokenizer, self.narrow)
        torch.manual_seed(0)
        with torch.device(device()):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=self.specs[role].attention, dtype=getattr(torch, dtype)
            )

    def stored(self, role: str) -> tuple[StoredRows, Head]:
        """Rows of a teacher and its head; the rest of it is gone."""
        if role not in self.rows:
            model, folder = self.model(role, compute_dtype(self.recipe.teacher.precision)), self.work / role
            folder.mkdir()
            store_rows(model, role, self.examples, folder, pad=self.sides[role].tokenizer.pad_token_id)
            self.rows[role] = StoredRows(folder), Head.of(model)
        return self.rows[role]

    def run(self, stage: Stage) -> tuple[float, int]:
        """Seconds a step, the first left out, and peak bytes, of a student's training."""
        objective = stage.objective
        assert objective is not None
        training = self.recipe.train if objective.start is Start.WARM_START else self.recipe.warm_start
        live, stored, heads, terms = {}, {}, {}, []
        for method, role, weight in zip(objective.methods, objective.roles, objective.kd_weights, strict=False):
            method.prepare(self.pair(role))
            terms.append(Term(method, role, weight))
            if stage.inputs[role].kind == "rows":
                stored[role], heads[role] = self.stored(role)
            else:
                live[role] = self.model(role, compute_dtype(self.recipe.teacher.precision))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        pad = {role: side.tokenizer.pad_token_id for role, side in self.sides.items()}
        collator = Collator(terms, pad, chunk_rows=training.chunk_rows, stored=stored)
        sampling = RolloutSettings.of(terms)
        limit = self.recipe.limits.length
        rollouts = Rollouts(sampling, terms, self.sides, collator, limit, 0) if sampling else None
        ends: list[float] = []
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            goal = Objective(stage.title, objective.ce_weight, tuple(terms))
            train(
                Distiller(self.model(STUDENT, "float32"), goal, live, heads),
                [align(example, terms) for example in self.examples],
                collator,
                training.model_copy(update={"checkpoint_every": None}),
                steps=self.steps,
                seed=0,
                work=Path(folder),
                rollouts=rollouts,
                on_step=lambda step: ends.append(time.perf_counter()),
            )
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return (ends[-1] - ends[0]) / max(len(ends) - 1, 1), peak

    def pair(self, role: str) -> TokenizerPair:
        return TokenizerPair(self.sides[STUDENT].vocabulary, self.sides[role].vocabulary, self.work / "maps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--narrow", action="store_true")
    arguments = parser.parse_intermixed_args()
    first = ["data.root=", "tasks=[gsm8k]", "seeds=[0]"]
    plan = make_plan(load_recipe(arguments.recipe, [*first, *arguments.overrides]))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}; {arguments.recipe}, {arguments.steps} steps, random weights\n")
    print(f"| method | s a step | planned, {DEVICES[0].name} | peak GiB | planned |\n|---|---|---|---|---|")
    coster = Coster(plan)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(plan, arguments.tokenizers, arguments.narrow, Path(work), arguments.steps)
        for cell in plan.cells:
            try:
                seconds, peak = bench.run(cell.student)
            except torch.cuda.OutOfMemoryError:
                print(f"| {cell.objective.name} | out of memory | | | |")
                continue
            cost = coster.cost(cell.student)
            planned = cost.seconds(DEVICES[0]) / int(cell.student.values["steps"])
            memory = f"{peak / GIB:.1f} | {cost.memory / GIB:.1f}"
            print(f"| {cell.objective.name} | {seconds:.2f} | {planned:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
