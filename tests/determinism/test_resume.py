"""An interrupted and resumed run equals the uninterrupted one bit for bit."""

import dataclasses
import shutil
from typing import Any

import pytest
import torch

from embodied_rl import checkpoint
from embodied_rl.build import load_policy
from embodied_rl.config import (
    CheckpointConfig,
    ConfigError,
    EnvConfig,
    ImitationConfig,
    TrainConfig,
    component,
)
from embodied_rl.flow import FlowConfig
from embodied_rl.trainer import open_session, train


def reach_config(tmp_path, **changes):
    config = TrainConfig(
        name="reach",
        env=EnvConfig(
            simulator=component("envs", "reach", num_tasks=3),
            num_envs=8,
            chunk_length=2,
            max_episode_steps=12,
        ),
        policy=component(
            "policies", "flow_mlp", flow=FlowConfig(num_denoise_steps=2), hidden_dims=(16,)
        ),
        algorithm=component("algorithms", "ppo"),
        total_env_steps=600,
        checkpoint=CheckpointConfig(every=1, keep_last=1000),
        runs=str(tmp_path),
    )
    return dataclasses.replace(config, **changes)


def grouped(config):
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, group_size=4),
        policy=config.policy.replace(critic="none"),
        algorithm=component("algorithms", "grpo", kl_coef=0.1),
        advantage=component("advantages", "group_relative"),
        max_refills=1,
    )


def flatten(tree, prefix=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}/{key}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from flatten(value, f"{prefix}/{index}")
    else:
        yield prefix, tree


def assert_equal_trees(a, b):
    left, right = dict(flatten(a)), dict(flatten(b))
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[name]), name
        else:
            assert value == right[name], name


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("step_*"))


VARIANTS = {
    "whole_episodes": {},
    "fixed_length": {"num_steps": 5},
    "asynchronous": {"num_steps": 5, "asynchronous": True},
    "vade": {"sampler": component("samplers", "vade_thompson")},
    "vas": {"sampler": component("samplers", "vas_mixed", refresh_every=2, refresh_trials=2)},
    "ladder": {"sampler": component("samplers", "difficulty_ladder")},
    "normalised": {"num_steps": 5, "normalize_rewards": True, "normalize_values": True},
    "annealed": {
        "policy": component(
            "policies",
            "flow_mlp",
            flow=FlowConfig(num_denoise_steps=2, noise_level=0.5, anneal_to=0.2),
            hidden_dims=(16,),
        )
    },
}


def run_whole_and_interrupted(config, tmp_path, *, after):
    """The same run, whole, and as if it had died after some iterations and been resumed."""
    whole = train(config, folder=tmp_path / "whole", final=False)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    for path in checkpoints(broken)[after:]:
        shutil.rmtree(path)
    train(config, folder=broken, resume=True, final=False)
    return whole, broken


@pytest.mark.parametrize("variant", [*VARIANTS, "grouped", "shards"])
def test_resumed_equals_uninterrupted(tmp_path, variant):
    config = reach_config(tmp_path, **VARIANTS.get(variant, {}))
    if variant == "grouped":
        config = grouped(config)
    if variant == "shards":
        config = dataclasses.replace(
            config, env=dataclasses.replace(config.env, num_shards=2), num_steps=5
        )
    whole, broken = run_whole_and_interrupted(config, tmp_path, after=2)
    assert len(checkpoints(whole)) >= 4
    last, again = checkpoints(whole)[-1], checkpoints(broken)[-1]
    assert last.name == again.name
    assert_equal_trees(checkpoint.load(last), checkpoint.load(again))


@pytest.mark.parametrize("env", ["CartPole-v1"])
def test_resumed_equals_uninterrupted_on_envpool(tmp_path, env):
    config = reach_config(
        tmp_path,
        env=EnvConfig(
            simulator=component("envs", "envpool", id=env),
            num_envs=4,
            num_threads=1,
            normalize_obs=True,
        ),
        policy=component("policies", "categorical_mlp"),
        num_steps=16,
        total_env_steps=400,
    )
    whole, broken = run_whole_and_interrupted(config, tmp_path, after=3)
    assert_equal_trees(
        checkpoint.load(checkpoints(whole)[-1]), checkpoint.load(checkpoints(broken)[-1])
    )


@pytest.mark.parametrize("num_steps", [0, 6])
def test_resumed_equals_uninterrupted_on_metaworld(tmp_path, num_steps):
    pytest.importorskip("metaworld")
    config = reach_config(
        tmp_path,
        env=EnvConfig(
            simulator=component("envs", "metaworld", tasks=("reach-v3", "push-v3")),
            num_envs=4,
            chunk_length=4,
            max_episode_steps=40,
            instruction_embedding="hashed",
        ),
        imitation=ImitationConfig(episodes_per_task=1, num_steps=20),
        num_steps=num_steps,
        total_env_steps=500,
    )
    whole, broken = run_whole_and_interrupted(config, tmp_path, after=2)
    assert_equal_trees(
        checkpoint.load(checkpoints(whole)[-1]), checkpoint.load(checkpoints(broken)[-1])
    )


def test_another_seed_is_another_run(tmp_path):
    config = reach_config(tmp_path, total_env_steps=100)
    first = train(config, folder=tmp_path / "a", final=False)
    second = train(dataclasses.replace(config, seed=1), folder=tmp_path / "b", final=False)
    a = checkpoint.load(checkpoints(first)[-1])["policy"]
    b = checkpoint.load(checkpoints(second)[-1])["policy"]
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_annealed_noise_shrinks_over_a_run_and_is_found_again_in_its_checkpoint(tmp_path):
    config = reach_config(tmp_path, **VARIANTS["annealed"])
    folder = train(config, folder=tmp_path / "run", final=False)
    policies: list[Any] = [load_policy(path)[0] for path in checkpoints(folder)]
    levels = [policy.flow.noise_level for policy in policies]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 0.3 and levels[-1] == pytest.approx(0.1)


def test_a_run_may_start_from_the_weights_of_another(tmp_path):
    config = reach_config(tmp_path, total_env_steps=100)
    first = train(config, folder=tmp_path / "first", final=False)
    follower = dataclasses.replace(config, seed=5, init_from=str(first))
    session = open_session(follower, tmp_path / "second")
    weights = checkpoint.load(checkpoints(first)[-1])["policy"]
    assert_equal_trees(session.module.state_dict(), weights)
    wider = dataclasses.replace(follower, policy=config.policy.replace(hidden_dims=(17,)))
    with pytest.raises(ConfigError, match="holds another policy"):
        open_session(wider, tmp_path / "third")
