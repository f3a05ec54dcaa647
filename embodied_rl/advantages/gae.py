"""Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)
    A_t = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}

``next_values`` holds V(s_{t+1}) with the end of the episode already in it: 0 if terminated,
V(final_obs) if truncated. Axes: [T, N].
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.advantages.normalize import Normalize, normalize_advantages
from embodied_rl.advantages.scan import reverse_scan
from embodied_rl.types import Advantages, Rollout


@torch.no_grad()
def gae_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    dones: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    valid: Tensor | None = None,
) -> Tensor:
    """The recursion above.

    Args:
        rewards: ``[T, N]``.
        values: ``[T, N]`` V(s_t).
        next_values: ``[T, N]`` 0 if terminated, V(final_obs) if truncated, else V(s_{t+1}).
        dones: ``[T, N]`` bool, terminated or truncated.
        gamma: discount per decision step, in [0, 1].
        gae_lambda: weight of longer returns, in [0, 1].
        valid: ``[T, N]`` bool; other rows get 0, and cut the recursion of the row before them.

    Returns:
        ``[T, N]`` advantages, dtype of ``rewards``.
    """
    deltas = rewards + gamma * next_values - values
    decays = (gamma * gae_lambda) * (~dones).to(deltas.dtype)
    if valid is not None:
        deltas = torch.where(valid, deltas, 0.0)
        # x_t = 0 in an invalid row: it takes nothing from later steps and passes nothing on
        decays = decays * valid
    return reverse_scan(deltas, decays)


@torch.no_grad()
def gae(
    rollout: Rollout,
    *,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    bootstrap_truncated: bool = True,
    normalize: Normalize = "batch",
) -> Advantages:
    """GAE over a rollout; the value targets are A_t + V(s_t) before normalisation.

    Args:
        rollout: experience with ``values`` and ``next_values`` of a critic.
        gamma: discount per decision step.
        gae_lambda: 0 is the TD error, 1 the Monte-Carlo return minus the value.
        bootstrap_truncated: an episode cut by its time limit goes on in the critic's eyes. False
            counts running out of time as failure: right where the aim is success within the
            limit, because a critic that is never shown a zero keeps promising success in states
            from which none ever came.
        normalize: ``batch``, ``task`` or ``none``.

    Returns:
        Advantages that keep every valid row; stats are ``advantage_mean`` and ``advantage_std``
        before normalisation.
    """
    valid, next_values = rollout.valid, rollout.next_values
    if not bootstrap_truncated:
        next_values = next_values.masked_fill(rollout.truncated, 0.0)
    advantages = gae_advantages(
        rollout.rewards,
        rollout.values,
        next_values,
        rollout.dones,
        gamma=gamma,
        gae_lambda=gae_lambda,
        valid=valid,
    )
    return Advantages(
        advantages=normalize_advantages(advantages, valid, rollout=rollout, normalize=normalize),
        returns=advantages + rollout.values,
        keep=valid,
        stats=advantage_stats(advantages, valid),
    )


def advantage_stats(advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Mean and population standard deviation of ``advantages`` ``[T, N]`` over ``mask``."""
    rows = advantages[mask]
    if rows.numel() == 0:
        return {"advantage_mean": 0.0, "advantage_std": 0.0}
    std, mean = torch.std_mean(rows, correction=0)
    return {"advantage_mean": mean.item(), "advantage_std": std.item()}
