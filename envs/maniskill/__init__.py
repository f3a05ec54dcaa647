"""ManiSkill 3 as a ``VectorEnv``: 74 tasks of arms, hands and walkers (S. Tao et al., 2024).

On a CPU the rows are spread over worker processes, each of which steps its rows as one batch where
the task can (``tasks.TOGETHER``); with an NVIDIA GPU all rows are one batch. An episode ends with
success or failure (``terminated``) or with the time limit.

* ``tasks``: ids, instructions, time limits, what has to be downloaded. Imports nothing heavy.
* ``headless``: importing ManiSkill without prompts and, for states, without a graphics driver.
* ``scenes``: N scenes of one task, numpy at the border.
* ``many``: several scenes on the CPU as one ManiSkill environment.
* ``row``, ``batched``: one environment or a block of them in a worker process; one batch here.
* ``features``: displacements between gripper, object and goal.
* ``expert``: scripted experts of six tasks.
"""

from __future__ import annotations

if not __name__.startswith("embodied_rl."):
    raise ImportError("import embodied_rl.envs.maniskill instead of envs.maniskill")

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from embodied_rl.envs.base import Simulator, SimulatorVectorEnv
from embodied_rl.envs.maniskill.tasks import MAX_EPISODE_STEPS, TOGETHER, expand_tasks
from embodied_rl.registry import near_names

if TYPE_CHECKING:
    from embodied_rl.envs.maniskill.scenes import SceneOptions

BACKENDS = ("auto", "workers", "rows", "batched")


def make(
    *,
    tasks: str | Sequence[str],
    num_envs: int,
    seed: int,
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    obs_mode: str = "state",
    control_mode: str | None = None,
    reward: str = "sparse",
    features: str = "state",
    image_size: int = 128,
    render: bool = False,
    backend: str = "auto",
    terminate_on_success: bool = True,
    episode_seeds: Sequence[int] | None = None,
    timeout: float = 120.0,
) -> SimulatorVectorEnv:
    """ManiSkill tasks; rows start with the tasks in turn.

    Args:
        tasks: ids (``"PickCube-v1"``, ``"pick_cube"``); several share one observation space.
        num_envs: N rows.
        seed: of every row's stream.
        chunk_length: H actions per decision.
        max_episode_steps: time limit; None: ManiSkill's own, the longest of several tasks.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows share task and initial state.
        device: of observations, rewards and flags.
        num_threads: worker processes; None: one per usable core.
        obs_mode: ``"state"`` (one vector), ``"state_dict"`` (its parts by name), ``"rgb"`` or
            ``"rgbd"``: what the robot feels as ``state``, ``image_<camera>`` uint8 [3, H, W] and
            ``depth_<camera>`` float32 [1, H, W] in metres.
        control_mode: e.g. ``"pd_ee_delta_pos"``; None: that of the scripted expert where there is
            one, else ManiSkill's default for the robot.
        reward: ``"sparse"``, ``"dense"``, ``"normalized_dense"`` or ``"none"``.
        features: ``"state"``, or ``"relative"`` which adds the observation ``relative`` [30], see
            ``features``; it makes imitation of few episodes generalise better.
        image_size: pixels along both sides of every camera.
        render: set the cameras up, so that ``render`` works with states too.
        backend: ``"workers"``: processes that step their rows together; ``"rows"``: processes that
            step them one by one, which any task can; ``"batched"``: all in this process, on an
            NVIDIA GPU if there is one; ``"auto"``: batched with a GPU and one task, else workers
            if the task can, else rows. The episodes are the same, on the CPU to the last bit.
        terminate_on_success: success ends an episode.
        episode_seeds: [N] seeds instead of derived ones; with the task of a row they name its
            initial state.
        timeout: seconds without a finished row after which a worker counts as hanging.

    Raises:
        ValueError: unknown task or option, files that a task lacks, or pictures without a driver.
    """
    from embodied_rl.envs.maniskill.scenes import SceneOptions

    names = expand_tasks(tasks)
    options = SceneOptions(
        obs_mode=obs_mode,
        control_mode=control_mode,
        reward=reward,
        features=features,
        image_size=image_size,
        render=render,
    )
    common: dict[str, Any] = {
        "num_envs": num_envs,
        "seed": seed,
        "group_size": group_size,
        "episode_seeds": episode_seeds,
    }
    backend = _choose(backend, names, options)
    if backend == "batched":
        simulator = _batched(names[0], options, common)
    else:
        workers = min(num_threads or 0, num_envs)
        simulator = _workers(names, options, common, backend, workers, timeout)
    return SimulatorVectorEnv(
        simulator,
        chunk_length=chunk_length,
        max_episode_steps=max_episode_steps or max(MAX_EPISODE_STEPS[name] for name in names),
        autoreset=autoreset,
        group_size=group_size,
        terminate_on_success=terminate_on_success,
        device=device,
    )


def _batched(task: str, options: SceneOptions, common: dict[str, Any]) -> Simulator:
    from embodied_rl.envs.maniskill.batched import BatchedSimulator

    backend = "physx_cuda" if _has_gpu() else "physx_cpu"
    return BatchedSimulator(task, options=options, sim_backend=backend, **common)


def _workers(
    tasks: tuple[str, ...],
    options: SceneOptions,
    common: dict[str, Any],
    backend: str,
    num_workers: int,
    timeout: float,
) -> Simulator:
    from embodied_rl.envs.vector import make_workers

    block = backend == "workers"
    return make_workers(
        f"embodied_rl.envs.maniskill.row:{'ManiSkillBlock' if block else 'ManiSkillRow'}",
        {"tasks": tasks, **asdict(options)},
        num_workers=num_workers,
        timeout=timeout,
        block=block,
        **common,
    )


def _choose(backend: str, tasks: tuple[str, ...], options: SceneOptions) -> str:
    if backend not in BACKENDS:
        hint = near_names(backend, BACKENDS)
        raise ValueError(f"backend={backend!r}{hint}; give one of {BACKENDS}")
    gpu = _has_gpu()
    if backend == "rows" or (backend == "batched" and gpu and len(tasks) == 1):
        return backend
    obstacle = _obstacle(tasks, options)
    if backend == "auto":
        if gpu and len(tasks) == 1:
            return "batched"
        return "rows" if obstacle else "workers"
    if obstacle:
        raise ValueError(
            f"backend={backend!r} steps rows together, but {obstacle}: set backend='rows'"
        )
    return backend


def _obstacle(tasks: tuple[str, ...], options: SceneOptions) -> str | None:
    """Why the rows of a CPU cannot be stepped together, or None if they can."""
    if len(tasks) != 1:
        return f"{len(tasks)} tasks are asked for"
    if options.pictures or options.render:
        return "pictures are drawn one by one"
    (task,) = tasks
    if task not in TOGETHER:
        return f"{task} needs a scene of its own"
    return None


def _has_gpu() -> bool:
    return torch.cuda.is_available()
