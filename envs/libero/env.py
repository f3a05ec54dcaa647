"""``make``: LIBERO tasks as a ``VectorEnv`` over worker processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.libero.assets import assets_folder
from embodied_rl.envs.libero.control import check_stepping
from embodied_rl.envs.libero.simulation import CAMERAS
from embodied_rl.envs.libero.tasks import HORIZONS, NUM_INITIAL_STATES, WORDINGS, expand_tasks
from embodied_rl.envs.vector import make_workers
from embodied_rl.registry import near_names

TIMEOUT = 600.0
"""Seconds that a step may take: building ten tasks on a busy machine is part of one."""


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
    wording: str = "name",
    initial_states: tuple[int, int] = (0, 49),
    evaluation_states: tuple[int, int] = (0, 49),
    images: Sequence[str] = (),
    image_size: int = 128,
    stepping: str = "exact",
    settle_steps: int = 10,
    terminate_on_success: bool = True,
    episode_seeds: Sequence[int] | None = None,
) -> SimulatorVectorEnv:
    """LIBERO tasks, mixed in one batch; rows start with the tasks in turn.

    Args:
        tasks: a suite (``"libero_object"`` or ``"object"``), a task's name, ``"object/3"``, or
            several of them.
        num_envs: N rows.
        seed: of every row's stream.
        chunk_length: H actions per decision.
        max_episode_steps: time limit; None: the longest horizon of the suites in ``tasks``.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows share task and initial state.
        device: of observations, rewards and flags.
        num_threads: worker processes; None: one per usable core.
        wording: instruction read off the task's ``"name"``, or the one in its ``"scene"``
            description; they differ in 29 tasks.
        initial_states: first and last of the benchmark's 50 initial states to start from; seed s
            starts from number first + s mod (last - first + 1).
        evaluation_states: the same for the seeds of evaluation manifests.
        images: ``"agentview"`` and/or ``"wrist"``: uint8 [3, size, size], upright; with them comes
            the robot's part of ``state`` as ``robot`` [27].
        image_size: pixels.
        stepping: ``"exact"`` (equal to robosuite's bit for bit), ``"fast"`` (nearly equal) or
            ``"stock"`` (robosuite's own loop, slow).
        settle_steps: control steps without motion before the first action.
        terminate_on_success: success ends an episode.
        episode_seeds: [N] seeds of the rows' episodes instead of derived ones.

    Raises:
        ValueError: an unknown task or option, a number that does not fit, or scenes that cannot
            be had.
    """
    pairs = expand_tasks(tasks)
    _check_names(wording=wording, images=images, stepping=stepping)
    _check_states(initial_states=initial_states, evaluation_states=evaluation_states)
    _check_sizes(image_size=(image_size, 16), settle_steps=(settle_steps, 0))
    simulator = make_workers(
        "embodied_rl.envs.libero.row:LiberoRow",
        {
            "tasks": pairs,
            "assets": str(assets_folder()),
            "wording": wording,
            "initial_states": tuple(initial_states),
            "evaluation_states": tuple(evaluation_states),
            "images": tuple(images),
            "image_size": image_size,
            "stepping": stepping,
            "settle_steps": settle_steps,
        },
        num_envs=num_envs,
        num_workers=min(num_threads or 0, num_envs),
        seed=seed,
        group_size=group_size,
        episode_seeds=episode_seeds,
        timeout=TIMEOUT,
    )
    return SimulatorVectorEnv(
        simulator,
        chunk_length=chunk_length,
        max_episode_steps=max_episode_steps or max(HORIZONS[suite] for suite, _ in pairs),
        autoreset=autoreset,
        group_size=group_size,
        terminate_on_success=terminate_on_success,
        device=device,
    )


def _check_names(*, wording: str, images: Sequence[str], stepping: str) -> None:
    """Raise ValueError for a choice that does not exist."""
    for name, value, known in (
        ("wording", wording, WORDINGS),
        *(("images", image, tuple(CAMERAS)) for image in images),
    ):
        if value not in known:
            raise ValueError(f"{name}: no {value!r}{near_names(value, known)}; give {known}")
    check_stepping(stepping)


def _check_states(**states: tuple[int, int]) -> None:
    for name, (first, last) in states.items():
        if not 0 <= first <= last < NUM_INITIAL_STATES:
            raise ValueError(
                f"{name}={(first, last)}: give the first and the last, 0 to "
                f"{NUM_INITIAL_STATES - 1}"
            )


def _check_sizes(**sizes: tuple[int, int]) -> None:
    for name, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"{name}={value}: give at least {least}")
