"""LIBERO: what its environments promise beyond what every environment does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from embodied_rl.doctor import gl_backend
from embodied_rl.envs import make_env
from embodied_rl.envs.libero import expert, layout
from embodied_rl.envs.libero.assets import assets_folder
from embodied_rl.envs.libero.row import LiberoRow
from embodied_rl.envs.libero.tasks import (
    GOALS_PER_TASK,
    SUITES,
    expand_tasks,
    load_task,
    state_index,
    suite_tasks,
)
from embodied_rl.evaluate import make_manifest

libero = pytest.importorskip(
    "robosuite", reason="LIBERO is not installed: scripts/setup.sh libero,..."
)
pytest.importorskip("bddl", reason="LIBERO is not installed: scripts/setup.sh libero,...")
MILK = "pick_up_the_milk_and_place_it_in_the_basket"
needs_scenes = pytest.mark.skipif(
    not os.environ.get("EMBODIED_RL_LIBERO_ASSETS"),
    reason="LIBERO's scenes: set EMBODIED_RL_LIBERO_ASSETS to a folder or archive of them",
)


def test_the_suites_have_their_130_tasks_with_50_initial_states_each():
    pairs = expand_tasks(SUITES)
    assert Counter(suite for suite, _ in pairs) == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_10": 10,
        "libero_90": 90,
    }
    assert len({name for _, name in pairs}) == 130
    for suite, name in pairs[::13]:
        states = load_task(suite, name).initial_states()
        assert len(states) == 50 and np.isfinite(states).all()


def test_wordings_differ_where_the_benchmark_lets_them():
    tasks = [load_task(*pair) for pair in expand_tasks(SUITES)]
    different = [task for task in tasks if len(set(task.instructions.values())) == 2]
    assert len(different) == 29
    goal = load_task("libero_goal", "put_the_wine_bottle_on_top_of_the_cabinet")
    assert goal.instructions["name"] == "put the wine bottle on top of the cabinet"
    assert goal.instructions["scene"] == "put the wine bottle on the top of the drawer"
    kitchen = load_task(
        "libero_90", "KITCHEN_SCENE10_put_the_black_bowl_in_the_top_drawer_of_the_cabinet"
    )
    assert kitchen.instructions["name"].startswith("put the black bowl in the top drawer")


def test_no_task_has_more_goals_than_its_suite_has_room_for():
    for suite in SUITES:
        counts = [len(load_task(suite, name).goals) for name in suite_tasks()[suite]]
        assert max(counts) == GOALS_PER_TASK[suite]
        predicates = {g.predicate for n in suite_tasks()[suite] for g in load_task(suite, n).goals}
        assert predicates <= set(layout.PREDICATES)


def test_tasks_are_named_in_any_usual_way():
    pair = ("libero_object", MILK)
    assert (
        expand_tasks(MILK) == expand_tasks("object/7") == expand_tasks(["/".join(pair)]) == (pair,)
    )
    assert expand_tasks(["object", MILK]) == expand_tasks("libero_object")
    with pytest.raises(ValueError, match="pick_up_the_milk"):
        expand_tasks("pick_up_the_milc_and_place_it_in_the_basket")
    with pytest.raises(ValueError, match="libero_goal"):
        expand_tasks("libero_gaol")


def test_every_initial_state_is_evaluated_once_in_fifty_rounds():
    names = suite_tasks()["libero_object"]
    for split in ("tune", "test"):
        manifest = make_manifest(names, episodes=500, split=split, simulator="libero")
        for task in names:
            seeds = [s for t, s in zip(manifest.tasks, manifest.seeds, strict=True) if t == task]
            assert sorted(seed % 50 for seed in seeds) == list(range(50))
            assert sorted(seed % 10 for seed in seeds[:10]) == list(range(10))


def test_seeds_of_evaluation_and_of_training_start_from_different_states():
    ranges = {"training": (0, 39), "evaluation": (40, 49)}
    training = {state_index(seed, **ranges) for seed in range(1000)}
    manifest = make_manifest(["a"], episodes=10, split="test", simulator="libero")
    evaluation = {state_index(seed, **ranges) for seed in manifest.seeds}
    assert training == set(range(40)) and evaluation == set(range(40, 50))


def test_relative_features_do_not_change_when_everything_is_moved_sideways():
    random = np.random.default_rng(0)
    state = random.normal(size=(4, layout.state_size(2))).astype(np.float64)
    moved = state.copy()
    shift = np.array([0.3, -0.2, 0.0])
    moved[:, layout.ROBOT["hand"]] += shift
    for block in layout.goal_blocks(moved).swapaxes(0, 1):
        for name in ("position", "centre", "goal", "obstacle"):
            block[:, layout.GOAL[name]] += shift
    features = layout.relative_features(state)
    assert features.shape == (4, layout.relative_size(2))
    np.testing.assert_allclose(layout.relative_features(moved), features, atol=1e-12)
    moved[:, layout.ROBOT["hand"]] += (0.0, 0.1, 0.0)
    assert np.abs(layout.relative_features(moved) - features).max() > 0.01


def test_an_absent_goal_leaves_no_trace_in_the_features():
    state = np.zeros((1, layout.state_size(2)))
    state[:, layout.ROBOT["hand"]] = 0.5
    features = layout.relative_features(state)
    assert np.count_nonzero(features) == 1  # the height of the hand


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "libero_moon"}, "libero_moon"),
        ({"tasks": MILK, "wording": "long"}, "wording"),
        ({"tasks": MILK, "images": ("front",)}, "agentview"),
        ({"tasks": MILK, "stepping": "fats"}, "stepping"),
        ({"tasks": MILK, "initial_states": (10, 50)}, "0 to 49"),
    ],
)
def test_wrong_options_are_refused_before_any_process_starts(options, message):
    with pytest.raises(ValueError, match=message):
        make_env("libero", num_envs=1, seed=0, **options)


def check_row(row: LiberoRow, task_id: int) -> None:
    """Observations in their space and finite; success is not there for nothing."""
    first = row.reset(task_id=task_id, seed=1)
    random = np.random.default_rng(task_id)
    for _ in range(3):
        transition = row.step(random.uniform(-1, 1, 7).astype(np.float32))
        assert row.observation_space.contains(transition.obs)
        assert all(np.isfinite(value).all() for value in transition.obs.values())
        assert (transition.reward, transition.success) == (0.0, False)
    assert not np.array_equal(first["state"], transition.obs["state"])  # pyright: ignore
    present = layout.goal_blocks(first["state"])[:, layout.GOAL["present"]]
    assert present.sum() == len(load_task(*row.tasks[task_id]).goals)


@needs_scenes
@pytest.mark.slow
def test_all_130_tasks_step_and_observe():
    row = LiberoRow(tasks=expand_tasks(SUITES), assets=str(assets_folder()), cached_tasks=1)
    for task_id in range(130):
        check_row(row, task_id)


@needs_scenes
def test_a_batch_mixes_tasks_and_the_expert_solves_them():
    names = ("libero_object/7", "libero_object/3")
    env = make_env("libero", num_envs=2, seed=0, tasks=names, autoreset=False, num_threads=1)
    try:
        act = expert.experts(env.task_names)
        obs, _ = env.reset(options={"task_ids": torch.tensor([0, 1])})
        assert obs["state"].shape == (2, layout.state_size(1))
        assert env.instructions[0] == "pick up the milk and place it in the basket"
        solved = torch.zeros(2, dtype=torch.bool)
        for _ in range(160):
            obs, rewards, terminated, _, info = env.step(act(obs["state"], env.task_ids))
            assert torch.equal(rewards > 0, info["success"] & info["valid"])
            solved |= terminated
            if bool(solved.all()):
                break
        assert bool(solved.all())
    finally:
        env.close()


def bowl_scene(*, bowl: np.ndarray, obstacle: np.ndarray) -> expert._Scene:
    """An upright bowl on the table, the open hand above its middle."""
    state = np.zeros(layout.state_size(1))
    turned_down = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    state[layout.ROBOT["hand"]] = bowl + np.array([0.0, 0.0, 0.2])
    state[layout.ROBOT["rotation"]] = turned_down
    state[layout.ROBOT["command"]] = expert.OPEN
    block = layout.goal_blocks(state)[0]
    block[layout.GOAL["position"]] = block[layout.GOAL["centre"]] = bowl
    block[layout.GOAL["rotation"]] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    block[layout.GOAL["extents"]] = (0.054, 0.054, 0.025)
    block[layout.GOAL["obstacle"]] = obstacle
    return expert._scene(state, block, "")


@pytest.mark.parametrize("x", [-0.2, -0.05, 0.05, 0.1, 0.14])
@pytest.mark.parametrize("y", [-0.3, -0.1, 0.0, 0.2, 0.3])
def test_a_bowl_is_taken_by_the_rim_away_from_its_neighbour_or_on_the_robots_side(x, y):
    bowl = np.array([x, y, 0.92])
    for aside in (0.1, -0.1):
        neighbour = bowl + np.array([0.0, aside, 0.0])
        grasp = expert.choose_grasp(bowl_scene(bowl=bowl, obstacle=neighbour))
        to_rim = grasp.point - bowl
        assert 0.045 < np.linalg.norm(to_rim[:2]) < 0.049
        assert abs(to_rim[:2] @ grasp.axis[:2]) == pytest.approx(np.linalg.norm(to_rim[:2]))
        away = to_rim[1] * aside < 0
        free = bowl[:2] - np.array([0.0, np.sign(aside) * 0.047])
        far = np.linalg.norm(free - expert.BASE) > expert.REACH
        assert away != far
        assert not far or np.linalg.norm(grasp.point[:2] - expert.BASE) < np.linalg.norm(
            free - expert.BASE
        )


def test_the_expert_refuses_what_is_more_than_to_pick_and_place():
    predicates = {"open", "close", "turnon", "turnoff"}
    for suite, name in expand_tasks(SUITES):
        asked = predicates & {goal.predicate for goal in load_task(suite, name).goals}
        if asked and "SCENE8" not in name:  # where the stove is on at the start
            with pytest.raises(ValueError, match=f"only picks and places.*{name}"):
                expert.experts([MILK, name])
    with pytest.raises(ValueError, match=r"4 of 10 tasks \(open_the_middle.*push_the_plate"):
        expert.experts(suite_tasks()["libero_goal"])
    for suite in ("libero_spatial", "libero_object"):
        expert.experts(suite_tasks()[suite])


@needs_scenes
@pytest.mark.parametrize(("task", "state"), [("spatial/6", 10), ("spatial/9", 0)])
def test_the_expert_takes_what_the_arm_barely_reaches(task, state):
    row = LiberoRow(tasks=expand_tasks(task), assets=str(assets_folder()), stepping="fast")
    obs, name, solved = row.reset(task_id=0, seed=state), row.task_names[0], False
    for _ in range(150):
        transition = row.step(expert.expert_action(obs["state"].astype(np.float64), name))
        obs, solved = transition.obs, bool(transition.success)
        if solved:
            break
    assert solved
    row.close()


@needs_scenes
@pytest.mark.skipif(gl_backend() is None, reason="drawing needs EGL or OSMesa")
def test_pictures_are_upright_and_leave_the_episode_alone():
    code = """
import numpy as np
from embodied_rl.envs.libero.assets import assets_folder
from embodied_rl.envs.libero.row import LiberoRow
from embodied_rl.envs.libero.tasks import expand_tasks
options = {"tasks": expand_tasks("object/7"), "assets": str(assets_folder())}
seen = LiberoRow(**options, images=("agentview", "wrist"), image_size=64)
blind = LiberoRow(**options)
first = seen.reset(task_id=0, seed=0)
assert seen.observation_space.contains(first)
blind.reset(task_id=0, seed=0)
up = np.array([0, 0, 1, 0, 0, 0, -1], np.float32)
for _ in range(6):
    last = seen.step(up).obs
    assert np.array_equal(last["state"], blind.step(up).obs["state"])
    assert seen.render().shape == (256, 256, 3)
# The hand has moved up, so the picture has changed, on average, above the middle of the hand.
changed = np.abs(last["agentview"].astype(int) - first["agentview"]).sum(0)
rows = np.arange(64)
middle = (changed.sum(1) * rows).sum() / changed.sum()
assert changed.max() > 50 and middle < 32, middle
"""
    environment = os.environ | {"MUJOCO_GL": gl_backend() or "", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
