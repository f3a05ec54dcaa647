"""ManiSkill: ids, options, the border between its tensors and our arrays, and its experts."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

# Not imported here: without a driver that has to wait for what `headless` replaces.
if find_spec("mani_skill") is None:
    pytest.skip("needs `pip install 'embodied-rl[maniskill]'`", allow_module_level=True)

from embodied_rl.envs import make_env
from embodied_rl.envs.maniskill import headless, make
from embodied_rl.envs.maniskill.expert import EXPERTS, expert
from embodied_rl.envs.maniskill.features import RELATIVE, relative_features, rotation_columns
from embodied_rl.envs.maniskill.headless import import_maniskill
from embodied_rl.envs.maniskill.row import ManiSkillRow
from embodied_rl.envs.maniskill.scenes import SceneOptions, Scenes
from embodied_rl.envs.maniskill.tasks import (
    DOWNLOADS,
    INSTRUCTIONS,
    MAX_EPISODE_STEPS,
    NO_SPARSE_REWARD,
    OFFLINE,
    TOGETHER,
    download_command,
    expand_tasks,
)

ONE = np.zeros(1, np.int64)
SAMPLE = ("PickCube-v1", "TwoRobotPickCube-v1", "MS-HopperHop-v1", "PushT-v1")


def first_fast(*values: str, fast: int) -> list[Any]:
    """Parameters of which all but the first few are slow."""
    return [
        pytest.param(value, marks=() if number < fast else pytest.mark.slow)
        for number, value in enumerate(values)
    ]


def play(row: ManiSkillRow, seed: int, actions: np.ndarray) -> np.ndarray:
    states = [row.reset(task_id=0, seed=seed)["state"]]
    states += [row.step(action).obs["state"] for action in actions]
    return np.stack(states)


def row_of(task: str, **options: Any) -> ManiSkillRow:
    return ManiSkillRow(tasks=task, reward=NO_SPARSE_REWARD.get(task, "sparse"), **options)


def actions_of(row: ManiSkillRow, steps: int) -> np.ndarray:
    row.action_space.seed(0)
    return np.stack([row.action_space.sample() for _ in range(steps)])


def test_ids_and_time_limits_are_those_of_the_simulator() -> None:
    import_maniskill()
    from mani_skill.utils.registration import REGISTERED_ENVS

    assert set(REGISTERED_ENVS) == set(INSTRUCTIONS)
    for name, spec in REGISTERED_ENVS.items():
        assert spec.max_episode_steps == MAX_EPISODE_STEPS[name]
    for task in (*SAMPLE, *NO_SPARSE_REWARD):
        assert ("sparse" in REGISTERED_ENVS[task].cls.SUPPORTED_REWARD_MODES) == (
            task not in NO_SPARSE_REWARD
        )


def test_names_in_several_spellings() -> None:
    assert expand_tasks("pick_cube") == expand_tasks("PickCube") == ("PickCube-v1",)
    assert expand_tasks(("ms_hopper_hop", "PushT-v1")) == ("MS-HopperHop-v1", "PushT-v1")
    with pytest.raises(ValueError, match="did you mean 'PickCube-v1'"):
        expand_tasks("PickCub")


@pytest.mark.parametrize(
    "task", first_fast("TurnFaucet-v1", "UnitreeH1Stand-v1", "OpenCabinetDoor-v1", fast=1)
)
def test_missing_files_are_one_sentence_with_a_command(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = download_command(task)
    assert command is not None
    with pytest.raises(ValueError, match="download_asset") as caught:
        ManiSkillRow(tasks=task)
    assert command in str(caught.value)
    assert capsys.readouterr().out == ""


def test_every_name_to_download_is_known_to_the_simulator() -> None:
    import_maniskill()
    from mani_skill.utils.assets import DATA_GROUPS, DATA_SOURCES

    names = {DOWNLOADS[task] or task for task in DOWNLOADS}
    assert names <= set(DATA_SOURCES) | set(DATA_GROUPS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reward": "spares"}, "did you mean 'sparse'"),
        ({"obs_mode": "pixels"}, "give one of"),
        ({"obs_mode": "rgb", "features": "relative"}, "set obs_mode='state'"),
        ({"control_mode": "pd_nothing"}, "no control_mode"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ManiSkillRow(tasks="PickCube-v1", **options)


@pytest.mark.parametrize("tasks", [("PickCube-v1", "PushCube-v1"), "PegInsertionSide-v1"])
def test_rows_that_cannot_be_stepped_together_are_told(tasks: Any) -> None:
    with pytest.raises(ValueError, match="set backend='rows'"):
        make(tasks=tasks, num_envs=2, seed=0, backend="workers")


@pytest.mark.skipif(headless.can_draw(), reason="there is a Vulkan driver")
def test_pictures_without_a_driver_are_refused() -> None:
    with pytest.raises(ValueError, match="Vulkan"):
        ManiSkillRow(tasks="PickCube-v1", obs_mode="rgb")


@pytest.mark.parametrize("task", first_fast("MS-HopperHop-v1", *SAMPLE[:2], "PushT-v1", fast=1))
def test_an_episode_is_a_function_of_seed_and_actions(task: str) -> None:
    row, other = row_of(task), row_of(task)
    actions = actions_of(row, 12)
    first = play(row, 5, actions)
    play(row, 6, actions[:5])
    assert np.array_equal(play(row, 5, actions), first)
    assert np.array_equal(play(other, 5, actions), first)
    alike = task in ("Empty-v1", "TableTopFreeDraw-v1")  # with nothing random in their starts
    assert np.array_equal(play(row, 7, actions), first) == alike
    row.close()
    other.close()


def test_state_is_the_flat_state_of_the_simulator() -> None:
    import_maniskill()
    import gymnasium

    row = row_of("PickCube-v1")
    raw: Any = gymnasium.make(
        "PickCube-v1",
        obs_mode="state",
        control_mode="pd_ee_delta_pos",
        sim_backend="physx_cpu",
        render_backend="none",
    ).unwrapped
    ours, (theirs, _) = row.reset(task_id=0, seed=3), raw.reset(seed=3)
    assert np.array_equal(ours["state"], theirs[0].numpy())
    for action in actions_of(row, 5):
        step, (theirs, _, terminated, _, _) = row.step(action), raw.step(action)
        assert np.array_equal(step.obs["state"], theirs[0].numpy())
        assert step.terminated is False and bool(terminated[0]) == step.success
    raw.close()
    row.close()


def test_failure_terminates_and_is_no_success() -> None:
    row = row_of("MS-CartpoleBalance-v1")
    row.reset(task_id=0, seed=0)
    step = row.step(np.ones(1, np.float32))
    for _ in range(200):
        assert step.success is None
        if step.terminated:
            break
        step = row.step(np.ones(1, np.float32))
    assert step.terminated and step.reward == -1.0
    row.close()


CONTROL_MODES = {
    "pd_joint_delta_pos": 8,
    "pd_joint_pos": 8,
    "pd_ee_delta_pos": 4,
    "pd_ee_delta_pose": 7,
    "pd_ee_pose": 7,
    "pd_joint_target_delta_pos": 8,
    "pd_ee_target_delta_pos": 4,
    "pd_ee_target_delta_pose": 7,
    "pd_joint_vel": 8,
    "pd_joint_pos_vel": 15,
    "pd_joint_delta_pos_vel": 15,
}


@pytest.mark.parametrize("mode", first_fast("pd_joint_pos_vel", *CONTROL_MODES, fast=1))
def test_every_control_mode_of_the_arm_moves_it(mode: str) -> None:
    row = row_of("PickCube-v1", control_mode=mode, obs_mode="state_dict")
    assert row.action_space.shape == (CONTROL_MODES[mode],)
    before = row.reset(task_id=0, seed=0)["agent/qpos"]
    after = row.step(actions_of(row, 1)[0]).obs["agent/qpos"]
    assert not np.array_equal(before, after)
    row.close()


@pytest.mark.parametrize(
    "reward", first_fast("dense", "sparse", "normalized_dense", "none", fast=1)
)
def test_rewards_are_floats(reward: str) -> None:
    row = ManiSkillRow(tasks="PushCube-v1", reward=reward)
    row.reset(task_id=0, seed=0)
    step = row.step(actions_of(row, 1)[0])
    assert type(step.reward) is float
    assert (step.reward == 0.0) == (reward in ("sparse", "none"))
    row.close()


def test_several_tasks_share_one_observation_space() -> None:
    row = ManiSkillRow(tasks=("PushCube-v1", "StackCube-v1"), features="relative")
    (size,) = row.observation_space["state"].shape or (0,)
    push, stack = (row.reset(task_id=task, seed=1) for task in (0, 1))
    assert push["state"].shape == stack["state"].shape == (size,) == (48,)
    assert not push["state"][35:].any() and stack["state"][45] != 0
    with pytest.raises(ValueError, match="different actions"):
        ManiSkillRow(tasks=("PushCube-v1", "LiftPegUpright-v1"))
    row.close()


@pytest.mark.parametrize("task", RELATIVE)
def test_relative_features_do_not_change_with_the_place(task: str) -> None:
    generator = np.random.default_rng(0)
    shift = np.array([0.3, -0.2, 0.0], np.float32)
    plan = RELATIVE[task]
    leaves: dict[str, Any] = {"agent/qpos": generator.normal(size=(2, 9))}
    for name in ("extra/tcp_pose", *plan.points):
        leaves[name] = generator.normal(size=(2, 7 if name.endswith("pose") else 3))
    moved = {
        name: np.concatenate([value[:, :3] + shift, value[:, 3:]], 1)
        if name.startswith("extra")
        else value
        for name, value in leaves.items()
    }
    here, there = (relative_features(x, task=task) for x in (leaves, moved))
    assert here.shape == (2, 30) and np.allclose(here, there, atol=1e-6)
    assert np.any(here[:, :3] != 0)


def test_rotation_columns_agree_with_scipy() -> None:
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation.random(8, random_state=0)
    wxyz = rotation.as_quat()[:, [3, 0, 1, 2]]
    expected = np.concatenate([rotation.as_matrix()[:, :, 0], rotation.as_matrix()[:, :, 1]], 1)
    assert np.allclose(rotation_columns(wxyz), expected)


OUT_OF_THE_WAY = {"LiftPegUpright-v1": (103, 104, 105, 107), "StackCube-v1": (126, 138, 155, 186)}
"""Seeds that put things where the arm reaches them with care only."""


@pytest.mark.parametrize(
    "task",
    first_fast(*OUT_OF_THE_WAY, *sorted({*EXPERTS} - {*OUT_OF_THE_WAY}), fast=2),
)
def test_experts_solve_their_tasks(task: str) -> None:
    scenes, act = Scenes(task, options=SceneOptions(), num_envs=4), expert(task)
    seeds = np.array(OUT_OF_THE_WAY.get(task, range(4)))
    state = scenes.reset(np.arange(4), seeds)["state"]
    solved = np.zeros(4, np.bool_)
    for _ in range(MAX_EPISODE_STEPS[task]):
        step = scenes.step(np.stack([act(row.astype(np.float64)) for row in state]))
        assert step.success is not None
        state, solved = step.obs["state"], solved | step.success
    assert solved.sum() >= 3
    scenes.close()


def test_a_task_without_an_expert_is_told() -> None:
    assert set(EXPERTS) <= set(OFFLINE)
    with pytest.raises(ValueError, match="no scripted expert"):
        expert("PushT-v1")


@pytest.mark.parametrize("backend", first_fast("workers", "batched", fast=1))
def test_every_backend_plays_the_same_episodes(backend: str) -> None:
    options: dict[str, Any] = {"num_envs": 3, "seed": 3, "max_episode_steps": 9}
    options |= {"num_threads": 2, "chunk_length": 4, "features": "relative"}
    envs = [
        make_env("maniskill", tasks="PickCube-v1", backend=name, **options)
        for name in ("rows", backend)
    ]
    rows, other = (env.reset()[0] for env in envs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):  # across the time limit and a reset, inside of a chunk
        assert torch.equal(rows["state"], other["state"])
        assert torch.equal(rows["relative"], other["relative"])
        actions = torch.rand((3, 4, 4), generator=generator) * 2 - 1
        rows, other = (env.step(actions)[0] for env in envs)
    for env in envs:
        env.close()


def test_worker_count_does_not_matter() -> None:
    episodes = []
    for count in (1, 2):
        options: dict[str, Any] = {"num_envs": 5, "seed": 3, "max_episode_steps": 7}
        env = make_env("maniskill", tasks="StackCube-v1", num_threads=count, **options)
        generator = torch.Generator().manual_seed(0)
        first = env.reset()[0]["state"]
        actions = torch.rand((10, 5, 4), generator=generator) * 2 - 1
        episodes.append(torch.stack([first, *(env.step(action)[0]["state"] for action in actions)]))
        env.close()
    assert torch.equal(episodes[0], episodes[1])


class Alone:
    """N rows in scenes of their own."""

    def __init__(self, task: str, options: SceneOptions, count: int) -> None:
        self.rows = [Scenes(task, options=options) for _ in range(count)]
        self.state: Any = [None] * count

    def reset(self, row: int, seed: int) -> None:
        self.state[row] = self.rows[row].reset(ONE, np.array([seed]))["state"][0]

    def step(self, row: int, action: np.ndarray) -> Any:
        step = self.rows[row].step(action[None])
        self.state[row] = step.obs["state"][0]
        return step


def assert_together_as_alone(task: str, *, steps: int) -> None:
    """Random and expert actions; a row starts anew now and then, and another one waits."""
    options = SceneOptions(reward=NO_SPARSE_REWARD.get(task, "sparse"))
    together, alone = Scenes(task, options=options, num_envs=3), Alone(task, options, 3)
    generator = np.random.default_rng(0)
    together.action_space.seed(0)
    for row in range(3):
        together.reset(np.array([row]), np.array([row + 5]))
        alone.reset(row, row + 5)
    for number in range(steps):
        actions = np.stack([together.action_space.sample() for _ in range(3)])
        if number % 10 == 4:
            row = int(generator.integers(3))
            obs = together.reset(np.array([row]), np.array([number]))
            alone.reset(row, number)
            assert np.array_equal(obs["state"], np.stack(alone.state))
        if task in EXPERTS and number % 8 > 1:
            act = expert(task)
            actions = np.stack([act(state.astype(np.float64)) for state in alone.state])
        waiting = int(generator.integers(5))
        rows = np.array([row for row in range(3) if row != waiting])
        step = together.step(actions, rows)
        for row in rows.tolist():
            expected = alone.step(row, actions[row])
            assert step.rewards[row] == expected.rewards[0]
            assert step.failed[row] == expected.failed[0]
            if step.success is not None:
                assert step.success[row] == expected.success[0]
        assert np.array_equal(step.obs["state"][rows], np.stack(alone.state)[rows])


@pytest.mark.parametrize(
    "task", first_fast("LiftPegUpright-v1", *sorted({*TOGETHER} - {"LiftPegUpright-v1"}), fast=1)
)
def test_rows_stepped_together_are_those_stepped_one_by_one(task: str) -> None:
    assert_together_as_alone(task, steps=30)


def test_a_start_depends_on_its_seed_alone() -> None:
    scenes = Scenes("PickCube-v1", options=SceneOptions(), num_envs=2)
    first = scenes.reset(np.arange(2), np.array([4, 5]))["state"]
    assert not np.array_equal(first[0], first[1])
    scenes.step(np.ones((2, 4), np.float32))
    second = scenes.reset(np.arange(2), np.array([5, 4]))["state"]
    assert np.array_equal(first, second[::-1])
    scenes.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", OFFLINE)
def test_every_offline_task_runs_and_repeats(task: str) -> None:
    test_an_episode_is_a_function_of_seed_and_actions(task)
