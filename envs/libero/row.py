"""One LIBERO environment inside a worker process.

An episode is a function of (task, seed, actions): the seed chooses one of the initial states that
the benchmark fixes for the task (``tasks.state_index``).
The rows of a process share the built tasks (see ``simulation``), so that a row may change its task
at any reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied_rl.envs.libero.layout import (
    ROBOT_SIZE,
    relative_features,
    relative_size,
    state_size,
)
from embodied_rl.envs.libero.simulation import CAMERAS, Snapshot, TaskCache, TaskSimulation
from embodied_rl.envs.libero.tasks import GOALS_PER_TASK, Wording, load_task, state_index
from embodied_rl.envs.spaces import Array, ArrayDict
from embodied_rl.envs.vector.rows import RowTransition

_CACHES: dict[tuple[Any, ...], TaskCache] = {}
"""The built tasks of this process, by what they were built with."""
RENDER_SIZE = 256


class LiberoRow:
    """See ``RowEnv`` of ``embodied_rl.envs.vector``.

    Args:
        tasks: (suite, name) of every task id.
        assets: folder of the scenes.
        wording: which of the two instructions.
        initial_states, evaluation_states: first and last of the initial states that seeds choose
            from, below ``EVALUATION_SEEDS`` and from there on.
        images: names of ``CAMERAS`` to observe.
        image_size: their height and width.
        stepping: a mode of ``control.STEPPERS``.
        settle_steps: control steps without motion before the first action.
        cached_tasks: built tasks that the process keeps, besides those of running episodes.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[tuple[str, str]],
        assets: str,
        wording: Wording = "name",
        initial_states: tuple[int, int] = (0, 49),
        evaluation_states: tuple[int, int] = (0, 49),
        images: Sequence[str] = (),
        image_size: int = 128,
        stepping: str = "exact",
        settle_steps: int = 10,
        cached_tasks: int = 10,
    ) -> None:
        self.tasks = tuple((suite, name) for suite, name in tasks)
        self.task_names = tuple(name for _, name in self.tasks)
        loaded = [load_task(suite, name) for suite, name in self.tasks]
        self.instructions = tuple(task.instructions[wording] for task in loaded)
        self._training, self._evaluation = initial_states, evaluation_states
        self._images, self._image_size = tuple(images), image_size
        self._goals = max(GOALS_PER_TASK[suite] for suite, _ in self.tasks)
        self._cache = _shared_cache(assets, stepping, settle_steps, cached_tasks)
        self.observation_space = observation_space(self._goals, self._images, image_size)
        self.action_space: gymnasium.Space[Any] = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._task_id = 0
        self._snapshot: Snapshot | None = None

    def reset(self, *, task_id: int, seed: int) -> ArrayDict:
        """Start the episode of ``seed`` on a task; returns its first observation."""
        simulation = self._take(task_id)
        index = state_index(seed, training=self._training, evaluation=self._evaluation)
        self._snapshot = simulation.settled(index)
        simulation.show(self._snapshot)
        return self._observe(simulation)

    def step(self, action: Array) -> RowTransition:
        """One control step; the reward is 1 with success, else 0."""
        assert self._snapshot is not None, "step before reset"
        simulation = self._simulation
        simulation.load(self._snapshot)
        self._snapshot = simulation.step(action)
        success = simulation.success()
        return RowTransition(self._observe(simulation), float(success), False, False, success)

    def render(self) -> Array:
        """The scene as the camera in front of it sees it, [256, 256, 3] uint8."""
        assert self._snapshot is not None, "render before reset"
        simulation = self._simulation
        simulation.show(self._snapshot)
        return simulation.render(CAMERAS["agentview"], RENDER_SIZE, RENDER_SIZE)

    def save(self) -> tuple[int, Array, Array]:
        """(task id, physics, controller's memory): the episode, exactly."""
        assert self._snapshot is not None, "save before reset"
        return self._task_id, self._snapshot.physics.copy(), self._snapshot.memory.copy()

    def load(self, saved: tuple[int, Array, Array]) -> ArrayDict:
        """Go where ``save`` was called; returns the observation there."""
        simulation = self._take(saved[0])
        self._snapshot = Snapshot(saved[1].copy(), saved[2].copy())
        simulation.show(self._snapshot)
        return self._observe(simulation)

    def close(self) -> None:
        """Leave the built tasks to the other rows of the process."""
        self._cache.release(self)

    def _take(self, task_id: int) -> TaskSimulation:
        self._task_id = task_id
        self._simulation = self._cache.take(self, *self.tasks[task_id])
        return self._simulation

    def _observe(self, simulation: TaskSimulation) -> ArrayDict:
        state = simulation.state(self._goals)
        obs = {"state": state, "relative": relative_features(state)}
        if self._images:
            obs["robot"] = state[:ROBOT_SIZE].copy()
        for name in self._images:
            picture = simulation.render(CAMERAS[name], self._image_size, self._image_size)
            obs[name] = np.ascontiguousarray(picture.transpose(2, 0, 1))
        return obs


def observation_space(goals: int, images: Sequence[str], image_size: int) -> spaces.Dict:
    """``state``, ``relative``, and with images ``robot`` and uint8 [3, H, W]."""
    sizes = {"state": state_size(goals), "relative": relative_size(goals)}
    if images:
        sizes["robot"] = ROBOT_SIZE
    leaves: dict[str, gymnasium.Space[Any]] = {
        name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()
    }
    for name in images:
        leaves[name] = spaces.Box(0, 255, (3, image_size, image_size), np.uint8)
    return spaces.Dict(leaves)


def _shared_cache(assets: str, stepping: str, settle_steps: int, limit: int) -> TaskCache:
    key = (assets, stepping, settle_steps, limit)
    if key not in _CACHES:
        _CACHES[key] = TaskCache(
            limit, assets=Path(assets), stepping=stepping, settle_steps=settle_steps
        )
    return _CACHES[key]
