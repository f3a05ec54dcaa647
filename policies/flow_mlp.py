"""A small flow-matching policy for vector observations: an MLP velocity field over action chunks.

``v(x, t, o) = W_out f(W_x x + W_o o + W_t e(t))`` with x the flattened chunk [H*D], o the
standardised observation and e(t) sinusoidal features. The observation term is computed once per
decision and shared by all denoise steps.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from embodied_rl import flow
from embodied_rl.flow import FlowConfig
from embodied_rl.policies.flow_policy import FlowPolicy
from embodied_rl.policies.nn import (
    VectorInput,
    activation_class,
    mlp,
    require_choice,
    time_embedding,
)
from embodied_rl.types import PolicySpec, TensorDict

DEFAULT_FLOW = FlowConfig()

Encoding = tuple[Tensor, Tensor]
"""(observation term of the first layer [B, 1, W], standardised observation [B, F])."""


class FlowMLP(FlowPolicy[Encoding]):
    """MLP velocity field with an optional learned noise net and a critic.

    Args:
        spec: environment description; needs vector observations and continuous actions.
        flow: sampler and likelihood options.
        hidden_dims: widths of the velocity MLP.
        time_dim: number of sinusoidal time features.
        horizon: predicted actions per chunk, at least ``spec.chunk_length``; 0 means equal to it.
        critic: ``separate`` MLP on the observation, ``trunk`` head on the observation term of the
            velocity net, or ``none``.
        critic_hidden_dims: widths of the critic MLP.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        flow: FlowConfig = DEFAULT_FLOW,
        hidden_dims: tuple[int, ...] = (256, 256, 256),
        time_dim: int = 32,
        horizon: int = 0,
        critic: Literal["separate", "trunk", "none"] = "separate",
        critic_hidden_dims: tuple[int, ...] = (256, 256),
        activation: str = "silu",
    ) -> None:
        require_choice("policy.critic", critic, ("separate", "trunk", "none"))
        super().__init__(spec, flow=flow, horizon=horizon, values_from_encoding=critic == "trunk")
        width, chunk = hidden_dims[0], self.horizon * spec.action_dim
        act = activation_class(activation)
        self.vector_input = VectorInput(spec)
        self.obs_layer = nn.Linear(self.vector_input.dim, width)
        self.chunk_layer = nn.Linear(chunk, width, bias=False)
        self.time_layer = nn.Linear(time_dim, width, bias=False)
        self.time_dim = time_dim
        self.trunk = nn.Sequential(act(), mlp(hidden_dims, activation=act), act())
        self.velocity_head = nn.Linear(hidden_dims[-1], chunk)
        self.std_head = nn.Linear(hidden_dims[-1], chunk) if flow.sampler == "noise" else None
        if self.std_head is not None:
            nn.init.zeros_(self.std_head.weight)
            nn.init.zeros_(self.std_head.bias)
        self.critic_kind = critic
        self.critic: nn.Module | None = None
        if critic == "separate":
            sizes = (self.vector_input.dim, *critic_hidden_dims, 1)
            self.critic = mlp(sizes, activation=nn.Tanh, output_gain=1.0)
        elif critic == "trunk":
            self.critic = mlp((width, *critic_hidden_dims, 1), activation=act, output_gain=1.0)

    def encode(self, obs: TensorDict) -> Encoding:
        """The observation's share of the first layer, and the standardised observation."""
        state = self.vector_input(obs)
        return self.obs_layer(state).unsqueeze(1), state

    def denoise(self, encoding: Encoding) -> flow.Denoise:
        """Velocity [B, S, H, D] and, with the noise net, std of the same shape."""
        term, _ = encoding

        def field(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            shape = x.shape
            hidden = self.chunk_layer(x.flatten(2)) + term
            hidden = self.trunk(hidden + self.time_layer(time_embedding(t, self.time_dim)))
            velocity = self.velocity_head(hidden).view(shape)
            if self.std_head is None:
                return velocity, None
            raw = self.std_head(hidden).view(shape)
            std = flow.bounded_std(raw, std_min=self.flow.std_min, std_max=self.flow.std_max)
            return velocity, std

        return field

    def predict_value(self, encoding: Encoding) -> Tensor:
        """``[B]`` values; zeros without a critic."""
        term, state = encoding
        if self.critic is None:
            return state.new_zeros(len(state))
        features = state if self.critic_kind == "separate" else term.squeeze(1)
        return self.critic(features).squeeze(-1)
