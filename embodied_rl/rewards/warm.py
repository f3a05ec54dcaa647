"""Processes that have a library in their memory and are forked for each program that uses it.

Importing matplotlib takes most of a second and CadQuery two; a fork of a process that has done so
(``_warm``) takes milliseconds. There is one such process per library, started on first use, ended
with this one (also by SIGKILL) and replaced when it has died. It is never a fork of this process,
whose memory holds the answers, and programs reach their fork by way of a file: neither a program
nor a reference is ever in its memory.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embodied_rl.rewards.base import SetupError

SERVER = Path(__file__).with_name("_warm.py")
PYTHON = (sys.executable, "-P", "-s", "-S", "-B")
"""Nothing is imported from the current folder or from those of the user. Not -I, which would ignore
the seed of hashes in an environment that is ours anyway."""
REPLY_S = 300.0
"""The first import from a cold disk takes its time; nothing else comes near."""
POLL_S = 0.01
END_S = 10.0
"""What a killed process may take to end."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library that programs of rewards use.

    Attributes:
        extra: of this package that brings it.
        first_use: a program of ours; what it does only once, programs need not do.
    """

    extra: str
    first_use: str


LIBRARIES: dict[str, Library] = {
    "matplotlib": Library(
        extra="vqa",
        first_use="""
import io
import matplotlib.pyplot as plt
for draw in (plt.plot, plt.bar, plt.scatter):
    draw([0, 1], [0, 1], label="a")
    plt.legend()
    plt.title("a")
    plt.savefig(io.BytesIO(), format="png")
    plt.close("all")
""",
    ),
    "cadquery": Library(
        extra="cad",
        first_use="""
import cadquery as cq
tube = cq.Workplane("XY").circle(2).circle(1).extrude(1)  # nothing that starts threads
cq.Compound.makeCompound(tube.vals()).tessellate(0.1, 0.2)
""",
    ),
}


class DiedError(Exception):
    """The warm process has ended, and its forks with it."""


class WarmProcess:
    """A process that has used a library and waits for programs.

    Args:
        library: name in ``LIBRARIES``.
        config: what ``_sandbox.run`` needs, without limits.
        environment: of the process; its folder is not needed once it has started.

    Raises:
        SetupError: the library is not installed or does not start.
    """

    def __init__(
        self, library: str, *, config: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        told = {**config, "first_use": LIBRARIES[library].first_use}
        self.process = subprocess.Popen(
            [*PYTHON, str(SERVER), json.dumps(told)],
            cwd="/",
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        try:
            state = self._reply()
        except DiedError as error:
            raise SetupError(f"the process that imports {library} did not start: {error}") from None
        if state != "ready":
            self.close()
            raise SetupError(_why(library, str(state)))

    def start(self, request: Mapping[str, Any]) -> Fork:
        """Fork; see ``_warm`` for the request.

        Raises:
            DiedError: the process has died.
        """
        return Fork(self, self.ask(request))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The reply to a request.

        Raises:
            DiedError: there is none.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: it has been closed
            self.close()
            raise DiedError("it takes no requests") from error
        return self._reply()

    def _reply(self) -> Any:
        stdout, line = self.process.stdout, ""
        assert stdout is not None
        try:
            if select.select([stdout], [], [], REPLY_S)[0]:
                line = stdout.readline()
        finally:
            if not line:  # nor may a reply that nobody awaits any more answer the next request
                self.close()
        if not line:
            raise DiedError(f"no reply, status {self.process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        """End it; its forks end with it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of what was not flushed
                pipe.close()


class Fork:
    """A program in a fork, with what a ``Popen`` offers; its id stays its own until ``poll``."""

    def __init__(self, warm: WarmProcess, pid: int) -> None:
        self.warm, self.pid = warm, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit status if it has ended.

        Raises:
            DiedError: the warm process has died.
        """
        if self.returncode is None:
            self.returncode = self.warm.ask({"ended": self.pid})
        return self.returncode

    def kill(self) -> None:
        """End it, if it has not."""
        try:
            while self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
                time.sleep(POLL_S)
        except DiedError:  # then the kernel kills it
            until = time.monotonic() + END_S
            while os.path.exists(f"/proc/{self.pid}") and time.monotonic() < until:
                time.sleep(POLL_S)


def _why(library: str, state: str) -> str:
    if f"No module named '{library}'" in state:
        return f"this reward needs {library}: pip install 'embodied-rl[{LIBRARIES[library].extra}]'"
    return f"{library} cannot be used: {state}"


# --- the processes of this one -----------------------------------------------------------------

_PROCESSES: dict[tuple[str, bool], WarmProcess] = {}
_TURN = threading.Lock()


@contextlib.contextmanager
def borrow(
    library: str, *, protect: bool, start: Callable[[], WarmProcess]
) -> Iterator[WarmProcess]:
    """The warm process of a library, which callers use one after the other."""
    key = library, protect
    with _TURN:
        if key not in _PROCESSES or _PROCESSES[key].process.poll() is not None:
            _PROCESSES[key] = start()
        yield _PROCESSES[key]


def close_all() -> None:
    """End every warm process."""
    while _PROCESSES:
        _PROCESSES.popitem()[1].close()


def _forget() -> None:
    """In a fork of this process: they belong to the one that started them."""
    global _TURN
    _TURN = threading.Lock()
    for warm in _PROCESSES.values():
        warm.process.returncode = 0  # or its collection would warn
    _PROCESSES.clear()


atexit.register(close_all)
os.register_at_fork(after_in_child=_forget)
