"""A scripted expert for pick-and-place, on privileged poses.

The action is a function of the present ``state`` alone (see ``layout``): the gripper command and
the speed of the fingers, which ``state`` holds, say how far a grasp has got. So the expert recovers
from disturbances, and a policy without memory can imitate it.

For the first goal predicate that does not hold: over the thing, down, close, up, over the goal,
down, open. Fingers close across a horizontal axis of the thing's box that fits between them, the
one that needs the smaller turn; a wide thing (bowl, plate) is taken by its rim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embodied_rl.envs.libero.layout import GOAL, PREDICATES, ROBOT, goal_blocks
from embodied_rl.envs.spaces import Array

OPENING = 0.072
"""m between the open fingers that can be used."""
FINGER_DEPTH = 0.035
"""m from the top of a thing down to where it is taken; the palm is 1 cm above it then."""
TIP = 0.012
"""m that the finger tips reach below the point between them."""
RIM = 0.007
"""m from the edge of a rim's box inwards to the wall."""
PALM = (0.105, 0.037)
"""m from its middle that the palm reaches along and across the closing direction."""
FINGER_WIDTH = 0.012
"""m, half."""
EMPTY = 0.002
"""m between closed fingers with nothing between them."""
CLEARANCE = 0.03
"""m between a carried thing and what it passes over."""
HIGH, RISE = 0.1, 0.02
"""m above its goal at which a thing stands on something, and how far up a hand then aims that takes
it away sideways: states do not say what the thing stands on."""
OVER_GOAL = 0.025
"""m sideways from the goal at which a thing is let down; the benchmark's "on" allows 3 cm, and the
controller rests up to 2 cm short of a target at the end of the arm's reach."""
HOVER = 0.08
"""m above the grasp at which the hand aligns."""
GAIN, TURN_GAIN = 20.0, 4.0
"""Action per metre and per radian; an action of 1 aims 5 cm or 0.5 rad ahead."""
RIMS = {"in_the_top_drawer": (1.0, 0.0, 0.0)}
"""Side of the rim to take, by part of the task's name, where furniture leaves no other room."""
BASE, REACH = np.array([-0.66, 0.0]), 0.735
"""Foot of the arm on a table, and m from there that the hand reaches sideways, palm down: farther
away the elbow is at its limit, and the hand stops short of where it should be."""
DEEP, DEEP_EXIT = "in_the_top_drawer", 1.14
"""Part of the name of a task whose thing starts in something, and m to raise it to get it out."""
OTHER_VERBS = frozenset(("close", "open", "push", "turn"))
"""Words in the names of tasks that ask for more than to pick and place."""
CLOSED, OPEN = 1.0, -1.0
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, slots=True)
class Grasp:
    """Where the point between the fingers goes, and the horizontal direction they close along."""

    point: Array
    axis: Array


@dataclass(frozen=True, slots=True)
class _Scene:
    """What the rules look at: robot, and one predicate's thing and goal."""

    hand: Array
    rotation: Array  # [3, 3]
    command: float
    finger_speed: float
    gap: float
    speed: float  # of the hand, m/s
    position: Array
    axes: Array  # [3, 3], columns
    centre: Array
    extents: Array
    goal: Array
    room: Array
    top: float
    obstacle: Array
    obstacle_room: Array
    predicate: str
    rim: Array | None  # side of the rim to take
    exit_height: float  # that the thing must be raised to before it moves sideways

    @property
    def half_height(self) -> float:
        return float(np.abs(self.axes[2]) @ self.extents)

    @property
    def bottom(self) -> float:
        return float(self.centre[2]) - self.half_height


def experts(task_names: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """Scripted policy of a batch: (``state`` [N, F], task ids [N]) -> actions [N, 7].

    Args:
        task_names: name of every task id.

    Raises:
        ValueError: a task where something is to be opened, closed, pushed or turned.
    """
    others = [name for name in task_names if OTHER_VERBS & set(name.split("_"))]
    if others:
        raise ValueError(
            f"LIBERO's scripted expert only picks and places, which does not do for {len(others)} "
            f"of {len(task_names)} tasks ({', '.join(others)}): name other tasks in "
            "env.simulator.tasks, or give --policy RUN or a dataset"
        )

    def act(state: Tensor, task_ids: Tensor) -> Tensor:
        rows: Array = state.cpu().numpy().astype(np.float64)
        names: list[str] = [task_names[int(task)] for task in task_ids]
        actions = [expert_action(row, name) for row, name in zip(rows, names, strict=True)]
        return torch.from_numpy(np.stack(actions)).to(state.device)

    return act


def expert_action(state: Array, task_name: str) -> Array:
    """Action [7] float32 in [-1, 1] for a state [F] of a task."""
    todo = (b for b in goal_blocks(state) if b[GOAL["present"]] and not b[GOAL["done"]])
    block = next(todo, None)
    if block is None:
        return np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)
    return _pick_and_place(_scene(state, block, task_name))


def _scene(state: Array, block: Array, task_name: str) -> _Scene:
    fingers = state[ROBOT["fingers"]]
    return _Scene(
        hand=state[ROBOT["hand"]],
        rotation=_matrix(state[ROBOT["rotation"]]),
        command=float(state[ROBOT["command"]][0]),
        finger_speed=float(np.abs(state[ROBOT["finger_speed"]]).max()),
        gap=float(fingers[0] - fingers[1]),
        speed=float(np.linalg.norm(state[ROBOT["velocity"]][:3])),
        position=block[GOAL["position"]],
        axes=_matrix(block[GOAL["rotation"]]),
        centre=block[GOAL["centre"]],
        extents=block[GOAL["extents"]],
        goal=block[GOAL["goal"]],
        room=block[GOAL["room"]],
        top=float(block[GOAL["top"]][0]),
        obstacle=block[GOAL["obstacle"]],
        obstacle_room=block[GOAL["obstacle_room"]],
        predicate=PREDICATES[int(block[GOAL["predicate"]].argmax())],
        rim=next((np.array(side) for part, side in RIMS.items() if part in task_name), None),
        exit_height=DEEP_EXIT if DEEP in task_name else -np.inf,
    )


def _matrix(columns: Array) -> Array:
    """Rotation matrix of its first two columns [6]."""
    x, y = columns[:3], columns[3:]
    return np.stack([x, y, np.cross(x, y)], axis=1)


def choose_grasp(scene: _Scene) -> Grasp:
    """How to take the thing as it lies now."""
    height = max(scene.bottom + TIP, float(scene.centre[2]) + scene.half_height - FINGER_DEPTH)
    best: tuple[float, Array] | None = None
    for column in range(3):
        direction = scene.axes[:, column] * (1.0, 1.0, 0.0)
        length = float(np.linalg.norm(direction))
        if length < 0.7 or 2 * scene.extents[column] > OPENING:
            continue
        direction = direction / length * (1.0 if direction[1] >= 0 else -1.0)
        turn = abs(np.arctan2(direction[0], direction[1]))  # from the world's y axis
        if best is None or turn < best[0]:
            best = (turn, direction)
    if best is None:
        return _rim_grasp(scene)
    point = np.array([*scene.centre[:2], height])
    return Grasp(point + _evasion(scene, point, best[1]), best[1])


def _evasion(scene: _Scene, point: Array, axis: Array) -> Array:
    """How far to move a grasp along the thing [3] so that the palm passes a taller neighbour."""
    across = np.array([-axis[1], axis[0], 0.0])
    away = scene.obstacle - point
    room = np.abs(np.stack([axis, across])) @ scene.obstacle_room
    taller = float(scene.obstacle[2] + scene.obstacle_room[2]) > point[2] + FINGER_DEPTH
    beside = abs(float(away @ axis)) < PALM[0] + room[0]
    overlap = PALM[1] + float(room[1]) - abs(float(away @ across))
    if not (taller and beside and overlap > 0):
        return np.zeros(3)
    length = float(np.abs(scene.axes.T @ across) @ scene.extents)
    side = -1.0 if away @ across >= 0 else 1.0
    return side * min(overlap, max(length - FINGER_WIDTH, 0.0)) * across


def _rim_grasp(scene: _Scene) -> Grasp:
    """The rim on the side away from the obstacle, towards the robot where that is out of reach.

    Of a bowl in the hand, where it is held.
    """
    if scene.rim is not None:
        return _on_rim(scene, scene.rim)
    sides = [_on_rim(scene, np.array(side)) for side in ((0, 1, 0), (0, -1, 0), (-1, 0, 0))]
    held = [grasp for grasp in sides if _near(scene, grasp) and _turned(scene, grasp)]
    if scene.command > -0.95 and held:
        return held[0]
    free = sides[int((scene.obstacle - scene.centre)[1] >= 0)]
    within_reach = float(np.linalg.norm(free.point[:2] - BASE)) < REACH
    return free if within_reach else sides[2]


def _on_rim(scene: _Scene, side: Array) -> Grasp:
    """The rim on a side [3] of the thing."""
    reach = float(np.abs(side @ scene.axes) @ scene.extents) - RIM
    top = float(scene.centre[2]) + scene.half_height
    middle = np.array([*scene.centre[:2], top - 0.02])
    return Grasp(middle + reach * side, np.abs(side))


def _near(scene: _Scene, grasp: Grasp) -> bool:
    away = scene.hand - grasp.point
    return float(np.linalg.norm(away[:2])) < 0.045 and abs(float(away[2])) < 0.03


def _pick_and_place(scene: _Scene) -> Array:
    grasp = choose_grasp(scene)
    near = _near(scene, grasp)
    over_goal = float(np.linalg.norm((scene.goal - scene.position)[:2])) < 0.04
    moving = -0.95 < scene.command < 0.95
    if moving and over_goal and scene.bottom < scene.top + 3 * CLEARANCE:
        return _action(scene, grasp, scene.hand, OPEN)
    if near and scene.command > 0.95 and scene.gap > EMPTY:
        if scene.finger_speed > 0.01:
            return _action(scene, grasp, scene.hand, CLOSED)
        return _carry(scene, grasp)
    if near and (moving or _aligned(scene, grasp)):
        return _action(scene, grasp, grasp.point, CLOSED)
    return _approach(scene, grasp)


def _aligned(scene: _Scene, grasp: Grasp) -> bool:
    away = scene.hand - grasp.point
    there = float(np.linalg.norm(away[:2])) < 0.01 and abs(float(away[2])) < 0.01
    return there and _turned(scene, grasp)


def _turned(scene: _Scene, grasp: Grasp) -> bool:
    return abs(float(scene.rotation[:, 0] @ grasp.axis)) > 0.98


def _approach(scene: _Scene, grasp: Grasp) -> Array:
    """Over the thing with open fingers, then down."""
    away = float(np.linalg.norm((scene.hand - grasp.point)[:2]))
    target = grasp.point.copy()
    if away > 0.015 or not _turned(scene, grasp):
        target[2] += HOVER
    return _action(scene, grasp, _rise_first(scene, target, away), OPEN)


def _carry(scene: _Scene, grasp: Grasp) -> Array:
    """Up, over the goal, down, open."""
    offset = scene.goal[:2] - scene.position[:2]
    away = float(np.linalg.norm(offset))
    below_hand = float(scene.hand[2]) - scene.bottom
    clear = scene.top + CLEARANCE + below_hand
    if away > 0.2:
        clear = max(clear, scene.exit_height + below_hand)
        if scene.bottom > scene.top + HIGH:
            clear = max(clear, float(scene.hand[2]) + RISE)
    target = np.array([*(scene.hand[:2] + offset), clear])
    if away > OVER_GOAL:
        return _action(scene, grasp, _rise_first(scene, target, away), CLOSED)
    release = scene.top + 0.005 + below_hand
    if scene.predicate == "in":
        release = max(scene.top + 0.03, float(scene.goal[2] - scene.room[2]) + 0.02 + below_hand)
    target[2] = min(release, clear)
    height = float(scene.hand[2] - target[2])
    resting = height < 0.04 and scene.speed < 0.005  # on something that the boxes do not show
    ready = height < 0.01 or resting
    return _action(scene, grasp, target, OPEN if ready else CLOSED)


def _rise_first(scene: _Scene, target: Array, away: float) -> Array:
    """``target``, its horizontal part held back while the hand is more than 2 cm too low."""
    low = float(target[2] - scene.hand[2])
    if away < 0.03 or low < 0.02:
        return target
    share = float(np.clip((0.06 - low) / 0.04, 0.0, 1.0))
    return np.array([*(scene.hand[:2] + share * (target - scene.hand)[:2]), target[2]])


def _action(scene: _Scene, grasp: Grasp, target: Array, fingers: float) -> Array:
    """Towards ``target`` with the palm down and the fingers along the grasp's axis."""
    axis = grasp.axis if scene.rotation[:, 0] @ grasp.axis >= 0 else -grasp.axis
    wanted = np.stack([axis, np.cross(-UP, axis), -UP], axis=1)
    turn = _rotation_vector(wanted @ scene.rotation.T)
    moves = np.concatenate([GAIN * (target - scene.hand), TURN_GAIN * turn, [fingers]])
    return np.clip(moves, -1.0, 1.0).astype(np.float32)


def _rotation_vector(matrix: Array) -> Array:
    """Axis times angle of a rotation below half a turn."""
    twice = np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    sine, cosine = float(np.linalg.norm(twice)) / 2, (float(np.trace(matrix)) - 1) / 2
    if sine < 1e-6:
        return twice / 2
    return twice / (2 * sine) * np.arctan2(sine, cosine)
