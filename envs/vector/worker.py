"""What runs inside a worker process: its rows, driven by one byte at a time.

The parent writes the data of a command into the shared arrays and one byte into the control socket;
the worker answers ``OK``, or ``FAILED`` and its traceback, and ends. Nothing is pickled after
start-up, except pictures.

A worker cannot outlive its parent: the kernel sends SIGIO, whose default action is to end the
process, when the parent's end of the life pipe closes, even while native code hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import pickle
import signal
import socket
import struct
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied_rl.envs.vector.rows import BlockEnv, RowEnv, RowSpec, load_factory, spec_of
from embodied_rl.envs.vector.shared import SharedArrays

START, STEP, RESET, RENDER, QUIT = b"a", b"s", b"r", b"v", b"q"
OK, ROW_MADE, FAILED, REFUSED = b"k", b".", b"e", b"u"
LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to run.

    Attributes:
        factory: ``"module:attr"`` of a function that returns a ``RowEnv``, or a ``BlockEnv``.
        options: its keyword arguments.
        index: number of this worker, of ``num_workers``.
        first, last: its rows are ``first`` to ``last - 1`` of ``num_envs``.
        block: the factory is called once, with ``num_rows``, for all rows of this worker.
    """

    factory: str
    options: dict[str, Any]
    index: int
    num_workers: int
    first: int
    last: int
    num_envs: int
    block: bool = False


def write_message(control: socket.socket, payload: bytes) -> None:
    """Length, then payload."""
    control.sendall(LENGTH.pack(len(payload)) + payload)


def read_message(control: socket.socket) -> bytes:
    """What ``write_message`` wrote.

    Raises:
        ConnectionError: the other side is gone.
    """
    return _read(control, LENGTH.unpack(_read(control, LENGTH.size))[0])


def _read(control: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = control.recv(size - len(parts))
        if not part:
            raise ConnectionError
        parts += part
    return bytes(parts)


class _Part:
    """The part of the shared arrays that one worker fills."""

    def __init__(self, job: Job, spec: RowSpec, memory: int) -> None:
        shared = SharedArrays(memory, spec, num_envs=job.num_envs, num_workers=job.num_workers)
        part = slice(job.first, job.last)
        self.obs = {name: array[part] for name, array in shared.obs.items()}
        self.actions = shared.actions[part]
        self.rewards = shared.rewards[part]
        self.flags = shared.flags[:, part]
        self.mask = shared.mask[part]
        self.seeds, self.task_ids = shared.seeds[part], shared.task_ids[part]
        self.has_success = shared.has_success
        self.progress = shared.progress[job.index : job.index + 1]


class Rows:
    """Rows that are stepped one after the other."""

    def __init__(self, envs: list[RowEnv], part: _Part) -> None:
        self._envs, self._part = envs, part

    def _wanted(self) -> list[int]:
        return np.flatnonzero(self._part.mask).tolist()

    def step(self) -> None:
        """Step the rows of the mask."""
        part = self._part
        for row in self._wanted():
            # Copied: an environment may keep its action, and these are overwritten.
            transition = self._envs[row].step(part.actions[row].copy())
            for name, array in part.obs.items():
                array[row] = transition.obs[name]
            part.rewards[row] = transition.reward
            success = transition.success
            if success is None:
                part.has_success[0] = success = False
            part.flags[:, row] = (transition.terminated, transition.truncated, success)
            part.progress[0] += 1

    def reset(self) -> None:
        """Start an episode in the rows of the mask."""
        part = self._part
        seeds, task_ids = part.seeds.tolist(), part.task_ids.tolist()
        for row in self._wanted():
            obs = self._envs[row].reset(task_id=task_ids[row], seed=seeds[row])
            for name, array in part.obs.items():
                array[row] = obs[name]
            part.progress[0] += 1

    def picture(self) -> bytes:
        """Pickled picture of the one row of the mask."""
        return pickle.dumps(np.ascontiguousarray(self._envs[self._wanted()[0]].render()))

    def close(self) -> None:
        """Close every row."""
        for env in self._envs:
            env.close()


class Block:
    """Rows that are stepped together."""

    def __init__(self, env: BlockEnv, part: _Part) -> None:
        self._env, self._part = env, part

    def step(self) -> None:
        """Step the rows of the mask."""
        part, rows = self._part, np.flatnonzero(self._part.mask)
        step = self._env.step(part.actions[rows], rows)
        for name, array in part.obs.items():
            array[rows] = step.obs[name]
        part.rewards[rows] = step.rewards
        part.flags[0, rows], part.flags[1, rows] = step.terminated, step.truncated
        part.flags[2, rows] = False if step.success is None else step.success
        if step.success is None:
            part.has_success[0] = False
        part.progress[0] += rows.size

    def reset(self) -> None:
        """Start an episode in the rows of the mask."""
        part, rows = self._part, np.flatnonzero(self._part.mask)
        obs = self._env.reset(rows, task_ids=part.task_ids[rows], seeds=part.seeds[rows])
        for name, array in part.obs.items():
            array[rows] = obs[name]
        part.progress[0] += rows.size

    def picture(self) -> bytes:
        """Pickled picture of the one row of the mask."""
        row = int(np.flatnonzero(self._part.mask)[0])
        return pickle.dumps(np.ascontiguousarray(self._env.render(row)))

    def close(self) -> None:
        """Close the block."""
        self._env.close()


def main(control_fd: int, life_fd: int, memory_fd: int, report_fd: int) -> None:
    """Make the rows, then serve commands until the parent is gone or says quit."""
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    faulthandler.enable(report_fd)
    # How the parent asks a worker that hangs where it is.
    faulthandler.register(signal.SIGUSR1, report_fd)
    control = socket.socket(fileno=control_fd)
    try:
        rows = _make_rows(control, memory_fd)
        _serve(control, rows)
    except ConnectionError:  # the parent is gone
        return
    except BaseException as error:  # a simulator may also call sys.exit
        text = traceback.format_exc()
        with contextlib.suppress(ConnectionError):
            refused = isinstance(error, ValueError) and "rows" not in locals()
            control.sendall(REFUSED if refused else FAILED)
            write_message(control, (str(error) if refused else text).encode())
        # Not a clean exit: closing a simulator in an unknown state may hang.
        os._exit(1)


def _make_rows(control: socket.socket, memory: int) -> Rows | Block:
    job: Job = pickle.loads(read_message(control))
    make = load_factory(job.factory)
    envs = []
    if job.block:
        envs.append(make(num_rows=job.last - job.first, **job.options))
    else:
        for _ in range(job.first, job.last):
            envs.append(make(**job.options))
            control.sendall(ROW_MADE)
    spec = spec_of(envs[0])
    control.sendall(OK)
    write_message(control, pickle.dumps(spec))
    assert control.recv(1) in (START, b"")
    part = _Part(job, spec, memory)
    return Block(envs[0], part) if job.block else Rows(envs, part)


def _serve(control: socket.socket, rows: Rows | Block) -> None:
    descriptor = control.fileno()
    while True:
        command = os.read(descriptor, 1)
        if command == STEP:
            rows.step()
            os.write(descriptor, OK)
        elif command == RESET:
            rows.reset()
            os.write(descriptor, OK)
        elif command == RENDER:
            payload = rows.picture()
            os.write(descriptor, OK)
            write_message(control, payload)
        else:
            assert command in (QUIT, b"")
            rows.close()
            return
