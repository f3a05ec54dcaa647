"""Any gymnasium id as a ``VectorEnv``: in this process, or in worker processes.

Seeds and recovery are those of ``embodied_rl.envs.vector``; success is ``info["success"]`` or
``info["is_success"]`` of a step, where there is one.

Axes: N row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import torch

from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.gymnasium_row import GymnasiumRow
from embodied_rl.envs.vector import LocalSimulator, make_workers
from embodied_rl.registry import near_names

MODES = ("sync", "workers")


def make(
    *,
    id: str,
    num_envs: int,
    seed: int,
    vectorization_mode: str = "sync",
    num_workers: int = 0,
    worker_timeout: float = 60.0,
    max_restart_rate: float = 10.0,
    render: bool = False,
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    terminate_on_success: bool = True,
    episode_seeds: Sequence[int] | None = None,
    env_options: Mapping[str, Any] | None = None,
) -> SimulatorVectorEnv:
    """Any id of gymnasium's registry.

    Args:
        id: e.g. ``"CartPole-v1"``; ``"module:Name-v0"`` imports the module first.
        num_envs: N rows.
        seed: of every row's stream.
        vectorization_mode: ``"sync"`` (this process) or ``"workers"`` (worker processes, which
            are restarted when they fail).
        num_workers: processes in the mode ``"workers"``; 0: one per usable core.
        worker_timeout: seconds without a finished row after which a worker is restarted.
        max_restart_rate: restarts per 1000 environment steps that end the run.
        render: the environment is to draw pictures.
        chunk_length: H actions per decision.
        max_episode_steps: time limit; None: that of the id.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows start alike.
        device: of observations, rewards and flags.
        terminate_on_success: success ends an episode, where the environment reports success.
        episode_seeds: [N] seeds of the rows' first episodes instead of derived ones.
        env_options: keyword arguments of ``gymnasium.make``.

    Raises:
        ValueError: unknown id or mode, or a number that does not fit.
    """
    if vectorization_mode not in MODES:
        hint = near_names(vectorization_mode, MODES)
        raise ValueError(f"vectorization_mode={vectorization_mode!r}{hint}; give one of {MODES}")
    options = dict(env_options or {})
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    if render:
        options["render_mode"] = "rgb_array"
    try:
        spec = gymnasium.spec(id)
    except gymnasium.error.Error as error:
        hint = near_names(id, gymnasium.registry)
        raise ValueError(f"gymnasium has no id {id!r}{hint} ({error})") from error
    row: dict[str, Any] = {"spec": spec, "options": options}
    rows: dict[str, Any] = {
        "num_envs": num_envs,
        "seed": seed,
        "group_size": group_size,
        "episode_seeds": episode_seeds,
    }
    if vectorization_mode == "sync":
        simulator = LocalSimulator(lambda: GymnasiumRow(**row), **rows)
    else:
        simulator = make_workers(
            "embodied_rl.envs.gymnasium_row:GymnasiumRow",
            row,
            **rows,
            num_workers=num_workers,
            timeout=worker_timeout,
            max_restart_rate=max_restart_rate,
        )
    if spec.nondeterministic:
        simulator.resume = "none"
    return SimulatorVectorEnv(  # the time limit is gymnasium's own
        simulator,
        chunk_length=chunk_length,
        autoreset=autoreset,
        group_size=group_size,
        terminate_on_success=terminate_on_success,
        device=device,
    )
