"""What every environment must do, run over a sample of every registered one."""

# pyright: reportPossiblyUnboundVariable=false
# The last step of a loop is looked at behind the loop.

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from embodied_rl.check_env import CHECKS, random_actions, rows, same
from embodied_rl.envs import make_env
from embodied_rl.envs.base import SimulatorVectorEnv, Transition
from embodied_rl.envs.metaworld import expert, experts
from embodied_rl.envs.metaworld_tasks import INSTRUCTIONS, MT10, MT50, expand_tasks, task_name
from embodied_rl.envs.toy import make_identity, make_reach, reach_expert
from embodied_rl.envs.wrappers import (
    ActionChunk,
    EpisodeMetrics,
    InstructionEmbedding,
    NormalizeObservation,
    NormalizeReward,
    TimeLimit,
)
from embodied_rl.registry import RegistryError, registry
from embodied_rl.types import VectorEnv

METAWORLD_SAMPLE = (
    "reach-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-close-v3",
    "hammer-v3",
    "sweep-into-v3",
)
MANISKILL: list[tuple[str, dict[str, Any]]] = [
    ("maniskill", {"tasks": "PickCube-v1", "num_threads": 1}),
]
if find_spec("mani_skill") is None:
    MANISKILL = []
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("metaworld", {"tasks": task}) for task in METAWORLD_SAMPLE),
    ("metaworld", {"tasks": ("reach-v3", "push-v3"), "reward": "dense"}),
    ("envpool", {"id": "CartPole-v1"}),
    ("envpool", {"id": "Pendulum-v1"}),
    ("envpool", {"id": "FetchReach-v4"}),
    ("envpool", {"id": "Pong-v5"}),
    ("atari", {"game": "breakout"}),
    ("atari", {"game": "ms_pacman", "grayscale": False, "image_size": (48, 40), "frame_stack": 2}),
    ("atari", {"game": "seaquest", "backend": "envpool", "sticky_actions": 0.25}),
    ("gymnasium", {"id": "CartPole-v1"}),
    ("gymnasium", {"id": "Pendulum-v1"}),
    ("gymnasium", {"id": "CartPole-v1", "vectorization_mode": "workers", "num_workers": 2}),
    ("identity", {}),
    ("reach", {"num_tasks": 2}),
    ("vqa", {"tasks": ("shapes_vqa", "few_shot_classification")}),
    ("vqa", {"tasks": ("visual_search", "shapes_vqa"), "max_turns": 3}),
    (
        "mixture",
        {"parts": {"reach": {"max_episode_steps": 9}, "vqa": {"tasks": "shapes_vqa"}}},
    ),
    *MANISKILL,
]
SLOW_CASES: list[tuple[str, dict[str, Any]]] = [("libero", {"tasks": ("object/7", "spatial/2")})]
"""Seconds each to start; tests/conformance/test_libero.py has the sample that runs always."""
every_case = pytest.mark.parametrize(
    ("name", "options"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)


def build(name: str, **options: Any) -> VectorEnv:
    options = {"num_envs": 4, "seed": 3} | options
    if name == "atari":
        pytest.importorskip("ale_py")
    if name in ("vqa", "mixture"):
        pytest.importorskip("PIL")
    if name == "libero" and not os.environ.get("EMBODIED_RL_LIBERO_ASSETS"):
        pytest.skip("LIBERO's scenes: set EMBODIED_RL_LIBERO_ASSETS to a folder or archive of them")
    return make_env(name, **options)


def test_every_registered_environment_has_a_case() -> None:
    optional = set() if MANISKILL else {"maniskill"}
    cases = {name for name, _ in [*CASES, *SLOW_CASES]}
    assert set(registry("envs").names()) - optional <= cases


@every_case
@pytest.mark.parametrize("check", sorted(CHECKS))
def test_keeps_the_contract_of_vector_env(name: str, options: dict[str, Any], check: str) -> None:
    if check == "variety" and options.get("id") == "Pong-v5":
        pytest.skip("every game of Pong begins with the same picture")
    CHECKS[check][0](lambda **given: build(name, **options, **given))


class Scripted:
    """Two rows whose success at step t is ``script[row][t]``; observation = steps so far."""

    resume = "none"
    task_names = ("scripted",)
    instructions = ("",)
    num_envs = 2
    observation_space = spaces.Dict({"state": spaces.Box(0, 99, (1,), np.float32)})
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, script: list[list[bool]]) -> None:
        self.script = np.array(script)
        self.steps = np.zeros(2, np.int64)
        self.calls: list[list[int]] = []

    def _observe(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return {"state": self.steps[index, None].astype(np.float32)}

    def reset(self, index: np.ndarray, task_ids: np.ndarray) -> Any:
        self.steps[index] = 0
        return self._observe(index), index

    def send(self, actions: np.ndarray, index: np.ndarray | None) -> None:
        self.index = np.arange(2) if index is None else index
        self.calls.append(self.index.tolist())
        self.actions = actions

    def recv(self) -> Transition:
        success = self.script[self.index, self.steps[self.index]]
        self.steps[self.index] += 1
        never = np.zeros(self.index.size, np.bool_)
        return Transition(
            self._observe(self.index), np.ones(self.index.size, np.float32), never, never, success
        )


def test_success_stops_the_chunk_of_its_row_alone() -> None:
    simulator: Any = Scripted([[False, True, False], [False, False, False]])
    env = SimulatorVectorEnv(simulator, chunk_length=3)
    env.reset()
    obs, rewards, terminated, _, info = env.step(torch.zeros(2, 3, 1))
    assert simulator.calls == [[0, 1], [0, 1], [1]]
    assert info["unit_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert rewards.tolist() == [2.0, 3.0] and terminated.tolist() == [True, False]
    assert info["final_obs"]["state"].flatten().tolist() == [2.0, 3.0]
    assert obs["state"].flatten().tolist() == [0.0, 3.0]


def test_success_that_flips_back_inside_a_chunk_still_counts() -> None:
    simulator: Any = Scripted([[True, False, False], [False, False, True]])
    env = SimulatorVectorEnv(
        simulator, chunk_length=3, terminate_on_success=False, max_episode_steps=3
    )
    env.reset()
    _, _, terminated, truncated, info = env.step(torch.zeros(2, 3, 1))
    assert info["success"].tolist() == [True, True]
    assert not bool(terminated.any()) and bool(truncated.all())
    assert info["episode"]["success_once"].tolist() == [True, True]
    assert info["episode"]["success_at_end"].tolist() == [False, True]


@pytest.mark.parametrize("chunk", [1, 2])
def test_success_at_the_time_limit_is_a_termination(chunk: int) -> None:
    simulator: Any = Scripted([[False, True], [False, False]])
    env = SimulatorVectorEnv(simulator, chunk_length=chunk, max_episode_steps=2)
    env.reset()
    for _ in range(2 // chunk):
        step = env.step(torch.zeros(2, chunk, 1))
    assert step[2].tolist() == [True, False] and step[3].tolist() == [False, True]


def test_info_of_a_step_survives_the_autoreset() -> None:
    env = build("reach", num_envs=2, max_episode_steps=30)
    obs, _ = env.reset()
    for _ in range(30):
        obs, _, terminated, _, info = env.step(reach_expert(obs["state"]))
        if bool(terminated.any()):
            break
    assert torch.equal(info["success"], terminated) and bool(info["success"].any())
    assert bool(info["episode"]["success_once"][terminated].all())


def test_send_and_recv_split_a_step() -> None:
    for chunk in (1, 3):
        a, b = (build("metaworld", tasks="reach", chunk_length=chunk) for _ in range(2))
        a.reset()
        b.reset()
        actions = random_actions(a, steps=1, chunk=chunk)[0]
        a.send(actions)
        with pytest.raises(ValueError, match="recv before the next send"):
            a.send(actions)
        with pytest.raises(ValueError, match="call recv first"):
            a.reset()
        assert same(a.recv(), b.step(actions))
        with pytest.raises(ValueError, match="recv without send"):
            a.recv()
        a.close()
        b.close()


def test_tasks_can_be_chosen_per_row_and_pools_stay_bounded() -> None:
    env = make_env("metaworld", tasks=MT10, num_envs=6, seed=1, autoreset=False)
    env.reset()
    assert env.task_ids.tolist() == [0, 1, 2, 3, 4, 5]
    simulator: Any = env.simulator  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        tasks = torch.randint(0, 10, (6,), generator=generator)
        env.reset(options={"task_ids": tasks})
        assert torch.equal(env.task_ids, tasks)
        _, _, _, _, info = env.step(torch.zeros(6, 4))
        assert bool(info["valid"].all())
        assert sum(pool.size for pool in simulator._pools) <= 3 * 6
    mask = torch.tensor([True, False, False, False, False, False])
    before = env.task_ids.clone()
    env.reset(options={"reset_mask": mask, "task_ids": torch.full((6,), 9)})
    assert env.task_ids.tolist() == [9, *before[1:].tolist()]
    env.close()


def test_a_row_of_a_mixed_batch_equals_that_task_alone() -> None:
    mixed = make_env("metaworld", tasks=("reach", "push"), num_envs=4, seed=0, autoreset=False)
    alone = make_env("metaworld", tasks="push", num_envs=1, seed=0, autoreset=False)
    seeds = torch.tensor([5, 6, 7, 8])
    obs, _ = mixed.reset(options={"task_ids": torch.tensor([0, 0, 1, 0]), "episode_seeds": seeds})
    only, _ = alone.reset(options={"episode_seeds": seeds[2:3]})
    for actions in random_actions(mixed, steps=5):
        assert same(rows(obs, slice(2, 3)), only)
        obs, only = mixed.step(actions)[0], alone.step(actions[2:3])[0]
    mixed.close()
    alone.close()


@pytest.mark.parametrize("task", ["pick-place-v3", "push-v3", "dial-turn-v3", "shelf-place-v3"])
def test_experts_solve_their_tasks_in_every_episode(task: str) -> None:
    # envpool's shelf-place cannot be solved after its first reset, so that one is made anew.
    env = make_env("metaworld", tasks=task, num_envs=5, seed=2, autoreset=False)
    act = experts(env.task_names)
    for _ in range(2):
        obs, _ = env.reset()
        solved = torch.zeros(5, dtype=torch.bool)
        for _ in range(250):
            obs, _, _, _, info = env.step(act(obs["state"], env.task_ids))
            solved |= info["success"]
            if bool(solved.all()):
                break
        assert int(solved.sum()) >= 4
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", MT50)
def test_all_metaworld_tasks_step(task: str) -> None:
    env = make_env("metaworld", tasks=task, num_envs=2, seed=0, reward="dense")
    obs, _ = env.reset()
    act = expert(task)
    for _ in range(5):
        actions = torch.from_numpy(np.stack([act(row) for row in obs["state"].numpy()]))
        obs, rewards, *_ = env.step(actions)
    assert bool(torch.isfinite(obs["state"]).all() & torch.isfinite(rewards).all())
    env.close()


def test_task_names_are_understood_in_every_usual_spelling() -> None:
    for spelling in ("pick-place", "pick_place", "pick-place-v3", "PickPlace-v3", "PickPlace"):
        assert task_name(spelling) == "pick-place-v3"
    for name in MT50:
        camel = "".join(word.capitalize() for word in name[:-3].split("-"))
        assert task_name(camel) == task_name(name.replace("-", "_")) == name
    assert expand_tasks("mt10") == MT10 and len(MT50) == len(set(INSTRUCTIONS.values())) == 50


def test_bad_input_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="did you mean 'pick-place-v3'"):
        make_env("metaworld", tasks="pick-plase", num_envs=2, seed=0)
    with pytest.raises(ValueError, match="reward='spares'; did you mean 'sparse'"):
        make_env("metaworld", tasks="reach", reward="spares", num_envs=2, seed=0)
    with pytest.raises(RegistryError, match="no option 'task'; did you mean 'tasks'"):
        make_env("metaworld", task="reach", num_envs=2, seed=0)
    with pytest.raises(ValueError, match="no id 'CartPole-v9'; did you mean 'CartPole-v"):
        make_env("envpool", id="CartPole-v9", num_envs=2, seed=0)
    with pytest.raises(ValueError, match="no id 'CartPole-v9'; did you mean 'CartPole-v"):
        make_env("gymnasium", id="CartPole-v9", num_envs=2, seed=0)
    with pytest.raises(ValueError, match="use num_envs=6"):
        make_env("metaworld", tasks="reach", num_envs=7, group_size=3, seed=0)
    with pytest.raises(ValueError, match="chunk_length=0: give at least 1"):
        make_env("metaworld", tasks="reach", num_envs=2, chunk_length=0, seed=0)


def test_bad_actions_name_the_row() -> None:
    env = build("reach", chunk_length=2)
    with pytest.raises(ValueError, match="call reset"):
        env.step(torch.zeros(4, 2, 2))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(4, 2\), this environment takes \(4, 2, 2\)"):
        env.step(torch.zeros(4, 2))
    actions = torch.zeros(4, 2, 2)
    actions[2, 1, 0] = float("nan")
    with pytest.raises(ValueError, match="actions of row 2 are NaN"):
        env.step(actions)
    env.step(torch.full((4, 2, 2), float("inf")))  # clipped, not refused
    cart = build("identity")
    cart.reset()
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"row 3: action {wrong} does not exist"):
            cart.step(torch.tensor([0, 0, 0, wrong]))
    with pytest.raises(ValueError, match="takes integer indices"):
        cart.step(torch.zeros(4))


def test_bad_resets_are_refused() -> None:
    env = build("reach", num_tasks=2, group_size=2, autoreset=False)
    mask = torch.tensor([True, False, False, False])
    with pytest.raises(ValueError, match="leave reset_mask out"):
        env.reset(options={"reset_mask": mask})
    env.reset()
    with pytest.raises(ValueError, match="did you mean 'task_ids'"):
        env.reset(options={"task_id": torch.zeros(4)})
    with pytest.raises(ValueError, match="row 1: task id 2 does not exist, give 0 to 1"):
        env.reset(options={"task_ids": torch.tensor([0, 2, 0, 0])})
    with pytest.raises(ValueError, match="rows 2 to 3 are one group"):
        env.reset(options={"task_ids": torch.tensor([0, 0, 0, 1])})
    with pytest.raises(ValueError, match="selects no row"):
        env.reset(options={"reset_mask": torch.zeros(4, dtype=torch.bool)})


def test_actions_are_clipped_and_scaled_to_the_simulator() -> None:
    # Pendulum's torque is bounded by 2: a = 1 must be its 2, a = 7 no more than that.
    import gymnasium

    torques = [2.0, 2.0, -2.0, -2.0, 1.0]
    env = make_env("gymnasium", id="Pendulum-v1", num_envs=5, seed=0, episode_seeds=[4] * 5)
    env.reset()
    obs, rewards, *_ = env.step(torch.tensor([[1.0], [7.0], [-1.0], [-7.0], [0.5]]))
    for row, torque in enumerate(torques):
        reference = gymnasium.make("Pendulum-v1")
        reference.reset(seed=4)
        expected, reward, *_ = reference.step(np.array([torque], np.float32))
        assert obs["state"][row].tolist() == expected.tolist()
        assert float(rewards[row]) == pytest.approx(float(reward))
    # Unscaled, the clip is ours alone: the simulator records what it was given.
    simulator: Any = Scripted([[False], [False]])
    scripted = SimulatorVectorEnv(simulator)
    scripted.reset()
    scripted.step(torch.tensor([[-3.0], [3.0]]))
    assert simulator.actions.tolist() == [[-1.0], [1.0]]
    env.close()


def test_action_chunk_wrapper_equals_the_native_chunk() -> None:
    options: dict[str, Any] = {"num_envs": 4, "seed": 7, "num_tasks": 2}
    native = make_reach(**options, chunk_length=3, max_episode_steps=11)
    user = make_reach(**options, autoreset=False, max_episode_steps=11)
    wrapped = ActionChunk(user, chunk_length=3)
    assert isinstance(wrapped, VectorEnv)
    assert same(native.reset()[0], wrapped.reset()[0])
    for actions in random_actions(native, steps=9, chunk=3):
        assert same(native.step(actions), wrapped.step(actions))
        assert torch.equal(native.group_ids, wrapped.group_ids)
        assert torch.equal(native.task_ids, wrapped.task_ids)
    with pytest.raises(ValueError, match="autoreset=False"):
        ActionChunk(make_reach(**options), chunk_length=3)


def test_time_limit_and_metrics_wrappers() -> None:
    env = TimeLimit(make_identity(num_envs=2, seed=0, autoreset=False), max_episode_steps=4)
    outer = EpisodeMetrics(
        TimeLimit(
            make_identity(num_envs=2, seed=0, autoreset=False), max_episode_steps=4, autoreset=False
        )
    )
    env.reset()
    outer.reset()
    total = torch.zeros(2)
    for actions in random_actions(env, steps=4):
        step = env.step(actions)
        assert same(step, outer.step(actions))
        total += step[1]
    assert bool(step[3].all()) and torch.equal(step[4]["episode"]["return"], total)
    assert step[4]["episode"]["length"].tolist() == [4, 4]


def test_normalize_observation_uses_the_moments_of_all_it_saw() -> None:
    options: dict[str, Any] = {"num_envs": 3, "seed": 1, "max_episode_steps": 5}
    env, raw = NormalizeObservation(make_reach(**options)), make_reach(**options)
    seen = [raw.reset()[0]["state"]]
    env.reset()
    for actions in random_actions(raw, steps=20):
        obs, _, _, _, info = env.step(actions)
        expected = raw.step(actions)
        seen.append(expected[0]["state"])
        data = torch.cat(seen).double()
        mean, std = data.mean(0), data.std(0, correction=0)
        assert torch.allclose(obs["state"].double(), (seen[-1] - mean) / std, atol=1e-5)
        final = (expected[4]["final_obs"]["state"] - mean) / std
        assert torch.allclose(info["final_obs"]["state"].double(), final, atol=1e-5)
    state = env.state_dict()
    assert state is not None
    fresh = NormalizeObservation(make_reach(**options))
    assert torch.equal(fresh.load_state_dict(state)["state"], obs["state"])
    actions = random_actions(raw, steps=1, seed=9)[0]
    assert same(fresh.step(actions), env.step(actions))


def test_normalize_reward_divides_by_the_std_of_discounted_returns() -> None:
    options: dict[str, Any] = {"num_envs": 3, "seed": 1, "max_episode_steps": 4, "reward": "dense"}
    env, raw = NormalizeReward(make_reach(**options), gamma=0.9), make_reach(**options)
    env.reset()
    raw.reset()
    history: list[list[float]] = [[] for _ in range(3)]
    seen: list[float] = []
    for actions in random_actions(raw, steps=15):
        _, scaled, _, _, info = env.step(actions)
        _, rewards, terminated, truncated, _ = raw.step(actions)
        for row in range(3):
            history[row].append(float(rewards[row]))
            seen.append(sum(0.9**k * r for k, r in enumerate(reversed(history[row]))))
        if len(seen) > 3:
            assert torch.allclose(scaled, rewards / float(np.std(seen)), atol=1e-5)
        assert torch.equal(info["raw_rewards"], rewards)
        for row in torch.nonzero(terminated | truncated).flatten().tolist():
            history[row] = []


def test_statistics_stand_still_outside_training() -> None:
    env = NormalizeObservation(make_reach(num_envs=2, seed=0))
    env.reset()
    env.training = False
    before = env.moments["state"].state_dict()
    env.step(torch.zeros(2, 2))
    assert torch.equal(before["mean"], env.moments["state"].mean)


def test_instruction_embedding_follows_the_task() -> None:
    table = torch.arange(6.0).reshape(3, 2)
    env = InstructionEmbedding(
        make_reach(num_envs=4, seed=0, num_tasks=3, autoreset=False), table=table
    )
    obs, _ = env.reset(options={"task_ids": torch.tensor([2, 0, 1, 2])})
    assert obs["instruction"].tolist() == [[4, 5], [0, 1], [2, 3], [4, 5]]
    assert env.single_observation_space["instruction"].shape == (2,)
    obs, _, _, _, info = env.step(torch.zeros(4, 2))
    assert same(info["final_obs"], obs)
    with pytest.raises(ValueError, match="one row for each of the 3 tasks"):
        InstructionEmbedding(env, table=table[:2])


@pytest.mark.parametrize("task", ["reach-v3", "drawer-open-v3", "hammer-v3"])
def test_the_render_environment_shows_the_same_episode(task: str) -> None:
    pytest.importorskip("metaworld")
    from embodied_rl.envs.metaworld_render import make_render_env

    env = make_env("metaworld", tasks=task, num_envs=1, seed=0, episode_seeds=[21])
    shown = make_render_env(task, 21)
    assert shown.mismatch < 1e-3
    obs, act = env.reset()[0], expert(task)
    assert np.abs(shown.reset() - obs["state"][0].numpy())[:7].max() < 1e-3
    for _ in range(200):
        action = act(obs["state"][0].numpy())
        picture, success = shown.step(action)
        obs, _, terminated, _, info = env.step(torch.from_numpy(action)[None])
        hand = info["final_obs"]["state"][0].numpy()[:3]
        assert np.abs(picture[:3] - hand).max() < 5e-3
        if bool(terminated):
            break
    assert success and bool(terminated)
    shown.close()
    env.close()


def test_the_package_is_imported_under_its_full_name_only() -> None:
    import importlib.util
    from pathlib import Path

    import embodied_rl.envs

    spec = importlib.util.spec_from_file_location("envs", Path(embodied_rl.envs.__file__))
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"import embodied_rl\.envs instead"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
