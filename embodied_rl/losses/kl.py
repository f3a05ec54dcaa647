"""KL divergence to a reference policy, estimated per unit from samples, or in closed form.

With d = log pi(u) - log pi_ref(u) on samples u of pi (Schulman 2020, "Approximating KL
Divergence"), estimates of KL(pi || pi_ref):

    k1 = d                    unbiased, may be negative; as a loss its expected gradient is 0
    k2 = d^2 / 2              biased, small variance; as a loss its expected gradient is that of
                              KL(pi || pi_ref)
    k3 = exp(-d) - 1 + d      unbiased, never negative; as a loss its expected gradient is that of
                              KL(pi_ref || pi)

In the reward the estimate is a number and needs to be unbiased (k1, k3); in the loss its gradient
counts (k2, k3). Axes: [B, U] units of a minibatch, [T, N, U] of a rollout.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from embodied_rl.losses.reduce import Reduce, masked_mean, zero_outside
from embodied_rl.types import TensorDict

KLEstimator = Literal["k1", "k2", "k3"]
MAX_LOG_RATIO = 20.0


def kl_estimate(
    log_probs: Tensor, ref_log_probs: Tensor, *, estimator: KLEstimator = "k3"
) -> Tensor:
    """Per-unit estimate of KL(pi || pi_ref) on samples of pi.

    Args:
        log_probs: ``[..., U]`` under pi.
        ref_log_probs: ``[..., U]`` under pi_ref.
        estimator: see the module.

    Returns:
        ``[..., U]`` in nats. k3 limits d to [-20, 20], lest the exponential overflow.

    Raises:
        ValueError: an unknown estimator.
    """
    log_ratio = log_probs - ref_log_probs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"KL estimator {estimator!r}; use one of {', '.join(get_args(KLEstimator))}")


def kl_penalty(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    *,
    estimator: KLEstimator = "k3",
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> tuple[Tensor, TensorDict]:
    """KL to the reference as a loss.

    Args:
        log_probs: ``[B, U]``, differentiable.
        ref_log_probs: ``[B, U]`` under the reference.
        estimator: ``k2`` or ``k3``.
        mask: ``[B, U]`` bool, units that count.
        reduce: how units are averaged.

    Returns:
        (loss, stats); stats is ``kl_ref``, the mean over units.

    Raises:
        ValueError: ``k1``, which as a loss does not pull towards the reference.
    """
    if estimator == "k1":
        raise ValueError("k1 as a loss has zero expected gradient; use k2 or k3, or kl_in_reward")
    kl = kl_estimate(
        zero_outside(log_probs, mask), zero_outside(ref_log_probs, mask), estimator=estimator
    )
    return reduce(kl, mask), {"kl_ref": masked_mean(kl.detach(), mask)}


@torch.no_grad()
def kl_in_reward(
    rewards: Tensor,
    log_probs: Tensor,
    ref_log_probs: Tensor,
    *,
    kl_coef: float,
    estimator: KLEstimator = "k1",
    unit_mask: Tensor | None = None,
) -> Tensor:
    """r_t - kl_coef * sum_u k(u), the KL penalty of RLHF (Ziegler et al. 2019, eq. 2).

    Args:
        rewards: ``[T, N]``.
        log_probs: ``[T, N, U]`` under the policy that sampled.
        ref_log_probs: ``[T, N, U]`` under the reference.
        kl_coef: reward per nat.
        estimator: see the module.
        unit_mask: ``[T, N, U]`` bool, units that were executed.

    Returns:
        ``[T, N]`` rewards.
    """
    kl = kl_estimate(log_probs, ref_log_probs, estimator=estimator)
    return rewards - kl_coef * zero_outside(kl, unit_mask).sum(-1)


def gaussian_kl(mean: Tensor, ref_mean: Tensor, *, std: Tensor | float) -> Tensor:
    """(mu - mu_ref)^2 / (2 std^2): KL of two Gaussians of equal std (Flow-GRPO, Liu et al. 2025).

    Args:
        mean: ``[...]``, differentiable.
        ref_mean: ``[...]``.
        std: positive, broadcasts to ``mean``.

    Returns:
        ``[...]`` in nats per dimension; sum over the dimensions of a unit for its KL.
    """
    return 0.5 * ((mean - ref_mean) / std).square()
