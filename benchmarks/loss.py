"""What each method's loss costs from hidden rows to all gradients, beside TRL's losses, a full sort and cross-entropy.

    python benchmarks/loss.py                                  # CPU, minutes; --parts methods for the first table alone
    python benchmarks/loss.py --rows gold "gold top_k" "TRL GOLD" --parts methods --top-k 2048
    python benchmarks/loss.py --preset h100 --student-tokenizer qwen2.json --teacher-tokenizer phi3.json --data FOLDER

Every way gets the same random hidden rows and heads and the same alignment of the same text, and gives the gradients of
rows and student head. Ours are the engine's own chunks; the others make all logits at once, as their authors do. TRL
reads byte-level tokenizers only. --preset full sweeps further than h100; each preset runs on --device cpu too. Each row
is printed and written, as a line of a .jsonl beside the JSON file, when it is done; --resume leaves out what is there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import (
    Cost,
    Lines,
    Place,
    add_real_inputs,
    copy_rate,
    cost,
    demand,
    exponent,
    machine,
    markdown,
    matrix_rate,
    parsed,
    peer,
    peer_version,
    preset_parser,
    read_tokenizer,
    result_path,
    rows_of_text,
    trained_tokenizer,
    write,
)
from torch import Tensor, nn
from torch.nn import functional

from harness.base.device import chunk_room, chunk_rows, keep_freed_memory, rows_in
from harness.data.batches import Collator
from harness.data.chunk_memory import row_bytes
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.terms import Term, align
from harness.data.tokens import STUDENT, TokenizedExample, tokenize
from harness.models.heads import Head
from harness.plan.objectives import ROLE_OF_KIND
from harness.training.loss import Distiller
from harness.training.objective import LossParts, Objective
from methods.base import Members, Method, registered
from methods.base import Rows as RowKind
from methods.gold import GOLDOptions
from methods.library import columns, comparison_cpu, kernels, rows_cpu
from methods.library.alignment import pair_positions
from methods.library.maps import UNMAPPED, exact_map
from methods.library.merging import Merged
from methods.library.ranks import compare_ranks
from methods.library.vocabulary import TokenizerPair

OURS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"sft": {}},
    "gold counted": {"gold": {"sort": "counted"}},
    "gold": {"gold": {"sort": "exact"}},
    "gold top_k": {"gold": {"sort": "top_k"}},
    "uld counted": {"uld": {"sort": "counted"}},
    "uld": {"uld": {"sort": "exact"}},
    "uld top_k": {"uld": {"sort": "top_k"}},
    "cdm text-like": {"cdm": {}},
    "cdm text-like theta=0": {"cdm": {"theta": 0.0}},
    "cdm": {"cdm": {}},
    "fkd": {"fkd": {}},
    "rkd": {"rkd": {}},
    "mined": {"mined": {}},
    "one_to_one": {"one_to_one": {}},
    "dual(fkd, cdm)": {"fkd": {}, "cdm": {}},
}
TEXT_LIKE = " text-like"
"""Logits of both models agree about most of the likeliest tokens, as they do on text; else they are random."""
RELEASED = " released"
OURS |= {name + RELEASED: {name: {"fidelity": "released"}} for name in ("fkd", "rkd", "mined", "uld", "cdm", "gold")}
"""Options of each method by the name of a way; two methods learn from a teacher each."""

COMPILED = " compiled"
PLAIN = " without kernels"
"""As where there is no Triton."""
CLOSED = ("sft", "gold counted", "gold", "gold top_k", "uld counted", "uld", "uld top_k", "fkd", "rkd")
"""Losses with gradients in closed form, which torch.compile may fuse."""
PEERS = ("cross-entropy", "TRL GOLD", "TRL ULD", "full sort")
RIVAL = {"uld": "TRL ULD", "gold": "TRL GOLD"}
LOGIT_SPREAD = 3.0
"""Standard deviation of the random logits: some twenty tokens share most of the mass, as in a model's own."""

UNSHARED, NOISE = 0.85, 0.3
"""Of text-like logits: what spreads those of tokens that one model alone has, and the teacher's noise, beside 1: some
tenth of the likeliest tokens has no partner, as was measured on text."""

CHECKED_GROUPS = 64
"""The most groups at which results of merging are compared, which costs a second call."""


@dataclass(frozen=True)
class Setting:
    """What all ways are measured on.

    Attributes:
        tokens: of the student's, in all responses together, at least.
        length: tokens of one response, at least.
        student_size, teacher_size: columns of the logits.
        student_width, teacher_width: of the hidden rows.
        top_k: ranks that ``sort: top_k`` compares, or None for the methods' own number.
        text_like: see :data:`TEXT_LIKE`.
        folder: of student.json and teacher.json, the tokenizers.
        data: folder of data sets, or None for the samples.
    """

    device: str
    dtype: torch.dtype
    tokens: int
    length: int
    student_size: int
    teacher_size: int
    student_width: int
    teacher_width: int
    chunk_rows: int
    folder: Path
    data: Path | None = None
    budget: float = 6.0
    top_k: int | None = None
    text_like: bool = False


class _Layers:
    """Gives the same hidden states for all tokens, as a model's layers would give theirs."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.hidden)

    __call__ = forward


class Rows(nn.Module):
    """Stands in for a student whose last hidden states are a parameter, so that a step begins at hidden rows."""

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Parameter(hidden)
        self.lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.lm_head.weight = nn.Parameter(weight)
        self.config = SimpleNamespace(get_text_config=lambda **_: SimpleNamespace(_attn_implementation="none"))
        self.base_model = _Layers(self.hidden)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def get_input_embeddings(self) -> nn.Embedding:
        """The head's, as where both are tied."""
        return nn.Embedding.from_pretrained(self.lm_head.weight.detach())


class Inputs:
    """Text in two tokenisations, hidden rows of every position, and a head for each side."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        sides = {
            role: TextSide(read_tokenizer(setting.folder / f"{name}.json"), template="plain", name=name)
            for role, name in ((STUDENT, "student"), ("same", "student"), ("cross", "teacher"))
        }
        self.sides = sides
        self.examples = tokenize(self._texts(), sides, max_length=10**6)
        self.tokens = {role: sum(e.sides[role].response.size for e in self.examples) for role in sides}
        generator = torch.Generator().manual_seed(0)
        sizes = {
            STUDENT: (setting.student_size, setting.student_width),
            "same": (setting.student_size, setting.teacher_width),
            "cross": (setting.teacher_size, setting.teacher_width),
        }
        self.weights: dict[str, Tensor] = {}
        self.hidden: dict[str, Tensor] = {}
        self._make = lambda role: self._random(generator, sizes[role], role)

    def of(self, role: str) -> tuple[Tensor, Tensor]:
        """Hidden states [batch, length, width] and head [vocabulary, width] of a side."""
        if role not in self.hidden:
            self.hidden[role], self.weights[role] = self._make(role)
        return self.hidden[role], self.weights[role]

    def _random(self, generator: torch.Generator, size: tuple[int, int], role: str) -> tuple[Tensor, Tensor]:
        place = {"device": self.setting.device, "dtype": self.setting.dtype}
        longest = max(e.sides[role].length for e in self.examples)
        hidden = torch.randn(len(self.examples), longest, size[1], generator=generator).to(**place)
        weight = torch.randn(*size, generator=generator).mul_(LOGIT_SPREAD / size[1] ** 0.5)
        if role == "cross" and self.setting.text_like:
            self._agree(hidden, weight)
        return hidden, weight.to(**place)

    def _agree(self, hidden: Tensor, weight: Tensor) -> None:
        """Give the teacher the student's logits, and noise, at tokens that both have, where both stand at one byte."""
        ours, weights = self.of(STUDENT)
        shared = min(ours.shape[-1], hidden.shape[-1])
        pair = self.pair("cross")
        partner = torch.from_numpy(exact_map(pair.teacher, pair.student))
        (matched,) = (partner != UNMAPPED).nonzero(as_tuple=True)
        weight[:, :shared] *= (weight.shape[1] / shared) ** 0.5 * UNSHARED
        weight[:, shared:] *= NOISE
        weight[matched, :shared] = weights[partner[matched], :shared].to("cpu", weight.dtype)
        for number, example in enumerate(self.examples):
            student, teacher = example.sides[STUDENT], example.sides["cross"]
            starts = [np.concatenate([[0], side.ends[:-1]]) for side in (student, teacher)]
            near = np.searchsorted(starts[0], starts[1], side="right") - 1
            rows = torch.from_numpy(near + student.prompt.size - 1).to(hidden.device)
            first = teacher.prompt.size - 1
            hidden[number, first : first + len(rows), :shared] = ours[number, rows, :shared]

    def _texts(self) -> list[Example]:
        """Answers joined to responses, until there are enough tokens."""
        setting, answers = self.setting, [answer for _, answer in rows_of_text(self.setting.data)]
        side, made, total, next_answer = self.sides[STUDENT], [], 0, 0
        lengths = [ids.size for ids in side.responses(answers)]
        while total < setting.tokens:
            joined: list[str] = []
            size = 0
            while size < min(setting.length, setting.tokens - total):
                joined.append(answers[next_answer % len(answers)])
                size += lengths[next_answer % len(answers)]
                next_answer += 1
            made.append(Example(str(len(made)), "Answer:", " ".join(joined)))
            total += size
        return made

    def pair(self, role: str) -> TokenizerPair:
        sizes = {
            STUDENT: self.setting.student_size,
            "same": self.setting.student_size,
            "cross": self.setting.teacher_size,
        }
        student, teacher = (self.sides[name].vocabulary.within(sizes[name]) for name in (STUDENT, role))
        return TokenizerPair(student, teacher, self.setting.folder / "maps")


# --- ours ----------------------------------------------------------------------------------------------------------


def methods_of(name: str, top_k: int | None = None) -> list[Method]:
    """The methods of one of :data:`OURS`."""
    found = []
    for key, options in OURS[name.removesuffix(PLAIN).removesuffix(COMPILED)].items():
        more = {"top_k": top_k} if top_k and options.get("sort") == "top_k" else {}
        found.append(registered()[key](**options, **more))
    return found


def our_step(inputs: Inputs, methods: Sequence[Method], compiled: bool = False) -> Callable[[], LossParts]:
    """A function that makes loss and gradients of a batch, as the trainer does; the batch is made before."""
    return our_training(inputs, methods, compiled)[1]


def our_training(
    inputs: Inputs, methods: Sequence[Method], compiled: bool = False
) -> tuple[Distiller, Callable[[], LossParts]]:
    """What :func:`our_step` trains, and the step."""
    setting = inputs.setting
    taught = [method for method in methods if method.teacher in ROLE_OF_KIND]
    live: dict[str, nn.Module] = {}
    heads: dict[str, Head] = {}
    stored: dict[str, Any] = {}
    for method in taught:
        role = ROLE_OF_KIND[method.teacher]
        method.prepare(inputs.pair(role))
        hidden, weight = inputs.of(role)
        if method.rows is RowKind.ALL:  # stored rows leave the prompt out
            live[role] = Rows(hidden, weight)
        else:
            heads[role] = Head(weight, embeddings=partial(nn.Embedding.from_pretrained, weight))
            stored[role] = _rows(inputs.examples, hidden, role).__getitem__
    terms = tuple(Term(method, ROLE_OF_KIND[method.teacher], 0.5 / len(taught)) for method in taught)
    collator = Collator(terms, dict.fromkeys(inputs.sides, 0), chunk_rows=_chunk_rows(setting, terms), stored=stored)
    batch = collator.collate([align(example, terms) for example in inputs.examples]).to(setting.device)
    hidden, weight = inputs.of(STUDENT)
    objective = Objective(methods[0].name, 0.5 if terms else 1.0, terms)
    distiller = Distiller(Rows(hidden, weight), objective, live, heads, compiled)
    divisors = objective.divisors(batch.counts)

    def step() -> LossParts:
        distiller.zero_grad(set_to_none=True)
        parts = distiller(batch, divisors)
        parts.loss.backward()
        return parts

    return distiller, step


def _chunk_rows(setting: Setting, terms: Sequence[Term]) -> int:
    """The setting's, or as many as ``train.chunk_rows: auto`` would take, on a GPU at most."""
    on, head = torch.device(setting.device), 4 * setting.student_size * setting.student_width
    widths = {"same": setting.student_size, "cross": setting.teacher_size}
    taught = [(term.method, float(widths[term.teacher])) for term in terms]
    a_row = row_bytes(setting.student_size, taught, setting.dtype.itemsize, kernels.works_on(on, setting.dtype))
    if on.type == "cuda":
        return min(setting.chunk_rows, rows_in(chunk_room(head), a_row))
    columns_of = [setting.student_size, *(widths[term.teacher] for term in terms)]
    return min(setting.chunk_rows, chunk_rows("auto", a_row, columns_of, on, head))


def _rows(examples: Sequence[TokenizedExample], hidden: Tensor, role: str) -> dict[str, Tensor]:
    """Teacher rows as a store would give them: from the row that predicts the first token to that after the last."""
    found = {}
    for number, example in enumerate(examples):
        side = example.sides[role]
        found[example.id] = hidden[number, side.prompt.size - 1 : side.length].cpu()
    return found


# --- the others ----------------------------------------------------------------------------------------------------


def peer_step(inputs: Inputs, name: str) -> Callable[[], Any]:
    """A function that makes all logits, the loss of a peer, and the same gradients as ours."""
    hidden, weight = (side.clone().requires_grad_() for side in inputs.of(STUDENT))
    teacher, teacher_weight = inputs.of("cross")
    loss_of = {
        "cross-entropy": lambda s, t: cross_entropy(inputs, s),
        "full sort": lambda s, t: full_sort(inputs, s, t()),
        "TRL ULD": trl_loss(inputs, hybrid=False, extended=False) if name == "TRL ULD" else None,
        "TRL GOLD": trl_loss(inputs, hybrid=True, extended=True) if name == "TRL GOLD" else None,
    }[name]
    assert loss_of is not None

    def teacher_logits() -> Tensor:
        with torch.no_grad():
            return functional.linear(teacher, teacher_weight)

    def step() -> Any:
        hidden.grad = weight.grad = None
        loss = loss_of(functional.linear(hidden, weight), teacher_logits)
        loss.backward()
        return loss.detach()

    return step


def labels(inputs: Inputs, role: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and byte offsets [batch, length] as TRL's collator gives them, padded on the right."""
    longest = max(example.sides[role].length for example in inputs.examples)
    ids = torch.zeros(len(inputs.examples), longest, dtype=torch.long)
    target, offsets = torch.full_like(ids, -100), torch.zeros(*ids.shape, 2, dtype=torch.long)
    for number, example in enumerate(inputs.examples):
        side = example.sides[role]
        response = slice(side.prompt.size, side.length)
        ids[number, : side.length] = torch.from_numpy(side.sequence)
        target[number, response] = torch.from_numpy(side.response)
        offsets[number, response, 1] = torch.from_numpy(side.ends)  # TRL reads no starts
    device = inputs.setting.device
    return ids.to(device), target.to(device), offsets.to(device)


def cross_entropy(inputs: Inputs, logits: Tensor) -> Tensor:
    target = labels(inputs, STUDENT)[1]
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten(), ignore_index=-100)


def full_sort(inputs: Inputs, student: Tensor, teacher: Tensor) -> Tensor:
    """ULD by position without chunks: both sides sorted whole, autograd keeps what it needs."""
    total = student.new_zeros((), dtype=torch.float32)
    for number, example in enumerate(inputs.examples):
        ours, theirs = example.sides[STUDENT], example.sides["cross"]
        count = min(ours.response.size, theirs.response.size)
        first = ours.prompt.size - 1, theirs.prompt.size - 1
        p, q = (
            logits[number, start : start + count].float().softmax(-1).sort(-1, descending=True).values
            for logits, start in zip((student, teacher), first, strict=True)
        )
        width = max(p.shape[-1], q.shape[-1])
        p, q = (functional.pad(side, (0, width - side.shape[-1])) for side in (p, q))
        total = total + (p - q).abs().sum()
    return total / inputs.tokens[STUDENT]


def trl_loss(inputs: Inputs, *, hybrid: bool, extended: bool) -> Callable[[Tensor, Callable[[], Tensor]], Tensor]:
    """TRL's ULDLoss: ULD by position, or GOLD's hybrid over merged groups, set as ours is; KD alone."""
    ours = GOLDOptions()
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=extended,
        uld_token_merge_strategy=ours.merge,
        uld_use_hybrid_loss=hybrid,
        uld_hybrid_matched_weight=ours.matched_weight,
        uld_hybrid_unmatched_weight=ours.unmatched_weight,
        beta=ours.beta,
    )
    tokenizers = (inputs.sides[role].tokenizer for role in (STUDENT, "cross"))
    loss_of = peer().ULDLoss(config, *tokenizers, device=inputs.setting.device)
    (ids, target, offsets), (other_ids, other_target, other_offsets) = (labels(inputs, r) for r in (STUDENT, "cross"))

    def loss(student: Tensor, teacher: Callable[[], Tensor]) -> Any:
        return loss_of(
            student,
            teacher(),
            target,
            other_target,
            ids,
            other_ids,
            student_byte_offsets=offsets,
            teacher_byte_offsets=other_offsets,
        )

    return loss


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(setting: Setting, name: str, profiled: bool = False) -> dict[str, Any]:
    """Time and memory of one way, the shares of what the machine could do, and the response tokens.

    Args:
        profiled: add what :func:`profile` says.
    """
    keep_freed_memory()  # as our trainings do; here for peers too, since it is no part of a loss
    torch.manual_seed(0)
    inputs = _inputs(replace(setting, text_like=TEXT_LIKE in name))
    notes: dict[str, Any] = {}
    if name in PEERS:
        roles = set() if name == "cross-entropy" else {"cross"}
        step: Callable[[], Any] = peer_step(inputs, name)
    else:
        methods = methods_of(name, setting.top_k)
        roles = {ROLE_OF_KIND[method.teacher] for method in methods if method.teacher in ROLE_OF_KIND}
        step = our_step(inputs, methods, COMPILED in name)
        kernels.enabled = PLAIN not in name
        if setting.device == "cpu":
            load_loops()
    found: list[Any] = []
    spent: Cost = cost(lambda: found.append(step()) or found.clear(), setting.device, setting.budget)
    if name not in PEERS:
        notes = {key: float(pair[0]) / float(pair[1]) for key, pair in step().diagnostics.items() if "error" in key}
        notes |= {"profile": profile(step, setting.device)} if profiled else {}
    student, sizes = inputs.tokens[STUDENT], {"same": setting.student_size, "cross": setting.teacher_size}
    logits = student * setting.student_size, sum(inputs.tokens[role] * sizes[role] for role in roles)
    return {
        "name": name,
        "seconds": spent.seconds,
        "bytes": spent.bytes,
        "calls": spent.calls,
        "student_tokens": student,
        "teacher_tokens": {role: inputs.tokens[role] for role in sorted(roles)},
        "flops": 6 * logits[0] * setting.student_width + 2 * logits[1] * setting.teacher_width,
        "moved": (2 * logits[0] + logits[1]) * setting.dtype.itemsize,
        **notes,
    }


def load_loops() -> None:
    """Have numba load what losses run on a CPU: its memory is a process's, not a loss's."""
    some, first = torch.rand(2, 8), torch.arange(2)
    compare_ranks(some, some)
    columns.add(some, first, first, columns.take(some, first, first))
    *_, upstream, lse = rows_cpu.cross_entropy(some, first, torch.tensor(1.0))
    rows = Members(some, first, first, first, True)
    comparison_cpu.compare_into(rows, rows, lse, 2, "bayesian", None, upstream, 1.0)


def profile(step: Callable[[], Any], device: str) -> str:
    """The kernels of one step that take longest, and how often each ran; of what the host calls on the CPU."""
    on_gpu = device == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_gpu]
    with torch.profiler.profile(activities=kinds) as seen:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=90))


@lru_cache(maxsize=1)
def _inputs(setting: Setting) -> Inputs:
    """Kept for the next way that runs in the same process, as all do on a GPU: making them takes seconds."""
    return Inputs(setting)


def check(setting: Setting) -> dict[str, float]:
    """Relative difference of our KD sum and TRL's for the first response, where both compute the same."""
    inputs = Inputs(replace(setting, tokens=min(setting.length, setting.tokens), dtype=torch.float32))
    inputs.examples = inputs.examples[:1]
    found = {}
    for name, hybrid in (("uld", False), ("gold", True)):
        method = registered()[name](normalize="rows", **({"match": "string"} if hybrid else {}))
        parts = our_step(inputs, [method])()
        example = inputs.examples[0]
        aligned = example.aligned("cross")
        groups = method.align(aligned) if hybrid else pair_positions(aligned.student_ids.size, aligned.teacher_ids.size)
        with torch.no_grad():
            sides = [functional.linear(*inputs.of(role)) for role in (STUDENT, "cross")]
            peers = float(trl_loss(inputs, hybrid=hybrid, extended=hybrid)(sides[0], lambda sides=sides: sides[1]))
        ours = float(parts.kd[0]) / groups.count
        found[name] = abs(ours - peers) / abs(peers)
    return found


def merging(setting: Setting, groups: int, ours: bool) -> dict[str, Any]:
    """Merging alone: from logits to masses of groups and back. Half of the groups have two tokens, a few twenty."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.where(torch.arange(groups) % 2 == 0, 1, 2)
    sizes[:: max(groups // 4, 1)] = 20
    members = int(sizes.sum())
    logits = torch.randn(members, setting.student_size, generator=generator).to(setting.device) * LOGIT_SPREAD
    tokens = torch.randint(0, setting.student_size, (members,), generator=generator)
    upstream = torch.randn(groups, setting.student_size, generator=generator).to(setting.device)
    number = torch.arange(groups).repeat_interleave(sizes)
    bounds = [0, *sizes.cumsum(0).tolist()]
    if ours:
        index, group, own = (t.to(setting.device) for t in (torch.arange(members), number, tokens))

        def step() -> tuple[Tensor, Tensor]:
            merged = Merged(Members(logits, index, group, own, True), groups, "bayesian")
            masses = merged.masses()
            return masses, merged.at_logits((None, masses * upstream))

    else:
        logits.requires_grad_()
        lists = [list(range(a, b)) for a, b in pairwise(bounds)]
        loss_of = SimpleNamespace(token_merge_strategy="bayesian")
        merged = peer().ULDLoss._merge_probabilities_with_alignment_groups
        ids = tokens.tolist()

        def step() -> tuple[Tensor, Tensor]:
            masses = merged(loss_of, logits.softmax(-1), lists, ids)
            (gradient,) = torch.autograd.grad(masses, logits, upstream)
            return masses.detach(), gradient

    spent = cost(step, setting.device, budget=setting.budget if ours else 0.0)
    norms = [float(made.double().norm()) for made in step()] if groups <= CHECKED_GROUPS else []
    return {"groups": groups, "tokens": members, "seconds": spent.seconds, "bytes": spent.bytes, "norms": norms}


# --- presets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """Sizes of the table of all methods, and of each sweep.

    Attributes:
        tokens: of the student's, in ever more responses.
        length: of the student's, in one response.
        trl_tokens: the most that TRL's losses are swept over: their backward pass grows with the square of a response.
    """

    setting: dict[str, Any]
    tokens: tuple[int, ...]
    length: tuple[int, ...]
    sizes: tuple[int, ...]
    chunks: tuple[int, ...]
    groups: tuple[int, ...]
    sweep: dict[str, Any]
    trl_tokens: int


_H100 = {"tokens": 3996, "length": 500, "student_size": 151_936, "teacher_size": 32_064}
_WIDTHS = {"student_width": 896, "teacher_width": 3072}
PRESETS = {
    "cpu": Preset(
        # rows whose logits are 128 MiB, which train.chunk_rows: auto takes on a CPU where a loss has room for so many
        {"tokens": 512, "length": 128, "student_size": 20_000, "teacher_size": 16_000, "chunk_rows": 932}
        | {"student_width": 128, "teacher_width": 256},
        tokens=(64, 256, 1024),
        length=(128, 256, 512, 1024),
        sizes=(8_000, 32_000, 151_936),
        chunks=(32, 128, 512),
        groups=(64, 128, 256, 512),
        sweep={"tokens": 128, "student_size": 8_000, "teacher_size": 6_000},
        trl_tokens=256,
    ),
    "h100": Preset(
        _H100 | _WIDTHS | {"chunk_rows": 512},
        tokens=(512, 2048, 8192),
        length=(128, 512, 2048),
        sizes=(32_064, 65_536, 151_936),
        chunks=(128, 256, 512, 1024),
        groups=(64, 128, 256, 512),
        sweep={},
        trl_tokens=4096,
    ),
    "full": Preset(
        _H100 | _WIDTHS | {"chunk_rows": 512},
        tokens=(512, 1024, 2048, 4096, 8192, 16_384, 32_768),
        length=(128, 256, 512, 1024, 2048, 4096),
        sizes=(32_064, 65_536, 131_072, 151_936, 262_144),
        chunks=(64, 128, 256, 512, 1024, 2048),
        groups=(64, 128, 256, 512),
        sweep={},
        trl_tokens=4096,
    ),
}


def main() -> None:
    arguments = command_line()
    demand(arguments.device)
    preset = PRESETS[arguments.preset]
    fused = [name + COMPILED for name in CLOSED] if arguments.compile else []
    names = arguments.ways or [PEERS[0], *fused, *PEERS[1:], *OURS]  # what matters most first: a run may be cut
    absent = [name for name in names if name.startswith("TRL")] if peer() is None else []
    if absent:
        print(f"not here, since TRL is not installed: {', '.join(absent)}\n")
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            arguments.device, dtype, folder=Path(folder), data=arguments.data, **preset.setting | shrunk(arguments)
        )
        bench = Bench(arguments, preset, setting, [name for name in names if name not in absent])
        bench.run()


def command_line() -> argparse.Namespace:
    parser = preset_parser(__doc__.splitlines()[0], PRESETS)
    add_real_inputs(parser)
    ways = [*OURS, *(name + COMPILED for name in CLOSED), *PEERS]
    ways += [name + PLAIN for name in ways if name not in PEERS]
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--rows", "--ways", dest="ways", nargs="+", choices=ways, metavar="ROW", help=f"of {', '.join(ways)}; else all"
    )
    parser.add_argument(
        "--profile", action="store_true", help="the longest kernels of each row too, in a .txt beside it"
    )
    parser.add_argument(
        "--resume", action="store_true", help="leave out rows that an earlier run with these options wrote"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="with torch.compile too; by default on a GPU"
    )
    parser.add_argument("--tokens", type=int, help="response tokens, in place of the preset's")
    parser.add_argument("--student-size", type=int, help="columns of the student's logits, in place of the preset's")
    parser.add_argument("--teacher-size", type=int)
    parser.add_argument("--top-k", type=int, help="ranks that the ways with top_k compare; by default 1024")
    parser.add_argument("--seconds", type=float, help="after which a way is not repeated; by default 10, on a GPU 2")
    arguments = parsed(parser)
    if arguments.seconds is None:  # five calls each on a CPU, peers too: memory that is new makes the first ones slow
        arguments.seconds = 2.0 if arguments.device == "cuda" else 10.0
    if arguments.compile is None:
        arguments.compile = arguments.device == "cuda"
    return arguments


def shrunk(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line puts in place of the preset's sizes."""
    given = {key: getattr(arguments, key) for key in ("tokens", "student_size", "teacher_size", "top_k")}
    return {key: value for key, value in given.items() if value is not None} | {"budget": arguments.seconds}


PARTS = ["methods", "merging", "tokens", "length", "vocabulary", "chunks"]


def row_key(setting: Setting, name: str) -> str:
    """What a row is found by when a run goes on."""
    sizes = {key: value for key, value in asdict(setting).items() if key not in ("folder", "data", "budget")}
    return " ".join([name, *map(str, sizes.values())])


def told(row: dict[str, Any]) -> str:
    """A row in words, when it is done; nothing of one that failed, which has been said."""
    if "seconds" not in row:
        return ""
    notes = "".join(f", {key} {value:.2e}" for key, value in row.items() if "error" in key)
    return f"{row['name']}: {row['seconds'] * 1e3:,.1f} ms, {row['bytes'] / 2**20:,.0f} MiB{notes}"


class Bench:
    """Runs the parts and prints their tables."""

    def __init__(self, arguments: argparse.Namespace, preset: Preset, setting: Setting, names: list[str]) -> None:
        self.arguments, self.preset, self.names = arguments, preset, names
        self.growing = [name for name in names if arguments.ways or not name.endswith(RELEASED)]
        self.place = Place(setting.device)
        paths = {"student": arguments.student_tokenizer, "teacher": arguments.teacher_tokenizer}
        self.given = {role: read_tokenizer(path) for role, path in paths.items() if path}
        self.ids = {role: max(made.get_vocab().values()) + 1 for role, made in self.given.items()}
        swept = replace(setting, **preset.sweep) if setting.tokens == preset.setting["tokens"] else setting
        budget = min(setting.budget, 0.5) if setting.device == "cpu" else setting.budget
        self.setting, self.swept = self.widened(setting), self.widened(replace(swept, budget=budget))
        self.found: dict[str, Any] = {}
        self.lines = Lines(result_path(arguments, f"loss-{arguments.preset}").with_suffix(".jsonl"), arguments.resume)

    def widened(self, setting: Setting) -> Setting:
        """The setting with logits that are as wide as the given tokenizers ask for."""
        wide = {f"{role}_size": max(getattr(setting, f"{role}_size"), ids) for role, ids in self.ids.items()}
        return replace(setting, **wide)

    def run(self) -> None:
        device, dtype = self.setting.device, self.setting.dtype
        print(f"{machine(device)}, TRL {peer_version() or 'absent'}", flush=True)
        self.rates = self.place.run(copy_rate, device, dtype), self.place.run(matrix_rate, device, dtype)
        threads = "" if device == "cuda" else ", one thread, processor time"
        print(
            f"{str(dtype).removeprefix('torch.')}{threads}; measured here: copy {self.rates[0] / 1e9:,.1f} GB/s, "
            f"matrix product {self.rates[1] / 1e12:,.3f} TFLOP/s\n"
        )
        self.found |= {"preset": self.arguments.preset, "setting": asdict(self.setting) | {"folder": None}}
        self.found |= {"copy_bytes_per_second": self.rates[0], "flops_per_second": self.rates[1]}
        for part in self.arguments.parts:
            getattr(self, part)()
            sys.stdout.flush()
            written = write(self.arguments, f"loss-{self.arguments.preset}", self.found)  # a later part may fail
        print(f"\nnumbers: {written}")

    def tokenizers(self, setting: Setting) -> Setting:
        """The setting with a folder of tokenizers of its sizes."""
        folder = setting.folder / f"{setting.student_size}-{setting.teacher_size}"
        if not folder.is_dir():
            folder.mkdir()
            for role, size in (("student", setting.student_size), ("teacher", setting.teacher_size)):
                made = self.given[role] if role in self.given else trained_tokenizer(role, size)
                made.backend_tokenizer.save(str(folder / f"{role}.json"))
        return replace(setting, folder=folder)

    def measured(self, setting: Setting, name: str) -> dict[str, Any]:
        """One way; where it fails, such as for memory, the reason. Printed and written as soon as it is known."""
        known = self.lines.find(row_key(setting, name))
        if known is not None:
            return known
        try:
            profiled = self.arguments.profile and name not in PEERS
            found: dict[str, Any] = self.place.run(measure, self.tokenizers(setting), name, profiled)
            if profiled:
                with self.lines.path.with_suffix(".txt").open("a", encoding="utf-8") as file:
                    file.write(f"{name}\n{found.pop('profile')}\n\n")
        except Exception as error:  # whatever it is, the other rows are worth having
            found = {"name": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0]:.120}"}
            print(f"{name}: {found['error']}", file=sys.stderr)
            if setting.device == "cuda":
                torch.cuda.empty_cache()
        self.lines.add(row_key(setting, name), found, told(found))
        return found

    def methods(self) -> None:
        """Every way at one size."""
        setting = self.setting
        rows = {name: self.measured(setting, name) for name in self.names}
        self.found["methods"] = list(rows.values())
        done = [row for row in rows.values() if "seconds" in row]
        tokens = max((row["student_tokens"] for row in done), default=0)
        other = max((row["teacher_tokens"].get("cross", 0) for row in done), default=0)
        print(
            f"{tokens:,} student and {other:,} teacher response tokens, vocabularies {setting.student_size:,} and "
            f"{setting.teacher_size:,}, widths {setting.student_width} and {setting.teacher_width}, chunks of at most "
            f"{setting.chunk_rows} rows; forward, backward, heads and all gradients\n"
        )
        base = rows.get("cross-entropy", {}).get("seconds")
        table = []
        for name, row in rows.items():
            if "seconds" not in row:
                table.append([name, "failed", *[None] * 6])
                continue
            rival = rows.get(RIVAL.get(name.partition(" ")[0], ""), {}).get("seconds")
            error = next((value for key, value in row.items() if "error" in key), None)
            table.append(
                [
                    name,
                    row["seconds"] * 1e3,
                    row["bytes"] / 2**20,
                    row["seconds"] / base if base else None,
                    rival / row["seconds"] if rival else None,
                    error,
                    f"{row['moved'] / self.rates[0] / row['seconds']:.0%}",
                    f"{row['flops'] / self.rates[1] / row['seconds']:.0%}",
                ]
            )
        columns = [
            "loss",
            "ms",
            "peak MiB",
            "× cross-entropy",
            "times faster than TRL",
            "sort error ≤",
            "of copy rate",
            "of matrix rate",
        ]
        print(markdown(columns, table) + "\n")
        if peer() is not None and {"uld", "gold"} <= set(self.names):
            small = replace(self.tokenizers(setting), tokens=min(setting.tokens, setting.length))
            self.found["difference_to_trl"] = self.place.run(check, small)
            differences = ", ".join(f"{name} {value:.0e}" for name, value in self.found["difference_to_trl"].items())
            print(f"KD of one response, float32, relative difference to TRL's: {differences}\n")

    def merging(self) -> None:
        """Merging of groups alone, at V = 20,000."""
        setting = replace(self.setting, student_size=min(self.setting.student_size, 20_000))
        rows = []
        for groups in self.preset.groups:
            ours = self.place.run(merging, setting, groups, True)
            theirs = self.place.run(merging, setting, groups, False) if peer() is not None else None
            rows.append({"groups": groups, "ours": ours, "trl": theirs})
            if theirs:  # the same masses, the same gradient
                apart = [abs(a - b) / b for a, b in zip(ours["norms"], theirs["norms"], strict=True)]
                assert max(apart, default=0.0) < 1e-5, apart
        self.found["merging"] = rows
        self.found["merging_exponents"] = {
            who: exponent(self.preset.groups, [row[who]["seconds"] for row in rows])
            for who in ("ours", "trl")
            if all(row[who] for row in rows)
        }
        print(f"merging alone, V = {setting.student_size:,}, float32, from logits and back\n")
        table = []
        for row in rows:
            theirs = row["trl"]
            ratio = theirs["seconds"] / row["ours"]["seconds"] if theirs else None
            table.append(
                [
                    row["groups"],
                    row["ours"]["tokens"],
                    row["ours"]["seconds"] * 1e3,
                    theirs["seconds"] * 1e3 if theirs else None,
                    ratio,
                ]
            )
        print(markdown(["groups", "tokens", "ours ms", "TRL ms", "times faster"], table))
        slopes = self.found["merging_exponents"]
        print(f"\ntime grows as groups to the power of {', '.join(f'{v:.2f} ({k})' for k, v in slopes.items())}\n")

    def tokens(self) -> None:
        """How time grows with response tokens where there are ever more responses: with the batch."""
        points = {size: replace(self.swept, tokens=size) for size in self.preset.tokens}
        self.sweep("tokens", f"response tokens, in responses of about {self.swept.length:,}", points, self.growing)

    def length(self) -> None:
        """How time grows with the length of one response."""
        points = {size: replace(self.swept, tokens=size, length=size) for size in self.preset.length}
        self.sweep("length", "response tokens, in one response", points, self.growing)

    def vocabulary(self) -> None:
        """How time grows with the student's vocabulary, the teacher's left as it is."""
        least = self.ids.get("student", 0)
        points = {size: replace(self.swept, student_size=size) for size in self.preset.sizes if size >= least}
        if left := [f"{size:,}" for size in self.preset.sizes if size < least]:
            print(f"no vocabulary of {', '.join(left)}: the student's tokenizer has {least:,} ids\n")
        names = [name for name in self.growing if not name.startswith("TRL")]
        self.sweep("vocabulary", "student's vocabulary", points, names)

    def chunks(self) -> None:
        """What the rows of a chunk change."""
        whole = replace(self.swept, tokens=self.setting.tokens)
        points = {rows: replace(whole, chunk_rows=rows) for rows in self.preset.chunks}
        names = [name for name in self.growing if name not in PEERS]
        self.sweep("chunks", "rows in a chunk", points, names, slope=False, memory=True)

    def sweep(
        self,
        key: str,
        title: str,
        points: dict[int, Setting],
        names: Sequence[str],
        slope: bool = True,
        memory: bool = False,
    ) -> None:
        """A table of ms (and MiB) with a row for each way and a column for each point."""
        table, kept = [], []
        heads = {size: size for size in points}
        for name in names:
            rows = {}
            for size, point in points.items():
                beyond = name.startswith("TRL") and key in GROWING and point.tokens > self.preset.trl_tokens
                rows[size] = {} if beyond else self.measured(point, name)
            done = {size: row for size, row in rows.items() if "seconds" in row}
            if key in GROWING:  # texts are whole answers: there are some tokens more than were asked for
                heads |= {size: row["student_tokens"] for size, row in done.items()}
            seconds = [row["seconds"] for row in done.values()]
            found = exponent([heads[size] for size in done], seconds) if slope and len(done) > 1 else None
            kept.append({"name": name, "points": rows, "exponent": found})
            shown = [self.shown(rows[size], memory) for size in points]
            table.append([name, *shown, *([found] if slope else [])])
        self.found[key] = kept
        sizes = f"vocabularies {self.swept.student_size:,} and {self.swept.teacher_size:,}"
        if key == "vocabulary":
            sizes = f"the teacher's {self.swept.teacher_size:,}"
        print(f"{'ms (peak MiB)' if memory else 'ms'} by {title}; {sizes}\n")
        columns = ["loss", *(f"{heads[size]:,}" for size in points), *(["grows as ^"] if slope else [])]
        print(markdown(columns, table) + "\n")

    def shown(self, row: dict[str, Any], memory: bool) -> str | None:
        """A cell of a sweep."""
        if "seconds" not in row:
            return None
        return f"{row['seconds'] * 1e3:,.0f}" + (f" ({row['bytes'] / 2**20:,.0f})" if memory else "")


GROWING = ("tokens", "length")
"""Sweeps whose sizes are tokens."""


if __name__ == "__main__":
    main()
