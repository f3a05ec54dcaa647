"""Scripted experts on the poses in the state: stages told apart by geometry alone, so no memory.

An expert is a function of the present state: ``displacement = clip(gain (target - tcp) / 0.1 m)``
towards the target of its stage, and gripper +1 (open) or -1 (closed). The stages of a pick are:
over the object, down to it, closed on it, and then what the task wants. Actions are those of the
control modes in ``CONTROL_MODES``: [dx, dy, dz, gripper] of ``pd_ee_delta_pos``, and [dx, dy, dz,
rx, ry, rz, gripper] of ``pd_ee_target_delta_pose`` for LiftPegUpright, which has to turn its hand.

Positions are in metres in the world frame, z up; x points away from the robot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from embodied_rl.envs.maniskill.tasks import task_id
from embodied_rl.envs.spaces import Array

Expert = Callable[[Array], Array]
"""State [S] -> action [D] in [-1, 1]."""

STEP = 0.1
"""Metres that an action of 1 asks for."""
TURN = 0.1
"""Radians likewise."""
BASE = np.array([-0.615, 0.0, 0.0])
"""Foot of the arm."""
REACH = 0.78
"""Metres sideways from the foot that the hand reaches. The controller refuses a pose beyond, and
the arm stands still."""
LEAN = -0.4
"""Radians by which the hand leans before it takes the peg; negative: fingers away from the robot.
The last joint but one is at its limit soon after."""
PEG, PEG_WIDTH = 0.12, 0.025
"""Half its length and half its width."""
GRIP = 0.05
"""Metres from the middle of the peg towards the end that comes up, where it is taken."""
AHEAD = 0.4
"""Radians: while it turns the peg is held as high as if it had already turned so much farther, so
that its lower end does not push against the table."""
STAND = -0.18
"""x where the peg is stood up, so near that the hand reaches it with its fingers to the robot."""
CARRY = 0.05
"""Metres sideways that the peg aims ahead."""
CUBE = 0.02
"""Half the edge of every cube, radius of the ball."""
OPEN, CLOSED = 1.0, -1.0
FINGER = 8
"""Index of one finger's joint position: 0.04 when open, the half width of what it holds."""


def _towards(target: Array, tcp: Array, gripper: float, *, gain: float = 1.6) -> Array:
    displacement = np.clip(gain * (target - tcp) / STEP, -1.0, 1.0)
    if _distance(tcp + STEP * displacement) > max(REACH, _distance(target)):
        # Not past the target, and straight: the line between two points within reach is, too.
        way = (target - tcp) / STEP
        displacement = way / max(1.0, float(np.abs(way).max()))
    return np.array([*displacement, gripper], np.float32)


def _distance(point: Array) -> float:
    """Metres sideways from the foot of the arm."""
    return float(np.linalg.norm((point - BASE)[:2]))


def _above(point: Array, height: float) -> Array:
    return np.array([point[0], point[1], point[2] + height])


def _fetch(tcp: Array, thing: Array) -> Array:
    """Over a thing that lies on the table, down to it, and close on it."""
    aside = np.linalg.norm(thing[:2] - tcp[:2])
    if aside > 0.012 and tcp[2] < thing[2] + 0.03:
        return _towards(np.array([*tcp[:2], thing[2] + 0.06]), tcp, OPEN)
    if aside > 0.012:
        return _towards(_above(thing, 0.05), tcp, OPEN)
    near = np.linalg.norm(thing - tcp) < 0.01
    return _towards(thing, tcp, CLOSED if near else OPEN)


def _pick_cube(state: Array) -> Array:
    """Fetch the cube, carry it to the goal."""
    grasped, tcp, goal, cube = state[18] > 0.5, state[19:22], state[26:29], state[29:32]
    if not grasped:
        return _fetch(tcp, cube)
    return _towards(goal + (tcp - cube), tcp, CLOSED)


def _stack_cube(state: Array) -> Array:
    """Fetch cube A, carry it over B, let go on top of it, back off."""
    return _put_on(state, state[18:21], state[25:28], state[32:35], height=2 * CUBE, slack=0.012)


def _place_sphere(state: Array) -> Array:
    """Fetch the ball, carry it over the bin, let go in it, back off."""
    # The ball rests with its radius and half the floor above the middle of the bin.
    return _put_on(
        state, state[19:22], state[29:32], state[26:29], height=CUBE + 0.0025, slack=0.004
    )


def _put_on(
    state: Array, tcp: Array, thing: Array, base: Array, *, height: float, slack: float
) -> Array:
    place = _above(base, height)
    offset = np.linalg.norm(thing[:2] - place[:2])
    there = offset < slack and abs(thing[2] - place[2]) < 0.006
    if there:
        if state[FINGER] < 0.03:
            return _towards(tcp, tcp, OPEN)
        return _towards(_above(place, 0.1), tcp, OPEN)
    held = np.linalg.norm(thing - tcp) < 0.015 and state[FINGER] < 0.027
    if not held:
        return _fetch(tcp, thing)
    hold = tcp - thing
    if offset > 0.006:
        over = _above(place, 0.03)
        if thing[2] < place[2] + 0.01:  # up before across
            over[:2] = thing[:2] + np.clip(place[:2] - thing[:2], -0.01, 0.01)
        return _towards(over + hold, tcp, CLOSED)
    down = max(place[2] - 0.002, thing[2] - 0.012)
    return _towards(np.array([*place[:2], down]) + hold, tcp, CLOSED)


def _push_cube(state: Array) -> Array:
    """Go down behind the cube, push it away from the robot."""
    tcp, goal, cube = state[18:21], state[25:28], state[28:31]
    return _shove(tcp, goal, cube, away=1.0, gap=0.045)


def _pull_cube(state: Array) -> Array:
    """Go down beyond the cube, pull it to the robot."""
    tcp, goal, cube = state[18:21], state[25:28], state[28:31]
    return _shove(tcp, goal, cube, away=-1.0, gap=0.05)


def _shove(tcp: Array, goal: Array, cube: Array, *, away: float, gap: float) -> Array:
    """Move the cube along x from its far side (``away`` +1: from the robot's side)."""
    start = cube - (away * gap, 0.0, 0.0)
    behind = away * (cube[0] - tcp[0]) > CUBE
    lined = abs(tcp[1] - cube[1]) < 0.015
    if behind and lined and tcp[2] < 0.04:
        target = np.array([goal[0] - away * CUBE, cube[1], CUBE])
        return _towards(target, tcp, CLOSED, gain=1.0)
    if np.linalg.norm(start[:2] - tcp[:2]) > 0.015:
        return _towards(np.array([*start[:2], 0.09]), tcp, CLOSED)
    return _towards(np.array([*start[:2], CUBE]), tcp, CLOSED)


def _lift_peg(state: Array) -> Array:
    """Lean forward, take the peg on the robot's side of its middle, turn it upright, set it down.

    The hand leans back by the 90 degrees that the peg needs, and pulls it towards the robot.
    """
    tcp, lean = state[25:28], _lean(state[28:32])
    peg, along = state[32:35], _axis(state[35:39], 0)
    along = along if along[2] > along[0] else -along  # to the end that comes up
    steep = float(np.arctan2(along[2], -along[0]))
    grip = peg + GRIP * along
    held = np.linalg.norm(grip - tcp) < 0.03 and state[FINGER] < 0.03
    if not held:
        ready = abs(lean - LEAN) < 0.15 and np.linalg.norm((grip - tcp)[:2]) < 0.03
        near = ready and np.linalg.norm(grip - tcp) < 0.015
        point = grip if ready else _above(grip, 0.08)
        return _to_pose(state, point, LEAN, CLOSED if near else OPEN)
    left = np.pi / 2 - steep
    across = np.clip(STAND - peg[0], -CARRY, CARRY)
    move = np.array([across, 0.0, _peg_height(steep) - peg[2]])
    return _to_pose(state, tcp + move, lean + left if peg[2] > 0.04 else lean, CLOSED)


def _peg_height(steep: float) -> float:
    """Where the middle of a peg belongs that is ``steep`` (radians) and to be turned upright."""
    angle = min(steep + AHEAD, np.pi / 2)
    lowest = PEG * np.sin(angle) + PEG_WIDTH * np.cos(angle)
    return lowest if steep > np.pi / 2 - 0.06 else lowest + 0.006


def _to_pose(state: Array, point: Array, lean: float, gripper: float) -> Array:
    """Move the target of ``pd_ee_target_delta_pose``, which the state shows, to a pose.

    The arm follows its target two steps behind, so the distance of the arm itself would wind it up.
    """
    way = np.clip((point - BASE - state[18:21]) / STEP, -0.4, 0.4)
    turn = np.clip((_lean(state[21:25]) - lean) / TURN, -1.0, 1.0)
    return np.array([*way, 0.0, turn, 0.0, gripper], np.float32)


def _lean(quaternion: Array) -> float:
    """Radians by which the fingers point to the robot instead of down."""
    return float(np.arcsin(np.clip(-_axis(quaternion, 2)[0], -1.0, 1.0)))


def _axis(quaternion: Array, number: int) -> Array:
    """Body axis 0 (x) or 2 (z) in the world, of a quaternion wxyz."""
    w, x, y, z = quaternion
    if number == 0:
        return np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
    return np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])


EXPERTS: dict[str, Expert] = {
    "LiftPegUpright-v1": _lift_peg,
    "PickCube-v1": _pick_cube,
    "PlaceSphere-v1": _place_sphere,
    "PullCube-v1": _pull_cube,
    "PushCube-v1": _push_cube,
    "StackCube-v1": _stack_cube,
}
"""Expert by id."""


def expert(name: str) -> Expert:
    """The expert of a task: state [S] -> action [D].

    Raises:
        ValueError: unknown task, or one without an expert.
    """
    task = task_id(name)
    if task not in EXPERTS:
        raise ValueError(
            f"{task} has no scripted expert (there are: {', '.join(EXPERTS)}): give --policy RUN "
            "or a dataset"
        )
    return EXPERTS[task]


def experts(task_names: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """Experts for a batch: (``state`` [N, S], task ids [N]) -> actions [N, D].

    Args:
        task_names: name of every task id, e.g. ``env.task_names``.
    """
    acts = [expert(name) for name in task_names]

    def act(state: Tensor, task_ids: Tensor) -> Tensor:
        rows = state.cpu().numpy().astype(np.float64)
        ids = task_ids.cpu().numpy()
        actions = [acts[task](row) for task, row in zip(ids, rows, strict=True)]
        return torch.from_numpy(np.stack(actions)).to(state.device)

    return act
