r"""Variance-aware sampling mixed with uniform sampling, with measured refreshes.

VAS of MMR1 (https://github.com/LengSicong/MMR1). The outcome variance score of a task is
OVS = p (1 - p) with p its measured success. Of n proposals

    variance_fraction n       are drawn with replacement in proportion to OVS,
    (1 - variance_fraction) n are drawn uniformly (each task as often as any other, +- 1),

and every ``refresh_every`` updates, beginning before the first, all tasks are measured anew with
``refresh_trials`` rollouts each. The trainer does that where it honours ``refresh_ids``; the cost
is P refresh_trials rollouts a time and is counted in ``extra_rollouts``. Rows of training add to
the estimate between two refreshes, which costs nothing and is ours. A task of unknown success has
the greatest score, 1/4; where no task has a score left all of a proposal is uniform.

The published score adds a text diversity of the answers (weight .2; 0 in the released
configuration). Success counts do not show it, so it is not part of this sampler.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embodied_rl.samplers.base import CountingSampler, as_proposal, check_fraction


class VasMixed(CountingSampler):
    """VAS: variance-weighted and uniform proposals with refreshes.

    Args:
        num_tasks: P.
        seed: of the draws.
        variance_fraction: lambda, share of the proposals drawn in proportion to p (1 - p).
        refresh_every: T, updates between two refreshes of all tasks; 0 asks for none.
        refresh_trials: N, rollouts per task of a refresh.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        variance_fraction: float = 0.5,
        refresh_every: int = 28,
        refresh_trials: int = 8,
    ) -> None:
        super().__init__(
            num_tasks=num_tasks,
            seed=seed,
            state_arrays=("refreshed_at",),
            state_scalars=("num_updates",),
        )
        if refresh_every < 0 or refresh_trials < 1:
            raise ValueError(
                "refresh_every must be at least 0 and refresh_trials at least 1, got "
                f"{refresh_every} and {refresh_trials}"
            )
        self.variance_fraction = check_fraction("variance_fraction", variance_fraction)
        self.refresh_every = refresh_every
        self.refresh_trials = refresh_trials
        self.num_updates = 0
        self.refreshed_at = np.full(num_tasks, -1)
        """``[P]`` value of ``num_updates`` at the last refresh; -1 for none."""

    def propose(self, n: int) -> Tensor:
        """``[n]`` int64 ids in random order; variance-weighted ones may repeat."""
        success = self.measured_success(unmeasured=0.5)
        score = success * (1.0 - success)
        total = score.sum()
        num_weighted = self._random_round(self.variance_fraction * n) if total > 0 else 0
        weights = score / total if total > 0 else None
        weighted = self._generator.choice(self.num_tasks, size=num_weighted, p=weights)
        rest = self._balanced(np.arange(self.num_tasks), n - num_weighted)
        return as_proposal(self._generator.permutation(np.concatenate([weighted, rest])))

    def update(self, task_ids: Tensor, successes: Tensor, trials: Tensor) -> None:
        """Learn from training rollouts; see ``TaskSampler.update``."""
        super().update(task_ids, successes, trials)
        self.num_updates += 1

    def refresh_ids(self) -> Tensor:
        """``[R]`` ids not yet measured since the last multiple of ``refresh_every`` updates."""
        if self.refresh_every == 0:
            return torch.empty(0, dtype=torch.int64)
        due = self.num_updates - self.num_updates % self.refresh_every
        return as_proposal(np.flatnonzero(self.refreshed_at < due))

    def refresh(self, task_ids: Tensor, successes: Tensor, trials: Tensor) -> None:
        """Replace the estimates of these tasks; the rollouts count as extra."""
        super().refresh(task_ids, successes, trials)
        self.refreshed_at[task_ids.cpu().numpy()] = self.num_updates
