r"""From easy to hard by measured success, one rung at a time.

Observe-R1 (https://github.com/zrguo/Observe-R1) sorts its data by measured difficulty and trains
from easy to hard. Here the difficulty is measured by the run itself and the climb follows success
in place of a fixed schedule:

1. Measure: every task is proposed once (skipped for tasks that were given to ``update`` before).
2. Climb: rung 0 is the easiest ``ceil(P / num_rungs)`` tasks. When the mean measured success of
   the rung reaches ``promote_success``, or after ``max_rung_updates`` updates on it, the easiest
   of the tasks not yet reached, by the newest estimates, become the next rung.
3. Review: ``review_fraction`` of a proposal are tasks of the rungs below, so that they are not
   forgotten. Past the last rung all tasks are proposed evenly.

Proposals are spread evenly over the rung: ids repeat where the rung is smaller than n. Counts are
discounted at every visit of a task, (s, t) <- decay_on_visit (s, t) + (k, G).
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from embodied_rl.samplers.base import CountingSampler, Counts, as_proposal, check_fraction


class DifficultyLadder(CountingSampler):
    """Easy tasks first.

    Args:
        num_tasks: P.
        seed: of the draws.
        num_rungs: number of difficulty tiers.
        promote_success: mean measured success of the rung that opens the next one.
        max_rung_updates: updates after which the next rung opens in any case.
        review_fraction: share of the proposals from the rungs below.
        decay_on_visit: factor on the counts of a task before new outcomes are added.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        num_rungs: int = 4,
        promote_success: float = 0.8,
        max_rung_updates: int = 100,
        review_fraction: float = 0.1,
        decay_on_visit: float = 0.5,
    ) -> None:
        super().__init__(
            num_tasks=num_tasks,
            seed=seed,
            state_arrays=("rung_of", "num_proposed"),
            state_scalars=("rung", "rung_updates"),
        )
        if num_rungs < 1 or max_rung_updates < 1:
            raise ValueError(
                f"num_rungs and max_rung_updates must be at least 1, got {num_rungs} and "
                f"{max_rung_updates}"
            )
        self.rung_size = math.ceil(num_tasks / num_rungs)
        self.promote_success = check_fraction("promote_success", promote_success)
        self.max_rung_updates = max_rung_updates
        self.review_fraction = check_fraction("review_fraction", review_fraction)
        self.decay_on_visit = check_fraction("decay_on_visit", decay_on_visit)
        self.rung = -1
        """The rung in training; -1 while tasks are being measured."""
        self.rung_updates = 0
        self.rung_of = np.full(num_tasks, -1)
        """``[P]`` the rung a task came with; -1 for a task not yet reached."""
        self.num_proposed = np.zeros(num_tasks, dtype=np.int64)

    def propose(self, n: int) -> Tensor:
        """``[n]`` int64 ids in random order."""
        if self.rung < 0 and (self.trials == 0).any():
            return as_proposal(self._propose_unmeasured(n))
        if self.rung < 0:
            self._open_next_rung()
        current = np.flatnonzero(self.rung_of == self.rung)
        below = np.flatnonzero((self.rung_of >= 0) & (self.rung_of < self.rung))
        if not len(current):
            return as_proposal(self._balanced(below, n))
        num_below = self._random_round(self.review_fraction * n) if len(below) else 0
        parts = [self._balanced(current, n - num_below)]
        if num_below:
            parts.append(self._balanced(below, num_below))
        return as_proposal(self._generator.permutation(np.concatenate(parts)))

    def update(self, task_ids: Tensor, successes: Tensor, trials: Tensor) -> None:
        """Learn from training rollouts and climb; see ``TaskSampler.update``."""
        super().update(task_ids, successes, trials)
        current = self.rung_of == self.rung
        if self.rung < 0 or not current.any():
            return
        self.rung_updates += 1
        success = self.measured_success(unmeasured=0.0)[current].mean()
        if success >= self.promote_success or self.rung_updates >= self.max_rung_updates:
            self._open_next_rung()

    def _propose_unmeasured(self, n: int) -> np.ndarray:
        """The ``n`` unmeasured tasks that were proposed least, in rounds where they are fewer."""
        ids = self._generator.permutation(np.flatnonzero(self.trials == 0))
        ids = ids[np.argsort(self.num_proposed[ids], kind="stable")]
        chosen = np.resize(ids, n)
        np.add.at(self.num_proposed, chosen, 1)
        return chosen

    def _open_next_rung(self) -> None:
        ahead = self._generator.permutation(np.flatnonzero(self.rung_of < 0))
        success = self.measured_success(unmeasured=0.0)[ahead]
        easiest = ahead[np.argsort(-success, kind="stable")[: self.rung_size]]
        self.rung += 1
        self.rung_updates = 0
        self.rung_of[easiest] = self.rung

    def _add(self, successes: Counts, trials: Counts) -> None:
        decay = np.where(trials > 0, self.decay_on_visit, 1.0)
        self.successes = decay * self.successes + successes
        self.trials = decay * self.trials + trials
