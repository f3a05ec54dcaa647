"""Equal seeds, equal episodes, bit for bit: across threads, row order, batches and a resume."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from embodied_rl.envs import make_env
from embodied_rl.envs.envpool import REPLAYABLE_IDS
from embodied_rl.envs.metaworld import expert
from embodied_rl.envs.metaworld_tasks import MT10
from embodied_rl.envs.toy import make_identity, make_reach
from embodied_rl.envs.wrappers import ActionChunk
from embodied_rl.seeding import derive_seed, torch_generator
from embodied_rl.types import VectorEnv

Maker = Callable[[], VectorEnv]


def mw(**options: Any) -> VectorEnv:
    return make_env("metaworld", **({"tasks": "push", "num_envs": 4, "seed": 5} | options))


def actions_for(env: VectorEnv, steps: int, *, chunk: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    lead = (steps, env.num_envs) if chunk == 1 else (steps, env.num_envs, chunk)
    size = getattr(env.single_action_space, "n", None)
    if size is not None:
        return torch.randint(0, int(size), lead, generator=generator)
    shape = env.single_action_space.shape or ()
    return torch.rand((*lead, *shape), generator=generator) * 2 - 1


def run(env: VectorEnv, actions: torch.Tensor) -> list[Any]:
    return [env.step(a) for a in actions]


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)


@pytest.mark.parametrize(
    "options", [{"tasks": "push"}, {"tasks": ("push", "reach", "door-open")}], ids=["one", "three"]
)
def test_thread_count_does_not_matter(options: dict[str, Any]) -> None:
    records = []
    for threads in (1, 2, 4):
        env = mw(**options, num_threads=threads, max_episode_steps=4)
        records.append([env.reset()[0], *run(env, actions_for(env, 9))])
        env.close()
    assert_same(records[0], records[1])
    assert_same(records[0], records[2])


def test_seeds_decide() -> None:
    first, again, other = (mw(seed=seed) for seed in (5, 5, 6))
    start = first.reset()[0]
    assert_same(start, again.reset()[0])
    assert not torch.equal(start["state"], other.reset()[0]["state"])
    assert_same(start, other.reset(seed=5)[0])
    assert not torch.equal(start["state"], first.reset()[0]["state"])
    assert_same(start, first.reset(seed=5)[0])
    for env in (first, again, other):
        env.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda seeds: mw(episode_seeds=seeds),
        lambda seeds: make_env(
            "envpool", id="CartPole-v1", num_envs=4, seed=0, episode_seeds=seeds
        ),
        lambda seeds: make_env(
            "gymnasium", id="Pendulum-v1", num_envs=4, seed=0, episode_seeds=seeds
        ),
        lambda seeds: make_reach(num_envs=4, seed=0, episode_seeds=seeds),
    ],
    ids=["metaworld", "envpool", "gymnasium", "reach"],
)
def test_permuting_the_rows_permutes_the_episodes(make: Callable[[list[int]], VectorEnv]) -> None:
    order = torch.tensor([2, 0, 3, 1])
    seeds = torch.tensor([11, 12, 13, 14])
    a, b = make(seeds.tolist()), make(seeds[order].tolist())
    obs_a, obs_b = a.reset()[0], b.reset()[0]
    for actions in actions_for(a, 40):
        for name in obs_a:
            assert torch.equal(obs_a[name][order], obs_b[name])
        obs_a, rewards_a, *_ = a.step(actions)
        obs_b, rewards_b, *_ = b.step(actions[order])
        assert torch.equal(rewards_a[order], rewards_b)
    a.close()
    b.close()


def test_an_episode_does_not_depend_on_what_came_before() -> None:
    short, long = mw(autoreset=False), mw(autoreset=False)
    short.reset()
    long.reset()
    run(long, actions_for(long, 60, seed=1))
    assert_same(short.reset()[0], long.reset()[0])
    assert_same(run(short, actions_for(short, 30)), run(long, actions_for(long, 30)))
    short.close()
    long.close()


RESUMABLE: dict[str, tuple[Maker, int]] = {
    "metaworld": (lambda: mw(max_episode_steps=7), 1),
    "metaworld-chunk": (lambda: mw(max_episode_steps=7, chunk_length=3), 3),
    "metaworld-mixed": (lambda: mw(tasks=MT10, num_envs=6, group_size=2, max_episode_steps=6), 1),
    "metaworld-disabled": (lambda: mw(max_episode_steps=9, autoreset=False), 1),
    "gymnasium": (lambda: make_env("gymnasium", id="CartPole-v1", num_envs=4, seed=2), 1),
    "workers": (
        lambda: make_env(
            "gymnasium",
            id="CartPole-v1",
            vectorization_mode="workers",
            num_workers=2,
            num_envs=4,
            seed=2,
        ),
        1,
    ),
    "identity": (lambda: make_identity(num_envs=4, seed=2, max_episode_steps=6), 1),
    "reach": (lambda: make_reach(num_envs=4, seed=2, num_tasks=3, group_size=2), 1),
    "wrapped": (
        lambda: ActionChunk(
            make_reach(num_envs=4, seed=2, autoreset=False, max_episode_steps=8), chunk_length=3
        ),
        3,
    ),
    **{
        f"envpool-{name}": (
            lambda name=name: make_env("envpool", id=name, num_envs=4, seed=2),
            1,
        )
        for name in REPLAYABLE_IDS
    },
}


@pytest.mark.parametrize("name", RESUMABLE)
def test_resumed_equals_uninterrupted(name: str) -> None:
    make, chunk = RESUMABLE[name]
    env = make()
    obs, _ = env.reset()
    actions = actions_for(env, 75, chunk=chunk)
    for action in actions[:35]:
        obs, *_ = env.step(action)
    state = env.state_dict()
    assert state is not None
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    restored = make()
    assert_same(restored.load_state_dict(torch.load(buffer, weights_only=True)), obs)
    assert torch.equal(restored.task_ids, env.task_ids)
    assert torch.equal(restored.group_ids, env.group_ids)
    assert_same(run(env, actions[35:]), run(restored, actions[35:]))
    assert torch.equal(restored.group_ids, env.group_ids)
    # And once more from the restored one: its own journal is complete.
    state = restored.state_dict()
    assert state is not None
    third = make()
    third.load_state_dict(state)
    assert_same(run(env, actions[:20]), run(third, actions[:20]))
    for each in (env, restored, third):
        each.close()


def test_resume_after_task_changes_and_partial_resets() -> None:
    def make() -> VectorEnv:
        return mw(tasks=MT10, num_envs=6, autoreset=False, max_episode_steps=8)

    env = make()
    env.reset()
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        env.reset(options={"task_ids": torch.randint(0, 10, (6,), generator=generator)})
        run(env, actions_for(env, 3))
    mask = torch.tensor([True, False, True, False, False, False])
    env.reset(options={"reset_mask": mask, "task_ids": torch.full((6,), 2)})
    run(env, actions_for(env, 6, seed=4))  # the others reach their time limit and stop
    state = env.state_dict()
    assert state is not None
    restored = make()
    restored.load_state_dict(state)
    assert_same(run(env, actions_for(env, 4, seed=5)), run(restored, actions_for(env, 4, seed=5)))
    tasks = {"task_ids": torch.tensor([1, 1, 4, 9, 0, 3])}
    assert_same(env.reset(options=tasks), restored.reset(options=tasks))
    assert torch.equal(env.group_ids, restored.group_ids)
    env.close()
    restored.close()


@pytest.mark.parametrize("task", ["pick-place-v3", "drawer-open-v3", "hammer-v3"])
def test_resume_in_the_middle_of_contact(task: str) -> None:
    env, restored = mw(tasks=task, num_envs=2), mw(tasks=task, num_envs=2)
    act = expert(task)

    def follow(env: VectorEnv, obs: Any, steps: int) -> list[Any]:
        record = []
        for _ in range(steps):
            actions = torch.stack([torch.from_numpy(act(row.numpy())) for row in obs["state"]])
            record.append(env.step(actions))
            obs = record[-1][0]
        return record

    obs = follow(env, env.reset()[0], 130)[-1][0]
    state = env.state_dict()
    assert state is not None
    assert_same(restored.load_state_dict(state), obs)
    assert_same(follow(env, obs, 40), follow(restored, obs, 40))
    env.close()
    restored.close()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("envpool", {"id": "LunarLander-v2"}),  # draws while stepping
    ],
)
def test_a_simulator_that_cannot_be_replayed_has_no_state(
    name: str, options: dict[str, Any]
) -> None:
    env = make_env(name, **options, num_envs=2, seed=0)
    env.reset()
    assert env.state_dict() is None
    env.close()


def test_a_foreign_state_is_refused() -> None:
    env = make_reach(num_envs=4, seed=0)
    env.reset()
    state = env.state_dict()
    assert state is not None
    with pytest.raises(ValueError, match="make the environment with num_envs=4"):
        make_reach(num_envs=2, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="call reset"):
        make_reach(num_envs=2, seed=0).state_dict()
    push = mw(tasks="push")
    push.reset()
    state = push.state_dict()
    assert state is not None
    with pytest.raises(ValueError, match=r"state is of the tasks \['push-v3'\]"):
        mw(tasks="reach").load_state_dict(state)
    push.close()


def test_the_journal_stays_as_long_as_an_episode() -> None:
    env = make_reach(num_envs=3, seed=0, max_episode_steps=10)
    env.reset()
    for action in actions_for(env, 200):
        env.step(action)
        assert len(env._journal) <= 10


def test_tensors_of_earlier_steps_do_not_change() -> None:
    env = mw(max_episode_steps=3)
    kept, copies = [], []
    obs, _ = env.reset()
    for action in actions_for(env, 10):
        step = env.step(action)
        everything = [obs, env.task_ids, env.group_ids, *step]
        kept.append(everything)
        copies.append(_clone(everything))
        obs = step[0]
    assert_same(kept, copies)
    env.close()


def _clone(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: _clone(value) for key, value in tree.items()}
    return [_clone(value) for value in tree]


def test_derived_seeds_are_stable_and_distinct() -> None:
    # Written down once: another value would change every seeded result of the project.
    assert derive_seed(0, "env", 1) == PINNED
    seeds = {derive_seed(s, "env", row) for s in range(20) for row in range(200)}
    assert len(seeds) >= 3990 and all(0 <= seed < 2**30 for seed in seeds)
    assert derive_seed(0, 1) != derive_seed(0, "1") != derive_seed(1)
    a, b = (torch.randn(3, generator=torch_generator(0, "noise", k)) for k in (1, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.randn(3, generator=torch_generator(0, "noise", 2)))


PINNED = 96482721
