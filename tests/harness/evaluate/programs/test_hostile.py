"""Hostile solutions through the real evaluation: each is contained, ends in time, and does not pass."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil
import pytest

import harness
from harness.evaluate.programs import evalplus as code
from harness.evaluate.programs.evalplus import WORKERS, Solution, Verdict, evaluate
from harness.evaluate.programs.mounts import site_folders
from harness.evaluate.programs.sandbox import SandboxStatus, probe
from harness.evaluate.programs.watch import SandboxLimits
from tests.harness.evaluate.programs.hostile_solutions import HOSTILE, Hostile

STATUS = probe()
pytestmark = pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)

PROBLEM = {
    "task_id": "HumanEval/900",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "contract": "",
    "base_input": [[1], [2]],
    "plus_input": [[-3], [0]],
    "atol": 0,
}
GOOD = "def double(x):\n    return 2 * x\n"
LIMITS = SandboxLimits(
    memory_bytes=2**30,
    cpu_s=60,
    processes=16,
    file_bytes=8 * 2**20,
    wall_s=0,
    resident_bytes=400 * 2**20,
    scratch_bytes=16 * 2**20,
)


def environment() -> set[str]:
    """Folders of Python, its packages and the harness, as they are called and, behind links, the real ones."""
    named = [Path(sys.prefix), Path(sys.base_prefix), *site_folders(), Path(harness.__file__).parent]
    return {str(path) for folder in named for path in (folder.absolute(), folder.resolve())}


@dataclass
class Host:
    """What hostile code would find on a machine, and what it may not touch."""

    folder: Path
    canary: subprocess.Popen[bytes]
    port: int
    visitors: list[str] = field(default_factory=list)

    @property
    def names(self) -> dict[str, str]:
        return {
            "SSH": str(self.folder / "home" / ".ssh" / "id_rsa"),
            "SECRET": str(self.folder / "secret.txt"),
            "TARGET": str(self.folder / "written.txt"),
            "PORT": str(self.port),
            "SOCKET": f"harness-{os.getpid()}",
            "PID": str(self.canary.pid),
            "ENVIRONMENT": repr(sorted(environment())),
        }

    def files(self) -> dict[str, str]:
        """Digests of everything in the folder, the interpreter and the files that hostile code has gone for."""
        import numpy

        own = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        paths = [*own, Path(sys.executable), Path(numpy.__file__), Path(harness.__file__)]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@dataclass
class Outcome:
    verdicts: dict[str, Verdict]
    seconds: float
    before: dict[str, str]
    after: dict[str, str]
    host: Host
    left_behind: list[str]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "home" / ".ssh").mkdir(parents=True)
    (folder / "home" / ".ssh" / "id_rsa").write_text("the private key")
    (folder / "secret.txt").write_text("the password")
    for path in (folder, *folder.rglob("*")):  # so that it is the sandbox that keeps others away
        path.chmod(0o777 if path.is_dir() else 0o666)
    with (
        subprocess.Popen(["sleep", "1000"], env={"API_TOKEN": "the password"}) as canary,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as local,
    ):
        found = Host(folder, canary, tcp.getsockname()[1])
        local.bind("\0" + found.names["SOCKET"])
        local.listen()
        for listener in (tcp, local):
            threading.Thread(target=_welcome, args=(listener, found.visitors), daemon=True).start()
        yield found
        canary.kill()


def _welcome(listener: socket.socket, visitors: list[str]) -> None:
    while True:
        try:
            listener.accept()
        except OSError:
            return
        visitors.append(str(listener))


@pytest.fixture(scope="module")
def outcome(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All of them at once, beside a good solution; the time limits are low, so that the loops end soon."""
    folder = tmp_path_factory.mktemp("evaluation")
    problems, work = folder / "problems.jsonl", folder / "work"
    problems.write_text(json.dumps(PROBLEM) + "\n")
    work.mkdir()
    solutions = [Solution("good", PROBLEM["task_id"], GOOD)]  # type: ignore[arg-type]
    solutions += [Solution(h.name, str(PROBLEM["task_id"]), _for(host, h)) for h in HOSTILE]
    already = {process.pid for process in psutil.Process().children(recursive=True)}  # of earlier tests, and the canary
    before, start = host.files(), time.monotonic()
    environment = {"API_TOKEN": "the password", "HOME": str(host.folder / "home")}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(code, "MIN_TIME_LIMIT_S", 1.0),
        mock.patch.object(code, "_STARTING_S", 4.0),
    ):
        verdicts = evaluate(
            problems, solutions, dataset="humaneval", work=work, sandbox=STATUS, limits=LIMITS, cache=folder / "cache"
        )
    seconds = time.monotonic() - start
    assert list(work.iterdir()) == []
    ours = psutil.Process().children(recursive=True)
    return Outcome(
        {verdict.owner: verdict for verdict in verdicts},
        seconds,
        before,
        host.files(),
        host,
        [process.name() for process in ours if process.pid not in already],
    )


def _for(host: Host, hostile: Hostile) -> str:
    text = hostile.code
    for name, value in host.names.items():
        text = text.replace(f"<{name}>", value)
    return text


def test_there_are_many_and_each_is_another() -> None:
    assert len(HOSTILE) >= 20
    assert len({hostile.name for hostile in HOSTILE}) == len({hostile.code for hostile in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_a_hostile_solution_gets_its_verdict(outcome: Outcome, hostile: Hostile) -> None:
    """A pass is a known limit, and says why; everything else fails, alone.

    What does not end by itself meets a limit: on a busy machine that of time may come before the others.
    """
    late = {"timeout"} if hostile.verdict == "fail" else set()
    assert outcome.verdicts[hostile.name].base in {hostile.verdict} | late
    assert (outcome.verdicts[hostile.name].plus == "pass") == (hostile.verdict == "pass") == bool(hostile.limit)


def test_a_good_solution_among_them_passes(outcome: Outcome) -> None:
    assert (outcome.verdicts["good"].base, outcome.verdicts["good"].plus) == ("pass", "pass")


def test_the_host_is_unchanged(outcome: Outcome) -> None:
    assert outcome.after == outcome.before
    assert not Path("/usr/written-by-hostile-code").exists()
    assert outcome.host.canary.poll() is None
    assert outcome.host.visitors == []
    assert outcome.left_behind == []


def test_time_is_bounded(outcome: Outcome) -> None:
    """Each may take the whole run's limit and what is added for starting, two at a time."""
    longest = 2 * 1.0 + 2 + 4.0
    assert outcome.seconds < 20 + len(HOSTILE) * longest / WORKERS


@pytest.mark.parametrize(
    ("attack", "control"),
    [
        ("reads a private key", "import io\nio.open('<SSH>').read()"),
        ("connects to this machine", "import socket\nsocket.create_connection(('127.0.0.1', <PORT>), 3)"),
        ("runs a shell through posix", "import posix\nassert posix.system('touch <TARGET>') == 0"),
    ],
)
def test_without_a_sandbox_the_attacks_would_work(
    host: Host, tmp_path: Path, attack: str, control: str, request: pytest.FixtureRequest
) -> None:
    """So that the failures above are the sandbox's doing: these are harmless here, on the test's own files."""
    request.getfixturevalue("outcome")  # first, so that nothing of this is seen there
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps(PROBLEM) + "\n")
    text = _for(host, Hostile(attack, f"{control}\n{GOOD}"))
    none = SandboxStatus(False, None, "", "none")
    (verdict,) = evaluate(
        problems,
        [Solution("control", "HumanEval/900", text)],
        dataset="humaneval",
        work=tmp_path,
        sandbox=none,
        unsafe=True,
        limits=LIMITS,
    )
    assert verdict.plus == "pass"
