"""Adapters: what they train, save and leave alone; the reference is the model without them."""

from typing import Any

import pytest
import torch
from conversations import generator, given_answers, make, mixed, no_actions

from embodied_rl import checkpoint
from embodied_rl.algorithms.grpo import GRPO


@pytest.fixture
def policy() -> Any:
    pytest.importorskip("peft", reason="the extra vlm is not installed")
    return make(lora_rank=4, critic="trunk")


def scored(policy):
    return policy.log_prob(mixed(copies=2), no_actions(6), given_answers()).log_probs


def shake(policy):
    """Adapters with an effect."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator())


def test_adapters_begin_without_effect_and_alone_are_trained(policy):
    torch.testing.assert_close(scored(policy), scored(make(critic="trunk")))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name or name.startswith("critic") for name in trained)
    # two matrices for each of the seven linear layers of four decoder layers
    assert sum("lora_" in name for name in trained) == 2 * 7 * 4


def test_the_reference_is_the_model_without_adapters_and_copies_nothing(policy):
    base = scored(policy).detach()
    algorithm = GRPO(policy, GRPO.Config(kl_coef=0.1))
    shake(policy)
    assert not torch.allclose(scored(policy), base, atol=1e-3)
    found = algorithm.reference.log_prob(mixed(copies=2), no_actions(6), given_answers())
    torch.testing.assert_close(found.log_probs, base)
    assert not found.log_probs.requires_grad
    assert not torch.allclose(scored(policy), base, atol=1e-3)  # switched on again
    assert algorithm.state_dict()["reference"] == {}
    algorithm.load_state_dict(algorithm.state_dict())


def test_without_adapters_the_reference_is_a_copy_of_the_start():
    policy = make()
    start = scored(policy).detach()
    algorithm = GRPO(policy, GRPO.Config(kl_coef=0.1))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator()))
    found = algorithm.reference.log_prob(mixed(copies=2), no_actions(6), given_answers())
    torch.testing.assert_close(found.log_probs, start)


def test_checkpoints_hold_adapters_and_critic_alone(policy, tmp_path):
    shake(policy)
    checkpoint.save(tmp_path / "c", {"policy": policy.state_dict()})
    state = checkpoint.load(tmp_path / "c")["policy"]
    assert all("lora_" in name or name.startswith("critic") for name in state)
    other = make(lora_rank=4, critic="trunk")
    other.load_state_dict(state)
    torch.testing.assert_close(scored(other), scored(policy))
    torch.testing.assert_close(other.value(mixed()), policy.value(mixed()))
    with pytest.raises(RuntimeError, match="names differ"):
        make(lora_rank=4).load_state_dict(state)


def test_adapters_of_a_bfloat16_model_stay_float32():
    pytest.importorskip("peft", reason="the extra vlm is not installed")
    policy = make(lora_rank=4, dtype="bfloat16")
    dtypes = {p.dtype for name, p in policy.named_parameters() if "lora_" in name}
    assert dtypes == {torch.float32}
    scored(policy).sum().backward()
