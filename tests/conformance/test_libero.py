"""LIBERO: what its environments promise beyond what every environment does."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
import torch

from embodied_rl.envs import make_env
from embodied_rl.envs.libero import expert, layout
from embodied_rl.envs.libero.tasks import (
    GOALS_PER_TASK,
    SUITES,
    expand_tasks,
    load_task,
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


def test_relative_features_do_not_change_when_everything_is_moved_sideways():
    random = np.random.default_rng(0)
    state = random.normal(size=(4, layout.state_size(2))).astype(np.float64)
    moved = state.copy()
    shift = np.array([0.3, -0.2, 0.0])
    moved[:, layout.ROBOT["hand"]] += shift
    for block in layout.goal_blocks(moved).swapaxes(0, 1):
        for name in ("position", "centre", "goal"):
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


@needs_scenes
def test_a_batch_mixes_tasks_and_the_expert_solves_them():
    names = ("libero_object/7", "libero_spatial/2")
    env = make_env("libero", num_envs=2, seed=0, tasks=names, autoreset=False, num_threads=1)
    try:
        act = expert.experts(env.task_names)
        obs, _ = env.reset(options={"task_ids": torch.tensor([0, 1])})
        assert obs["state"].shape == (2, layout.state_size(1))
        assert env.instructions[0] == "pick up the milk and place it in the basket"
        solved = torch.zeros(2, dtype=torch.bool)
        while not bool((solved | (env.task_ids < 0)).all()):
            obs, _, _, truncated, info = env.step(act(obs["state"], env.task_ids))
            solved |= info["success"]
            assert not bool(truncated.any())
    finally:
        env.close()
