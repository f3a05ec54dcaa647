"""The asynchronous mode: what is overlapped, and how old the policy that acted really was."""

import dataclasses

import pytest
import torch

from embodied_rl import rollout as rollouts
from embodied_rl import trainer
from embodied_rl.config import CheckpointConfig, EnvConfig, TrainConfig, component
from embodied_rl.metrics import METRICS_FILE, read_jsonl


def config(*, num_steps=8, asynchronous=True, **algorithm):
    options = {"num_epochs": 2, "num_minibatches": 2} | algorithm
    return TrainConfig(
        name="asynchronous",
        env=EnvConfig(simulator=component("envs", "reach"), num_envs=4, max_episode_steps=6),
        policy=component("policies", "gaussian_mlp", hidden_dims=(8,)),
        algorithm=component("algorithms", "ppo", **options),
        num_steps=num_steps,
        total_env_steps=4 * num_steps * 5,
        checkpoint=CheckpointConfig(every=1000),
        asynchronous=asynchronous,
    )


@pytest.fixture
def run(tmp_path):
    """Train; returns the session, its metrics and the updates behind every sampled decision."""

    def train(options):
        session = trainer.open_session(options, tmp_path / "run")
        sample, seen = session.policy.sample, []

        def watched(*args, **kwargs):
            seen.append(session.algorithm.num_updates)
            return sample(*args, **kwargs)

        session.policy.sample = watched
        trainer.reinforce(session)
        session.logger.close()
        return session, read_jsonl(tmp_path / "run" / METRICS_FILE), seen

    return train


def test_the_logged_lag_is_the_age_of_the_policy_that_acted(run):
    options = config()
    _, metrics, seen = run(options)
    of_rollout = torch.tensor(seen).view(-1, options.num_steps).double()
    # Rollout i is the data of update i, whose statistics are logged one iteration later.
    logged = [line["train/policy_lag"] for line in metrics if "train/policy_lag" in line]
    expected = [i - of_rollout[i].mean().item() for i in range(len(logged))]
    assert logged == pytest.approx(expected)
    assert len(logged) == 4 and logged[0] == 0 and all(0 < lag < 1 for lag in logged[1:])


def test_the_default_mode_is_on_policy(run):
    _, metrics, _ = run(config(asynchronous=False))
    assert [line["train/policy_lag"] for line in metrics] == [0.0] * 5


@pytest.mark.parametrize("num_steps", [3, 4, 8])
def test_every_gradient_step_is_taken_while_the_next_rollout_is_collected(tmp_path, num_steps):
    session = trainer.open_session(config(num_steps=num_steps), tmp_path / "run")
    rollout, advantages = trainer.gather(session)
    session.pending = session.algorithm.gradient_steps(rollout, advantages, generator=None)
    before = [value.clone() for value in session.module.parameters()]
    trainer.gather(session)
    assert len(session.overlapped) == 4
    assert next(session.pending, None) is None
    after = session.module.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_collect_records_the_version_behind_each_decision(tmp_path):
    session = trainer.open_session(config(asynchronous=False), tmp_path / "run")
    versions = iter([3, 3, 4, 7])
    rollout = rollouts.collect(
        session.env,
        session.policy,
        rollouts.start(session.env),
        num_steps=4,
        generator=None,
        policy_version=lambda: next(versions),
    )
    assert rollout.policy_version.tolist() == [[3] * 4, [3] * 4, [4] * 4, [7] * 4]


def test_log_probs_are_those_of_the_policy_that_acted_although_it_changes_meanwhile(tmp_path):
    session = trainer.open_session(config(), tmp_path / "run")
    first, advantages = trainer.gather(session)
    session.pending = session.algorithm.gradient_steps(first, advantages, generator=None)
    sample, scored = session.policy.sample, []

    def watched(obs, **kwargs):
        output = sample(obs, **kwargs)
        again = session.policy.log_prob(obs, output.actions, output.replay)
        scored.append(again.log_probs.detach())
        return output

    session.policy.sample = watched
    second, _ = trainer.gather(session)
    torch.testing.assert_close(second.log_probs, torch.stack(scored))


def test_resuming_needs_no_pending_update(tmp_path):
    options = dataclasses.replace(config(), checkpoint=CheckpointConfig(every=1))
    session = trainer.open_session(options, tmp_path / "run")
    trainer.reinforce(session)
    assert next(session.pending, None) is None
    session.logger.close()
