"""Shards that take turns: the episodes of each are its own, and simulating overlaps acting."""

import dataclasses
import time
from typing import Any, cast

import pytest
import torch

from embodied_rl import rollout as rollouts
from embodied_rl.build import build_training_env
from embodied_rl.check_env import CHECKS
from embodied_rl.config import ConfigError, EnvConfig, TrainConfig, check, component
from embodied_rl.envs import make_env
from embodied_rl.envs.shards import ShardedVectorEnv
from embodied_rl.envs.wrappers import Wrapper
from embodied_rl.types import PolicyOutput, VectorEnv

ENV = EnvConfig(
    simulator=component("envs", "reach", num_tasks=4),
    num_envs=12,
    num_shards=3,
    chunk_length=2,
    max_episode_steps=9,
)


def sharded(*, num_envs: int, seed: int, group_size: int = 1, **options: Any) -> VectorEnv:
    seeds = options.pop("episode_seeds", None)
    options.setdefault("max_episode_steps", 7)
    sizes = [num_envs // group_size // 2 * group_size]
    sizes.append(num_envs - sizes[0])
    envs = [
        make_env(
            "reach",
            num_envs=size,
            seed=seed + i,
            group_size=group_size,
            episode_seeds=None if seeds is None else seeds[i * sizes[0] :][:size],
            **options,
        )
        for i, size in enumerate(sizes)
        if size
    ]
    return ShardedVectorEnv(envs, group_size=group_size)


@pytest.mark.parametrize("name", CHECKS)
def test_shards_are_one_conformant_environment(name):
    run, _ = CHECKS[name]
    run(sharded)


class Greedy:
    """Walks in one direction; its action is a function of the observation alone."""

    spec: Any = None

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def sample(self, obs, *, deterministic=False, generator=None):
        time.sleep(self.seconds)
        actions = obs["state"][:, None, :2].cos().expand(-1, 2, -1).contiguous()
        return PolicyOutput(actions=actions, log_probs=torch.zeros(len(actions), 1))

    def value(self, obs):
        return obs["state"].sum(-1)

    def unit_mask(self, executed):
        return executed.any(1, keepdim=True)


def gather(env, policy, *, num_steps, cursor=None):
    cursor = cursor or rollouts.start(env)
    rollout = rollouts.collect(env, policy, cursor, num_steps=num_steps, generator=None)
    return rollout, cursor


@pytest.mark.parametrize("num_steps", [0, 11])
def test_each_shard_records_what_it_would_alone(num_steps):
    def build():
        return build_training_env(ENV, seed=5, autoreset=num_steps > 0, device="cpu")

    env: Any = build()
    rollout, cursor = gather(env, Greedy(), num_steps=num_steps)
    assert cursor.env_steps == int(rollout.num_env_steps.sum())
    alone: Any = build()
    alone.reset()
    for i, shard in enumerate(alone.shards):
        begun = rollouts.Cursor(shard.obs, torch.arange(4), next_episode_id=4)
        part, _ = gather(shard, Greedy(), num_steps=num_steps, cursor=begun)
        rows, steps = slice(4 * i, 4 * i + 4), part.shape[0]
        for name in ("actions", "rewards", "success", "terminated", "valid", "next_values"):
            assert torch.equal(getattr(rollout, name)[:steps, rows], getattr(part, name)), name
        assert not rollout.valid[steps:, rows].any()
        assert torch.equal(cursor.obs["state"][rows], begun.obs["state"])


def test_ids_of_episodes_and_groups_are_distinct_over_all_shards():
    env = build_training_env(
        dataclasses.replace(ENV, group_size=2), seed=5, autoreset=True, device="cpu"
    )
    assert env.task_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1]
    rollout, _ = gather(env, Greedy(), num_steps=11)
    assert rollout.task_ids[0].tolist() == env.task_ids.tolist()
    assert len(rollout.group_ids[0].unique()) == 6
    for ids in rollout.episode_ids.unique():
        _, row = (rollout.episode_ids == ids).nonzero().unbind(1)
        assert len(row.unique()) == 1


class Slow(Wrapper):
    """An environment that takes its time, or fails, without the interpreter lock."""

    def __init__(self, env, *, seconds=0.0, fails=False):
        super().__init__(env)
        self.seconds, self.fails = seconds, fails

    def recv(self):
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError("the table fell over")
        return super().recv()


def slow_env(*, shards, **options):
    envs = [
        Slow(make_env("reach", num_envs=4, seed=i, chunk_length=2), **options)
        for i in range(shards)
    ]
    return ShardedVectorEnv(envs)


def test_acting_for_one_shard_overlaps_the_simulation_of_the_other():
    env = slow_env(shards=2, seconds=0.05)
    started = time.perf_counter()
    gather(env, Greedy(seconds=0.05), num_steps=10)
    # 10 decisions of two shards: in turn 10 * 4 * 50 ms = 2 s, overlapped half of it.
    assert time.perf_counter() - started < 1.4


def test_what_a_shard_raises_reaches_the_caller():
    env = slow_env(shards=2, fails=True)
    with pytest.raises(RuntimeError, match="the table fell over"):
        gather(env, Greedy(), num_steps=3)
    env.close()


def test_gradient_steps_are_taken_once_per_decision_of_all_shards():
    env = build_training_env(ENV, seed=5, autoreset=True, device="cpu")
    calls: list[int] = []
    cursor, policy = rollouts.start(env), cast(Any, Greedy())
    rollouts.collect(
        env, policy, cursor, num_steps=6, generator=None, while_stepping=lambda: calls.append(1)
    )
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_shards": 5}, "env.num_shards=5 does not share out env.num_envs=12"),
        ({"num_shards": 0}, "env.num_shards=0"),
        ({"normalize_obs": True}, "set env.num_shards to 1"),
    ],
)
def test_settings_that_cannot_be_shared_out_are_refused(changes, message):
    config = TrainConfig(
        name="shards",
        env=dataclasses.replace(ENV, **changes),
        policy=component("policies", "gaussian_mlp"),
        algorithm=component("algorithms", "ppo"),
        num_steps=8,
        total_env_steps=100,
    )
    with pytest.raises(ConfigError, match=message):
        check(config)
