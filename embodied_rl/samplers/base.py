"""The interface of task samplers, and the outcome counts that all of them keep.

Axes: ``P`` tasks or prompts (``num_tasks``), ``n`` proposals, ``M`` reported outcomes.

A sampler keeps, per task, discounted counts of successes s and trials t; s / t is the measured
success. Counts are float64, because a reward in [0, 1] may be reported as a fractional success.
The training loop is ``propose -> roll out -> update``; a sampler that wants outcomes beyond those
of training asks for them through ``refresh_ids`` and receives them through ``refresh``, which
counts the cost in ``extra_rollouts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Counts = np.ndarray
"""``[P]`` float64."""


@runtime_checkable
class TaskSampler(Protocol):
    """Chooses task ids; every sampler of the registry is one.

    Constructors take keyword arguments only: ``num_tasks``, ``seed``, then options.
    """

    num_tasks: int
    extra_rollouts: int
    """Rollouts spent on refreshes, beyond those of training."""
    refresh_trials: int
    """Rollouts wanted per id of ``refresh_ids``; 0 for a sampler that never asks."""

    def propose(self, n: int) -> Tensor:
        """``[n]`` int64 task ids to roll out next; ids repeat where ``num_tasks < n``."""
        ...

    def update(self, task_ids: Tensor, successes: Tensor, trials: Tensor) -> None:
        """Learn from training rollouts, once per iteration.

        Args:
            task_ids: ``[M]`` int64; an id may appear more than once, its counts are added.
            successes: ``[M]`` number of successes, or sum of rewards in [0, 1].
            trials: ``[M]`` number of rollouts.
        """
        ...

    def refresh_ids(self) -> Tensor:
        """``[R]`` int64 ids whose estimate has to be measured anew before the next proposal."""
        ...

    def refresh(self, task_ids: Tensor, successes: Tensor, trials: Tensor) -> None:
        """Outcomes of the rollouts asked for by ``refresh_ids``; counted in ``extra_rollouts``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON data, random state included, from which a run goes on bit for bit."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        ...


class CountingSampler:
    """Counts, random state and checkpointing; subclasses add ``propose``.

    Args:
        num_tasks: P, task ids are 0 ... P-1.
        seed: of the sampler's own random generator.
        state_arrays: names of further ``[P]`` arrays of a subclass to be checkpointed.
        state_scalars: names of further numbers of a subclass to be checkpointed.
    """

    refresh_trials: int = 0

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        state_arrays: tuple[str, ...] = (),
        state_scalars: tuple[str, ...] = (),
    ) -> None:
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
        self.num_tasks = num_tasks
        self.extra_rollouts = 0
        self.successes: Counts = np.zeros(num_tasks)
        self.trials: Counts = np.zeros(num_tasks)
        self._generator = np.random.default_rng(seed)
        self._arrays = ("successes", "trials", *state_arrays)
        self._scalars = ("extra_rollouts", *state_scalars)

    def measured_success(self, *, unmeasured: float) -> Counts:
        """``[P]`` s / t, and ``unmeasured`` where nothing was reported yet."""
        seen = self.trials > 0
        return np.divide(
            self.successes, self.trials, out=np.full(self.num_tasks, unmeasured), where=seen
        )

    def update(self, task_ids: Tensor, successes: Tensor, trials: Tensor) -> None:
        """Learn from training rollouts; see ``TaskSampler.update``."""
        self._add(*self._sum_per_task(task_ids, successes, trials))

    def refresh_ids(self) -> Tensor:
        """No refreshes by default."""
        return torch.empty(0, dtype=torch.int64)

    def refresh(self, task_ids: Tensor, successes: Tensor, trials: Tensor) -> None:
        """Replace the estimates of these tasks; the rollouts count as extra."""
        successes_per_task, trials_per_task = self._sum_per_task(task_ids, successes, trials)
        visited = trials_per_task > 0
        self.successes[visited] = successes_per_task[visited]
        self.trials[visited] = trials_per_task[visited]
        self.extra_rollouts += round(float(trials_per_task.sum()))

    def state_dict(self) -> dict[str, Any]:
        """``[P]`` tensors, numbers and the random state (nested dict of integers and strings)."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in self._arrays}
        scalars = {name: getattr(self, name) for name in self._scalars}
        return {**arrays, **scalars, "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``.

        Raises:
            ValueError: the state is of another kind of sampler or another number of tasks.
        """
        names = {*self._arrays, *self._scalars, "generator"}
        if set(state) != names:
            raise ValueError(
                f"this sampler state does not belong to {type(self).__name__}: it holds "
                f"{sorted(state)} instead of {sorted(names)}; resume with the sampler of the run"
            )
        if len(state["trials"]) != self.num_tasks:
            raise ValueError(
                f"the sampler state is of {len(state['trials'])} tasks, this run has "
                f"{self.num_tasks}; resume with the tasks of the run"
            )
        for name in self._arrays:
            setattr(self, name, state[name].numpy().copy())
        for name in self._scalars:
            setattr(self, name, state[name])
        self._generator.bit_generator.state = state["generator"]

    def _add(self, successes: Counts, trials: Counts) -> None:
        """Add ``[P]`` outcomes to the counts; subclasses discount old ones first."""
        self.successes += successes
        self.trials += trials

    def _sum_per_task(
        self, task_ids: Tensor, successes: Tensor, trials: Tensor
    ) -> tuple[Counts, Counts]:
        """``[M]`` outcomes to ``[P]`` counts."""
        if not task_ids.shape == successes.shape == trials.shape or task_ids.ndim != 1:
            raise ValueError(
                "task_ids, successes and trials must be [M] each, got "
                f"{tuple(task_ids.shape)}, {tuple(successes.shape)}, {tuple(trials.shape)}"
            )
        ids = task_ids.cpu().numpy()
        if ids.size and not (ids.min() >= 0 and ids.max() < self.num_tasks):
            raise ValueError(f"task ids must lie in 0 ... {self.num_tasks - 1}, got {ids}")
        k = successes.to("cpu", torch.float64).numpy()
        g = trials.to("cpu", torch.float64).numpy()
        if not ((k >= 0) & (k <= g)).all():
            raise ValueError("successes must lie between 0 and trials; scale rewards to [0, 1]")
        return (
            np.bincount(ids, weights=k, minlength=self.num_tasks),
            np.bincount(ids, weights=g, minlength=self.num_tasks),
        )

    def _balanced(self, ids: np.ndarray, n: int) -> np.ndarray:
        """``[n]`` of ``ids`` in random order; how often two of them appear differs by at most 1."""
        rounds, rest = divmod(n, len(ids))
        chosen = np.concatenate(
            [np.repeat(ids, rounds), self._generator.choice(ids, size=rest, replace=False)]
        )
        return self._generator.permutation(chosen)

    def _random_round(self, value: float) -> int:
        """An integer next to ``value`` whose expectation is ``value``."""
        return int(value + self._generator.random())


def as_proposal(ids: np.ndarray) -> Tensor:
    """``[n]`` ids as the int64 tensor that ``propose`` returns."""
    return torch.from_numpy(ids.astype(np.int64))


def check_fraction(name: str, value: float) -> float:
    """``value`` if it lies in [0, 1].

    Raises:
        ValueError: it does not.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value
