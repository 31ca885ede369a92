"""A profile of a training: its steps are traced, gaps and waits are counted right, bad input is one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import api, cli
from harness.base.errors import HarnessError
from harness.run.profiling import WARM_UP, _busy

SMALL = ("recipe=smoke", "tasks=[gsm8k]", "train.batch_size=2", "train.compile=off")


@pytest.mark.parametrize(
    ("kernels", "busy", "gaps"),
    [
        ([], 0, (0, 0)),
        ([(3, 5)], 2, (0, 0)),
        ([(0, 2), (2, 3), (5, 6), (10, 11)], 5, (2, 6)),  # back to back, then 2 and 4 of nothing
        ([(0, 10), (1, 3), (4, 12), (11, 11.5), (14, 15)], 13, (1, 2)),  # of two streams, one within another
    ],
)
def test_gaps_are_where_no_kernel_runs(
    kernels: list[tuple[float, float]], busy: float, gaps: tuple[int, float]
) -> None:
    found, (count, idle) = _busy(kernels)
    assert (found * 1e6, count, idle * 1e6) == pytest.approx((busy, *gaps))


def test_steps_of_a_training_are_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU, from the command line, of a method without a teacher: as many steps as were asked for, no others."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        cli.app(["profile", *SMALL, "methods=[control]", "method=control", "steps=2", "--out", str(out)])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "ms a step, traced, on CPU" in said
    assert "aten::mm" in said
    (trace,) = out.iterdir()
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name", "")).startswith("ProfilerStep")}
    assert steps == {f"ProfilerStep#{WARM_UP + step}" for step in range(2)}


@pytest.mark.slow
def test_a_method_with_a_teacher_is_traced_from_published_models(tmp_path: Path) -> None:
    recipe = api.load_recipe("smoke", *SMALL[1:], "methods=[control,gold]")
    found = api.profile(recipe, "gold", steps=2, folder=tmp_path)
    assert found.steps == 2
    assert 0 < found.busy <= found.seconds * 1.5  # operators of two threads may overlap
    assert sum(one.share for one in found.longest) <= 1
    assert [one.seconds for one in found.longest] == sorted((one.seconds for one in found.longest), reverse=True)
    assert found.waits["aten::_local_scalar_dense"][0] > 0  # the log reads each step's loss


@pytest.mark.parametrize(
    ("field", "expected"), [("method=golden", "method: found 'golden'"), ("steps=0", "steps: found '0'")]
)
def test_an_unknown_method_or_number_is_one_error(field: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=expected):
        cli.app(["profile", *SMALL, "methods=[control]", field, "--out", str(tmp_path)], standalone_mode=False)
