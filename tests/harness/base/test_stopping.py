"""SIGTERM and SIGHUP stop as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import harness
from harness.base.stopping import stopping
from harness.evaluate.programs.sandbox import SandboxStatus, run
from harness.evaluate.programs.watch import SandboxLimits

pytestmark = pytest.mark.usefixtures("hangups")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_the_block_and_what_cleans_up_is_left_in_peace(number: signal.Signals) -> None:
    cleaned = False
    with stopping() as asked:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except KeyboardInterrupt:
            for again in (signal.SIGHUP, signal.SIGTERM):  # a closed shell sends both
                os.kill(os.getpid(), again)
            time.sleep(0.01)
            cleaned = True
        assert asked.status == 128 + number
    assert cleaned
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_raises_nothing_more() -> None:
    """The terminal is gone by the time that the process says good-bye."""
    child = """
import sys, time
from harness.base.stopping import stopping
with stopping() as asked:
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopped", flush=True)  # OSError, were it written to the terminal
        open(sys.argv[1], "w").write(str(asked.status))
"""
    leader, follower = os.openpty()
    read, write = os.pipe()
    os.set_inheritable(write, True)
    command = [sys.executable, "-c", child, f"/dev/fd/{write}"]
    env = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parent.parent)}
    with subprocess.Popen(command, stdout=follower, stderr=follower, pass_fds=(write,), env=env) as process:
        os.close(follower)
        os.close(write)
        assert os.read(leader, 5) == b"begun"
        os.close(leader)
        process.send_signal(signal.SIGHUP)
        with os.fdopen(read) as said:
            assert said.read() == str(128 + signal.SIGHUP)
    assert process.returncode == 0


def test_a_command_under_limits_ends_when_another_thread_says_so() -> None:
    """An interrupted evaluation does not wait for the minute that a program may take."""
    limits = SandboxLimits(2**30, cpu_s=60, processes=40, file_bytes=2**20, wall_s=60)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    none = SandboxStatus(False, None, "", "none")
    done = run(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        work=None,
        read_only=[],
        limits=limits,
        env={},
        sandbox=none,
        unsafe=True,
        stop=stop,
    )
    assert done.wall_s < 10
    assert done.killed_for == ""
