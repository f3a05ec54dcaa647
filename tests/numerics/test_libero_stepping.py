"""LIBERO stepping against robosuite's own, in one environment restored from snapshots."""

# mujoco's functions come from a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib.util
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="robosuite is not installed: pip install '.[libero]'")
pytest.importorskip("libero", reason="LIBERO is not installed: pip install --no-deps hf-libero")
ASSETS = os.environ.get("EMBODIED_RL_LIBERO_ASSETS", "")
pytestmark = pytest.mark.skipif(
    not ASSETS, reason="set EMBODIED_RL_LIBERO_ASSETS to a folder or tar archive of LIBERO's scenes"
)
TASK = "libero_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket"
MEASURED = (
    *("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel", "torques"),
    *("J_pos", "J_ori", "J_full", "mass_matrix", "goal_pos", "goal_ori"),
)
DERIVED = (
    *("qacc", "qacc_warmstart", "sensordata", "xpos", "xquat", "site_xpos", "geom_xpos"),
    *("cvel", "cfrc_int", "cfrc_ext", "actuator_force", "qfrc_bias", "qfrc_constraint", "qM"),
)


def _package() -> Path:
    spec = importlib.util.find_spec("libero")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def _initial_state(number: int) -> Any:
    import torch

    file = _package() / "init_files" / f"{TASK}.pruned_init"
    return torch.load(file, weights_only=False)[number]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    assets = Path(ASSETS)
    folder = tmp_path_factory.mktemp("libero")
    if assets.is_file():
        with tarfile.open(assets) as archive:
            archive.extractall(folder, filter="data")
        assets = folder
    if (assets / "assets").is_dir():
        assets = assets / "assets"
    (folder / "config.yaml").write_text(f"benchmark_root: {_package()}\nassets: {assets}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBERO_CONFIG_PATH", str(folder))
        import libero.libero
        from libero.libero.envs.env_wrapper import ControlEnv

        patch.setattr(libero.libero, "_assets_path_cache", str(assets))
        np.random.seed(0)
        built = ControlEnv(
            bddl_file_name=str(_package() / "bddl_files" / f"{TASK}.bddl"),
            use_camera_obs=False,
            has_offscreen_renderer=False,
        )
        yield built
        built.close()


def _actions(steps: int) -> np.ndarray:
    actions = np.random.default_rng(1).uniform(-1.2, 1.2, (steps, 7))
    actions[2:3, 3:6] = 0.0  # keeps the goal of the rotation
    actions[:, 2] -= 0.6  # towards the objects
    return actions


def _restart(env: Any) -> None:
    """Everything that a control step reads, as after building and ``set_init_state``."""
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    mujoco.mj_resetData(model, data)
    robot = env.robots[0]
    robot.reset()
    robot.gripper.current_action = np.zeros(2)
    env.env.timestep, env.env.cur_time, env.env.done = 0, 0, False
    for observable in env.env._observables.values():
        observable.reset()
        observable._sampled = False
    data.qacc_warmstart[:] = 0.0
    data.ctrl[:] = 0.0
    env.set_init_state(_initial_state(0))
    env.env._update_observables(force=True)  # moves their clocks away from the last substep


def _trace(env: Any, steps: list[Callable[[Any], object]], after: Callable[[], Any]) -> list[Any]:
    _restart(env)
    out = []
    for step, action in zip(steps, _actions(len(steps)), strict=True):
        step(action)
        out.append(after())
    return out


def _everything(env: Any) -> dict[str, Any]:
    import mujoco

    model, data, robot = env.sim.model._model, env.sim.data._data, env.robots[0]
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, spec))
    mujoco.mj_getState(model, data, state, spec)
    buffers = [name for name in vars(robot) if name.startswith("recent_") and "buffer" not in name]
    return {
        "state": state,
        "contacts": np.array(data.contact.geom),
        "success": env.check_success(),
        "clock": (env.env.timestep, env.env.cur_time, env.env.done),
        "grip": np.array(robot.gripper.current_action),
        "clipped": np.array(robot.torques),
        "ring": robot.recent_ee_vel_buffer.buf.copy(),
        **{name: np.array(getattr(robot.controller, name)) for name in MEASURED},
        **{name: np.array(getattr(data, name)) for name in DERIVED},
        **{name: np.array(getattr(robot, name).current) for name in buffers},
    }


def _differences(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> set[str]:
    return {
        k for a, b in zip(left, right, strict=True) for k in a if not np.array_equal(a[k], b[k])
    }


def test_exact_leaves_every_bit_as_stock_leaves_it(env: Any) -> None:
    from embodied_rl.envs.libero.stepping import Stepper

    stepper = Stepper(env, mode="exact")
    stock = _trace(env, [env.step] * 6, lambda: _everything(env))
    ours = _trace(env, [stepper.step] * 6, lambda: _everything(env))
    assert _differences(stock, ours) == set()
    assert not np.array_equal(stock[0]["state"], stock[-1]["state"])


def test_exact_and_stock_steps_can_alternate(env: Any) -> None:
    from embodied_rl.envs.libero.stepping import Stepper

    stepper = Stepper(env.env, mode="exact")
    stock = _trace(env, [env.step] * 4, lambda: _everything(env))
    mixed = _trace(env, [stepper.step, env.step, env.step, stepper.step], lambda: _everything(env))
    assert _differences(stock, mixed) == set()


def test_observables_are_sampled_where_stock_samples_them(env: Any) -> None:
    from embodied_rl.envs.libero.stepping import Stepper

    stepper = Stepper(env)
    observe = env.env._get_observations
    stock = _trace(env, [env.step] * 4, observe)
    ours = _trace(env, [lambda action: stepper.step(action, observe=True)] * 4, observe)
    assert _differences(stock, ours) == set()
    assert "robot0_eef_pos" in stock[0] and "alphabet_soup_1_pos" in stock[0]


def test_fast_follows_stock(env: Any) -> None:
    from embodied_rl.envs.libero.stepping import Stepper

    stepper = Stepper(env, mode="fast")
    stock = _trace(env, [env.step] * 5, lambda: _everything(env))
    ours = _trace(env, [stepper.step] * 5, lambda: _everything(env))
    for a, b in zip(stock, ours, strict=True):
        positions = slice(0, 1 + env.sim.model.nq)  # after the time
        np.testing.assert_allclose(b["state"][positions], a["state"][positions], atol=1e-6)
        np.testing.assert_allclose(b["joint_pos"], a["joint_pos"], atol=1e-7)
        np.testing.assert_array_equal(b["grip"], a["grip"])
        assert b["clock"] == a["clock"] and b["success"] == a["success"]
    assert not np.array_equal(stock[-1]["state"], ours[-1]["state"])  # else it would be exact


def test_fast_torques_are_those_of_robosuites_controller(env: Any) -> None:
    from embodied_rl.envs.libero import stepping

    stepper = stepping.Stepper(env, mode="fast")
    _restart(env)
    stepper.step(np.zeros(7))
    arm, controller, data = stepper._arm, stepper._arm.controller, env.sim.data._data
    rng = np.random.default_rng(0)
    for _ in range(20):
        data.qpos[arm.joints_q] = controller.initial_joint + rng.uniform(-0.6, 0.6, 7)
        data.qvel[arm.joints_v] = rng.uniform(-1, 1, 7)
        controller.new_update = True
        controller.set_goal(rng.uniform(-1, 1, 6))
        torques = controller.run_controller()
        arm.begin(np.ones(7))
        stepping._fast_control(arm)
        np.testing.assert_allclose(arm.torques, torques, atol=1e-7, rtol=1e-9)
        np.testing.assert_array_equal(data.ctrl[:7], np.clip(arm.torques, *arm.limits))


def test_solve_inverts_and_leaves_singular_directions_alone() -> None:
    from embodied_rl.envs.libero.stepping import _solve

    half = np.random.default_rng(0).normal(size=(6, 6))
    matrix, rhs = half @ half.T, np.arange(1.0, 4.0)
    expected = np.linalg.solve(matrix[3:, 3:], rhs)
    _solve(matrix, 3, rhs)
    np.testing.assert_allclose(rhs, expected, rtol=1e-9)
    flat = np.diag([2.0, 0.0, 4.0])
    rhs = np.ones(3)
    _solve(flat, 0, rhs)
    np.testing.assert_allclose(rhs, np.linalg.pinv(flat) @ np.ones(3), rtol=1e-12)


def test_memory_continues_an_episode(env: Any) -> None:
    import mujoco

    from embodied_rl.envs.libero.stepping import exact

    stepper = exact(env)
    _trace(env, [stepper.step] * 2, lambda: None)
    before, memory = _everything(env)["state"], stepper.save()
    last = np.array([0.3, -0.2, 0.1, 0.0, 0.0, 0.0, 1.0])  # no rotation: needs the old goal
    stepper.step(last)
    expected = _everything(env)
    stepper.step(np.full(7, 0.5))
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(env.sim.model._model, env.sim.data._data, before, spec)
    stepper.load(memory)
    stepper.step(last)
    assert _differences([{"state": expected["state"]}], [_everything(env)]) == set()


def test_a_stepper_survives_reset(env: Any) -> None:
    from embodied_rl.envs.libero.stepping import Stepper

    stepper = Stepper(env)
    states = []
    for step in (env.step, stepper.step):
        env.seed(3)
        env.reset()
        step(np.full(7, 0.3))
        states.append(_everything(env))
    assert _differences(states[:1], states[1:]) == set()


def test_what_does_not_fit_is_refused(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from embodied_rl.envs.libero.stepping import Stepper

    with pytest.raises(ValueError, match="give one of"):
        Stepper(env, mode="slow")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"give \(7,\)"):
        Stepper(env).step(np.zeros(6))
    monkeypatch.setattr(env.robots[0].controller, "uncoupling", False)
    with pytest.raises(ValueError, match=r"use env\.step"):
        Stepper(env)


def test_cheap_rendering_drops_triangles_and_keeps_physics(env: Any) -> None:
    from embodied_rl.envs.libero.stepping import Stepper, cheap_rendering

    stepper, model = Stepper(env), env.sim.model._model
    before = _trace(env, [stepper.step] * 2, lambda: _everything(env))
    faces = model.mesh_facenum.copy()
    cheap_rendering(model)
    assert model.vis.quality.offsamples == 0
    assert model.mesh_facenum.sum() < 0.6 * faces.sum() and (model.mesh_facenum > 0).all()
    for mesh in range(model.nmesh):
        start = model.mesh_faceadr[mesh]
        kept = model.mesh_face[start : start + model.mesh_facenum[mesh]]
        assert kept.max() < model.mesh_vertnum[mesh]
    after = _trace(env, [stepper.step] * 2, lambda: _everything(env))
    assert _differences(before, after) == set()
