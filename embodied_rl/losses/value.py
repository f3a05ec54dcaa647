"""Value regression.

    L = l(V - R),  l(e) = e^2 / 2, or Huber: delta * (|e| - delta/2) for |e| > delta
    L = max(l(V - R), l(V_old + clip(V - V_old, -c, c) - R))      with value clipping

Value clipping is that of the OpenAI baselines PPO (Engstrom et al. 2020, sec. 3). Axes: [B].
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.losses.reduce import Reduce, masked_mean, zero_outside
from embodied_rl.types import TensorDict


def value_loss(
    values: Tensor,
    returns: Tensor,
    *,
    old_values: Tensor | None = None,
    clip_range: float | None = None,
    huber_delta: float | None = None,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> tuple[Tensor, TensorDict]:
    """Squared or Huber error to the returns, optionally clipped around the old values.

    Args:
        values: ``[B]`` predictions, differentiable.
        returns: ``[B]`` targets.
        old_values: ``[B]`` predictions at rollout time, needed with ``clip_range``.
        clip_range: how far a prediction may move before its gradient is cut; in value units.
        huber_delta: error beyond which the loss is linear; None for the squared error.
        mask: ``[B]`` bool, rows that count.
        reduce: how rows are averaged.

    Returns:
        (loss, stats); with clipping, stats is ``value_clip_fraction``: rows where the clipped term
        is the one that counts.

    Raises:
        ValueError: ``clip_range`` without ``old_values``, or an option not above 0.
    """
    if huber_delta is not None and huber_delta <= 0:
        raise ValueError(f"huber_delta is {huber_delta}; use a number above 0, or None")
    loss = _error_loss(zero_outside(values - returns, mask), huber_delta)
    if clip_range is None:
        return reduce(loss, mask), {}
    if old_values is None or clip_range <= 0:
        raise ValueError(f"clip_range is {clip_range}; it must be above 0 and needs old_values")
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    loss_clipped = _error_loss(zero_outside(clipped - returns, mask), huber_delta)
    fraction = masked_mean((loss_clipped > loss).detach().to(loss.dtype), mask)
    return reduce(torch.maximum(loss, loss_clipped), mask), {"value_clip_fraction": fraction}


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """1 - Var(R - V) / Var(R): 1 is a perfect critic, 0 or less no better than a constant.

    Args:
        values: any shape.
        returns: shape of ``values``.
        mask: bool, shape of ``values``.

    Returns:
        Scalar; NaN if the returns do not vary.
    """
    error = returns - values
    if mask is not None:
        error, returns = error[mask], returns[mask]
    return 1 - error.var(correction=0) / returns.var(correction=0)


def _error_loss(error: Tensor, huber_delta: float | None) -> Tensor:
    if huber_delta is None:
        return 0.5 * error.square()
    size = error.abs()
    inside = size.clamp(max=huber_delta)
    # inside * (|e| - inside / 2): e^2 / 2 up to delta, then delta * (|e| - delta / 2)
    return inside * (size - 0.5 * inside)
