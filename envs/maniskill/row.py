"""ManiSkill inside a worker process.

``ManiSkillRow`` is one environment with a scene for each of its tasks; ``ManiSkillBlock`` is
several environments of one task, stepped as one (see ``many``).

An episode is a function of (task, seed, actions): a task whose reset leaves something of the last
episode behind is built anew for each.

Several tasks share one observation space: a ``state`` that is shorter than the longest one is
filled up with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from embodied_rl.envs.maniskill.scenes import IntArray, SceneOptions, Scenes
from embodied_rl.envs.maniskill.tasks import INSTRUCTIONS, expand_tasks
from embodied_rl.envs.spaces import Array, ArrayDict
from embodied_rl.envs.vector.rows import BlockTransition, RowTransition

FIRST = np.zeros(1, np.int64)


class ManiSkillRow:
    """The environment of one row.

    Args:
        tasks: ids that this row may be given, by task id.
        options: keyword arguments of ``SceneOptions``.

    Raises:
        ValueError: unknown task or option, missing files, or tasks that do not fit together.
    """

    def __init__(self, *, tasks: str | tuple[str, ...], **options: Any) -> None:
        self.task_names = expand_tasks(tasks)
        self.instructions = tuple(INSTRUCTIONS[name] for name in self.task_names)
        chosen = SceneOptions(**options)
        self._scenes = [Scenes(name, options=chosen) for name in self.task_names]
        self.action_space = self._scenes[0].action_space
        self.observation_space = self._common_space()
        self._current = self._scenes[0]

    def _common_space(self) -> spaces.Dict:
        first = self._scenes[0]
        for scene in self._scenes[1:]:
            if scene.action_space != first.action_space:
                raise ValueError(
                    f"{first.task} and {scene.task} take different actions "
                    f"({first.action_space.shape} and {scene.action_space.shape}): set one "
                    "control_mode for both, or train them apart"
                )
            if set(scene.observation_space) != set(first.observation_space):
                raise ValueError(
                    f"{first.task} and {scene.task} have different observations: "
                    "set obs_mode='state', or train them apart"
                )
        merged = dict(first.observation_space.spaces)
        if "state" in merged:
            states = [scene.observation_space["state"] for scene in self._scenes]
            merged["state"] = max(states, key=lambda space: (space.shape or (0,))[0])
        return spaces.Dict(merged)

    def reset(self, *, task_id: int, seed: int) -> ArrayDict:
        """Start the episode ``seed`` of a task."""
        self._current = self._scenes[task_id]
        return self._row(self._current.reset(FIRST, np.array([seed])))

    def step(self, action: Array) -> RowTransition:
        """One control step; ``terminated`` is failure alone, the time limit is not kept here."""
        step = self._current.step(np.asarray(action)[None])
        success = None if step.success is None else bool(step.success[0])
        return RowTransition(
            obs=self._row(step.obs),
            reward=float(step.rewards[0]),
            terminated=bool(step.failed[0]),
            truncated=False,
            success=success,
        )

    def _row(self, obs: ArrayDict) -> ArrayDict:
        row = {name: value[0] for name, value in obs.items()}
        if "state" in row:
            (size,) = self.observation_space["state"].shape or (0,)
            if row["state"].size < size:
                row["state"] = np.pad(row["state"], (0, size - row["state"].size))
        return row

    def render(self) -> Array:
        """uint8 [H, W, 3]."""
        return self._current.render()

    def close(self) -> None:
        """Release the scenes."""
        for scene in self._scenes:
            scene.close()


class ManiSkillBlock:
    """Several environments of one task, stepped together.

    Args:
        num_rows: how many.
        tasks: one id.
        options: keyword arguments of ``SceneOptions``.

    Raises:
        ValueError: unknown task or option, or missing files.
    """

    def __init__(self, *, num_rows: int, tasks: str | tuple[str, ...], **options: Any) -> None:
        (task,) = self.task_names = expand_tasks(tasks)
        self.instructions = (INSTRUCTIONS[task],)
        self._scenes = Scenes(task, options=SceneOptions(**options), num_envs=num_rows)
        self.action_space = self._scenes.action_space
        self.observation_space = self._scenes.observation_space
        self._actions = np.zeros((num_rows, *self.action_space.shape), np.float32)

    def reset(self, rows: IntArray, *, task_ids: IntArray, seeds: IntArray) -> ArrayDict:
        """Start the episodes ``seeds`` [n] in ``rows`` [n]."""
        assert not task_ids.any()
        return pick(self._scenes.reset(rows, seeds), rows)

    def step(self, actions: Array, rows: IntArray) -> BlockTransition:
        """One control step of ``rows`` [n]; ``terminated`` is failure alone."""
        self._actions[rows] = actions
        step = self._scenes.step(self._actions, rows)
        return BlockTransition(*step.of(rows))

    def render(self, row: int) -> Array:
        """uint8 [H, W, 3]."""
        assert row == 0
        return self._scenes.render()

    def close(self) -> None:
        """Release the scenes."""
        self._scenes.close()


def pick(obs: ArrayDict, rows: IntArray) -> ArrayDict:
    """``rows`` [n] of observations [N, ...]."""
    return {name: value[rows] for name, value in obs.items()}
