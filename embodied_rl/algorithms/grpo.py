"""Group-relative policy optimisation (Shao et al. 2024): the clipped surrogate without a critic.

The advantage comes from ``advantages.group_relative`` (or ``rloo``); the KL penalty to the start
weights is in the loss. Named variants are options of the update and the advantage (whole commands
in docs/algorithms.md):

    GRPO              loss_mean="chunk"                                       Shao et al. 2024
    Dr. GRPO          loss_mean="constant", constant_length; scale="none"     Liu et al. 2025
    DAPO              loss_mean="token", clip_ratio_high=0.28,                Yu et al. 2025
                      skip_unfinished; drop_uninformative, max_refills
    GSPO              ratio="sequence", loss_mean="chunk"                     Zheng et al. 2025
    StableReinforce   max_log_ratio=ln 1000; reinforce_pp, sigma_filter=3     Zhang et al. 2025
    CAD-RL            clip to [0.6, 1.8], numeric_weight=2, skip_unfinished   system 22
    RLOO              kl_in="reward", kl_estimator="k1"; rloo                 Ahmadian et al. 2024
    UniGRPO           the policy masked_diffusion, kl_coef=0.01               Yang et al. 2025
"""

from __future__ import annotations

from dataclasses import dataclass

from embodied_rl.algorithms.policy_gradient import PolicyGradient, PolicyGradientConfig


class GRPO(PolicyGradient):
    """The shared update with GRPO's defaults."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PolicyGradientConfig):
        """Options of GRPO; all of them are the shared ones."""

    config: Config
