"""Which system calls generated code may make: those that Python needs, as a filter that the kernel runs (seccomp).

A list of what is allowed, so that a call which nobody thought of is refused. Not on it: keyctl, add_key, request_key
(keys of whoever started the harness), io_uring, userfaultfd, bpf, perf_event_open, ptrace, process_vm_readv and
process_vm_writev, pidfd_getfd, mount and all that changes what is mounted, unshare, setns, kexec, swap, modules,
clocks, open_by_handle_at. ``clone`` makes no namespaces, ``socket`` only what Python's programs use (of the others,
vsock would reach the machine below a virtual one). What is refused looks as if the kernel didn't have it (ENOSYS), so
that libraries take another way: clone3, whose flags a filter can't read, becomes clone.

The filter is a program of classic BPF, for which no library is needed: bubblewrap hands it to the kernel. Numbers are
those of the kernel's headers (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass

# Name, number on x86-64, number on arm64; a dash where the architecture has no such call.
_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222,
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
ioctl 16 29, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -,
sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232, madvise 28 233, shmget 29 194, shmat 30 196,
shmctl 31 195, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103,
getpid 39 172, sendfile 40 71, connect 42 203, accept 43 202, sendto 44 206, recvfrom 45 207, sendmsg 46 211,
recvmsg 47 212, shutdown 48 210, bind 49 200, listen 50 201, getsockname 51 204, getpeername 52 205,
socketpair 53 199, setsockopt 54 208, getsockopt 55 209, fork 57 -, vfork 58 -, execve 59 221, exit 60 93,
wait4 61 260, kill 62 129, uname 63 160, semget 64 190, semop 65 193, semctl 66 191, shmdt 67 197, msgget 68 186,
msgsnd 69 189, msgrcv 70 188, msgctl 71 187, fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45,
ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -,
creat 85 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52, chown 92 -, fchown 93 55,
lchown 94 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153,
getuid 102 174, getgid 104 176, setuid 105 146, setgid 106 144, geteuid 107 175, getegid 108 177, setpgid 109 154,
getppid 110 173, getpgrp 111 -, setsid 112 157, setreuid 113 145, setregid 114 143, getgroups 115 158,
setgroups 116 159, setresuid 117 147, getresuid 118 148, setresgid 119 149, getresgid 120 150, getpgid 121 155,
setfsuid 122 151, setfsgid 123 152, getsid 124 156, capget 125 90, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigqueueinfo 129 138, rt_sigsuspend 130 133, sigaltstack 131 132, utime 132 -, mknod 133 -, statfs 137 43,
fstatfs 138 44, getpriority 140 141, setpriority 141 140, sched_setparam 142 118, sched_getparam 143 121,
sched_setscheduler 144 119, sched_getscheduler 145 120, sched_get_priority_max 146 125,
sched_get_priority_min 147 126, sched_rr_get_interval 148 127, mlock 149 228, munlock 150 229, prctl 157 167,
arch_prctl 158 -, setrlimit 160 164, sync 162 81, gettid 186 178, readahead 187 213, getxattr 191 8, lgetxattr 192 9,
fgetxattr 193 10, listxattr 194 11, llistxattr 195 12, flistxattr 196 13, tkill 200 130, time 201 -, futex 202 98,
sched_setaffinity 203 122, sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61, set_tid_address 218 96,
restart_syscall 219 128, semtimedop 220 192, fadvise64 221 223, timer_create 222 107, timer_settime 223 110,
timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, clock_gettime 228 113, clock_getres 229 114,
clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, tgkill 234 131, utimes 235 -,
mq_open 240 180, mq_unlink 241 181, mq_timedsend 242 182, mq_timedreceive 243 183, waitid 247 95, inotify_init 253 -,
inotify_add_watch 254 27, inotify_rm_watch 255 28, openat 257 56, mkdirat 258 34, mknodat 259 33, fchownat 260 54,
futimesat 261 -, newfstatat 262 79, unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36,
readlinkat 267 78, fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99,
get_robust_list 274 100, splice 275 76, tee 276 77, sync_file_range 277 84, utimensat 280 88, epoll_pwait 281 22,
signalfd 282 -, timerfd_create 283 85, eventfd 284 -, fallocate 285 47, timerfd_settime 286 86,
timerfd_gettime 287 87, accept4 288 242, signalfd4 289 74, eventfd2 290 19, epoll_create1 291 20, dup3 292 24,
pipe2 293 59, inotify_init1 294 26, preadv 295 69, pwritev 296 70, rt_tgsigqueueinfo 297 240, recvmmsg 299 243,
prlimit64 302 261, syncfs 306 267, sendmmsg 307 269, getcpu 309 168, renameat2 316 276, getrandom 318 278,
memfd_create 319 279, execveat 322 281, membarrier 324 283, mlock2 325 284, copy_file_range 326 285, preadv2 327 286,
pwritev2 328 287, pkey_mprotect 329 288, pkey_alloc 330 289, pkey_free 331 290, statx 332 291, rseq 334 293,
close_range 436 436, openat2 437 437, faccessat2 439 439, epoll_pwait2 441 441, futex_waitv 449 449,
fchmodat2 452 452
"""


@dataclass(frozen=True)
class Architecture:
    """What a filter must know of a processor.

    Attributes:
        audit: the number by which the kernel names its calls (AUDIT_ARCH).
        column: of the table above.
        clone, socket, keyctl: numbers of these calls.
    """

    audit: int
    column: int
    clone: int
    socket: int
    keyctl: int


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 1, clone=56, socket=41, keyctl=250),
    "aarch64": Architecture(0xC00000B7, 2, clone=220, socket=198, keyctl=219),
}
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
SOCKETS = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of classic BPF
_NUMBER, _AUDIT, _FIRST_ARGUMENT = 0, 4, 16  # offsets in seccomp_data; of the argument, its low half
_ALLOW, _NO_SUCH_CALL, _NOT_PERMITTED = 0x7FFF0000, 0x00050000 | 38, 0x00050000 | 1  # SECCOMP_RET_*


def this_architecture() -> Architecture | None:
    """That of this machine; None where its calls are not known here."""
    return ARCHITECTURES.get(platform.machine())


def allowed(architecture: Architecture) -> dict[str, int]:
    """Names and numbers of the calls that are allowed whatever their arguments."""
    rows = [entry.split() for entry in _ALLOWED.replace("\n", " ").split(",")]
    return {row[0]: int(row[architecture.column]) for row in rows if row[architecture.column] != "-"}


def filter_of(architecture: Architecture) -> bytes:
    """The filter as the kernel reads it: ``struct sock_filter`` after ``struct sock_filter``."""
    program = [
        (_LOAD, 0, 0, _AUDIT),
        (_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, _NO_SUCH_CALL),  # of another architecture, such as i386's, whose numbers mean other calls
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 4, architecture.clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, NEW_NAMESPACES),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, len(SOCKETS) + 3, architecture.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_EQUAL, len(SOCKETS) - place, 0, family) for place, family in enumerate(SOCKETS)),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for first, after in _runs(sorted(allowed(architecture).values())):
        program += [(_AT_LEAST, 0, 2, first), (_AT_LEAST, 1, 0, after), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _NO_SUCH_CALL))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers that follow one another, as the first and the one after the last."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
