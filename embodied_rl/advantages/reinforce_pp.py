"""REINFORCE++ (Hu et al. 2025, arXiv:2501.03262): returns to go, normalised over the whole batch.

    baseline="none":   G_t = r_t + gamma * G_{t+1}, to the end of the episode
    baseline="group":  G_t = gamma^(steps left) * (R - mean of R over the group), R = sum of r
    A_t = (G_t - mean(G)) / (std(G) + 1e-8), over all steps of all complete episodes

The group form is the paper's "REINFORCE++-baseline": the centred outcome is paid at the last step.
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
) -> Advantages:
    """REINFORCE++ advantages of a rollout.

    Args:
        rollout: experience whose episodes start in it.
        gamma: discount per decision step.
        baseline: ``group`` centres the score of an episode on those of its group first.

    Returns:
        Advantages without value targets; keeps the steps of complete episodes. Stats:
        ``advantage_mean`` and ``advantage_std`` before normalisation, ``num_incomplete_episodes``.

    Raises:
        ValueError: an unknown baseline, or a group that mixes tasks.
    """
    if baseline not in ("group", "none"):
        raise ValueError(f"baseline is {baseline!r}; use 'group' or 'none'")
    episodes = summarize_episodes(rollout)
    keep = episodes.to_steps(episodes.complete)
    rewards = rollout.rewards
    if baseline == "group":
        rewards = torch.where(rollout.dones, _centred_scores(episodes).to(rewards.dtype), 0.0)
    returns = discounted_returns(
        rewards, torch.zeros_like(rewards), rollout.dones, gamma=gamma, valid=keep
    )
    return Advantages(
        advantages=standardize(returns, keep),
        keep=keep,
        stats={
            **advantage_stats(returns, keep),
            "num_incomplete_episodes": float((~episodes.complete).sum().item()),
        },
    )


def _centred_scores(episodes: Episodes) -> Tensor:
    """R - mean of R over the group, ``[T, N]``; 0 for incomplete episodes."""
    complete = episodes.complete
    centred = torch.zeros_like(episodes.scores)
    centred[complete] = group_advantages(
        episodes.scores[complete], episodes.group_ids[complete], scale="none"
    )
    return episodes.to_steps(centred)
