"""Masked means with an explicit choice of what weighs equally, and an explicit denominator.

    loss = 1/M * sum_g 1/|g| * sum_{u in g} x_u        over the M groups g that hold a unit

    by="token"        every unit is its own group (DAPO, Yu et al. 2025)
    by="action"       consecutive units_per_action units of a row, e.g. an action of D dimensions
    by="chunk"        the units of one row, i.e. of one decision (GRPO, Shao et al. 2024)
    by="trajectory"   the units of all rows with the same trajectory id

A minibatch split into micro-batches gives the same gradient as the whole if each part is divided
by the ``denominator`` of the whole (M, from ``num_groups``); by trajectory, whose rows may fall
into different parts, |g| must be that of the whole too (``count_trajectory_units``).

Axes: ``B`` minibatch row, ``U`` ratio unit; a ``[B]`` tensor has one unit per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

ReduceBy = Literal["token", "action", "chunk", "trajectory"]
Reduce = Callable[[Tensor, Tensor | None], Tensor]
"""(x, mask) -> scalar; ``functools.partial(masked_mean, by=..., denominator=...)`` is one."""


def masked_mean(
    x: Tensor,
    mask: Tensor | None = None,
    *,
    by: ReduceBy = "token",
    units_per_action: int = 1,
    trajectory_ids: Tensor | None = None,
    trajectory_sizes: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Mean of ``x`` over the units in ``mask``, grouped as named above.

    Args:
        x: ``[B, U]`` or ``[B]``.
        mask: bool, shape of ``x``; None counts everything.
        by: what weighs equally.
        units_per_action: length of a block for ``by="action"``; divides U.
        trajectory_ids: ``[B]`` int64, needed for ``by="trajectory"``.
        trajectory_sizes: ``[B]`` number of units in the whole trajectory of each row, where only
            part of its rows are here.
        denominator: number of groups to divide by, if not those found here.

    Returns:
        Scalar; 0 (with zero gradient) if nothing is in ``mask``.

    Raises:
        ValueError: unknown ``by``, missing trajectory ids, or blocks that do not divide U.
    """
    if by not in get_args(ReduceBy):
        raise ValueError(f"reduction by {by!r}; use one of {', '.join(get_args(ReduceBy))}")
    if mask is None:
        if by != "trajectory" and denominator is None:
            return x.mean()  # rows, and blocks of a row, have as many units as the others
        mask = torch.ones_like(x, dtype=torch.bool)
    assert mask.shape == x.shape, f"mask {tuple(mask.shape)} for a loss {tuple(x.shape)}"
    if denominator is None:
        denominator = num_groups(
            mask, by=by, units_per_action=units_per_action, trajectory_ids=trajectory_ids
        ).clamp(min=1)
    x = zero_outside(x, mask)
    if by == "action":
        blocks = _blocks(mask, units_per_action)
        x = x.reshape(blocks.shape).sum(-1) / blocks.sum(-1).clamp(min=1)
    elif by == "chunk":
        x = _rows(x).sum(-1) / _rows(mask).sum(-1).clamp(min=1)
    elif by == "trajectory":
        if trajectory_sizes is None:
            trajectory_sizes = count_trajectory_units(mask, _needed(trajectory_ids))
        x = _rows(x).sum(-1) / trajectory_sizes.clamp(min=1)
    return x.sum() / denominator


def weighted_mean(
    x: Tensor, mask: Tensor | None, *, weights: Tensor, denominator: Tensor | float
) -> Tensor:
    """Sum of w_u x_u over the units in ``mask``, divided by ``denominator`` (the sum of w_u).

    Args:
        x: ``[B, U]``.
        mask: bool, shape of ``x``; None counts everything.
        weights: w, shape of ``x``.
        denominator: sum of the weights of the whole minibatch.

    Returns:
        Scalar.
    """
    return masked_mean(x * weights, mask, denominator=denominator)


def num_groups(
    mask: Tensor,
    *,
    by: ReduceBy = "token",
    units_per_action: int = 1,
    trajectory_ids: Tensor | None = None,
) -> Tensor:
    """Number of groups that hold at least one unit: the denominator of ``masked_mean``.

    Args:
        mask: ``[B, U]`` or ``[B]`` bool.
        by: see ``masked_mean``.
        units_per_action: see ``masked_mean``.
        trajectory_ids: see ``masked_mean``.

    Returns:
        Scalar int64 tensor.

    Raises:
        ValueError: see ``masked_mean``.
    """
    if by == "token":
        return mask.sum()
    if by == "action":
        return _blocks(mask, units_per_action).any(-1).sum()
    if by == "chunk":
        return _rows(mask).any(-1).sum()
    ids = _needed(trajectory_ids)[_rows(mask).any(-1)]
    return torch.tensor(ids.unique().numel(), device=mask.device)


def count_trajectory_units(mask: Tensor, trajectory_ids: Tensor) -> Tensor:
    """Number of units in ``mask`` over all rows of each row's trajectory.

    Args:
        mask: ``[B, U]`` or ``[B]`` bool.
        trajectory_ids: ``[B]`` int64, any values.

    Returns:
        ``[B]`` int64, the ``trajectory_sizes`` of ``masked_mean``.
    """
    ids, index = torch.unique(trajectory_ids, return_inverse=True)
    units = _rows(mask).sum(-1)
    return units.new_zeros(ids.numel()).index_add_(0, index, units)[index]


def zero_outside(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` with 0 where ``mask`` is False, whatever was there; same shapes.

    Losses apply it before any product or exponential: a gradient of 0 times NaN would be NaN.
    """
    return x if mask is None else torch.where(mask, x, 0.0)


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim > 1 else x.unsqueeze(-1)


def _blocks(mask: Tensor, units_per_action: int) -> Tensor:
    rows = _rows(mask)
    if units_per_action < 1 or rows.shape[-1] % units_per_action:
        raise ValueError(
            f"units_per_action is {units_per_action}, which does not divide the {rows.shape[-1]} "
            "units of a row; use the action dimension for token units and 1 for action units"
        )
    return rows.unflatten(-1, (-1, units_per_action))


def _needed(trajectory_ids: Tensor | None) -> Tensor:
    if trajectory_ids is None:
        raise ValueError("a reduction by trajectory needs trajectory_ids [B], e.g. episode_ids")
    return trajectory_ids
