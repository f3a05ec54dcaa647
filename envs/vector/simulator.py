"""Seeds, start keys and resume of rows, and rows that run in this process.

Seeds: the k-th episode of a row is ``RowEnv.reset(seed=derive_seed(s, "episode", k))``, of k = 1
the seed s of the row itself, which all rows of a group share. So an episode does not depend on how
earlier ones went, nor on the number of workers. Start key of a row: (number of its group over the
life of the run) * 2^32 + k.

Axes: N row, n rows of a partial call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embodied_rl.envs.base import ArrayDict, IntArray, Resume, Transition, check_groups
from embodied_rl.envs.spaces import Array
from embodied_rl.envs.vector.rows import RowEnv, RowSpec, spec_of
from embodied_rl.seeding import derive_seed


class RowSimulator:
    """Seeds, start keys and resume of N rows; a child runs them."""

    resume: Resume = "replay"

    def __init__(
        self,
        spec: RowSpec,
        *,
        num_envs: int,
        seed: int,
        group_size: int,
        episode_seeds: Sequence[int] | None,
    ) -> None:
        check_groups(num_envs, group_size)
        self.num_envs = num_envs
        self.observation_space = spec.observation_space
        self.action_space = spec.action_space
        self.task_names = spec.task_names
        self.instructions = spec.instructions
        self._groups: IntArray = np.arange(num_envs, dtype=np.int64) // group_size
        self._every: IntArray = np.arange(num_envs, dtype=np.int64)
        self._seed = seed
        self._epoch = -1
        self.reseed(seed, None if episode_seeds is None else np.asarray(episode_seeds, np.int64))

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """See ``Simulator.reseed``."""
        self.fixed_episodes = episode_seeds is not None
        """The caller chose the episodes: one that is lost is played again, not replaced."""
        if episode_seeds is None:
            self._seed = self._seed if seed is None else seed
            derived = [derive_seed(self._seed, "env", int(group)) for group in self._groups]
            episode_seeds = np.array(derived, np.int64)
        self._row_seeds = episode_seeds
        self._starts: IntArray = np.zeros(self.num_envs, np.int64)
        self._task_ids: IntArray = np.zeros(self.num_envs, np.int64)
        self._epoch += 1

    def _start_seed(self, row: int) -> int:
        """Seed of the running episode of ``row``; of the first one it is the row's own seed."""
        seed, start = int(self._row_seeds[row]), int(self._starts[row])
        return seed if start == 1 else derive_seed(seed, "episode", start)

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """See ``Simulator.reset``."""
        self._starts[rows] += 1
        self._task_ids[rows] = task_ids
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
            "task_ids": torch.from_numpy(self._task_ids.copy()),
            "epoch": self._epoch,
            "fixed_episodes": self.fixed_episodes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """See ``Simulator.load_state_dict``."""
        self._row_seeds = state["row_seeds"].numpy().copy()
        self._starts = state["starts"].numpy().copy()
        self._task_ids = state["task_ids"].numpy().copy()
        self._epoch = int(state["epoch"])
        self.fixed_episodes = bool(state["fixed_episodes"])
        return self._restart(self._every)


class LocalSimulator(RowSimulator):
    """Rows in this process, stepped one after the other; nothing is survived.

    Args:
        make_row: returns a new ``RowEnv``; called N times.
        num_envs: N rows.
        seed: of every row's stream.
        group_size: G consecutive rows start alike.
        episode_seeds: [N] seeds of the rows instead of derived ones.
    """

    def __init__(
        self,
        make_row: Callable[[], RowEnv],
        *,
        num_envs: int,
        seed: int,
        group_size: int = 1,
        episode_seeds: Sequence[int] | None = None,
    ) -> None:
        self._envs = [make_row() for _ in range(num_envs)]
        super().__init__(
            spec_of(self._envs[0]),
            num_envs=num_envs,
            seed=seed,
            group_size=group_size,
            episode_seeds=episode_seeds,
        )
        self._dtypes = {name: space.dtype for name, space in self.observation_space.items()}

    def _restart(self, rows: IntArray) -> ArrayDict:
        return self._stack(
            [
                self._envs[row].reset(task_id=int(self._task_ids[row]), seed=self._start_seed(row))
                for row in rows.tolist()
            ]
        )

    def _stack(self, observations: Sequence[ArrayDict]) -> ArrayDict:
        return {
            name: np.stack([np.asarray(obs[name], dtype) for obs in observations])
            for name, dtype in self._dtypes.items()
        }

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``; the work is done in ``recv``."""
        self._sent = (actions, self._every if rows is None else rows)

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        actions, rows = self._sent
        steps = [
            self._envs[row].step(action) for row, action in zip(rows.tolist(), actions, strict=True)
        ]
        success = None
        if steps[0].success is not None:
            success = np.array([step.success for step in steps], np.bool_)
        return Transition(
            self._stack([step.obs for step in steps]),
            np.array([step.reward for step in steps], np.float32),
            np.array([step.terminated for step in steps], np.bool_),
            np.array([step.truncated for step in steps], np.bool_),
            success,
        )

    def render(self, row: int) -> npt.NDArray[np.uint8]:
        """[H, W, 3] picture of the present state of ``row``."""
        return self._envs[row].render()

    def close(self) -> None:
        """Close every row."""
        for env in self._envs:
            env.close()
