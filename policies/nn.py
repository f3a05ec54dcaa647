"""Small network parts that several policies share.

Axes: ``B`` rows, ``F`` features. Every part is a plain ``nn.Module`` or function without state
between calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from embodied_rl.types import PolicySpec, TensorDict


def orthogonal_(layer: nn.Linear, gain: float) -> nn.Linear:
    """Orthogonal weights with zero bias, as PPO implementations initialise them."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """``nn.Sequential`` whose layers are run without their call hooks.

    At 8 rows the hook machinery of six small layers costs as much as a third of their arithmetic.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Run the layers in order."""
        for layer in self._modules.values():
            assert layer is not None
            input = layer.forward(input)
        return input


def mlp(
    sizes: Sequence[int],
    *,
    activation: type[nn.Module],
    output_gain: float | None = None,
    activate_last: bool = False,
) -> MLP:
    """Linear layers of the given sizes with activations in between.

    Args:
        sizes: input, hidden and output widths.
        activation: module class between layers.
        output_gain: orthogonal initialisation, hidden gain sqrt(2) and this gain for the last
            layer; None keeps torch's default initialisation.
        activate_last: put an activation behind the last layer also.
    """
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out)
        last = index == len(sizes) - 2
        if output_gain is not None:
            orthogonal_(layer, output_gain if last else math.sqrt(2))
        layers.append(layer)
        if activate_last or not last:
            layers.append(activation())
    return MLP(*layers)


class ScaledCritic(nn.Module):
    """A critic that predicts standardised returns: ``V(s) = mean + std * critic(s)``.

    ``mean`` and ``std`` are running moments of the value targets (Chan et al. 1979), kept as
    buffers so that they are checkpointed; targets of any scale then look alike to the network
    (van Hasselt et al. 2016, without their rescaling of the last layer).
    """

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def std(self) -> Tensor:
        """Standard deviation of the targets seen; 1 before any."""
        variance = self.squares / self.count.clamp(min=1)
        return torch.where(self.count > 0, variance, 1.0).clamp(min=1e-4).sqrt().float()

    def forward(self, features: Tensor) -> Tensor:
        """Values in the scale of the returns, shape of the inner critic's output."""
        return self.mean.float() + self.std * self.critic(features)

    @torch.no_grad()
    def observe(self, returns: Tensor) -> None:
        """Add value targets of any shape to the moments."""
        returns = returns.double()
        total = self.count + returns.numel()
        shift = returns.mean() - self.mean
        within = (returns - returns.mean()).square().sum()
        self.squares += within + shift.square() * self.count * returns.numel() / total
        self.mean += shift * returns.numel() / total
        self.count.copy_(total)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def activation_class(name: str) -> type[nn.Module]:
    """The module class of an activation name.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}, choose one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse an option value that is not one of ``choices``.

    Raises:
        ValueError: names the option and its choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, set it to one of {', '.join(choices)}")


def require_continuous(spec: PolicySpec, policy: str) -> None:
    """Refuse an environment with discrete actions.

    Raises:
        ValueError: names a policy that would work.
    """
    if spec.action_dim == 0:
        raise ValueError(
            f"{policy} needs continuous actions, this environment has {spec.num_actions} discrete "
            "ones: use categorical_mlp or categorical_cnn"
        )


def draw_normal(shape: Sequence[int], *, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers drawn where the generator lives, on ``like``'s device."""
    device = None if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device).to(like.device)


def draw_uniform(
    shape: Sequence[int], *, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Uniform numbers in [0, 1) drawn where the generator lives, on ``like``'s device."""
    device = None if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device).to(like.device)


class VectorInput(nn.Module):
    """Concatenates the vector observations of ``spec`` and standardises them.

    ``mean`` and ``std`` are buffers, so they are checkpointed; they start at 0 and 1 and are set
    once from data (``fit``). Standardised values are clipped to [-10, 10]. The names are taken in
    sorted order.

    Args:
        spec: environment description.
        exclude: vector observations that the policy reads elsewhere.
        required: False for a policy that can do without; F may be 0 then.

    Raises:
        ValueError: no vector observation is left and one is required.
    """

    def __init__(
        self, spec: PolicySpec, *, exclude: Sequence[str] = (), required: bool = True
    ) -> None:
        super().__init__()
        shapes = spec.obs_shapes.items()
        self.names = sorted(n for n, shape in shapes if len(shape) == 1 and n not in exclude)
        if required and not self.names:
            raise ValueError(
                f"this policy needs a vector observation, the environment has "
                f"{dict(spec.obs_shapes)}: use categorical_cnn or flow_transformer for images"
            )
        self.dim = sum(spec.obs_shapes[name][0] for name in self.names)
        self.mean: Tensor
        self.std: Tensor
        self.fitted: Tensor
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("std", torch.ones(self.dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        # A Python copy of ``fitted``, so that no forward pass waits for a tensor.
        self._standardise = False
        self.register_load_state_dict_post_hook(_after_loading)

    def concat(self, obs: TensorDict) -> Tensor:
        """``[..., F]`` float32, not standardised."""
        if len(self.names) == 1:
            return obs[self.names[0]].float()
        if not self.names:
            any_obs = next(iter(obs.values()))
            return torch.zeros(len(any_obs), 0, device=any_obs.device)
        return torch.cat([obs[name].float() for name in self.names], -1)

    def forward(self, obs: TensorDict) -> Tensor:
        """``[B, F]`` standardised observations."""
        x = self.concat(obs)
        return ((x - self.mean) / self.std).clamp(-10.0, 10.0) if self._standardise else x

    @torch.no_grad()
    def fit(self, obs: TensorDict) -> None:
        """Set mean and std from observations [F_rows, ...]; constant features keep std 1."""
        if not self.names:
            return
        x = self.concat(obs).double()
        std = x.std(0)
        self.mean.copy_(x.mean(0))
        self.std.copy_(torch.where(std > 1e-4, std, torch.ones_like(std)))
        self.fitted.fill_(True)
        self._standardise = True


def _after_loading(module: nn.Module, keys: object) -> None:
    assert isinstance(module, VectorInput)
    module._standardise = bool(module.fitted)


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of flow time in [0, 1], ``[...] -> [..., dim]``, periods 0.004 to 4.

    The range of periods is that of openpi's action expert.
    """
    fraction = torch.linspace(0.0, 1.0, dim // 2, dtype=t.dtype, device=t.device)
    period = 4e-3 * (4.0 / 4e-3) ** fraction
    angle = t.unsqueeze(-1) * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1)
