"""Proximal policy optimisation with a critic (Schulman et al. 2017), for any policy with log_prob.

``L = L_clip - entropy_coef H + value_coef L_V + kl_coef KL(pi || pi_ref)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from embodied_rl.algorithms.policy_gradient import PolicyGradient, PolicyGradientConfig, Stats
from embodied_rl.losses.reduce import Reduce
from embodied_rl.losses.value import value_loss
from embodied_rl.policies.nn import ScaledCritic
from embodied_rl.types import Advantages, Batch, LogProbOutput, Rollout


class PPO(PolicyGradient):
    """Clipped surrogate and value regression in one backward pass."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PolicyGradientConfig):
        """Options of PPO beside the shared ones.

        Attributes:
            critic_learning_rate: Adam learning rate of parameters under ``critic``.
            value_coef: weight of the value loss.
            value_clip: clip range around the old values, 0: off.
            huber_delta: Huber instead of squared error beyond this residual, 0: off.
            critic_warmup: first updates that train only the critic.
        """

        critic_learning_rate: float = 1e-3
        value_coef: float = 0.5
        value_clip: float = 0.0
        huber_delta: float = 0.0
        critic_warmup: int = 0

    config: Config

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The critic learns at its own rate."""
        named = list(self.policy.named_parameters())
        critic = [value for name, value in named if name.split(".")[0] == "critic"]
        rest = [value for name, value in named if name.split(".")[0] != "critic"]
        groups = [{"params": rest, "lr": self.config.learning_rate}]
        if critic:
            groups.append({"params": critic, "lr": self.config.critic_learning_rate})
        return groups

    def gradient_steps(
        self,
        rollout: Rollout,
        advantages: Advantages,
        *,
        generator: torch.Generator | None,
        env_steps: int = 0,
    ) -> Iterator[Stats]:
        """See ``PolicyGradient.gradient_steps``; first updates the moments of the returns."""
        if self.scaled_critic is not None and advantages.returns is not None:
            self.scaled_critic.observe(advantages.returns[advantages.keep])
        return super().gradient_steps(rollout, advantages, generator=generator, env_steps=env_steps)

    @cached_property
    def scaled_critic(self) -> ScaledCritic | None:
        """The critic if it predicts standardised returns."""
        return next((m for m in self.policy.modules() if isinstance(m, ScaledCritic)), None)

    def extra_loss(self, batch: Batch, output: LogProbOutput, stats: Stats) -> Tensor | float:
        """The value term."""
        if output.values is None or batch.returns is None or self.config.value_coef == 0:
            return 0.0
        loss, value_stats = self._value_loss(output.values, batch)
        stats |= value_stats
        stats["value_loss"] = loss.detach()
        return self.config.value_coef * loss

    def _value_loss(self, values: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        """Value loss in units of the standard deviation of the returns, if that is known."""
        assert batch.returns is not None
        returns, old_values = batch.returns, batch.values
        if self.scaled_critic is not None:
            std = self.scaled_critic.std
            values, returns, old_values = values / std, returns / std, old_values / std
        return value_loss(
            values,
            returns,
            old_values=old_values,
            clip_range=self.config.value_clip or None,
            huber_delta=self.config.huber_delta or None,
        )

    def _loss(self, batch: Batch, reduce: Reduce) -> tuple[Tensor, Stats]:
        loss, stats = super()._loss(batch, reduce)
        # ``critic_warmup and``: a compiled loss is made anew whenever a number changes that it read
        warming_up = self.config.critic_warmup and self.num_updates < self.config.critic_warmup
        if warming_up and batch.returns is not None:
            loss, _ = self._value_loss(self.policy.value(batch.obs), batch)
        return loss, stats
