"""Runs a model's code in a process that has given up what it could do harm with.

No file outside Python's own folders and an empty temporary one can be read, none outside the latter
written; no socket, no other process, no signal to anybody; limits on CPU time, wall time, memory
and output (``_sandbox`` says how). Where the kernel lacks a protection nothing is run, unless
``unsafe`` says so. The reference answer never enters the process: code cannot copy what is not
there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import site
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from embodied_rl.rewards import parse, warm
from embodied_rl.rewards.base import SetupError, prepared_by
from embodied_rl.rewards.remember import Remembered, programs
from embodied_rl.types import Question

SANDBOX = Path(__file__).with_name("_sandbox.py")
SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/fonts")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")
JOBS = min(os.cpu_count() or 1, 8) + 1
"""Programs at a time: one more than processors, because an end is noticed a little later."""
MIN_ENTRY_BYTES = 4096
"""What an empty file or folder counts as: a million of them is harm too."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    Attributes:
        wall_s: seconds from start to end; far above ``cpu_s``, or an honest program would fail
            where the machine is busy.
        cpu_s: processor seconds, whole ones.
        memory_bytes: address space; libraries count.
        output_bytes: of one file, and of all files together; each file and folder counts as 4096
            bytes at least.
        threads: at a time, as far as polling sees them.
    """

    wall_s: float = 30.0
    cpu_s: int = 5
    memory_bytes: int = 2 << 30
    output_bytes: int = 4 << 20
    threads: int = 64


START_LIMITS = Limits(wall_s=300.0, cpu_s=120)
"""Of our own programs: what a library does for the first time, from a cold disk, takes its time."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What became of a program.

    Attributes:
        ok: it ended by itself, with status 0.
        reason: why not, in words; empty if ``ok``.
        stdout, stderr: at most ``output_bytes`` of both.
        files: contents of the files it was asked for and wrote.
    """

    ok: bool
    reason: str
    stdout: str
    stderr: str
    files: Mapping[str, bytes] = field(default_factory=dict)


def run_code(code: str, **options: Any) -> Execution:
    """Run one program; see ``run_codes``."""
    return run_codes([code], **options)[0]


def run_codes(
    codes: Sequence[str],
    *,
    after: str = "",
    inputs: Mapping[str, bytes] | None = None,
    collect: tuple[str, ...] = (),
    limits: Limits | None = None,
    library: str = "",
    unsafe: bool = False,
) -> list[Execution]:
    """Run Python programs, each in an empty folder of its own and ``JOBS`` at a time.

    Args:
        codes: ``[N]`` programs.
        after: our own code, run after each in the same names and under the same protections.
        inputs: files to put into each folder first.
        collect: names of files to return.
        limits: what each may use.
        library: in ``warm.LIBRARIES``, of which they find the import done; empty for a new
            interpreter.
        unsafe: run them without Landlock and seccomp, with the rights of this process.

    Returns:
        ``[N]`` in the order of ``codes``.

    Raises:
        SetupError: a protection or the library is unavailable.
    """
    if not unsafe:
        check_protections()
    task = _Task(after, inputs or {}, collect, limits or Limits(), protect=not unsafe)
    if not library:
        return _run_all(codes, task, None)
    start = functools.partial(_start_warm, library, task)
    for _ in range(2):  # the programs of a process that died are not to blame
        with (
            contextlib.suppress(warm.DiedError),
            warm.borrow(library, protect=task.protect, start=start) as process,
        ):
            return _run_all(codes, task, process)
    raise SetupError(f"the process that runs programs with {library} died twice: is memory short?")


def _run_all(
    codes: Sequence[str], task: _Task, process: warm.WarmProcess | None
) -> list[Execution]:
    waiting, running = list(enumerate(codes))[::-1], dict[int, _Job]()
    ended: dict[int, Execution] = {}
    try:
        while waiting or running:
            while waiting and len(running) < JOBS:
                index, code = waiting.pop()
                running[index] = _Job(task)
                running[index].start(code, process)
            time.sleep(warm.POLL_S)
            for index in [index for index, job in running.items() if job.ended()]:
                ended[index] = running[index].result()
                running.pop(index).close()
    finally:
        for job in running.values():
            job.close()
    return [ended[index] for index in range(len(codes))]


@functools.cache
def check_protections() -> None:
    """Try the protections on an empty program, once.

    Raises:
        SetupError: one is unavailable.
    """
    result = _run_all([""], _Task("", {}, (), START_LIMITS, protect=True), None)[0]
    if not result.ok:
        why = result.stderr.strip() or result.reason
        raise SetupError(
            f"model code is not run here: {why}; on a machine to lose, set unsafe=True"
        )


@functools.cache
def check_library(library: str, *, limits: Limits, unsafe: bool = False) -> None:
    """Use ``library`` as a program would, once: without it every program would seem to fail.

    Args:
        library: in ``warm.LIBRARIES``.
        limits: those of the programs; time is not limited by them.
        unsafe: see ``run_codes``.

    Raises:
        SetupError: it is not installed, or cannot be used within the other limits.
    """
    limits = replace(limits, wall_s=START_LIMITS.wall_s, cpu_s=START_LIMITS.cpu_s)
    first_use = warm.LIBRARIES[library].first_use
    result = run_code(first_use, limits=limits, library=library, unsafe=unsafe)
    if not result.ok:
        why = (result.stderr.strip() or result.reason).splitlines()[-1]
        raise SetupError(f"{library} cannot be used within {limits}: {why}")


def remove_tree(root: Path) -> None:
    """Remove a folder, however deep: subfolders move up to ``root`` until nothing is nested.

    ``shutil.rmtree`` fails on a tree that is deeper than Python's recursion or than a path may be
    long, and on folders without permissions.
    """
    names = itertools.count()
    while entries := list(os.scandir(root)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for child in list(os.scandir(entry.path)):
                if child.is_dir(follow_symlinks=False):
                    os.chmod(child.path, 0o700)
                    os.rename(child.path, root / f"nested-{next(names)}")
                else:
                    os.unlink(child.path)
            os.rmdir(entry.path)
    os.rmdir(root)


@dataclass(frozen=True)
class _Task:
    """What is the same for all programs of a call; see ``run_codes``."""

    after: str
    inputs: Mapping[str, bytes]
    collect: tuple[str, ...]
    limits: Limits
    protect: bool

    def config(self) -> dict[str, Any]:
        """For ``_sandbox``, without the limits."""
        return {
            "protect": self.protect,
            "parent": os.getpid(),
            "readable": _readable(),
            "packages": _packages(),
        }


class _Job:
    """A program, from its empty folder to its removal."""

    def __init__(self, task: _Task) -> None:
        self.task, self.process = task, None
        self.folder = Path(tempfile.mkdtemp(prefix="answer-"))
        self.work, self.logs = self.folder / "work", self.folder / "logs"
        self.reason = ""

    def start(self, code: str, process: warm.WarmProcess | None) -> None:
        """Start it, in a fork of ``process`` if there is one."""
        self.work.mkdir()
        self.logs.mkdir()
        for name, content in self.task.inputs.items():
            (self.work / name).write_bytes(content)
        (self.work / "program.json").write_text(json.dumps([code, self.task.after]))
        for name in ("stdout", "stderr"):
            (self.logs / name).touch()
        already = _size(self.folder, limit=sys.maxsize)
        self.watch = _Watch(self.folder, self.task.limits, already=already)
        self.process = self._popen() if process is None else self._fork(process)

    def _fork(self, process: warm.WarmProcess) -> warm.Fork:
        limits, environment = asdict(self.task.limits), _environment(self.work)
        folder = str(self.folder)
        return process.start({"folder": folder, "limits": limits, "environment": environment})

    def _popen(self) -> subprocess.Popen[bytes]:
        config = {**self.task.config(), "limits": asdict(self.task.limits)}
        with open(self.logs / "stdout", "wb") as out, open(self.logs / "stderr", "wb") as err:
            return subprocess.Popen(
                [*warm.PYTHON, str(SANDBOX), json.dumps(config)],
                cwd=self.work,
                env=_environment(self.work),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Whether it has, by itself or because it had passed a limit."""
        assert self.process is not None
        if self.process.poll() is None:
            self.reason = self.watch.breach(self.process.pid)
            if not self.reason:
                return False
            self._kill()
        self.reason = self.reason or self.watch.disk_breach()
        return True

    def result(self) -> Execution:
        """What became of it, once it has ended."""
        assert self.process is not None and self.process.returncode is not None
        limit, status = self.task.limits.output_bytes, self.process.returncode
        reason = self.reason or (_bad_end(status) if status else "")
        files = {name: _read(self.work / name, limit) for name in self.task.collect}
        return Execution(
            ok=not reason,
            reason=reason,
            stdout=_tail(self.logs / "stdout", limit),
            stderr=_tail(self.logs / "stderr", limit),
            files={name: content for name, content in files.items() if content is not None},
        )

    def close(self) -> None:
        """End it and remove its folder."""
        self._kill()
        remove_tree(self.folder)

    def _kill(self) -> None:
        if isinstance(self.process, warm.Fork):
            self.process.kill()
        elif self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _bad_end(status: int) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with status {status}"


def _start_warm(library: str, task: _Task) -> warm.WarmProcess:
    """A warm process; what it writes while it starts is removed when it has."""
    folder = Path(tempfile.mkdtemp(prefix="library-"))
    try:
        environment = _environment(folder)
        return warm.WarmProcess(library, config=task.config(), environment=environment)
    finally:
        remove_tree(folder)


class _Watch:
    """Notices when a program passes a limit that rlimits cannot set."""

    def __init__(self, folder: Path, limits: Limits, *, already: int) -> None:
        self.folder, self.limits = folder, limits
        self.max_bytes = already + limits.output_bytes
        self.deadline = time.monotonic() + limits.wall_s

    def breach(self, pid: int) -> str:
        """What limit a running program has passed, if any."""
        if time.monotonic() > self.deadline:
            return f"it took longer than {self.limits.wall_s:g} s"
        if _threads(pid) > self.limits.threads:
            return f"it ran more than {self.limits.threads} threads"
        return self.disk_breach()

    def disk_breach(self) -> str:
        """What is wrong with the files it has written, if anything."""
        try:
            written = _size(self.folder, limit=self.max_bytes)
        except OSError as error:
            return f"it made a folder that cannot be read ({error.strerror})"
        if written > self.max_bytes:
            return f"it wrote more than {self.limits.output_bytes} bytes"
        return ""


def _threads(pid: int) -> int:
    """Threads of a process; 0 if it has ended, or where there is no /proc (then only `unsafe`)."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _size(folder: Path, *, limit: int) -> int:
    """Bytes of everything in a folder, counted up to a little above ``limit``; no link is followed.

    Raises:
        OSError: a folder is too deep to be reached, or may not be read.
    """
    total, rest = 0, [str(folder)]
    while rest and total <= limit:
        try:
            with os.scandir(rest.pop()) as entries:
                for entry in entries:
                    total += _entry_bytes(entry)
                    if entry.is_dir(follow_symlinks=False):
                        rest.append(entry.path)
                    if total > limit:
                        break
        except (FileNotFoundError, NotADirectoryError):  # it was removed meanwhile
            continue
    return total


def _entry_bytes(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return max(MIN_ENTRY_BYTES, status.st_size, status.st_blocks * 512)


def _read(path: Path, limit: int) -> bytes | None:
    """A regular file that the program wrote; a link could lead out of the folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, limit) if regular else None
    finally:
        os.close(descriptor)


def _tail(path: Path, limit: int) -> str:
    return path.read_bytes()[-limit:].decode(errors="replace")


def _readable() -> list[str]:
    """Python's libraries, its packages, and the libraries of the system.

    Not the whole of ``sys.prefix``: a virtual environment may hold a pip.conf with a password.
    """
    own = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *_packages()]
    own += [f"{prefix}/lib" for prefix in (sys.prefix, sys.base_prefix)]
    return sorted({*own, *SYSTEM_FOLDERS, *SYSTEM_FILES})


def _packages() -> list[str]:
    """Folders of installed packages, those of a parent environment included."""
    schemes = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return list(dict.fromkeys((*schemes, *site.getsitepackages())))


def _environment(folder: Path) -> dict[str, str]:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    home = {name: str(folder) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    return {**threads, **home, "MPLBACKEND": "Agg", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def _well(codes: Sequence[str], **options: Any) -> list[bool]:
    return [execution.ok for execution in run_codes(codes, **options)]


_ends_well = Remembered(_well)


def _run_said(
    responses: Sequence[str],
    questions: Sequence[Question],
    *,
    limits: Limits | None = None,
    library: str = "",
    unsafe: bool = False,
) -> None:
    _ends_well(programs(responses), limits=limits, library=library, unsafe=unsafe)


@prepared_by(_run_said)
def exec_ok(
    response: str,
    question: Question,
    *,
    limits: Limits | None = None,
    library: str = "",
    unsafe: bool = False,
) -> float:
    """1 if the one program of the response ends well (MSRL, 32; CAD-RL, 22).

    ``pass`` does: use it beside a reward for what the program makes.

    Args:
        response: one program, fenced or alone.
        question: not looked at.
        limits: of the program.
        library: that programs use, to save its import: ``matplotlib`` or ``cadquery``.
        unsafe: see ``run_codes``.

    Raises:
        SetupError: a protection or the library is missing.
    """
    code = parse.program(response)
    if code is None:
        return 0.0
    return float(_ends_well([code], limits=limits, library=library, unsafe=unsafe)[0])
