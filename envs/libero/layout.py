"""Observations of LIBERO as vectors of a fixed size: what every number means.

``state`` [27 + 38 P] is the robot, then one block per goal predicate (P of them, the most of any
task of the suite; blocks of absent predicates are zero). ``relative`` [10 + 34 P] is the same
without absolute positions, so that a small policy transfers what it learns between places and
tasks. Lengths are in metres, positions in the frame of the world, rotations as the first two
columns of the rotation matrix (Zhou et al. 2019).

A predicate has a *thing* (the object to move, or the moving part of a piece of furniture) and a
*goal* (where it belongs). *Centre* and *extents* are those of the box around the thing's collision
geometry, in the axes of its body.
"""

from __future__ import annotations

import itertools

import numpy as np

from embodied_rl.envs.spaces import Array

PREDICATES = ("in", "on", "open", "close", "turnon", "turnoff")


def _slices(**sizes: int) -> dict[str, slice]:
    ends = list(itertools.accumulate(sizes.values()))
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


ROBOT = _slices(
    hand=3,  # point between the finger tips
    rotation=6,
    fingers=2,  # positions of the two fingers, +0.04 and -0.04 when open
    finger_speed=2,
    command=1,  # of the gripper: -1 open, 1 closed; a control step changes it by at most 0.25
    joints=7,  # rad
    velocity=6,  # of the hand: linear, angular
)
GOAL = _slices(
    position=3,  # of the thing's body
    rotation=6,
    centre=3,
    extents=3,  # half of the box
    goal=3,  # where the position should be; for furniture, where the centre should be
    room=3,  # half extents of the goal region, in the axes of the world
    joint=2,  # of furniture: joint value and the value to reach; zero for objects
    done=1,
    predicate=len(PREDICATES),
    present=1,
    top=1,  # height of the top of what the thing goes in or on
    obstacle=3,  # centre of the nearest other object that can be moved
    obstacle_room=3,  # half extents of its box along the axes of the world
)
ROBOT_SIZE = max(part.stop for part in ROBOT.values())
GOAL_SIZE = max(part.stop for part in GOAL.values())
CARRIED_OVER = ("rotation", "extents", "joint", "done", "predicate", "obstacle_room")
RELATIVE_ROBOT_SIZE, RELATIVE_GOAL_SIZE = 10, 34


def state_size(goals: int) -> int:
    """Numbers of ``state`` with ``goals`` predicates."""
    return ROBOT_SIZE + goals * GOAL_SIZE


def relative_size(goals: int) -> int:
    """Numbers of ``relative`` with ``goals`` predicates."""
    return RELATIVE_ROBOT_SIZE + goals * RELATIVE_GOAL_SIZE


def goal_blocks(state: Array) -> Array:
    """The blocks of states [..., F] as [..., P, 38]."""
    return state[..., ROBOT_SIZE:].reshape(*state.shape[:-1], -1, GOAL_SIZE)


def relative_features(state: Array) -> Array:
    """States [..., 27 + 38 P] without absolute positions: [..., 10 + 34 P].

    Robot: rotation of the hand (6), fingers (2), gripper command, height of the hand. Per predicate
    the displacements hand to centre, position to goal, hand to goal, from the thing's position up
    to the top of the goal, from centre to obstacle, and rotation, extents, joint, done, predicate
    and room of the obstacle as in ``state``.
    """
    hand = state[..., ROBOT["hand"]]
    robot = [state[..., ROBOT[name]] for name in ("rotation", "fingers", "command")]
    goals = goal_blocks(state)
    position, goal = goals[..., GOAL["position"]], goals[..., GOAL["goal"]]
    parts = (
        goals[..., GOAL["centre"]] - hand[..., None, :],
        goal - position,
        goal - hand[..., None, :],
        goals[..., GOAL["top"]] - position[..., 2:],
        goals[..., GOAL["obstacle"]] - goals[..., GOAL["centre"]],
        *(goals[..., GOAL[name]] for name in CARRIED_OVER),
    )
    features = np.concatenate(parts, axis=-1) * goals[..., GOAL["present"]]
    flat = features.reshape(*state.shape[:-1], -1)
    return np.concatenate([*robot, hand[..., 2:], flat], axis=-1)
