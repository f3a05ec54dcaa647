"""Runs a program that nobody trusts; started by path, standard library only.

Before the first line of the program this process gives up, for good and in this order: resources
(rlimits), files outside a few folders (Landlock), and sockets, new processes, signals to others
and much else (a seccomp filter). Threads stay possible, processes do not, so nothing can be left
behind.
Numbers of system calls are those of x86-64 Linux.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

REFUSED = 120
"""Exit status when a protection is unavailable."""
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
CLONE, FCNTL, PRCTL, PRLIMIT, CLONE3 = 56, 72, 157, 302, 435
CLONE_THREAD = 0x00010000
FIRST_UNKNOWN = 463
"""System calls that came with Linux 6.13 or later are refused, whatever they do."""
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15

DENIED = (
    *range(41, 56),  # sockets
    *(288, 299, 307),  # accept4, recvmmsg, sendmmsg
    *(57, 58, 59, 322),  # fork, vfork, execve, execveat
    *(62, 200, 234, 129, 297, 424),  # signals to anybody
    *(434, 438, 101, 310, 311, 312, 440, 448),  # other processes: pidfd, ptrace, vm, kcmp, madvise
    *(109, 112, 141, 142, 144, 203, 251, 256, 279, 314),  # groups, priorities, placement of others
    160,  # limits
    *(29, 30, 64, 68, 240, 319, 447),  # memory that no limit counts: System V, queues, memfd
    *(90, 91, 92, 93, 94, 260, 268, 452),  # chmod, chown
    *(132, 235, 261, 280),  # times of files
    *(188, 189, 190, 197, 198, 199),  # extended attributes
    *(133, 259, 303, 304, 161, 155, 165, 166, 272, 308),  # devices, handles, roots, namespaces
    *(428, 429, 430, 431, 432, 433, 442),  # the new mount calls
    *(103, 153, 159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 443),  # admin
    *(227, 246, 305, 313, 320),  # clocks, kernels, modules
    *(135, 248, 249, 250, 298, 300, 321, 323),  # personality, keys, perf, fanotify, bpf, userfault
    *(425, 426, 427),  # io_uring
    *(457, 458),  # what is mounted
)

LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
ALL_ACCESS = (1 << 15) - 1  # every right of ABI 3
MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11  # devices, sockets, fifos
MIN_LANDLOCK_ABI = 3
"""Before, truncating a file needs no permission."""


class RefusedError(Exception):
    """A protection is unavailable."""


def system_call(number: int, *arguments: object) -> int:
    """The call's result, or its error raised."""
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def limit_resources(limits: dict[str, int]) -> None:
    """Hard limits, which an unprivileged process cannot raise again."""
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["output_bytes"],
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in wanted.items():
        resource.setrlimit(kind, (value, value))


def prctl(*arguments: int) -> None:
    """The call of this name."""
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:5]]
    if LIBC.prctl(*padded) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def restrict_files(readable: list[str], writable: str) -> None:
    """Landlock: read (and run) what lies under ``readable``; all else only under ``writable``."""
    try:
        abi = system_call(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError as error:
        raise RefusedError(f"the kernel has no Landlock ({error.strerror})") from error
    if abi < MIN_LANDLOCK_ABI:
        raise RefusedError(f"Landlock is of version {abi}, {MIN_LANDLOCK_ABI} is needed")
    handled = ctypes.c_uint64(ALL_ACCESS)
    size, none = ctypes.c_size_t(8), ctypes.c_uint32(0)
    ruleset = system_call(LANDLOCK_CREATE, ctypes.byref(handled), size, none)
    for path in readable:
        folder = READ_DIR if os.path.isdir(path) else 0
        allow_path(ruleset, path, READ_FILE | EXECUTE | folder)
    allow_path(ruleset, "/dev/null", READ_FILE | WRITE_FILE | TRUNCATE)
    allow_path(ruleset, writable, ALL_ACCESS & ~MAKE_SPECIAL & ~EXECUTE)
    system_call(LANDLOCK_RESTRICT, ctypes.c_int(ruleset), none)
    os.close(ruleset)


def allow_path(ruleset: int, path: str, access: int) -> None:
    """One rule; a path that does not exist needs none."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor), 12)
    flags = ctypes.c_uint32(0)
    system_call(LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, flags)
    os.close(descriptor)


def filter_program() -> bytes:
    """The seccomp filter: a list of (code, jump if true, jump if false, constant)."""
    deny = (RETURN, 0, 0, ERRNO | EPERM)
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT_ARCH_X86_64), (RETURN, 0, 0, KILL)]
    steps += [(LOAD, 0, 0, 0), (AT_LEAST, 0, 1, X32_BIT), deny]
    absent = (RETURN, 0, 0, ERRNO | ENOSYS)
    steps += [(AT_LEAST, 0, 1, FIRST_UNKNOWN), absent]
    for number in sorted(set(DENIED)):
        steps += [(EQUAL, 0, 1, number), deny]
    steps += [(EQUAL, 0, 1, CLONE3), absent]  # libc then tries clone
    first_argument, second_argument, new_limit = 16, 24, 32
    steps += [(EQUAL, 0, 4, CLONE), (LOAD, 0, 0, first_argument)]
    steps += [(ANY_BIT, 1, 0, CLONE_THREAD), deny, (RETURN, 0, 0, ALLOW)]
    steps += [(EQUAL, 0, 4, PRCTL), (LOAD, 0, 0, first_argument)]
    steps += [(EQUAL, 0, 1, PR_SET_PDEATHSIG), deny, (RETURN, 0, 0, ALLOW)]  # or it would outlive
    steps += [(EQUAL, 0, 10, PRLIMIT)]  # of this process and without a new value, or root could
    for must_be_zero in (first_argument, new_limit, new_limit + 4):
        steps += [(LOAD, 0, 0, must_be_zero), (EQUAL, 1, 0, 0), deny]
    steps += [(RETURN, 0, 0, ALLOW)]
    steps += [(EQUAL, 0, 7, FCNTL), (LOAD, 0, 0, second_argument)]
    for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX):  # signals by way of a file
        steps += [(EQUAL, 0, 1, command), deny]
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def filter_system_calls(program: bytes) -> None:
    """Install a filter; it holds for every later thread and process."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    pointer = ctypes.create_string_buffer(header, len(header))
    try:
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(pointer))
    except OSError as error:
        raise RefusedError("the kernel takes no seccomp filter") from error


def die_with_parent(parent: int) -> None:
    """Be killed when the process ``parent``, which started this one, ends; or end if it has."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def protect(config: dict) -> None:
    """All of it, in this order; the filter last, since it forbids what comes before."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise RefusedError("it needs Linux on x86-64")
    die_with_parent(config["parent"])
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    limit_resources(config["limits"])
    restrict_files(config["readable"], os.getcwd())
    filter_system_calls(filter_program())


def run(config: dict) -> None:
    """Protect this process, then run both programs of ``program.json`` in the same names."""
    with open("program.json", encoding="utf-8") as file:
        programs = json.load(file)
    os.unlink("program.json")
    if config["protect"]:
        try:
            protect(config)
        except (RefusedError, OSError) as error:
            print(error, file=sys.stderr)
            sys.exit(REFUSED)
    sys.argv = ["answer"]
    names = {"__name__": "__main__"}
    for name, program in zip(("answer", "after"), programs, strict=True):
        exec(compile(program, f"<{name}>", "exec"), names)


def find_packages(folders: list[str]) -> None:
    """Let imports look into ``folders`` too, and nowhere in the current folder."""
    sys.path[:] = [path for path in (*sys.path, *folders) if path]


def main() -> None:
    """The one program of a process of its own."""
    config = json.loads(sys.argv[1])
    find_packages(config["packages"])
    run(config)


LIBC = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    main()
