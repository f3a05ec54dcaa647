r"""Gaussian policy over action chunks: MLP mean, state-independent standard deviation.

``a ~ N(m(o), diag(exp(2 log_std)))`` with a learnable ``log_std`` [H, D]. Per number

    log p = -z^2 / 2 - log_std - log(2 pi) / 2,   z = (a - m) / exp(log_std)
    entropy = log_std + log(2 pi e) / 2

both summed over the numbers of a ratio unit. Layers are orthogonal with gain sqrt(2), 0.01 for the
mean and 1 for the value (Andrychowicz et al. 2021, "What matters in on-policy RL").

Axes: ``B`` rows, ``H`` actions of a chunk, ``D`` action dimension, ``U`` ratio units.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from embodied_rl.losses.reduce import masked_mean
from embodied_rl.policies.nn import (
    VectorInput,
    activation_class,
    draw_normal,
    mlp,
    orthogonal_,
    require_choice,
    require_continuous,
)
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class GaussianMLP(nn.Module):
    """MLP policy for vector observations and continuous actions.

    Args:
        spec: environment description.
        hidden_dims: widths of the actor's hidden layers.
        activation: ``tanh``, ``relu``, ``silu`` or ``gelu``.
        log_std_init: initial log standard deviation of every number.
        units: one ratio per number (``token``), per action of the chunk (``action``) or per
            ``chunk``.
        critic: ``separate`` MLP, a head on the actor's ``trunk``, or ``none``. Its parameters are
            those of the attribute ``critic``.
        critic_hidden_dims: widths of the separate critic; empty means ``hidden_dims``.

    Raises:
        ValueError: discrete actions, no vector observation, or an unknown option value.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        hidden_dims: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
        log_std_init: float = 0.0,
        units: Literal["token", "action", "chunk"] = "chunk",
        critic: Literal["separate", "trunk", "none"] = "separate",
        critic_hidden_dims: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        require_continuous(spec, "gaussian_mlp")
        require_choice("policy.units", units, ("token", "action", "chunk"))
        require_choice("policy.critic", critic, ("separate", "trunk", "none"))
        self.spec, self.units, self.critic_kind = spec, units, critic
        self.chunk_shape = (spec.chunk_length, spec.action_dim)
        self.numbers = spec.chunk_length * spec.action_dim
        act = activation_class(activation)
        self.vector_input = VectorInput(spec)
        sizes = (self.vector_input.dim, *hidden_dims)
        self.trunk = mlp(sizes, activation=act, output_gain=math.sqrt(2), activate_last=True)
        self.mean_head = orthogonal_(nn.Linear(hidden_dims[-1], self.numbers), 0.01)
        self.log_std = nn.Parameter(torch.full((self.numbers,), float(log_std_init)))
        self.minus_half: Tensor
        self.log_norm: Tensor
        # As tensors, because a Python number costs an operation twice its time at 8 rows.
        self.register_buffer("minus_half", torch.full((self.numbers,), -0.5), persistent=False)
        log_norm = torch.tensor(-self.numbers * HALF_LOG_2PI)
        self.register_buffer("log_norm", log_norm, persistent=False)
        self.critic: nn.Module | None = None
        if critic == "separate":
            sizes = (self.vector_input.dim, *(critic_hidden_dims or hidden_dims), 1)
            self.critic = mlp(sizes, activation=act, output_gain=1.0)
        elif critic == "trunk":
            self.critic = orthogonal_(nn.Linear(hidden_dims[-1], 1), 1.0)

    @torch.no_grad()
    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Draw chunks [B, H, D]; a deterministic sample is the mean and has no likelihood.

        ``values`` are returned where they cost one head (``critic="trunk"``), else left to
        ``value``.
        """
        hidden = self.trunk(self.vector_input(obs))
        mean = self.mean_head(hidden)
        values = self._critic_head(hidden) if self.critic_kind == "trunk" else None
        if deterministic:
            return PolicyOutput(actions=mean.view(-1, *self.chunk_shape), values=values)
        noise = draw_normal(mean.shape, like=mean, generator=generator)
        log_std = self.log_std
        actions = torch.addcmul(mean, noise, log_std.exp())
        if self.units == "chunk":
            constant = torch.sub(self.log_norm, log_std.sum())
            log_probs = torch.addmv(constant, noise.square(), self.minus_half).unsqueeze(1)
        else:
            log_probs = self._reduce(noise.square() * -0.5 - (log_std + HALF_LOG_2PI))
        return PolicyOutput(
            actions=actions.view(-1, *self.chunk_shape), log_probs=log_probs, values=values
        )

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Score stored chunks [B, H, D] (or [B, D] for H = 1)."""
        state = self.vector_input(obs)
        hidden = self.trunk(state)
        log_std = self.log_std
        z = (actions.flatten(1) - self.mean_head(hidden)) * torch.exp(-log_std)
        log_probs = self._reduce(z.square() * -0.5 - (log_std + HALF_LOG_2PI))
        entropy = self._reduce((log_std + (HALF_LOG_2PI + 0.5)).unsqueeze(0))
        return LogProbOutput(
            log_probs=log_probs,
            entropy=entropy.expand_as(log_probs),
            values=self._critic_head(state if self.critic_kind == "separate" else hidden),
        )

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values; zeros without a critic."""
        state = self.vector_input(obs)
        return self._critic_head(self.trunk(state) if self.critic_kind == "trunk" else state)

    def set_progress(self, progress: float) -> None:
        """Nothing is annealed: exploration is learned."""

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, U]`` ratio units that took effect, from executed actions [B, H]."""
        if self.units == "chunk":
            return executed.any(1, keepdim=True)
        if self.units == "action":
            return executed
        return executed.repeat_interleave(self.spec.action_dim, 1)

    def imitation_loss(
        self, obs: TensorDict, actions: Tensor, mask: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Negative log-likelihood of expert chunks in nats per number.

        Args:
            obs: [B, ...] observations.
            actions: [B, H, D] expert chunks.
            mask: [B, H] bool, False past the end of the episode.
            generator: unused, likelihoods need no noise.
        """
        mean = self.mean_head(self.trunk(self.vector_input(obs)))
        z = (actions.flatten(1) - mean) * torch.exp(-self.log_std)
        nll = (z.square() * 0.5 + (self.log_std + HALF_LOG_2PI)).view(-1, *self.chunk_shape)
        return masked_mean(nll.mean(-1), mask)

    def _reduce(self, terms: Tensor) -> Tensor:
        """Terms [B, H*D] summed over the numbers of each ratio unit, [B, U]."""
        if self.units == "token":
            return terms
        if self.units == "chunk":
            return terms.sum(-1, keepdim=True)
        return terms.view(-1, *self.chunk_shape).sum(-1)

    def _critic_head(self, features: Tensor) -> Tensor:
        if self.critic is None:
            return features.new_zeros(len(features))
        return self.critic(features).squeeze(-1)
