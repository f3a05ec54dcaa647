"""Layers that stand in for those of transformers, against these."""

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed

from embodied_rl.policies.vlm import layers
from embodied_rl.policies.vlm.model import load
from embodied_rl.policies.vlm.presets import PREFIX


def replaced(module):
    other = copy.deepcopy(module)
    layers.replace_layers(other)
    return other


def results(module, given):
    given = given.detach().requires_grad_()
    out = module(given)
    by = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, (given, *module.parameters()), by)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_norms_have_the_outputs_and_gradients_of_transformers(dtype, error, size):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(24).to(dtype)
    torch.nn.init.normal_(norm.weight)
    given = (size * torch.randn(3, 5, 24)).to(dtype)
    own = replaced(norm)
    assert isinstance(own, layers.RMSNorm)
    with torch.no_grad():
        assert torch.equal(own(given), own(given.requires_grad_()).detach())
    for found, expected in zip(results(own, given), results(norm, given), strict=True):
        assert found.dtype == expected.dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, atol=error * scale, rtol=error)


def test_patches_are_embedded_as_by_the_convolution():
    torch.manual_seed(0)
    plain = Qwen2_5_VisionPatchEmbed(patch_size=4, embed_dim=6)
    own, given = replaced(plain), torch.randn(5, 3 * 2 * 4 * 4)
    assert isinstance(own.proj, layers.PatchEmbedding)
    for found, expected in zip(results(own, given), results(plain, given), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_other_convolutions_stay_what_they_are():
    plain = torch.nn.Conv3d(2, 3, 2, padding=1)
    given = torch.randn(1, 2, 2, 2, 2)
    torch.testing.assert_close(replaced(plain)(given), plain(given))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "llava"])
def test_models_of_these_types_have_them(kind):
    model, _ = load(PREFIX + kind, dtype=torch.float32)
    norms = [m for m in model.modules() if "RMSNorm" in type(m).__name__]
    assert norms and all(isinstance(norm, layers.RMSNorm) for norm in norms)
