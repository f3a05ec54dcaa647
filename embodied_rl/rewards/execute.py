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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import SetupError
from embodied_rl.types import Question

SANDBOX = Path(__file__).with_name("_sandbox.py")
SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/fonts")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")
POLL_S = 0.01
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


def run_code(
    code: str,
    *,
    after: str = "",
    inputs: Mapping[str, bytes] | None = None,
    collect: tuple[str, ...] = (),
    limits: Limits | None = None,
    unsafe: bool = False,
) -> Execution:
    """Run a Python program in an empty folder.

    Args:
        code: the program.
        after: our own code, run afterwards in the same names and under the same protections.
        inputs: files to put into the folder first.
        collect: names of files to return.
        limits: what it may use.
        unsafe: run it without Landlock and seccomp, with the rights of this process.

    Raises:
        SetupError: a protection is unavailable and ``unsafe`` is not set.
    """
    limits = limits or Limits()
    if not unsafe:
        check_protections()
    with _temporary_folder() as folder:
        return _run(folder, [code, after], inputs or {}, collect, limits, not unsafe)


@functools.cache
def check_protections() -> None:
    """Try the protections on an empty program, once.

    Raises:
        SetupError: one is unavailable.
    """
    with _temporary_folder() as folder:
        result = _run(folder, ["", ""], {}, (), START_LIMITS, True)
    if not result.ok:
        why = result.stderr.strip() or result.reason
        raise SetupError(
            f"model code is not run here: {why}; on a machine to lose, set unsafe=True"
        )


@functools.cache
def check_library(module: str, *, extra: str, limits: Limits, unsafe: bool = False) -> None:
    """Import ``module`` as a program would, once: without it every program would seem to fail.

    Args:
        module: its name.
        extra: of this package that brings it.
        limits: those of the programs; time to start is not limited by them.
        unsafe: see ``run_code``.

    Raises:
        SetupError: it is not installed, or does not start within the other limits.
    """
    limits = replace(limits, wall_s=START_LIMITS.wall_s, cpu_s=START_LIMITS.cpu_s)
    result = run_code(f"import {module}", limits=limits, unsafe=unsafe)
    if result.ok:
        return
    if f"No module named '{module}'" in result.stderr:
        raise SetupError(f"this reward needs {module}: pip install 'embodied-rl[{extra}]'")
    why = (result.stderr.strip() or result.reason).splitlines()[-1]
    raise SetupError(f"{module} cannot be imported within {limits}: {why}")


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="answer-"))
    try:
        yield folder
    finally:
        remove_tree(folder)


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


def _run(
    folder: Path,
    programs: list[str],
    inputs: Mapping[str, bytes],
    collect: tuple[str, ...],
    limits: Limits,
    protect: bool,
) -> Execution:
    work, logs = folder / "work", folder / "logs"
    work.mkdir()
    logs.mkdir()
    for name, content in inputs.items():
        (work / name).write_bytes(content)
    (work / "program.json").write_text(json.dumps(programs))
    config = {
        "protect": protect,
        "parent": os.getpid(),
        "limits": asdict(limits),
        "readable": _readable(),
        "packages": _packages(),
    }
    command = [sys.executable, "-I", "-S", "-B", str(SANDBOX), json.dumps(config)]
    watch = _Watch(folder, limits, already=_size(folder, limit=sys.maxsize))
    out, err = logs / "stdout", logs / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=_environment(work),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        reason = watch.until_end(process)
    texts = [_tail(path, limits.output_bytes) for path in (out, err)]
    files = {name: _read(work / name, limits.output_bytes) for name in collect}
    return Execution(
        ok=not reason,
        reason=reason,
        stdout=texts[0],
        stderr=texts[1],
        files={name: content for name, content in files.items() if content is not None},
    )


class _Watch:
    """Waits for a program and ends it when it passes a limit that rlimits cannot set."""

    def __init__(self, folder: Path, limits: Limits, *, already: int) -> None:
        self.folder, self.limits = folder, limits
        self.max_bytes = already + limits.output_bytes
        self.deadline = time.monotonic() + limits.wall_s

    def until_end(self, process: subprocess.Popen[bytes]) -> str:
        """Why the program did not end well, or an empty string; it has ended in any case."""
        reason = ""
        try:
            while process.poll() is None and not reason:
                time.sleep(POLL_S)
                reason = self.breach(process.pid)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reason = reason or self.disk_breach()
        if reason or process.returncode == 0:
            return reason
        if process.returncode < 0:
            return f"it was ended by {signal.Signals(-process.returncode).name}"
        return f"it ended with status {process.returncode}"

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


def exec_ok(
    response: str, question: Question, *, limits: Limits | None = None, unsafe: bool = False
) -> float:
    """1 if the one program of the response ends well (MSRL, 32; CAD-RL, 22).

    ``pass`` does: use it beside a reward for what the program makes.
    """
    code = parse.program(response)
    if code is None:
        return 0.0
    return float(run_code(code, limits=limits, unsafe=unsafe).ok)
