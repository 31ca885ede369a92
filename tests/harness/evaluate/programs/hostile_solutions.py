"""Solutions that attack the machine, the limits or the verdict, for a problem that wants ``double(x) == 2 * x``.

Each returns right answers where its attack went through, so a pass would be a hole; cheats return wrong ones. Words in
capitals between angle brackets stand for what ``test_hostile.py`` puts on the host: files, a process, sockets; and for
the folders of Python, its packages and the harness.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hostile:
    """A hostile solution.

    Attributes:
        name: what it does.
        code: the program.
        verdict: what the base tests must say.
        limit: why it passes, for the cheats that no test can catch.
    """

    name: str
    code: str
    verdict: str = "fail"
    limit: str = ""


def attack(name: str, statements: str) -> Hostile:
    """One that attacks when it is loaded, and answers rightly if that raised no error."""
    return Hostile(name, f"{statements}\n\ndef double(x):\n    return 2 * x\n")


WALK = """
def files(top):
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in <ENVIRONMENT>]
        yield from (os.path.join(folder, name) for name in names)
"""
"""All files below a folder but those of Python, its packages and the harness, which may lie below /tmp or in a home."""

HOSTILE = [
    # --- Time and resources -------------------------------------------------------------------------------------------
    Hostile("loops for ever", "def double(x):\n    while True: pass", "timeout"),
    Hostile("loops for ever while it is loaded", "while True: pass", "timeout"),
    Hostile(
        "does not heed its time limit",
        """
import signal
def double(x):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True: pass
""",
        "timeout",
    ),
    Hostile(
        "fork bomb",
        """
import posix
def double(x):
    while True:
        try: posix.fork()
        except OSError: pass
""",
        "timeout",
    ),
    attack(
        "thread bomb",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    ),
    attack("takes 20 GB of memory", "held = bytearray(20 * 2**30)"),
    Hostile(
        "takes memory in many processes",
        """
import posix, time
def double(x):
    for _ in range(12):
        if posix.fork() == 0: break
    held = bytearray(b"x") * (100 * 2**20)
    time.sleep(60)
    return 2 * x
""",
    ),
    attack(
        "writes a file of 10 GB",
        """
import io
with io.open("big", "wb") as file:
    for _ in range(10 * 1024): file.write(bytes(2**20))
""",
    ),
    attack(
        "fills the disk with small files",
        """
import io
for folder in ("/tmp", "/dev/shm"):
    for number in range(10_000):
        with io.open(f"{folder}/{number}", "wb") as file: file.write(bytes(2**20))
""",
    ),
    attack("prints without end", "while True: print('x' * 10**6)"),
    attack(
        "prints past Python",
        "import posix\nfor _ in range(1000):\n    for out in (1, 2): posix.write(out, b'x' * 10**6)\nraise SystemExit",
    ),
    Hostile(
        "floods every open file",
        """
import posix
def double(x):
    while True:
        for number in range(32):
            try: posix.write(number, b"x" * 10**6)
            except OSError: pass
""",
    ),
    Hostile("answers with 100 MB", "def double(x):\n    return 'x' * 10**8"),
    Hostile("answers without end", "import itertools\ndef double(x):\n    return itertools.count()"),
    Hostile(
        "recurses without end",
        "import sys\nsys.setrecursionlimit(10**9)\ndef double(x):\n    return double(x) + double([double(x)])",
    ),
    Hostile(
        "answers with a list in a list in a list ...",
        "def double(x):\n    nest = []\n    for _ in range(10**5): nest = [nest]\n    return nest",
    ),
    attack(
        "makes system calls that Python does not need",
        """
import ctypes
call = ctypes.CDLL(None).syscall
KEYS, IO_URING, USERFAULTFD, BPF, PERF, PTRACE, UNSHARE = (250, 425, 323, 321, 298, 101, 272)  # of x86-64
refused = [
    call(KEYS, 0, -3, 1), call(IO_URING, 8, b"\\0" * 200), call(USERFAULTFD, 1), call(BPF, 0, b"\\0" * 200, 100),
    call(PERF, b"\\0" * 200, 0, -1, -1, 0), call(PTRACE, 0, 0, 0, 0), call(UNSHARE, 0x10000000),
]
assert set(refused) != {-1}
""",
    ),
    attack("crashes the interpreter", "import ctypes\nctypes.string_at(0)"),
    attack("ends the process", "import posix\nposix._exit(0)"),
    attack("ends the process politely", "import sys\nsys.exit(0)"),
    # --- The host -----------------------------------------------------------------------------------------------------
    attack("reads a private key", "import io\nio.open('<SSH>').read()"),
    attack(
        "looks for homes",
        f"""
import os, pathlib
{WALK}
homes = ["/root", str(pathlib.Path.home()), *map(str, pathlib.Path("/home").glob("*"))]
assert [path for home in homes for path in files(home)]
""",
    ),
    attack("reads the environment", "import os\nos.environ['API_TOKEN']"),
    attack(
        "reads the environment of other processes",
        """
import glob, io
found = b""
for path in glob.glob("/proc/*/environ"):
    try: found += io.open(path, "rb").read()
    except OSError: pass
assert b"the password" in found
""",
    ),
    attack("deletes a file", "import posix\nposix.unlink('<SECRET>')"),
    attack("deletes its interpreter", "import posix, sys\nposix.unlink(sys.executable)"),
    attack("writes a file", "import pathlib\npathlib.Path('<TARGET>').write_text('here')"),
    attack("changes a library", "import io, numpy\nio.open(numpy.__file__, 'a').write('#')"),
    attack("changes the harness", "import io, harness\nio.open(harness.__file__, 'a').write('#')"),
    attack("runs a shell through posix", "import posix\nassert posix.system('touch <TARGET> && rm <SECRET>') == 0"),
    attack(
        "spawns a program through posix",
        "import posix\npid = posix.posix_spawn('/usr/bin/touch', ['touch', '<TARGET>'], {})\n"
        "assert posix.waitpid(pid, 0)[1] == 0",
    ),
    attack(
        "calls the C library",
        """
import ctypes
libc = ctypes.CDLL(None)
assert libc.unlink(b"<SECRET>") == 0 or libc.system(b"cat <SSH>") == 0
""",
    ),
    attack(
        "makes namespaces of its own and mounts the system for writing",
        """
import ctypes, io
libc = ctypes.CDLL(None)
libc.unshare(0x10000000 | 0x00020000)  # user and mount
libc.mount(None, b"/usr", None, 0x1000 | 32, None)  # bind, remount
io.open("/usr/written-by-hostile-code", "w").write("here")
""",
    ),
    attack("becomes root", "import posix\nposix.setuid(0)"),
    attack(
        "raises its limits",
        """
import sys
del sys.modules["resource"]
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC):
    resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""",
    ),
    attack("connects to this machine", "import socket\nsocket.create_connection(('127.0.0.1', <PORT>), 3)"),
    attack(
        "connects to a socket without a file",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0<SOCKET>')",
    ),
    attack("connects to the internet", "import socket\nsocket.create_connection(('192.0.2.1', 80), 1)"),
    attack("kills a process of the host", "import posix\nposix.kill(<PID>, 9)"),
    attack(
        "kills its parent",
        """
import os, posix, time
parent = os.getppid()
posix.kill(parent, 9)
time.sleep(0.5)
assert not os.path.exists(f"/proc/{parent}")
""",
    ),
    attack("kills all processes", "import posix\nposix.kill(-1, 9)"),
    Hostile(
        "writes into its parent's memory",
        """
import io, os
parent = os.getppid()
try:
    for line in io.open(f"/proc/{parent}/maps"):
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        with io.open(f"/proc/{parent}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(bytes(end - start))
except OSError:
    pass
def double(x):
    return 0
""",
    ),
    Hostile(
        "leaves a process behind",
        """
import posix, time
if posix.fork() == 0:
    posix.setsid()
    if posix.fork() == 0: time.sleep(1000)
    posix._exit(0)
def double(x):
    return 0
""",
    ),
    # --- The verdict --------------------------------------------------------------------------------------------------
    Hostile(
        "answers with what equals everything",
        """
class Yes:
    def __eq__(self, other): return True
    def __bool__(self): return True
def double(x):
    return Yes()
""",
    ),
    Hostile(
        "answers with a number that equals everything",
        """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def double(x):
    return Yes(7)
""",
    ),
    Hostile(
        "answers with an object that is made anew when it is copied",
        """
class Copied:
    def __reduce__(self): return eval, ("2 * 1",)
    def __array__(self, *args): return 2
    def __int__(self): return 2
def double(x):
    return Copied()
""",
    ),
    Hostile(
        "reads the expected answers in the frames above it",
        """
import sys
def double(x):
    frame = sys._getframe()
    while frame is not None:
        for name in ("exp", "expected"):
            if name in frame.f_locals: return frame.f_locals[name][0]
        frame = frame.f_back
    raise LookupError
""",
    ),
    Hostile(
        "looks for the expected answers among all objects",
        """
import gc
def double(x):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and ("canonical_solution" in thing or "expected" in thing):
            space = {}
            exec(thing["prompt"] + thing["canonical_solution"], space)
            return space["double"](x)
    raise LookupError
""",
    ),
    attack(
        "looks for the expected answers on the disk",
        """
import io, os, pathlib, harness
own = pathlib.Path(harness.__file__).parent
assert list(own.rglob("*.json*")), "no sample problems"
""",
    ),
    attack(
        "looks for the expected answers in its folders",
        f"""
import os
{WALK}
found = [path for top in ("/tmp", "/harness-work", "/dev/shm", os.path.expanduser("~")) for path in files(top)]
assert [path for path in found if path.endswith((".pkl", ".json", ".jsonl"))]
""",
    ),
    Hostile(
        "sets EvalPlus's result in shared memory",
        """
import gc, posix
def double(x):
    for thing in gc.get_objects():
        if type(thing).__name__ in ("Synchronized", "SynchronizedArray"):
            if hasattr(thing, "value"): thing.value = 0
            else: thing[:] = [True] * len(thing)
    posix._exit(0)
""",
    ),
    Hostile(
        "writes a result file",
        """
import io, json, posix
rows = [{"solution": "", "base_status": "pass", "plus_status": "pass"}]
for name in ("samples_eval_results.json", "base.json", "plus.json", "results.json"):
    for folder in (".", "/tmp", "/harness-work"):
        try: io.open(f"{folder}/{name}", "w").write(json.dumps({"eval": {"HumanEval/900": rows}}))
        except OSError: pass
def double(x):
    return 0
""",
    ),
    Hostile(
        "writes a verdict instead of answers",
        """
import posix
for number in range(32):
    try: posix.write(number, b'["defined"]\\n["pass", 2]\\n["answer", "pass"]\\n["large", "%s"]\\n' % (b"0" * 64))
    except OSError: pass
posix._exit(0)
""",
    ),
    Hostile(
        "replaces what compares and what writes",
        """
import sys, numpy, json, builtins
import evalplus.eval, harness.evaluate.programs.plain as plain, harness.evaluate.programs.solve as record
numpy.allclose = lambda *args, **options: True
evalplus.eval.untrusted_check = lambda *args, **options: ("pass", [True, True])
builtins.all = builtins.any = lambda things: True
plain.to_plain = lambda value: {"unknown": ""}
plain.Unknown.__eq__ = lambda self, other: True
record.answer_line = lambda answer: b'["pass"]'
def double(x):
    return 0
""",
    ),
    # --- What no test can catch ---------------------------------------------------------------------------------------
    Hostile(
        "knows the answers by heart",
        "def double(x):\n    return {1: 2, 2: 4, -3: -6, 0: 0}[x]",
        "pass",
        "A program that has learnt the tests' answers can't be told from one that computes them.",
    ),
    Hostile(
        "takes more time than an input may",
        """
import signal, time
signal.setitimer = lambda *args: None
def double(x):
    if x == 1: time.sleep(1.5)
    return 2 * x
""",
        "pass",
        "The limit of one input is EvalPlus's, in the solution's own process; only that of a whole run is outside.",
    ),
]
