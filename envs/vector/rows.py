"""One environment at a time, or a block of them: the protocols.

This module, ``shared`` and ``worker`` import no torch: that would be most of the time that a worker
process needs to start.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from embodied_rl.envs.spaces import Array, ArrayDict, float32_space


@dataclass(frozen=True, slots=True)
class RowTransition:
    """One step of one environment.

    Attributes:
        obs: arrays [...] by name.
        reward: of this step.
        terminated, truncated: the simulator itself ended the episode.
        success: solved in this step, or None for a simulator without a notion of success.
    """

    obs: ArrayDict
    reward: float
    terminated: bool
    truncated: bool
    success: bool | None


class RowEnv(Protocol):
    """One environment in numpy; no autoreset.

    An episode is a function of (task_id, seed, actions), also in a fresh process: it is replayed
    to resume a run and to go on after a worker died.
    """

    observation_space: spaces.Dict
    """Flat: name -> Box. float64 is handed on as float32."""
    action_space: gymnasium.Space[Any]
    task_names: tuple[str, ...]
    instructions: tuple[str, ...]

    def reset(self, *, task_id: int, seed: int) -> ArrayDict:
        """Start an episode; returns observations [...]. ``seed`` is in [0, 2^31)."""
        ...

    def step(self, action: Array) -> RowTransition:
        """One control step with ``action`` [D], in the bounds of the simulator itself."""
        ...

    def render(self) -> npt.NDArray[np.uint8]:
        """[H, W, 3] picture of the present state."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


@dataclass(frozen=True, slots=True)
class BlockTransition:
    """One step of n environments.

    Attributes:
        obs: arrays [n, ...] by name.
        rewards: [n] of this step.
        terminated, truncated: [n] bool, the simulator itself ended the episode.
        success: [n] bool, solved in this step, or None for a simulator without that notion.
    """

    obs: ArrayDict
    rewards: Array
    terminated: Array
    truncated: Array
    success: Array | None


class BlockEnv(Protocol):
    """Several environments that one process steps together; each is as a ``RowEnv`` would be.

    Axes: n of its rows, which are numbered from 0.
    """

    observation_space: spaces.Dict
    """Of one row."""
    action_space: gymnasium.Space[Any]
    """Likewise."""
    task_names: tuple[str, ...]
    instructions: tuple[str, ...]

    def reset(self, rows: Array, *, task_ids: Array, seeds: Array) -> ArrayDict:
        """Start episodes in ``rows`` [n]; returns observations [n, ...]."""
        ...

    def step(self, actions: Array, rows: Array) -> BlockTransition:
        """One control step of ``rows`` [n] with ``actions`` [n, D]; the others stand still."""
        ...

    def render(self, row: int) -> npt.NDArray[np.uint8]:
        """[H, W, 3] picture of the present state of ``row``."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


def load_factory(factory: str) -> Callable[..., Any]:
    """The function or class ``"module:attr"``.

    Raises:
        ValueError: not of this form, or nothing there.
    """
    module, colon, attribute = factory.partition(":")
    if not colon:
        raise ValueError(f"factory {factory!r}: give 'module:attr'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"factory {factory!r} cannot be imported: {error}") from error


@dataclass(frozen=True, slots=True)
class RowSpec:
    """What all rows have in common."""

    observation_space: spaces.Dict
    action_space: gymnasium.Space[Any]
    task_names: tuple[str, ...]
    instructions: tuple[str, ...]


def spec_of(env: RowEnv | BlockEnv) -> RowSpec:
    """The spec of a row, observations as they are handed out."""
    leaves = {name: float32_space(space) for name, space in env.observation_space.items()}
    return RowSpec(
        spaces.Dict(leaves), env.action_space, tuple(env.task_names), tuple(env.instructions)
    )
