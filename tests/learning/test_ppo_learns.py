"""Proofs of learning: a threshold that an untrained policy fails, and a negative control."""

import dataclasses
from typing import Any

import pytest
import torch

from embodied_rl import rollout as rollouts
from embodied_rl.advantages.gae import gae
from embodied_rl.advantages.group_relative import group_relative
from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.algorithms.ppo import PPO
from embodied_rl.envs import make_env
from embodied_rl.flow import FlowConfig
from embodied_rl.policies import make_policy
from embodied_rl.policies.nn import ScaledCritic
from embodied_rl.types import PolicySpec


def identity_spec(num_actions):
    return PolicySpec(
        obs_shapes={"state": (num_actions,)},
        obs_dtypes={"state": "float32"},
        num_actions=num_actions,
    )


def train_identity(*, updates, shuffle=False, seed=0):
    torch.manual_seed(seed)
    env = make_env("identity", num_envs=16, seed=seed, num_actions=4)
    policy = make_policy("categorical_mlp", identity_spec(4))
    ppo = PPO(policy, PPO.Config(learning_rate=3e-3, critic_learning_rate=3e-3))
    generator = torch.Generator().manual_seed(seed)
    cursor = rollouts.start(env)
    for _ in range(updates):
        rollout = rollouts.collect(env, policy, cursor, num_steps=32, generator=generator)
        advantages = gae(rollout, gamma=0.5, gae_lambda=0.9)
        if shuffle:
            flat = advantages.advantages.flatten()
            mixed = flat[torch.randperm(len(flat), generator=generator)]
            advantages = dataclasses.replace(
                advantages, advantages=mixed.view_as(advantages.advantages)
            )
        ppo.update(rollout, advantages, generator=generator)
    rollout = rollouts.collect(env, policy, cursor, num_steps=64, generator=generator)
    return float(rollout.rewards.mean())


def test_ppo_learns_to_name_what_it_sees():
    assert train_identity(updates=25) > 0.9


def test_an_untrained_policy_and_shuffled_advantages_do_not_pass():
    assert train_identity(updates=0) < 0.5
    assert train_identity(updates=25, shuffle=True) < 0.6


@pytest.mark.parametrize("gamma", [0.8, 0.9])
def test_values_of_an_endless_reward_of_one_approach_the_geometric_series(gamma):
    # One action, reward 1 at every step, episodes cut (not ended) after 8 steps.
    assert abs(endless_value(gamma) - 1 / (1 - gamma)) < 0.05 / (1 - gamma)


def test_treating_the_time_limit_as_death_gets_the_value_wrong():
    finite = endless_value(0.9, time_limit_is_death=True)
    assert finite < 0.7 / (1 - 0.9)


def endless_value(gamma, *, time_limit_is_death=False):
    torch.manual_seed(0)
    env = make_env("identity", num_envs=8, seed=0, num_actions=1, max_episode_steps=8)
    policy = make_policy("categorical_mlp", identity_spec(1))
    ppo = PPO(policy, PPO.Config(critic_learning_rate=1e-2, num_epochs=10))
    generator = torch.Generator().manual_seed(0)
    cursor = rollouts.start(env)
    for _ in range(40):
        rollout = rollouts.collect(env, policy, cursor, num_steps=16, generator=generator)
        if time_limit_is_death:
            rollout = dataclasses.replace(
                rollout,
                next_values=rollout.next_values.masked_fill(rollout.truncated, 0.0),
            )
        ppo.update(rollout, gae(rollout, gamma=gamma, gae_lambda=0.9), generator=generator)
    return float(policy.value(cursor.obs).detach().mean())


REACH = PolicySpec(
    obs_shapes={"state": (4,)}, obs_dtypes={"state": "float32"}, action_dim=2, chunk_length=4
)


def train_reach(algorithm, *, updates, zero_advantages=False, **flow):
    """Dense reach: mean distance covered by a flow policy that starts from random weights."""
    torch.manual_seed(0)
    grouped = algorithm is GRPO
    env = make_env(
        "reach",
        num_envs=64,
        seed=0,
        reward="dense",
        chunk_length=4,
        max_episode_steps=8,
        autoreset=False,
        group_size=8 if grouped else 1,
    )
    policy = make_policy(
        "flow_mlp",
        REACH,
        flow=FlowConfig(num_denoise_steps=3, **flow),
        hidden_dims=(64, 64),
        critic="none" if grouped else "separate",
    )
    config = algorithm.Config(
        learning_rate=1e-3, num_epochs=4, clip_ratio_low=0.1, clip_ratio_high=0.1
    )
    update = algorithm(policy, config)
    generator = torch.Generator().manual_seed(0)
    cursor = rollouts.start(env)
    for index in range(updates):
        if index:
            rollouts.restart(env, cursor)
        rollout = rollouts.collect(env, policy, cursor, generator=generator)
        advantages = group_relative(rollout) if grouped else gae(rollout, gamma=0.9)
        if zero_advantages:
            flat = advantages.advantages
            advantages = dataclasses.replace(advantages, advantages=torch.zeros_like(flat))
        update.update(rollout, advantages, generator=generator)
    rollouts.restart(env, cursor)
    rollouts.collect(env, policy, cursor, generator=generator)
    return float(cursor.finished["return"].mean())


@pytest.mark.parametrize("algorithm", [PPO, GRPO])
@pytest.mark.parametrize(
    "flow",
    [
        {"sampler": "sde", "noise_level": 0.5},
        {"sampler": "noise", "std_min": 0.3, "std_max": 1.0},
        {"sampler": "cps", "noise_level": 0.5},
        {"sampler": "sde", "chain": "single_step"},
    ],
    ids=["sde", "noise", "cps", "single_step"],
)
def test_flow_policies_learn_to_reach(algorithm, flow):
    untrained = train_reach(algorithm, updates=0, **flow)
    trained = train_reach(algorithm, updates=60, **flow)
    assert trained > untrained + 1.5


def test_a_flow_policy_without_advantages_does_not_learn():
    untrained = train_reach(PPO, updates=0)
    assert train_reach(PPO, updates=60, zero_advantages=True) < untrained + 0.6


def value_error(*, normalize):
    """RMS error of V, relative to the returns, for rewards of 1000 per step."""
    torch.manual_seed(0)
    env = make_env("identity", num_envs=8, seed=0, num_actions=1, max_episode_steps=8)
    policy: Any = make_policy("categorical_mlp", identity_spec(1))
    if normalize:
        policy.critic = ScaledCritic(policy.critic)
    ppo = PPO(policy, PPO.Config(critic_learning_rate=3e-3, num_epochs=10))
    generator = torch.Generator().manual_seed(0)
    cursor = rollouts.start(env)
    for _ in range(15):
        rollout = rollouts.collect(env, policy, cursor, num_steps=16, generator=generator)
        rollout = dataclasses.replace(rollout, rewards=1000 * rollout.rewards)
        ppo.update(rollout, gae(rollout, gamma=0.5, gae_lambda=0.9), generator=generator)
    return abs(float(policy.value(cursor.obs).detach().mean()) / 2000 - 1)


def test_value_normalisation_learns_returns_of_any_scale():
    assert value_error(normalize=True) < 0.15
    assert value_error(normalize=False) > 0.5
