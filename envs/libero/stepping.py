"""LIBERO control steps without Python objects per substep.

One control step (20 Hz) is 25 substeps of 2 ms. A stock substep of robosuite 1.4.0 is

    mj_forward; mj_forward; u = controller(q, v, J, M, bias); mj_step

and each of the three MuJoCo calls computes positions, contacts, velocities and the constraint
solver anew. Positions, contacts and velocities depend on (q, v) alone, so once is enough. The
solver starts from ``qacc_warmstart`` and leaves its solution there, so that every call changes
the bits of the next one. Hence two modes:

- ``exact``: positions and velocities once, the solver three times (twice with the control of the
  substep before, then with the new one), the control law with stock's operations in stock's order
  and memory layout. Bit-equal to stock.
- ``fast``: positions and velocities once, the solver once (``mj_step1``, control, ``mj_step2``),
  and the control law by Cholesky factors. Same equations, other roundings and warm starts.

Control law (O. Khatib, IEEE J. Robotics and Automation 1987; position and orientation uncoupled).
J_p, J_r [3, 7] are the Jacobians of the grip site, J [6, 7] both, M [7, 7] the arm's inertia:

    L_p = (J_p M^-1 J_p')^-1      L_r = (J_r M^-1 J_r')^-1      L = (J M^-1 J')^-1
    f = kp_p (p* - p) - kd_p J_p v          t = kp_r e(R*, R) - kd_r J_r v
    u = J' [L_p f; L_r t] + bias + (I - J' L J M^-1) M (10 (q_0 - q) - 2 sqrt(10) v)

clipped to the actuators' range. Units: m, rad, s, N, N m.
"""

# mujoco's functions come from a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import mujoco
import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices

Mode = Literal["exact", "fast"]
MODES: tuple[Mode, ...] = ("exact", "fast")
ACTION_SIZE = 7
ARM_DOF = 7
NULLSPACE_KP = 10.0
"""Stiffness of the null-space task (1/s^2), robosuite's default."""
SINGULAR = 1e-12
"""A Cholesky pivot below this share of its diagonal element counts as a singular direction."""

VELOCITY_STAGE = mujoco.mjtStage.mjSTAGE_VEL.value
"""For ``mj_forwardSkip``: positions and velocities are there."""

Floats = NDArray[np.float64]


class Stepper:
    """Steps a stock LIBERO environment; may be mixed with its own ``step`` and ``reset``.

    Attributes:
        mode: ``"exact"`` or ``"fast"``, see the module's docstring.
    """

    def __init__(self, env: Any, *, mode: Mode = "exact") -> None:
        """Steps ``env``, a LIBERO ``ControlEnv`` (``OffScreenRenderEnv``, …) or its ``env``.

        Raises:
            ValueError: unknown mode, or another robot, gripper or controller than LIBERO's.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; give one of {MODES}")
        from libero.libero.envs.env_wrapper import ControlEnv

        self.mode: Mode = mode
        self._env = env.env if isinstance(env, ControlEnv) else env
        self._substeps = int(self._env.control_timestep / self._env.model_timestep)
        self._arm = _Arm(self._env)

    def step(self, action: ArrayLike, *, observe: bool = False) -> None:
        """One control step (50 ms) with ``action`` [7] in [-1, 1]; numbers beyond are clipped.

        Changes the simulation, and of robot, gripper, controller and environment what stock's
        ``env.step`` changes; in ``fast`` mode without the robot's ``recent_*`` buffers, which
        nothing in LIBERO reads. Kinematics in ``sim.data`` are those before the last substep, as
        after ``env.step``: call ``sim.forward()`` for those of the present ``qpos``.

        Args:
            action: displacement of the hand (x, y, z; 1 is 5 cm), rotation (axis-angle; 1 is 0.5
                rad), gripper (positive closes).
            observe: also sample the environment's own observables, at the substep at which stock
                does (which is seldom the last one), for ``env._get_observations()``.

        Raises:
            ValueError: wrong shape.
        """
        env = self._env
        numbers = np.asarray(action, np.float64)
        if numbers.shape != (ACTION_SIZE,):
            raise ValueError(f"action has shape {numbers.shape}; give ({ACTION_SIZE},)")
        if self._arm.controller is not env.robots[0].controller:
            self._arm = _Arm(env)  # a reset makes a new controller, and mostly a new simulation
        env.timestep += 1
        advance = self._advance_exact if self.mode == "exact" else self._advance_fast
        advance(self._arm, numbers, _samples(env, self._substeps) if observe else ())
        env.cur_time += env.control_timestep
        env.done = env.timestep >= env.horizon and not env.ignore_done
        env._post_process()

    def success(self) -> bool:
        """Whether the task's goal holds, by LIBERO's own predicates."""
        return bool(self._env._check_success())

    def save(self) -> Floats:
        """What the controller remembers and MuJoCo does not: goal rotation, fingers' commands.

        [11]: 9 row by row, and 2 in [-1, 1].
        """
        robot = self._env.robots[0]
        return np.concatenate([robot.controller.goal_ori.ravel(), robot.gripper.current_action])

    def load(self, memory: Floats) -> None:
        """Restores what ``save`` returned; set MuJoCo's own state beside it."""
        robot = self._env.robots[0]
        robot.controller.goal_ori = memory[:9].reshape(3, 3).copy()
        robot.controller.new_update = True  # what it has measured is of another state
        robot.gripper.current_action = memory[9:].copy()

    def _advance_exact(self, arm: _Arm, action: Floats, samples: Sequence[int]) -> None:
        model, data = arm.model, arm.data
        for index in range(self._substeps):
            # Stock's two mj_forward, as far as they are not redundant.
            mujoco.mj_step1(model, data)
            mujoco.mj_forwardSkip(model, data, VELOCITY_STAGE, index > 0)
            if index == 0:
                # Stock itself: it sets the goal, reads force sensors into the robot's buffers, and
                # after a reset and ``set_init_state`` works on the pose of the reset.
                self._env._pre_action(action, policy_step=True)
                arm.begin(action)
            else:
                mujoco.mj_fwdConstraint(model, data)
                _exact_control(arm)
            mujoco.mj_step2(model, data)
            if index in samples:
                _sample_observables(self._env)
        arm.publish()

    def _advance_fast(self, arm: _Arm, action: Floats, samples: Sequence[int]) -> None:
        for index in range(self._substeps):
            mujoco.mj_step1(arm.model, arm.data)
            if index == 0 and not arm.controller.new_update:
                self._env._pre_action(action, policy_step=True)  # see `_advance_exact`
                arm.begin(action)
            else:
                if index == 0:
                    arm.set_goal(action)
                    arm.begin(action)
                _fast_control(arm)
            mujoco.mj_step2(arm.model, arm.data)
            if index in samples:
                _sample_observables(self._env)
        arm.publish()


class _Arm:
    """Views of one simulation's memory, and the buffers that the control law works on.

    MuJoCo allocates its arrays once per ``MjData``, so that a view stays valid as long as that
    does. The layouts, row (C) or column (F) order, are stock's: BLAS and LAPACK round by layout.
    """

    def __init__(self, env: Any) -> None:
        _check_supported(env)
        self.robot = robot = env.robots[0]
        self.controller = controller = robot.controller
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        self.site = env.sim.model.site_name2id(controller.eef_name)
        self.joints_q = np.array(controller.qpos_index, np.int64)
        self.joints_v = np.array(controller.qvel_index, np.int64)
        self._bind_constants()
        self._bind_views()
        self._make_buffers()
        self._bind_arguments()

    def _bind_constants(self) -> None:
        model, robot, controller = self.model, self.robot, self.controller
        grip_actuators = robot._ref_joint_gripper_actuator_indexes
        self.actuators = np.array(
            [*robot._ref_joint_actuator_indexes, *grip_actuators], dtype=np.int64
        )
        self.limits = np.array(robot.torque_limits)
        low, high = model.actuator_ctrlrange[grip_actuators].T
        self.grip_range = np.array([0.5 * (high + low), 0.5 * (high - low)])
        self.gains = np.array([controller.kp, controller.kd])
        self.mass_index = _mass_index(model, self.joints_v)
        root = model.body_rootid[model.site_bodyid[self.site]]
        self.root_com: Floats = self.data.subtree_com[root]

    def _bind_views(self) -> None:
        data = self.data
        self.qpos, self.qvel, self.ctrl = data.qpos, data.qvel, data.ctrl
        self.bias, self.inertia, self.cdof = data.qfrc_bias, data.qM, data.cdof
        self.site_pos, self.site_mat = data.site_xpos[self.site], data.site_xmat[self.site]

    def _make_buffers(self) -> None:
        nv = self.model.nv
        self.goal_pos, self.goal_ori = np.zeros(3), np.zeros((3, 3))
        self.grip, self.grip_step = np.zeros(2), np.zeros(2)
        self.initial_joint = np.zeros(ARM_DOF)
        self.pos, self.mat = np.zeros(3), np.zeros((3, 3))
        self.velocity = np.zeros((2, 3))
        self.joint_state = np.zeros((2, ARM_DOF))
        self.jacobians = (np.zeros((3, nv)), np.zeros((3, nv)))
        self.jac = np.zeros((6, ARM_DOF), order="F")
        self.jac_pos = np.zeros((3, ARM_DOF), order="F")
        self.jac_ori = np.zeros((3, ARM_DOF), order="F")
        self.mass = np.zeros((ARM_DOF, ARM_DOF), order="F")
        self.force = np.zeros((2, 3))
        self.wrench = np.zeros(6)
        self.nullspace = np.zeros(ARM_DOF)
        self.torques, self.clipped = np.zeros(ARM_DOF), np.zeros(ARM_DOF)

    def _bind_arguments(self) -> None:
        """Arguments of the compiled functions; views and buffers, so the same in every substep."""
        state = (self.qpos, self.qvel, self.joints_q, self.joints_v, self.site_pos, self.site_mat)
        inertia = (self.inertia, self.mass_index, self.mass)
        task = (self.goal_pos, self.goal_ori, self.gains, self.initial_joint)
        read = (self.pos, self.mat, self.joint_state, self.velocity)
        self.exact_arguments = (
            *(*state, *inertia, *task, *read),
            *(*self.jacobians, self.jac, self.jac_pos, self.jac_ori, self.force, self.nullspace),
        )
        self.fast_arguments = (
            *(*state, *inertia, *task, *read),
            *(self.cdof, self.root_com, self.jac, self.force, self.nullspace, self.torques),
        )
        self.output_arguments = (
            *(self.torques, self.bias, self.joints_v, self.nullspace, self.limits, self.clipped),
            *(self.grip, self.grip_step, self.grip_range, self.actuators, self.ctrl),
        )

    def set_goal(self, action: Floats) -> None:
        """New goal pose from the present one, by stock's own function."""
        controller = self.controller
        controller.ee_pos = self.site_pos.copy()
        controller.ee_ori_mat = self.site_mat.reshape(3, 3).copy()
        controller.new_update = False  # keeps it from calling mj_forward
        controller.set_goal(action[:-1])

    def begin(self, action: Floats) -> None:
        """Takes over the goal, and what may have been set from outside since the last step."""
        controller, gripper = self.controller, self.robot.gripper
        self.goal_pos[:], self.goal_ori[:] = controller.goal_pos, controller.goal_ori
        self.initial_joint[:] = controller.initial_joint
        self.grip[:] = gripper.current_action
        self.grip_step[:] = np.array([-1.0, 1.0]) * gripper.speed * np.sign(action[-1:])

    def publish(self) -> None:
        """Writes to robot, gripper and controller what stock would have left there."""
        controller, robot = self.controller, self.robot
        controller.ee_pos, controller.ee_ori_mat = self.pos.copy(), self.mat.copy()
        controller.ee_pos_vel, controller.ee_ori_vel = self.velocity.copy()
        controller.joint_pos, controller.joint_vel = self.joint_state.copy()
        controller.J_full, controller.mass_matrix = self.jac.copy("K"), self.mass.copy("K")
        controller.J_pos, controller.J_ori = self.jac[:3].copy("K"), self.jac[3:].copy("K")
        controller.torques, controller.new_update = self.torques.copy(), True
        robot.torques = self.clipped.copy()
        robot.gripper.current_action = self.grip.copy()


def _check_supported(env: Any) -> None:
    from robosuite.controllers.osc import OperationalSpaceController
    from robosuite.models.grippers import PandaGripper

    controller = env.robots[0].controller
    supported = (
        len(env.robots) == 1
        and isinstance(controller, OperationalSpaceController)
        and isinstance(env.robots[0].gripper, PandaGripper)
        and controller.name == "OSC_POSE"
        and controller.impedance_mode == "fixed"
        and controller.use_delta
        and controller.uncoupling
        and controller.interpolator_pos is None
        and controller.interpolator_ori is None
        and controller.joint_dim == ARM_DOF
    )
    if not supported:
        raise ValueError(
            "Stepper takes one Panda with PandaGripper and robosuite's default OSC_POSE "
            "controller; use env.step for others"
        )


def _mass_index(model: mujoco.MjModel, dofs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the inertia of ``dofs`` [D] lies in ``qM``: [D, D], -1 for a structural zero."""
    index = np.full((len(dofs), len(dofs)), -1, np.int64)
    position = {int(dof): i for i, dof in enumerate(dofs)}
    for i, dof in enumerate(dofs):
        address, ancestor = int(model.dof_Madr[dof]), int(dof)
        while ancestor >= 0:
            if ancestor in position:
                index[i, position[ancestor]] = index[position[ancestor], i] = address
            address, ancestor = address + 1, int(model.dof_parentid[ancestor])
    return index


def _exact_control(arm: _Arm) -> None:
    """Stock's torques into ``ctrl``. Products that stock leaves to numpy's BLAS stay there."""
    jac_pos, jac_ori = arm.jacobians
    mujoco.mj_jacSite(arm.model, arm.data, jac_pos, jac_ori, arm.site)
    np.dot(jac_pos, arm.qvel, out=arm.velocity[0])
    np.dot(jac_ori, arm.qvel, out=arm.velocity[1])
    lambda_pos, lambda_ori = _exact_terms(*arm.exact_arguments)
    np.dot(lambda_pos, arm.force[0], out=arm.wrench[:3])
    np.dot(lambda_ori, arm.force[1], out=arm.wrench[3:])
    np.dot(arm.jac.T, arm.wrench, out=arm.torques)
    _write_controls(*arm.output_arguments)


def _fast_control(arm: _Arm) -> None:
    """Torques into ``ctrl``, all compiled."""
    _fast_terms(*arm.fast_arguments)
    _write_controls(*arm.output_arguments)


# The compiled functions below have no annotations: numba infers types from the arguments, which
# `_Arm` lists. All arrays are float64 but indices, which are int64.
# ruff: noqa: ANN001, ANN202


@numba.njit(cache=True)
def _read_arm(
    qpos, qvel, joints_q, joints_v, site_pos, site_mat, inertia, mass_index, mass, pos, mat, joints
):
    """State of the arm into pos [3], mat [3, 3], joints [2, 7] and mass [7, 7]."""
    for i in range(3):
        pos[i] = site_pos[i]
        for k in range(3):
            mat[i, k] = site_mat[3 * i + k]
    for j in range(ARM_DOF):
        joints[0, j], joints[1, j] = qpos[joints_q[j]], qvel[joints_v[j]]
        for i in range(ARM_DOF):
            mass[i, j] = inertia[mass_index[i, j]] if mass_index[i, j] >= 0 else 0.0


@numba.njit(cache=True)
def _desired_force(goal_pos, goal_ori, gains, pos, mat, velocity, force):
    """PD force and torque on the hand, [2, 3].

    e(R*, R) = (r_1 x r*_1 + r_2 x r*_2 + r_3 x r*_3) / 2, over columns of R and R*.
    """
    for i in range(3):
        force[0, i] = (goal_pos[i] - pos[i]) * gains[0, i] + -velocity[0, i] * gains[1, i]
        a, b = (i + 1) % 3, (i + 2) % 3
        error = mat[a, 0] * goal_ori[b, 0] - mat[b, 0] * goal_ori[a, 0]
        error += mat[a, 1] * goal_ori[b, 1] - mat[b, 1] * goal_ori[a, 1]
        error += mat[a, 2] * goal_ori[b, 2] - mat[b, 2] * goal_ori[a, 2]
        force[1, i] = 0.5 * error * gains[0, 3 + i] + -velocity[1, i] * gains[1, 3 + i]


@numba.njit(cache=True)
def _exact_terms(
    qpos, qvel, joints_q, joints_v, site_pos, site_mat, inertia, mass_index, mass,
    goal_pos, goal_ori, gains, initial_joint, pos, mat, joints, velocity,
    full_jac_pos, full_jac_ori, jac, jac_pos, jac_ori, force, nullspace,
):  # fmt: skip
    """Everything between the Jacobians and the last products: fills buffers, returns L_p, L_r."""
    _read_arm(
        qpos, qvel, joints_q, joints_v, site_pos, site_mat, inertia, mass_index, mass,
        pos, mat, joints,
    )  # fmt: skip
    for j in range(ARM_DOF):
        for i in range(3):
            jac_pos[i, j] = jac[i, j] = full_jac_pos[i, joints_v[j]]
            jac_ori[i, j] = jac[3 + i, j] = full_jac_ori[i, joints_v[j]]
    _desired_force(goal_pos, goal_ori, gains, pos, mat, velocity, force)
    _, lambda_pos, lambda_ori, projector = opspace_matrices(mass, jac, jac_pos, jac_ori)
    nullspace[:] = nullspace_torques(mass, projector, initial_joint, joints[0], joints[1])
    return lambda_pos, lambda_ori


@numba.njit(cache=True)
def _fast_terms(
    qpos, qvel, joints_q, joints_v, site_pos, site_mat, inertia, mass_index, mass,
    goal_pos, goal_ori, gains, initial_joint, pos, mat, joints, velocity,
    cdof, root_com, jac, force, nullspace, torques,
):  # fmt: skip
    """J' ([L_p f; L_r t] - L J a) into torques and M a into nullspace, with a the null-space task.

    (I - J' L J M^-1) M a = M a - J' L J a spares the projector.
    """
    _read_arm(
        qpos, qvel, joints_q, joints_v, site_pos, site_mat, inertia, mass_index, mass,
        pos, mat, joints,
    )  # fmt: skip
    _arm_jacobian(cdof, joints_v, pos, root_com, jac)
    task, hand_task = np.empty(ARM_DOF), np.zeros(6)
    for j in range(ARM_DOF):
        task[j] = NULLSPACE_KP * (initial_joint[j] - joints[0, j])
        task[j] -= 2.0 * np.sqrt(NULLSPACE_KP) * joints[1, j]
    for i in range(6):
        velocity[i // 3, i % 3] = 0.0
        for j in range(ARM_DOF):
            velocity[i // 3, i % 3] += jac[i, j] * joints[1, j]
            hand_task[i] += jac[i, j] * task[j]
    _desired_force(goal_pos, goal_ori, gains, pos, mat, velocity, force)
    compliance = _compliance(mass, jac)
    _solve(compliance, 0, hand_task)
    _solve(compliance, 0, force[0])
    _solve(compliance, 3, force[1])
    for j in range(ARM_DOF):
        torques[j] = nullspace[j] = 0.0
        for i in range(6):
            torques[j] += jac[i, j] * (force[i // 3, i % 3] - hand_task[i])
        for i in range(ARM_DOF):
            nullspace[j] += mass[j, i] * task[i]


@numba.njit(cache=True)
def _arm_jacobian(cdof, joints_v, pos, root_com, jac):
    """J [6, 7] of the point pos from the motion axes (rotation, translation) at root_com."""
    x, y, z = pos[0] - root_com[0], pos[1] - root_com[1], pos[2] - root_com[2]
    for j in range(ARM_DOF):
        axis = cdof[joints_v[j]]
        jac[0, j] = axis[3] + (axis[1] * z - axis[2] * y)
        jac[1, j] = axis[4] + (axis[2] * x - axis[0] * z)
        jac[2, j] = axis[5] + (axis[0] * y - axis[1] * x)
        jac[3, j], jac[4, j], jac[5, j] = axis[0], axis[1], axis[2]


@numba.njit(cache=True)
def _compliance(mass, jac):
    """J M^-1 J' [6, 6] as Y' Y with C Y = J' and M = C C'."""
    factor = np.empty((ARM_DOF, ARM_DOF))
    _factorise(mass, 0, factor)
    half = np.empty((6, ARM_DOF))
    for i in range(6):
        for j in range(ARM_DOF):
            value = jac[i, j]
            for k in range(j):
                value -= factor[j, k] * half[i, k]
            half[i, j] = value / factor[j, j]
    out = np.empty((6, 6))
    for i in range(6):
        for k in range(i + 1):
            value = 0.0
            for j in range(ARM_DOF):
                value += half[i, j] * half[k, j]
            out[i, k] = out[k, i] = value
    return out


@numba.njit(cache=True)
def _factorise(matrix, first, factor):
    """Cholesky factor [n, n] (lower triangle) of the block of matrix that begins at first.

    A singular direction gets an infinite pivot, so that solving leaves 0 there.
    """
    for j in range(factor.shape[0]):
        pivot = matrix[first + j, first + j]
        for k in range(j):
            pivot -= factor[j, k] * factor[j, k]
        singular = pivot <= SINGULAR * matrix[first + j, first + j]
        factor[j, j] = np.inf if singular else np.sqrt(pivot)
        for i in range(j + 1, factor.shape[0]):
            value = matrix[first + i, first + j]
            for k in range(j):
                value -= factor[i, k] * factor[j, k]
            factor[i, j] = value / factor[j, j]


@numba.njit(cache=True)
def _solve(matrix, first, rhs):
    """Block of matrix [n, n] that begins at first, inverted, times rhs [n], into rhs."""
    size = rhs.shape[0]
    factor = np.empty((size, size))
    _factorise(matrix, first, factor)
    for i in range(size):
        for k in range(i):
            rhs[i] -= factor[i, k] * rhs[k]
        rhs[i] /= factor[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            rhs[i] -= factor[k, i] * rhs[k]
        rhs[i] /= factor[i, i]


@numba.njit(cache=True)
def _write_controls(
    torques,
    bias,
    joints_v,
    nullspace,
    limits,
    clipped,
    grip,
    grip_step,
    grip_range,
    actuators,
    ctrl,
):
    """Adds gravity and null space, clips, moves the gripper's target, and sets ctrl."""
    for j in range(ARM_DOF):
        torques[j] += bias[joints_v[j]]
        torques[j] += nullspace[j]
        clipped[j] = min(max(torques[j], limits[0, j]), limits[1, j])
        ctrl[actuators[j]] = clipped[j]
    for j in range(2):
        grip[j] = min(max(grip[j] + grip_step[j], -1.0), 1.0)
        ctrl[actuators[ARM_DOF + j]] = grip_range[0, j] + grip_range[1, j] * grip[j]


def _samples(env: Any, substeps: int) -> list[int]:
    """Substeps after which stock samples its observables; advances their clocks by one step.

    All have one period (the control step) and no delay. A forced update (``reset``,
    ``set_init_state``) moves the clocks, so that the substep differs between environments.
    """
    observables = [item for item in env._observables.values() if item._enabled]
    clocks = {(o._time_since_last_sample, o._sampled, o._sampling_timestep) for o in observables}
    if len(clocks) != 1:
        raise ValueError("observe=True needs observables of one rate; use env.step for others")
    time, sampled, period = clocks.pop()
    due = []
    for index in range(substeps):
        time += env.model_timestep
        if not sampled:
            due.append(index)
            sampled = True
        if time >= period:
            time, sampled = time % period, False
    for observable in observables:
        observable._time_since_last_sample, observable._sampled = time, sampled
    return due


def _sample_observables(env: Any) -> None:
    for observable in env._observables.values():
        clock, sampled = observable._time_since_last_sample, observable._sampled
        observable.update(timestep=0.0, obs_cache=env._obs_cache, force=True)
        observable._time_since_last_sample, observable._sampled = clock, sampled


def exact(env: Any) -> Stepper:
    """``Stepper(env, mode="exact")``."""
    return Stepper(env, mode="exact")


def fast(env: Any) -> Stepper:
    """``Stepper(env, mode="fast")``."""
    return Stepper(env, mode="fast")


def cheap_rendering(model: mujoco.MjModel, *, resolution: int = 48) -> None:
    """Makes pictures of ``model`` cheaper, in place, before its renderer is made.

    No multisampling, and meshes with fewer triangles: vertices that share a cell of a grid over
    the mesh become one, and triangles that collapse are dropped (J. Rossignac and P. Borrel,
    "Multi-resolution 3D approximations for rendering complex scenes", 1993). Physics keeps every
    bit: contacts come from vertices and convex hulls, which stay.

    Args:
        model: compiled model.
        resolution: cells along the longest side of a mesh.
    """
    model.vis.quality.offsamples = 0
    for mesh in range(model.nmesh):
        _merge_vertices(model, mesh, resolution)


def _merge_vertices(model: mujoco.MjModel, mesh: int, resolution: int) -> None:
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[first : first + count]
    cell = np.ptp(vertices, axis=0).max() / resolution
    cells = ((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    _, chosen, group = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    start, total = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    faces = chosen[group.ravel()][model.mesh_face[start : start + total]]
    a, b, c = faces.T
    kept = np.flatnonzero((a != b) & (b != c) & (c != a))
    _, unique = np.unique(faces[kept], axis=0, return_index=True)
    kept = kept[np.sort(unique)]
    end = start + len(kept)
    model.mesh_face[start:end] = faces[kept]
    # The corners keep their normals and texture coordinates.
    for corners in (model.mesh_facenormal, model.mesh_facetexcoord):
        corners[start:end] = corners[start + kept]
    model.mesh_facenum[mesh] = len(kept)
