"""A small ``RowEnv`` that can be told to fail, for tests of worker processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np
from gymnasium import spaces

from embodied_rl.envs.vector import BlockTransition, RowTransition


class Walk:
    """Move a number to a goal: state (position, goal, step), reward -|distance|, solved below 0.1.

    Args:
        fault: none or ``"raise"``, ``"hang"``, ``"kill"``, ``"exit"``, ``"segfault"``,
            ``"reset"``.
        every: steps of this object, or resets for ``"reset"``, between faults.
        marker: a file; if given, the fault happens once, when the file is not there yet.
        delay: seconds per step.
    """

    task_names = ("near", "far")
    instructions = ("go near", "go far")

    def __init__(
        self,
        *,
        fault: str = "",
        every: int = 200,
        marker: str = "",
        delay: float = 0.0,
        size: int = 3,
    ) -> None:
        if size < 3:
            raise ValueError(f"size={size}: give at least 3")
        self.observation_space = spaces.Dict({"state": spaces.Box(-99, 99, (size,), np.float64)})
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.fault, self.every, self.marker, self.delay = fault, every, marker, delay
        self.steps = self.resets = 0
        self.state = np.zeros(size)

    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        self.resets += 1
        if self.fault == "reset" and self.resets % self.every == 0 and self._first_time():
            raise RuntimeError("reset failed on purpose")
        random = np.random.default_rng(seed)
        self.state = random.uniform(-1, 1, self.state.shape)
        self.state[1] = self.state[0] + (task_id + 1) * random.choice((-1, 1))
        self.state[2] = 0.0
        return {"state": self.state.copy()}

    def step(self, action: np.ndarray) -> RowTransition:
        self.steps += 1
        if self.delay:
            time.sleep(self.delay)
        if self.fault and self.fault != "reset" and self.steps % self.every == 0:
            self._fail()
        self.state[0] += 0.1 * float(action[0])
        self.state[2] += 1.0
        distance = abs(self.state[0] - self.state[1])
        return RowTransition(
            {"state": self.state.copy()}, -distance, False, self.state[2] >= 30, distance < 0.1
        )

    def _first_time(self) -> bool:
        if not self.marker:
            return True
        try:  # one of all processes makes it
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _fail(self) -> None:
        if not self._first_time():
            return
        if self.fault == "raise":
            raise RuntimeError("failed on purpose")
        if self.fault == "exit":
            raise SystemExit(7)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        while self.fault == "hang":
            time.sleep(0.01)

    def render(self) -> np.ndarray:
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:, int(np.clip(32 + 16 * self.state[0], 0, 63))] = 255
        return picture

    def close(self) -> None:
        pass


class Curious(Walk):
    """Observes (one thread, empty standard input, torch not imported); prints to stdout."""

    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        print("a simulator that talks", flush=True)
        threads = os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
        return {"state": np.array([threads, not sys.stdin.read(), "torch" not in sys.modules])}


class Still(Walk):
    """Does nothing, to measure what a worker costs beside its simulator."""

    def step(self, action: np.ndarray) -> RowTransition:
        return RowTransition({"state": self.state}, 0.0, False, False, False)


class WalkBlock:
    """Several ``Walk``s as a ``BlockEnv``."""

    task_names, instructions = Walk.task_names, Walk.instructions

    def __init__(self, *, num_rows: int, **options: Any) -> None:
        self.rows = [Walk(**options) for _ in range(num_rows)]
        self.observation_space = self.rows[0].observation_space
        self.action_space = self.rows[0].action_space

    def reset(self, rows: Any, *, task_ids: Any, seeds: Any) -> dict[str, np.ndarray]:
        started = [
            self.rows[row].reset(task_id=task, seed=seed)["state"]
            for row, task, seed in zip(rows, task_ids, seeds, strict=True)
        ]
        return {"state": np.stack(started)}

    def step(self, actions: np.ndarray, rows: Any) -> BlockTransition:
        steps = [self.rows[row].step(action) for row, action in zip(rows, actions, strict=True)]
        return BlockTransition(
            {"state": np.stack([step.obs["state"] for step in steps])},
            np.array([step.reward for step in steps]),
            np.array([step.terminated for step in steps]),
            np.array([step.truncated for step in steps]),
            np.array([step.success for step in steps]),
        )

    def render(self, row: int) -> np.ndarray:
        return self.rows[row].render()

    def close(self) -> None:
        for row in self.rows:
            row.close()
