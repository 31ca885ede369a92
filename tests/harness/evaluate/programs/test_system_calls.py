"""Which system calls code in the sandbox may make: the filter by itself, and what it keeps from hostile code."""

import ctypes
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.evaluate.programs import sandbox
from harness.evaluate.programs.sandbox import probe
from harness.evaluate.programs.system_calls import ARCHITECTURES, allowed, filter_of, this_architecture

STATUS = probe()
needs_sandbox = pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)

ALLOW, NO_SUCH_CALL, NOT_PERMITTED = 0x7FFF0000, 0x00050000 | 38, 0x00050000 | 1
X86_64, ARM64, I386 = 0xC000003E, 0xC00000B7, 0x40000003  # AUDIT_ARCH_*

# Numbers by hand from the kernel's tables: x86-64, arm64.
FORBIDDEN = {
    "ptrace": (101, 117),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount": (165, 40),
    "swapon": (167, 224),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "open_tree": (428, 428),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "one that no kernel has yet": (1000, 1000),
}
NEW_NAMESPACES = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}


def decision(machine: str, audit: int, number: int, argument: int = 0) -> int:
    """What the filter says of a call: a naive machine for the instructions that it uses."""
    program = list(struct.iter_unpack("=HBBI", filter_of(ARCHITECTURES[machine])))
    call = struct.pack("=IIQQ", number, audit, 0, argument)
    value, place = 0, 0
    while True:
        code, yes, no, operand = program[place]
        place += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", call, operand)
        elif code == 0x06:
            return int(operand)
        else:
            true = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            place += yes if true else no


@pytest.mark.parametrize(("machine", "audit", "column"), [("x86_64", X86_64, 0), ("aarch64", ARM64, 1)])
def test_the_filter_refuses_what_python_does_not_need(machine: str, audit: int, column: int) -> None:
    said = {name: decision(machine, audit, numbers[column]) for name, numbers in FORBIDDEN.items()}
    assert said == dict.fromkeys(FORBIDDEN, NO_SUCH_CALL)
    for name, number in allowed(ARCHITECTURES[machine]).items():
        assert decision(machine, audit, number) == ALLOW, name


def test_clone_makes_processes_and_threads_but_no_namespaces() -> None:
    threads = 0x003D0F00  # what glibc's pthread_create asks for
    for flags in (threads, 0x01200011):  # and its fork
        assert decision("x86_64", X86_64, 56, flags) == ALLOW
        assert decision("aarch64", ARM64, 220, flags) == ALLOW
    for name, flag in NEW_NAMESPACES.items():
        assert decision("x86_64", X86_64, 56, flag | 17) == NOT_PERMITTED, name


def test_sockets_are_local_or_of_the_internet() -> None:
    families = [family for family in range(50) if decision("x86_64", X86_64, 41, family) == ALLOW]
    assert families == [1, 2, 10]  # no netlink (16), no crypto (38), no vsock (40)
    assert decision("x86_64", X86_64, 41, 40) == NOT_PERMITTED


def test_calls_of_another_architecture_are_refused() -> None:
    assert decision("x86_64", I386, 4) == NO_SUCH_CALL  # i386's write, which is x86-64's stat
    assert decision("x86_64", X86_64, 0x40000001) == NO_SUCH_CALL  # x32's write


@pytest.mark.parametrize(("machine", "audit"), [("x86_64", X86_64), ("aarch64", ARM64)])
def test_numbers_are_those_that_libseccomp_knows(machine: str, audit: int) -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("no libseccomp on this machine")
    resolve = library.seccomp_syscall_resolve_name_arch
    resolve.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    architecture = ARCHITECTURES[machine]
    named = allowed(architecture) | {
        "clone": architecture.clone,
        "socket": architecture.socket,
        "keyctl": architecture.keyctl,
    }
    theirs = {name: resolve(audit, name.encode()) for name in named}
    theirs = {name: number for name, number in theirs.items() if number != -1}  # newer than the library
    assert len(theirs) > 150
    assert theirs == {name: named[name] for name in theirs}


# Reads and changes keys as a program would that has looked for them: all calls of one kernel, by number.
_ATTACK = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    return libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
text = ctypes.create_string_buffer(64)
found = {
    "read": call(KEYCTL, 11, KEY, text, 64) > 0,
    "changed": call(KEYCTL, 2, KEY, b"gone", 4) >= 0,
    "session": call(KEYCTL, 0, -3, 0) >= 0,
    "namespace": libc.unshare(0x10000000) >= 0,
}
try: found["listed"] = "harness-canary" in open("/proc/keys").read()
except OSError: found["listed"] = False
try: socket.socket(40, 1); found["vsock"] = True
except OSError: found["vsock"] = False
for path in ("/proc/self/oom_score_adj", "/proc/1/mem"):
    try: open(path, "r+b").close(); found[path] = True
    except OSError: found[path] = False
found["killed late"] = int(open("/proc/self/oom_score_adj").read()) < 0
print(json.dumps(found))
"""

_HOST = """
import ctypes, sys
from harness.evaluate.programs import sandbox
libc = ctypes.CDLL(None)
def call(*arguments):
    return libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
call(KEYCTL, 1, None)
key = call(ADD_KEY, b"user", b"harness-canary", b"the password", 12, -3)
if key < 0: sys.exit("no keys")
call(KEYCTL, 5, key, 0x3F3F3F3F)  # so that it is not its owner alone who may
try:
    with open("/proc/self/oom_score_adj", "w") as file: file.write("-500")
except OSError: pass  # not everybody may
limits = sandbox.SandboxLimits(2**30, cpu_s=20, processes=40, file_bytes=2**20, wall_s=20)
attack = sys.stdin.read().replace("KEY,", f"{key},")
command = [sys.executable, "-I", "-S", "-c", attack]
settings = dict(work=None, read_only=[], limits=limits, env={})
print(sandbox.run(command, sandbox=sandbox.probe(), **settings).output)
text = ctypes.create_string_buffer(64)
size = call(KEYCTL, 11, key, text, 64)
print(text.raw[:size].decode())
none = sandbox.SandboxStatus(False, None, "", "")
print(sandbox.run(command, sandbox=none, unsafe=True, **settings).output)
"""


@needs_sandbox
def test_keys_processes_and_namespaces_of_the_host_are_out_of_reach() -> None:
    """The control, without a sandbox, reads the key and changes it."""
    architecture = this_architecture()
    assert architecture is not None
    keyctl = architecture.keyctl
    host = _HOST.replace("ADD_KEY", str(keyctl - 2)).replace("KEYCTL", str(keyctl))
    done = subprocess.run(
        [sys.executable, "-c", host],
        input=_ATTACK.replace("KEYCTL", str(keyctl)),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(harness.__file__).parent.parent), *sys.path])},
        check=False,
    )
    if "no keys" in done.stderr:
        pytest.skip("this machine has no keys")
    assert done.returncode == 0, done.stderr
    inside, key, outside = (line for line in done.stdout.splitlines() if line)
    assert json.loads(inside) == dict.fromkeys(json.loads(inside), False)
    assert key == "the password"
    assert {name for name, went_through in json.loads(outside).items() if went_through} >= {"read", "changed"}


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Can't find source path /root/python: Permission denied", "in a plain folder of a local disk"),
        ("Can't bind mount /oldroot/home/python on /newroot/home/python", "in a plain folder of a local disk"),
        ("execvp /root/python: Permission denied", "chmod -R a+rX"),
        ("prctl(PR_SET_SECCOMP): Invalid argument", "CONFIG_SECCOMP_FILTER"),
        ("No permissions to create new namespace", "allow user namespaces"),
    ],
)
def test_the_probe_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, advice: str) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text(f'#!/bin/sh\necho "bwrap: {said}" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox, "_binaries", lambda: [broken])
    status = probe()
    assert not status.available
    assert said in status.reason
    assert advice in status.reason


def test_a_processor_whose_calls_are_unknown_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    status = probe()
    assert not status.available
    assert "riscv64" in status.reason


def test_a_folder_of_packages_that_may_not_be_entered_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user's PYTHONPATH may name one; Python passes over it as well."""
    closed = tmp_path / "closed" / "site-packages"
    there = os.stat

    def refuse(path: object, *args: object, **options: object) -> os.stat_result:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return there(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sys, "path", [*sys.path, str(closed)])
    monkeypatch.setattr(os, "stat", refuse)
    assert closed not in sandbox.site_folders()
