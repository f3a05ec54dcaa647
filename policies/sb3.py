"""The actor of a Stable-Baselines3 MLP policy, for evaluation and films; it is not trained here.

With f(o) the trunk over the observations, flattened and side by side in the order of their space:

    gaussian       a = W f + b  (+ exp(s) z,  z ~ N(0, 1), when sampled)            PPO, A2C
    categorical    p = softmax(W f + b)                                             PPO, A2C
    squashed       a = tanh(W f + b (+ exp(clip(W' f + b', -20, 2)) z))             SAC, TQC
    deterministic  a = tanh(W f + b)                                                TD3, DDPG
    greedy         a = argmax(W f + b)                                              DQN

The weights come from ``embodied_rl.interop.import_sb3``. Axes: B row, H action of a chunk, D action
dimension, A actions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from embodied_rl.policies.nn import require_choice
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict

Head = Literal["gaussian", "categorical", "squashed", "deterministic", "greedy"]
HEADS = ("gaussian", "categorical", "squashed", "deterministic", "greedy")
ACTIVATIONS = ("Tanh", "ReLU", "ELU", "SiLU", "GELU", "LeakyReLU")
LOG_STD_RANGE = (-20.0, 2.0)


class SB3Policy(nn.Module):
    """See the module.

    Args:
        spec: environment description.
        head: how actions follow from the last layer.
        hidden_dims: widths of the hidden layers.
        activation: name of a class of ``torch.nn``.

    Raises:
        ValueError: unknown choice, images, or a head for the other kind of actions.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        head: Literal[
            "gaussian", "categorical", "squashed", "deterministic", "greedy"
        ] = "gaussian",
        hidden_dims: tuple[int, ...] = (64, 64),
        activation: Literal["Tanh", "ReLU", "ELU", "SiLU", "GELU", "LeakyReLU"] = "Tanh",
    ) -> None:
        super().__init__()
        require_choice("head", head, HEADS)
        require_choice("activation", activation, ACTIVATIONS)
        if (head in ("categorical", "greedy")) != bool(spec.num_actions):
            kind = "discrete" if spec.num_actions else "continuous"
            raise ValueError(f"policy sb3 with head={head!r} does not fit {kind} actions")
        if "uint8" in spec.obs_dtypes.values():
            raise ValueError("policy sb3 reads vectors: choose them with env.observations")
        self.spec, self.head = spec, head
        self.critic = None
        width = sum(torch.Size(shape).numel() for shape in spec.obs_shapes.values())
        layers: list[nn.Module] = []
        for size in hidden_dims:
            layers += [nn.Linear(width, size), getattr(nn, activation)()]
            width = size
        self.trunk = nn.Sequential(*layers)
        count = spec.num_actions or spec.action_dim * spec.chunk_length
        self.output = nn.Linear(width, count)
        if head == "gaussian":
            self.log_std = nn.Parameter(torch.zeros(count))
        elif head == "squashed":
            self.log_std_output = nn.Linear(width, count)

    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Actions [B, D], [B, H, D] or [B]; without log-probabilities."""
        flat = [obs[name].flatten(1).float() for name in self.spec.obs_shapes]
        features = self.trunk(torch.cat(flat, 1))
        output = self.output(features)
        if self.head == "greedy" or (self.head == "categorical" and deterministic):
            return PolicyOutput(actions=output.argmax(1))
        if self.head == "categorical":
            chosen = torch.multinomial(output.softmax(1), 1, generator=generator)
            return PolicyOutput(actions=chosen.squeeze(1))
        if not deterministic and self.head != "deterministic":
            noise = torch.randn(output.shape, generator=generator, device=output.device)
            output = output + self._std(features) * noise
        if self.head != "gaussian":
            output = output.tanh()
        if self.spec.chunk_length > 1:
            output = output.unflatten(1, (self.spec.chunk_length, self.spec.action_dim))
        return PolicyOutput(actions=output)

    def _std(self, features: Tensor) -> Tensor:
        """[D] or [B, D] standard deviations."""
        if self.head == "gaussian":
            return self.log_std.exp()
        return self.log_std_output(features).clamp(*LOG_STD_RANGE).exp()

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Not offered.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "policy sb3 is for evaluation: train gaussian_mlp or categorical_mlp instead"
        )

    def value(self, obs: TensorDict) -> Tensor:
        """[B] zeros: the critic is not read."""
        first: Any = next(iter(obs.values()))
        return torch.zeros(first.shape[0], device=first.device)

    def set_progress(self, progress: float) -> None:
        """Nothing is annealed."""

    def unit_mask(self, executed: Tensor) -> Tensor:
        """[B, 1]: one ratio unit."""
        return executed.any(1, keepdim=True)
