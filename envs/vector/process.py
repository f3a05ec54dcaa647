"""One worker process as its parent sees it: start it, send a byte, wait for the answer, end it.

A worker is a fresh interpreter (no fork: no inherited locks, GL contexts or threads), in its own
process group, so that Ctrl-C reaches the parent alone and ending the group ends what the simulator
itself has started. Its standard input is empty, its standard output goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

from embodied_rl.envs.spaces import Array
from embodied_rl.envs.vector import worker as protocol
from embodied_rl.envs.vector.rows import RowSpec
from embodied_rl.envs.vector.shared import anonymous_file
from embodied_rl.envs.vector.worker import Job, read_message, write_message

ONE_THREAD = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""A thread pool per worker on the same cores would slow all of them down many times over."""
BOOTSTRAP = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from embodied_rl.envs.vector.worker import main; main(*map(int, sys.argv[2:]))"
)
GRACE = 2.0
"""Seconds a worker has to close its simulators, or to say where it hangs."""


class WorkerError(RuntimeError):
    """Worker processes that cannot be kept running; the message says why."""


class WorkerFailure(Exception):  # noqa: N818 (caught inside the package)
    """A worker raised, hung or died; the text is what is known about it."""


class Worker:
    """A worker process, started at once and ready after ``spec``.

    Args:
        job: its rows and how to make them.
        memory: file descriptor of the shared arrays.
        timeout: seconds without a finished row after which it counts as hanging.
    """

    def __init__(self, job: Job, *, memory: int, timeout: float) -> None:
        self.job = job
        self.rows = slice(job.first, job.last)
        self._timeout = timeout
        self._control, control = socket.socketpair()
        life, self._life = os.pipe()
        self._report = anonymous_file()
        self._ended = False
        passed = (control.fileno(), life, memory, self._report)
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP, path, *map(str, passed)],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=os.environ | dict.fromkeys(ONE_THREAD, "1"),
                process_group=0,
            )
        finally:
            control.close()
            os.close(life)
        self._descriptor = self._control.fileno()
        # Wake up a few times per timeout to look at the progress of the worker.
        seconds = max(timeout / 4, 1e-3)
        wait = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        with contextlib.suppress(ConnectionError):  # noticed when the answer is read
            write_message(self._control, pickle.dumps(job))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, command: bytes) -> None:
        """Start a command; a dead worker is noticed by ``wait``."""
        with contextlib.suppress(ConnectionError):
            os.write(self._descriptor, command)

    def wait(self, progress: Array) -> None:
        """Wait for the end of a command.

        Args:
            progress: [W] rows that each worker has finished.

        Raises:
            WorkerFailure: it raised, hung or died.
        """
        try:
            answer = os.read(self._descriptor, 1)
        except BlockingIOError:
            answer = self._wait_on(lambda: int(progress[self.job.index]), self._timeout)
        except ConnectionError:
            answer = b""
        if answer != protocol.OK:
            raise self._failure(answer)

    def _wait_on(self, progress: Callable[[], int], timeout: float) -> bytes:
        """The next byte, or b"" from a dead worker."""
        seen, since = progress(), time.monotonic()
        while True:
            try:
                return os.read(self._descriptor, 1)
            except BlockingIOError:
                now = time.monotonic()
                if progress() != seen:
                    seen, since = progress(), now
                elif now - since >= timeout:
                    raise self._hang(timeout) from None
            except ConnectionError:
                return b""

    def spec(self, on_row: Callable[[], None], *, timeout: float) -> RowSpec:
        """Wait until every row is made.

        Args:
            on_row: called for every row.
            timeout: seconds without a new row after which the worker counts as hanging.

        Raises:
            WorkerFailure: it raised, hung or died.
            ValueError: the factory refuses its options.
        """
        while (answer := self._wait_on(lambda: 0, timeout)) == protocol.ROW_MADE:
            on_row()
        if answer == protocol.REFUSED:
            raise ValueError(self._message().decode())
        if answer != protocol.OK:
            raise self._failure(answer)
        spec = pickle.loads(self._message())
        self.send(protocol.START)
        return spec

    def picture(self) -> Array:
        """The picture after a RENDER command whose ``wait`` has returned."""
        return pickle.loads(self._message())

    def _message(self) -> bytes:
        self._control.settimeout(self._timeout)
        try:
            return read_message(self._control)
        finally:
            self._control.settimeout(None)

    def _hang(self, timeout: float) -> WorkerFailure:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + GRACE
        while not os.fstat(self._report).st_size and time.monotonic() < deadline:
            time.sleep(0.01)
        return WorkerFailure(f"has not finished a row for {timeout:g} s\n{self._said()}")

    def _failure(self, answer: bytes) -> WorkerFailure:
        if answer == protocol.FAILED:
            with contextlib.suppress(OSError):  # killed while it reported
                return WorkerFailure(f"raised\n{self._message().decode()}")
        self.end(grace=GRACE)
        code = self._process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return WorkerFailure(f"{how}\n{self._said()}")

    def _said(self) -> str:
        """What faulthandler wrote: stacks of a crash or a hang."""
        size = os.fstat(self._report).st_size
        return os.pread(self._report, size, 0).decode(errors="replace")

    def end(self, *, grace: float = 0.0) -> None:
        """End the process and all it has started, after ``grace`` seconds; may be repeated."""
        if self._ended:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        with contextlib.suppress(ProcessLookupError):  # the group may outlive its first process
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._ended = True

    def close(self) -> None:
        """End it at once and release its descriptors."""
        self.end()
        if self._life >= 0:
            self._control.close()
            os.close(self._life)
            os.close(self._report)
            self._life = -1
