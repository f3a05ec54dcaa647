"""EfficientNet-lite as the vision tower of a LLaVA model (Tan and Le 2019, its "lite" variant).

A picture goes through a stem and stages of inverted bottlenecks,

    x -> clip6(expand x) -> clip6(depthwise) -> project (+ x where nothing changes its shape),

with clip6(x) = min(max(x, 0), 6) and no squeeze-and-excitation. Batch normalisation is folded into
the convolutions when weights are read: w' = w g / s, b' = b - m g / s with s = sqrt(v + eps).

A token is one square of ``patch_size`` pixels and sees all scales at once: the maps after some
stages (``taps``), each normalised over its channels, with the r x r places of a square as channels.

Axes: ``B`` pictures, ``C`` channels, ``h``, ``w`` places of a map, ``P`` tokens, ``E`` features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoModel, ViTImageProcessorPil
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

MODEL_TYPE = "efficientnet_lite"
LITE0: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""(expansion, channels, blocks, stride, kernel) of the stages of EfficientNet-lite0."""
BATCH_NORM_EPS = 1e-3


class EfficientNetLiteConfig(PreTrainedConfig):
    """Options of the tower.

    Args:
        stem: channels of the first convolution, whose stride is 2.
        stages: as ``LITE0``.
        taps: numbers of the stages whose maps make up a token.
        patch_size: side of the square of a token in pixels; a multiple of every map's stride.
        image_size: side of the pictures that the processor makes.
        kwargs: of ``PreTrainedConfig``.

    ``hidden_size`` (E) follows from these.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        stem: int = 32,
        stages: Sequence[Sequence[int]] = LITE0,
        taps: Sequence[int] = (4, 6),
        patch_size: int = 32,
        image_size: int = 128,
        **kwargs: Any,
    ) -> None:
        self.stem, self.taps = stem, list(taps)
        self.stages = [list(stage) for stage in stages]
        self.patch_size, self.image_size = patch_size, image_size
        super().__init__(**{**kwargs, "hidden_size": self.features()})

    def features(self) -> int:
        """E."""
        return sum(
            self.stages[tap][1] * (self.patch_size // self.stride(tap)) ** 2 for tap in self.taps
        )

    def stride(self, stage: int) -> int:
        """Pixels between neighbours in the map after a stage."""
        stride = 2
        for _, _, _, each, _ in self.stages[: stage + 1]:
            stride *= each
        return stride


class Convolution(nn.Conv2d):
    """A convolution padded as by TensorFlow: n places become ceil(n / stride)."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C', h', w']`` of ``[B, C, h, w]``; an odd row of zeros is at the end."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads: list[int] = []
        for size in (input.shape[3], input.shape[2]):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(input, pads))


class Block(nn.Module):
    """An inverted bottleneck; see the module."""

    def __init__(
        self, wide: int, channels: int, *, expansion: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        inner = wide * expansion
        self.expand = Convolution(wide, inner, 1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = Convolution(inner, channels, 1)
        self.shortcut = stride == 1 and wide == channels

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, h / stride, w / stride]``."""
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class EfficientNetLiteModel(PreTrainedModel):
    """The tower; ``last_hidden_state`` is ``[B, P, E]``, tokens in reading order."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = Convolution(3, config.stem, 3, 2)
        self.stages = nn.ModuleList()
        wide = config.stem
        for expansion, channels, blocks, stride, kernel in config.stages:
            options = {"expansion": expansion, "kernel": kernel}
            stage = [Block(wide, channels, stride=stride, **options)]
            stage += [Block(channels, channels, stride=1, **options) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            wide = channels
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """``[B, C, h, w]`` after every stage."""
        maps, x = [], functional.relu6(self.stem(pixel_values.to(self.dtype)))
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Tokens of pictures ``[B, 3, H, W]``; H and W are multiples of ``patch_size``."""
        maps = self.maps(pixel_values)
        parts = []
        for tap in self.config.taps:
            places = maps[tap].permute(0, 2, 3, 1)
            places = functional.layer_norm(places, places.shape[3:])
            side = self.config.patch_size // self.config.stride(tap)
            parts.append(functional.pixel_unshuffle(places.permute(0, 3, 1, 2), side))
        tokens = torch.cat(parts, 1).flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))


def fold_batch_norm(weight: Tensor, norm: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a convolution that does what one without bias and a normalisation did.

    Args:
        weight: ``[C', C, k, k]``.
        norm: ``weight``, ``bias``, ``running_mean`` and ``running_var`` ``[C']``.
    """
    scale = norm["weight"] / torch.sqrt(norm["running_var"] + BATCH_NORM_EPS)
    return weight * scale.view(-1, 1, 1, 1), norm["bias"] - norm["running_mean"] * scale


def read_weights(state: Mapping[str, Tensor], config: EfficientNetLiteConfig) -> dict[str, Tensor]:
    """Weights of the tower from those of a network with batch normalisation and a classifier.

    Args:
        state: names ``_conv_stem``, ``_bn0``, ``_blocks.<i>._expand_conv`` and so on.
        config: of the tower.
    """
    pairs = {"stem": ("_conv_stem", "_bn0")}
    number = 0
    for stage, (_, _, blocks, _, _) in enumerate(config.stages):
        for block in range(blocks):
            own, other = f"stages.{stage}.{block}", f"_blocks.{number}"
            pairs[f"{own}.expand"] = (f"{other}._expand_conv", f"{other}._bn0")
            pairs[f"{own}.depthwise"] = (f"{other}._depthwise_conv", f"{other}._bn1")
            pairs[f"{own}.project"] = (f"{other}._project_conv", f"{other}._bn2")
            number += 1
    read: dict[str, Tensor] = {}
    for name, (convolution, norm) in pairs.items():
        if f"{convolution}.weight" not in state:
            continue  # the first block does not expand
        parts = ("weight", "bias", "running_mean", "running_var")
        folded = fold_batch_norm(
            state[f"{convolution}.weight"], {part: state[f"{norm}.{part}"] for part in parts}
        )
        read[f"{name}.weight"], read[f"{name}.bias"] = folded
    return read


AutoConfig.register(MODEL_TYPE, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
AutoImageProcessor.register(
    EfficientNetLiteConfig, image_processor_classes={"pil": ViTImageProcessorPil}
)
