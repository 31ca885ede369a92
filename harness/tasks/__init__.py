"""Tasks: where their rows come from, how a prompt reads, and what is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.tasks.base import Task


def tasks() -> Mapping[str, type[Task]]:
    """All tasks by name."""
    from harness.tasks.codem import CodeM
    from harness.tasks.countdown import Countdown
    from harness.tasks.dolly import Dolly
    from harness.tasks.gsm8k import GSM8K

    return {task.name: task for task in (Dolly, CodeM, GSM8K, Countdown)}
