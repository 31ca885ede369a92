"""The teacher's signal: rows that are stored equal rows that are computed live; adapters come back as they were."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.errors import HarnessError
from harness.data import teacher_rows as teacher
from harness.data.batches import Collator
from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.tokens import STUDENT
from harness.models.heads import Head
from harness.models.lora import add_lora, merge_lora
from harness.models.spec import Lora
from harness.store.artefacts import ROWS_INDEX
from harness.training.loss import Distiller
from methods.base import Method, Rows, TeacherKind, registered
from tests import tiny
from tests.methods.contract import Bench, bench

DISTILLING = [
    kind(fidelity=fidelity)
    for kind in registered().values()
    if kind.teacher is not TeacherKind.NONE
    for fidelity in (("described", "released") if kind.fidelities_differ else ("described",))
]


def store(made: Bench, folder: Path, **more: Any) -> int:
    examples = [aligned.example for aligned in made.examples]
    return store_rows(made.teacher, made.role, examples, folder, pad=0, **more)


@pytest.mark.parametrize("method", DISTILLING, ids=lambda m: f"{m.name}-{m.options.fidelity}")
def test_stored_rows_equal_a_live_teacher(method: Method, tmp_path: Path) -> None:
    """The same loss and the same gradient, with the head alone in the place of the teacher (Gemma-2: with soft cap)."""
    if method.rows is Rows.ALL:
        pytest.skip("scores the prompt too: never from stored rows")
    made = bench(method, dtype=torch.float32)
    batch = made.batch()
    divisors = made.objective.divisors(batch.counts)
    live = made.distiller()(batch, divisors)
    (expected,) = torch.autograd.grad(live.loss, [made.student.get_input_embeddings().weight])
    store(made, tmp_path)
    stored = Collator(made.objective.terms, {STUDENT: 0, made.role: 0}, stored={made.role: StoredRows(tmp_path)})
    distiller = Distiller(made.student, made.objective, {}, {made.role: Head.of(made.teacher)})
    found = distiller(stored.collate(made.examples), divisors)
    assert float(found.loss.detach()) == pytest.approx(float(live.loss.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(found.loss, [made.student.get_input_embeddings().weight])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def made() -> Bench:
    return bench(registered()["uld"](), dtype=torch.float32)


@pytest.mark.parametrize("shard_bytes", [1, 10_000, 2**29])
def test_rows_come_back_by_example_from_any_number_of_shards(
    made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    monkeypatch.setattr(teacher, "_SHARD_BYTES", shard_bytes)
    done: list[int] = []
    size = store(made, tmp_path, batch_size=3, on_batch=done.append)
    assert done == [3, 4]
    shards = list(tmp_path.glob("rows-*.safetensors"))
    assert len(shards) == {1: 4, 2**29: 1}.get(shard_bytes, len(shards))
    stored, total = StoredRows(tmp_path), 0
    assert made.teacher is not None
    for aligned in made.examples:
        side = aligned.example.sides["cross"]
        with torch.no_grad():
            hidden = made.teacher.base_model(torch.from_numpy(side.sequence)[None]).last_hidden_state[0]
        rows = stored(aligned.example.id)
        assert rows.shape[0] == side.response.size + 1  # from before the first token to after the last
        torch.testing.assert_close(rows, hidden[side.prompt.size - 1 :], rtol=1e-4, atol=1e-5)
        total += rows.numel() * rows.element_size()
    assert size == total


def test_rows_keep_the_dtype_that_the_teacher_ran_in(made: Bench, tmp_path: Path) -> None:
    half = copy.copy(made)
    half.teacher = tiny.model("gemma2", 650, dtype=torch.bfloat16)
    store(half, tmp_path)
    assert StoredRows(tmp_path)(made.examples[0].example.id).dtype is torch.bfloat16


def test_the_index_names_every_example(made: Bench, tmp_path: Path) -> None:
    store(made, tmp_path)
    assert set(json.loads((tmp_path / ROWS_INDEX).read_text())) == {a.example.id for a in made.examples}


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_merged_adapters_give_the_same_logits(tmp_path: Path, architecture: str, targets: Any) -> None:
    model = tiny.model(architecture, 400).eval()
    base = copy.deepcopy(model)
    wrapper, inner = add_lora(model, Lora(rank=4, alpha=8, targets=targets))
    with torch.no_grad():  # peft begins with adapters that change nothing
        for name, parameter in wrapper.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain, expected = base(ids).logits, inner(ids).logits
    assert (plain - expected).abs().max() > 1e-2
    assert {p.requires_grad for name, p in inner.named_parameters() if "lora_" not in name} == {False}
    wrapper.save_pretrained(str(tmp_path))
    merged = merge_lora(base, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # peft's own, and no more
@pytest.mark.parametrize("targets", [("embed_tokens",), ("q_proj", "lm_head")])
def test_adapters_of_an_embedding_that_is_the_head_too_are_refused(targets: tuple[str, ...]) -> None:
    """Merging would change both, of which training changed one."""
    with pytest.raises(HarnessError, match=r"lora\.targets.*the embedding that this model's head shares"):
        add_lora(tiny.model("qwen2", 400), Lora(rank=4, targets=targets))
    _, inner = add_lora(tiny.model("llama", 400), Lora(rank=4, targets=targets))  # two matrices
    assert any(targets[-1] in name for name, p in inner.named_parameters() if p.requires_grad)
