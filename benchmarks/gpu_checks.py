"""Whether a GPU computes what the CPU does: every fast form beside its plain definition, with numbers.

    python benchmarks/gpu_checks.py                 # on a GPU, about a minute
    python benchmarks/gpu_checks.py --device cpu    # what needs no GPU, at small sizes

Each check prints pass or FAIL, what it measured and what is allowed, and is a line of a .jsonl beside the JSON file.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import demand, machine, parsed, preset_parser, result_path, trained_tokenizer, write
from loss import Inputs, Setting, methods_of, our_training
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from harness.recipe.training import Training
from harness.training.contract_bench import Bench, bench, tiny_model
from harness.training.distil import TeacherSources, distil
from harness.training.graphs import GpuRecorder, LayerGraphs
from methods import cdm
from methods.base import registered
from methods.library import contextual, kernels
from methods.library.alignment import IntArray
from methods.library.closed_form import compiling
from methods.library.counted import counted_l1_parts
from methods.library.edit_distance import TextTable, edit_distances
from methods.library.warping import EditCosts, entropy_weights, link_groups, warp_all
from methods.library.warping_device import DeviceCosts

Found = Iterator[tuple[str, float, float]]
"""What was measured, the number, and the most that it may be."""
SIZES = {"cuda": (151_936, 32_064), "cpu": (3000, 2500)}


def main() -> None:
    parser = preset_parser(__doc__.splitlines()[0], ["gpu"])
    parser.set_defaults(preset="gpu")
    parser.add_argument("--checks", nargs="+", choices=[*CHECKS], default=[*CHECKS])
    arguments = parsed(parser)
    demand(arguments.device)
    print(machine(arguments.device), flush=True)
    lines = result_path(arguments, "gpu_checks").with_suffix(".jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("", encoding="utf-8")
    rows = [row for name in arguments.checks for row in checked(name, arguments, lines)]
    failed = [row["check"] for row in rows if not row["passed"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} passed", flush=True)
    write(arguments, "gpu_checks", {"checks": rows})
    sys.exit(1 if failed else 0)


def checked(name: str, arguments: Namespace, lines: Path) -> Iterator[dict[str, Any]]:
    """The results of one check; one that breaks is a result too."""
    begun = time.perf_counter()
    for what, value, most in survived(CHECKS[name](arguments.device)):
        seconds = round(time.perf_counter() - begun, 2)
        row = {"check": f"{name}: {what}", "value": value, "most": most, "passed": bool(value <= most)}
        row["seconds"] = seconds
        print(f"{'pass' if row['passed'] else 'FAIL'}  {row['check']}: {value:.3g}, at most {most:.3g}", flush=True)
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        yield row


def survived(found: Found) -> Found:
    """The same; what breaks is a result too, for the next check may still tell something."""
    try:
        yield from found
    except Exception as error:
        yield f"{type(error).__name__}: {str(error)[:300]}", math.inf, 0.0


# --- the sorted distance ---------------------------------------------------------------------------------------------


def pairs_of_rows(device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Float32 masses: flat and peaked rows, rows that are nearly sure, equal rows, and tails that underflow."""
    generator = torch.Generator().manual_seed(0)
    wide, narrow = SIZES[device]

    def rows(columns: int, spread: float, top: float = 0.0) -> Tensor:
        logits = torch.randn(32, columns, generator=generator) * spread
        logits[:, 0] += top
        return logits.to(device).softmax(-1)

    for spread in (1.0, 3.0, 8.0):
        yield f"spread {spread:g}", rows(wide, spread), rows(narrow, 0.9 * spread)
    yield "nearly sure", rows(wide, 2, 18), rows(narrow, 2, 18)
    yield "narrow student", rows(narrow, 3), rows(wide, 3)
    equal = rows(narrow, 3)
    yield "equal", equal, equal.flip(1)
    yield "underflow", rows(wide, 40), rows(narrow, 30)


def by_sorting(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Float64: the distance as its formula stands, and the sign of each rank's difference at its column."""
    columns = max(student.shape[1], teacher.shape[1])
    p, q = (torch.nn.functional.pad(s.double(), (0, columns - s.shape[1])).sort(-1, True) for s in (student, teacher))
    difference = p.values - q.values
    return difference.abs().sum(-1), difference.sign().gather(1, p.indices.argsort(-1))[:, : student.shape[1]]


def check_counted(device: str) -> Found:
    """Counted and exact sorted distances against float64."""
    for name, student, teacher in pairs_of_rows(device):
        truth, signs = by_sorting(student, teacher)
        for exact in (False, True):
            distance, slopes, bound = counted_l1_parts(student, teacher, exact)
            how = "exact" if exact else "counted"
            lacking = truth - distance.double()
            yield f"{how}, {name}: beyond its bound", float((lacking - bound.double()).max()), 5e-6
            yield f"{how}, {name}: too large", float(-lacking.min()), 5e-6
            yield f"{how}, {name}: bound", float(bound.max()), 1e-3 if name != "equal" else 0.02
            if exact:
                apart = ((slopes.double() - signs).abs() * student.double()).sum(-1).max()
                yield f"exact, {name}: gradient, weighted by mass", float(apart), 5e-4  # ties share their signs


# --- losses ----------------------------------------------------------------------------------------------------------


def small(device: str, dtype: torch.dtype, folder: Path, **more: Any) -> Setting:
    sizes = {"student_size": 3000, "teacher_size": 2500, "student_width": 64, "teacher_width": 96}
    return Setting(device, dtype, tokens=200, length=60, chunk_rows=48, folder=folder, **sizes, **more)


def with_tokenizers(folder: Path) -> Path:
    for role, size in (("student", 3000), ("teacher", 2500)):
        trained_tokenizer(role, size).backend_tokenizer.save(str(folder / f"{role}.json"))
    return folder


def taught(setting: Setting, name: str, compiled: bool = False, rounded: bool = False) -> tuple[float, Tensor]:
    """KD of a batch, or CE, and float64 on the CPU the gradient of the student's rows and head, side by side.

    Args:
        rounded: whether hidden rows and heads are rounded to bfloat16 first, whatever their dtype.
    """
    inputs = Inputs(setting)
    if rounded:
        make = inputs._make
        inputs._make = lambda role: tuple(made.bfloat16().to(setting.dtype) for made in make(role))
    distiller, step = our_training(inputs, methods_of(name), compiled)
    parts = step()
    student = distiller.student
    gradient = torch.cat([each.grad.double().cpu().flatten() for each in (student.hidden, student.lm_head.weight)])
    return float(parts.kd.sum() if parts.kd.numel() else parts.ce), gradient


METHODS = ("sft", "fkd", "uld", "uld counted", "gold", "gold counted", "mined", "one_to_one", "cdm", "cdm text-like")
WITH_KERNELS = (
    "sft",
    "uld counted",
    "uld",
    "gold counted",
    "gold",
    "gold released",
    "fkd",
    "rkd",
    "mined",
    "one_to_one",
    "cdm text-like",
)
ALLOWED = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-3), torch.bfloat16: (3e-2, 0.3)}
"""Relative errors of value and gradient. In bf16 products round logits; ranks and likeliest tokens turn with them."""


def check_losses(device: str) -> Found:
    """Losses and gradients on the device, eager and compiled, against float64 on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = with_tokenizers(Path(name))
        for way in METHODS:
            alike = "text-like" in way
            for dtype, (of_value, of_gradient) in ALLOWED.items():
                low = dtype is torch.bfloat16
                truth = taught(small("cpu", torch.float64, folder, text_like=alike), way, rounded=low)
                found = taught(small(device, dtype, folder, text_like=alike), way, rounded=low)
                yield from differences(
                    f"{way}, {str(dtype).removeprefix('torch.')}", found, truth, of_value, of_gradient
                )


def differences(
    label: str, found: tuple[float, Tensor], truth: tuple[float, Tensor], of_value: float, of_gradient: float
) -> Found:
    yield f"{label}: value", abs(found[0] - truth[0]) / abs(truth[0]), of_value
    yield f"{label}: gradient", float((found[1] - truth[1]).norm() / truth[1].norm()), of_gradient


def check_kernels(device: str) -> Found:
    """Losses by kernels against the same without them, at full size on a GPU; released GOLD merges by its own rule."""
    wide, narrow = SIZES[device]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role, size in (("student", wide), ("teacher", narrow)):
            trained_tokenizer(role, size).backend_tokenizer.save(str(folder / f"{role}.json"))
        for dtype, of_value, of_gradient in ((torch.float32, 1e-5, 1e-3), (torch.bfloat16, 1e-3, 2e-2)):
            for way in WITH_KERNELS:
                setting = replace(
                    small(device, dtype, folder, text_like="text-like" in way), student_size=wide, teacher_size=narrow
                )
                kernels.enabled = True
                found = taught(setting, way)
                kernels.enabled = False
                truth = taught(setting, way)
                kernels.enabled = True
                label = f"{way}, {str(dtype).removeprefix('torch.')}"
                yield from differences(label, found, truth, of_value, of_gradient)


# --- CDM -------------------------------------------------------------------------------------------------------------


def check_edit_distances(device: str) -> Found:
    """Batched edit distances against rapidfuzz, texts of up to 130 characters among them."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcäß中"), random.integers(0, 14))) for _ in range(300)]
    texts += ["x" * n + "yz" * (n % 5) for n in (31, 63, 64, 65, 130)]
    ids = torch.from_numpy(random.integers(0, len(texts), (2, 20_000))).to(device)
    table = TextTable(texts)
    found = edit_distances(table, table, ids[0], ids[1]).cpu().tolist()
    pairs = zip(*ids.cpu().tolist(), strict=True)
    wanted = [Levenshtein.distance(texts[a], texts[b]) for a, b in pairs]
    yield "pairs that differ", float(sum(a != b for a, b in zip(found, wanted, strict=True))), 0.0


def check_warping(device: str) -> Found:
    """Paths on the device against the host's, and the pairs that are made of them there."""
    with tempfile.TemporaryDirectory() as name:
        inputs = Inputs(small("cpu", torch.float32, with_tokenizers(Path(name))))
    pair = inputs.pair("cross")
    costs, random = EditCosts(pair.student, pair.teacher), np.random.default_rng(0)
    asked, tables = [], []
    for example in inputs.examples:
        each = example.aligned("cross")
        ours, theirs = (random.random(ids.size) * 5 for ids in (each.student_ids, each.teacher_ids))
        weights = entropy_weights(theirs)[:, None] * entropy_weights(ours)
        tables.append(costs.costs(each.student_ids, each.teacher_ids) * weights)
        entropy = {"student_entropy": ours, "teacher_entropy": theirs}
        asked.append(replace(each, **{key: torch.from_numpy(value).to(device) for key, value in entropy.items()}))
    paths = warp_all(tables)
    found = DeviceCosts(costs).paths(asked)
    wrong = sum(
        not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(found, paths, strict=True)
    )
    yield f"paths of {len(asked)} responses that differ", float(wrong), 0.0
    for firsts in (False, True):
        partners = DeviceCosts(costs).pairs(asked, firsts).partners
        wrong = sum(each.tolist() != paired(*path, firsts) for each, path in zip(partners, paths, strict=True))
        yield f"{'first' if firsts else 'single'} pairs of {len(asked)} responses that differ", float(wrong), 0.0


def paired(teacher: IntArray, student: IntArray, firsts: bool) -> list[int]:
    """For each student token of a path the teacher token that it makes a pair with, alone or first; -1 for none."""
    partners = np.full(int(student.max()) + 1, -1)
    for ours, theirs in zip(*link_groups(teacher, student).to_lists(), strict=True):
        if firsts or len(ours) == len(theirs) == 1:
            partners[ours[0]] = theirs[0]
    return [int(each) for each in partners]


def check_cdm(device: str) -> Found:
    """CDM's loss with its map made on the device against the one made on the host, the same float64 logits."""
    with tempfile.TemporaryDirectory() as name:
        folder = with_tokenizers(Path(name))
        for way in ("cdm", "cdm text-like"):
            setting = small(device, torch.float64, folder, text_like="text-like" in way)
            here, there = (mapped(setting, way, on_device) for on_device in (True, False))
            yield f"{way}: value", abs(here[0] - there[0]) / abs(there[0]), 1e-12
            yield f"{way}: gradient", float((here[1] - there[1]).norm() / there[1].norm()), 1e-10


def mapped(setting: Setting, way: str, on_device: bool) -> tuple[float, Tensor]:
    plain = contextual.stays_on_device
    cdm.stays_on_device = contextual.stays_on_device = lambda where: on_device and isinstance(where, Tensor)
    try:
        return taught(setting, way)
    finally:
        cdm.stays_on_device = contextual.stays_on_device = plain


def check_compiled(device: str) -> Found:
    """The counted distance in a compiled region at full size."""
    from methods.library.counted import edges

    if device == "cpu":
        return
    compiled = torch.compile(counted_l1_parts, dynamic=True)
    for name, student, teacher in pairs_of_rows(device):
        with compiling(True):
            found = compiled(student, teacher, False, edges(student.dtype, student.device))
        wanted = counted_l1_parts(student, teacher)
        yield f"{name}: value", float((found[0] - wanted[0]).abs().max()), 2e-6
        yield f"{name}: gradient", float(((found[1] - wanted[1]).abs() * student).sum(-1).max()), 1e-6


# --- whole steps -----------------------------------------------------------------------------------------------------


def check_graphs(device: str) -> Found:
    """Layers by CUDA graphs against kernel by kernel: twelve micro-batches of three shapes, and a whole training."""
    if device == "cpu":
        return
    for kind in ("llama", "qwen2"):
        for dtype, of_value, of_gradient in ((torch.float32, 1e-6, 1e-5), (torch.bfloat16, 1e-2, 0.1)):
            label = f"{kind}, {str(dtype).removeprefix('torch.')}"
            made = bench(registered()["uld"](), dtype=torch.float32)
            made.student = tiny_model(kind, len(made.sides["student"].vocabulary))
            for model in (made.student, made.teacher):
                model.to(device)
            graphs = LayerGraphs(made.student, GpuRecorder(torch.device(device)))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = passed(made, dtype, graphs)
            wanted = passed(made, dtype, None)
            said = [str(one.message) for one in told if "cuda_graphs" in str(one.message)]
            yield f"{label}: shapes not recorded {' '.join(said)}".rstrip(), 3.0 - len(graphs.shapes), 0.0
            yield (
                f"{label}: losses",
                max(abs(a - b) / abs(b) for a, b in zip(found[0], wanted[0], strict=True)),
                of_value,
            )
            apart = [float((a - b).norm() / b.norm()) for a, b in zip(found[1], wanted[1], strict=True)]
            yield f"{label}: gradients of four windows", max(apart), of_gradient
    steps = {how: trained("uld", 12, cuda_graphs=how, micro_batch_size=1)[0] for how in ("on", "off")}
    for name, most in (("loss", 1e-4), ("grad_norm", 1e-3)):
        pairs = [(a[name], b[name]) for a, b in zip(steps["on"], steps["off"], strict=True)]
        yield f"a training of 12 steps: {name}", max(abs(a - b) / abs(b) for a, b in pairs), most


def passed(made: Bench, dtype: torch.dtype, graphs: LayerGraphs | None) -> tuple[list[float], list[Tensor]]:
    """Losses of twelve micro-batches, and the student's gradients after every three."""
    distiller, collator, on = made.distiller(), made.collator(), made.student.device
    distiller.graphs = graphs
    parts = [made.examples[:1], made.examples[1:], made.examples[:2]]
    losses, gradients = [], []
    for place, at in enumerate((0, 1, 0, 1, 1, 0, 2, 0, 2, 1, 2, 2)):
        batch = collator.collate(parts[at]).to(on)
        with torch.autocast(on.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = distiller(batch, distiller.objective.divisors(batch.counts)).loss
        loss.backward()
        losses.append(float(loss.detach()))
        del loss  # with it go the nodes where gradients are added up, which are bound to the stream of their pass
        if place % 3 == 2:
            gradients.append(torch.cat([each.grad.double().flatten() for each in made.student.parameters()]))
            distiller.zero_grad()
    return losses, gradients


def trained(method: str, steps: int, **settings: Any) -> tuple[list[dict[str, float]], Counter[str]]:
    """A tiny training on the GPU: its steps, and how often which line waited for the GPU.

    Args:
        settings: of the training, or of the method's samples.
    """
    options: dict[str, Any] = {"sort": "counted"} if method in ("uld", "gold") else {}
    options |= {key: settings.pop(key) for key in [*settings] if key.startswith("rollout")}
    made = bench(registered()[method](**options), dtype=torch.float32)
    live = {} if made.teacher is None else {made.role: made.teacher.to("cuda")}
    made.student.to("cuda")
    training = Training(**({"steps": steps, "learning_rate": 1e-3, "batch_size": 2, "compile": "off"} | settings))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with tempfile.TemporaryDirectory() as work, warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            done = distil(
                made.student,
                made.objective,
                TeacherSources(live),
                made.examples,
                training,
                sides=made.sides,
                max_length=128,
                steps=steps,
                seed=3,
                work=Path(work),
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in heard if "synchronizing" in str(one.message)]
    return done.steps, Counter(f"{Path(one.filename).name}:{one.lineno}" for one in waits)


def check_waits(device: str) -> Found:
    """How often an optimiser step waits for the GPU, with the lines where it does; after the first ones."""
    if device == "cpu":
        return
    for method in ("sft", "fkd", "gold", "cdm"):
        few, many = (trained(method, steps, cuda_graphs="on")[1] for steps in (8, 16))
        where = ", ".join(f"{line} {count / 8:g}" for line, count in (many - few).most_common(8))
        yield f"{method}: waits a step ({where})", (many.total() - few.total()) / 8, 0.0


def check_samples(device: str) -> Found:
    """A training on the student's own responses, drawn in slots, in the precision that a GPU trains in."""
    if device == "cpu":
        return
    for precision in ("float32", "bfloat16"):
        steps = trained("gold", 4, rollout_share=1.0, rollout_tokens=16, precision=precision)[0]
        yield f"{precision}: steps without a number", float(sum(not math.isfinite(s["loss"]) for s in steps)), 0.0


CHECKS: dict[str, Callable[[str], Found]] = {
    "edit distances": check_edit_distances,
    "warping": check_warping,
    "cdm": check_cdm,
    "waits": check_waits,
    "samples": check_samples,
    "counted": check_counted,
    "losses": check_losses,
    "kernels": check_kernels,
    "graphs": check_graphs,
    "compiled": check_compiled,
}
"""In an order in which a limit cuts what takes longest."""


if __name__ == "__main__":
    main()
