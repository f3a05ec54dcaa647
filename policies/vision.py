"""Small image encoders: uint8 [B, C, H, W] to features or tokens.

``nature`` (Mnih et al. 2015): three strided convolutions and one linear layer. ``small`` (Mnih et
al. 2013): two with half the channels, at a third of the cost. ``impala`` (Espeholt et al. 2018, the
large network): three stages of convolution, pooling and two residual blocks, and one linear layer.
``PatchTokens``: three strided convolutions and one more to a grid of tokens.

Axes: ``B`` rows, ``C`` channels, ``P`` tokens, ``F`` features.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from embodied_rl.policies.nn import require_choice
from embodied_rl.types import PolicySpec

Trunk = Literal["nature", "small", "impala"]
TRUNKS: tuple[Trunk, ...] = ("nature", "small", "impala")


def image_names(spec: PolicySpec) -> list[str]:
    """Names of the uint8 observations with three axes, sorted.

    Raises:
        ValueError: an image is not laid out as [C, H, W].
    """
    names = sorted(
        name
        for name, shape in spec.obs_shapes.items()
        if len(shape) == 3 and spec.obs_dtypes[name] == "uint8"
    )
    for name in names:
        channels, height, width = spec.obs_shapes[name]
        if channels > min(height, width):
            raise ValueError(
                f"image {name!r} has shape {(channels, height, width)}, policies take [C, H, W]: "
                "move the channel axis to the front"
            )
    return names


def scale_image(image: Tensor) -> Tensor:
    """Pixels uint8 0..255 to float32 in [0, 1], same shape."""
    return image.float() / 255


def channels_last(image: Tensor) -> Tensor:
    """The same image [B, C, H, W] with the channels of a pixel side by side in memory.

    A CPU runs the ``nature`` convolutions and their gradients twice as fast on it.
    """
    return image.contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """``x + conv(relu(conv(relu(x))))`` with 3x3 convolutions, [B, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.second(self.first(x.relu()).relu())


def image_trunk(kind: Trunk, shape: tuple[int, int, int], *, feature_dim: int) -> nn.Sequential:
    """Encoder from scaled images [B, C, H, W] to non-negative features [B, F].

    Args:
        kind: ``nature``, ``small`` or ``impala``.
        shape: (C, H, W).
        feature_dim: F.

    Raises:
        ValueError: unknown kind, or an image too small for its strides.
    """
    require_choice("policy.trunk", kind, TRUNKS)
    smallest = {"nature": 36, "small": 20, "impala": 1}[kind]
    if min(shape[1:]) < smallest:
        raise ValueError(
            f"images of {shape[1]}x{shape[2]} are too small for trunk={kind!r} "
            f"({smallest}x{smallest} at least): set policy.trunk to impala"
        )
    layers = {"nature": _nature, "small": _small, "impala": _impala}[kind](shape[0])
    with torch.no_grad():
        width = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    trunk = nn.Sequential(*layers, nn.Linear(width, feature_dim), nn.ReLU())
    for layer in trunk.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(layer.weight, math.sqrt(2))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in trunk.modules():
        if isinstance(block, Residual):
            # Full gain in six residual blocks multiplies the features tenfold.
            nn.init.orthogonal_(block.second.weight, 0.1)
    return trunk


def _nature(channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, 32, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
    ]


def _small(channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, 16, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.ReLU(),
        nn.Flatten(),
    ]


def _impala(channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in (16, 32, 32):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            Residual(width),
            Residual(width),
        ]
        channels = width
    return [*layers, nn.ReLU(), nn.Flatten()]


class BFloat16(nn.Module):
    """``layers`` in bfloat16 arithmetic with float32 weights; float32 in and out."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.layers(x).float()


class PatchTokens(nn.Module):
    """A convolutional stem that turns an image into ``grid x grid`` tokens.

    Pixels are centred and weights keep their variance (He et al. 2015): with torch's own initial
    weights nine tenths of an untrained token come from the biases, and policies learn to look late.

    Args:
        channels: C of the image.
        dim: width of a token.
        grid: side of the token grid.
    """

    def __init__(self, channels: int, *, dim: int, grid: int = 4) -> None:
        super().__init__()
        self.num_tokens = grid * grid
        widths = (channels, 32, 64, dim)
        layers: list[nn.Module] = []
        for index, width in enumerate(widths[1:]):
            convolution = nn.Conv2d(widths[index], width, 3, stride=2, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.SiLU()]
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(dim, dim, 3, padding=1), nn.AdaptiveAvgPool2d(grid)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 images [B, C, H, W] to tokens [B, P, dim]; pixels are scaled to [-2, 2]."""
        return self.layers(4 * scale_image(image) - 2).flatten(2).transpose(1, 2)
