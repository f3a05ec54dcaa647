"""What an update must not depend on, and what every anchor must do."""

import copy
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
from embodied_rl.types import PolicySpec

SPEC = PolicySpec(
    obs_shapes={"state": (4,)}, obs_dtypes={"state": "float32"}, action_dim=2, chunk_length=3
)


def setting(*, group_size=1, policy="flow_mlp", seed=0, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    env = make_env(
        "reach",
        num_envs=16,
        seed=seed,
        chunk_length=3,
        max_episode_steps=15,
        num_tasks=4,
        autoreset=False,
        group_size=group_size,
    )
    if policy == "flow_mlp":
        options = {"flow": FlowConfig(num_denoise_steps=2), "hidden_dims": (16, 16), **options}
    built = make_policy(policy, SPEC, **options)
    cursor = rollouts.start(env)
    generator = torch.Generator().manual_seed(seed)
    return built, rollouts.collect(env, built, cursor, generator=generator)


def updated(policy, algorithm, config, rollout, advantages, **options):
    policy = copy.deepcopy(policy)
    update = algorithm(policy, config, **options)
    stats = update.update(rollout, advantages, generator=torch.Generator().manual_seed(1))
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), stats


@pytest.mark.parametrize("loss_mean", ["token", "chunk", "trajectory"])
@pytest.mark.parametrize("policy", ["flow_mlp", "gaussian_mlp"])
def test_micro_batches_give_the_update_of_the_whole_minibatch(policy, loss_mean):
    units: Any = {"units": "action"} if policy == "gaussian_mlp" else {}
    built, rollout = setting(policy=policy, **units)
    advantages = gae(rollout)
    results = [
        updated(
            built,
            PPO,
            PPO.Config(
                num_epochs=1,
                num_minibatches=2,
                micro_batch_size=m,
                loss_mean=loss_mean,
                entropy_coef=0.01,
            ),
            rollout,
            advantages,
        )[0]
        for m in (0, 5, 1)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(results[0], results[2], rtol=1e-3, atol=2e-5)


def test_the_first_ratio_is_one_whatever_the_scale_of_the_log_probs():
    for chain in ("joint_sum", "joint_mean", "single_step"):
        built, rollout = setting(flow=FlowConfig(num_denoise_steps=3, chain=chain))
        config = PPO.Config(num_epochs=1, num_minibatches=1)
        _, stats = updated(built, PPO, config, rollout, gae(rollout))
        assert abs(stats["ratio_mean"] - 1) < 1e-4
        assert stats["joint_kl"] < 1e-6 and stats["clip_fraction"] == 0


def test_dropping_groups_equals_never_having_had_them():
    built, rollout = setting(group_size=4, critic="none")
    # Make group 0 uninformative: equal rewards in all its rows.
    rewards = rollout.rewards.clone()
    rewards[:, :4] = 0.0
    rewards[:, 4:8] += torch.arange(4.0)
    rollout = dataclasses.replace(rollout, rewards=rewards)
    kept = group_relative(rollout)
    assert not kept.keep[:, :4].any() and kept.keep[:, 4:8].any()
    config = GRPO.Config(num_epochs=1, num_minibatches=1)
    whole, _ = updated(built, GRPO, config, rollout, kept)
    smaller = slice_rows(rollout, slice(4, None))
    alone, _ = updated(built, GRPO, config, smaller, group_relative(smaller))
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-6)


def slice_rows(rollout, rows):
    values = {}
    for field in dataclasses.fields(rollout):
        value = getattr(rollout, field.name)
        if isinstance(value, dict):
            values[field.name] = {k: v[:, rows] for k, v in value.items()}
        else:
            values[field.name] = value[:, rows]
    return type(rollout)(**values)


def test_a_strong_kl_penalty_and_a_w2_anchor_keep_the_policy_near_its_start():
    built, rollout = setting()
    advantages = gae(rollout)
    start = torch.cat([p.detach().flatten() for p in built.parameters()])

    def moved(**options):
        # The drift of the sampled actions' likelihood, not of the weights.
        config = PPO.Config(num_epochs=6, learning_rate=3e-3, value_coef=0.0, **options)
        _, stats = updated(built, PPO, config, rollout, advantages)
        return stats["joint_kl"]

    free = moved()
    assert moved(kl_coef=1000.0) < 0.5 * free
    assert moved(w2_coef=1000.0) < 0.5 * free
    assert torch.equal(start, torch.cat([p.detach().flatten() for p in built.parameters()]))


def test_target_kl_stops_the_epochs():
    built, rollout = setting()
    advantages = gae(rollout)
    config = PPO.Config(num_epochs=20, num_minibatches=1, learning_rate=1e-2)
    _, free = updated(built, PPO, config, rollout, advantages)
    stopped_config = dataclasses.replace(config, target_kl=1e-3)
    _, stopped = updated(built, PPO, stopped_config, rollout, advantages)
    assert free["num_gradient_steps"] == 20
    assert stopped["num_gradient_steps"] < 10


def test_kl_in_the_reward_is_charged_to_drifting_from_the_reference():
    built, rollout = setting()
    update = PPO(built, PPO.Config(kl_coef=0.5, kl_in="reward"))
    assert torch.allclose(update.shape_rewards(rollout).rewards, rollout.rewards, atol=1e-4)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    drifted = update.shape_rewards(rescored(built, rollout))
    assert not torch.allclose(drifted.rewards, rollout.rewards, atol=1e-3)
    assert torch.equal(drifted.rewards[~rollout.valid], rollout.rewards[~rollout.valid])


def rescored(policy, rollout):
    flat = {k: v.flatten(0, 1) for k, v in rollout.obs.items()}
    replay = {k: v.flatten(0, 1) for k, v in rollout.replay.items()}
    with torch.no_grad():
        output = policy.log_prob(flat, rollout.actions.flatten(0, 1), replay)
    return dataclasses.replace(rollout, log_probs=output.log_probs.unflatten(0, rollout.shape))


def test_options_that_would_do_nothing_are_refused():
    built, _ = setting()
    refused: list[Any] = [
        {"bc_coef": 1.0},
        {"kl_coef": 1.0, "kl_estimator": "k1"},
    ]
    for options in refused:
        with pytest.raises(ValueError, match="set"):
            PPO(built, PPO.Config(**options))


def test_the_imitation_anchor_pulls_the_policy_to_the_demonstrations():
    built, rollout = setting()
    rows = {"state": torch.randn(64, 4)}
    demonstrations = rows, torch.full((64, 3, 2), 0.5), torch.ones(64, 3, dtype=torch.bool)

    def distance(bc_coef):
        policy = copy.deepcopy(built)
        config = PPO.Config(num_epochs=60, learning_rate=1e-2, bc_coef=bc_coef)
        PPO(policy, config, demonstrations=demonstrations).update(
            rollout, gae(rollout), generator=torch.Generator().manual_seed(0)
        )
        actions = policy.sample(rows, generator=torch.Generator().manual_seed(1)).actions
        return float((actions.mean(0) - 0.5).abs().mean())

    assert distance(10.0) < 0.6 * distance(0.0)


def test_the_first_updates_of_a_critic_warm_up_leave_the_actor_alone():
    built, rollout = setting()
    policy = copy.deepcopy(built)
    update = PPO(policy, PPO.Config(critic_warmup=1, learning_rate=1e-2))
    names = [name for name, _ in policy.named_parameters()]

    def changed():
        return {
            name
            for name, old, new in zip(names, built.parameters(), policy.parameters(), strict=True)
            if not torch.equal(old, new)
        }

    update.update(rollout, gae(rollout), generator=torch.Generator().manual_seed(0))
    assert changed() and all(name.startswith("critic") for name in changed())
    update.update(rollout, gae(rollout), generator=torch.Generator().manual_seed(0))
    assert any(not name.startswith("critic") for name in changed())


@pytest.mark.parametrize("policy", ["gaussian_mlp", "flow_mlp"])
def test_a_compiled_loss_takes_the_same_steps(policy, monkeypatch):
    # One program is captured as in training, and run without the minutes of a C++ build.
    compile, programs = torch.compile, []

    def build(function, **options):
        programs.append(options)
        return compile(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", build)
    built, rollout = setting(policy=policy)
    results = []
    for compiled in (False, True):
        config = PPO.Config(num_epochs=2, num_minibatches=2, compile=compiled, entropy_coef=0.01)
        results.append(updated(built, PPO, config, rollout, gae(rollout)))
    assert programs == [{"fullgraph": True}]
    (plain, stats), (program, same) = results
    torch.testing.assert_close(plain, program)
    assert stats == pytest.approx(same, rel=1e-4, abs=1e-5)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    built, _ = setting()
    with pytest.raises(ValueError, match=r"C\+\+ compiler no-such-compiler.*set algorithm.compile"):
        PPO(built, PPO.Config(compile=True))
