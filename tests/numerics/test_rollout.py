"""``collect`` against a plain loop over single environments."""

from typing import Any

import pytest
import torch

from embodied_rl import rollout as rollouts
from embodied_rl.envs import make_env
from embodied_rl.types import LogProbOutput, PolicyOutput


class Counter:
    """A policy with one fixed action, whose value is a known function of the state."""

    spec: Any = None

    def __init__(self, action):
        self.action = action

    def set_progress(self, progress):
        """Nothing to anneal."""

    def sample(self, obs, *, deterministic=False, generator=None):
        rows = len(obs["state"])
        action = torch.tensor(self.action).expand(rows, *torch.tensor(self.action).shape)
        return PolicyOutput(actions=action.clone(), log_probs=torch.zeros(rows, 1))

    def log_prob(self, obs, actions, replay):
        return LogProbOutput(log_probs=torch.zeros(len(actions), 1), entropy=torch.zeros(1))

    def value(self, obs):
        return obs["state"] @ torch.arange(1.0, obs["state"].shape[-1] + 1)

    def unit_mask(self, executed):
        return executed.any(1, keepdim=True)


def reach(**options: Any) -> Any:
    defaults: Any = {"num_envs": 6, "seed": 3, "max_episode_steps": 7}
    return make_env("reach", **(defaults | options))


@pytest.mark.parametrize("chunk", [1, 3])
def test_next_values_follow_the_definition_step_by_step(chunk):
    env = reach(chunk_length=chunk)
    policy = Counter([[0.7, -0.4]] * chunk if chunk > 1 else [0.7, -0.4])
    cursor = rollouts.start(env)
    rollout = rollouts.collect(env, policy, cursor, num_steps=9, generator=None)
    assert rollout.dones.any() and (rollout.terminated.any() or rollout.truncated.any())
    # The same episodes, stepped again with the final observations looked at directly.
    twin = reach(chunk_length=chunk)
    obs, _ = twin.reset()
    for t in range(9):
        assert torch.equal(rollout.obs["state"][t], obs["state"])
        obs, _, terminated, truncated, info = twin.step(rollout.actions[t])
        for n in range(6):
            if terminated[n]:
                expected = torch.tensor(0.0)
            elif truncated[n]:
                expected = policy.value({"state": info["final_obs"]["state"][n : n + 1]})[0]
            else:
                expected = policy.value({"state": obs["state"][n : n + 1]})[0]
            torch.testing.assert_close(rollout.next_values[t, n], expected)


def test_whole_episodes_play_each_row_once_and_mark_the_rest_invalid():
    env = reach(autoreset=False, num_tasks=4)
    cursor = rollouts.start(env)
    rollout = rollouts.collect(env, Counter([0.9, 0.9]), cursor, generator=None)
    assert rollout.dones.sum(0).tolist() == [1] * 6
    ends = rollout.dones.int().argmax(0)
    for n in range(6):
        assert rollout.valid[: ends[n] + 1, n].all() and not rollout.valid[ends[n] + 1 :, n].any()
    assert int(rollout.num_env_steps.sum()) == cursor.env_steps == int(rollout.valid.sum())
    assert not rollout.rewards[~rollout.valid].any()


def test_episode_ids_never_repeat_over_the_run():
    env = reach()
    cursor = rollouts.start(env)
    seen = [
        rollouts.collect(env, Counter([0.9, 0.1]), cursor, num_steps=11, generator=None)
        for _ in range(3)
    ]
    ids = torch.cat([r.episode_ids for r in seen])
    dones = torch.cat([r.dones for r in seen])
    for n in range(6):
        # An id changes exactly after a done, and is shared with no other row.
        changes = ids[1:, n] != ids[:-1, n]
        assert torch.equal(changes, dones[:-1, n])
    per_row = [set(ids[:, n].tolist()) for n in range(6)]
    assert sum(map(len, per_row)) == len(set().union(*per_row))


def test_joined_rollouts_keep_every_valid_step():
    parts = []
    for seed in (1, 2):
        env = reach(autoreset=False, seed=seed, num_tasks=2)
        cursor = rollouts.start(env)
        parts.append(rollouts.collect(env, Counter([0.5, 0.5]), cursor, generator=None))
    joined = rollouts.concat_rollouts(parts)
    assert joined.shape == (max(p.shape[0] for p in parts), 12)
    assert int(joined.valid.sum()) == sum(int(p.valid.sum()) for p in parts)
    assert torch.isclose(joined.rewards.sum(), torch.stack([p.rewards.sum() for p in parts]).sum())


def test_what_runs_while_stepping_runs_once_per_decision():
    calls = []
    env = reach()
    rollouts.collect(
        env,
        Counter([0.0, 0.0]),
        rollouts.start(env),
        num_steps=5,
        generator=None,
        while_stepping=lambda: calls.append(1),
    )
    assert len(calls) == 5


class Talker(Counter):
    """Decision number t (from 1) has t tokens ``10 * t + position``, of which row n keeps n."""

    def __init__(self, action):
        super().__init__(action)
        self.decisions = 0

    def sample(self, obs, *, deterministic=False, generator=None):
        output = super().sample(obs)
        self.decisions += 1
        tokens = (10 * self.decisions + torch.arange(self.decisions)).expand(len(obs["state"]), -1)
        kept = torch.arange(self.decisions) < torch.arange(len(tokens)).unsqueeze(1)
        return PolicyOutput(
            actions=output.actions,
            log_probs=-tokens.float(),
            unit_mask=kept,
            replay={"tokens": tokens.clone(), "first": tokens[:, 0].clone()},
        )

    def unit_mask(self, executed):
        raise AssertionError("the mask of the sample is the one to use")


def test_decisions_of_different_length_are_filled_up_with_masked_units():
    env = reach()
    parts = [
        rollouts.collect(env, policy, rollouts.start(env), num_steps=steps, generator=None)
        for policy, steps in ((Talker([0.1, 0.0]), 3), (Talker([0.0, 0.1]), 5))
    ]
    assert [part.log_probs.shape for part in parts] == [(3, 6, 3), (5, 6, 5)]
    joined = rollouts.concat_rollouts(parts)
    assert joined.log_probs.shape == joined.unit_mask.shape == (5, 12, 5)
    for t in range(5):
        for n in range(12):
            played = t < 3 or n >= 6
            count = t + 1 if played else 0
            tokens = [10 * (t + 1) + u for u in range(count)] + [0] * (5 - count)
            mask = [u < min(count, n % 6) for u in range(5)]
            assert joined.log_probs[t, n].tolist() == [-float(token) for token in tokens]
            assert joined.unit_mask[t, n].tolist() == mask
            if played:
                assert joined.replay["tokens"][t, n].tolist() == tokens
                assert joined.replay["first"][t, n] == tokens[0]
