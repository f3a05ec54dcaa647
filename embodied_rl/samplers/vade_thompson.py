r"""Thompson sampling of informative tasks: Beta posteriors over success, no extra rollouts.

VADE (variance-aware dynamic sampling by online difficulty estimation). Per task a posterior
Beta(alpha, beta) over its success, alpha = 1 + s and beta = 1 + t - s. A proposal draws
theta_1 ... theta_J ~ Beta(alpha, beta) and takes the tasks of the greatest information gain

    g = mean_j theta_j (1 - theta_j),

the variance of a success, which is what a group-relative advantage can learn from. Old counts fade
on two time scales, since the policy moves:

    (s, t) <- gamma_slow (s, t)                              all tasks, at every update
    (s, t) <- gamma_fast (s, t) + (k, G)                     tasks with new outcomes k of G

The published abstract names the posterior, Thompson sampling, information gain and two-scale decay;
g, the selection of the greatest and all constants are ours. gamma_slow is given per pass over the
tasks (an update that reports M tasks decays by ``decay_per_pass ** (M / P)``), so that one value
serves ten tasks and a hundred thousand prompts.

J = 1 is plain Thompson sampling, which explores too much when n of many tasks are selected: the
greatest g of a thousand vague posteriors is always near 1/4. Averaging over J draws tempers that
(J = infinity never explores). Share of the variance gap between uniform and perfect selection,
1000 prompts of difficulty Beta(.5, .5), n = 32, G = 8, 60 updates: J = 1 .35, 4 .60, 8 .71, 16 .76;
with success drifting up by 1 % an update on Beta(.3, 1.5): .13, .38, .48, .50 (J = 8 is better late
in the run).

Repeats: each task enters the selection with c copies, every copy with its own draws, where
c = max(1, ceil(n / (min_breadth P))). For n <= min_breadth P that is the plain selection of n
distinct tasks; for greater n ids repeat, at most c times each, so more than min_breadth P / 2
distinct tasks are proposed and none takes the whole proposal.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from embodied_rl.samplers.base import CountingSampler, Counts, as_proposal, check_fraction


class VadeThompson(CountingSampler):
    """VADE: Thompson sampling of theta (1 - theta).

    Args:
        num_tasks: P.
        seed: of the draws.
        decay_per_pass: factor on all counts per P reported tasks; 1 keeps them for ever.
        decay_on_visit: further factor on the counts of a task that is reported on.
        num_draws: J, posterior draws per task that a proposal averages.
        min_breadth: share of the tasks beyond which a proposal begins to repeat ids.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        decay_per_pass: float = 0.9,
        decay_on_visit: float = 0.8,
        num_draws: int = 8,
        min_breadth: float = 0.5,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed)
        self.decay_per_pass = check_fraction("decay_per_pass", decay_per_pass)
        self.decay_on_visit = check_fraction("decay_on_visit", decay_on_visit)
        self.min_breadth = check_fraction("min_breadth", min_breadth)
        self.num_draws = num_draws
        if num_draws < 1 or min_breadth == 0.0:
            raise ValueError(
                "num_draws must be at least 1 and min_breadth above 0, got "
                f"{num_draws} and {min_breadth}"
            )

    def propose(self, n: int) -> Tensor:
        """``[n]`` int64 ids of the greatest drawn information gain, in random order."""
        if n == 0:
            return as_proposal(np.empty(0))
        copies = math.ceil(n / max(1.0, self.min_breadth * self.num_tasks))
        alpha = 1.0 + self.successes
        beta = 1.0 + self.trials - self.successes
        shape = (copies, self.num_draws, self.num_tasks)
        theta = self._generator.beta(alpha, beta, size=shape)
        gain = (theta * (1.0 - theta)).mean(axis=1).ravel()
        best = np.argpartition(gain, gain.size - n)[gain.size - n :]
        return as_proposal(self._generator.permutation(best % self.num_tasks))

    def _add(self, successes: Counts, trials: Counts) -> None:
        visited = trials > 0
        slow = self.decay_per_pass ** (np.count_nonzero(visited) / self.num_tasks)
        decay = np.where(visited, slow * self.decay_on_visit, slow)
        self.successes = decay * self.successes + successes
        self.trials = decay * self.trials + trials
