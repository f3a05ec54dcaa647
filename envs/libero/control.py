"""One control step of a LIBERO scene: 25 physics steps under operational-space control.

A *stepper* drives the MuJoCo model and data of one built task. It owns what the controller
remembers between control steps and is no part of MuJoCo's state, as ``memory``:

    goal rotation of the hand (9, row by row; an action that does not turn keeps the old goal),
    commands of the two fingers (2, in [-1, 1])

Modes are the entries of ``STEPPERS``; each has the signature of ``StockStepper``.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np

from embodied_rl.envs.spaces import Array
from embodied_rl.registry import near_names

MEMORY = 11
"""Numbers that a stepper remembers."""
SUBSTEPS = 25
"""Physics steps of 2 ms in a control step: 20 Hz."""
MEASURED = (
    *("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel"),
    *("J_pos", "J_ori", "J_full", "mass_matrix"),
)
"""What robosuite's controller measures once per physics step."""


class Stepper(Protocol):
    """Steps one task; ``env`` of the constructor is robosuite's environment."""

    def step(self, action: Array) -> None:
        """One control step with an action [7] float64 in [-1, 1]."""
        ...

    def save(self) -> Array:
        """Memory [11] float64."""
        ...

    def load(self, memory: Array) -> None:
        """Restore what ``save`` returned."""
        ...


class StockStepper:
    """The loop of robosuite's ``MujocoEnv.step`` without its observables.

    Args:
        env: robosuite's environment, built.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._controller = env.robots[0].controller
        self._gripper = env.robots[0].gripper
        self._built = {name: getattr(self._controller, name) for name in MEASURED}

    def start(self) -> None:
        """As after building: the controller has measured the arm in its default posture.

        The first control step after the benchmark sets an initial state is made with that
        measurement, so that it is part of the benchmark's settled states.
        """
        rotation = np.asarray(self._controller.initial_ee_ori_mat, np.float64)
        self.load(np.concatenate([rotation.ravel(), np.zeros(2)]))
        for name, value in self._built.items():
            setattr(self._controller, name, value)
        self._controller.new_update = False

    def step(self, action: Array) -> None:
        """See ``Stepper.step``."""
        env = self._env
        for substep in range(SUBSTEPS):
            env.sim.forward()
            env._pre_action(action, substep == 0)
            env.sim.step()

    def save(self) -> Array:
        """See ``Stepper.save``."""
        return np.concatenate([self._controller.goal_ori.ravel(), self._gripper.current_action])

    def load(self, memory: Array) -> None:
        """See ``Stepper.load``."""
        self._controller.goal_ori = memory[:9].reshape(3, 3).copy()
        self._controller.new_update = True  # what it has measured is of another state
        self._gripper.current_action = memory[9:].copy()


STEPPERS = {
    "stock": "embodied_rl.envs.libero.control:StockStepper",
    "exact": "embodied_rl.envs.libero.stepping:exact",
    "fast": "embodied_rl.envs.libero.stepping:fast",
}
"""Stepping modes, as ``"module:attribute"``."""


def make_stepper(mode: str, env: Any) -> Stepper:
    """The stepper of a mode for a built robosuite environment."""
    module, _, attribute = STEPPERS[mode].partition(":")
    return getattr(importlib.import_module(module), attribute)(env)


def check_stepping(mode: str) -> None:
    """Raise ValueError unless ``mode`` is a stepping mode."""
    if mode not in STEPPERS:
        hint = near_names(mode, STEPPERS)
        raise ValueError(f"stepping={mode!r}{hint}; give one of {tuple(STEPPERS)}")
