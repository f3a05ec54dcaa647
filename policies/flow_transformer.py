"""A flow-matching transformer: action tokens that read observation and instruction tokens.

Context tokens (one for all vector observations, one for the instruction embedding, a grid for each
image) pass once per decision through pre-norm transformer blocks. The H noisy actions of a chunk
are the action tokens. In each of their blocks they attend to themselves and to the context; time
enters by adaLN-Zero (Peebles and Xie 2023, DiT, section 3.2)

    x <- x + g1(t) * attention(norm(x) (1 + a1(t)) + b1(t), context)
    x <- x + g2(t) * mlp(norm(x) (1 + a2(t)) + b2(t))

with g, a, b linear in an embedding of t, zero at the start. Keys and values of the context do not
depend on t, so denoise steps share them (pi_0's prefix cache); K stored steps are re-scored in one
pass over the axis S.

Axes: ``B`` rows, ``S`` denoise steps, ``H`` predicted actions, ``D`` action dimension, ``P``
context tokens, ``W`` token width, ``h`` heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from embodied_rl import flow
from embodied_rl.flow import FlowConfig
from embodied_rl.policies.flow_policy import FlowPolicy
from embodied_rl.policies.nn import VectorInput, mlp, require_choice, time_embedding
from embodied_rl.policies.vision import PatchTokens, image_names
from embodied_rl.types import PolicySpec, TensorDict

DEFAULT_FLOW = FlowConfig()
INSTRUCTION = "instruction"
Critic = Literal["separate", "obs_tokens", "action_expert", "none"]
CRITICS = ("separate", "obs_tokens", "action_expert", "none")


@dataclass(frozen=True)
class Encoding:
    """What the denoise steps of a decision share.

    Attributes:
        obs: the observation and
        state: its standardised vector part [B, F], for a critic with an encoder of its own.
        tokens: [B, P, W] encoded context.
        cache: keys and values of the context for each action block, [B, 1, h, P, W/h] each.
    """

    obs: TensorDict
    state: Tensor
    tokens: Tensor
    cache: list[tuple[Tensor, Tensor]]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[..., L, W] -> [..., h, L, W/h]``."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """``[..., h, L, W/h] -> [..., L, W]``."""
    return x.transpose(-3, -2).flatten(-2)


def feed_forward(dim: int) -> nn.Sequential:
    """Two layers with an inner width of 4 W."""
    return mlp((dim, 4 * dim, dim), activation=nn.GELU)


class ContextBlock(nn.Module):
    """Pre-norm self-attention and feed-forward over context tokens [B, P, W]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = feed_forward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(merge_heads(scaled_dot_product_attention(q, k, v)))
        return x + self.mlp(self.norm2(x))


class ActionBlock(nn.Module):
    """adaLN-Zero block over action tokens [B, S, H, W] that also attends to the context."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.context_kv = nn.Linear(dim, 2 * dim)
        self.mlp = feed_forward(dim)
        self.modulation = zero_linear(dim, 6 * dim)

    def cache(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of context tokens [B, P, W], [B, 1, h, P, W/h] each."""
        key, value = self.context_kv(tokens).unsqueeze(1).chunk(2, -1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(self, x: Tensor, time: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the block; ``time`` is the embedding [S, 1, W] or [B, S, 1, W]."""
        a1, b1, g1, a2, b2, g2 = self.modulation(time).chunk(6, -1)
        x = x + g1 * self.attend(self.norm(x) * (1 + a1) + b1, context)
        return x + g2 * self.mlp(self.norm(x) * (1 + a2) + b2)

    def attend(self, x: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of [B, S, H, W] over itself and the context."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        steps = x.shape[1]
        k = torch.cat([context[0].expand(-1, steps, -1, -1, -1), k], -2)
        v = torch.cat([context[1].expand(-1, steps, -1, -1, -1), v], -2)
        # With one leading axis the fused kernels apply; [B, S] would fall back to plain softmax.
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        attended = merge_heads(scaled_dot_product_attention(q, k, v))
        return self.out(attended.unflatten(0, (-1, steps)))


def zero_linear(dim_in: int, dim_out: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(dim_in, dim_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ContextEncoder(nn.Module):
    """Observation to context tokens [B, P, W].

    Args:
        spec: environment description; at least one vector, instruction or image observation.
        state_dim: F, width of the standardised vector observation, 0 for none.
        dim: W.
        depth: blocks.
        heads: h.

    Raises:
        ValueError: nothing to make a token of.
    """

    def __init__(
        self, spec: PolicySpec, *, state_dim: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.state_token = nn.Linear(state_dim, dim) if state_dim else None
        self.instruction_token: nn.Linear | None = None
        if INSTRUCTION in spec.obs_shapes:
            self.instruction_token = nn.Linear(spec.obs_shapes[INSTRUCTION][0], dim)
        self.image_names = image_names(spec)
        self.images = nn.ModuleList(
            PatchTokens(spec.obs_shapes[name][0], dim=dim) for name in self.image_names
        )
        count = sum(stem.num_tokens for stem in self.images if isinstance(stem, PatchTokens))
        count += (self.state_token is not None) + (self.instruction_token is not None)
        if count == 0:
            raise ValueError(
                "flow_transformer needs a vector, an instruction or a uint8 image [C, H, W], the "
                f"environment has {dict(spec.obs_shapes)}"
            )
        self.position = nn.Parameter(torch.randn(count, dim) * 0.02)
        self.blocks = nn.Sequential(*(ContextBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, obs: TensorDict, state: Tensor) -> Tensor:
        """Encode observations with standardised vector part ``state`` [B, F]."""
        tokens: list[Tensor] = []
        if self.state_token is not None:
            tokens.append(self.state_token(state).unsqueeze(1))
        if self.instruction_token is not None:
            tokens.append(self.instruction_token(obs[INSTRUCTION].float()).unsqueeze(1))
        tokens += [stem(obs[n]) for n, stem in zip(self.image_names, self.images, strict=True)]
        return self.norm(self.blocks(torch.cat(tokens, 1) + self.position))


class SeparateCritic(nn.Module):
    """A context encoder of its own, token mean and an MLP: observation to value [B, 1]."""

    def __init__(self, encoder: ContextEncoder, *, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = mlp((dim, dim, 1), activation=nn.Tanh, output_gain=1.0)

    def forward(self, obs: TensorDict, state: Tensor) -> Tensor:
        """Value of observations with standardised vector part ``state`` [B, F]."""
        return self.head(self.encoder(obs, state).mean(1))


class FlowTransformer(FlowPolicy[Encoding]):
    """Transformer velocity field over action chunks.

    Args:
        spec: environment description; vector, ``instruction`` and uint8 image observations are
            used where present.
        flow: sampler and likelihood options.
        dim: W, width of a token; a multiple of 2 * heads.
        depth: blocks of the action tokens.
        context_depth: blocks of the context tokens.
        heads: attention heads.
        horizon: predicted actions per chunk, at least ``spec.chunk_length``; 0 means equal to it.
        critic: ``separate`` encoder and head; head on the mean of the actor's ``obs_tokens``
            (pi_RL's choice for pi_0.5); head on the mean of the ``action_expert``'s features at
            the fixed input x = 0, t = 1 (pi_0); or ``none``. The parameters of the head (and of
            the separate encoder) are those of the attribute ``critic``.

    Raises:
        ValueError: discrete actions, short horizon, unknown critic, or a width that does not
            divide into heads.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        flow: FlowConfig = DEFAULT_FLOW,
        dim: int = 64,
        depth: int = 3,
        context_depth: int = 1,
        heads: int = 4,
        horizon: int = 0,
        critic: Critic = "separate",
    ) -> None:
        require_choice("policy.critic", critic, CRITICS)
        if dim % (2 * heads):
            raise ValueError(
                f"policy.dim {dim} does not divide into {heads} heads of even width: set it to "
                f"{2 * heads * max(dim // (2 * heads), 1)}"
            )
        super().__init__(
            spec, flow=flow, horizon=horizon, values_from_encoding=critic == "obs_tokens"
        )
        self.vector_input = VectorInput(spec, exclude=(INSTRUCTION,), required=False)
        encoder = partial(
            ContextEncoder,
            spec,
            state_dim=self.vector_input.dim,
            dim=dim,
            depth=context_depth,
            heads=heads,
        )
        self.context = encoder()
        self.action_token = nn.Linear(spec.action_dim, dim)
        self.action_position = nn.Parameter(torch.randn(self.horizon, dim) * 0.02)
        self.time_mlp = mlp((dim, dim, dim), activation=nn.SiLU, activate_last=True)
        self.blocks = nn.ModuleList(ActionBlock(dim, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.final_modulation = zero_linear(dim, 2 * dim)
        self.velocity_head = nn.Linear(dim, spec.action_dim)
        self.std_head = zero_linear(dim, spec.action_dim) if flow.sampler == "noise" else None
        self.dim, self.critic_kind = dim, critic
        self.critic: nn.Module | None = None
        if critic == "separate":
            self.critic = SeparateCritic(encoder(), dim=dim)
        elif critic != "none":
            self.critic = mlp((dim, dim, 1), activation=nn.Tanh, output_gain=1.0)

    def encode(self, obs: TensorDict) -> Encoding:
        """Context tokens, and their keys and values for every action block."""
        state = self.vector_input(obs)
        tokens = self.context(obs, state)
        cache = [block.cache(tokens) for block in self.action_blocks()]
        return Encoding(obs, state, tokens, cache)

    def denoise(self, encoding: Encoding) -> flow.Denoise:
        """Velocity [B, S, H, D] and, with the noise net, std of the same shape."""

        def field(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            hidden = self.features(encoding, x, t)
            velocity = self.velocity_head(hidden)
            if self.std_head is None:
                return velocity, None
            raw = self.std_head(hidden)
            std = flow.bounded_std(raw, std_min=self.flow.std_min, std_max=self.flow.std_max)
            return velocity, std

        return field

    def features(self, encoding: Encoding, x: Tensor, t: Tensor) -> Tensor:
        """Action tokens [B, S, H, W] of noisy chunks [B, S, H, D] at times [S] or [B, S]."""
        time = self.time_mlp(time_embedding(t, self.dim)).unsqueeze(-2)
        hidden = self.action_token(x) + self.action_position
        for block, context in zip(self.action_blocks(), encoding.cache, strict=True):
            hidden = block(hidden, time, context)
        scale, shift = self.final_modulation(time).chunk(2, -1)
        return self.final_norm(hidden) * (1 + scale) + shift

    def action_blocks(self) -> list[ActionBlock]:
        """The blocks of the action tokens, in order."""
        return [block for block in self.blocks if isinstance(block, ActionBlock)]

    def predict_value(self, encoding: Encoding) -> Tensor:
        """``[B]`` values; zeros without a critic."""
        tokens = encoding.tokens
        if self.critic is None:
            return tokens.new_zeros(len(tokens))
        if self.critic_kind == "separate":
            return self.critic(encoding.obs, encoding.state).squeeze(-1)
        if self.critic_kind == "obs_tokens":
            return self.critic(tokens.mean(1)).squeeze(-1)
        # A fixed input, so that rollout and update ask for the same function of the observation.
        start = tokens.new_zeros(len(tokens), 1, self.horizon, self.spec.action_dim)
        features = self.features(encoding, start, tokens.new_ones(1))
        return self.critic(features.mean((1, 2))).squeeze(-1)

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values; the actor is not run for a separate critic."""
        if self.critic_kind == "separate" and self.critic is not None:
            return self.critic(obs, self.vector_input(obs)).squeeze(-1)
        return super().value(obs)
