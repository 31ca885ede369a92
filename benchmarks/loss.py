"""Chunked losses against the same formulas on all logits at once: time and peak memory, as ratios.

    python benchmarks/loss.py [--rows 256] [--student 32000] [--teacher 64000]

Random hidden rows, a head for each side, forward and backward pass with gradients of rows and head. The naive version
makes [rows, vocabulary] logits for both sides and lets autograd keep what it needs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor

from harness.batches import Batch, TeacherBatch, Term, chunk_bounds, slice_term
from harness.heads import Head
from harness.loss import ChunkWalk, Objective
from methods.alignment import Groups
from methods.base import Method, TeacherKind, registered

WIDTH = 256


def naive_fkd(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1)
    return 4 * (q.exp() * (q - p)).sum()


def naive_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1)
    return 4 * (p.exp() * (p - q)).sum()


def naive_uld(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = (logits.softmax(-1).sort(-1, descending=True).values for logits in (student, teacher))
    width = max(p.shape[-1], q.shape[-1])
    p, q = (torch.nn.functional.pad(side, (0, width - side.shape[-1])) for side in (p, q))
    return (p - q).abs().sum()


NAIVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"fkd": naive_fkd, "rkd": naive_rkd, "uld": naive_uld}


def measure(name: str, chunked: bool, rows: int, sizes: tuple[int, int]) -> tuple[float, float, float]:
    """Seconds, MiB above the inputs, and the loss, of one warm pass."""
    method = registered()[name]()
    student_size = sizes[0]
    teacher_size = student_size if method.teacher is TeacherKind.SAME_TOKENIZER else sizes[1]
    torch.manual_seed(0)
    weight = (torch.randn(student_size, WIDTH) * 0.1).requires_grad_()
    hidden = torch.randn(rows, WIDTH).requires_grad_()
    teacher_weight, teacher_hidden = torch.randn(teacher_size, WIDTH) * 0.1, torch.randn(rows, WIDTH)
    targets = torch.randint(0, student_size, (rows,))
    step = _chunked if chunked else _naive
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loss = step(method, name, weight, hidden, teacher_weight, teacher_hidden, targets)
    seconds = time.perf_counter() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, loss


def _naive(method: Method, name: str, weight: Tensor, hidden: Tensor, tw: Tensor, th: Tensor, targets: Tensor) -> float:
    logits = hidden @ weight.T
    with torch.no_grad():
        teacher = th @ tw.T
    ce = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    loss = (0.5 * ce + 0.5 * NAIVE[name](logits, teacher)) / len(targets)
    loss.backward()
    return float(loss.detach())


def _chunked(
    method: Method, name: str, weight: Tensor, hidden: Tensor, tw: Tensor, th: Tensor, targets: Tensor
) -> float:
    count = len(targets)
    groups = Groups.one_to_one(range(count), range(count))
    chunks = chunk_bounds(torch.tensor([0, count]).numpy(), [groups], 64, False)
    none = torch.zeros(0)
    stored = TeacherBatch(None, None, None, none, torch.full_like(targets, -100), None)
    counts = torch.tensor([count, 1, count])
    batch = Batch(
        none,
        none,
        none,
        none,
        targets,
        chunks,
        {"t": stored},
        [slice_term(groups, chunks, *[targets.numpy()] * 2)],
        counts,
    )
    objective = Objective(name, 0.5, (Term(method, "t", 0.5),))
    walk = ChunkWalk(objective, Head(weight), {"t": Head(tw)}, {"t": th}, batch, objective.divisors(counts))
    parts, _ = walk.run(hidden.detach(), [weight.detach()], [True, True])
    return float(parts.loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--student", type=int, default=32_000)
    parser.add_argument("--teacher", type=int, default=64_000)
    arguments = parser.parse_args()
    sizes = (arguments.student, arguments.teacher)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{arguments.rows} rows, vocabularies {sizes[0]:,} and {sizes[1]:,}, float32, forward and backward\n")
    print(
        "| method | time, naive / chunked | memory, naive / chunked | naive MiB | chunked MiB |\n|---|---|---|---|---|"
    )
    # A fresh process each: peak memory never goes down.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in NAIVE:
            naive, ours = (pool.apply(measure, (name, chunked, arguments.rows, sizes)) for chunked in (False, True))
            assert abs(naive[2] - ours[2]) < 1e-4 * abs(naive[2]), (name, naive[2], ours[2])
            ratios = f"{naive[0] / ours[0]:.2f} | {naive[1] / max(ours[1], 1):.1f}"
            print(f"| {name} | {ratios} | {naive[1]:.0f} | {ours[1]:.0f} |")


if __name__ == "__main__":
    main()
