"""Rows of different environments in one batch, and the policy that answers and acts."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl import rollout as rollouts
from embodied_rl import trainer
from embodied_rl.build import build_env, build_policy, policy_spec
from embodied_rl.config import ConfigError, EnvConfig, component, evaluation_env
from embodied_rl.demonstrations import load_demonstrations
from embodied_rl.envs import make_env
from embodied_rl.evaluate import SPLIT_RANGES
from embodied_rl.flow import FlowConfig
from embodied_rl.policies import make_policy
from embodied_rl.registry import registry

pytest.importorskip("PIL.Image", reason="the extra vqa is not installed")

from embodied_rl.check_env import random_actions, same
from embodied_rl.envs.vqa.env import encode_text

REACH: dict[str, Any] = {"dim": 3, "max_episode_steps": 7}
VQA: dict[str, Any] = {"tasks": ["shapes_vqa", "pairwise_judge"], "answer_bytes": 16}
PARTS = {"reach": REACH, "vqa": VQA}
COMMON: dict[str, Any] = {"num_envs": 6, "seed": 3, "autoreset": False}


def mixture(**options: Any) -> Any:
    given: dict[str, Any] = COMMON | {"parts": PARTS} | options
    return make_env("mixture", **given)


def alone(name: str, **options: Any) -> Any:
    return make_env(name, **(COMMON | PARTS[name] | options))


def test_each_row_is_what_its_environment_alone_would_be() -> None:
    env, reach, vqa = mixture(), alone("reach"), alone("vqa")
    assert env.task_names == ("reach/reach-0", "vqa/shapes_vqa", "vqa/pairwise_judge")
    ids = torch.tensor([0, 1, 2, 0, 0, 1])
    moving, asked = ids == 0, ids > 0
    (obs, _), (at, _) = env.reset(options={"task_ids": ids}), reach.reset()
    questions, _ = vqa.reset(options={"task_ids": (ids - 1).clamp(min=0)})
    assert obs["kind"].tolist() == [[1, 0] if m else [0, 1] for m in moving]
    for name, value in questions.items():
        assert torch.equal(obs[name][asked], value[asked])
        assert not bool(obs[name][moving].any())
    assert torch.equal(obs["state"][moving], at["state"][moving])
    assert not bool(obs["state"][asked].any())
    answers = vqa.simulator.reference_answers()
    answers[1] = torch.from_numpy(encode_text(["no"], 16, name="answer_bytes"))[0]
    over = torch.zeros(6, dtype=torch.bool)
    for step in range(7):
        actions = torch.zeros(6, 3 + 16)
        actions[:, :3] = random_actions(reach, steps=1, seed=step)[0]
        actions[:, 3:] = answers.float() + 0.3  # texts are rounded
        obs, rewards, terminated, truncated, info = env.step(actions)
        at, r, t, u, i = reach.step(actions[:, :3])
        assert torch.equal(obs["state"][moving], at["state"][moving])
        for mixed, single in ((rewards, r), (terminated, t), (truncated, u)):
            assert torch.equal(mixed[moving], single[moving])
        assert torch.equal(info["success"][moving], i["success"][moving])
        if step == 0:
            _, r, t, _, i = vqa.step(answers)
            assert torch.equal(rewards[asked], r[asked]) and bool(terminated[asked].all())
            assert info["success"][asked].tolist() == [False, True, True]
            assert torch.equal(info["reward_terms"]["vqa"], rewards * asked)
        assert info["valid"].tolist() == [bool(m) or step == 0 for m in moving]
        over |= terminated | truncated
    assert bool(over.all())


def test_a_text_is_the_first_action_of_a_chunk_and_ends_it() -> None:
    env = mixture(chunk_length=4)
    env.reset(options={"task_ids": torch.tensor([0, 1, 2, 0, 1, 2])})
    _, _, terminated, _, info = env.step(torch.zeros(6, 4, 19))
    assert info["num_env_steps"].tolist() == [4, 1, 1] * 2
    assert info["unit_mask"].sum(1).tolist() == [4, 1, 1] * 2
    assert terminated.tolist() == [False, True, True] * 2


def test_no_two_parts_share_a_start_and_rows_of_a_group_do() -> None:
    env = mixture(num_envs=4, group_size=2)
    starts: dict[int, bytes] = {}
    for task in (0, 1, 2, 0, 1):
        obs, _ = env.reset(options={"task_ids": torch.full((4,), task)})
        for row, group in enumerate(env.group_ids.tolist()):
            start = b"".join(obs[name][row].numpy().tobytes() for name in sorted(obs))
            assert starts.setdefault(group, start) == start
    assert len(starts) == len(set(starts.values())) == 2 * 5


def test_a_resumed_mixture_goes_on_as_if_nothing_had_happened() -> None:
    first, other = mixture(), mixture()
    actions = random_actions(first, steps=6)
    first.reset(options={"task_ids": torch.tensor([0, 1, 2, 0, 0, 1])})
    first.step(actions[0])
    state = first.state_dict()
    obs = other.load_state_dict(state)
    assert same(obs, first._tensors(first._obs))
    tasks = {"task_ids": torch.tensor([1, 0, 0, 2, 0, 1])}
    for step in range(1, 6):
        if step == 3:
            assert same(first.reset(options=tasks)[0], other.reset(options=tasks)[0])
        assert same(first.step(actions[step])[:4], other.step(actions[step])[:4])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"reach": REACH}, "two environments or more"),
        ({"reach": REACH, "identity": {}}, "state"),
        ({"vqa": VQA, "identity": {}}, "no flat Box|end with success"),
        ({"reach": {"terminate_on_success": False}, "vqa": VQA}, "must end with success"),
    ],
)
def test_what_cannot_be_mixed_is_refused(parts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mixture(parts=parts)
    assert "\n" not in str(caught.value)


# --- the policy ------------------------------------------------------------------------------


def setting(seed: int = 0, **options: Any) -> tuple[Any, Any, Any]:
    """(environment, policy without parameters near zero, observations of both kinds)."""
    simulator = component("envs", "mixture", parts=PARTS)
    config = EnvConfig(simulator=simulator, num_envs=6, chunk_length=2)
    env = build_env(config, seed=0, autoreset=False)
    torch.manual_seed(seed)
    policy = make_policy("joint", policy_spec(env, config), **options)
    obs, _ = env.reset(options={"task_ids": torch.tensor([0, 1, 2, 0, 1, 0])})
    return env, policy, obs


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


FLOWS = {
    "default": FlowConfig(),
    "sum": FlowConfig(chain="joint_sum", unit_reduction="sum"),
    "single": FlowConfig(chain="single_step", num_denoise_steps=3),
}


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_what_was_sampled_is_scored_alike_in_any_minibatch(flow: FlowConfig) -> None:
    _, policy, obs = setting(flow=flow)
    sampled = policy.sample(obs, generator=generator())
    assert sampled.actions.shape == (6, 2, 3 + 16) and sampled.log_probs.shape == (6, 17)
    scored = policy.log_prob(obs, sampled.actions, sampled.replay)
    torch.testing.assert_close(scored.log_probs, sampled.log_probs, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(
        scored.joint_log_probs, sampled.replay["joint_log_probs"], atol=5e-4, rtol=1e-5
    )
    pick = torch.tensor([4, 0, 1])
    part = policy.log_prob(
        {name: value[pick] for name, value in obs.items()},
        sampled.actions[pick],
        {name: value[pick] for name, value in sampled.replay.items()},
    )
    torch.testing.assert_close(part.log_probs, sampled.log_probs[pick], atol=5e-5, rtol=1e-5)


def test_each_row_has_the_units_and_the_action_of_its_kind() -> None:
    _, policy, obs = setting()
    sampled = policy.sample(obs, generator=generator())
    asked = torch.tensor([False, True, True, False, True, False])
    tokens, mask = sampled.replay["tokens"], sampled.unit_mask
    assert mask[~asked].sum(1).tolist() == [1, 1, 1] and bool(mask[~asked, -1].all())
    assert not bool(mask[asked, -1].any())
    for row in asked.nonzero().flatten().tolist():
        spoken = tokens[row].tolist()
        length = spoken.index(0) + 1 if 0 in spoken else 16
        assert mask[row].tolist() == [u < length for u in range(17)]
        assert sampled.actions[row, 0, 3:].tolist() == spoken
    assert not bool(sampled.actions[asked][..., :3].any())
    assert not bool(sampled.actions[~asked][..., 3:].any())
    assert torch.equal(sampled.actions[~asked][..., :3], sampled.replay["chain"][~asked, -1])
    assert not bool(sampled.log_probs[~mask].any())


def test_gradients_reach_the_head_of_a_row_and_the_trunk_alone() -> None:
    _, policy, obs = setting()
    sampled = policy.sample(obs, generator=generator())
    for row, mine, other in ((0, policy.actor, policy.speaker), (1, policy.speaker, policy.actor)):
        policy.zero_grad()
        scored = policy.log_prob(obs, sampled.actions, sampled.replay)
        scored.log_probs[row].sum().backward()
        grads = lambda part: sum(float(p.grad.abs().sum()) for p in part.parameters())  # noqa: E731
        assert grads(mine) > 0 and grads(policy.blocks) > 0 and grads(other) == 0


def test_the_same_noise_gives_the_same_sample_also_of_permuted_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, policy, obs = setting()
    first, second = (policy.sample(obs, generator=generator()) for _ in range(2))
    assert torch.equal(first.actions, second.actions)
    assert not torch.equal(policy.sample(obs, generator=generator(8)).actions, first.actions)
    twin = copy.deepcopy(policy)
    assert torch.equal(twin.sample(obs, generator=generator()).actions, first.actions)
    greedy = [policy.sample(obs, deterministic=True, generator=generator()) for _ in range(2)]
    assert torch.equal(greedy[0].actions, greedy[1].actions) and greedy[0].log_probs is None
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for name in ("randn", "rand", "randint"):
        draw = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, draw=draw, **k: draw(*a, **k)[order])
    moved = policy.sample({k: v[order] for k, v in obs.items()}, generator=generator())
    torch.testing.assert_close(moved.actions, first.actions[order])
    torch.testing.assert_close(moved.log_probs, first.log_probs[order], atol=5e-5, rtol=1e-5)


def test_clip_ranges_of_chunks_are_scaled_and_other_units_are_refused() -> None:
    env, policy, obs = setting(action_clip_scale=0.25)
    sampled = policy.sample(obs, generator=generator())
    scored = policy.log_prob(obs, sampled.actions, sampled.replay)
    assert scored.clip_scale.tolist() == [1.0] * 16 + [0.25]
    with pytest.raises(ValueError, match=r"set policy.flow.units to chunk"):
        setting(flow=FlowConfig(units="action"))
    spec = policy_spec(alone("reach"), EnvConfig(simulator=component("envs", "reach")))
    with pytest.raises(ValueError, match="needs the environment mixture"):
        make_policy("joint", spec)
    env.close()


# --- a run -----------------------------------------------------------------------------------


def recipe(tmp_path: Path, **options: Any) -> Any:
    base = registry("recipes").get("mixed/shapes_and_reach")()
    imitation = replace(base.imitation, episodes_per_task=30, num_steps=3, **options)
    return replace(
        base,
        env=replace(base.env, num_envs=16),
        imitation=imitation,
        evaluation=replace(base.evaluation, episodes=8),
        total_env_steps=200,
        runs=str(tmp_path),
    )


def test_demonstrations_are_those_of_both_parts(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    obs, actions, mask = load_demonstrations(config, tmp_path)
    asked = obs["chat"][:, 0] != 0
    assert int(asked.sum()) == 30 and int((~asked).sum()) > 30
    assert bool((mask[asked].sum(1) == 1).all()) and bool(mask[:, 0].all())
    assert not bool(actions[asked][..., :2].any()) and bool(actions[asked][:, 0, 2:].any(1).all())
    following = mask[~asked][:, 1]
    position, goal = obs["state"][~asked].chunk(2, 1)
    # the second action of a chunk is the expert's where the first one led to
    moved = position + 0.1 * actions[~asked][:, 0, :2]
    expected = ((goal - moved) / 0.1).clamp(-1, 1)
    torch.testing.assert_close(actions[~asked][following, 1, :2], expected[following])
    noisy = replace(config, imitation=replace(config.imitation, action_noise=0.1))
    with pytest.raises(ConfigError, match="set it to 0"):
        load_demonstrations(noisy, tmp_path)


def test_the_recipe_trains_both_heads_and_evaluates_both_tasks(tmp_path: Path) -> None:
    session = trainer.open_session(recipe(tmp_path), None)
    before = {name: value.clone() for name, value in session.module.state_dict().items()}
    trainer.imitate(session)
    after = session.module.state_dict()
    for part in ("actor", "speaker", "blocks", "patches", "words"):
        assert any(
            not torch.equal(before[name], after[name]) for name in before if name.startswith(part)
        ), part
    rollout, advantages = trainer.gather(session)
    assert rollout.shape[0] == 3 and set(rollout.reward_terms) == {"reach", "vqa"}
    rows = session.algorithm._kept_rows(rollout, replace(advantages, keep=rollout.valid))
    assert rows.unit_mask is not None and rows.log_probs.shape[1] == 9
    records = trainer.run_evaluation(session, label="sft")
    assert {tuple(record["per_task"]) for record in records} == {
        ("reach/reach-0", "vqa/shapes_vqa")
    }
    session.env.close()
    session.logger.close()


def test_the_evaluation_asks_new_questions_of_the_kinds_that_are_trained(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    obs, _, _ = load_demonstrations(config, tmp_path)
    imitated = {row.numpy().tobytes() for row in obs["images"][obs["chat"][:, 0] != 0]}
    env = build_env(evaluation_env(config), seed=0, autoreset=False, num_envs=30, group_size=1)
    seeds = SPLIT_RANGES["test"] + torch.arange(30)
    asked = rollouts.start(env, task_ids=torch.ones(30, dtype=torch.int64), episode_seeds=seeds).obs
    new = {row.numpy().tobytes() for row in asked["images"]}
    assert bool((asked["chat"][:, 0] != 0).all()) and len(new) > 20 and not new & imitated
    train = build_env(config.env, seed=0, autoreset=False)
    assert evaluation_env(config).simulator == config.env.simulator  # no pairs held out
    policy = build_policy(config, policy_spec(train, config.env))
    rollout = rollouts.collect(train, policy, rollouts.start(train), generator=generator())
    lengths = rollout.valid.sum(0)
    assert bool((lengths[train.task_ids == 1] == 1).all())
