"""What each method's loss holds above the hidden rows, counted on CPU tensors of the sizes that a GPU would have.

    python benchmarks/memory.py                           # logits as wide as the preset h100 of loss.py has them
    python benchmarks/memory.py --rows csd "gold top_k"
    python benchmarks/memory.py --eighth                  # of the columns of either side: seconds

Counted is what torch's operators hand over (`HeldBytes`), in bfloat16, with torch standing in for the kernels of the
cross-entropy, a few rows at a time, and with its sorts; a method's own kernels run on a GPU alone. Hidden rows
are narrow here: the gradient of a head as wide as the preset's is added to what was counted.
"""

from __future__ import annotations

import argparse
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from common import markdown, parsed, trained_tokenizer, write
from loss import PRESETS, Inputs, Setting, our_training
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.base.device import chunk_room, rows_in
from harness.data.chunk_memory import row_bytes
from harness.data.tokens import STUDENT
from harness.plan.objectives import ROLE_OF_KIND
from harness.training import chunk_walk
from harness.training.chunk_walk import ChunkWalk
from methods.base import Method, Need, TeacherKind, registered
from methods.library import cpu_loops
from methods.library.closed_form import cross_entropy

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "uld exact": ("uld", {"sort": "exact"}),
    "uld counted": ("uld", {"sort": "counted"}),
    "uld top_k": ("uld", {"sort": "top_k"}),
    "gold exact": ("gold", {"sort": "exact"}),
    "gold counted": ("gold", {"sort": "counted"}),
    "gold top_k": ("gold", {"sort": "top_k"}),
    "gold mean_log": ("gold", {"sort": "top_k", "merge": "mean_log"}),
    "gold rest": ("gold", {"unmatched": "rest"}),
    "cdm mean": ("cdm", {"pieces": "mean"}),
    "one_to_one top_k": ("one_to_one", {"top_k": 16}),
    "x_token learnt": ("x_token", {"projection": "learnt"}),
}
"""Forms that hold something else than a method as it is by default."""

WIDTHS = {"student_width": 16, "teacher_width": 24}
TOKENS, MANY = 64, 512
"""Of the one response that is measured, in one chunk: memory grows with them. Many for methods that read a few numbers
of each row: what some choose columns by is as large for any response, and much beside few rows."""


def forms() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and options of every form, but of methods that learn from no teacher's rows."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, kind in registered().items():
        if kind.teacher is TeacherKind.NONE:
            continue
        by_default = [key for key, (of, _) in OTHERS.items() if of == name and "sort" in OTHERS[key][1]]
        found |= {} if by_default else {name: (name, {})}
        found |= {key: value for key, value in OTHERS.items() if value[0] == name}
        found |= {f"{name} released": (name, {"fidelity": "released"})} if kind.fidelities_differ else {}
    return found


class HeldBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, within, the bytes of all tensors that are made and still referred to.

    Not counted: tensors that were there before, what an operator takes for itself alone while it runs, and numpy's
    arrays. Tensors that share memory count once.

    Attributes:
        now, peak: bytes of what was made within; ``peak`` is the most that there were at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(  # Any: torch's own signature
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and _key(each) not in given:
                self._add(each.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class Standing:
    """Stands in for the kernels of the cross-entropy, in little memory of its own."""

    @staticmethod
    def log_sum_exp(logits: Tensor) -> Tensor:
        return torch.cat([rows.float().logsumexp(-1) for rows in logits.split(8)])

    @staticmethod
    def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        upstream, sums = torch.empty_like(logits), []
        for rows, of_rows, out in zip(logits.split(8), targets.split(8), upstream.split(8), strict=True):
            value, norm, gradient = cross_entropy(rows.float(), of_rows, scale)
            sums.append(torch.stack([value, norm]))
            out.copy_(gradient)
        value, norm = torch.stack(sums).sum(0)
        return value, norm, upstream, Standing.log_sum_exp(logits)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within, a walk takes the way that it takes on a GPU where a method has no kernels."""
    kept = chunk_walk.kernels_for, cpu_loops.enabled
    chunk_walk.kernels_for = lambda *_: Standing  # type: ignore[assignment]
    cpu_loops.enabled = False
    try:
        yield
    finally:
        chunk_walk.kernels_for, cpu_loops.enabled = kept


class Walked(NamedTuple):
    """A walk over a batch.

    Attributes:
        rows: of the student's in the largest chunk.
        chunks: how many.
        bytes: the most that was held at once above the gradient of the head.
        promised: bytes a row, by the methods' own word.
    """

    rows: int
    chunks: int
    bytes: int
    promised: float


def walked(inputs: Inputs, *methods: Method) -> Walked:
    """One walk over all rows; inputs in bfloat16 are walked over as on a GPU."""
    setting = inputs.setting
    low, kept, held = setting.dtype.itemsize < 4, ChunkWalk.run, HeldBytes()
    chunks: list[tuple[int, int]] = []

    def counted(walk: ChunkWalk, *given: Any) -> Any:
        chunks[:] = walk.batch.chunks
        with held:
            return kept(walk, *given)

    with as_on_a_gpu() if low else nullcontext():
        _, step = our_training(inputs, methods)
        step()  # what is made once
        ChunkWalk.run = counted  # type: ignore[method-assign]
        try:
            step()
        finally:
            ChunkWalk.run = kept  # type: ignore[method-assign]
    columns = {"same": setting.student_size, "cross": setting.teacher_size}
    terms = []
    for method in methods:
        role = ROLE_OF_KIND[method.teacher]
        into = method.held_into if Need.HIDDEN in method.needs else None  # such a loss has no kernels of its own
        by_loops = method.held_by_loops
        promises = SimpleNamespace(held=method.held, held_into=into, held_by_loops=by_loops, needs=method.needs)
        by_torch = cast(Method, promises)
        terms.append((by_torch, columns[role] * inputs.tokens[role] / inputs.tokens[STUDENT]))
    return Walked(
        max(stop - start for start, stop in chunks),
        len(chunks),
        held.peak - 4 * setting.student_size * setting.student_width,
        row_bytes(setting.student_size, terms, setting.dtype.itemsize, "kernels" if low else "loops"),
    )


def inputs_of(folder: Path, student_size: int, teacher_size: int, **settings: Any) -> Inputs:
    """Text of two made-up tokenizers, with logits as wide as their vocabularies."""
    for role, size in ((STUDENT, student_size), ("teacher", teacher_size)):
        trained_tokenizer(role, size).backend_tokenizer.save(str(folder / f"{role}.json"))
    sizes = {"student_size": student_size, "teacher_size": teacher_size}
    return Inputs(Setting("cpu", folder=folder, **WIDTHS | sizes | settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=forms(), metavar="ROW", help=f"of {', '.join(forms())}; else all")
    parser.add_argument("--eighth", action="store_true", help="an eighth of the columns on either side")
    arguments = parsed(parser, named=())
    arguments.device = "cpu"
    torch.set_num_threads(1)
    preset, part = PRESETS["h100"].setting, 8 if arguments.eighth else 1
    sizes = {"student_size": preset["student_size"] // part, "teacher_size": preset["teacher_size"] // part}
    head = 4 * preset["student_size"] * preset["student_width"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = {
            size: inputs_of(Path(folder), **sizes, tokens=size, length=size, chunk_rows=size, dtype=torch.bfloat16)
            for size in (TOKENS, MANY)
        }
        for name in arguments.rows or forms():
            kind, options = forms()[name]
            method = registered()[kind](**options)
            found = walked(inputs[MANY if Need.ROW_SCALARS in method.needs else TOKENS], method)
            a_row, taken = part * found.bytes / found.rows, rows_in(chunk_room(head), part * found.promised)
            if Need.WHOLE_RESPONSE in method.needs:
                taken = max(taken, preset["length"])
            apart = {Need.ONE_RESPONSE, Need.WHOLE_RESPONSE} & method.needs  # no chunk has two responses' rows
            of_one = preset["length"] if apart else preset["tokens"]
            chunks = -(-preset["tokens"] // of_one) * -(-of_one // taken)
            held = {"bytes_a_row": a_row, "promised": part * found.promised}
            rows.append({"name": name, **held, "rows": taken, "chunks": chunks})
            print(f"# {name}: {a_row / 2**20:.2f} MiB a row, {found.promised * part / 2**20:.2f} promised", flush=True)
    table = []
    for row in rows:
        at_512, by_auto = ((row["bytes_a_row"] * size + head) / 2**20 for size in (512, row["rows"]))
        table.append([row["name"], at_512, row["promised"] / 2**20, row["rows"], row["chunks"], by_auto])
    columns = ["loss", "MiB in chunks of 512 rows", "promised MiB a row", "rows by auto", "chunks", "MiB by auto"]
    print(markdown(columns, table))
    print(f"# {write(arguments, 'memory', {'setting': sizes | WIDTHS, 'head_bytes': head, 'rows': rows})}")


if __name__ == "__main__":
    main()
