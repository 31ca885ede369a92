"""Numbers of a step that are read when the next one is under way, so that a GPU has no gap between two steps.

To read a number, the host waits for all that the GPU was told to do, and the GPU then for the host to tell it more. So
what a step shows is copied to the host behind its last kernel, and read once the next step's kernels are launched: the
same numbers in the same order, a step later. Where something asks for them before, they are read at once: a checkpoint,
a look at held-out rows, a step that follows from the one before, the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from harness.training.window import Window

_at_once = False


def may_read_late(on: torch.device) -> bool:
    """Whether there is a device that would have to be waited for."""
    return on.type == "cuda" and not _at_once


@contextmanager
def reading_at_once() -> Iterator[None]:
    """A block whose trainings log each step when it is over, for who times steps by their logs."""
    global _at_once
    before, _at_once = _at_once, True
    try:
        yield
    finally:
        _at_once = before


@dataclass(frozen=True)
class KeptStep:
    """What a step showed, on its way to the host.

    Attributes:
        step: its number, as people count.
        epoch: as the Trainer counts.
        window: its sums.
        logs: loss, grad_norm and learning_rate.
        arrived: waits until all of it is there.
    """

    step: int
    epoch: float | None
    window: Window
    logs: dict[str, float | Tensor]
    arrived: Callable[[], None]


class LateLog(Trainer):  # type: ignore[misc]
    """The Trainer, with logs that may be a step late.

    Attributes:
        may_be_late: whether nothing in a step follows from the numbers of the one before.
    """

    _window: Window
    _globalstep_last_logged: int
    may_be_late = False
    _kept: KeptStep | None = None

    # Any: the Trainer's own, which is untyped
    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Tensor | None, *args: Any, learning_rate: float | None = None, **kwargs: Any
    ) -> None:
        """The Trainer's, for this step or the one before."""
        state = self.state
        due = self.control.should_log and state.global_step > self._globalstep_last_logged
        asked = self.control.should_save or state.global_step >= state.max_steps
        if self._kept is not None and (asked or state.global_step > self._kept.step):
            self._log_kept(self._kept)
        self.control.should_log = due
        if due and not asked and self.may_be_late:
            rate = self._get_learning_rate() if learning_rate is None else learning_rate
            self._keep({"loss": tr_loss.detach().clone(), "learning_rate": rate}, grad_norm)
            tr_loss.zero_()  # as the Trainer does where it logs
            self._globalstep_last_logged = state.global_step
            self.control.should_log = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs)

    def _keep(self, logs: dict[str, float | Tensor], grad_norm: Tensor | None) -> None:
        """Send a step's numbers to the host, and begin another window."""
        if grad_norm is not None:
            logs = {"loss": logs["loss"], "grad_norm": grad_norm, "learning_rate": logs["learning_rate"]}
        sent = {name: _sent(value) if isinstance(value, Tensor) else value for name, value in logs.items()}
        window, self._window = self._window, Window(self._window.terms)
        window.send()
        arrived = _arrival(self.args.device)
        self._kept = KeptStep(self.state.global_step, self.state.epoch, window, sent, arrived)

    def _log_kept(self, kept: KeptStep) -> None:
        """Log a step as if it were the last that was done."""
        now = self._window, self.state.global_step, self.state.epoch
        self._kept = None
        kept.arrived()
        self._window, self.state.global_step, self.state.epoch = kept.window, kept.step, kept.epoch
        try:
            self.log({name: float(value) for name, value in kept.logs.items()})
        finally:
            self._window, self.state.global_step, self.state.epoch = now


def _sent(value: Tensor) -> Tensor:
    """A copy on the host that nobody waits for here; on page-locked memory, which torch takes for it."""
    return value.detach().to("cpu", non_blocking=True)


def _arrival(on: torch.device) -> Callable[[], None]:
    """What waits until all is done that a device has been told so far."""
    if on.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(on))
    return event.synchronize
