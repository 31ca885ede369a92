"""Rows that keep a teacher's likeliest tokens: what is packed, what methods make of it, plans, disk, reports."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from harness.base.errors import HarnessError
from harness.data.batches import Collator
from harness.data.chunks import TEACHER_ROWS, row_bounds
from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.tokens import STUDENT
from harness.models.heads import Head, entropies
from harness.models.top_rows import TopRowsHead, pack, packed_bytes, packer, unpack
from harness.plan.builder import make_plan
from harness.plan.costs.stages import Coster
from harness.recipe.load import load_recipe
from harness.results.record import write_record
from harness.run import preflight
from harness.store.artefacts import STEPS, TRACES
from harness.training.loss import Distiller
from methods.base import Method
from methods.base import find as method_of
from tests.conftest import Command
from tests.methods.contract import Bench, bench

METHODS = [
    method_of(name)(fidelity=fidelity)
    for name in ("fkd", "uld", "gold", "mined", "one_to_one", "cdm")
    for fidelity in (("described", "released") if name == "cdm" else ("described",))
]


def by_hand(logits: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """float64 probabilities, token by token: the likeliest k as they are, the others an equal part of what is left."""
    made = np.zeros(logits.shape)
    for row, own in zip(made, np.asarray(logits, dtype=np.float64), strict=True):
        probabilities = np.exp(own - own.max())
        probabilities /= probabilities.sum()
        kept = sorted(range(own.size), key=lambda token: -probabilities[token])[:k]
        rest = [token for token in range(own.size) if token not in kept]
        row[kept] = probabilities[kept]
        if rest:
            row[rest] = sum(probabilities[token] for token in rest) / len(rest)
    return made


def test_four_tokens_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/8."""
    rows = pack(torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log(), 2)
    assert rows.dtype is torch.uint8
    assert rows.shape == (1, packed_bytes(2))
    assert rows.numpy()[0, 4:12].view(np.int32).tolist() == [1, 3]
    found = unpack(rows, 4).exp()[0].tolist()
    assert found == pytest.approx([0.125, 0.5, 0.125, 0.25], rel=5e-4)
    # with one token only, the other half is shared by three
    assert unpack(pack(torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log(), 1), 4).exp()[0].tolist() == pytest.approx(
        [1 / 6, 0.5, 1 / 6, 1 / 6], rel=5e-4
    )


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("k", [1, 2, 3, 8, 49, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacked_rows_are_distributions_built_by_hand(rows: int, k: int, dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(rows, 50, generator=torch.Generator().manual_seed(k))).to(dtype)
    level = logits.double().logsumexp(-1, keepdim=True)  # logits come back at their own level
    found = (unpack(pack(logits, k), 50).double() - level).exp().numpy()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-3)
    # float16 keeps 11 bits of a logarithm, whose absolute error is the relative one of the probability
    expected = by_hand(logits.float().numpy(), k)
    np.testing.assert_allclose(found, expected, rtol=float(np.abs(np.log(expected)).max()) * 2**-11 + 1e-5)


def test_a_position_that_is_certain_stays_finite() -> None:
    logits = torch.full((2, 6), -80_000.0)
    logits[0, 2], logits[1, 4] = 0.0, 7.0
    for k in (1, 3, 6):
        found = unpack(pack(logits, k), 6)
        assert torch.isfinite(found).all()
        assert found.argmax(-1).tolist() == [2, 4]
        torch.testing.assert_close(found.exp().sum(-1), torch.tensor([1.0, math.exp(7)]))


def test_rows_of_any_slice_are_read() -> None:
    """Batches are cut at any row: numbers then begin at any byte."""
    logits = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    for k in (3, 4):
        packed, whole = pack(logits, k), unpack(pack(logits, k), 30)
        for start in range(9):
            torch.testing.assert_close(unpack(packed[start : start + 1], 30), whole[start : start + 1], rtol=0, atol=0)
    assert unpack(packed[:0], 30).shape == (0, 30)


def test_chunks_of_rows_are_packed_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(40, 6, generator=generator), torch.randn(40, generator=generator), soft_cap=2.0)
    rows = torch.randn(11, 6, generator=generator)
    monkeypatch.setattr("harness.models.top_rows._CHUNK", 3)
    packed = packer(head, 5)(rows)
    assert torch.equal(packed, torch.cat([pack(head.logits(part), 5) for part in rows.split(3)]))
    # A product of another shape may round another way, and so may a half made of it: docs/exactness.md.
    torch.testing.assert_close(unpack(packed, 40), unpack(pack(head.logits(rows), 5), 40), rtol=2e-3, atol=2e-3)


def test_entropies_are_those_of_what_was_kept() -> None:
    logits = 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    kept = by_hand(logits.numpy(), 6)
    found = entropies(TopRowsHead.over(40, "cpu"), pack(logits, 6), 2)
    np.testing.assert_allclose(found, -(kept * np.log(kept)).sum(-1), rtol=2e-3)


# --- Methods ----------------------------------------------------------------------------------------------------------


def learned(made: Bench, stored: Any, head: Head, dtype: torch.dtype | None = None) -> tuple[float, torch.Tensor]:
    """KD loss from stored rows, and its gradient at the student's embeddings."""
    batch = Collator(
        made.objective.terms, {STUDENT: 0, made.role: 0}, chunk_rows=5, stored={made.role: stored}
    ).collate(made.examples)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        parts = Distiller(made.student, made.objective, {}, {made.role: head})(
            batch, made.objective.divisors(batch.counts)
        )
    (gradient,) = torch.autograd.grad(parts.loss, [made.student.get_input_embeddings().weight])
    return float(parts.kd[0]), gradient


def kept_rows(made: Bench, folder: Path, k: int | None) -> StoredRows:
    assert made.teacher is not None
    examples = [aligned.example for aligned in made.examples]
    folder.mkdir()
    pack_ = None if k is None else packer(Head.of(made.teacher), k)
    size = store_rows(made.teacher, made.role, examples, folder, pad=0, pack=pack_)
    if k is not None:
        bounds = [row_bounds(example.sides[made.role], TEACHER_ROWS) for example in examples]
        assert size == sum(stop - start for start, stop in bounds) * packed_bytes(k)
    return StoredRows(folder)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.options.fidelity}")
def test_all_tokens_kept_teach_what_hidden_rows_teach(method: Method, tmp_path: Path) -> None:
    """CDM takes the likeliest 100 tokens: of two that float16 holds as one, the other may be among them."""
    made = bench(method, dtype=torch.float32)
    assert made.teacher is not None
    head = Head.of(made.teacher)
    value, gradient = learned(made, kept_rows(made, tmp_path / "hidden", None), head)
    packed = kept_rows(made, tmp_path / "packed", head.weight.shape[0])
    found, of_packed = learned(made, packed, TopRowsHead.over(head.weight.shape[0], "cpu"))
    assert found == pytest.approx(value, rel=5e-3, abs=1e-4)
    assert float((of_packed - gradient).norm()) <= (3e-2 if method.name == "cdm" else 5e-3) * float(gradient.norm())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.options.fidelity}")
def test_few_tokens_kept_teach_the_distribution_built_by_hand(method: Method, tmp_path: Path) -> None:
    """The same loss and gradient as of a teacher whose logits are that distribution's, at the level of its own."""
    made = bench(method, dtype=torch.float32)
    assert made.teacher is not None
    k, head, hidden = 8, Head.of(made.teacher), kept_rows(made, tmp_path / "hidden", None)
    logits = {a.example.id: head.logits(hidden(a.example.id)).detach().numpy() for a in made.examples}
    levels = {name: np.log(np.exp(rows).sum(-1, keepdims=True)) for name, rows in logits.items()}
    built = {name: torch.from_numpy(np.log(by_hand(rows, k)) + levels[name]).float() for name, rows in logits.items()}
    value, gradient = learned(made, built.__getitem__, Head(torch.eye(head.weight.shape[0])))
    found, of_packed = learned(
        made, kept_rows(made, tmp_path / "packed", k), TopRowsHead.over(head.weight.shape[0], "cpu")
    )
    assert found == pytest.approx(value, rel=5e-3, abs=1e-4)
    assert float((of_packed - gradient).norm()) <= 5e-3 * float(gradient.norm())


def test_packed_rows_are_read_under_autocast(tmp_path: Path) -> None:
    """bf16 products must not reach bytes."""
    made = bench(method_of("uld")(), dtype=torch.float32)
    assert made.teacher is not None
    rows, head = kept_rows(made, tmp_path / "packed", 8), TopRowsHead.over(Head.of(made.teacher).weight.shape[0], "cpu")
    expected, _ = learned(made, rows, head)
    assert learned(made, rows, head, torch.bfloat16)[0] == pytest.approx(expected, rel=2e-2)


# --- Runs -------------------------------------------------------------------------------------------------------------


PACKED = "teacher_rows.keep=top_k"


@pytest.fixture(scope="module")
def recipe(tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = copy.deepcopy(tiny_recipe) | {"tasks": ["dolly"], "methods": ["uld", "fkd"], "baseline": None}
    path = tmp_path_factory.mktemp("recipe") / "packed.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def config(recipe: Path, role: str) -> dict[str, Any]:
    """Of a teacher."""
    model = yaml.safe_load(recipe.read_text())["teachers"][role]["model"].removeprefix("path:")
    read: dict[str, Any] = json.loads((Path(model) / "config.json").read_text())
    return read


def test_the_plan_counts_the_bytes_of_packed_rows(recipe: Path) -> None:
    plans = [make_plan(load_recipe(str(recipe), more)) for more in ([], [PACKED, "teacher_rows.k=10"])]
    hidden, packed = (
        {stage.role: Coster(plan).cost(stage).disk for stage in plan.stages() if stage.kind == "rows"} for plan in plans
    )
    assert hidden.keys() == packed.keys() == {"same", "cross"}
    for role in hidden:
        positions = hidden[role] / (2 * config(recipe, role)["hidden_size"])  # bf16, as on the GPUs of the costs
        assert positions > 10
        assert packed[role] == pytest.approx(positions * (10 * (2 + 4) + 4 + 4))


def test_rows_that_a_method_reads_whole_are_not_packed(recipe: Path) -> None:
    plan = make_plan(load_recipe(str(recipe), [PACKED, "methods=[dskd_v2]"]))
    with pytest.raises(HarnessError, match=r"teacher_rows.keep: found top_k; expected hidden, which dskd_v2 reads"):
        preflight._check_rows(plan, {})


def test_a_report_says_who_learned_from_what(recipe: Path, tmp_path: Path) -> None:
    def said(*more: str) -> str | None:
        record = write_record(tmp_path, make_plan(load_recipe(str(recipe), more)), {}, {}).record
        return dict(record["settings"]).get("Teacher rows")

    words = "the likeliest 256 of each position in float16, the rest as one mass spread evenly"
    softer = "that rest weighs more than the teacher's own"
    assert said() is None
    assert said(PACKED, "methods=[uld]") == words
    softened = ["method_options.fkd.temperature=2"]
    assert said(PACKED, *softened) == f"{words}; at a temperature above 1 (fkd) {softer}"
    assert said(PACKED, "methods=[sft,control]") is None
    live = ["methods=[uld,gold]", "method_options.gold.rollout_share=0.5"]
    assert said(PACKED, *live) == f"{words}; whole and live for gold"
    assert said(PACKED, "methods=[gold]", live[1]) is None  # nothing is stored


@pytest.mark.slow
def test_a_run_with_packed_rows_says_so_and_trains_as_with_hidden_ones(
    recipe: Path, tmp_path: Path, harness: Command
) -> None:
    """With all tokens but a few kept, students learn the same from rows that no head is needed for."""
    runs = tmp_path / "runs"

    def run(*overrides: str) -> tuple[str, dict[str, Any]]:
        done = harness(
            "run", f"recipe={recipe}", "methods=[uld]", "evaluation.bits_per_byte=true", *overrides, "--runs", runs
        )
        assert done.code == 0, done.out + done.err
        report = Path(done.out.replace("\n", "").partition("Files: ")[2].partition(", ")[0]).parent / "report.md"
        made = {}
        for path in runs.glob("store/*/*/manifest.json"):
            manifest = json.loads(path.read_text())
            if manifest["kind"] in ("rows", "student") and path not in seen:
                seen.add(path)
                made[manifest["kind"]] = path.parent
        return report.read_text(), made

    seen: set[Path] = set()
    too_many = harness("run", f"recipe={recipe}", PACKED, "teacher_rows.k=100000", "--runs", runs)
    assert too_many.code == 2
    assert "teacher_rows.k: found 100000; expected at most" in too_many.out + too_many.err
    assert not list(runs.glob("store/*/*/manifest.json"))
    size = config(recipe, "cross")["vocab_size"]
    (plain, hidden), (report, packed) = run(), run(PACKED, f"teacher_rows.k={size}")
    assert "Teacher rows" not in plain
    assert f"| Teacher rows | the likeliest {size} of each position in float16, the rest as one mass" in report
    rows = [StoredRows(made["rows"]) for made in (hidden, packed)]
    assert rows[0].index == rows[1].index
    name = next(iter(rows[1].index))
    assert rows[1](name).dtype is torch.uint8
    assert rows[1](name).shape == (len(rows[0](name)), 6 * size + 8)
    steps = [STEPS.load(made["student"]) for made in (hidden, packed)]
    for one, other in zip(*steps, strict=True):
        assert other["kd_0"] == pytest.approx(one["kd_0"], rel=2e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)
    traces = [TRACES.load(made["student"]) for made in (hidden, packed)]
    assert [trace["groups"] for trace in traces[0]] == [trace["groups"] for trace in traces[1]]
    assert any(value is not None for trace in traces[1] for value in trace["kd"])
