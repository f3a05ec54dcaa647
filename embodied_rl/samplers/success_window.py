r"""Only tasks whose measured success lies in a window: neither solved nor out of reach.

A task is kept if low <= s / t <= high, or if nothing is known of it. With the counts discounted
by ``decay_on_visit`` at every visit of the task, (s, t) <- decay (s, t) + (k, G), the estimate
follows the policy. Of n proposals, ``explore_fraction`` n are tasks outside of the window, those
first that were not reported on for longest, so that a task comes back when the policy has changed;
the others are spread evenly over the kept tasks (repeated where these are fewer). Where no task
is kept, the nearest to the window take their place.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from embodied_rl.samplers.base import CountingSampler, Counts, as_proposal, check_fraction


class SuccessWindow(CountingSampler):
    """Keeps tasks of middling success.

    Args:
        num_tasks: P.
        seed: of the draws.
        low: least measured success of a kept task.
        high: greatest measured success of a kept task.
        explore_fraction: share of the proposals that measure tasks outside of the window again.
        decay_on_visit: factor on the counts of a task before new outcomes are added.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        low: float = 0.1,
        high: float = 0.9,
        explore_fraction: float = 0.1,
        decay_on_visit: float = 0.5,
    ) -> None:
        super().__init__(
            num_tasks=num_tasks, seed=seed, state_arrays=("seen_at",), state_scalars=("clock",)
        )
        self.low, self.high = check_fraction("low", low), check_fraction("high", high)
        if low > high:
            raise ValueError(f"low must not exceed high, got low={low} and high={high}")
        self.explore_fraction = check_fraction("explore_fraction", explore_fraction)
        self.decay_on_visit = check_fraction("decay_on_visit", decay_on_visit)
        self.clock = 0
        self.seen_at = np.full(num_tasks, -1)
        """``[P]`` number of the update or proposal that last concerned the task."""

    def propose(self, n: int) -> Tensor:
        """``[n]`` int64 ids in random order."""
        distance = self._distance()
        kept = np.flatnonzero(distance == distance.min())
        others = np.flatnonzero(distance > 0.0) if distance.min() == 0.0 else np.empty(0, np.int64)
        num_others = min(self._random_round(self.explore_fraction * n), len(others))
        # Random order breaks ties between tasks that were last seen together.
        others = self._generator.permutation(others)
        others = others[np.argsort(self.seen_at[others], kind="stable")[:num_others]]
        self.clock += 1
        self.seen_at[others] = self.clock
        chosen = np.concatenate([self._balanced(kept, n - num_others), others])
        return as_proposal(self._generator.permutation(chosen))

    def _distance(self) -> Counts:
        """``[P]`` distance of the measured success from the window; 0 inside and if unknown."""
        success = self.measured_success(unmeasured=self.low)
        return np.maximum(self.low - success, 0.0) + np.maximum(success - self.high, 0.0)

    def _add(self, successes: Counts, trials: Counts) -> None:
        visited = trials > 0
        self.clock += 1
        self.seen_at[visited] = self.clock
        decay = np.where(visited, self.decay_on_visit, 1.0)
        self.successes = decay * self.successes + successes
        self.trials = decay * self.trials + trials
