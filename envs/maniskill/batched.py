"""N scenes of one task as one batch in this process.

``physx_cuda`` is ManiSkill's own: one physics simulation on a GPU, where physics, rewards and
observations stay torch tensors; what crosses to the host, once per step, is the result. All rows
step together: a row that has ended before the others idles with a zero action and what it did is
dropped. ``physx_cpu`` is ``many``: a physics system for each row, and rows that wait stand still.

Seeds are those of the worker processes (``RowSimulator``): an episode starts alike in both.

Axes: N row, n rows of a partial call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied_rl.envs.base import IntArray, Resume, Transition, merge
from embodied_rl.envs.maniskill.row import pick
from embodied_rl.envs.maniskill.scenes import SceneOptions, Scenes
from embodied_rl.envs.maniskill.tasks import INSTRUCTIONS
from embodied_rl.envs.spaces import Array, ArrayDict
from embodied_rl.envs.vector.rows import RowSpec
from embodied_rl.envs.vector.simulator import RowSimulator

SIM_BACKENDS = ("physx_cuda", "physx_cpu")


class BatchedSimulator(RowSimulator):
    """N rows of one task; see ``embodied_rl.envs.maniskill.make`` for the arguments."""

    def __init__(
        self,
        task: str,
        *,
        options: SceneOptions,
        num_envs: int,
        seed: int,
        group_size: int,
        episode_seeds: Sequence[int] | None,
        sim_backend: str,
    ) -> None:
        self._scenes = Scenes(task, options=options, num_envs=num_envs, sim_backend=sim_backend)
        spec = RowSpec(
            self._scenes.observation_space,
            self._scenes.action_space,
            (task,),
            (INSTRUCTIONS[task],),
        )
        super().__init__(
            spec,
            num_envs=num_envs,
            seed=seed,
            group_size=group_size,
            episode_seeds=episode_seeds,
        )
        # On a GPU rows that wait are stepped all the same, so only a batch of one can be replayed.
        alone = num_envs == 1 or sim_backend == "physx_cpu"
        self.resume: Resume = "replay" if alone else "none"

    def _restart(self, rows: IntArray) -> ArrayDict:
        seeds = np.array([self._start_seed(int(row)) for row in rows], np.int64)
        return pick(self._scenes.reset(rows, seeds), rows)

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``; the work is done in ``recv``."""
        self._rows = np.arange(self.num_envs) if rows is None else rows
        self._actions = actions
        if rows is not None:
            idle = {"": np.zeros((self.num_envs, *actions.shape[1:]), actions.dtype)}
            self._actions = merge(idle, rows, {"": actions}, self.num_envs)[""]

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        rows = self._rows
        step = self._scenes.step(self._actions, rows)
        return Transition(*step.of(rows))

    def render(self, row: int) -> Array:
        """[H, W, 3] of the first row; the camera for people sees no other."""
        if row:
            raise ValueError("a batch is drawn in its first row only: give row 0")
        return self._scenes.render()

    def close(self) -> None:
        """Release the scenes."""
        self._scenes.close()
