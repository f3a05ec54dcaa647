"""What matters of a manipulation state without absolute positions: the observation ``relative``.

A network that has seen a few object positions cannot tell where the gripper was from where it was
in relation to the object; without absolute positions it does not have to. With gripper g, and up
to three points p1 (the object to be moved), p2, p3 (what it goes to):

    [p1 - g, p2 - p1, p2 - g, p3 - p2, p3 - g, opening, g_z, p1_z, R(g), R(p1)]      [30]

R are the first two columns of a rotation matrix (Zhou et al., CVPR 2019), only for tasks in which
the orientation decides, else zeros; so are displacements to points that a task does not have.

Axes: N row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embodied_rl.envs.spaces import Array, ArrayDict

SIZE = 30


@dataclass(frozen=True)
class Points:
    """Leaves that hold the points of a task (position, or pose = position and quaternion wxyz)."""

    points: tuple[str, ...]
    rotation: bool = False


RELATIVE: dict[str, Points] = {
    "LiftPegUpright-v1": Points(("extra/obj_pose",), rotation=True),
    "PegInsertionSide-v1": Points(("extra/peg_pose", "extra/box_hole_pose"), rotation=True),
    "PickCube-v1": Points(("extra/obj_pose", "extra/goal_pos")),
    "PlaceSphere-v1": Points(("extra/obj_pose", "extra/bin_pos")),
    "PlugCharger-v1": Points(("extra/charger_pose", "extra/goal_pose"), rotation=True),
    "PokeCube-v1": Points(("extra/peg_pose", "extra/cube_pose", "extra/goal_pos"), rotation=True),
    "PullCube-v1": Points(("extra/obj_pose", "extra/goal_pos")),
    "PullCubeTool-v1": Points(("extra/tool_pose", "extra/cube_pose"), rotation=True),
    "PushCube-v1": Points(("extra/obj_pose", "extra/goal_pos")),
    "RollBall-v1": Points(("extra/ball_pose", "extra/goal_pos")),
    "StackCube-v1": Points(("extra/cubeA_pose", "extra/cubeB_pose")),
    "StackPyramid-v1": Points(("extra/cubeA_pose", "extra/cubeB_pose", "extra/cubeC_pose")),
}
"""Tasks that have the observation ``relative``."""


def relative_features(leaves: ArrayDict, *, task: str) -> Array:
    """The features [N, 30] float32 of state leaves [N, ...] of a task in ``RELATIVE``."""
    plan = RELATIVE[task]
    gripper = leaves["extra/tcp_pose"]
    out = np.zeros((gripper.shape[0], SIZE), np.float32)
    g, previous = gripper[:, :3], None
    column = 0
    for name in plan.points:
        point = leaves[name][:, :3]
        if previous is not None:
            out[:, column : column + 3] = point - previous
            column += 3
        out[:, column : column + 3] = point - g
        column += 3
        previous = point
    first = leaves[plan.points[0]]
    out[:, 15] = leaves["agent/qpos"][:, -1]
    out[:, 16] = g[:, 2]
    out[:, 17] = first[:, 2]
    if plan.rotation:
        out[:, 18:24] = rotation_columns(gripper[:, 3:])
        out[:, 24:30] = rotation_columns(first[:, 3:])
    return out


def rotation_columns(quaternion: Array) -> Array:
    """First two columns [N, 6] of the rotation matrix of unit quaternions [N, 4], wxyz."""
    w, x, y, z = quaternion.T
    return np.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y + w * z),
            2 * (x * z - w * y),
            2 * (x * y - w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z + w * x),
        ],
        axis=1,
    )
