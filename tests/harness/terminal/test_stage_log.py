"""A log says when, how far, at which loss and how long still, and is not flooded."""

from __future__ import annotations

from datetime import datetime

import pytest

from harness.terminal.stage_log import StageLog, in_words


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.lines: list[str] = []
        noon = datetime(2026, 11, 26, 12)
        self.log = StageLog(self.lines.append, lambda: self.seconds, lambda: noon)


def test_a_long_training_from_start_to_end() -> None:
    clock = Clock()
    clock.log.begin("uld · gsm8k · seed 0", 1000)
    for step in range(1, 1001):
        clock.seconds = step * 0.5
        clock.log.advance(step, loss=2 - step / 1000)
    clock.log.finish(0.25, "3 of 12 stages are done")
    assert clock.lines == [
        "12:00:00  uld · gsm8k · seed 0, 1,000 to do",
        "12:00:00    120 of 1,000, loss 1.88, 7 min left",  # 880 steps of half a second
        "12:00:00    240 of 1,000, loss 1.76, 6 min left",
        "12:00:00    360 of 1,000, loss 1.64, 5 min left",
        "12:00:00    480 of 1,000, loss 1.52, 4 min left",
        "12:00:00    600 of 1,000, loss 1.4, 3 min left",
        "12:00:00    720 of 1,000, loss 1.28, 2 min left",
        "12:00:00    840 of 1,000, loss 1.16, 80 s left",
        "12:00:00    960 of 1,000, loss 1.04, 20 s left",
        "12:00:00    took 8 min, loss 1; 3 of 12 stages are done; about 25 min left",  # three times 500 s
    ]


def test_a_quick_stage_without_a_loss_is_two_lines() -> None:
    clock = Clock()
    clock.log.begin("answers · uld · dolly · seed 0", 36)
    for done in (16, 32, 36):
        clock.seconds += 3
        clock.log.advance(done)
    clock.log.finish(1.0, "12 of 12 stages are done")
    clock.log.finish(1.0, "12 of 12 stages are done")  # of a stage that was not begun: scores, say
    assert clock.lines[1:] == ["12:00:00    took 9 s; 12 of 12 stages are done"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "under 1 s"), (0.6, "1 s"), (99, "99 s"), (101, "2 min"), (5990, "100 min"), (6001, "1.7 h")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
