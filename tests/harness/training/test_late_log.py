"""Numbers that are read a step later: the same ones in the same order, and nothing that needs them lacks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.store.artefacts import STEPS
from harness.training import trainer as trainer_module
from harness.training.late_log import LateLog, may_read_late, reading_at_once
from harness.training.trainer import DivergedError
from methods.base import Method
from methods.sft import SFT
from methods.uld import ULD
from tests.methods import contract

Steps = list[dict[str, float]]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """As on a GPU. Which steps were logged late: their numbers, and that of the step that was done by then."""
    monkeypatch.setattr(trainer_module, "may_read_late", lambda on: True)
    found: list[tuple[int, int]] = []
    logged = LateLog._log_kept

    def spy(self: Any, kept: Any) -> None:  # Any: the Trainer is untyped
        found.append((kept.step, self.state.global_step))
        logged(self, kept)

    monkeypatch.setattr(LateLog, "_log_kept", spy)
    return found


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 1, "epochs": 2}], ids=str)
def test_they_are_the_same_in_the_same_order(
    settings: dict[str, Any], tmp_path: Path, late: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = contract.run(ULD(), tmp_path / "late", **settings)
    assert late == [(1, 2), (2, 3), (3, 4)]
    monkeypatch.undo()
    assert found == contract.run(ULD(), tmp_path / "at once", **settings)
    assert [list(step) for step in found] == [list(step) for step in contract.run(ULD(), tmp_path / "again")]
    assert [step["step"] for step in found] == [1, 2, 3, 4]


def test_a_checkpoint_has_all_of_them(tmp_path: Path, late: list[tuple[int, int]]) -> None:
    whole = contract.run(SFT(), tmp_path / "whole", checkpoint_every=2)
    assert late == [(1, 2), (3, 4)]
    for after in (2, 4):
        assert STEPS.load(tmp_path / "whole" / f"checkpoint-{after}") == whole[:after]
    with pytest.raises(contract.StoppedError):
        contract.run(SFT(), tmp_path / "cut", checkpoint_every=2, stop_after=3)
    assert contract.run(SFT(), tmp_path / "cut", checkpoint_every=2) == whole


@pytest.mark.parametrize("method", [ULD(kd_scale="match_ce"), "best_dev"], ids=["follows from them", "looks"])
def test_what_needs_them_has_them_at_once(
    method: Method | str, tmp_path: Path, late: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(method, str):
        made = contract.bench(SFT(), dtype=trainer_module.torch.float32)
        trainer_module.train(
            made.distiller(),
            made.examples,
            made.collator(),
            trainer_module.Training(steps=2, batch_size=2, select=method, evaluations=2),
            steps=2,
            seed=3,
            work=tmp_path,
            dev_bits_per_byte=lambda: 1.0,
        )
        assert late == []
        return
    found = contract.run(method, tmp_path / "late")
    assert late == []
    monkeypatch.undo()
    assert found == contract.run(method, tmp_path / "at once")


def test_a_training_that_came_apart_is_told_with_its_step(
    tmp_path: Path, late: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    means = trainer_module.Window.means
    calls: list[None] = []

    def second_is_lost(self: Any, accelerator: Any) -> dict[str, float]:  # Any: as the Trainer's
        calls.append(None)
        return means(self, accelerator) | ({"loss": float("nan")} if len(calls) == 2 else {})

    monkeypatch.setattr(trainer_module.Window, "means", second_is_lost)
    with pytest.raises(DivergedError, match="the loss of step 2 is nan"):
        contract.run(SFT(), tmp_path)
    assert late == [(1, 2), (2, 3)]


def test_who_times_steps_has_them_at_once() -> None:
    gpu = trainer_module.torch.device("cuda", 0)
    assert not may_read_late(trainer_module.torch.device("cpu"))
    with reading_at_once():
        assert not may_read_late(gpu)
    assert may_read_late(gpu)
