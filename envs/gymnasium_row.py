"""One gymnasium environment as a ``RowEnv``; runs in worker processes, hence without torch.

Success is ``info["success"]`` or ``info["is_success"]`` of a step, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from embodied_rl.envs.spaces import Array, ArrayDict, flatten_space
from embodied_rl.envs.vector.rows import RowTransition

SUCCESS_KEYS = ("success", "is_success")


class GymnasiumRow:
    """Any environment of gymnasium's registry.

    Args:
        spec: what to make; a spec and not an id, since a worker process does not know the ids that
            its parent has registered.
        options: keyword arguments of ``gymnasium.make``.
    """

    def __init__(self, *, spec: EnvSpec, options: Mapping[str, Any]) -> None:
        self._env: gymnasium.Env[Any, Any] = gymnasium.make(spec, **options)
        self._bare = not isinstance(self._env.observation_space, spaces.Dict)
        self.observation_space = spaces.Dict(flatten_space(self._env.observation_space))
        self.action_space: gymnasium.Space[Any] = self._env.action_space
        self.task_names: tuple[str, ...] = (spec.id,)
        self.instructions: tuple[str, ...] = ("",)

    def _flatten(self, observation: Any) -> ArrayDict:
        return {name: self._leaf(observation, name) for name in self.observation_space}

    def _leaf(self, observation: Any, name: str) -> Array:
        if not self._bare:
            for key in name.split("/"):
                observation = observation[key]
        return np.asarray(observation)

    def reset(self, *, task_id: int, seed: int) -> ArrayDict:
        """See ``RowEnv.reset``."""
        return self._flatten(self._env.reset(seed=seed)[0])

    def step(self, action: Array) -> RowTransition:
        """See ``RowEnv.step``."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        success = next((bool(info[key]) for key in SUCCESS_KEYS if key in info), False)
        obs = self._flatten(observation)
        return RowTransition(obs, float(reward), terminated, truncated, success)

    def render(self) -> npt.NDArray[np.uint8]:
        """See ``RowEnv.render``."""
        picture = self._env.render()
        if not isinstance(picture, np.ndarray):
            raise ValueError(
                "this environment draws no pictures: make it with render=True, if its "
                f"render_modes have rgb_array (they are {self._env.metadata.get('render_modes')})"
            )
        return picture

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
