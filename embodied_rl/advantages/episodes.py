"""The episodes of a rollout as a table: score, group, success, completeness.

Axes: [T, N] of the rollout to ``E`` episodes; the score of an episode is the sum of its rewards.
An episode that the end of the rollout cut has no score yet: it is in the table, not ``complete``.
Only the steps in this rollout count, so estimators on scores need episodes that start in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embodied_rl.advantages.segments import segment_range, segment_sum
from embodied_rl.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """One row per episode with at least one valid step, in increasing order of episode id.

    Attributes:
        valid: ``[T, N]`` bool, the steps that belong to an episode.
        index: ``[V]`` int64, row of this table for each of the V valid steps (row-major order).
        scores: ``[E]`` float64, sum of the rewards.
        group_ids: ``[E]`` int64.
        success: ``[E]`` bool, solved at some step.
        complete: ``[E]`` bool, the episode ended inside the rollout.
    """

    valid: Tensor
    index: Tensor
    scores: Tensor
    group_ids: Tensor
    success: Tensor
    complete: Tensor

    def to_steps(self, per_episode: Tensor) -> Tensor:
        """Spread ``[E]`` values over ``[T, N]``; steps of no episode get 0 (False)."""
        steps = torch.zeros(self.valid.shape, dtype=per_episode.dtype, device=per_episode.device)
        steps[self.valid] = per_episode[self.index]
        return steps


@torch.no_grad()
def summarize_episodes(rollout: Rollout) -> Episodes:
    """Build the table of a rollout.

    Raises:
        ValueError: a group holds episodes of different tasks, whose scores cannot be compared.
    """
    valid = rollout.valid
    ids, index = torch.unique(rollout.episode_ids[valid], return_inverse=True)
    num = ids.numel()

    def count(flags: Tensor) -> Tensor:
        return segment_sum(flags[valid], index, num_segments=num)

    group_low, group_high = segment_range(rollout.group_ids[valid], index, num_segments=num)
    assert torch.equal(group_low, group_high), "an episode has more than one group id"
    _check_one_task_per_group(rollout.group_ids[valid], rollout.task_ids[valid])
    return Episodes(
        valid=valid,
        index=index,
        scores=count(rollout.rewards),
        group_ids=group_low,
        success=count(rollout.success) > 0,
        complete=count(rollout.dones) > 0,
    )


def _check_one_task_per_group(group_ids: Tensor, task_ids: Tensor) -> None:
    groups, index = torch.unique(group_ids, return_inverse=True)
    low, high = segment_range(task_ids, index, num_segments=groups.numel())
    mixed = (low != high).nonzero().flatten().tolist()
    if mixed:
        first = mixed[0]
        raise ValueError(
            f"group {groups[first].item()} mixes tasks {low[first].item()} and "
            f"{high[first].item()} ({len(mixed)} groups mix tasks): give the environment and the "
            "algorithm the same group_size, so that a group repeats one task and one initial state"
        )
