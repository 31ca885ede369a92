"""What kills cost a run: nothing. A whole smoke run, 56 kills and 20 stops: ``python -m tests.kills recipe=smoke``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import measure

SMALL = ("recipe=smoke", "tasks=[countdown]", "methods=[control,uld]", "fidelity=[described]")


@pytest.mark.slow
@pytest.mark.nightly
def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    lost = measure(tmp_path, SMALL, kills=4, terms=2)
    assert lost.starts == 7
    assert {name: found for name, found in lost.faults().items() if found} == {}
