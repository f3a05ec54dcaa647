"""LIBERO: an episode is a function of task, seed and actions, bit for bit."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from embodied_rl.envs import make_env
from embodied_rl.envs.libero.tasks import NUM_INITIAL_STATES, SUITES, expand_tasks, load_task

pytest.importorskip("robosuite", reason="LIBERO is not installed: scripts/setup.sh libero,...")
if not os.environ.get("EMBODIED_RL_LIBERO_ASSETS"):
    pytest.skip(
        "LIBERO's scenes: set EMBODIED_RL_LIBERO_ASSETS to a folder or archive of them",
        allow_module_level=True,
    )

from embodied_rl.envs.libero.assets import assets_folder, import_libero
from embodied_rl.envs.libero.expert import expert_action
from embodied_rl.envs.libero.row import LiberoRow
from embodied_rl.envs.libero.simulation import TaskCache

TASKS = {suite: expand_tasks(f"{suite}/4")[0] for suite in SUITES}
STEPS = 16


def make_row(*pairs: tuple[str, str], **options) -> LiberoRow:
    return LiberoRow(tasks=pairs, assets=str(assets_folder()), **options)


def random_actions(steps: int = STEPS, seed: int = 0) -> np.ndarray:
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 7)).astype(np.float32)
    actions[4:8, 3:6] = 0.0  # an action that does not turn keeps the controller's former goal
    return actions


def play(
    row: LiberoRow, actions: np.ndarray, *, task_id: int = 0, seed: int = 3
) -> list[np.ndarray]:
    states = [row.reset(task_id=task_id, seed=seed)["state"]]
    return [*states, *(row.step(action).obs["state"] for action in actions)]


def assert_equal(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("suite", SUITES)
def test_replay_and_saved_states_are_exact_while_another_row_uses_the_same_task(suite):
    row, other = make_row(TASKS[suite]), make_row(TASKS[suite])
    actions = random_actions()
    first = play(row, actions)
    assert not np.array_equal(first[1], first[-1])
    again = [row.reset(task_id=0, seed=3)["state"]]
    other.reset(task_id=0, seed=5)
    for step, action in enumerate(actions):
        if step == STEPS // 2:
            saved = row.save()
        again.append(row.step(action).obs["state"])
        other.step(-action)
    assert_equal(first, again)
    other.load(saved)  # pyright: ignore[reportPossiblyUnboundVariable]
    restored = [other.step(action).obs["state"] for action in actions[STEPS // 2 :]]
    assert_equal(first[STEPS // 2 + 1 :], restored)


def test_an_episode_is_that_of_robosuite_itself():
    suite, name = TASKS["libero_spatial"]
    row, actions = make_row((suite, name)), random_actions()
    play(row, actions, seed=7)
    import_libero(assets_folder())
    from libero.libero.envs.env_wrapper import ControlEnv

    np.random.seed(0)
    stock = ControlEnv(
        str(load_task(suite, name).bddl_file), use_camera_obs=False, has_offscreen_renderer=False
    )
    stock.sim.data.qacc_warmstart[:] = 0.0
    stock.set_init_state(load_task(suite, name).initial_states()[7])
    for action in [*np.zeros((10, 7)), *actions.astype(np.float64)]:
        stock.step(action)
    theirs = stock.get_sim_state()
    assert np.array_equal(row.save()[1][: theirs.size], theirs)


@pytest.mark.parametrize(
    "suite",
    [s if s == "libero_object" else pytest.param(s, marks=pytest.mark.slow) for s in SUITES],
)
def test_exact_stepping_is_stock_through_an_episode_another_task_and_back(suite):
    pairs = expand_tasks([f"{suite}/4", f"{suite}/7"])
    stock, exact = make_row(*pairs, stepping="stock"), make_row(*pairs)
    neighbour = make_row(*pairs)  # uses the same built tasks between the steps of ``exact``
    neighbour.reset(task_id=1, seed=9)

    def both(command):
        a, b = command(stock), command(exact)
        assert all(np.array_equal(a[name], b[name]) for name in a)
        for x, y in zip(stock.save(), exact.save(), strict=True):
            assert np.array_equal(x, y)
        return a

    def step(action):
        neighbour.step(-action)
        return both(lambda row: row.step(action).obs)

    both(lambda row: row.reset(task_id=0, seed=3))
    for action in random_actions():
        step(action)
    saved = stock.save()
    obs = both(lambda row: row.reset(task_id=1, seed=5))
    for _ in range(40):
        obs = step(expert_action(obs["state"].astype(np.float64), exact.task_names[1]))
    both(lambda row: row.load(saved))
    for action in random_actions(seed=1):
        step(action)
    both(lambda row: row.reset(task_id=0, seed=3))
    step(random_actions()[0])


def test_seeds_choose_among_the_initial_states_asked_for():
    pair = TASKS["libero_object"]
    row = make_row(pair, initial_states=(40, 44), settle_steps=0)
    starts = [row.reset(task_id=0, seed=seed)["state"] for seed in range(6)]
    assert np.array_equal(starts[0], starts[5])
    assert len({start.tobytes() for start in starts}) == 5
    every = make_row(pair, settle_steps=0)
    for seed in (0, 3):
        wanted = every.reset(task_id=0, seed=NUM_INITIAL_STATES + 40 + seed)["state"]
        assert np.array_equal(starts[seed], wanted)


def test_idle_tasks_are_closed_beyond_the_limit_and_running_ones_are_not(monkeypatch):
    built: list[str] = []
    closed: list[str] = []

    class Fake:
        def __init__(self, suite: str, name: str) -> None:
            self.name = name
            built.append(name)

        def close(self) -> None:
            closed.append(self.name)

    monkeypatch.setattr("embodied_rl.envs.libero.simulation.TaskSimulation", Fake)
    cache = TaskCache(2)
    users = [object() for _ in range(3)]
    for user, name in zip(users, "abc", strict=True):
        cache.take(user, "suite", name)
    assert (built, closed, len(cache)) == (["a", "b", "c"], [], 3)
    cache.take(users[0], "suite", "b")
    cache.take(users[1], "suite", "d")
    assert closed == ["a"] and built[-1] == "d"
    cache.take(users[0], "suite", "c")
    cache.take(users[0], "suite", "d")
    assert closed == ["a", "b"] and len(cache) == 2


def test_worker_count_does_not_matter():
    records = []
    for threads in (1, 2):
        env = make_env(
            "libero", tasks=("object/7", "object/3"), num_envs=3, seed=5, num_threads=threads
        )
        try:
            obs, _ = env.reset()
            steps = [obs["state"]]
            for action in random_actions(4, seed=1):
                obs = env.step(torch.from_numpy(action).expand(3, 7))[0]
                steps.append(obs["state"].clone())
            records.append(torch.stack(steps))
        finally:
            env.close()
    assert torch.equal(*records)
