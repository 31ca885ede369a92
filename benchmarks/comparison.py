"""What sharing saves: a recipe of seven methods against seven runs of one method each.

    python benchmarks/comparison.py                    # CPU, small models
    python benchmarks/comparison.py --preset h100      # a student of 0.3 G parameters, teachers of 1.4 G

The harness itself runs, on models that are made here, teachers larger than the student as in real pairs: once all
methods with one store, and once each method with an empty store of its own. Scores of both must be the same, on a GPU
bits per byte within :data:`TOLERANCE`. Epochs are those of the recipe phi_qwen_all: 3 for teachers and warm start, 7
for distillation.
"""

from __future__ import annotations

import gc
import math
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from common import demand, machine, markdown, parsed, preset_parser, trained_tokenizer, write
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config
from transformers.utils import logging as transformers_logging

from harness.base.progress import Silent
from harness.evaluate.bits_per_byte import corpus_bits_per_byte
from harness.plan.builder import make_plan
from harness.recipe.load import validate
from harness.results.record import run_folder
from harness.run.runner import Runner
from harness.store.artefacts import ANSWERS, BITS
from harness.store.store import Store

METHODS = ["sft", "fkd", "rkd", "mined", "uld", "cdm", "gold"]
TASK = "gsm8k"
LIMIT, AIM = 0.6, 0.4
TOLERANCE = 0.02
"""Relative, of a GPU's bits per byte: its sums are not always added up in the same order."""
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"rows": 8, "size": 2000, "widths": (128, 320), "layers": (3, 6), "heads": (4, 4)},
    "h100": {"rows": 64, "size": 32_000, "widths": (896, 2048), "layers": (24, 24), "heads": (14, 32)},
}
"""Training rows, tokens of either vocabulary, and shapes of student and teachers."""


class Clock(Silent):
    """A run's progress, told to nobody; seconds of each kind of stage."""

    def __init__(self, now: Any) -> None:
        self.now, self.begun = now, 0.0
        self.kind = ""
        self.seconds: dict[str, float] = defaultdict(float)

    def message(self, text: str) -> None:
        if "failed" in text:
            print(text, file=sys.stderr)

    def begin(self, stage: str, total: int) -> None:
        self.finish()
        # "fine-tuning of the cross-tokenizer teacher" -> "fine-tuning"; "answers of uld" -> "answers"
        self.kind, self.begun = stage.split(" of ")[0], self.now()

    def finish(self) -> None:
        if self.kind:
            self.seconds[self.kind] += self.now() - self.begun
        self.kind = ""


def models(folder: Path, preset: dict[str, Any]) -> dict[str, int]:
    """Folders ``student``, ``same`` and ``cross``; gives the number of parameters of each."""
    counts = {}
    for seed, role in enumerate(("student", "same", "cross")):
        tokenizer = trained_tokenizer("teacher" if role == "cross" else "student", preset["size"])
        width, layers, heads = (preset[key][role != "student"] for key in ("widths", "layers", "heads"))
        shape = {
            "vocab_size": preset["size"],
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "max_position_embeddings": 512,
        }
        shape |= {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 2}
        shape |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = Phi3Config(**shape) if role == "cross" else LlamaConfig(**shape)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
        counts[role] = sum(p.numel() for p in model.parameters())
    return counts


def recipe(folder: Path, methods: list[str], rows: int, **over: Any) -> Any:
    """A recipe as it would stand in a file, for some of the methods."""
    values = {
        "name": "sharing",
        "student": {"model": f"path:{folder / 'student'}", "name": "student"},
        "teachers": {role: {"model": f"path:{folder / role}", "name": role} for role in ("same", "cross")},
        "tasks": [TASK],
        "methods": methods,
        "baseline": None,
        "method_options": {"all": {"ce_weight": 0.5, "kd_weight": 0.5}},
        "limits": {"length": 400, "overlong": "drop"},
        "teacher": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-4, "lora": {"rank": 16, "alpha": 32}},
        "warm_start": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3},
        "train": {"epochs": 7, "batch_size": 8, "learning_rate": 1e-3},
        TASK: {"train_items": rows, "test_items": 4, "new_tokens": 16, "few_shot": 0},
    }
    return validate("sharing", values | over)


def executed(made: Any, runs: Path, now: Any) -> tuple[float, Clock, dict[str, Any]]:
    """Seconds of a run, of its kinds of stages, and the scores of every method."""
    begun, clock = now(), Clock(now)
    plan = make_plan(made)
    store = Store(runs)
    runner = Runner(plan, store, run_folder(runs, plan), clock)
    runner.run()
    clock.finish()
    took = now() - begun
    if runner.failures:
        sys.exit(f"error: {next(iter(runner.failures.values())).reason}")
    scores = {}
    for cell in plan.cells:
        bits = store.find(cell.bits.kind, cell.bits.identity)
        answers = store.find(cell.answers.kind, cell.answers.identity)
        scores[cell.objective.name] = [BITS.read(bits), ANSWERS.read(answers)]
    gc.collect()
    return took, clock, scores


def same(own: dict[str, Any], others: dict[str, Any], device: str) -> bool:
    """Whether a method scored alone as it did among others."""
    if device == "cpu":
        return all(own[name] == others[name] for name in own)
    bits = [[corpus_bits_per_byte(found[name][0]) for name in own] for found in (own, others)]
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(*bits, strict=True))


def main() -> None:
    parser = preset_parser(__doc__.splitlines()[0], PRESETS)
    parser.add_argument("--rows", type=int, help="training rows, in place of the preset's")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    arguments = parsed(parser)
    demand(arguments.device)
    quiet()
    preset = PRESETS[arguments.preset] | ({"rows": arguments.rows} if arguments.rows else {})
    now = time.perf_counter if arguments.device == "cuda" else time.process_time
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    print(machine(arguments.device))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        counts = models(folder, preset)
        # Libraries load and losses compile before either side is timed, in two steps: one of each kind of stage.
        once = {stage: {"steps": 2} for stage in ("train", "warm_start", "teacher")}
        executed(recipe(folder, arguments.methods, preset["rows"], **once), folder / "first", now)
        together, shared, scores = executed(recipe(folder, arguments.methods, preset["rows"]), folder / "one", now)
        print(f"all methods: {together:.1f} s", file=sys.stderr)
        alone: dict[str, float] = {}
        apart: dict[str, float] = defaultdict(float)
        for method in arguments.methods:
            alone[method], clock, own = executed(recipe(folder, [method], preset["rows"]), folder / method, now)
            print(f"{method} alone: {alone[method]:.1f} s", file=sys.stderr)
            for kind, seconds in clock.seconds.items():
                apart[kind] += seconds
            if not same(own, scores, arguments.device):
                sys.exit(f"error: {method} alone scores otherwise than among the others")
    ratio = together / sum(alone.values())
    alike = "answers and bits per byte are the same" if arguments.device == "cpu" else "bits per byte are alike"
    print(
        f"student {counts['student'] / 1e6:.1f} M parameters, teachers {counts['same'] / 1e6:.1f} M (same tokenizer) "
        f"and {counts['cross'] / 1e6:.1f} M; {preset['rows']} training rows of {TASK}; {alike} in both\n"
    )
    kinds = list(dict.fromkeys([*shared.seconds, *apart]))
    rows = [[kind, shared.seconds.get(kind, 0.0), apart.get(kind, 0.0)] for kind in kinds]
    unit = "s" if arguments.device == "cuda" else "processor s"
    print(
        markdown(
            ["stage", f"one recipe, {unit}", f"separate runs, {unit}"], [*rows, ["all", together, sum(alone.values())]]
        )
    )
    print(
        f"\n{len(alone)} methods in one recipe take {ratio:.2f} of the time of separate runs (limit {LIMIT}, aim {AIM})"
    )
    values = {
        "parameters": counts,
        "setting": preset,
        "together": together,
        "alone": alone,
        "ratio": ratio,
        "stages_together": dict(shared.seconds),
        "stages_alone": dict(apart),
    }
    print(f"\nnumbers: {write(arguments, f'comparison-{arguments.preset}', values)}")


def quiet() -> None:
    import logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    for name in ("transformers", "accelerate", "datasets", "lm_eval", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
