"""Running statistics against the statistics of all the data at once, and against plain loops."""

from __future__ import annotations

import statistics

import pytest
import torch

from embodied_rl.advantages.normalize import ReturnNormalizer, RunningMoments


def test_running_moments_do_not_depend_on_the_split() -> None:
    rng = torch.Generator().manual_seed(0)
    x = 1e4 + torch.randn(100, 3, generator=rng)
    moments = RunningMoments(shape=(3,))
    for part in x.split([1, 40, 0, 59]):
        moments.update(part)
    torch.testing.assert_close(moments.mean, x.double().mean(0))
    torch.testing.assert_close(moments.var, x.double().var(0, correction=0))
    assert moments.count == 100


def test_merging_processes_equals_one_process() -> None:
    x = torch.arange(20.0).square()
    one, left, right = RunningMoments(), RunningMoments(), RunningMoments()
    one.update(x)
    left.update(x[:7])
    right.update(x[7:])
    left.merge(right)
    torch.testing.assert_close(left.var, one.var)
    torch.testing.assert_close(left.mean, one.mean)


def test_masked_observations_do_not_count() -> None:
    x = torch.tensor([[1.0, float("nan")], [3.0, 5.0]])
    moments = RunningMoments()
    moments.update(x, mask=~x.isnan())
    moments.update(x, mask=torch.zeros_like(x, dtype=torch.bool))
    assert moments.mean == 3.0
    assert moments.var.item() == pytest.approx(statistics.pvariance([1, 3, 5]))


def test_fresh_moments_change_nothing_and_denormalize_inverts() -> None:
    x = torch.linspace(-3, 3, 7)
    moments = RunningMoments()
    torch.testing.assert_close(moments.normalize(x), x)
    moments.update(x * 5 + 2)
    y = moments.normalize(x)
    assert not torch.allclose(x, y)
    assert y.dtype == torch.float32
    torch.testing.assert_close(moments.denormalize(y), x)


def test_normalised_observations_have_zero_mean_and_unit_std() -> None:
    x = 40 + 3 * torch.randn(500, generator=torch.Generator().manual_seed(1))
    moments = RunningMoments()
    moments.update(x)
    y = moments.normalize(x)
    assert y.mean().item() == pytest.approx(0, abs=1e-4)
    assert y.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_moments_survive_a_checkpoint_and_refuse_a_foreign_one() -> None:
    x = torch.randn(9, 2)
    moments, other = RunningMoments(shape=(2,)), RunningMoments(shape=(2,))
    moments.update(x)
    state = moments.state_dict()
    other.load_state_dict(state)
    moments.update(x + 1)
    other.update(x + 1)
    assert torch.equal(moments.mean, other.mean) and torch.equal(moments.var, other.var)
    with pytest.raises(ValueError, match="same normaliser"):
        RunningMoments().load_state_dict(state)


def discounted_so_far(
    rewards: torch.Tensor, dones: torch.Tensor, valid: torch.Tensor, gamma: float
) -> list[float]:
    """Every discounted return so far, environment by environment, step by step."""
    seen = []
    for n in range(rewards.shape[1]):
        total = 0.0
        for t in range(rewards.shape[0]):
            if valid[t, n]:
                total = total * gamma + rewards[t, n].item()
                seen.append(total)
                total = 0.0 if dones[t, n] else total
    return seen


def test_return_normalizer_divides_by_the_std_of_the_return_so_far() -> None:
    rng = torch.Generator().manual_seed(0)
    shape = (40, 3)
    rewards = 7 * torch.randn(shape, generator=rng) + 1
    dones = torch.rand(shape, generator=rng) < 0.15
    valid = torch.rand(shape, generator=rng) < 0.8
    normalizer = ReturnNormalizer(num_envs=3, gamma=0.9)
    for rows in (slice(0, 13), slice(13, 14), slice(14, 40)):
        dirty = torch.where(valid, rewards, float("nan"))[rows]
        scaled = normalizer(dirty, dones=dones[rows], valid=valid[rows])
    std = statistics.pstdev(discounted_so_far(rewards, dones, valid, 0.9))
    expected = torch.where(valid, rewards / std, 0.0)[14:40]
    torch.testing.assert_close(scaled, expected)


def test_return_normalizer_clips() -> None:
    rewards = torch.zeros(200, 1)
    rewards[100] = 100.0
    flags = torch.ones(200, 1, dtype=torch.bool)
    scaled = ReturnNormalizer(num_envs=1, clip=3.0)(rewards, dones=flags, valid=flags)
    assert scaled.max() == 3.0


def test_return_normalizer_survives_a_checkpoint_in_mid_episode() -> None:
    rng = torch.Generator().manual_seed(0)
    rewards = torch.randn(2, 6, 4, generator=rng)
    dones = torch.zeros(6, 4, dtype=torch.bool)
    straight, resumed = ReturnNormalizer(num_envs=4), ReturnNormalizer(num_envs=4)
    straight(rewards[0], dones=dones, valid=~dones)
    resumed.load_state_dict(straight.state_dict())
    expected = straight(rewards[1], dones=dones, valid=~dones)
    assert torch.equal(resumed(rewards[1], dones=dones, valid=~dones), expected)
    fresh = ReturnNormalizer(num_envs=4)(rewards[1], dones=dones, valid=~dones)
    assert not torch.equal(fresh, expected)
    with pytest.raises(ValueError, match="same number of environments"):
        ReturnNormalizer(num_envs=3).load_state_dict(straight.state_dict())
