"""Stable-Baselines3's PPO on envpool: a ``VecEnv`` over the pool, and the shared settings.

The adapter resets finished environments inside the step that finished them, which is what SB3
expects of a ``VecEnv``, and hands over ``terminal_observation`` and ``TimeLimit.truncated`` so that
SB3 bootstraps where the time limit cut an episode. It also keeps the episode statistics that
``VecMonitor`` would keep in another layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import nn

from benchmarks.settings import HIDDEN_DIMS, Setting, make_pool


class EnvPoolVecEnv(VecEnv):
    """``VecEnv`` over an envpool of float32 observations."""

    def __init__(self, setting: Setting, *, seed: int) -> None:
        self.pool = make_pool(setting, seed=seed)
        space = self.pool.observation_space
        observation_space = spaces.Box(-np.inf, np.inf, space.shape, np.float32)
        super().__init__(setting.num_envs, observation_space, self.pool.action_space)
        self.episode_return = np.zeros(setting.num_envs)
        self.episode_length = np.zeros(setting.num_envs, np.int64)
        self.recent_returns: deque[float] = deque(maxlen=100)
        self.no_infos: list[dict[str, Any]] = [{} for _ in range(setting.num_envs)]

    def reset(self) -> np.ndarray:
        """Start an episode in every row."""
        return self.pool.reset()[0].astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step."""
        self.pool.send(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Finish it; reset what ended."""
        obs, rewards, terminated, truncated, _ = self.pool.recv()
        obs = obs.astype(np.float32, copy=False)
        self.episode_return += rewards
        self.episode_length += 1
        done = terminated | truncated
        infos = self.no_infos
        if done.any():
            infos, obs = [{} for _ in range(self.num_envs)], obs.copy()
            rows = np.flatnonzero(done)
            for row in rows:
                self.recent_returns.append(float(self.episode_return[row]))
                infos[row] = {
                    "terminal_observation": obs[row].copy(),
                    "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
                    "episode": {
                        "r": float(self.episode_return[row]),
                        "l": int(self.episode_length[row]),
                    },
                }
            self.episode_return[rows] = 0.0
            self.episode_length[rows] = 0
            obs[rows] = self.pool.reset(rows.astype(np.int32))[0]
        return obs, rewards, done, infos

    def close(self) -> None:
        """Stop the pool."""
        self.pool.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """SB3 asks for ``render_mode`` alone."""
        return [getattr(self.pool, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """The rows of a pool have no attributes."""
        raise NotImplementedError

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """The rows of a pool have no methods."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No row is."""
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """A pool is seeded when it is made."""
        return [seed] * self.num_envs


def make_model(setting: Setting, *, seed: int, folder: str) -> PPO:
    """SB3's PPO with the options of ``setting``, logging to TensorBoard as ours does."""
    model = PPO(
        "MlpPolicy",
        EnvPoolVecEnv(setting, seed=seed),
        learning_rate=setting.learning_rate,
        n_steps=setting.num_steps,
        batch_size=setting.minibatch_size,
        n_epochs=setting.num_epochs,
        gamma=setting.gamma,
        gae_lambda=setting.gae_lambda,
        clip_range=setting.clip_ratio,
        ent_coef=setting.entropy_coef,
        vf_coef=0.5,
        max_grad_norm=setting.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(HIDDEN_DIMS), "vf": list(HIDDEN_DIMS)},
            "activation_fn": nn.Tanh,
        },
        seed=seed,
        device="cpu",
    )
    model.set_logger(configure(folder, ["tensorboard"]))
    return model
