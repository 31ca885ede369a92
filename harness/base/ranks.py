"""The processes of one run, as ``torchrun`` and ``accelerate launch`` start them: rank 0 walks the plan, all train.

Rank 0 does every stage and tells the others of each training before it begins; they load the same, train along, and
wait for the next, which may come days later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from harness.base.errors import HarnessError

_NEXT_CALL = timedelta(days=100)
_MEETING = timedelta(minutes=10)  # ranks end a training together, or fail in it at the same place


def world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class RankLostError(HarnessError):
    """The processes of a run have lost one another: none of them can go on."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of the run.

    Attributes:
        rank: 0 walks the plan; the others follow.
        world: how many there are.
        calls: gloo group in which rank 0 tells the others what comes next; None for one process.
        meetings: gloo group in which they end what they do together.
    """

    rank: int = 0
    world: int = 1
    calls: Any = None
    meetings: Any = None

    @classmethod
    def join(cls) -> Ranks:
        """Meet the other processes that the launcher's environment speaks of; alone without a launcher."""
        world = world_size()
        if world == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
        calls, meetings = (dist.new_group(backend="gloo", timeout=timeout) for timeout in (_NEXT_CALL, _MEETING))
        return cls(dist.get_rank(), world, calls, meetings)

    @contextmanager
    def together(self, call: str) -> Iterator[None]:
        """A block that all ranks run; rank 0 enters it, and the others once :meth:`next_call` has given them ``call``.

        Raises:
            RankLostError: another rank did not come to the end, failed or not, while this one did.
        """
        if self.world == 1:
            yield
            return
        self._tell(call)
        try:
            yield
        except Exception:
            self.meet()
            raise
        self.meet()

    def next_call(self) -> str | None:
        """What rank 0 enters next; None when the run is over."""
        told: list[str | None] = [None]
        dist.broadcast_object_list(told, src=0, group=self.calls)
        return told[0]

    def meet(self) -> None:
        """Wait for all ranks to end a block.

        Raises:
            RankLostError: one of them does not come.
        """
        try:
            dist.barrier(group=self.meetings)
        except RuntimeError as error:
            raise RankLostError(
                f"rank {self.rank} of {self.world}",
                "a rank that failed alone or hangs",
                "all of them at the end of a training",
                "Look for the first error in the launcher's output, then run the same command again: it goes on where "
                "it stopped.",
            ) from error

    @contextmanager
    def leading(self) -> Iterator[None]:
        """What rank 0 does of a run; the others are let go at its end, whether it failed or not."""
        try:
            yield
        except RankLostError:
            raise  # nobody listens; the launcher ends the others
        except Exception:
            self.end()
            raise
        self.end()

    def end(self) -> None:
        """The run is over: rank 0 lets the others go."""
        if self.world > 1:
            if self.rank == 0:
                self._tell(None)
            dist.destroy_process_group()

    def _tell(self, call: str | None) -> None:
        dist.broadcast_object_list([call], src=0, group=self.calls)
