"""Environments: one file per simulator, one entry function.

``make_env(name, ...)`` looks ``name`` up in the registry and returns a ``VectorEnv``.
"""

from __future__ import annotations

if not __name__.startswith("embodied_rl."):
    raise ImportError(
        "import embodied_rl.envs instead of envs: the folder at the top of the checkout is not a "
        "package of its own (a clone without symbolic links needs `git config core.symlinks true`)"
    )

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from embodied_rl.registry import RegistryError, near_names, options_of, registry

if TYPE_CHECKING:  # worker processes start without torch
    import torch

    from embodied_rl.types import VectorEnv

__all__ = ["make_env"]


def make_env(
    name: str,
    *,
    num_envs: int,
    seed: int,
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    episode_seeds: Sequence[int] | None = None,
    **options: Any,
) -> VectorEnv:
    """Make the environment registered as ``name``.

    Args:
        name: ``"metaworld"``, ``"envpool"``, ``"gymnasium"`` or any other registered name.
        num_envs: N rows.
        seed: of every random stream of the environment.
        chunk_length: H actions per decision; actions are [N, D] for 1, else [N, H, D].
        max_episode_steps: time limit in simulator steps; None: the simulator's own.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows share task and initial state; divides N.
        device: of observations, rewards and flags.
        num_threads: simulation threads; None: all usable cores.
        episode_seeds: [N] simulator seeds, one per row, instead of ones derived from ``seed``.
        **options: of that environment, e.g. ``tasks=("pick-place-v3",)`` or ``id="CartPole-v1"``.

    Raises:
        RegistryError: no such environment, or an option it does not take.
        ValueError: an option value that does not fit; the message says which would.
    """
    make = registry("envs").get(name)
    common: dict[str, Any] = {
        "chunk_length": chunk_length,
        "max_episode_steps": max_episode_steps,
        "autoreset": autoreset,
        "group_size": group_size,
        "device": device,
        "num_threads": num_threads,
        "episode_seeds": episode_seeds,
    }
    defaults = signature(make_env).parameters
    known = options_of(make)
    for option, value in (common | options).items():
        # A small environment may leave common options out, as long as nobody asks for them.
        if option not in known and not (option in common and value == defaults[option].default):
            names = ", ".join(sorted(set(known) - set(common) - {"num_envs", "seed"}))
            hint = near_names(option, known)
            raise RegistryError(f"env {name!r} has no option {option!r}{hint} (its own: {names})")
    given = {option: value for option, value in common.items() if option in known}
    return make(num_envs=num_envs, seed=seed, **given, **options)
