"""The vision tower against torch's own batch normalisation and numbers worked out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from embodied_rl.policies.vlm.efficientnet import (
    Convolution,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    fold_batch_norm,
    read_weights,
)

EPS = 1e-3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("places", "kernel", "expected"),
    [(6, 3, [6, 12, 11]), (5, 3, [3, 9, 9]), (6, 5, [10, 20, 15]), (7, 5, [6, 15, 25, 18])],
)
def test_padding_is_that_of_tensorflow(places, kernel, expected):
    layer = Convolution(1, 1, kernel, 2, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.data[0, 0, kernel // 2] = 1  # sums over kernel places of a row
    row = torch.arange(1.0, places + 1).expand(1, 1, places, -1)
    assert layer(row)[0, 0, 1].tolist() == expected
    assert layer(row.transpose(2, 3)).shape == (1, 1, len(expected), len(expected))


def random_norm(channels, seed):
    norm = nn.BatchNorm2d(channels, eps=EPS).eval()
    g = generator(seed)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.data.copy_(torch.rand(channels, generator=g) + 0.1)
    return norm


def test_folded_weights_do_what_normalisation_did():
    convolution, norm = nn.Conv2d(3, 5, 3, bias=False), random_norm(5, 1)
    weight, bias = fold_batch_norm(convolution.weight, dict(norm.state_dict()))
    x = torch.randn(2, 3, 7, 7, generator=generator())
    torch.testing.assert_close(functional.conv2d(x, weight, bias), norm(convolution(x)))


def test_weights_are_read_in_the_order_of_the_blocks():
    config = EfficientNetLiteConfig(
        stem=4, stages=[(1, 4, 1, 1, 3), (2, 6, 2, 1, 5)], taps=(1,), patch_size=2
    )
    layers = {
        "_conv_stem": (nn.Conv2d(3, 4, 3, 2, bias=False), "_bn0"),
        "_blocks.0._depthwise_conv": (nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), "_bn1"),
        "_blocks.0._project_conv": (nn.Conv2d(4, 4, 1, bias=False), "_bn2"),
    }
    for block, wide in ((1, 4), (2, 6)):
        inner, name = 2 * wide, f"_blocks.{block}"
        depthwise = nn.Conv2d(inner, inner, 5, 1, 2, groups=inner, bias=False)
        layers[f"{name}._expand_conv"] = (nn.Conv2d(wide, inner, 1, bias=False), "_bn0")
        layers[f"{name}._depthwise_conv"] = (depthwise, "_bn1")
        layers[f"{name}._project_conv"] = (nn.Conv2d(inner, 6, 1, bias=False), "_bn2")
    state, steps = {}, []
    for seed, (name, (layer, norm_name)) in enumerate(layers.items()):
        norm = random_norm(layer.out_channels, seed)
        prefix = name.rpartition(".")[0]
        state[f"{name}.weight"] = layer.weight
        place = f"{prefix}.{norm_name}" if prefix else norm_name
        state |= {f"{place}.{key}": value for key, value in norm.state_dict().items()}
        steps.append(nn.Sequential(layer, norm, nn.Identity() if "project" in name else nn.ReLU6()))
    tower = EfficientNetLiteModel(config)
    tower.load_state_dict(read_weights(state, config))

    pixels = torch.randn(2, 3, 8, 8, generator=generator())
    x = steps[0](functional.pad(pixels, (0, 1, 0, 1)))
    x = x + nn.Sequential(*steps[1:3])(x)
    x = nn.Sequential(*steps[3:6])(x)
    x = x + nn.Sequential(*steps[6:9])(x)
    with torch.no_grad():
        torch.testing.assert_close(tower.maps(pixels)[1], x)


def test_tokens_come_in_reading_order_and_hold_all_taps():
    torch.manual_seed(0)
    stages = [(1, 8, 1, 2, 3), (2, 16, 1, 2, 3), (2, 24, 1, 2, 3)]
    config = EfficientNetLiteConfig(stem=8, stages=stages, taps=(0, 2), patch_size=16)
    assert config.hidden_size == 8 * 4 * 4 + 24
    tower = EfficientNetLiteModel(config).eval()
    plain = torch.zeros(1, 3, 48, 64)
    base = tower(plain).last_hidden_state
    assert base.shape == (1, 12, config.hidden_size)
    for token, (row, column) in enumerate((r, c) for r in range(3) for c in range(4)):
        pixels = plain.clone()
        pixels[:, :, 16 * row + 4 : 16 * row + 12, 16 * column + 4 : 16 * column + 12] = 1
        changed = (tower(pixels).last_hidden_state - base).square().sum(2)[0]
        assert int(changed.argmax()) == token
    assert torch.equal(tower(plain).hidden_states[-1], base)
