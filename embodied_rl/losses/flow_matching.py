"""Conditional flow matching (Lipman et al. 2023, eq. 23) with time 1 at the noise.

On the straight path x_t = (1 - t) * action + t * noise the velocity is dx/dt = noise - action:

    L = mean over D of (v(x_t, t) - (noise - action))^2, averaged over the actions that count

Axes: [B, H, D].
"""

from __future__ import annotations

from torch import Tensor

from embodied_rl.losses.reduce import Reduce, masked_mean, zero_outside
from embodied_rl.types import TensorDict


def flow_matching_loss(
    velocity: Tensor,
    noise: Tensor,
    actions: Tensor,
    *,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> tuple[Tensor, TensorDict]:
    """Squared error of the predicted velocity.

    Args:
        velocity: ``[B, H, D]`` prediction at (x_t, t), differentiable.
        noise: ``[B, H, D]`` standard normal, x at t = 1.
        actions: ``[B, H, D]`` data, x at t = 0.
        mask: ``[B, H]`` bool, False for actions that pad the end of an episode.
        reduce: how actions are averaged.

    Returns:
        (loss, no stats).
    """
    assert velocity.shape == noise.shape == actions.shape, (velocity.shape, noise.shape)
    error = velocity - (noise - actions)
    error = zero_outside(error, None if mask is None else mask.unsqueeze(-1))
    return reduce(error.square().mean(-1), mask), {}
