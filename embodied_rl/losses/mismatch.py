"""Correction for samples that came from another arithmetic than the one that is differentiated.

An inference engine samples tokens u from pi_backend, with the weights of the policy pi_old and its
own kernels and precision. Truncated importance sampling (Ionides 2008; for this mismatch Yao et al.
2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training") weighs the loss of
each token by

    w_u = min(pi_old(u) / pi_backend(u), clip)

Axes: [B, U] units of a minibatch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embodied_rl.losses.kl import kl_estimate
from embodied_rl.losses.policy import MAX_LOG_RATIO
from embodied_rl.losses.reduce import masked_mean, zero_outside
from embodied_rl.types import TensorDict


@torch.no_grad()
def mismatch_weights(
    old_log_probs: Tensor,
    backend_log_probs: Tensor,
    *,
    clip: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, TensorDict]:
    """Weights of tokens, never negative: a factor on their advantages.

    Args:
        old_log_probs: ``[B, U]`` of the policy that sampled, in the arithmetic of training.
        backend_log_probs: ``[B, U]`` of the engine that drew the tokens.
        clip: largest weight, at least 1; 0 gives weights of 1.
        mask: ``[B, U]`` bool, units that count.

    Returns:
        (weights [B, U], stats). Stats, means over units: ``mismatch_kl`` (k3 estimate of
        KL(pi_backend || pi_old)), ``mismatch_abs`` (|log pi_old - log pi_backend|) and
        ``mismatch_truncated`` (the weight is ``clip``).

    Raises:
        ValueError: ``clip`` is between 0 and 1, or negative.
    """
    if clip and clip < 1:
        raise ValueError(f"mismatch_clip is {clip:g}; use 1 or more, e.g. 2, or 0 for no weights")
    log_ratio = zero_outside(old_log_probs - backend_log_probs, mask)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    stats = {
        "mismatch_kl": masked_mean(kl_estimate(-log_ratio, torch.zeros_like(log_ratio)), mask),
        "mismatch_abs": masked_mean(log_ratio.abs(), mask),
    }
    if not clip:
        return torch.ones_like(ratio), stats
    stats["mismatch_truncated"] = masked_mean((ratio > clip).to(ratio.dtype), mask)
    return ratio.clamp(max=clip), stats
