"""A process under limits: started, listened to, and ended from outside where it goes over one."""

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import psutil

OUTPUT_BYTES = 64 * 1024  # of what a command says, the last bytes are kept
_LOOK_EVERY_S = 0.2  # at the memory in use
_ENDING_S = 10.0  # that the kernel may take, on a machine with much to do, to end what was killed


@dataclass(frozen=True)
class SandboxLimits:
    """Bounds of one command.

    Attributes:
        memory_bytes: address space of each process (RLIMIT_AS).
        cpu_s: CPU seconds of each process (RLIMIT_CPU).
        processes: processes and threads of the user inside (RLIMIT_NPROC).
        file_bytes: size of one written file (RLIMIT_FSIZE).
        wall_s: seconds until everything is killed.
        resident_bytes: memory in use by all processes together (what they share counts for each); everything is killed
            above it. Looked at a few times a second.
        scratch_bytes: of the private /tmp and of /dev/shm each; they live in memory.
        stdout_bytes: of an output that is kept whole (``run``'s ``stdout``); everything is killed at the next byte.
    """

    memory_bytes: int
    cpu_s: int
    processes: int
    file_bytes: int
    wall_s: float
    resident_bytes: int | None = None
    scratch_bytes: int = 2 * 2**30
    stdout_bytes: int = 2**30


KilledFor = Literal["", "time", "memory", "output"]


@dataclass(frozen=True)
class Completed:
    """How a command ended.

    Attributes:
        returncode: its exit status; negative for a signal, as in ``subprocess``.
        output: the end of stdout and stderr together, at most ``OUTPUT_BYTES``; stdout is not in it where it was kept.
        killed_for: which limit ended it from outside: ``wall_s``, ``resident_bytes`` or ``stdout_bytes``.
        wall_s: seconds it took.
    """

    returncode: int
    output: str
    killed_for: KilledFor
    wall_s: float


def wait_for(
    call: Sequence[str],
    limits: SandboxLimits,
    env: Mapping[str, str],
    stdin: bytes,
    stdout: BinaryIO | None,
    stop: threading.Event,
    *,
    one_namespace: bool = False,
) -> Completed:
    """Start, read what it says, kill the whole group at the end or at a limit, or once it shall stop.

    Args:
        one_namespace: whether all that it starts ends with its first child, and is waited for.
    """
    start = looked = time.monotonic()
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            call,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stdout is None else subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
    with process:
        said = _Said(process, stdout, limits.stdout_bytes)
        killed_for: KilledFor = ""
        below: list[int] = []
        try:
            while not killed_for and not stop.is_set() and not _has_ended(process.pid):
                said.listen(0.02)
                below = below or (_handles_of_children(process.pid) if one_namespace else [])
                now = time.monotonic()
                if now - start > limits.wall_s:
                    killed_for = "time"
                elif said.flooded:
                    killed_for = "output"
                elif limits.resident_bytes is not None and now - looked > _LOOK_EVERY_S:
                    looked = now
                    killed_for = "memory" if _resident_bytes(process.pid) > limits.resident_bytes else ""
        finally:
            # Not reaped yet, so the number still means this group. Inside bubblewrap everything dies with it.
            os.killpg(process.pid, signal.SIGKILL)
            _wait_until_ended(below)
        said.listen_to_the_end()
        if said.flooded and not killed_for:
            killed_for = "output"
        returncode = process.wait()
    return Completed(returncode, said.tail.decode(errors="replace"), killed_for, time.monotonic() - start)


class _Said:
    """What a command writes: stdout copied to a file where one is given, the end of all else in ``tail``."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: BinaryIO | None, most: int) -> None:
        assert process.stdout is not None
        self.tail, self.copy, self.most, self.copied = bytearray(), stdout, most, 0
        self.kept = process.stdout.fileno() if stdout is not None else -1
        self.pipes = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe is not None]
        for pipe in self.pipes:
            os.set_blocking(pipe, False)

    @property
    def flooded(self) -> bool:
        return self.copied > self.most

    def listen(self, wait_s: float) -> None:
        """Take what is there now, one piece of each pipe: the caller comes back, so its clock is never missed."""
        for pipe in select.select(self.pipes, [], [], wait_s)[0]:
            self._take(pipe)

    def listen_to_the_end(self) -> None:
        """Take what an ended command left in its pipes: 1 MiB each at most."""
        for _ in range(2**20 // OUTPUT_BYTES + 1):
            self.listen(0)

    def _take(self, pipe: int) -> None:
        piece = os.read(pipe, OUTPUT_BYTES)
        if not piece:
            self.pipes.remove(pipe)
        elif pipe == self.kept and self.copy is not None:
            self.copy.write(piece[: max(self.most - self.copied, 0)])
            self.copied += len(piece)
        else:
            self.tail += piece
            del self.tail[:-OUTPUT_BYTES]


def processes_of_this_user() -> int:
    """Processes and threads, which the limit counts too where the command runs as the same user."""
    count = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # one that has just ended
            if process.uids().real == os.getuid():
                count += process.num_threads()
    return count


def _resident_bytes(pid: int) -> int:
    """Memory in use by a process and all that came from it, also those whose parent has ended."""
    total = 0
    with suppress(psutil.Error):  # a process that has just ended
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _handles_of_children(pid: int) -> list[int]:
    """What tells when each child of a process has ended; none where the kernel has no such thing.

    Bubblewrap's child is the first process of all inside, and ends last, whatever sessions they began.
    """
    handles = []
    with suppress(OSError):  # a process that has just ended
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            handles.append(os.pidfd_open(int(child)))
    return handles


def _wait_until_ended(handles: Sequence[int]) -> None:
    """Wait for processes that die with the one that was killed: the kernel ends them after it, not with it."""
    for handle in handles:
        select.select([handle], [], [], _ENDING_S)
        os.close(handle)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
