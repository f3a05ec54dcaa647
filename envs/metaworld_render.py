"""Pictures of Meta-World episodes.

envpool simulates but does not render here; the ``metaworld`` package renders. Its environment is
put into the initial state of an envpool episode by solving for the random vector v (object and
goal positions) of its reset: Gauss-Newton on the reset map o(v),

    v <- clip(v + J^+ (o* - o(v)), low, high),   J_i = (o(v + h e_i) - o(v)) / h

where o* is the observation that envpool starts with. Most tasks match to 1e-8, those whose objects
settle after being placed to 5e-4; the same actions then give the same episode in most tasks, but
contacts may diverge, so a video plays the policy in closed loop on what it sees.

OpenGL is chosen by ``MUJOCO_GL`` (``egl`` unless set; ``osmesa``; ``glfw`` with a display).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from embodied_rl.envs.envpool import EnvPoolSimulator, Task
from embodied_rl.envs.metaworld_tasks import envpool_id, task_name
from embodied_rl.envs.spaces import Array

CAMERA = {"lookat": np.array([0.0, 0.62, 0.12]), "distance": 1.5, "azimuth": -125.0}
ELEVATION = -30.0
# Observation entries that a reset determines: the present objects and hand, and the goal.
MATCHED = np.r_[0:18, 36:39]
NEWTON_STEPS = 3
ATTEMPTS = 10
PROBE = 1e-3


class _RejectedError(Exception):
    """The reset refuses a random vector, e.g. because object and goal are too close."""


class RenderEnv:
    """One Meta-World environment with pictures, at the start of a given envpool episode.

    Attributes:
        mismatch: largest difference to envpool's initial observation, in metres (or infinity if
            no matching start was found, and another one is shown).
    """

    def __init__(self, env: Any, target: Array) -> None:
        self._env = env
        self._target = target
        self._start, self.mismatch = _match(env, target)

    def reset(self) -> Array:
        """Start the episode; returns the observation [39] float32."""
        return _reset_to(self._env, self._start).astype(np.float32)

    def step(self, action: Array) -> tuple[Array, bool]:
        """Execute an action [4], clipped to [-1, 1]; returns (observation [39], success)."""
        clipped = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        observation, _, _, _, info = self._env.step(clipped)
        return observation.astype(np.float32), bool(info["success"] > 0.5)

    def render(self) -> Array:
        """A picture [height, width, 3] uint8, upright."""
        try:
            return self._env.render()
        except Exception as error:  # whatever the OpenGL binding raises where it cannot start
            raise RuntimeError(_gl_sentence(error)) from error

    def close(self) -> None:
        """Release the simulator and its OpenGL context."""
        self._env.close()


def make_render_env(task: str, seed: int, *, width: int = 320, height: int = 320) -> RenderEnv:
    """The environment that shows the first episode of ``episode_seeds=[seed]`` of a task.

    Args:
        task: name of the task.
        seed: envpool seed of the episode.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.

    Raises:
        ValueError: unknown task, or the ``metaworld`` package is not installed.
    """
    name = task_name(task)
    # Read when mujoco is imported: without a display only EGL or OSMesa can draw.
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        from metaworld.env_dict import ENV_CLS_MAP
    except ImportError as error:
        raise ValueError(
            "pictures need the metaworld package: pip install 'embodied-rl[metaworld]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = ENV_CLS_MAP[name](render_mode="rgb_array", camera_id=-1, width=width, height=height)
    env.mujoco_renderer.default_cam_config = CAMERA | {"elevation": ELEVATION}
    # What Meta-World's own set_task does, with a random vector of ours.
    env._partially_observable = False
    env._set_task_called = True
    vars(env).pop("sawyer_observation_space", None)  # cached with the goal hidden
    # Software OpenGL is slow: no multisampling.
    env.model.vis.quality.offsamples = 0
    return RenderEnv(env, _initial_observation(name, seed))


def render_episode(
    task: str,
    seed: int,
    policy_fn: Callable[[Array], Array],
    *,
    max_episode_steps: int = 500,
    width: int = 320,
    height: int = 320,
    frame_skip: int = 2,
    hold: int = 10,
) -> tuple[Array, bool]:
    """Play one episode and film it.

    Args:
        task: name of the task.
        seed: envpool seed of the episode (as in ``episode_seeds``).
        policy_fn: observation [39] float32 -> action [4], or actions [H, 4] to execute in a row.
        max_episode_steps: steps until the film ends without success.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.
        frame_skip: steps per picture (a step is 1/80 s).
        hold: further pictures of the solved scene.

    Returns:
        (frames [T, height, width, 3] uint8, success).

    Raises:
        RuntimeError: OpenGL cannot start; one sentence says which library is missing.
    """
    env = make_render_env(task, seed, width=width, height=height)
    try:
        observation, frames, steps, success = env.reset(), [], 0, False
        frames.append(env.render())
        while steps < max_episode_steps and not success:
            for action in np.atleast_2d(policy_fn(observation)):
                observation, success = env.step(action)
                steps += 1
                if steps % frame_skip == 0 or success:
                    frames.append(env.render())
                if success or steps == max_episode_steps:
                    break
        frames += frames[-1:] * (hold if success else 0)
    finally:
        env.close()
    return np.stack(frames), success


def _initial_observation(name: str, seed: int) -> Array:
    task = Task(name=name, id=envpool_id(name), options={"partially_observable": False})
    simulator = EnvPoolSimulator([task], num_envs=1, seed=0, num_threads=1, episode_seeds=[seed])
    obs, _ = simulator.reset(np.zeros(1, np.int64), np.zeros(1, np.int64))
    simulator.close()
    return obs["state"][0]


def _reset_to(env: Any, vector: Array) -> Array:
    """Reset with a given random vector; returns the observation [39] float64."""
    calls = 0

    def draw() -> Array:
        # Some resets draw again until the vector suits them; a fixed one would never do.
        nonlocal calls
        calls += 1
        if calls > 4:
            raise _RejectedError
        return vector.copy()

    env._get_state_rand_vec = draw
    return env.reset()[0]


def _match(env: Any, target: Array) -> tuple[Array, float]:
    """Random vector of the reset that leads to ``target`` [39], and the remaining difference."""
    space = env._random_reset_space
    generator = np.random.default_rng(0)
    best, error = None, np.inf
    for _ in range(ATTEMPTS):
        vector = generator.uniform(space.low, space.high)
        try:
            vector = _newton(env, vector, target)
            difference = float(np.abs(_reset_to(env, vector) - target)[MATCHED].max())
        except _RejectedError:
            continue
        if difference < error:
            best, error = vector, difference
        if error < PROBE:
            break
    if best is None:
        raise RuntimeError("no reset of this task accepts a random vector")
    return best, error


def _newton(env: Any, vector: Array, target: Array) -> Array:
    space = env._random_reset_space
    free = np.flatnonzero(space.high > space.low)
    for _ in range(NEWTON_STEPS):
        observation = _reset_to(env, vector)
        residual = (target - observation)[MATCHED]
        if np.abs(residual).max() < 1e-7:
            break
        columns = []
        for i in free:
            # Probe towards the middle of the range, to stay inside it.
            step = PROBE if 2 * vector[i] < space.low[i] + space.high[i] else -PROBE
            probed = vector.copy()
            probed[i] += step
            columns.append((_reset_to(env, probed) - observation)[MATCHED] / step)
        change = np.linalg.lstsq(np.stack(columns, 1), residual, rcond=1e-4)[0]
        vector = vector.copy()
        vector[free] += change
        vector = np.clip(vector, space.low, space.high)
    return vector


def _gl_sentence(error: Exception) -> str:
    backend = os.environ.get("MUJOCO_GL", "egl")
    library = {"egl": "libegl1", "osmesa": "libosmesa6"}.get(backend, "libgl1")
    return (
        f"cannot draw with MUJOCO_GL={backend}: install the system library {library} "
        f"(apt-get install {library}) or set MUJOCO_GL to osmesa or egl ({type(error).__name__})"
    )
