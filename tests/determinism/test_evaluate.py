"""Evaluation: which episodes are played, and that they are the same for everyone."""

from typing import Any

import pytest
import torch

from embodied_rl.build import build_env, build_policy, policy_spec
from embodied_rl.config import EnvConfig, TrainConfig, component
from embodied_rl.envs.toy import reach_expert
from embodied_rl.evaluate import SPLIT_RANGES, evaluate, evaluate_expert, make_manifest
from embodied_rl.registry import registry
from embodied_rl.seeding import derive_seed

CONFIG = TrainConfig(
    name="reach",
    env=EnvConfig(
        simulator=component("envs", "reach", num_tasks=3),
        num_envs=4,
        chunk_length=2,
        max_episode_steps=20,
    ),
    policy=component("policies", "gaussian_mlp"),
    algorithm=component("algorithms", "ppo"),
)


@pytest.fixture(scope="module")
def policy():
    env = build_env(CONFIG.env, seed=0, autoreset=False)
    return build_policy(CONFIG, policy_spec(env, CONFIG.env))


def play(policy: Any, *, episodes=60, split: Any = "tune", mode: Any = "greedy", env=CONFIG.env):
    names = ["reach-0", "reach-1", "reach-2"]
    manifest = make_manifest(names, episodes=episodes, split=split)
    return evaluate(policy, env, manifest, mode=mode)


def test_tune_test_and_training_seeds_cannot_meet():
    tune = set(make_manifest(["a"], episodes=5000, split="tune").seeds)
    test = set(make_manifest(["a"], episodes=5000, split="test").seeds)
    training = {derive_seed(seed, "env", row) for seed in range(5) for row in range(1000)}
    assert min(tune) >= SPLIT_RANGES["tune"] > max(training)
    assert max(tune) < SPLIT_RANGES["test"] <= min(test) and max(test) < 2**31


def test_the_manifest_is_a_function_of_tasks_length_and_split():
    one = make_manifest(["a", "b"], episodes=10, split="test")
    assert one.sha256 == make_manifest(["a", "b"], episodes=10, split="test").sha256
    for other in (
        make_manifest(["a", "b"], episodes=10, split="tune"),
        make_manifest(["b", "a"], episodes=10, split="test"),
        make_manifest(["a", "b"], episodes=11, split="test"),
    ):
        assert other.sha256 != one.sha256
    longer = make_manifest(["a", "b"], episodes=20, split="test")
    assert longer.seeds[:10] == one.seeds


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_an_evaluation_repeats_itself_and_its_per_task_counts_add_up(policy, mode):
    first, second = play(policy, mode=mode), play(policy, mode=mode)
    assert first == second
    assert sum(task["episodes"] for task in first["per_task"].values()) == 60
    wins = sum(t["success_rate"] * t["episodes"] for t in first["per_task"].values())
    assert round(wins) == first["successes"].count("1")
    assert first["ci_low"] <= first["success_rate"] <= first["ci_high"]


def test_a_longer_evaluation_begins_with_the_same_episodes(policy):
    assert play(policy, episodes=120)["successes"][:60] == play(policy)["successes"]


def test_the_fingerprint_tells_another_environment_and_other_episodes_apart(policy):
    import dataclasses

    one = play(policy)
    shorter = dataclasses.replace(CONFIG.env, max_episode_steps=10)
    assert play(policy, env=shorter)["fingerprint"] != one["fingerprint"]
    assert play(policy, split="test")["fingerprint"] != one["fingerprint"]
    assert play(policy, mode="sampled")["fingerprint"] == one["fingerprint"]
    rows = dataclasses.replace(CONFIG.env, num_envs=16)
    assert play(policy, env=rows)["fingerprint"] == one["fingerprint"]


def test_evaluation_leaves_global_random_state_alone(policy):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    play(policy, mode="sampled")
    assert torch.equal(before, torch.random.get_rng_state())


def test_blocks_of_one_size_share_an_environment_and_play_what_a_fresh_one_would(
    policy, monkeypatch
):
    made = []

    def counted(*args, **options):
        made.append(options["num_envs"])
        return build_env(*args, **options)

    monkeypatch.setattr("embodied_rl.evaluate.build_env", counted)
    whole = play(policy, episodes=50)
    monkeypatch.setattr("embodied_rl.evaluate.BLOCK", 20)
    parts = play(policy, episodes=50)
    assert made == [50, 20, 10]
    assert parts == whole  # lengths, returns, and a hash of every first observation among them


def test_the_scripted_expert_is_evaluated_like_a_policy(monkeypatch):
    def experts(task_names):
        """Solves the second task and stands still in the others."""
        assert task_names == ("reach-0", "reach-1", "reach-2")
        return lambda state, task_ids: reach_expert(state) * (task_ids == 1)[:, None]

    monkeypatch.setitem(registry("experts")._targets, "reach", experts)
    manifest = make_manifest(["reach-0", "reach-1", "reach-2"], episodes=60, split="tune")
    record = evaluate_expert(CONFIG.env, manifest)
    rates = {task: entry["success_rate"] for task, entry in record["per_task"].items()}
    assert rates == {"reach-0": 0, "reach-1": 1, "reach-2": 0}
    assert record["manifest_sha256"] == manifest.sha256 and record["episodes"] == 60


def test_an_environment_without_expert_is_one_sentence(monkeypatch):
    monkeypatch.delitem(registry("experts")._targets, "reach")
    manifest = make_manifest(["reach-0"], episodes=1, split="tune")
    with pytest.raises(ValueError, match=r"'reach' has no scripted expert \(these have: .*libero"):
        evaluate_expert(CONFIG.env, manifest)
