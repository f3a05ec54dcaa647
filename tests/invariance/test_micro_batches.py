"""How a minibatch is cut into parts changes nothing, whatever weighs equally in the loss."""

from typing import Any

import pytest
import torch

from embodied_rl.algorithms.ppo import PPO
from embodied_rl.policies import make_policy
from embodied_rl.types import Advantages, PolicySpec, Rollout

STEPS, ENVS, CHUNK = 5, 4, 3
SPEC = PolicySpec(
    obs_shapes={"state": (6,)}, obs_dtypes={"state": "float32"}, action_dim=2, chunk_length=CHUNK
)


def make_rollout(policy, *, masked):
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, ENVS)
    obs = torch.randn(*shape, 6, generator=generator)
    output = policy.sample({"state": obs.flatten(0, 1)}, generator=generator)
    assert output.log_probs is not None
    executed = torch.ones(STEPS * ENVS, CHUNK, dtype=torch.bool)
    if masked:
        executed[:, 1:] = torch.rand(STEPS * ENVS, CHUNK - 1, generator=generator) < 0.5
    zeros, false = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    ids = torch.arange(STEPS * ENVS).view(shape) // 3  # episodes of unequal length
    return Rollout(
        obs={"state": obs},
        actions=output.actions.unflatten(0, shape),
        # not those of the policy, so that the ratio is not 1 everywhere
        log_probs=output.log_probs.unflatten(0, shape)
        + 0.1 * torch.randn(*shape, CHUNK, generator=generator),
        unit_mask=policy.unit_mask(executed).unflatten(0, shape),
        values=zeros,
        next_values=zeros,
        rewards=zeros,
        terminated=false,
        truncated=false,
        success=false,
        valid=~false,
        num_env_steps=ids,
        group_ids=ids,
        task_ids=ids,
        episode_ids=ids,
        policy_version=torch.zeros(shape, dtype=torch.int64),
    )


def updated(*, masked, **options):
    """Parameters and statistics after one update."""
    torch.manual_seed(0)
    policy: Any = make_policy("gaussian_mlp", SPEC, hidden_dims=(8,), units="action")
    rollout = make_rollout(policy, masked=masked)
    generator = torch.Generator().manual_seed(1)
    advantages = Advantages(
        advantages=torch.randn(STEPS, ENVS, generator=generator),
        returns=torch.randn(STEPS, ENVS, generator=generator),
        keep=rollout.valid,
    )
    config = PPO.Config(num_epochs=2, num_minibatches=2, entropy_coef=0.1, **options)
    stats = PPO(policy, config).update(rollout, advantages, generator=generator)
    return [value.detach() for value in policy.parameters()], stats


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss_mean", ["token", "chunk", "trajectory"])
@pytest.mark.parametrize("size", [3])
def test_micro_batches_take_the_same_step(masked, loss_mean, size):
    whole, stats = updated(masked=masked, loss_mean=loss_mean)
    parts, _ = updated(masked=masked, loss_mean=loss_mean, micro_batch_size=size)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    same_size, same = updated(masked=masked, loss_mean=loss_mean, micro_batch_size=10)
    assert stats == same
    assert all(torch.equal(a, b) for a, b in zip(whole, same_size, strict=True))


def test_what_weighs_equally_matters_only_where_units_are_missing_or_episodes_differ():
    full = {by: updated(masked=False, loss_mean=by)[0] for by in ("token", "chunk", "trajectory")}
    cut = {by: updated(masked=True, loss_mean=by)[0] for by in ("token", "chunk")}
    assert all(map(torch.equal, full["token"], full["chunk"]))
    assert not all(map(torch.allclose, full["token"], full["trajectory"]))
    assert not all(map(torch.allclose, cut["token"], cut["chunk"]))
