"""Group-relative policy optimisation (Shao et al. 2024): the clipped surrogate without a critic.

The advantage comes from ``advantages.group_relative`` (or ``rloo``); the KL penalty to the start
weights is in the loss.
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
