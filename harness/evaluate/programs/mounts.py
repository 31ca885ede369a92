"""The file system that a sandboxed command sees."""

import os
import site
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.evaluate.programs.watch import SandboxLimits

INSIDE = "/harness-work"  # where the work folder is mounted; a name that hides no folder of the interpreter


def mounts_of(work: Path | None, read_only: Sequence[Path], hidden: Sequence[Path], limits: SandboxLimits) -> list[str]:
    """The file system inside. Later mounts lie over earlier ones, so their order matters."""
    mounts = [*_system_folders(), "--proc", "/proc", "--dev", "/dev"]
    for names_of_keys in ("/proc/keys", "/proc/key-users"):
        if os.path.exists(names_of_keys):
            mounts += ["--ro-bind", "/dev/null", names_of_keys]
    for scratch in ("/dev/shm", "/tmp"):  # semaphores of multiprocessing live in /dev/shm
        mounts += ["--perms", "1777", "--size", str(limits.scratch_bytes), "--tmpfs", scratch]
    mounts += _read_only(_outermost([*_interpreter_folders(), *read_only], Path("/usr")))
    for folder in hidden:
        mounts += ["--perms", "0755", "--tmpfs", str(folder.absolute())]
        mounts += _read_only(_outermost([path for path in read_only if path.is_relative_to(folder)]))
        mounts += ["--remount-ro", str(folder.absolute())]
    if work is not None:
        mounts += ["--bind", str(work.resolve()), INSIDE]
    # /proc too: what is written there changes processes (oom_score_adj, the memory of bubblewrap's own)
    return [*mounts, "--chdir", "/", "--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/"]


def _read_only(paths: Sequence[Path]) -> list[str]:
    binds: list[str] = []
    for path in paths:
        for parent in reversed(path.parents[:-1]):
            binds += [*_OPEN_FOLDER, str(parent)]
        binds += ["--ro-bind", str(path), str(path)]
    return binds


def set_variables(env: Mapping[str, str]) -> list[str]:
    return [argument for name, value in env.items() for argument in ("--setenv", name, value)]


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
    named = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent, *site_folders()]
    return [path for folder in named for path in (folder.absolute(), folder.resolve())]


def site_folders() -> list[Path]:
    """Folders that packages are imported from, also outside the prefix (``--user``, system packages in a venv)."""
    known = {*site.getsitepackages(), site.getusersitepackages()}
    names = {"site-packages", "dist-packages"}
    # os.path says no of a folder that this user may not look into, where Path raises: nothing is imported from there
    return [Path(p) for p in sys.path if (p in known or Path(p).name in names) and os.path.isdir(p)]


def _outermost(paths: Sequence[Path], *there: Path) -> list[Path]:
    """Without those that lie in another one or in what is there anyway."""
    unique = sorted({path.absolute() for path in paths if os.path.exists(path) and path != Path("/")})
    return [p for p in unique if not any(p.is_relative_to(other) for other in [*unique, *there] if other != p)]
