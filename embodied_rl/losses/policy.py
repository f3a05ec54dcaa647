"""Policy-gradient losses on likelihood ratios.

With the log-ratio d = log pi(u) - log pi_old(u) of a unit and r = exp(ratio_scale * d)

    L = -min(r * A, clip(r, 1 - low, 1 + high) * A)        (PPO, Schulman et al. 2017, eq. 7)
    L = min(L, -c * A) where A < 0                         (dual clip c > 1, Ye et al. 2020)

With ``ratio="sequence"`` every unit of a row has the geometric mean of the row's ratios,

    r = exp(1/|o| * sum_{u in o} d_u)                      (GSPO, Zheng et al. 2025, eq. 7)

``ratio_scale`` does the same where a policy sums its units itself: it widens the clip range by that
factor in d, and scales the gradient at r = 1. Clip ranges given as ``[U]`` differ by unit (DPPO,
Ren et al. 2024, clips early denoise steps less). The exponent is limited to +-``max_log_ratio``,
beyond which the gradient is 0: ln 1000 in StableReinforce (Zhang et al. 2025, R1-Reward), else what
only keeps the exponential finite. Axes: [B, U].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from embodied_rl.losses.reduce import Reduce, masked_mean, zero_outside
from embodied_rl.types import TensorDict

MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8: beyond it a ratio only overflows; the gradient there is 0."""


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    clip_ratio_low: float | Tensor = 0.2,
    clip_ratio_high: float | Tensor = 0.2,
    dual_clip: float | None = None,
    ratio: Literal["unit", "sequence"] = "unit",
    ratio_scale: float = 1.0,
    max_log_ratio: float = MAX_LOG_RATIO,
    reduce: Reduce = masked_mean,
) -> tuple[Tensor, TensorDict]:
    """The clipped surrogate loss.

    Args:
        log_probs: ``[B, U]`` under the current policy, differentiable.
        old_log_probs: ``[B, U]`` under the policy that sampled.
        advantages: ``[B]``, the same for every unit of a row, or ``[B, U]``.
        mask: ``[B, U]`` bool, units that count.
        clip_ratio_low: the ratio is clipped at 1 - low; a number or ``[U]``.
        clip_ratio_high: the ratio is clipped at 1 + high; a number or ``[U]``.
        dual_clip: bound c > 1 on the ratio of a unit with negative advantage; None for no bound.
        ratio: each unit's own, or the geometric mean over the units of its row.
        ratio_scale: factor on the log-ratio before the exponential.
        max_log_ratio: bound on the size of the log-ratio.
        reduce: how units are averaged.

    Returns:
        (loss, stats). Stats, means over units: ``clip_fraction`` (the clipped term is the one that
        counts, so the gradient is 0), ``ratio_mean``, ``ratio_max``, ``approx_kl`` (k3 estimate of
        KL(pi_old || pi) on the log-ratios of units without ``ratio_scale``), and
        ``dual_clip_fraction``.

    Raises:
        ValueError: ``dual_clip`` is not above 1.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}; use a number above 1, e.g. 3.0")
    advantages = _per_unit(advantages, log_probs)
    unit_log_ratio = _log_ratio(log_probs, old_log_probs, mask)
    log_ratio = unit_log_ratio if ratio == "unit" else _row_mean(unit_log_ratio, mask)
    log_ratio = log_ratio.clamp(-max_log_ratio, max_log_ratio)
    ratios = torch.exp(log_ratio if ratio_scale == 1 else ratio_scale * log_ratio)
    negative = -advantages
    loss_free = negative * ratios
    loss_clipped = negative * _clip(ratios, clip_ratio_low, clip_ratio_high)
    loss = torch.maximum(loss_free, loss_clipped)
    with torch.no_grad():
        stats = ratio_stats(log_ratio, mask=mask, ratio_scale=ratio_scale)
        if ratio == "sequence":
            stats["approx_kl"] = ratio_stats(unit_log_ratio, mask=mask)["approx_kl"]
        stats["clip_fraction"] = masked_mean((loss_clipped > loss_free).to(loss.dtype), mask)
    if dual_clip is not None:
        bound = -dual_clip * advantages
        bounded = (advantages < 0) & (loss > bound)
        stats["dual_clip_fraction"] = masked_mean(bounded.to(loss.dtype), mask)
        loss = torch.where(bounded, bound, loss)
    return reduce(loss, mask), stats


def policy_gradient(
    log_probs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> tuple[Tensor, TensorDict]:
    """-A * log pi(u) (REINFORCE, Williams 1992): right for samples of the current policy only.

    Args:
        log_probs: ``[B, U]``, differentiable.
        advantages: ``[B]`` or ``[B, U]``.
        mask: ``[B, U]`` bool, units that count.
        reduce: how units are averaged.

    Returns:
        (loss, no stats).
    """
    advantages = _per_unit(advantages, log_probs)
    return reduce(-advantages * zero_outside(log_probs, mask), mask), {}


@torch.no_grad()
def ratio_stats(
    log_ratio: Tensor, *, mask: Tensor | None = None, ratio_scale: float = 1.0
) -> TensorDict:
    """``ratio_mean``, ``ratio_max`` and ``approx_kl`` of log-ratios.

    Also the way to report the exact joint ratio (``log_ratio`` [B, 1]) where the loss works on
    scaled or partial log-likelihoods.

    Args:
        log_ratio: ``[B, U]`` log pi - log pi_old on samples of pi_old.
        mask: ``[B, U]`` bool, units that count.
        ratio_scale: factor on the log-ratio of the two ratio statistics, not of the KL.

    Returns:
        Scalar tensors.
    """
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = torch.exp(ratio_scale * log_ratio)
    counted = ratio if mask is None else torch.where(mask, ratio, 0.0)
    # k3 with r = pi / pi_old: E_old[(r - 1) - log r] = KL(pi_old || pi), never negative
    k3 = torch.expm1(log_ratio) - log_ratio
    return {
        "ratio_mean": masked_mean(ratio, mask),
        "ratio_max": counted.max(),
        "approx_kl": masked_mean(k3, mask),
    }


def _per_unit(advantages: Tensor, log_probs: Tensor) -> Tensor:
    if advantages.ndim == 1:
        advantages = advantages.unsqueeze(-1)
    rows, units = advantages.shape
    assert rows == log_probs.shape[0] and units in (1, log_probs.shape[1]), (
        f"advantages {tuple(advantages.shape)} for log_probs {tuple(log_probs.shape)}"
    )
    return advantages


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor | None) -> Tensor:
    assert log_probs.shape == old_log_probs.shape, (log_probs.shape, old_log_probs.shape)
    return zero_outside(log_probs - old_log_probs, mask)


def _row_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the units of each row, for each of them; ``x`` is 0 outside the mask."""
    if mask is None:
        return x.mean(-1, keepdim=True).expand_as(x)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    return (x.sum(-1, keepdim=True) / count).expand_as(x)


def _clip(ratio: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        floor = torch.as_tensor(1 - low, dtype=ratio.dtype, device=ratio.device)
        ceiling = torch.as_tensor(1 + high, dtype=ratio.dtype, device=ratio.device)
        return ratio.clamp(floor, ceiling)
    return ratio.clamp(1 - low, 1 + high)
