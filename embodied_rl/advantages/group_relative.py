"""Advantages of an episode relative to its group: GRPO, Dr. GRPO, RLOO.

With R_i the score (sum of rewards) of episode i, in a group of G episodes that share task, initial
state and instruction, every step of episode i gets

    A_i = (R_i - b_i) / (std(R) + 1e-6)      scale="std"    (GRPO, Shao et al. 2024)
    A_i = R_i - b_i                          scale="none"   (Dr. GRPO, Liu et al. 2025)
    b_i = mean(R), or the mean of the other G - 1 scores    (RLOO, Ahmadian et al. 2024)

A group whose scores are all equal says nothing about what was better; dropping it changes ``keep``
only, so the loss averages over what is left. Axes: [T, N] steps, [E] episodes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from embodied_rl.advantages.episodes import Episodes, summarize_episodes
from embodied_rl.advantages.segments import segment_moments, segment_range
from embodied_rl.types import Advantages, Rollout

STD_EPS = 1e-6
SPREAD_EPS = 1e-6
"""Scores closer than this are equal: sums of equal rewards may differ by rounding."""


@torch.no_grad()
def group_advantages(
    scores: Tensor,
    group_ids: Tensor,
    *,
    scale: Literal["std", "none"] = "std",
    leave_one_out: bool = False,
) -> Tensor:
    """A_i as above; 0 for an episode alone in its group.

    Args:
        scores: ``[E]``.
        group_ids: ``[E]`` int64, any values.
        scale: ``std`` divides by the unbiased standard deviation of the group.
        leave_one_out: the baseline of an episode is the mean of the others.

    Returns:
        ``[E]``, dtype of ``scores``.

    Raises:
        ValueError: an unknown scale.
    """
    if scale not in ("std", "none"):
        raise ValueError(f"scale is {scale!r}; use 'std' or 'none'")
    ids, index = torch.unique(group_ids, return_inverse=True)
    mean, std, count = segment_moments(scores, index, num_segments=ids.numel())
    advantages = scores.double() - mean[index]
    if leave_one_out:
        # R_i - sum_{j != i} R_j / (G - 1) = (R_i - mean) * G / (G - 1)
        advantages = advantages * (count / (count - 1).clamp(min=1))[index]
    if scale == "std":
        advantages = advantages / (std[index] + STD_EPS)
    return advantages.to(scores.dtype)


@torch.no_grad()
def informative_groups(scores: Tensor, group_ids: Tensor) -> Tensor:
    """Which episodes are in a group whose scores differ.

    Dynamic sampling (DAPO, Yu et al. 2025) draws new groups until enough are informative.

    Args:
        scores: ``[E]``.
        group_ids: ``[E]`` int64, any values.

    Returns:
        ``[E]`` bool; equal for all episodes of a group.
    """
    ids, index = torch.unique(group_ids, return_inverse=True)
    low, high = segment_range(scores, index, num_segments=ids.numel())
    return (high - low > SPREAD_EPS)[index]


@torch.no_grad()
def groups_in_window(success: Tensor, group_ids: Tensor, *, window: tuple[float, float]) -> Tensor:
    """Which episodes are in a group whose mean success lies in [lo, hi].

    Args:
        success: ``[E]`` bool.
        group_ids: ``[E]`` int64, any values.
        window: (lo, hi), both included.

    Returns:
        ``[E]`` bool.

    Raises:
        ValueError: not 0 <= lo <= hi <= 1.
    """
    low, high = window
    if not 0 <= low <= high <= 1:
        raise ValueError(f"success_window is {window}; use 0 <= lo <= hi <= 1, e.g. (0.1, 0.9)")
    ids, index = torch.unique(group_ids, return_inverse=True)
    mean, _, _ = segment_moments(success.double(), index, num_segments=ids.numel())
    return ((mean >= low - 1e-9) & (mean <= high + 1e-9))[index]


@torch.no_grad()
def group_relative(
    rollout: Rollout,
    *,
    scale: Literal["std", "none"] = "std",
    leave_one_out: bool = False,
    drop_uninformative: bool = True,
    success_window: tuple[float, float] | None = None,
) -> Advantages:
    """Group-relative advantages of whole episodes, spread over their steps.

    Args:
        rollout: experience whose episodes start in it; ``group_ids`` tell which are comparable.
        scale: ``std`` or ``none``.
        leave_one_out: baseline without the episode itself.
        drop_uninformative: do not keep groups whose scores are all equal.
        success_window: keep only groups whose mean success lies in [lo, hi].

    Returns:
        Advantages without value targets. Episodes cut by the end of the rollout enter nothing and
        are not kept. Stats: ``num_groups`` (with a complete episode), of which
        ``informative_group_fraction`` and ``kept_group_fraction``; ``num_incomplete_episodes``;
        ``score_mean``.

    Raises:
        ValueError: a group mixes tasks, or an option is out of range.
    """
    episodes = summarize_episodes(rollout)
    complete = episodes.complete
    scores, group_ids = episodes.scores[complete], episodes.group_ids[complete]
    informative = informative_groups(scores, group_ids)
    keep = informative.clone() if drop_uninformative else torch.ones_like(informative)
    if success_window is not None:
        keep &= groups_in_window(episodes.success[complete], group_ids, window=success_window)

    advantages = torch.zeros_like(episodes.scores)
    advantages[complete] = group_advantages(
        scores, group_ids, scale=scale, leave_one_out=leave_one_out
    )
    kept = torch.zeros_like(complete)
    kept[complete] = keep
    return Advantages(
        advantages=episodes.to_steps(advantages).to(rollout.rewards.dtype),
        keep=episodes.to_steps(kept),
        stats=_group_stats(episodes, informative, keep),
    )


@torch.no_grad()
def rloo(
    rollout: Rollout,
    *,
    drop_uninformative: bool = True,
    success_window: tuple[float, float] | None = None,
) -> Advantages:
    """REINFORCE with a leave-one-out baseline: ``group_relative`` without the division by std.

    Args:
        rollout: see ``group_relative``.
        drop_uninformative: see ``group_relative``.
        success_window: see ``group_relative``.

    Returns:
        See ``group_relative``.

    Raises:
        ValueError: see ``group_relative``.
    """
    return group_relative(
        rollout,
        scale="none",
        leave_one_out=True,
        drop_uninformative=drop_uninformative,
        success_window=success_window,
    )


def _group_stats(episodes: Episodes, informative: Tensor, keep: Tensor) -> dict[str, float]:
    group_ids = episodes.group_ids[episodes.complete]
    groups = group_ids.unique().numel()
    scores = episodes.scores[episodes.complete]
    return {
        "num_groups": float(groups),
        "informative_group_fraction": group_ids[informative].unique().numel() / max(groups, 1),
        "kept_group_fraction": group_ids[keep].unique().numel() / max(groups, 1),
        "num_incomplete_episodes": float((~episodes.complete).sum().item()),
        "score_mean": scores.mean().item() if scores.numel() else 0.0,
    }
