"""REINFORCE++ (Hu et al. 2025, arXiv:2501.03262): returns to go, normalised over the whole batch.

    baseline="none":   G_t = r_t + gamma * G_{t+1}, to the end of the episode
    baseline="group":  G_t = gamma^(steps left) * (R - mean of R over the group), R = sum of r
    A_t = (G_t - mean(G)) / (std(G) + 1e-8), over all steps of all complete episodes

The group form is the paper's "REINFORCE++-baseline": the centred outcome is paid at the last step.
The sigma filter of StableReinforce (Zhang et al. 2025, R1-Reward) comes last: A_t = 0 where
|A_t| > ``sigma_filter``. Its window is centred on 0, the mean of the standardised advantages (their
code centres it on the mean of the raw ones). Among n numbers none is further than
(n - 1) / sqrt(n) from the mean, so that a window of 3 does nothing below n = 11.

There is no critic, so nothing is bootstrapped: an episode that the end of the rollout cut is left
out, and one cut by its time limit counts as it is. Axes: [T, N].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from embodied_rl.advantages.episodes import Episodes, summarize_episodes
from embodied_rl.advantages.gae import advantage_stats
from embodied_rl.advantages.group_relative import group_advantages
from embodied_rl.advantages.monte_carlo import discounted_returns
from embodied_rl.advantages.normalize import standardize
from embodied_rl.types import Advantages, Rollout


@torch.no_grad()
def reinforce_pp(
    rollout: Rollout,
    *,
    gamma: float = 1.0,
    baseline: Literal["group", "none"] = "none",
    sigma_filter: float = 0.0,
) -> Advantages:
    """REINFORCE++ advantages of a rollout.

    Args:
        rollout: experience whose episodes start in it.
        gamma: discount per decision step.
        baseline: ``group`` centres the score of an episode on those of its group first.
        sigma_filter: larger standardised advantages become 0, which keeps them in the mean of the
            loss; 0: none do.

    Returns:
        Advantages without value targets; keeps the steps of complete episodes. Stats:
        ``advantage_mean`` and ``advantage_std`` before normalisation, ``num_incomplete_episodes``,
        and ``sigma_filtered_fraction`` with a filter.

    Raises:
        ValueError: an unknown baseline, a negative filter, or a group that mixes tasks.
    """
    if baseline not in ("group", "none"):
        raise ValueError(f"baseline is {baseline!r}; use 'group' or 'none'")
    if sigma_filter < 0:
        raise ValueError(f"sigma_filter is {sigma_filter}; use a number above 0, e.g. 3, or 0")
    episodes = summarize_episodes(rollout)
    keep = episodes.to_steps(episodes.complete)
    rewards = rollout.rewards
    if baseline == "group":
        rewards = torch.where(rollout.dones, _centred_scores(episodes).to(rewards.dtype), 0.0)
    returns = discounted_returns(
        rewards, torch.zeros_like(rewards), rollout.dones, gamma=gamma, valid=keep
    )
    advantages = standardize(returns, keep)
    stats = advantage_stats(returns, keep)
    stats["num_incomplete_episodes"] = float((~episodes.complete).sum().item())
    if sigma_filter:
        outside = advantages.abs() > sigma_filter
        advantages = advantages.masked_fill(outside, 0.0)
        stats["sigma_filtered_fraction"] = outside.sum().item() / max(int(keep.sum()), 1)
    return Advantages(advantages=advantages, keep=keep, stats=stats)


def _centred_scores(episodes: Episodes) -> Tensor:
    """R - mean of R over the group, ``[T, N]``; 0 for incomplete episodes."""
    complete = episodes.complete
    centred = torch.zeros_like(episodes.scores)
    centred[complete] = group_advantages(
        episodes.scores[complete], episodes.group_ids[complete], scale="none"
    )
    return episodes.to_steps(centred)
