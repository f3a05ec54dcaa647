"""Entropy bonus: the negative mean entropy, L = -mean(H(u)), to be minimised. Axes: [B, U].

Source: Williams & Peng 1991; with a coefficient, the entropy term of PPO (Schulman et al. 2017,
eq. 9).
"""

from __future__ import annotations

from torch import Tensor

from embodied_rl.losses.reduce import Reduce, masked_mean
from embodied_rl.types import TensorDict


def entropy_bonus(
    entropy: Tensor, *, mask: Tensor | None = None, reduce: Reduce = masked_mean
) -> tuple[Tensor, TensorDict]:
    """-mean entropy.

    Args:
        entropy: ``[B, U]`` nats per unit, differentiable.
        mask: ``[B, U]`` bool, units that count.
        reduce: how units are averaged.

    Returns:
        (loss, stats); stats is ``entropy``, the mean over units.
    """
    return -reduce(entropy, mask), {"entropy": masked_mean(entropy.detach(), mask)}
