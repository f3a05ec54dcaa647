"""Every task equally often: shuffled passes over all tasks.

A pass is a random permutation of the P tasks; ``propose`` takes the next n ids and begins a new
pass where one ends. So at any time two tasks have been proposed equally often, or differ by one,
and ids repeat within a proposal only across the end of a pass or where P < n.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from embodied_rl.samplers.base import CountingSampler, as_proposal


class Uniform(CountingSampler):
    """Shuffled passes over all tasks; the control of every other sampler."""

    def __init__(self, *, num_tasks: int, seed: int) -> None:
        super().__init__(
            num_tasks=num_tasks, seed=seed, state_arrays=("order",), state_scalars=("cursor",)
        )
        self.order = self._generator.permutation(num_tasks)
        self.cursor = 0
        """Ids of ``order`` that this pass has proposed already."""

    def propose(self, n: int) -> Tensor:
        """``[n]`` int64 ids, the next ones of the pass."""
        parts: list[np.ndarray] = []
        while n > 0:
            if self.cursor == self.num_tasks:
                self.order, self.cursor = self._generator.permutation(self.num_tasks), 0
            parts.append(self.order[self.cursor : self.cursor + n])
            self.cursor += len(parts[-1])
            n -= len(parts[-1])
        return as_proposal(np.concatenate(parts) if parts else np.empty(0))
