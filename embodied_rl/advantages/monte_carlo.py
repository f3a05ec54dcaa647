"""Discounted returns, bootstrapped where the episode did not terminate.

    G_t = r_t + gamma * (V(s_{t+1}) where the episode ends or the rollout is cut, else G_{t+1})
    A_t = G_t - V(s_t), or G_t without a baseline

V(s_{t+1}) is ``next_values``: 0 if terminated, so only truncation and the end of the rollout
bootstrap. Axes: [T, N]. Source: Sutton & Barto 2018, sec. 13.4 (REINFORCE with baseline).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from embodied_rl.advantages.gae import advantage_stats
from embodied_rl.advantages.normalize import Normalize, normalize_advantages
from embodied_rl.advantages.scan import reverse_scan
from embodied_rl.types import Advantages, Rollout


@torch.no_grad()
def discounted_returns(
    rewards: Tensor,
    next_values: Tensor,
    dones: Tensor,
    *,
    gamma: float,
    valid: Tensor | None = None,
) -> Tensor:
    """G_t as above.

    Args:
        rewards: ``[T, N]``.
        next_values: ``[T, N]`` used where a trajectory is cut; zeros for no bootstrap.
        dones: ``[T, N]`` bool.
        gamma: discount per decision step.
        valid: ``[T, N]`` bool; other rows get 0, and cut the row before them.

    Returns:
        ``[T, N]``, dtype of ``rewards``.
    """
    goes_on = ~dones
    goes_on[-1] = False
    if valid is not None:
        goes_on[:-1] &= valid[1:]
    bootstrapped = rewards + gamma * torch.where(goes_on, 0.0, next_values)
    decays = gamma * goes_on.to(rewards.dtype)
    if valid is not None:
        bootstrapped = torch.where(valid, bootstrapped, 0.0)
        decays = decays * valid
    return reverse_scan(bootstrapped, decays)


@torch.no_grad()
def monte_carlo(
    rollout: Rollout,
    *,
    gamma: float = 0.99,
    baseline: Literal["values", "none"] = "values",
    normalize: Normalize = "batch",
) -> Advantages:
    """Monte-Carlo returns over a rollout, minus the critic's value unless told otherwise.

    Args:
        rollout: experience.
        gamma: discount per decision step.
        baseline: ``values`` subtracts V(s_t); ``none`` uses the return itself.
        normalize: ``batch``, ``task`` or ``none``.

    Returns:
        Advantages that keep every valid row, with the returns as value targets.

    Raises:
        ValueError: an unknown baseline.
    """
    if baseline not in ("values", "none"):
        raise ValueError(f"baseline is {baseline!r}; use 'values' or 'none'")
    valid = rollout.valid
    returns = discounted_returns(
        rollout.rewards, rollout.next_values, rollout.dones, gamma=gamma, valid=valid
    )
    advantages = returns - rollout.values if baseline == "values" else returns
    return Advantages(
        advantages=normalize_advantages(advantages, valid, rollout=rollout, normalize=normalize),
        returns=returns,
        keep=valid,
        stats=advantage_stats(advantages, valid),
    )
