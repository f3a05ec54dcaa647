"""Advantage estimators against definitions written as Python loops over one episode at a time."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl.advantages.gae import gae, gae_advantages
from embodied_rl.advantages.group_relative import (
    group_advantages,
    group_relative,
    informative_groups,
    rloo,
)
from embodied_rl.advantages.monte_carlo import discounted_returns, monte_carlo
from embodied_rl.advantages.reinforce_pp import reinforce_pp
from embodied_rl.advantages.scan import forward_scan, reverse_scan
from embodied_rl.losses.policy import policy_gradient
from embodied_rl.types import Advantages, Rollout

NAN = float("nan")


def make_rollout(*, num_steps: int, num_envs: int, seed: int = 0, **fields: Tensor) -> Rollout:
    """Episodes of random length that terminate, truncate or are cut; NaN where not stepped."""
    rng = torch.Generator().manual_seed(seed)
    shape = (num_steps, num_envs)
    terminated = torch.rand(shape, generator=rng) < 0.12
    truncated = (torch.rand(shape, generator=rng) < 0.12) & ~terminated
    dones = terminated | truncated
    after_done = torch.zeros(shape, dtype=torch.bool)
    after_done[1:] = dones[:-1]
    valid = ~(after_done & (torch.rand(shape, generator=rng) < 0.5))
    terminated, truncated = terminated & valid, truncated & valid
    starts = torch.zeros(shape, dtype=torch.int64)
    starts[1:] = (dones & valid)[:-1]
    episode_ids = starts.cumsum(0) * num_envs + torch.arange(num_envs)

    def floats() -> Tensor:
        return torch.randn(shape, generator=rng)

    values, next_values = floats(), floats()
    next_values[:-1] = torch.where((dones & valid)[:-1], next_values[:-1], values[1:])
    defaults: dict[str, Any] = {
        "rewards": torch.where(valid, floats(), NAN),
        "values": torch.where(valid, values, NAN),
        "next_values": torch.where(valid, torch.where(terminated, 0.0, next_values), NAN),
        "terminated": terminated,
        "truncated": truncated,
        "success": terminated & (torch.rand(shape, generator=rng) < 0.5),
        "valid": valid,
        "episode_ids": episode_ids,
        "group_ids": episode_ids % 3,
        "task_ids": torch.zeros(shape, dtype=torch.int64),
    }
    rest = {
        "obs": {},
        "actions": torch.zeros(shape),
        "log_probs": torch.zeros(*shape, 1),
        "unit_mask": torch.ones(*shape, 1, dtype=torch.bool),
        "num_env_steps": torch.ones(shape, dtype=torch.int64),
        "policy_version": torch.zeros(shape, dtype=torch.int64),
    }
    return Rollout(**{**rest, **defaults, **fields})


def whole_episodes(scores: Sequence[float], groups: list[int], *, length: int = 3) -> Rollout:
    """One episode per environment, rewarded at its last step."""
    num_envs = len(scores)
    rewards = torch.zeros(length, num_envs)
    rewards[-1] = torch.tensor(scores)
    ends = torch.zeros(length, num_envs, dtype=torch.bool)
    ends[-1] = True
    zeros = torch.zeros(length, num_envs)
    return make_rollout(
        num_steps=length,
        num_envs=num_envs,
        rewards=rewards,
        values=zeros,
        next_values=zeros,
        terminated=ends,
        truncated=torch.zeros_like(ends),
        success=rewards > 0,
        valid=torch.ones_like(ends),
        episode_ids=torch.arange(num_envs).expand(length, -1),
        group_ids=torch.tensor(groups).expand(length, -1),
        task_ids=torch.tensor(groups).expand(length, -1) % 2,
    )


def pieces(rollout: Rollout) -> Iterator[tuple[int, list[int]]]:
    """(environment, its consecutive steps up to an episode end, a gap or the rollout end)."""
    steps, envs = rollout.shape
    for n in range(envs):
        piece: list[int] = []
        for t in range(steps):
            if rollout.valid[t, n]:
                piece.append(t)
            if piece and (not rollout.valid[t, n] or rollout.dones[t, n] or t == steps - 1):
                yield n, piece
                piece = []


def n_step_return(rollout: Rollout, n: int, steps: list[int], gamma: float) -> float:
    """Sum of discounted rewards over ``steps``, then the value after the last of them."""
    rewards = [rollout.rewards[t, n].item() for t in steps]
    total = sum(gamma**i * reward for i, reward in enumerate(rewards))
    return total + gamma ** len(steps) * rollout.next_values[steps[-1], n].item()


def lambda_return(rollout: Rollout, n: int, steps: list[int], gamma: float, lam: float) -> float:
    """Weighted mean of all n-step returns (Sutton & Barto 2018, eq. 12.3)."""
    last = len(steps)
    total = lam ** (last - 1) * n_step_return(rollout, n, steps, gamma)
    for k in range(1, last):
        total += (1 - lam) * lam ** (k - 1) * n_step_return(rollout, n, steps[:k], gamma)
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0), (0.7, 0.5)])
def test_gae_is_the_lambda_return_minus_the_value(seed: int, gamma: float, lam: float) -> None:
    rollout = make_rollout(num_steps=37, num_envs=4, seed=seed)
    assert rollout.terminated.any() and rollout.truncated.any() and not rollout.valid.all()
    double = dataclasses.replace(
        rollout, **{k: getattr(rollout, k).double() for k in ("rewards", "values", "next_values")}
    )
    result = gae(double, gamma=gamma, gae_lambda=lam, normalize="none")
    assert result.returns is not None
    for n, steps in pieces(rollout):
        for i, t in enumerate(steps):
            target = lambda_return(rollout, n, steps[i:], gamma, lam)
            expected = target - rollout.values[t, n].item()
            assert result.advantages[t, n].item() == pytest.approx(expected, abs=1e-9)
            assert result.returns[t, n].item() == pytest.approx(target, abs=1e-9)
    assert (result.advantages[~rollout.valid] == 0).all()
    assert torch.equal(result.keep, rollout.valid)


def test_running_out_of_time_may_count_as_failure() -> None:
    rollout = make_rollout(num_steps=37, num_envs=4, seed=5)
    assert (rollout.next_values[rollout.truncated] != 0).all()
    dead = dataclasses.replace(
        rollout, next_values=torch.where(rollout.dones, 0.0, rollout.next_values)
    )
    result = gae(rollout, gamma=0.9, gae_lambda=0.8, bootstrap_truncated=False, normalize="none")
    assert result.returns is not None
    for n, steps in pieces(rollout):
        for i, t in enumerate(steps):
            target = lambda_return(dead, n, steps[i:], 0.9, 0.8)
            assert result.returns[t, n].item() == pytest.approx(target, abs=1e-5)


def test_a_gap_in_mid_episode_cuts_and_bootstraps() -> None:
    rollout = make_rollout(num_steps=40, num_envs=3, seed=4)
    gaps = torch.rand(rollout.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    rollout = dataclasses.replace(rollout, valid=rollout.valid & ~gaps)
    generalised = gae(rollout, gamma=0.9, gae_lambda=0.8, normalize="none")
    plain = monte_carlo(rollout, gamma=0.9, normalize="none")
    assert generalised.returns is not None and plain.returns is not None
    for n, steps in pieces(rollout):
        for i, t in enumerate(steps):
            smooth = lambda_return(rollout, n, steps[i:], 0.9, 0.8)
            target = n_step_return(rollout, n, steps[i:], 0.9)
            assert generalised.returns[t, n].item() == pytest.approx(smooth, abs=1e-5)
            assert plain.returns[t, n].item() == pytest.approx(target, abs=1e-5)


def test_gae_in_float32_keeps_its_precision_over_long_rollouts() -> None:
    rollout = make_rollout(num_steps=600, num_envs=2, seed=3)
    single = gae(rollout, gamma=0.999, gae_lambda=0.99, normalize="none").advantages
    wide = gae_advantages(
        rollout.rewards.double(),
        rollout.values.double(),
        rollout.next_values.double(),
        rollout.dones,
        gamma=0.999,
        gae_lambda=0.99,
        valid=rollout.valid,
    )
    torch.testing.assert_close(single.double(), wide, atol=2e-5, rtol=1e-5)


def fixed_point_of_the_value(*, truncation_is_death: bool) -> float:
    """Fit V to the GAE returns of a reward of 1 per step, cut every 8 steps, gamma .9."""
    shape = (16, 2)
    cut = torch.zeros(shape, dtype=torch.bool)
    cut[7::8] = True
    value = torch.tensor(0.0)
    for _ in range(300):
        values = value.expand(shape)
        next_values = torch.where(cut, 0.0, values) if truncation_is_death else values
        advantages = gae_advantages(
            torch.ones(shape), values, next_values, cut, gamma=0.9, gae_lambda=0.95
        )
        value = (advantages + values).mean()
    return value.item()


def test_value_converges_to_one_over_one_minus_gamma() -> None:
    assert fixed_point_of_the_value(truncation_is_death=False) == pytest.approx(10.0, abs=1e-3)


def test_value_is_too_low_if_time_limits_count_as_death() -> None:
    assert fixed_point_of_the_value(truncation_is_death=True) < 8.0


@pytest.mark.parametrize("normalize", ["batch", "task"])
def test_normalised_advantages_have_zero_mean_and_unit_std_per_segment(normalize: str) -> None:
    rollout = make_rollout(num_steps=40, num_envs=6, seed=1)
    tasks = torch.arange(6).expand(40, -1) % 2
    rollout = dataclasses.replace(rollout, task_ids=tasks, rewards=rollout.rewards + 50 * tasks)
    result = gae(rollout, normalize=normalize)  # pyright: ignore[reportArgumentType]
    segments = [rollout.valid]
    if normalize == "task":
        segments = [rollout.valid & (tasks == task) for task in (0, 1)]
    for segment in segments:
        rows = result.advantages[segment]
        assert rows.mean().item() == pytest.approx(0, abs=1e-5)
        assert rows.std().item() == pytest.approx(1, abs=1e-4)
    assert not result.advantages.isnan().any()


def test_normalising_equal_advantages_gives_zero_not_rounding_noise() -> None:
    rollout = make_rollout(num_steps=9, num_envs=7, seed=2)
    same = torch.where(rollout.valid, 0.1, NAN)
    zeros = torch.zeros_like(same)
    rollout = dataclasses.replace(rollout, rewards=same, values=zeros, next_values=zeros)
    advantages = gae(rollout, gae_lambda=0.0, normalize="batch").advantages
    assert advantages.abs().max() < 1e-5


def test_an_unknown_normalisation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="batch, task, none"):
        gae(make_rollout(num_steps=4, num_envs=2), normalize="max")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(3))
def test_monte_carlo_is_the_return_to_the_cut(seed: int) -> None:
    rollout = make_rollout(num_steps=29, num_envs=3, seed=seed)
    result = monte_carlo(rollout, gamma=0.9, normalize="none")
    plain = monte_carlo(rollout, gamma=0.9, baseline="none", normalize="none")
    assert result.returns is not None
    for n, steps in pieces(rollout):
        for i, t in enumerate(steps):
            target = n_step_return(rollout, n, steps[i:], 0.9)
            assert result.returns[t, n].item() == pytest.approx(target, abs=1e-5)
            assert plain.advantages[t, n].item() == pytest.approx(target, abs=1e-5)
            baseline = rollout.values[t, n].item()
            assert result.advantages[t, n].item() == pytest.approx(target - baseline, abs=1e-5)


def test_gae_with_lambda_one_is_monte_carlo_when_next_values_are_the_values() -> None:
    shape = (23, 5)
    rng = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    next_values = torch.cat([values[1:], torch.randn(1, 5, generator=rng)])
    dones = torch.zeros(shape, dtype=torch.bool)
    one = gae_advantages(rewards, values, next_values, dones, gamma=0.97, gae_lambda=1.0)
    returns = discounted_returns(rewards, next_values, dones, gamma=0.97)
    torch.testing.assert_close(one, returns - values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 65, 300])
def test_scans_solve_their_recurrence(length: int) -> None:
    rng = torch.Generator().manual_seed(length)
    u = torch.randn(length, 2, generator=rng, dtype=torch.float64)
    c = 0.9 + 0.1 * torch.rand(length, 2, generator=rng, dtype=torch.float64)
    start = torch.randn(2, generator=rng, dtype=torch.float64)
    backward, forward = reverse_scan(u, c), forward_scan(u, c, initial=start)
    after = torch.cat([backward[1:], torch.zeros(1, 2)])
    before = torch.cat([start[None], forward[:-1]])
    torch.testing.assert_close(backward - c * after, u)
    torch.testing.assert_close(forward - c * before, u)


def scores_by_episode(rollout: Rollout) -> dict[int, dict[str, Any]]:
    table: dict[int, dict[str, Any]] = defaultdict(lambda: {"score": 0.0, "done": False})
    for t in range(rollout.shape[0]):
        for n in range(rollout.shape[1]):
            if rollout.valid[t, n]:
                row = table[int(rollout.episode_ids[t, n])]
                row["score"] += rollout.rewards[t, n].item()
                row["done"] |= bool(rollout.dones[t, n])
                row["group"] = int(rollout.group_ids[t, n])
    return table


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_group_relative_equals_dictionary_loops(seed: int, scale: str, leave_one_out: bool) -> None:
    rollout = make_rollout(num_steps=31, num_envs=4, seed=seed)
    result = group_relative(
        rollout,
        scale=scale,  # pyright: ignore[reportArgumentType]
        leave_one_out=leave_one_out,
        drop_uninformative=False,
    )
    episodes = scores_by_episode(rollout)
    complete = {e: row for e, row in episodes.items() if row["done"]}
    assert 0 < len(complete) < len(episodes)
    expected: dict[int, float] = dict.fromkeys(episodes, 0.0)
    for e, row in complete.items():
        peers = {p: r["score"] for p, r in complete.items() if r["group"] == row["group"]}
        if len(peers) > 1:
            others = [score for p, score in peers.items() if p != e or not leave_one_out]
            spread = statistics.stdev(peers.values()) + 1e-6 if scale == "std" else 1.0
            expected[e] = (row["score"] - statistics.fmean(others)) / spread
    for t in range(rollout.shape[0]):
        for n in range(rollout.shape[1]):
            e = int(rollout.episode_ids[t, n])
            valid = bool(rollout.valid[t, n])
            assert bool(result.keep[t, n]) == (valid and e in complete)
            value = expected[e] if valid else 0.0
            assert result.advantages[t, n].item() == pytest.approx(value, abs=1e-4)
    assert result.stats["num_incomplete_episodes"] == len(episodes) - len(complete)


def test_rloo_is_group_relative_with_leave_one_out_and_no_scale() -> None:
    scores = torch.tensor([1.0, 0.0, 0.0, 4.0])
    groups = torch.tensor([8, 8, 8, 9])
    expected = torch.tensor([1.0, -0.5, -0.5, 0.0])
    result = rloo(whole_episodes(scores.tolist(), groups.tolist()))
    torch.testing.assert_close(result.advantages[0], expected)
    assert result.keep[0].tolist() == [True, True, True, False]


def test_uninformative_groups_are_dropped_and_counted() -> None:
    rollout = whole_episodes([1, 0, 1, 1, 0, 0, 0.3, 0.3], [5, 5, 6, 6, 7, 7, 8, 8])
    result = group_relative(rollout)
    assert result.keep[0].tolist() == [True, True] + [False] * 6
    assert result.stats["num_groups"] == 4
    assert result.stats["informative_group_fraction"] == 0.25
    assert result.stats["kept_group_fraction"] == 0.25
    everything = group_relative(rollout, drop_uninformative=False)
    assert everything.keep.all()
    assert everything.stats["informative_group_fraction"] == 0.25
    torch.testing.assert_close(everything.advantages, result.advantages)


def test_informative_groups_is_false_for_equal_scores_and_lone_episodes() -> None:
    scores = torch.tensor([0.1 + 0.2, 0.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    groups = torch.tensor([-4, 70, -4, 70, 3])
    assert informative_groups(scores, groups).tolist() == [False, True, False, True, False]


def test_success_window_keeps_groups_inside_it() -> None:
    groups = [0] * 4 + [1] * 4 + [2] * 4
    rollout = whole_episodes([0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0], groups)
    result = group_relative(rollout, success_window=(0.25, 0.5))
    assert result.keep[0].tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert result.stats["kept_group_fraction"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="lo <= hi"):
        group_relative(rollout, success_window=(0.9, 0.1))


def test_a_group_that_mixes_tasks_is_refused() -> None:
    rollout = whole_episodes([1, 0, 1, 0], [3, 3, 4, 4])
    tasks = torch.tensor([0, 0, 0, 1]).expand(3, -1)
    for estimator in (group_relative, rloo, reinforce_pp):
        with pytest.raises(ValueError, match="group 4 mixes tasks 0 and 1"):
            estimator(dataclasses.replace(rollout, task_ids=tasks))


def test_group_advantages_are_invariant_to_shift_scale_and_order() -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(24, generator=rng, dtype=torch.float64)
    groups = torch.randint(5, (24,), generator=rng)
    base = group_advantages(scores, groups)
    torch.testing.assert_close(
        group_advantages(7 * scores + groups, groups), base, atol=1e-5, rtol=0
    )
    order = torch.randperm(24, generator=rng)
    torch.testing.assert_close(group_advantages(scores[order], groups[order]), base[order])


def gradient_over_kept_rows(rollout: Rollout) -> Tensor:
    """Policy gradient with respect to a logit per row, averaged over the kept rows."""
    result = group_relative(rollout)
    theta = torch.tensor(0.0, requires_grad=True)
    scores = torch.linspace(-1, 1, 3)[:, None].expand(rollout.shape)
    rows = result.keep
    signs = torch.sign(rollout.rewards.sum(0)).expand(rollout.shape)
    log_probs = (theta * scores * signs)[rows].unsqueeze(-1)
    loss, _ = policy_gradient(log_probs, (result.advantages * (1 + scores))[rows])
    loss.backward()
    assert theta.grad is not None
    return theta.grad


def test_dropping_groups_does_not_shrink_the_step() -> None:
    few = whole_episodes([1.0, 0, 0, 1], [0, 0, 1, 1])
    many = whole_episodes([1, 0, 0, 1] + [1] * 8, [0, 0, 1, 1] + [2] * 4 + [3] * 4)
    gradient = gradient_over_kept_rows(few)
    assert gradient.abs() > 0.01
    torch.testing.assert_close(gradient_over_kept_rows(many), gradient)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_reinforce_pp_normalises_returns_to_go_of_complete_episodes(
    seed: int, gamma: float
) -> None:
    rollout = make_rollout(num_steps=27, num_envs=4, seed=seed)
    result = reinforce_pp(rollout, gamma=gamma)
    to_go: dict[tuple[int, int], float] = {}
    for n, steps in pieces(rollout):
        if rollout.dones[steps[-1], n]:
            for i, t in enumerate(steps):
                rewards = [rollout.rewards[s, n].item() for s in steps[i:]]
                to_go[t, n] = sum(gamma**k * reward for k, reward in enumerate(rewards))
    mean, std = statistics.fmean(to_go.values()), statistics.stdev(to_go.values())
    for t in range(rollout.shape[0]):
        for n in range(rollout.shape[1]):
            assert bool(result.keep[t, n]) == ((t, n) in to_go)
            expected = (to_go[t, n] - mean) / std if (t, n) in to_go else 0.0
            assert result.advantages[t, n].item() == pytest.approx(expected, abs=1e-4)


def test_reinforce_pp_with_a_group_baseline_pays_the_centred_outcome() -> None:
    rollout = whole_episodes([1, 0, 7, 3], [0, 0, 1, 1], length=2)
    raw = torch.tensor([[0.25, -0.25, 1, -1], [0.5, -0.5, 2, -2]])
    result = reinforce_pp(rollout, gamma=0.5, baseline="group")
    torch.testing.assert_close(result.advantages, raw / raw.std(), atol=1e-5, rtol=0)


ESTIMATORS = [gae, monte_carlo, group_relative, rloo, reinforce_pp]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_that_were_not_stepped_change_nothing(
    estimator: Callable[[Rollout], Advantages],
) -> None:
    rollout = make_rollout(num_steps=25, num_envs=4, seed=5)
    hole = ~rollout.valid
    garbage = {
        name: torch.where(hole, 1e3, getattr(rollout, name))
        for name in ("rewards", "values", "next_values")
    }
    flags = {name: getattr(rollout, name) | hole for name in ("terminated", "success")}
    ids = {name: getattr(rollout, name) + 1000 * hole for name in ("episode_ids", "task_ids")}
    clean = estimator(rollout)
    dirty = estimator(dataclasses.replace(rollout, **garbage, **flags, **ids))
    torch.testing.assert_close(clean.advantages, dirty.advantages)
    assert torch.equal(clean.keep, dirty.keep)
    assert clean.stats == pytest.approx(dirty.stats)
    assert not (clean.keep & hole).any()
    assert clean.advantages.isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_permuting_environments_permutes_advantages(
    estimator: Callable[[Rollout], Advantages],
) -> None:
    rollout = make_rollout(num_steps=15, num_envs=5, seed=6)
    order = torch.tensor([3, 0, 4, 1, 2])
    fields = {
        f.name: getattr(rollout, f.name)[:, order]
        for f in dataclasses.fields(rollout)
        if isinstance(getattr(rollout, f.name), Tensor)
    }
    permuted = estimator(dataclasses.replace(rollout, **fields))
    plain = estimator(rollout)
    torch.testing.assert_close(permuted.advantages, plain.advantages[:, order], atol=1e-5, rtol=0)
    assert torch.equal(permuted.keep, plain.keep[:, order])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_rollout_without_a_stepped_row_gives_zeros(
    estimator: Callable[[Rollout], Advantages],
) -> None:
    rollout = make_rollout(num_steps=3, num_envs=2)
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    result = estimator(dataclasses.replace(rollout, valid=nothing))
    assert not result.keep.any()
    assert (result.advantages == 0).all()
    assert all(math.isfinite(value) for value in result.stats.values())


def test_gae_of_a_long_rollout_takes_milliseconds() -> None:
    shape = (2048, 8)
    floats, dones = torch.randn(shape), torch.rand(shape) < 0.01

    def seconds() -> float:
        start = time.perf_counter()
        gae_advantages(floats, floats, floats, dones, gamma=0.99, gae_lambda=0.95)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.003
