"""Pictures without a graphics driver: a scene's collision shapes, drawn by MuJoCo.

SAPIEN draws through Vulkan alone. Where it finds no driver, films of ManiSkill show the shapes that
its physics computes with instead of its materials and lights: every body of the scene becomes a
MuJoCo body without dynamics, which is moved to where SAPIEN has it and drawn in software from the
task's own camera for people. Goals, which are markers without a shape, are green spheres.

These pictures are for people; observations with pictures need SAPIEN's renderer.

Quaternions are (w, x, y, z). SAPIEN's cameras look along +x with +z up, MuJoCo's along -z with +y
up; SAPIEN's capsules, cylinders and planes have their axis along x, MuJoCo's along z.
"""

# mujoco's and sapien's classes come from compiled modules without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from embodied_rl.doctor import gl_backend
from embodied_rl.envs.spaces import Array

COLOURS = (
    (0.84, 0.22, 0.20, 1.0),
    (0.25, 0.62, 0.30, 1.0),
    (0.20, 0.42, 0.80, 1.0),
    (0.93, 0.69, 0.20, 1.0),
    (0.55, 0.34, 0.69, 1.0),
    (0.20, 0.67, 0.68, 1.0),
)
"""Of the things of a task, in the order in which it makes them."""
ROBOT, FINGERS = (0.90, 0.90, 0.91, 1.0), (0.30, 0.32, 0.35, 1.0)
TABLE, GROUND = (0.76, 0.66, 0.53, 1.0), (0.35, 0.37, 0.40, 1.0)
GOAL = (0.1, 0.8, 0.2, 0.5)
GOAL_RADIUS = 0.02
GROUND_SIZE = 40.0
NO_GL = (
    "pictures need a Vulkan driver or software OpenGL, and there is neither: apt-get install "
    "libegl1 libgl1-mesa-dri"
)
Z_TO_X = (0.70710678, 0.0, 0.70710678, 0.0)
"""Rotation that takes the z axis to x."""
LOOK = (0.5, 0.5, -0.5, -0.5)
"""Rotation from SAPIEN's camera axes to MuJoCo's."""


class ShapeCamera:
    """Draws the present state of the first scene of ``env``.

    Args:
        env: a ManiSkill environment, after its first reset.

    Raises:
        ValueError: no software OpenGL, or MuJoCo is not installed.
    """

    def __init__(self, env: Any) -> None:
        from mani_skill.agents.multi_agent import MultiAgent

        self._mujoco = mujoco = _import_mujoco()
        self.scene = env.scene.sub_scenes[0]
        self._camera = _first(env._default_human_render_camera_configs)
        spec = mujoco.MjSpec()
        spec.visual.global_.offwidth = self._camera.width
        spec.visual.global_.offheight = self._camera.height
        spec.visual.headlight.ambient = (0.45, 0.45, 0.45)
        spec.visual.headlight.diffuse = (0.45, 0.45, 0.45)
        spec.visual.map.znear = 0.001
        spec.worldbody.add_light(pos=(0.5, -0.5, 3.0), dir=(-0.2, 0.2, -1.0), castshadow=True)
        agents = env.agent.agents if isinstance(env.agent, MultiAgent) else [env.agent]
        links = {link.name for agent in agents for link in agent.robot.links}
        palette = itertools.cycle(COLOURS)
        self._entities = []
        for entity in self.scene.entities:
            shapes = _shapes(entity)
            if not shapes and "goal" not in entity.name:
                continue
            self._entities.append(entity)
            colour = _fixed_colour(entity.name, robot=entity.name in links)
            body = spec.worldbody.add_body(mocap=True)
            _add_shapes(mujoco, spec, body, shapes, rgba=colour or next(palette))
        eye = spec.worldbody.add_body(mocap=True)
        eye.add_camera(name="eye", quat=LOOK, fovy=np.degrees(self._camera.fov))
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._open_context()

    def render(self) -> Array:
        """uint8 [H, W, 3]."""
        poses = [entity.pose for entity in self._entities]
        poses.append(self._eye())
        self._data.mocap_pos[:] = [pose.p for pose in poses]
        self._data.mocap_quat[:] = [pose.q for pose in poses]
        self._mujoco.mj_forward(self._model, self._data)
        self._gl.make_current()
        mujoco, mask = self._mujoco, self._mujoco.mjtCatBit.mjCAT_ALL
        arguments = (self._model, self._data, self._options, None, self._view, mask, self._drawn)
        mujoco.mjv_updateScene(*arguments)
        height, width = self._camera.height, self._camera.width
        whole = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(whole, self._drawn, self._context)
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, whole, self._context)
        return picture[::-1].copy()  # OpenGL's first row is the lowest

    def _open_context(self) -> None:
        """MuJoCo's own choice is made when it is first imported, by whoever does that."""
        mujoco = self._mujoco
        self._gl = _gl_context(self._camera.width, self._camera.height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._drawn = mujoco.MjvScene(self._model, maxgeom=10 * self._model.ngeom + 100)
        self._options, self._view = mujoco.MjvOption(), mujoco.MjvCamera()
        self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0

    def _eye(self) -> Any:
        """Where the camera is; some are carried by the robot."""
        pose = self._camera.pose.sp
        mount = self._camera.mount
        return pose if mount is None else mount.pose.sp * pose

    def close(self) -> None:
        """Release the OpenGL context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def _import_mujoco() -> Any:
    try:
        import mujoco
    except ImportError as error:
        message = "pictures without a Vulkan driver need MuJoCo: pip install mujoco==3.3.0"
        raise ValueError(message) from error
    return mujoco


def _gl_context(width: int, height: int) -> Any:
    backend = gl_backend()
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        raise ValueError(NO_GL)
    return GLContext(width, height)


def _first(cameras: Any) -> Any:
    """The camera for people, of a task that has one or several."""
    if isinstance(cameras, dict):
        cameras = list(cameras.values())
    return cameras[0] if isinstance(cameras, list | tuple) else cameras


def _shapes(entity: Any) -> list[Any]:
    """Collision shapes of all physical components of an entity."""
    import sapien

    physical = sapien.physx.PhysxRigidBaseComponent
    parts = [part for part in entity.components if isinstance(part, physical)]
    return [shape for part in parts for shape in part.collision_shapes]


def _fixed_colour(name: str, *, robot: bool) -> tuple[float, ...] | None:
    """Colour of what is no thing of the task."""
    if robot:
        return FINGERS if "finger" in name or "hand" in name else ROBOT
    if "ground" in name:
        return GROUND
    if "table" in name:
        return TABLE
    return None


def _add_shapes(
    mujoco: Any, spec: Any, body: Any, shapes: Sequence[Any], *, rgba: tuple[float, ...]
) -> None:
    """Shapes of one colour; a sphere for a goal, which has none."""
    if not shapes:
        sphere = mujoco.mjtGeom.mjGEOM_SPHERE
        body.add_geom(type=sphere, size=(GOAL_RADIUS, 0, 0), rgba=GOAL)
    for shape in shapes:
        body.add_geom(rgba=rgba, **_geom(mujoco, spec, shape))


def _geom(mujoco: Any, spec: Any, shape: Any) -> dict[str, Any]:
    """Attributes of the MuJoCo geom; the mesh that it needs is added to ``spec``."""
    kind = type(shape).__name__.removeprefix("PhysxCollisionShape")
    types = mujoco.mjtGeom
    pose = shape.local_pose
    given: dict[str, Any] = {"pos": pose.p, "quat": pose.q}
    if kind == "Box":
        given |= {"type": types.mjGEOM_BOX, "size": shape.half_size}
    elif kind == "Sphere":
        given |= {"type": types.mjGEOM_SPHERE, "size": (shape.radius, 0, 0)}
    elif kind in ("Capsule", "Cylinder"):
        geom = types.mjGEOM_CAPSULE if kind == "Capsule" else types.mjGEOM_CYLINDER
        given |= {"type": geom, "size": (shape.radius, shape.half_length, 0)}
        given["quat"] = _multiplied(mujoco, pose.q, Z_TO_X)
    elif kind == "Plane":
        given |= {"type": types.mjGEOM_PLANE, "size": (GROUND_SIZE, GROUND_SIZE, 1)}
        given["quat"] = _multiplied(mujoco, pose.q, Z_TO_X)
    else:  # ConvexMesh, TriangleMesh
        vertices = (shape.vertices * shape.scale).astype(np.float64)
        name = str(len(spec.meshes))
        mesh = spec.add_mesh(name=name)
        mesh.uservert = vertices.ravel()
        mesh.userface = np.asarray(shape.triangles).ravel()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # parts may be flat
        given |= {"type": types.mjGEOM_MESH, "meshname": name}
    return given


def _multiplied(mujoco: Any, a: Array, b: tuple[float, ...]) -> Array:
    product = np.zeros(4)
    mujoco.mju_mulQuat(product, np.asarray(a, np.float64), np.asarray(b))
    return product
