"""Two environments that cost nothing, for tests and first steps.

``identity``: observe a symbol, answer it. Observation ``state`` [A] is the one-hot of s_t, action
a_t in {0..A-1}, reward 1 if a_t = s_t else 0, never terminates, so that the optimal return of an
episode is its length. With A = 1 every step is worth 1, hence V = 1 / (1 - gamma).

``reach``: move a point to a goal. Observation ``state`` [2 D] = (p, g), action a in [-1, 1]^D,
p' = clip(p + 0.1 a, -1, 1), solved when |p' - g| < 0.1, reward 1 then and 0 before (sparse), or
-|p' - g| (dense). Task k of K starts with |g - p| of about (k + 1) / K, so that higher is harder.

Everything random is a hash of (row seed, episode, step, i), hence an episode is a function of its
start; axes: N row, n rows of a partial call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from embodied_rl.envs.base import (
    ArrayDict,
    BoolArray,
    IntArray,
    Resume,
    SimulatorVectorEnv,
    Transition,
    check_groups,
)
from embodied_rl.envs.spaces import Array
from embodied_rl.seeding import derive_seed

SPEED = 0.1
RADIUS = 0.1


def _mix(x: Array) -> Array:
    """SplitMix64 finaliser (S. Vigna, public domain): uint64 -> well mixed uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(*counters: Array, size: int) -> Array:
    """[n, size] float64 in [0, 1): a hash of the counters, [n] integers each."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        state = np.zeros(counters[0].shape, np.uint64)
        for counter in counters:
            state = _mix(state + counter.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        bits = _mix(state[:, None] + np.arange(1, size + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53


class _ToySimulator:
    """Streams, starts and resume of both environments; a child adds the rules."""

    resume: Resume = "replay"
    observation_space: spaces.Dict
    action_space: gymnasium.Space[Any]

    def __init__(
        self,
        names: Sequence[str],
        instructions: Sequence[str],
        *,
        num_envs: int,
        seed: int,
        group_size: int,
        episode_seeds: Sequence[int] | None,
    ) -> None:
        check_groups(num_envs, group_size)
        self.num_envs = num_envs
        self.task_names = tuple(names)
        self.instructions = tuple(instructions)
        self._groups = np.arange(num_envs, dtype=np.int64) // group_size
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
        self._epoch += 1
        self._starts: IntArray = np.zeros(self.num_envs, np.int64)
        self._steps: IntArray = np.zeros(self.num_envs, np.int64)
        self._task_ids: IntArray = np.zeros(self.num_envs, np.int64)

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """See ``Simulator.reset``."""
        self._starts[rows] += 1
        self._task_ids[rows] = task_ids
        self._begin(rows)
        number = self._epoch * self.num_envs + self._groups[rows]
        return self._observe(rows), (number << 32) + self._starts[rows]

    def _begin(self, rows: IntArray) -> None:
        self._steps[rows] = 0

    def _random(self, rows: IntArray, size: int) -> Array:
        """[n, size] uniform numbers of the present step of ``rows``."""
        return uniform(self._row_seeds[rows], self._starts[rows], self._steps[rows], size=size)

    def _observe(self, rows: IntArray) -> ArrayDict:
        raise NotImplementedError

    def _apply(self, actions: Array, rows: IntArray) -> tuple[Array, BoolArray | None]:
        """Rewards [n] float32 and success [n] of stepping ``rows``."""
        raise NotImplementedError

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``."""
        self._sent = (actions, np.arange(self.num_envs) if rows is None else rows)

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        actions, rows = self._sent
        rewards, success = self._apply(actions, rows)
        self._steps[rows] += 1
        never = np.zeros(rows.size, np.bool_)
        return Transition(self._observe(rows), rewards, never, never.copy(), success)

    def state_dict(self) -> dict[str, Any]:
        """See ``Simulator.state_dict``."""
        return {
            "row_seeds": torch.from_numpy(self._row_seeds.copy()),
            "starts": torch.from_numpy(self._starts.copy()),
            "task_ids": torch.from_numpy(self._task_ids.copy()),
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """See ``Simulator.load_state_dict``."""
        self._row_seeds = state["row_seeds"].numpy().copy()
        self._starts = state["starts"].numpy().copy()
        self._task_ids = state["task_ids"].numpy().copy()
        self._epoch = int(state["epoch"])
        rows = np.arange(self.num_envs)
        self._begin(rows)
        return self._observe(rows)

    def close(self) -> None:
        """Nothing to release."""


class _Identity(_ToySimulator):
    def __init__(self, num_actions: int, **common: Any) -> None:
        super().__init__(["identity"], ["answer with the symbol that you see"], **common)
        self.observation_space = spaces.Dict(
            {"state": spaces.Box(0.0, 1.0, (num_actions,), np.float32)}
        )
        self.action_space: gymnasium.Space[Any] = spaces.Discrete(num_actions)
        self._eye = np.eye(num_actions, dtype=np.float32)

    def _symbols(self, rows: IntArray) -> Array:
        return (self._random(rows, 1)[:, 0] * len(self._eye)).astype(np.int64)

    def _observe(self, rows: IntArray) -> ArrayDict:
        return {"state": self._eye[self._symbols(rows)]}

    def _apply(self, actions: Array, rows: IntArray) -> tuple[Array, BoolArray | None]:
        return (actions == self._symbols(rows)).astype(np.float32), None


class _Reach(_ToySimulator):
    def __init__(self, dim: int, num_tasks: int, sparse: bool, **common: Any) -> None:
        names = [f"reach-{k}" for k in range(num_tasks)]
        texts = [f"move the point to the goal at distance {k + 1}" for k in range(num_tasks)]
        super().__init__(names, texts, **common)
        self.observation_space = spaces.Dict({"state": spaces.Box(-1, 1, (2 * dim,), np.float32)})
        self.action_space: gymnasium.Space[Any] = spaces.Box(-1.0, 1.0, (dim,), np.float32)
        self._sparse = sparse
        self._position = np.zeros((self.num_envs, dim), np.float32)
        self._goal = np.zeros((self.num_envs, dim), np.float32)

    def _begin(self, rows: IntArray) -> None:
        super()._begin(rows)
        dim = self._position.shape[1]
        draws = self._random(rows, 2 * dim)
        direction = draws[:, dim:] - 0.5
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        distance = (self._task_ids[rows] + 1) / len(self.task_names)
        # Start on the far side of the centre, so that the goal stays inside.
        centre = 0.2 * (draws[:, :dim] - 0.5)
        half = 0.5 * distance[:, None] * direction
        self._position[rows] = centre - half
        self._goal[rows] = centre + half

    def _observe(self, rows: IntArray) -> ArrayDict:
        return {"state": np.concatenate([self._position[rows], self._goal[rows]], 1)}

    def _apply(self, actions: Array, rows: IntArray) -> tuple[Array, BoolArray | None]:
        moved = np.clip(self._position[rows] + SPEED * actions, -1.0, 1.0)
        self._position[rows] = moved
        distance = np.linalg.norm(moved - self._goal[rows], axis=1)
        success = distance < RADIUS
        rewards = success if self._sparse else -distance
        return rewards.astype(np.float32), success


def reach_expert(state: torch.Tensor) -> torch.Tensor:
    """The straight way to the goal: actions [n, D] for observations [n, 2 D] of ``reach``."""
    position, goal = state.chunk(2, dim=-1)
    return ((goal - position) / SPEED).clamp(-1.0, 1.0)


def reach_experts(
    task_names: Sequence[str],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(state [n, 2 D], task ids [n]) -> actions [n, D]: the straight way, whatever the task."""
    return lambda state, task_ids: reach_expert(state)


def make_identity(
    *,
    num_envs: int,
    seed: int,
    num_actions: int = 4,
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    episode_seeds: Sequence[int] | None = None,
) -> SimulatorVectorEnv:
    """``identity``: answer the symbol that is shown.

    Args:
        num_envs: N rows.
        seed: of every row's stream.
        num_actions: A symbols; with 1 every step has reward 1.
        chunk_length: H actions per decision.
        max_episode_steps: time limit; None: 100.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows start alike.
        device: of observations, rewards and flags.
        episode_seeds: [N] seeds of the rows instead of derived ones.
    """
    simulator = _Identity(
        num_actions,
        num_envs=num_envs,
        seed=seed,
        group_size=group_size,
        episode_seeds=episode_seeds,
    )
    return SimulatorVectorEnv(
        simulator,
        chunk_length=chunk_length,
        max_episode_steps=100 if max_episode_steps is None else max_episode_steps,
        autoreset=autoreset,
        group_size=group_size,
        device=device,
    )


def make_reach(
    *,
    num_envs: int,
    seed: int,
    dim: int = 2,
    num_tasks: int = 1,
    reward: str = "sparse",
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    terminate_on_success: bool = True,
    episode_seeds: Sequence[int] | None = None,
) -> SimulatorVectorEnv:
    """``reach``: move a point to a goal.

    Args:
        num_envs: N rows.
        seed: of every row's stream.
        dim: D, dimension of the space.
        num_tasks: K; task k starts at a distance of (k + 1) / K.
        reward: ``"sparse"`` or ``"dense"``.
        chunk_length: H actions per decision.
        max_episode_steps: time limit; None: 50.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows start alike.
        device: of observations, rewards and flags.
        terminate_on_success: success ends an episode.
        episode_seeds: [N] seeds of the rows instead of derived ones.
    """
    if reward not in ("sparse", "dense"):
        raise ValueError(f"reward={reward!r}: give 'sparse' or 'dense'")
    simulator = _Reach(
        dim,
        num_tasks,
        reward == "sparse",
        num_envs=num_envs,
        seed=seed,
        group_size=group_size,
        episode_seeds=episode_seeds,
    )
    return SimulatorVectorEnv(
        simulator,
        chunk_length=chunk_length,
        max_episode_steps=50 if max_episode_steps is None else max_episode_steps,
        autoreset=autoreset,
        group_size=group_size,
        terminate_on_success=terminate_on_success,
        device=device,
    )
