"""Wrappers for any ``VectorEnv``.

``ActionChunk``, ``TimeLimit`` and ``EpisodeMetrics`` add to a user's environment what
``SimulatorVectorEnv`` gives to those of this package; they are that class, run over the user's
environment. It must have autoreset DISABLED: the wrapper resets finished rows itself.

``NormalizeObservation``: (x - mean) / sqrt(var + eps), clipped; running moments of all
observations so far (parallel update of T. Chan, G. Golub and R. LeVeque, 1983).
``NormalizeReward``: r / sqrt(var[R] + eps), clipped, with the running variance of the discounted
return R' = r + gamma R of every row (as in PPO implementations since 2017).
``InstructionEmbedding``: a row of a table [num_tasks, E], by task id, as ``obs["instruction"]``.

Axes: N row, H action of a chunk, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from embodied_rl.envs.base import (
    ArrayDict,
    IntArray,
    Renderer,
    Resume,
    SimulatorVectorEnv,
    Transition,
)
from embodied_rl.envs.spaces import Array
from embodied_rl.types import TensorDict, VectorEnv

Step = tuple[TensorDict, Tensor, Tensor, Tensor, dict[str, Any]]


class VectorEnvSimulator:
    """A ``VectorEnv`` with autoreset DISABLED, seen as a ``Simulator``.

    Rows that are to wait, but that the environment itself has not finished, are stepped with their
    latest action; what they do is dropped, and they are reset before they are used again.
    """

    resume: Resume = "exact"

    def __init__(self, env: VectorEnv) -> None:
        if env.metadata["autoreset_mode"] is not AutoresetMode.DISABLED:
            raise ValueError(
                "this wrapper resets finished rows itself: make the environment with "
                "autoreset=False"
            )
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.task_names = env.task_names
        self.instructions = env.instructions
        self._seed: int | None = None
        self._episode_seeds: IntArray | None = None
        self._latest: Array | None = None

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """See ``Simulator.reset``."""
        tasks = self.env.task_ids.cpu().clone()
        tasks[rows] = torch.from_numpy(task_ids)
        options: dict[str, Any] = {"task_ids": tasks}
        if rows.size < self.num_envs:
            mask = torch.zeros(self.num_envs, dtype=torch.bool)
            mask[rows] = True
            options["reset_mask"] = mask
        if self._episode_seeds is not None:
            options["episode_seeds"] = torch.from_numpy(self._episode_seeds)
        obs, _ = self.env.reset(seed=self._seed, options=options)
        self._seed = self._episode_seeds = None
        return _rows_of(obs, rows), self.env.group_ids.cpu().numpy()[rows].copy()

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``."""
        if rows is not None:
            every = np.zeros((self.num_envs, *actions.shape[1:]), actions.dtype)
            if self._latest is not None:
                every[:] = self._latest
            every[rows] = actions
            actions = every
        self._rows = np.arange(self.num_envs) if rows is None else rows
        self._latest = actions
        self.env.send(torch.from_numpy(actions).to(self.env.device))

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        obs, rewards, terminated, truncated, info = self.env.recv()
        step = {
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
            "success": info["success"],
        }
        if "dropped" in info:  # an environment of one's own need not have it
            step["dropped"] = info["dropped"]
        arrays = _rows_of(step, self._rows)
        restarts = int(info["worker_restarts"].sum()) if "worker_restarts" in info else 0
        terms = _rows_of(info["reward_terms"], self._rows) if "reward_terms" in info else None
        return Transition(
            _rows_of(obs, self._rows), **arrays, restarts=restarts, reward_terms=terms
        )

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """Passed on with the next reset."""
        self._seed, self._episode_seeds = seed, episode_seeds

    def state_dict(self) -> dict[str, Any] | None:
        """State of the environment, or None if it has none."""
        return self.env.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """Restore the environment."""
        return _rows_of(self.env.load_state_dict(dict(state)), np.arange(self.num_envs))

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def _rows_of(tensors: TensorDict, rows: IntArray) -> ArrayDict:
    """[n, ...] arrays of some rows, copied (fancy indexing) from the environment's own."""
    return {name: value.cpu().numpy()[rows] for name, value in tensors.items()}


class _Episodes(SimulatorVectorEnv):
    """``SimulatorVectorEnv`` over a user's environment, which keeps its own groups and tasks."""

    def __init__(self, env: VectorEnv, **options: Any) -> None:
        super().__init__(VectorEnvSimulator(env), device=env.device, **options)
        self._task_ids = env.task_ids.cpu().numpy().astype(np.int64)
        self._publish_ids()


class ActionChunk(_Episodes):
    """Execute H actions per decision: actions [N, H, D]; see ``SimulatorVectorEnv``."""

    def __init__(
        self,
        env: VectorEnv,
        *,
        chunk_length: int,
        autoreset: bool = True,
        terminate_on_success: bool = True,
    ) -> None:
        super().__init__(
            env,
            chunk_length=chunk_length,
            autoreset=autoreset,
            terminate_on_success=terminate_on_success,
        )


class TimeLimit(_Episodes):
    """Truncate episodes after ``max_episode_steps`` steps of the environment."""

    def __init__(self, env: VectorEnv, *, max_episode_steps: int, autoreset: bool = True) -> None:
        super().__init__(
            env,
            max_episode_steps=max_episode_steps,
            autoreset=autoreset,
            terminate_on_success=False,
        )


class EpisodeMetrics(_Episodes):
    """Add ``info["episode"]``: return, length, success_once, success_at_end."""

    def __init__(self, env: VectorEnv, *, autoreset: bool = True) -> None:
        super().__init__(env, autoreset=autoreset, terminate_on_success=False)


class Wrapper:
    """Passes everything on to ``env``; the base of wrappers that change what is observed."""

    def __init__(self, env: VectorEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space: gymnasium.Space[Any] = env.single_action_space
        self.metadata = env.metadata
        self.device = env.device
        self.task_names = env.task_names
        self._copy_ids()

    def _copy_ids(self) -> None:
        """``task_ids`` and ``group_ids`` are plain attributes of a ``VectorEnv``."""
        self.task_ids: Tensor = self.env.task_ids
        self.group_ids: Tensor = self.env.group_ids

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instruction text of every task id."""
        return self.env.instructions

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """See ``VectorEnv.reset``."""
        result = self.env.reset(seed=seed, options=options)
        self._copy_ids()
        return result

    def send(self, actions: Tensor) -> None:
        """See ``VectorEnv.send``."""
        self.env.send(actions)

    def recv(self) -> Step:
        """See ``VectorEnv.recv``."""
        result = self.env.recv()
        self._copy_ids()
        return result

    def step(self, actions: Tensor) -> Step:
        """See ``VectorEnv.step``."""
        self.send(actions)
        return self.recv()

    def state_dict(self) -> dict[str, Any] | None:
        """See ``VectorEnv.state_dict``."""
        return self.env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """See ``VectorEnv.load_state_dict``."""
        obs = self.env.load_state_dict(state)
        self._copy_ids()
        return obs

    def render(self, row: int) -> npt.NDArray[np.uint8]:
        """[H, W, 3] picture of the present state of ``row``.

        Raises:
            ValueError: the environment has no pictures.
        """
        if not isinstance(self.env, Renderer):
            raise ValueError(f"{type(self.env).__name__} has no pictures")
        return self.env.render(row)

    def close(self) -> None:
        """See ``VectorEnv.close``."""
        self.env.close()


class RunningMoments:
    """Mean and variance of everything seen, in float64, over the leading axis."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0.0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)
        """Sum of squared deviations from the mean."""

    def update(self, values: Tensor) -> None:
        """Add the rows of ``values`` [n, *shape]."""
        n = values.shape[0]
        if n == 0:
            return
        values = values.cpu().double()
        mean = values.mean(0)
        delta = mean - self.mean
        total = self.count + n
        # M2 = M2_a + M2_b + delta^2 n_a n_b / n
        self.squares += (values - mean).square().sum(0) + delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def var(self) -> Tensor:
        """Variance [*shape]; 1 before anything was seen."""
        return self.squares / self.count if self.count else torch.ones_like(self.squares)

    def state_dict(self) -> dict[str, Any]:
        """Exact state."""
        return {"count": self.count, "mean": self.mean.clone(), "squares": self.squares.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.count = float(state["count"])
        self.mean, self.squares = state["mean"].clone(), state["squares"].clone()


class _Normalizer(Wrapper):
    """State of a wrapper with statistics; saved also where the environment itself cannot be."""

    training: bool = True
    """Set to False to stop updating the statistics (evaluation)."""

    def statistics(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_statistics(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any] | None:
        """``{"env": state of the environment or None, "statistics": ...}``."""
        return {"env": self.env.state_dict(), "statistics": self.statistics()}

    def _load_env(self, state: dict[str, Any]) -> TensorDict:
        self.load_statistics(state["statistics"])
        if state["env"] is None:
            return Wrapper.reset(self)[0]
        return Wrapper.load_state_dict(self, state["env"])

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """Restore the statistics, and the environment (reset if it has no state)."""
        return self._load_env(state)


class NormalizeObservation(_Normalizer):
    """Zero mean and unit variance for every float observation.

    Args:
        env: environment to wrap.
        clip: bound of the normalised values.
        eps: added to the variance.
    """

    def __init__(self, env: VectorEnv, *, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__(env)
        self._clip, self._eps = clip, eps
        children = dict(env.single_observation_space.spaces)
        self.moments: dict[str, RunningMoments] = {}
        for name, space in children.items():
            if isinstance(space, spaces.Box) and space.dtype == np.float32:
                self.moments[name] = RunningMoments(space.shape)
                children[name] = spaces.Box(-clip, clip, space.shape, np.float32)
        self.single_observation_space = spaces.Dict(children)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """Reset; the rows that were reset are added to the statistics."""
        obs, info = super().reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        rows = (
            torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        )
        self._update(obs, rows)
        return self._normalize(obs), info

    def recv(self) -> Step:
        """Step; the rows that were stepped are added to the statistics."""
        obs, rewards, terminated, truncated, info = super().recv()
        self._update(obs, info["valid"])
        info = info | {"final_obs": self._normalize(info["final_obs"])}
        return self._normalize(obs), rewards, terminated, truncated, info

    def _update(self, obs: TensorDict, rows: Tensor) -> None:
        if self.training:
            for name, moments in self.moments.items():
                moments.update(obs[name][rows])

    def _normalize(self, obs: TensorDict) -> TensorDict:
        out = dict(obs)
        for name, moments in self.moments.items():
            scale = (moments.var + self._eps).rsqrt().to(self.device)
            centred = obs[name].double() - moments.mean.to(self.device)
            out[name] = (centred * scale).clamp(-self._clip, self._clip).float()
        return out

    def statistics(self) -> dict[str, Any]:
        """Moments of every normalised observation."""
        return {name: moments.state_dict() for name, moments in self.moments.items()}

    def load_statistics(self, state: Mapping[str, Any]) -> None:
        """Restore ``statistics``."""
        for name, moments in self.moments.items():
            moments.load_state_dict(state[name])

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """Restore; returns the normalised observation."""
        return self._normalize(self._load_env(state))


class NormalizeReward(_Normalizer):
    """Rewards in units of the standard deviation of the discounted return.

    ``info["raw_rewards"]`` [N] keeps the unscaled rewards; metrics stay unscaled as well.

    Args:
        env: environment to wrap.
        gamma: discount per decision.
        clip: bound of the scaled rewards.
        eps: added to the variance.
    """

    def __init__(
        self, env: VectorEnv, *, gamma: float = 0.99, clip: float = 10.0, eps: float = 1e-8
    ) -> None:
        super().__init__(env)
        self._gamma, self._clip, self._eps = gamma, clip, eps
        self.moments = RunningMoments(())
        self._returns = torch.zeros(env.num_envs, dtype=torch.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """Reset; the returns of the rows that were reset start at zero."""
        mask = (options or {}).get("reset_mask")
        self._returns[slice(None) if mask is None else torch.as_tensor(mask).cpu()] = 0.0
        return super().reset(seed=seed, options=options)

    def recv(self) -> Step:
        """Step, with scaled rewards."""
        obs, rewards, terminated, truncated, info = super().recv()
        self._returns = self._returns * self._gamma + rewards.cpu().double()
        if self.training:
            self.moments.update(self._returns[info["valid"].cpu()])
        self._returns[(terminated | truncated).cpu()] = 0.0
        scale = (self.moments.var + self._eps).rsqrt().float().to(self.device)
        scaled = (rewards * scale).clamp(-self._clip, self._clip)
        return obs, scaled, terminated, truncated, info | {"raw_rewards": rewards}

    def statistics(self) -> dict[str, Any]:
        """Moments of the discounted return, and the running returns."""
        return self.moments.state_dict() | {"returns": self._returns.clone()}

    def load_statistics(self, state: Mapping[str, Any]) -> None:
        """Restore ``statistics``."""
        self.moments.load_state_dict(state)
        self._returns = state["returns"].clone()


class InstructionEmbedding(Wrapper):
    """Adds ``obs["instruction"]`` [N, E], the embedding of each row's task.

    Args:
        env: environment to wrap.
        table: [num_tasks, E] float32 embeddings of ``env.instructions``.

    Raises:
        ValueError: the table does not have one row per task.
    """

    def __init__(self, env: VectorEnv, *, table: Tensor) -> None:
        super().__init__(env)
        if table.ndim != 2 or table.shape[0] != len(env.task_names):
            raise ValueError(
                f"the table has shape {tuple(table.shape)}, give one row for each of the "
                f"{len(env.task_names)} tasks"
            )
        self.table = table.to(device=env.device, dtype=torch.float32)
        children = dict(env.single_observation_space.spaces)
        children["instruction"] = spaces.Box(-np.inf, np.inf, (table.shape[1],), np.float32)
        self.single_observation_space = spaces.Dict(children)

    def _embed(self, obs: TensorDict, task_ids: Tensor) -> TensorDict:
        return obs | {"instruction": self.table[task_ids]}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """See ``VectorEnv.reset``."""
        obs, info = super().reset(seed=seed, options=options)
        return self._embed(obs, self.task_ids), info

    def recv(self) -> Step:
        """See ``VectorEnv.recv``; ``final_obs`` has the embedding of the episode that ended."""
        ended = self.task_ids
        obs, rewards, terminated, truncated, info = super().recv()
        info = info | {"final_obs": self._embed(info["final_obs"], ended)}
        return self._embed(obs, self.task_ids), rewards, terminated, truncated, info

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """See ``VectorEnv.load_state_dict``."""
        return self._embed(super().load_state_dict(state), self.task_ids)
