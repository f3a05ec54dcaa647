"""Runs a model's code in a process that has given up what it could do harm with.

No file outside Python's own folders and an empty temporary one can be read, none outside the latter
written; no socket, no other process, no signal to anybody; limits on CPU time, wall time, memory
and output (``_sandbox`` says how). Where the kernel lacks a protection nothing is run, unless
``unsafe`` says so. The reference answer never enters the process: code cannot copy what is not
there.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import SetupError
from embodied_rl.types import Question

SANDBOX = Path(__file__).with_name("_sandbox.py")
SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/fonts")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")
POLL_S = 0.01
PROTECTION_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    Attributes:
        wall_s: seconds from start to end.
        cpu_s: processor seconds, whole ones.
        memory_bytes: address space; libraries count.
        output_bytes: of one file, and of all files together.
    """

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_bytes: int = 2 << 30
    output_bytes: int = 4 << 20


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
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        return _run(Path(folder), [code, after], inputs or {}, collect, limits, not unsafe)


@functools.cache
def check_protections() -> None:
    """Try the protections on an empty program, once.

    Raises:
        SetupError: one is unavailable.
    """
    limits = Limits(wall_s=PROTECTION_TIMEOUT_S)
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        result = _run(Path(folder), ["", ""], {}, (), limits, True)
    if not result.ok:
        why = result.stderr.strip() or result.reason
        raise SetupError(
            f"model code is not run here: {why}; on a machine to lose, set unsafe=True"
        )


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
        reason = _wait(process, folder, limits)
    texts = [_tail(path, limits.output_bytes) for path in (out, err)]
    files = {name: _read(work / name, limits.output_bytes) for name in collect}
    return Execution(
        ok=not reason,
        reason=reason,
        stdout=texts[0],
        stderr=texts[1],
        files={name: content for name, content in files.items() if content is not None},
    )


def _wait(process: subprocess.Popen[bytes], folder: Path, limits: Limits) -> str:
    """Why the program did not end well, or an empty string; it has ended in any case."""
    deadline, reason = time.monotonic() + limits.wall_s, ""
    try:
        while process.poll() is None and not reason:
            if time.monotonic() > deadline:
                reason = f"it took longer than {limits.wall_s:g} s"
            elif _size(folder) > limits.output_bytes:
                reason = f"it wrote more than {limits.output_bytes} bytes"
            else:
                time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if reason or process.returncode == 0:
        return reason
    if process.returncode < 0:
        return f"it was ended by {signal.Signals(-process.returncode).name}"
    return f"it ended with status {process.returncode}"


def _size(folder: Path) -> int:
    """Bytes on disk of everything in a folder; links are not followed."""
    total, rest = 0, [str(folder)]
    while rest:
        try:
            entries = list(os.scandir(rest.pop()))
        except OSError:  # it was removed meanwhile
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                rest.append(entry.path)
            total += _blocks(entry)
    return total


def _blocks(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0


def _read(path: Path, limit: int) -> bytes | None:
    """A regular file that the program wrote; a link could lead out of the folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit)


def _tail(path: Path, limit: int) -> str:
    return path.read_bytes()[-limit:].decode(errors="replace")


def _readable() -> list[str]:
    """Python, its packages, and the libraries of the system."""
    own = [sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *_packages()]
    own = [path for path in own if path not in ("/usr", "/usr/local", "/")]
    return sorted({*own, *SYSTEM_FOLDERS, *SYSTEM_FILES})


def _packages() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def _environment(folder: Path) -> dict[str, str]:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    home = {name: str(folder) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    return {**threads, **home, "MPLBACKEND": "Agg", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def exec_ok(
    response: str, question: Question, *, limits: Limits | None = None, unsafe: bool = False
) -> float:
    """1 if the one fenced program of the response ends well (MSRL, 32; CAD-RL, 22).

    ``pass`` does: use it beside a reward for what the program makes.
    """
    code = parse.code_block(response)
    if code is None:
        return 0.0
    return float(run_code(code, limits=limits, unsafe=unsafe).ok)
