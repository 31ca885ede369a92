"""Runs one solution on one test set of one problem and writes down what it answers. Alone in a sandbox.

There is nothing here to steal or to forge: the expected answers and the verdict are made elsewhere (``judge.py``), from
the plain data that this writes. Whatever a solution does to this process can only change what it answers itself.

A solution is run as EvalPlus runs it (``evalplus.eval.unsafe_execute``), with EvalPlus's guard and its time limits: of
one input, and of the whole run, in which the writing of answers does not count. Both raise an error inside the
solution; one that does not heed it is killed from outside.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from evalplus.eval.utils import TimeoutException, reliability_guard, swallow_io, time_limit

from harness.evaluate.programs import plain

LARGE_BYTES = 16 * 2**20  # as marshal writes it: above, the digest of an answer stands for it


def answer_line(answer: Any) -> bytes:
    """A line for an answer: ``["answer", value]``, or ``["large", digest]``, which equals only the very same value.

    One problem of MBPP+ has answers of 1 GB. Python's marshal writes plain values in C, each type in its own way.
    """
    try:
        exact = marshal.dumps(answer, 2)  # without references, so that equal values are equal bytes
    except ValueError:  # not one of marshal's types
        exact = b""
    if len(exact) > LARGE_BYTES:
        return json.dumps(["large", hashlib.sha256(exact).hexdigest()]).encode()
    del exact
    try:
        return json.dumps(["answer", plain.to_plain(answer)]).encode()
    except (ValueError, RecursionError):
        return b'["answer", {"unknown": ""}]'


def main() -> None:
    """Read a line of settings and a line of inputs; write ["begun"], ["defined"], answers, and how it broke off."""
    settings = json.loads(sys.stdin.buffer.readline())
    inputs = plain.from_plain(json.loads(sys.stdin.buffer.readline()))
    out = _own_output()
    _write(out, b'["begun"]')
    _guard()
    budget = _Budget(settings["run_s"])
    space: dict[str, Any] = {}
    try:
        with budget.at_most(settings["run_s"]):
            exec(settings["code"], space)
            function = space[settings["entry_point"]]
        _write(out, b'["defined"]')
        for arguments, limit_s in zip(inputs, settings["limits_s"], strict=True):
            with budget.at_most(limit_s):
                answer = function(*arguments)
            _write(out, answer_line(answer))
    except TimeoutException:
        _write(out, b'["timeout"]')
    except BaseException:
        _write(out, b'["raised"]')


def _own_output() -> BinaryIO:
    """Where answers go; what the solution prints goes nowhere."""
    out = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    return out


def _write(out: BinaryIO, line: bytes) -> None:
    out.write(line + b"\n")
    out.flush()


def _guard() -> None:
    """EvalPlus's guard; memory is limited already, and as with EvalPlus the stack may grow as far."""
    memory, stack = resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_STACK)[1]
    allowed = [limit for limit in (memory, stack) if limit != resource.RLIM_INFINITY]
    if allowed:
        resource.setrlimit(resource.RLIMIT_STACK, (min(allowed), stack))
    reliability_guard()


class _Budget:
    """Seconds that a whole run may take."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        if self.left_s <= 0:
            raise TimeoutException
        start = time.monotonic()
        try:
            with time_limit(min(seconds, self.left_s)), swallow_io():
                yield
        finally:
            self.left_s -= time.monotonic() - start
