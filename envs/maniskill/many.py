"""N scenes of one task on a CPU as one ManiSkill environment: the Python work is done once for N.

ManiSkill takes one scene on ``physx_cpu`` and spends nine tenths of a step in Python and torch.
Its task code is written for N scenes all the same, for the GPU. Here it runs unchanged with N rows:
``ManyScene`` holds N scenes with a physics system each, and what the structs (``Actor``, ``Link``,
``Articulation``, ``ArticulationJoint``) read from and write to ``_objs[0]`` is read from and
written to all of ``_objs``. Structs of other scenes keep ManiSkill's own code.

A row that is not in ``ManyScene.active`` stands still: its physics is not stepped, its drives keep
their targets, and ``kept`` restores its tensors.

Axes: N row; D joint; tensors of a struct lead with its ``_objs``, one per row that has it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.envs.base import IntArray
from embodied_rl.envs.maniskill.headless import import_maniskill

import_maniskill()

import sapien  # noqa: E402 (after what stands in for graphics)
from mani_skill.agents.controllers.utils.kinematics import Kinematics  # noqa: E402
from mani_skill.envs import sapien_env  # noqa: E402
from mani_skill.envs.scene import ManiSkillScene  # noqa: E402
from mani_skill.envs.utils.randomization.batched_rng import BatchedRNG  # noqa: E402
from mani_skill.utils import sapien_utils  # noqa: E402
from mani_skill.utils.structs import Actor, Articulation, ArticulationJoint, Link, Pose  # noqa: E402
from mani_skill.utils.structs.base import (  # noqa: E402
    PhysxRigidBodyComponentStruct,
    PhysxRigidDynamicComponentStruct,
)
from sapien import physx  # noqa: E402


class _Systems:
    """N physics systems where ManiSkill expects one."""

    def __init__(self, systems: Sequence[Any]) -> None:
        self.systems = list(systems)

    @property
    def timestep(self) -> float:
        """Seconds of one physics step."""
        return self.systems[0].timestep

    @timestep.setter
    def timestep(self, seconds: float) -> None:
        for system in self.systems:
            system.timestep = seconds


class ManyScene(ManiSkillScene):
    """N scenes on the CPU.

    Attributes:
        active: rows that ``step`` and the drives are for.
    """

    def __init__(self, sub_scenes: list[Any], **options: Any) -> None:
        self._held: Tensor | None = None
        super().__init__(sub_scenes, **options)
        self.px: Any = _Systems([scene.physx_system for scene in sub_scenes])
        self.active = list(range(len(sub_scenes)))
        self._read: dict[tuple[int, str], Any] = {}
        self._owed = 0

    @property
    def _reset_mask(self) -> Tensor:
        return self._mask if self._held is None else self._held

    @_reset_mask.setter
    def _reset_mask(self, mask: Tensor) -> None:
        self._mask = mask

    @contextlib.contextmanager
    def only(self, row: int) -> Iterator[None]:
        """What is written is written to ``row`` alone, whatever ManiSkill sets its mask to.

        (It clears the mask of a partial reset before it resets the controllers.)
        """
        self._held = torch.arange(len(self.sub_scenes)) == row
        try:
            yield
        finally:
            self._held = None

    @property
    def driven(self) -> list[int]:
        """Rows whose drives may be set."""
        return self.active if self._held is None else self._held.nonzero()[:, 0].tolist()

    def step(self) -> None:
        """One physics step of the active rows, done when something is read or written.

        Steps that are owed are done row after row: one scene fits into the cache, N do not.
        """
        self._owed += 1

    def settle(self) -> None:
        """Do the physics steps that are owed."""
        if self._owed:
            self._read.clear()
            for row in self.active:
                step = self.px.systems[row].step
                for _ in range(self._owed):
                    step()
            self._owed = 0

    def read(self, struct: Any, name: str, reader: Callable[[], Any]) -> Tensor:
        """A new tensor of what ``reader`` gives, which is asked once between two changes."""
        self.settle()
        key = (id(struct), name)
        if key not in self._read:
            # The struct is kept too, so that its id names no other.
            self._read[key] = (torch.from_numpy(np.asarray(reader())), struct)
        return self._read[key][0].clone()

    def written(self, struct: Any) -> list[int]:
        """Indices of the ``_objs`` of ``struct`` that a write is for."""
        self.settle()
        self._read.clear()
        mask = self._reset_mask.tolist()
        return [i for i, row in enumerate(struct._scene_idxs.tolist()) if mask[row]]

    def contacts(self) -> list[Any]:
        """Contacts of every row, asked once between two changes."""
        self.settle()
        key = (id(self), "contacts")
        if key not in self._read:
            self._read[key] = ([system.get_contacts() for system in self.px.systems], self)
        return self._read[key][0]

    def get_pairwise_contact_impulses(self, obj1: Any, obj2: Any) -> Tensor:
        """Impulse [N, 3] in N s between two bodies of every row."""
        contacts = self.contacts()
        impulses = [
            sapien_utils.get_pairwise_contact_impulse(contacts[row], one.entity, two.entity)
            for row, one, two in zip(
                obj1._scene_idxs.tolist(), obj1._bodies, obj2._bodies, strict=True
            )
        ]
        return torch.from_numpy(np.array(impulses, np.float32))


def _poses(poses: Sequence[Any]) -> np.ndarray:
    flat = np.empty((len(poses), 7), np.float32)
    for row, pose in enumerate(poses):
        flat[row, :3], flat[row, 3:] = pose.p, pose.q
    return flat


def _actor_pose(actor: Any) -> Pose:
    return Pose(actor.scene.read(actor, "pose", lambda: _poses([x.pose for x in actor._objs])))


def _link_pose(link: Any) -> Pose:
    return Pose(link.scene.read(link, "pose", lambda: _poses([x.entity_pose for x in link._objs])))


def _set_pose(struct: Any, value: Any) -> None:
    if isinstance(value, Pose):
        value = value.raw_pose
    elif isinstance(value, sapien.Pose):
        value = np.concatenate([value.p, value.q])
    indices = struct.scene.written(struct)
    for index, flat in zip(indices, _rows(value, len(indices), 7), strict=True):
        struct._objs[index].pose = sapien.Pose(flat[:3], flat[3:])


def _rows(value: Any, count: int, width: int) -> Any:
    """``value`` [width], [1, width] or [count, width] as [count, width]."""
    value = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    return np.broadcast_to(value.reshape(-1, width), (count, width))


def _getter(name: str, of: str = "_objs") -> Callable[[Any], Tensor]:
    """The attribute ``name`` of all that ``of`` holds, one row each."""

    def get(struct: Any) -> Tensor:
        return struct.scene.read(
            struct, name, lambda: [getattr(x, name) for x in getattr(struct, of)]
        )

    return get


def _setter(name: str, of: str = "_objs") -> Callable[[Any, Any], None]:
    def put(struct: Any, value: Any) -> None:
        indices, things = struct.scene.written(struct), getattr(struct, of)
        width = np.shape(getattr(things[0], name))[0]
        for index, flat in zip(indices, _rows(value, len(indices), width), strict=True):
            setattr(things[index], name, flat)

    return put


def _drive(method: str) -> Callable[..., None]:
    """Set drive targets or velocities [N, D] of ``joints`` in the active rows."""

    def put(robot: Any, targets: Tensor, joints: Any = None, joint_indices: Any = None) -> None:
        robot.scene.settle()
        rows = targets.tolist()
        if len(rows) == 1:
            rows *= robot._num_objs
        for column, joint in enumerate(joints):
            for row in robot.scene.driven:
                getattr(joint._objs[row], method)(rows[row][column])

    return put


def _inverse_kinematics(solver: Any, pose: Pose, q0: Tensor, *_: Any, **__: Any) -> Tensor:
    """Joint positions [N, D] at which the hand is at ``pose`` [N]; where there are none, ``q0``."""
    found = q0[:, solver.active_joint_indices].clone()
    start = q0[:, solver.pmodel_active_joint_indices].numpy()
    target: Any = pose.raw_pose.numpy()
    controlled = solver.pmodel_controlled_joint_indices
    for row in solver.articulation.scene.driven:
        result, success, _ = solver.pmodel.compute_inverse_kinematics(
            solver.end_link_idx,
            sapien.Pose(list(target[row, :3]), list(target[row, 3:])),
            initial_qpos=start[row],
            active_qmask=solver.qmask,
            max_iterations=100,
        )
        if success:
            found[row] = torch.from_numpy(result)[controlled]
    return found


def _body_impulses(body: Any) -> Tensor:
    contacts = body.scene.contacts()
    impulses = [
        sapien_utils.compute_total_impulse(
            sapien_utils.get_cpu_actor_contacts(contacts[row], one.entity)
        )
        for row, one in zip(body._scene_idxs.tolist(), body._bodies, strict=True)
    ]
    return torch.from_numpy(np.array(impulses, np.float32))


def _link_impulses(robot: Any, names: Sequence[str]) -> Tensor:
    return torch.stack([_body_impulses(robot.links_map[name]) for name in names], 1)


def _joint_state(name: str) -> Callable[[Any], Tensor]:
    def get(joint: Any) -> Tensor:
        return getattr(joint.articulation, name)[:, int(joint.active_index[0])]

    return get


def _set_joint_qpos(joint: Any, value: Any) -> None:
    robot = joint.articulation
    indices = robot.scene.written(robot)
    for index, flat in zip(indices, _rows(value, len(indices), 1), strict=True):
        qpos = robot._objs[index].qpos
        qpos[int(joint.active_index[0])] = flat[0]
        robot._objs[index].qpos = qpos


@functools.cache
def _teach_structs() -> None:
    """Let structs of a ``ManyScene`` see all their rows."""
    base, dynamic = PhysxRigidBodyComponentStruct, PhysxRigidDynamicComponentStruct
    for kind in (base, dynamic):
        for name in ("linear_velocity", "angular_velocity"):
            put = _setter(name, "_bodies") if kind is dynamic else None
            _property(kind, name, _getter(name, "_bodies"), put)
    _property(Actor, "pose", _actor_pose, _set_pose)
    _property(Link, "pose", _link_pose, _set_pose)
    for name in ("qpos", "qvel", "qf"):
        _property(Articulation, name, _getter(name), _setter(name))
    _property(Articulation, "qacc", _getter("qacc"))
    for name in ("root_linear_velocity", "root_angular_velocity"):
        _property(Articulation, name, _getter(name), _setter(name))
    _property(ArticulationJoint, "qpos", _joint_state("qpos"), _set_joint_qpos)
    _property(ArticulationJoint, "qvel", _joint_state("qvel"))
    for name in ("drive_target", "drive_velocity_target"):
        _property(ArticulationJoint, name, _getter(name), _setter(name))
    _method(Articulation, "set_joint_drive_targets", _drive("set_drive_target"))
    _method(Articulation, "set_joint_drive_velocity_targets", _drive("set_drive_velocity_target"))
    _method(Articulation, "get_net_contact_impulses", _link_impulses)
    _method(base, "get_net_contact_impulses", _body_impulses)
    _method(Articulation, "get_link_incoming_joint_forces", _getter("link_incoming_joint_forces"))
    _method(Kinematics, "compute_ik", _inverse_kinematics, scene=lambda x: x.articulation.scene)


def _property(kind: type, name: str, get: Callable[..., Any], put: Any = None) -> None:
    own = vars(kind)[name]

    def read(self: Any) -> Any:
        return get(self) if isinstance(self.scene, ManyScene) else own.fget(self)

    def write(self: Any, value: Any) -> None:
        if put is not None and isinstance(self.scene, ManyScene):
            put(self, value)
        else:
            own.fset(self, value)

    setattr(kind, name, property(read, write if own.fset else None, doc=own.__doc__))


def _method(
    kind: type,
    name: str,
    many: Callable[..., Any],
    scene: Callable[[Any], Any] = lambda struct: struct.scene,
) -> None:
    own = vars(kind)[name]

    @functools.wraps(own)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return (many if isinstance(scene(self), ManyScene) else own)(self, *args, **options)

    setattr(kind, name, call)


class _ManyRows:
    """Mixed into a task's class: the scenes are a ``ManyScene``.

    Attributes:
        quiet: a reset returns no observation and no info, for resets row by row.
    """

    quiet = False

    def _setup_scene(self: Any) -> None:
        self._set_scene_config()
        scenes = [sapien.Scene([physx.PhysxCpuSystem()]) for _ in range(self.num_envs)]
        self.scene = ManyScene(
            scenes, sim_config=self.sim_config, device=self.device, backend=self.backend
        )
        self.scene.px.timestep = 1.0 / self._sim_freq

    def _step_action(self: Any, action: Any) -> Any:
        taken = super()._step_action(action)  # pyright: ignore
        self.scene.settle()
        return taken

    def _set_main_rng(self: Any, seed: Any) -> None:
        if not self.quiet:
            super()._set_main_rng(seed)  # pyright: ignore

    def _set_episode_rng(self: Any, seed: Any, env_idx: Tensor) -> None:
        if not self.quiet:
            super()._set_episode_rng(seed, env_idx)  # pyright: ignore
            return
        # One generator for one row, as with one scene; to make N takes longer than all the rest.
        self._episode_seed = np.asarray(seed)
        self._episode_rng = np.random.RandomState(seed[0])
        self._batched_episode_rng = BatchedRNG.from_rngs([self._episode_rng] * self.num_envs)

    def get_info(self: Any) -> dict[str, Any]:
        return {} if self.quiet else super().get_info()  # pyright: ignore

    def get_obs(self: Any, *args: Any, **options: Any) -> Any:
        return {} if self.quiet else super().get_obs(*args, **options)  # pyright: ignore


def many(task: type) -> Callable[..., Any]:
    """A constructor of ``task`` that takes ``num_envs`` > 1 with ``sim_backend="physx_cpu"``."""
    _teach_structs()
    kind = type(task.__name__, (_ManyRows, task), {})

    def make(**options: Any) -> Any:
        refused = sapien_env.CPU_SIM_BACKENDS
        sapien_env.CPU_SIM_BACKENDS = ()  # type: ignore[assignment]
        try:
            return kind(**options)
        finally:
            sapien_env.CPU_SIM_BACKENDS = refused

    return make


@contextlib.contextmanager
def kept(env: Any, rows: IntArray) -> Iterator[None]:
    """Restore ``rows`` of every tensor [N, ...] that the task and its controllers hold."""
    saved = {key: tensor[rows].clone() for key, tensor in _tensors(env).items()}
    yield
    now = _tensors(env)
    for key, old in saved.items():
        now[key][rows] = old


def _tensors(env: Any) -> dict[tuple[int, str], Tensor]:
    """Tensors [N, ...] of the task and its controllers."""
    found = {}
    for index, holder in enumerate((env, *_controllers(env.agent.controller))):
        for name, value in vars(holder).items():
            value = value.raw_pose if isinstance(value, Pose) else value
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == env.num_envs:
                found[index, name] = value
    return found


def _controllers(controller: Any) -> list[Any]:
    """Every controller below, of one or several robots."""
    parts = controller if isinstance(controller, dict) else vars(controller).get("controllers")
    if parts is None:
        return [controller]
    return [leaf for part in parts.values() for leaf in _controllers(part)]
