"""Any gymnasium id as a ``VectorEnv``: in this process, or one worker process per row.

Seeds: the k-th episode of a row is started by ``env.reset(seed=derive_seed(s, k))`` where s is
the seed of its group, so that it does not depend on how earlier episodes went. Start key of a row:
(number of its group over the life of the run) * 2^32 + k.

Success is ``info["success"]`` or ``info["is_success"]`` of a step, where there is one.

Axes: N row, n rows of a partial call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from embodied_rl.envs.base import (
    ArrayDict,
    IntArray,
    Resume,
    SimulatorVectorEnv,
    Transition,
    check_groups,
)
from embodied_rl.envs.spaces import Array, flatten_space, float32_space
from embodied_rl.registry import near_names
from embodied_rl.seeding import derive_seed

MODES = ("sync", "async")
SUCCESS_KEYS = ("success", "is_success")


class _GymnasiumSimulator:
    """Spaces and seeds; a child runs the environments."""

    resume: Resume = "replay"

    def __init__(
        self,
        id: str,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        num_envs: int,
        seed: int,
        group_size: int,
        episode_seeds: Sequence[int] | None,
    ) -> None:
        check_groups(num_envs, group_size)
        self.num_envs = num_envs
        self.task_names = (id,)
        self.instructions: tuple[str, ...] = ("",)
        self.action_space = action_space
        leaves = flatten_space(observation_space)
        self.observation_space = spaces.Dict({k: float32_space(v) for k, v in leaves.items()})
        self._bare = not isinstance(observation_space, spaces.Dict)
        self._groups: IntArray = np.arange(num_envs, dtype=np.int64) // group_size
        self._seed = seed
        self._epoch = -1
        self.reseed(seed, None if episode_seeds is None else np.asarray(episode_seeds, np.int64))

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """See ``Simulator.reseed``."""
        if episode_seeds is None:
            self._seed = self._seed if seed is None else seed
            derived = [derive_seed(self._seed, "env", int(group)) for group in self._groups]
            episode_seeds = np.array(derived, np.int64)
        self._row_seeds = episode_seeds
        self._starts: IntArray = np.zeros(self.num_envs, np.int64)
        self._epoch += 1

    def _start_seed(self, row: int) -> int:
        """Seed of the running episode of ``row``; of the first one it is the row's own seed."""
        seed, start = int(self._row_seeds[row]), int(self._starts[row])
        return seed if start == 1 else derive_seed(seed, "episode", start)

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """See ``Simulator.reset``."""
        self._starts[rows] += 1
        number = self._epoch * self.num_envs + self._groups[rows]
        return self._restart(rows), (number << 32) + self._starts[rows]

    def _restart(self, rows: IntArray) -> ArrayDict:
        """Put ``rows`` at the start of their running episode; returns observations [n, ...]."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """See ``Simulator.state_dict``."""
        return {
            "row_seeds": torch.from_numpy(self._row_seeds.copy()),
            "starts": torch.from_numpy(self._starts.copy()),
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """See ``Simulator.load_state_dict``."""
        self._row_seeds = state["row_seeds"].numpy().copy()
        self._starts = state["starts"].numpy().copy()
        self._epoch = int(state["epoch"])
        return self._restart(np.arange(self.num_envs))

    def _leaf(self, observation: Any, name: str) -> Array:
        """Observation leaf ``name`` as an array of the dtype that is handed out."""
        if not self._bare:
            for key in name.split("/"):
                observation = observation[key]
        return np.asarray(observation, self.observation_space[name].dtype)


class _SyncSimulator(_GymnasiumSimulator):
    """Environments in this process, stepped one after the other."""

    def __init__(self, id: str, options: Mapping[str, Any], **common: Any) -> None:
        self._envs = [gymnasium.make(id, **options) for _ in range(common["num_envs"])]
        first = self._envs[0]
        super().__init__(id, first.observation_space, first.action_space, **common)

    def _restart(self, rows: IntArray) -> ArrayDict:
        return self._stack([self._envs[row].reset(seed=self._start_seed(row))[0] for row in rows])

    def _stack(self, observations: list[Any]) -> ArrayDict:
        return {
            name: np.stack([self._leaf(observation, name) for observation in observations])
            for name in self.observation_space
        }

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``; the work is done in ``recv``."""
        self._sent = (actions, np.arange(self.num_envs) if rows is None else rows)

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        actions, rows = self._sent
        steps = [self._envs[row].step(action) for row, action in zip(rows, actions, strict=True)]
        return Transition(
            self._stack([step[0] for step in steps]),
            np.array([step[1] for step in steps], np.float32),
            np.array([step[2] for step in steps], np.bool_),
            np.array([step[3] for step in steps], np.bool_),
            np.array([_success(step[4]) for step in steps], np.bool_),
        )

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()


class _AsyncSimulator(_GymnasiumSimulator):
    """One worker process per environment; all of them step, what idle ones did is dropped."""

    resume: Resume = "none"  # a replay has rows wait in the middle of an episode

    def __init__(self, id: str, options: Mapping[str, Any], **common: Any) -> None:
        workers = gymnasium.make_vec(
            id,
            common["num_envs"],
            "async",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            **options,
        )
        assert isinstance(workers, AsyncVectorEnv)
        self._workers = workers
        self._ended = np.zeros(common["num_envs"], np.bool_)
        super().__init__(
            id, workers.single_observation_space, workers.single_action_space, **common
        )
        self._idle_action = np.asarray(self.action_space.sample())

    def _restart(self, rows: IntArray) -> ArrayDict:
        mask = np.zeros(self.num_envs, np.bool_)
        mask[rows] = True
        # Seeds of rows outside the mask are not read by the workers.
        seeds: list[int | None] = [self._start_seed(row) for row in range(self.num_envs)]
        observation, _ = self._workers.reset(seed=seeds, options={"reset_mask": mask})
        self._ended[rows] = False
        return {name: self._leaf(observation, name)[rows] for name in self.observation_space}

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``; idle rows that have ended are restarted before they step."""
        self._rows = np.arange(self.num_envs) if rows is None else rows
        idle = np.ones(self.num_envs, np.bool_)
        idle[self._rows] = False
        if (idle & self._ended).any():
            self._restart(np.flatnonzero(idle & self._ended))
        every = np.repeat(self._idle_action[None], self.num_envs, axis=0).astype(actions.dtype)
        every[self._rows] = actions
        self._workers.step_async(every)

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        observation, rewards, terminated, truncated, info = self._workers.step_wait()
        rows = self._rows
        self._ended |= terminated | truncated
        success = _success(info, np.zeros(self.num_envs, np.bool_))
        return Transition(
            {name: self._leaf(observation, name)[rows] for name in self.observation_space},
            rewards[rows].astype(np.float32),
            terminated[rows],
            truncated[rows],
            np.asarray(success, np.bool_)[rows],
        )

    def close(self) -> None:
        """Stop the worker processes."""
        self._workers.close()


def _success(info: Mapping[str, Any], default: Any = False) -> Any:
    return next((info[key] for key in SUCCESS_KEYS if key in info), default)


def make(
    *,
    id: str,
    num_envs: int,
    seed: int,
    vectorization_mode: str = "sync",
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    terminate_on_success: bool = True,
    episode_seeds: Sequence[int] | None = None,
    env_options: Mapping[str, Any] | None = None,
) -> SimulatorVectorEnv:
    """Any id of gymnasium's registry.

    Args:
        id: e.g. ``"CartPole-v1"``; ``"module:Name-v0"`` imports the module first.
        num_envs: N rows.
        seed: of every row's stream.
        vectorization_mode: ``"sync"`` (this process) or ``"async"`` (a process per row).
        chunk_length: H actions per decision.
        max_episode_steps: time limit; None: that of the id.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows start alike.
        device: of observations, rewards and flags.
        terminate_on_success: success ends an episode, where the environment reports success.
        episode_seeds: [N] seeds of the rows' first episodes instead of derived ones.
        env_options: keyword arguments of ``gymnasium.make``.

    Raises:
        ValueError: unknown id or mode, or a number that does not fit.
    """
    if vectorization_mode not in MODES:
        hint = near_names(vectorization_mode, MODES)
        raise ValueError(f"vectorization_mode={vectorization_mode!r}{hint}; give one of {MODES}")
    options = dict(env_options or {})
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    try:
        spec = gymnasium.spec(id)
    except gymnasium.error.Error as error:
        hint = near_names(id, gymnasium.registry)
        raise ValueError(f"gymnasium has no id {id!r}{hint} ({error})") from error
    kind = _AsyncSimulator if vectorization_mode == "async" else _SyncSimulator
    simulator = kind(
        id,
        options,
        num_envs=num_envs,
        seed=seed,
        group_size=group_size,
        episode_seeds=episode_seeds,
    )
    if spec.nondeterministic:
        simulator.resume = "none"
    return SimulatorVectorEnv(  # the time limit is gymnasium's own
        simulator,
        chunk_length=chunk_length,
        autoreset=autoreset,
        group_size=group_size,
        terminate_on_success=terminate_on_success,
        device=device,
    )
