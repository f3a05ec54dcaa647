r"""Categorical policies over discrete actions, for vectors and for images.

``log p(a|o) = log_softmax(W f(o))_a`` and ``entropy = -\sum_a p_a log p_a``. Sampling inverts the
cumulative distribution: the action is the number of entries of ``cumsum(p)`` that are at most
``u ~ U[0, 1)``, one random number per row.

Axes: ``B`` rows, ``A`` actions, ``F`` features; the ratio unit is the action, U = 1.
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
    draw_uniform,
    mlp,
    orthogonal_,
    require_choice,
)
from embodied_rl.policies.vision import (
    BFloat16,
    Trunk,
    channels_last,
    image_names,
    image_trunk,
    scale_image,
)
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict


class CategoricalPolicy(nn.Module):
    """What both categorical policies share; a subclass builds ``trunk`` and ``critic``.

    Args:
        spec: environment description.
        name: registered name, for messages.

    Raises:
        ValueError: continuous actions, or chunks of more than one action.
    """

    trunk: nn.Module
    policy_head: nn.Linear
    critic: nn.Module | None
    critic_kind: Literal["separate", "trunk", "none"]
    vector_input: VectorInput

    def __init__(self, spec: PolicySpec, *, name: str) -> None:
        super().__init__()
        if spec.num_actions == 0:
            raise ValueError(
                f"{name} needs discrete actions, this environment has {spec.action_dim} continuous "
                "ones: use gaussian_mlp, flow_mlp or flow_transformer"
            )
        if spec.chunk_length != 1:
            raise ValueError(
                f"{name} chooses one action at a time: set env.chunk_length to 1, it is "
                f"{spec.chunk_length}"
            )
        self.spec = spec

    def inputs(self, obs: TensorDict) -> Tensor:
        """What trunk and separate critic read, [B, ...] float32."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Draw actions [B] int64; a deterministic sample is the mode and has no likelihood.

        ``values`` are returned where they cost one head (``critic="trunk"``), else left to
        ``value``.
        """
        hidden = self.trunk(self.inputs(obs))
        logits = self.policy_head(hidden)
        values = self._critic_head(hidden) if self.critic_kind == "trunk" else None
        if deterministic:
            return PolicyOutput(actions=logits.argmax(1), values=values)
        log_p = torch.log_softmax(logits, 1)
        uniform = draw_uniform((len(logits), 1), like=logits, generator=generator)
        # right=True counts entries <= u, so that an action of probability 0 is never drawn; the
        # clamp catches a cumulative sum that rounds to less than u in its last entry.
        actions = torch.searchsorted(log_p.exp().cumsum(1), uniform, right=True)
        actions.clamp_(max=self.spec.num_actions - 1)
        return PolicyOutput(
            actions=actions.squeeze(1), log_probs=log_p.gather(1, actions), values=values
        )

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Score stored actions [B]."""
        inputs = self.inputs(obs)
        hidden = self.trunk(inputs)
        log_p = torch.log_softmax(self.policy_head(hidden), 1)
        return LogProbOutput(
            log_probs=log_p.gather(1, actions.view(-1, 1)),
            entropy=-(log_p.exp() * log_p).sum(1, keepdim=True),
            values=self._critic_head(inputs if self.critic_kind == "separate" else hidden),
        )

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values; zeros without a critic."""
        inputs = self.inputs(obs)
        return self._critic_head(self.trunk(inputs) if self.critic_kind == "trunk" else inputs)

    def set_progress(self, progress: float) -> None:
        """Nothing is annealed: exploration is learned."""

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, 1]`` from executed actions [B, 1]."""
        return executed

    def imitation_loss(
        self, obs: TensorDict, actions: Tensor, mask: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Cross entropy of expert actions in nats.

        Args:
            obs: [B, ...] observations.
            actions: [B] or [B, 1] int64.
            mask: [B, 1] bool, False past the end of the episode.
            generator: unused, likelihoods need no noise.
        """
        log_p = torch.log_softmax(self.policy_head(self.trunk(self.inputs(obs))), 1)
        return masked_mean(-log_p.gather(1, actions.view(-1, 1)), mask.view(-1, 1))

    def _critic_head(self, features: Tensor) -> Tensor:
        if self.critic is None:
            return features.new_zeros(len(features))
        return self.critic(features).squeeze(-1)


class CategoricalMLP(CategoricalPolicy):
    """MLP policy for vector observations and discrete actions.

    Args:
        spec: environment description.
        hidden_dims: widths of the hidden layers.
        activation: ``tanh``, ``relu``, ``silu`` or ``gelu``.
        critic: ``separate`` MLP of the same widths, a head on the actor's ``trunk``, or ``none``.
            Its parameters are those of the attribute ``critic``.

    Raises:
        ValueError: continuous actions, chunks, no vector observation, unknown option value.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        hidden_dims: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
        critic: Literal["separate", "trunk", "none"] = "separate",
    ) -> None:
        super().__init__(spec, name="categorical_mlp")
        require_choice("policy.critic", critic, ("separate", "trunk", "none"))
        act = activation_class(activation)
        self.critic_kind = critic
        self.vector_input = VectorInput(spec)
        sizes = (self.vector_input.dim, *hidden_dims)
        self.trunk = mlp(sizes, activation=act, output_gain=math.sqrt(2), activate_last=True)
        self.policy_head = orthogonal_(nn.Linear(hidden_dims[-1], spec.num_actions), 0.01)
        self.critic = None
        if critic == "separate":
            self.critic = mlp((*sizes, 1), activation=act, output_gain=1.0)
        elif critic == "trunk":
            self.critic = orthogonal_(nn.Linear(hidden_dims[-1], 1), 1.0)

    def inputs(self, obs: TensorDict) -> Tensor:
        """Standardised vector observations [B, F]."""
        return self.vector_input(obs)


class CategoricalCNN(CategoricalPolicy):
    """Convolutional policy for one uint8 image [C, H, W] and discrete actions.

    Args:
        spec: environment description.
        trunk: ``nature``, ``small`` or ``impala`` encoder.
        feature_dim: width of its output (512, 256 and 256 in the papers).
        precision: of the encoder's arithmetic; weights, heads and losses stay float32.
            ``bfloat16`` is two to four times as fast on CPUs that have it (``avx512_bf16`` in
            /proc/cpuinfo) and slower on others. Ratios before the first update are then 1 within
            its rounding.
        critic: a head on the shared ``trunk``, a ``separate`` encoder with its own head, or
            ``none``. Its parameters are those of the attribute ``critic``.

    Raises:
        ValueError: continuous actions, chunks, not exactly one image, unknown option value.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        trunk: Trunk = "nature",
        feature_dim: int = 512,
        critic: Literal["separate", "trunk", "none"] = "trunk",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(spec, name="categorical_cnn")
        require_choice("policy.critic", critic, ("separate", "trunk", "none"))
        require_choice("policy.precision", precision, ("float32", "bfloat16"))
        names = image_names(spec)
        if len(names) != 1:
            raise ValueError(
                f"categorical_cnn needs one uint8 image [C, H, W], the environment has "
                f"{dict(spec.obs_shapes)}: use categorical_mlp for vectors"
            )
        self.image_name, self.critic_kind = names[0], critic
        channels, height, width = spec.obs_shapes[self.image_name]
        shape = (channels, height, width)
        self.vector_input = VectorInput(spec, required=False)

        def encoder() -> nn.Module:
            layers = image_trunk(trunk, shape, feature_dim=feature_dim)
            return layers if precision == "float32" else BFloat16(layers)

        self.trunk = encoder()
        self.policy_head = orthogonal_(nn.Linear(feature_dim, spec.num_actions), 0.01)
        self.critic = None
        if critic == "separate":
            self.critic = nn.Sequential(encoder(), orthogonal_(nn.Linear(feature_dim, 1), 1.0))
        elif critic == "trunk":
            self.critic = orthogonal_(nn.Linear(feature_dim, 1), 1.0)

    def inputs(self, obs: TensorDict) -> Tensor:
        """Scaled image [B, C, H, W]."""
        return scale_image(channels_last(obs[self.image_name]))
