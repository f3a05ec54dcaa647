from __future__ import annotations

import pytest
import torch

from embodied_rl.policies import make_policy
from embodied_rl.policies.vision import BFloat16, PatchTokens, channels_last, image_trunk
from embodied_rl.types import PolicySpec

SPEC = PolicySpec(obs_shapes={"image": (4, 44, 44)}, obs_dtypes={"image": "uint8"}, num_actions=3)


def pixels(rows: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 4, 44, 44), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("kind", ["nature", "small", "impala"])
def test_memory_layout_changes_no_feature(kind) -> None:
    trunk = image_trunk(kind, (4, 44, 44), feature_dim=16)
    image = pixels().float() / 255
    moved = channels_last(image)
    assert torch.equal(moved, image) and moved.stride() != image.stride()
    assert torch.allclose(trunk(moved), trunk(image), atol=1e-5)


@pytest.mark.parametrize("size", [32, 84])
def test_untrained_tokens_differ_between_pictures_about_as_much_as_they_are_large(size) -> None:
    torch.manual_seed(0)
    tokens = PatchTokens(4, dim=64)(pixels(32)[:, :, :1, :1].expand(-1, -1, size, size))
    assert float((tokens.std(0).square().mean() / tokens.square().mean()).sqrt().detach()) > 0.5


@pytest.mark.parametrize("kind", ["nature", "small"])
def test_bfloat16_rounds_features_and_gradients_and_keeps_float32_weights(kind) -> None:
    trunk = image_trunk(kind, (4, 44, 44), feature_dim=64)
    rounded = BFloat16(trunk)
    image = pixels(64).float() / 255
    exact, features = trunk(image), rounded(image)
    assert features.dtype == torch.float32 and not torch.equal(features, exact)
    assert float(((features - exact).norm() / exact.norm()).detach()) < 0.02  # bfloat16 has 8 bits
    gradients = []
    for out in (exact, features):
        trunk.zero_grad()
        out.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trunk.parameters()]))  # type: ignore[union-attr]
    assert gradients[1].dtype == torch.float32
    assert float(torch.cosine_similarity(gradients[0], gradients[1], 0)) > 0.99


def test_a_bfloat16_policy_scores_its_samples_within_rounding() -> None:
    policy = make_policy("categorical_cnn", SPEC, trunk="small", precision="bfloat16")
    obs = {"image": pixels(32)}
    output = policy.sample(obs, generator=torch.Generator().manual_seed(1))
    again = policy.log_prob(obs, output.actions, {})
    assert output.log_probs is not None and again.log_probs.dtype == torch.float32
    assert torch.allclose(again.log_probs, output.log_probs, atol=1e-2)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}  # type: ignore[attr-defined]
