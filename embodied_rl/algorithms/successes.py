"""A memory of the policy's own successful episodes, as imitation targets.

Self-imitation (Oh et al. 2018) for sparse rewards: what a few demonstrations do not cover, the
policy sometimes solves by chance; imitating those episodes beside the policy gradient spreads them
to neighbouring states. Axes: ``F`` remembered decisions, ``H`` actions, ``D`` action dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.types import Rollout, TensorDict

Targets = tuple[TensorDict, Tensor, Tensor]
"""(obs [F, ...], action chunks [F, H, D], mask [F, H] bool)."""


def successful_decisions(rollout: Rollout) -> Targets:
    """Executed actions of every episode of the rollout that was solved.

    Actions are clipped to [-1, 1] as the environment did; the mask is False for actions after the
    success.
    """
    solved = torch.isin(rollout.episode_ids, rollout.episode_ids[rollout.success])
    rows = solved & rollout.valid
    actions = rollout.actions[rows]
    if actions.ndim == 2:
        actions = actions.unsqueeze(1)
    executed = torch.arange(actions.shape[1]) < rollout.num_env_steps[rows].unsqueeze(1)
    obs = {name: value[rows] for name, value in rollout.obs.items()}
    return obs, actions.clamp(-1.0, 1.0), executed


def extend(memory: Targets, new: Targets, *, keep_first: int, capacity: int) -> Targets:
    """Append targets; beyond ``keep_first + capacity`` rows the oldest appended ones are dropped.

    Args:
        memory: the first ``keep_first`` rows are the demonstrations, which stay.
        new: rows to append; chunks shorter than those of ``memory`` are padded and masked.
        keep_first: number of demonstration rows.
        capacity: number of further rows.
    """
    obs, actions, mask = new
    missing = memory[1].shape[1] - actions.shape[1]
    if missing:
        actions = torch.cat([actions, actions[:, -1:].expand(-1, missing, -1)], 1)
        mask = torch.cat([mask, mask.new_zeros(len(mask), missing)], 1)

    def join(old: Tensor, added: Tensor) -> Tensor:
        own = torch.cat([old[keep_first:], added])[-capacity:]
        return torch.cat([old[:keep_first], own])

    joined = {name: join(memory[0][name], obs[name]) for name in memory[0]}
    return joined, join(memory[1], actions), join(memory[2], mask)
