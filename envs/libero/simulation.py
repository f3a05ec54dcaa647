"""One built LIBERO task in MuJoCo, used by any number of episodes in turn.

Building a task takes half a second and 110 MB, so that the rows of a process share one per task: an
episode is a ``Snapshot``, loaded before its step and saved after it. What a snapshot holds is all
that the next step depends on, bit for bit: MuJoCo's integration state (time, positions, velocities,
accelerations the solver starts from, controls) and the controller's memory.

Placement: an initial state of the benchmark says where the objects are, but not the furniture,
which robosuite places at random when it builds a task. It is drawn here from a fixed seed, so that
a task always looks the same.

Axes: F numbers of the state, P goal predicates, H and W pixels.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied_rl.envs.libero.assets import import_libero
from embodied_rl.envs.libero.control import StockStepper, make_stepper
from embodied_rl.envs.libero.layout import GOAL, PREDICATES, ROBOT, ROBOT_SIZE, state_size
from embodied_rl.envs.libero.tasks import Goal, load_task
from embodied_rl.envs.spaces import Array

PLACEMENT_SEED = 0
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Names of our images and of MuJoCo's cameras."""
VISUAL_GROUPS = (0, 1, 0, 0, 0, 0)
"""Geometry that is drawn: group 0 is what collides, group 1 what is seen."""
FREE = 0
"""MuJoCo's number of the joint type with six degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode between two control steps: MuJoCo's integration state, controller's memory."""

    physics: Array
    memory: Array


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a goal predicate is read: indices into MuJoCo's model, constants of the scene."""

    goal: Goal
    body: int
    centre: Array  # of the box, in the body's axes
    extents: Array
    target_site: int | None
    target_body: int | None
    target_box: tuple[Array, Array] | None
    room: Array
    joint: int | None
    joint_goal: float


class TaskSimulation:
    """A built task.

    Args:
        suite, name: the task.
        assets: folder of the scenes.
        stepping: a mode of ``control.STEPPERS``.
        settle_steps: control steps without motion between an initial state and the first action.
    """

    def __init__(
        self, suite: str, name: str, *, assets: Path, stepping: str, settle_steps: int
    ) -> None:
        self.task = load_task(suite, name)
        self.env = _build(self.task.bddl_file, assets)
        self._mujoco: Any = importlib.import_module("mujoco")
        self._model, self._data = self.env.sim.model._model, self.env.sim.data._data
        self._stock = StockStepper(self.env)
        self._stepper = make_stepper(stepping, self.env)
        self._settle_steps = settle_steps
        self._initial_states = self.task.initial_states()
        self._settled: dict[int, Snapshot] = {}
        self._renderers: dict[tuple[int, int], Any] = {}
        robot = self.env.robots[0]
        self._hand = robot.eef_site_id
        self._fingers = np.array(robot._ref_gripper_joint_pos_indexes)
        self._finger_speeds = np.array(robot._ref_gripper_joint_vel_indexes)
        self._joints = np.array(robot._ref_joint_pos_indexes)
        self._boxes = {
            name: (int(self.env.obj_body_id[name]), *self._box(int(self.env.obj_body_id[name])))
            for name in self.env.objects_dict
        }
        self._parts = [self._part(goal) for goal in self.task.goals]

    # -- episodes -----------------------------------------------------------------------------

    def settled(self, index: int) -> Snapshot:
        """The start of an episode: initial state ``index`` after the settling steps.

        Settling is the stock stepper's in every mode, so that all modes start alike.
        """
        if index not in self._settled:
            self._settled[index] = self._settle(self._initial_states[index])
        return self._settled[index]

    def _settle(self, initial_state: Array) -> Snapshot:
        self._mujoco.mj_resetData(self._model, self._data)
        nq = self._model.nq
        self._data.time = initial_state[0]
        self._data.qpos[:] = initial_state[1 : 1 + nq]
        self._data.qvel[:] = initial_state[1 + nq :]
        self._mujoco.mj_forward(self._model, self._data)
        self._stock.start()
        for _ in range(self._settle_steps):
            self._stock.step(np.zeros(7))
        return Snapshot(self._physics(), self._stock.save())

    def load(self, snapshot: Snapshot) -> None:
        """Put the simulation where ``snapshot`` was taken; ``step`` may follow."""
        self._mujoco.mj_setState(
            self._model, self._data, snapshot.physics, self._mujoco.mjtState.mjSTATE_INTEGRATION
        )
        self._stepper.load(snapshot.memory)

    def show(self, snapshot: Snapshot) -> None:
        """Load and derive all positions; ``observe`` and ``render`` may follow, not ``step``."""
        self.load(snapshot)
        self._mujoco.mj_forward(self._model, self._data)

    def step(self, action: Array) -> Snapshot:
        """One control step with an action [7] in [-1, 1]; returns what follows."""
        self._stepper.step(np.asarray(action, np.float64))
        return Snapshot(self._physics(), self._stepper.save())

    def _physics(self) -> Array:
        spec = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(self._model, spec))
        self._mujoco.mj_getState(self._model, self._data, state, spec)
        return state

    # -- observations -------------------------------------------------------------------------

    def success(self) -> bool:
        """Whether every goal predicate holds, as the benchmark checks it."""
        return bool(self.env._check_success())

    def state(self, goals: int) -> Array:
        """``state`` of ``layout`` with room for ``goals`` predicates, [F] float32."""
        data = self._data
        state = np.zeros(state_size(goals), np.float64)
        state[ROBOT["hand"]] = data.site_xpos[self._hand]
        state[ROBOT["rotation"]] = _two_columns(data.site_xmat[self._hand])
        state[ROBOT["fingers"]] = data.qpos[self._fingers]
        state[ROBOT["finger_speed"]] = data.qvel[self._finger_speeds]
        state[ROBOT["command"]] = -self._stepper.save()[-2]
        state[ROBOT["joints"]] = data.qpos[self._joints]
        state[ROBOT["velocity"]] = self._hand_velocity()
        blocks = state[ROBOT_SIZE:].reshape(goals, -1)
        for block, part in zip(blocks, self._parts, strict=False):
            self._fill(block, part)
        return state.astype(np.float32)

    def _hand_velocity(self) -> Array:
        velocity = np.empty(6)  # angular, linear
        kind = self._mujoco.mjtObj.mjOBJ_SITE
        self._mujoco.mj_objectVelocity(self._model, self._data, kind, self._hand, velocity, 0)
        return velocity[[3, 4, 5, 0, 1, 2]]

    def _fill(self, block: Array, part: _Part) -> None:
        """Write the block of one predicate."""
        data = self._data
        rotation = data.xmat[part.body].reshape(3, 3)
        position = data.xpos[part.body]
        centre = position + rotation @ part.centre
        goal, top, room = self._target(part, centre)
        block[GOAL["position"]] = position
        block[GOAL["rotation"]] = _two_columns(rotation)
        block[GOAL["centre"]] = centre
        block[GOAL["extents"]] = part.extents
        block[GOAL["goal"]] = goal
        block[GOAL["room"]] = room
        block[GOAL["top"]] = top
        block[GOAL["obstacle"]], block[GOAL["obstacle_room"]] = self._obstacle(part, centre)
        if part.joint is not None:
            value = data.qpos[self._model.jnt_qposadr[part.joint]]
            block[GOAL["joint"]] = (value, part.joint_goal)
        block[GOAL["done"]] = self.env._eval_predicate(_as_words(part.goal))
        block[GOAL["predicate"]][PREDICATES.index(part.goal.predicate)] = 1.0
        block[GOAL["present"]] = 1.0

    def _obstacle(self, part: _Part, centre: Array) -> tuple[Array, Array]:
        """(centre [3], half extents [3] along the world's axes) of the nearest other object."""
        nearest, best = (np.zeros(3), np.zeros(3)), np.inf
        for body, middle, extents in self._boxes.values():
            if body in (part.body, part.target_body):
                continue
            rotation = self._data.xmat[body].reshape(3, 3)
            position = self._data.xpos[body] + rotation @ middle
            distance = float(np.linalg.norm((position - centre)[:2]))
            if distance < best:
                nearest, best = (position, np.abs(rotation) @ extents), distance
        return nearest

    def _target(self, part: _Part, centre: Array) -> tuple[Array, float, Array]:
        """(goal position [3], height of its top, half extents [3] along the world's axes)."""
        data = self._data
        if part.joint is not None:
            goal = self._moved(part, centre)
            return goal, float(goal[2]), np.zeros(3)
        if part.target_site is not None:
            goal = data.site_xpos[part.target_site]
            room = np.abs(data.site_xmat[part.target_site].reshape(3, 3) @ part.room)
            return goal, float(goal[2] + room[2]), room
        assert part.target_body is not None and part.target_box is not None
        rotation = data.xmat[part.target_body].reshape(3, 3)
        middle, extents = part.target_box
        room = np.abs(rotation) @ extents
        goal = data.xpos[part.target_body]
        return goal, float(goal[2] + (rotation @ middle)[2] + room[2]), room

    def _moved(self, part: _Part, centre: Array) -> Array:
        """Where the centre of a piece of furniture goes when its joint reaches its goal."""
        assert part.joint is not None
        axis, anchor = self._data.xaxis[part.joint], self._data.xanchor[part.joint]
        value = self._data.qpos[self._model.jnt_qposadr[part.joint]]
        change = part.joint_goal - value
        if self._model.jnt_type[part.joint] == 2:  # slide
            return centre + change * axis
        arm = centre - anchor  # hinge: Rodrigues' formula
        along = axis * (axis @ arm)
        turned = np.cos(change) * (arm - along) + np.sin(change) * np.cross(axis, arm)
        return anchor + along + turned

    # -- construction of parts ----------------------------------------------------------------

    def _part(self, goal: Goal) -> _Part:
        joint = None if goal.target else self._moving_joint(goal.thing)
        if joint is None:
            body = int(self.env.obj_body_id[goal.thing])
        else:
            body = int(self._model.jnt_bodyid[joint])
        centre, extents = self._box(body)
        site = body_of_target = box = None
        room = np.zeros(3)
        if goal.target in self.env.object_sites_dict:
            site = int(self.env.sim.model.site_name2id(goal.target))
            room = np.asarray(self.env.object_sites_dict[goal.target].size, np.float64)
        elif goal.target is not None:
            body_of_target = int(self.env.obj_body_id[goal.target])
            box = self._box(body_of_target)
        joint_goal = 0.0 if joint is None else self._joint_goal(goal)
        return _Part(
            goal, body, centre, extents, site, body_of_target, box, room, joint, joint_goal
        )

    def _moving_joint(self, thing: str) -> int:
        """The joint that a predicate about furniture looks at."""
        site = self.env.object_sites_dict.get(thing)
        owner = self.env.get_object(thing) if site is None else site
        return int(self.env.sim.model.joint_name2id(owner.joints[0]))

    def _joint_goal(self, goal: Goal) -> float:
        """Middle of the range of joint values in which the predicate holds."""
        site = self.env.object_sites_dict.get(goal.thing)
        furniture = self.env.get_object(goal.thing if site is None else site.parent_name)
        ranges = furniture.object_properties["articulation"]
        return float(np.mean(ranges[f"default_{goal.predicate}_ranges"]))

    def _box(self, body: int) -> tuple[Array, Array]:
        """(centre, half extents) [3] of what collides of a body and its fixed children."""
        model, data = self._model, self._data
        inside = {body}
        for child in range(body + 1, model.nbody):
            if model.body_parentid[child] in inside and model.body_jntnum[child] == 0:
                inside.add(child)
        frame, origin = data.xmat[body].reshape(3, 3), data.xpos[body]
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        for geom in range(model.ngeom):
            if model.geom_bodyid[geom] not in inside or not model.geom_contype[geom]:
                continue
            rotation = frame.T @ data.geom_xmat[geom].reshape(3, 3)
            middle, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
            middle = frame.T @ (data.geom_xpos[geom] - origin) + rotation @ middle
            reach = np.abs(rotation) @ half
            low, high = np.minimum(low, middle - reach), np.maximum(high, middle + reach)
        if not np.isfinite(low).all():
            return np.zeros(3), np.zeros(3)
        return (low + high) / 2, (high - low) / 2

    # -- images -------------------------------------------------------------------------------

    def render(self, camera: str, height: int, width: int) -> Array:
        """Picture [H, W, 3] uint8, upright, of the loaded state; ``camera`` is MuJoCo's name."""
        if (height, width) not in self._renderers:
            self._renderers[height, width] = self._mujoco.Renderer(self._model, height, width)
        renderer = self._renderers[height, width]
        options = self._mujoco.MjvOption()
        options.geomgroup[:] = VISUAL_GROUPS
        renderer.update_scene(self._data, camera=camera, scene_option=options)
        return renderer.render()

    def close(self) -> None:
        """Release what the task holds outside Python."""
        for renderer in self._renderers.values():
            renderer.close()
        self.env.close()


class TaskCache:
    """The built tasks of a process, by (suite, name).

    Those that nobody uses are closed, least recently used first, while there are more than
    ``limit``; a task in use is never closed, since its next step would build it anew.
    """

    def __init__(self, limit: int, **options: Any) -> None:
        self._limit = limit
        self._options = options
        self._built: OrderedDict[tuple[str, str], TaskSimulation] = OrderedDict()
        self._users: dict[object, tuple[str, str]] = {}

    def take(self, user: object, suite: str, name: str) -> TaskSimulation:
        """The task that ``user`` uses from now on, instead of its former one."""
        key = self._users[user] = (suite, name)
        self._close_idle(self._limit - (key not in self._built))
        if key not in self._built:
            self._built[key] = TaskSimulation(suite, name, **self._options)
        self._built.move_to_end(key)
        return self._built[key]

    def release(self, user: object) -> None:
        """``user`` uses no task from now on."""
        self._users.pop(user, None)

    def _close_idle(self, limit: int) -> None:
        used = set(self._users.values())
        idle = [key for key in self._built if key not in used]
        for key in idle[: max(len(self._built) - limit, 0)]:
            self._built.pop(key).close()

    def __len__(self) -> int:
        return len(self._built)


def _build(bddl_file: Path, assets: Path) -> Any:
    """The robosuite environment of a scene description, without cameras, placed by a fixed seed."""
    libero = import_libero(assets)
    from libero.libero.envs.env_wrapper import ControlEnv

    assert libero is not None
    before = np.random.get_state()
    np.random.seed(PLACEMENT_SEED)
    try:
        env = ControlEnv(
            bddl_file_name=str(bddl_file), use_camera_obs=False, has_offscreen_renderer=False
        ).env
    finally:
        np.random.set_state(before)
    env._observables = {}  # robosuite samples them in every physics step
    env.visualize(vis_settings={name: False for name in env._visualizations})
    return env


def _two_columns(rotation: Array) -> Array:
    return rotation.reshape(3, 3)[:, :2].T.ravel()


def _as_words(goal: Goal) -> Sequence[str]:
    return [goal.predicate, goal.thing, *([goal.target] if goal.target else [])]
