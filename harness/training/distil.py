"""One training put together: an objective, its teachers and a recipe's settings, fitted to this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from harness.base.device import chunk_rows, compiles, compute_dtype
from harness.data.batches import Batch, Collator
from harness.data.chunk_memory import row_bytes, teacher_rows_beside
from harness.data.teacher_rows import StoredRows
from harness.data.templates import TextSide
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT, TokenizedExample
from harness.models.heads import Head
from harness.recipe.training import Training
from harness.training.graphs import graphs_of
from harness.training.loss import Distiller
from harness.training.objective import Objective
from harness.training.rewards import Reward
from harness.training.rollouts import Rollouts, RolloutSettings
from harness.training.room import Room
from harness.training.selection import bits_per_byte_of
from harness.training.sharding import sharers
from harness.training.trainer import train
from methods.library.kernels import works_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TeacherSources:
    """What an objective's teachers give, by role.

    Attributes:
        live: models that score while the student trains.
        stored: rows that were stored before.
        heads: what makes logits of the stored rows.
    """

    live: dict[str, PreTrainedModel] = field(default_factory=dict)
    stored: dict[str, StoredRows] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """What a training showed.

    Attributes:
        steps: one dict an optimiser step, as :func:`harness.training.trainer.train` gives them.
        watched: cross-entropy of the watched rows before and after it, in nats a token; None where none was watched.
        halved: what was halved for lack of memory, see :class:`harness.training.room.Room`.
    """

    steps: list[dict[str, float]]
    watched: tuple[float, float] | None
    halved: Mapping[str, tuple[int, int]]


def pad_ids(sides: Mapping[str, TextSide]) -> dict[str, int]:
    """Padding token id by role."""
    return {role: side.tokenizer.pad_token_id for role, side in sides.items()}


def distil(
    model: PreTrainedModel,
    objective: Objective,
    teachers: TeacherSources,
    examples: Sequence[AlignedExample],
    training: Training,
    *,
    sides: Mapping[str, TextSide],
    max_length: int,
    steps: int,
    seed: int,
    work: Path,
    on_step: Callable[[dict[str, float]], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    watch: int = 0,
    dev: Sequence[TokenizedExample] = (),
    reward: Reward | None = None,
) -> Trajectory:
    """Train a model in place, on the device where it is.

    Args:
        sides: tokenizers of the trained model, under the role "student", and of its teachers.
        max_length: the most tokens of prompt and response together, where the student samples responses.
        dev: held-out rows, tokenised for the trained model, where the weights that are best on them are kept.
        steps, seed, work, on_step: see :func:`harness.training.trainer.train`.
        say: told of what is halved for lack of memory.
        watch: how many of the examples are read before and after, by the same model on the same rows.
        reward: what the task says of sampled responses, where the objective asks for it.
    """
    on: torch.device = next(model.parameters()).device
    collator = Collator(
        objective.terms,
        pad_ids(sides),
        chunk_rows=_chunk_rows(model, objective, teachers, examples, training),
        stored=teachers.stored,
        packing=training.packing,
    )
    sampling, rollouts = RolloutSettings.of(objective.terms), None
    if sampling is not None:
        rollouts = Rollouts(sampling, objective.terms, sides, collator, max_length, seed, reward, teachers.live)
    graphs = graphs_of(model, training, on)
    room = Room(collator, say, trial=on.type == "cuda", spare=None if graphs is None else graphs.end)
    compiled = compiles(training.compile, on)
    distiller = Distiller(model, objective, teachers.live, teachers.heads, compiled, graphs, seed)
    watched = [collator.collate([example]).to(on) for example in examples[:watch]]
    before = _mean_cross_entropy(distiller, watched)  # of a training that goes on, too: its weights are not loaded yet
    done = train(
        distiller,
        examples,
        collator,
        training,
        steps=steps,
        seed=seed,
        work=work,
        rollouts=rollouts,
        on_step=on_step,
        dev_bits_per_byte=bits_per_byte_of(model, dev, pad_ids(sides)[STUDENT]) if dev else None,
        room=room,
    )
    return Trajectory(done, (before, _mean_cross_entropy(distiller, watched)) if watched else None, room.halved)


def _chunk_rows(
    model: PreTrainedModel,
    objective: Objective,
    teachers: TeacherSources,
    examples: Sequence[AlignedExample],
    training: Training,
) -> int:
    """Rows of logits that are in memory together, beside what a training has once it has begun."""
    on: torch.device = next(model.parameters()).device
    head = Head.of(model).weight
    heads = {role: Head.of(each) for role, each in teachers.live.items()} | teachers.heads
    widths = {role: each.weight.shape[0] for role, each in heads.items()}
    tokens = {role: sum(each.example.sides[role].response.size for each in examples) for role in (STUDENT, *widths)}
    terms = []
    for method, role in ((term.method, term.teacher) for term in objective.terms):
        rows = teacher_rows_beside(method, tokens.get(role, 0) / max(tokens[STUDENT], 1), on)
        terms.append((method, widths.get(role, head.shape[0]) * rows))
    dtype = torch.bfloat16 if compute_dtype(training.precision) == "bfloat16" else torch.float32
    # Gradients and the optimiser's two moments, of which each process that shares the weights has its part.
    later = 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return chunk_rows(
        training.chunk_rows,
        row_bytes(head.shape[0], terms, dtype.itemsize, works_on(on, dtype)),
        [head.shape[0], *widths.values()],
        on,
        4 * head.numel() * head.requires_grad,
        later // sharers(training),
    )


@torch.no_grad()
def _mean_cross_entropy(distiller: Distiller, rows: Sequence[Batch]) -> float:
    """Nats a token of each row, a mean over rows."""
    return fmean(distiller.cross_entropy(row) for row in rows) if rows else nan
