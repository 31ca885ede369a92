"""Chat templates rendered apart from a run: a template is a program of its publisher's, and may loop or fill memory.

One process beside this one renders for all tokenizers. Of each :data:`CHATS` chats it may take :data:`SECONDS` of
processor time, :data:`MEMORY` beyond what it has, and answer with :data:`ANSWER` bytes; else it ends, and that is an
error of the template. It ends with this process too.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHATS = 1000
SECONDS = 30
MEMORY = 4 * 2**30
ANSWER = 2**28
_CODE = "from harness.data.rendering import main; main()"


class TemplateError(Exception):
    """What a template did instead of rendering, in words."""


class Renderer:
    """What renders the chat template of one tokenizer; the process starts with the first chat.

    Args:
        tokenizer: as it is then.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def render(self, chats: Sequence[object], **options: Any) -> list[Any]:
        """What ``apply_chat_template`` makes of each chat.

        Raises:
            TemplateError: the template refuses, is none, or takes more than it may.
        """
        made: list[Any] = []
        for start in range(0, len(chats), CHATS):
            made += _process().ask(self._tokenizer, list(chats[start : start + CHATS]), options)
        return made


class _Process:
    """The other process, and which tokenizers it has."""

    def __init__(self) -> None:
        self.parent = os.getpid()
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); {_CODE}"
        pipe = subprocess.PIPE
        self._other = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self._has: dict[int, PreTrainedTokenizerFast] = {}  # by id, which nothing else gets while they are here

    @property
    def is_alive(self) -> bool:
        return self.parent == os.getpid() and self._other.poll() is None

    def ask(self, tokenizer: PreTrainedTokenizerFast, chats: list[object], options: dict[str, Any]) -> list[Any]:
        assert self._other.stdin is not None
        assert self._other.stdout is not None
        new = None if id(tokenizer) in self._has else tokenizer
        self._has[id(tokenizer)] = tokenizer
        answer = b""
        with contextlib.suppress(BrokenPipeError):
            pickle.dump((id(tokenizer), new, chats, options), self._other.stdin)
            self._other.stdin.flush()
            answer = self._other.stdout.readline(ANSWER)
        if not answer.endswith(b"\n"):
            raise TemplateError(self._ended(len(answer)))
        found = json.loads(answer)
        if "error" in found:
            raise TemplateError(found["error"])
        rendered: list[Any] = found["rendered"]
        return rendered

    def _ended(self, read: int) -> str:
        """Why there is no whole answer; the process is at its end then."""
        if read:
            self._other.kill()
        how = self._other.wait()
        self.close()
        if how == -signal.SIGXCPU:
            return f"it took more than {SECONDS} s"
        return "it filled memory" if read or how < 0 else f"its process ended with {how}"

    def close(self) -> None:
        for end in (self._other.stdin, self._other.stdout):
            with contextlib.suppress(OSError):
                if end is not None:
                    end.close()
        if self.parent == os.getpid():
            self._other.wait()


_PROCESSES: list[_Process] = []  # one at most


def _process() -> _Process:
    if not _PROCESSES or not _PROCESSES[0].is_alive:
        _PROCESSES[:] = [_Process()]
        atexit.register(_PROCESSES[0].close)
    return _PROCESSES[0]


# --- The other process ------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not answer
    tokenizers: dict[int, PreTrainedTokenizerFast] = {}
    while True:
        try:
            place, new, chats, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if new is not None:
            tokenizers[place] = new
        _answer(answers, tokenizers[place], chats, options)


def _answer(
    answers: BinaryIO, tokenizer: PreTrainedTokenizerFast, chats: list[object], options: dict[str, Any]
) -> None:
    _limit()
    try:
        found: dict[str, Any] = {"rendered": tokenizer.apply_chat_template(chats, return_dict=False, **options)}
    except MemoryError:
        found = {"error": "it filled memory"}
    except Exception as error:
        found = {"error": str(error)}
    answers.write(json.dumps(found).encode() + b"\n")
    answers.flush()


def _limit() -> None:
    """Let this process take no more than it may from here on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    now = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (now + SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    with contextlib.suppress(OSError, ValueError):  # where there is no such file, addresses have no limit either
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
