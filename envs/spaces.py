"""Spaces: observations as named float32 leaves, actions as clipped and scaled arrays.

Axes: N row, H action of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

if TYPE_CHECKING:  # worker processes start without torch
    from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]
ArrayDict: TypeAlias = dict[str, Array]


class TextSpace(spaces.Box):
    """Texts of at most ``size`` bytes: uint8 ``[size]``, UTF-8 padded with zeros."""

    def __init__(self, size: int) -> None:
        super().__init__(0, 255, (size,), np.uint8)


class MixedSpace(spaces.Box):
    """``numbers`` of a continuous action and ``text_bytes`` of a text, side by side in float32."""

    def __init__(self, *, numbers: int, text_bytes: int) -> None:
        super().__init__(-np.inf, np.inf, (numbers + text_bytes,), np.float32)
        self.numbers, self.text_bytes = numbers, text_bytes


class ActionCodec:
    """Torch actions of a decision to the arrays the simulator takes.

    A bounded Box is offered as [-1, 1] and mapped to the simulator's own bounds, after clipping:
    ``low + (clip(a, -1, 1) + 1) / 2 * (high - low)``. A Discrete space starts at 0. Bytes of a
    TextSpace stay what they are.
    """

    def __init__(self, space: gymnasium.Space[Any], num_envs: int, chunk_length: int) -> None:
        self._low: Array | None = None
        self._offset = 0
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.int32)
        if isinstance(space, TextSpace):
            self.space: gymnasium.Space[Any] = space
            self.shape, self.dtype = space.shape, np.dtype(np.uint8)
        elif isinstance(space, MixedSpace):
            self._box(space)
            self.space = space
        elif isinstance(space, spaces.Box):
            self.space = self._box(space)
        elif isinstance(space, spaces.Discrete):
            self._offset = int(space.start)
            self._count = int(space.n)
            self.space = spaces.Discrete(self._count)
        else:
            raise ValueError(
                f"action space {space} is not supported: wrap the environment so that its actions "
                "are one Box or one Discrete space"
            )
        self._batch = (num_envs, *self.shape)
        if chunk_length > 1:
            self._batch = (num_envs, chunk_length, *self.shape)
        self._unit_batch = (num_envs, 1, *self.shape)

    def _box(self, space: spaces.Box) -> spaces.Box:
        self.shape = space.shape
        self.dtype = np.dtype(np.float32)
        self._bounded = bool(space.is_bounded())
        if not self._bounded:
            return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        if (low != -1).any() or (high != 1).any():
            self._low, self._half = low, (high - low) / 2
        return spaces.Box(-1.0, 1.0, space.shape, np.float32)

    def decode(self, actions: Tensor) -> Array:
        """Actions [N, ...] (H = 1; [N, 1, ...] also) or [N, H, ...] to a new array.

        Raises:
            ValueError: wrong shape or type, NaN, or an index outside the space.
        """
        if actions.shape != self._batch:
            if len(self._batch) != len(self._unit_batch) and actions.shape == self._unit_batch:
                actions = actions[:, 0]
            else:
                raise ValueError(
                    f"actions have shape {tuple(actions.shape)}, this environment takes "
                    f"{self._batch}"
                )
        array = actions.numpy(force=True)
        if isinstance(self.space, TextSpace):
            if array.dtype != np.uint8:
                raise ValueError(f"actions are {array.dtype}: this environment takes uint8 text")
            return array.copy()
        if isinstance(self.space, spaces.Box):
            return self._decode_box(array)
        return self._decode_index(array)

    def _decode_box(self, array: Array) -> Array:
        array = array.astype(np.float32)
        if self._bounded:
            np.maximum(array, -1.0, out=array)
            np.minimum(array, 1.0, out=array)
        # One reduction finds any NaN: a sum is NaN if a term is (or if infinities cancel).
        total = np.add.reduce(array, axis=None)
        if total != total:
            bad = np.flatnonzero(np.isnan(array).reshape(array.shape[0], -1).any(1))
            if bad.size:
                raise ValueError(
                    f"actions of row {bad[0]} are NaN ({bad.size} of {array.shape[0]} rows): the "
                    "policy has diverged, lower its learning rate or clip its gradients"
                )
        return array if self._low is None else self._low + (array + 1.0) * self._half

    def _decode_index(self, array: Array) -> Array:
        if array.dtype.kind not in "iu":
            raise ValueError(f"actions are {array.dtype}: this environment takes integer indices")
        index = array.astype(np.int32)
        # Seen as unsigned, a negative index is a huge one: one reduction checks both ends.
        if np.maximum.reduce(index.view(np.uint32), axis=None) >= self._count:
            outside = (index < 0) | (index >= self._count)
            bad = int(np.flatnonzero(outside.reshape(index.shape[0], -1).any(1))[0])
            raise ValueError(
                f"row {bad}: action {array[bad]} does not exist, give 0 to {self._count - 1}"
            )
        return index + self._offset if self._offset else index


def observation_name(space: gymnasium.Space[Any]) -> str:
    """Name of a bare observation: ``"image"`` for uint8 with three axes, else ``"state"``."""
    image = space.dtype == np.uint8 and space.shape is not None and len(space.shape) == 3
    return "image" if image else "state"


def flatten_space(space: gymnasium.Space[Any], prefix: str = "") -> dict[str, gymnasium.Space[Any]]:
    """Leaves of a (nested) Dict space by path (``"robot/qpos"``); a bare space gets one name."""
    if not isinstance(space, spaces.Dict):
        return {prefix or observation_name(space): space}
    leaves: dict[str, gymnasium.Space[Any]] = {}
    for name, child in space.spaces.items():
        leaves.update(flatten_space(child, f"{prefix}/{name}" if prefix else name))
    return leaves


def float32_space(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """The space of an observation as handed out: float64 Boxes become float32 ones."""
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    return space
