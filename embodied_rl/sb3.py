"""Our vector environments as a Stable-Baselines3 ``VecEnv``, so that its algorithms train on them.

The only module that imports stable_baselines3. Axes: N row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from embodied_rl.envs.base import Renderer
from embodied_rl.interop import action_space, arrays, tensor_of
from embodied_rl.types import TensorDict, VectorEnv


class SB3VecEnv(VecEnv):
    """``VecEnv`` over a ``VectorEnv`` with autoreset SAME_STEP.

    ``infos`` of a row whose episode ended hold ``terminal_observation``, ``TimeLimit.truncated``
    (so that SB3 bootstraps), ``is_success`` and ``episode`` (``r``, ``l``); one that was lost with
    its worker process holds ``dropped`` instead of the last two.

    Args:
        env: owned from here on, ``close`` closes it.
        observations: names of the observations that are handed out; empty: all. One makes a Box
            (``MlpPolicy``, ``CnnPolicy``), several a Dict (``MultiInputPolicy``).
        chunk_length: H that ``env`` was made with.

    Raises:
        ValueError: another autoreset mode, or an observation that there is not.
    """

    def __init__(
        self, env: VectorEnv, *, observations: Sequence[str] = (), chunk_length: int = 1
    ) -> None:
        if env.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            raise ValueError(
                "a VecEnv resets finished rows itself: make the environment with autoreset=True"
            )
        children = env.single_observation_space.spaces
        missing = [name for name in observations if name not in children]
        if missing:
            raise ValueError(
                f"there is no observation {missing[0]!r} (there are: {list(children)})"
            )
        self.env = env
        self._names = tuple(observations) or tuple(children)
        space: spaces.Space[Any] = spaces.Dict({name: children[name] for name in self._names})
        if len(self._names) == 1:
            space = children[self._names[0]]
        self.render_mode = "rgb_array" if isinstance(env, Renderer) else None
        super().__init__(env.num_envs, space, action_space(env, chunk_length))

    def _observe(self, obs: TensorDict) -> Any:
        if len(self._names) == 1:
            return obs[self._names[0]].numpy(force=True)
        return arrays({name: obs[name] for name in self._names})

    def reset(self) -> Any:
        """Start an episode in every row; observations [N, ...]."""
        seeds = [seed for seed in self._seeds if seed is not None]
        obs, _ = self.env.reset(seed=seeds[0] if seeds else None)
        self._reset_seeds()
        self._reset_options()
        return self._observe(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step with ``actions`` [N, ...]."""
        self.env.send(tensor_of(self.env, actions))

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Finish it: (observations, rewards [N], dones [N], infos)."""
        obs, rewards, terminated, truncated, info = self.env.recv()
        dones = (terminated | truncated).numpy(force=True)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            final = self._observe(info["final_obs"])
            for row in np.flatnonzero(dones).tolist():
                infos[row] = self._ended(row, info, bool(truncated[row]), final)
        return self._observe(obs), rewards.numpy(force=True), dones, infos

    def _ended(self, row: int, info: dict[str, Any], truncated: bool, final: Any) -> dict[str, Any]:
        last = {k: v[row] for k, v in final.items()} if isinstance(final, dict) else final[row]
        record = {"terminal_observation": last, "TimeLimit.truncated": truncated}
        if not bool(info["_episode"][row]):
            return record | {"dropped": True}
        episode = info["episode"]
        return record | {
            "is_success": bool(episode["success_once"][row]),
            "episode": {"r": float(episode["return"][row]), "l": int(episode["length"][row])},
        }

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Pictures of all rows, where the simulator has any."""
        if not isinstance(self.env, Renderer):
            return [None] * self.num_envs
        return [self.env.render(row) for row in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the whole environment, for every row that is asked for."""
        value = self.render_mode if attr_name == "render_mode" else getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Rows have no attributes of their own."""
        raise NotImplementedError(
            "the rows of a vector environment have no attributes of their own"
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Rows have no methods of their own."""
        raise NotImplementedError("rows have no methods of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No row is; ``infos`` have what ``Monitor`` would add."""
        return [False for _ in self._get_indices(indices)]
