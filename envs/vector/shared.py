"""Arrays that the parent and its worker processes both see, in one anonymous file.

The file has no name: it is handed to a worker as a file descriptor and is gone when the last
process that has it is, however that process ended. Nothing can be left behind in /dev/shm.

Axes: N row, W worker.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from embodied_rl.envs.spaces import ActionCodec, Array
from embodied_rl.envs.vector.rows import RowSpec

ALIGNMENT = 64
"""Bytes: one cache line, so that no two arrays share one."""

Field = tuple[tuple[int, ...], np.dtype[Any] | type[np.generic]]


class SharedArrays:
    """The arrays of N rows over an anonymous file.

    Attributes:
        obs: observations [N, ...] by name.
        actions: [N, ...].
        rewards: [N] float32.
        flags: [3, N] bool: terminated, truncated, success.
        mask: [N] bool, rows that the present command is for.
        seeds, task_ids: [N] int64, of the next reset.
        has_success: [1] bool, False for a simulator without a notion of success.
        progress: [W] int64, rows that each worker has finished since its start.
    """

    def __init__(self, file: int, spec: RowSpec, *, num_envs: int, num_workers: int) -> None:
        codec = ActionCodec(spec.action_space, num_envs, 1)
        fields: dict[str, Field] = {
            "actions": ((num_envs, *codec.shape), codec.dtype),
            "rewards": ((num_envs,), np.float32),
            "flags": ((3, num_envs), np.bool_),
            "mask": ((num_envs,), np.bool_),
            "seeds": ((num_envs,), np.int64),
            "task_ids": ((num_envs,), np.int64),
            "has_success": ((1,), np.bool_),
            # One cache line each: every worker writes to its own all the time.
            "progress": ((num_workers, ALIGNMENT // 8), np.int64),
        }
        for name, space in spec.observation_space.items():
            assert space.shape is not None and space.dtype is not None
            fields[f"obs/{name}"] = ((num_envs, *space.shape), space.dtype)
        arrays = _map(file, fields)
        self.obs = {
            name.removeprefix("obs/"): array
            for name, array in arrays.items()
            if name.startswith("obs/")
        }
        self.actions = arrays["actions"]
        self.rewards = arrays["rewards"]
        self.flags = arrays["flags"]
        self.mask = arrays["mask"]
        self.seeds = arrays["seeds"]
        self.task_ids = arrays["task_ids"]
        self.has_success = arrays["has_success"]
        self.progress = arrays["progress"][:, 0]


def _map(file: int, fields: Mapping[str, Field]) -> dict[str, Array]:
    """Arrays over ``file``, which is made long enough."""
    offsets, size = {}, 0
    for name, (shape, dtype) in fields.items():
        offsets[name] = size
        length = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        size += -(-length // ALIGNMENT) * ALIGNMENT
    if os.fstat(file).st_size < size:
        os.ftruncate(file, size)
    buffer = mmap.mmap(file, size)
    return {
        name: np.ndarray(shape, dtype, buffer, offsets[name])
        for name, (shape, dtype) in fields.items()
    }


def anonymous_file() -> int:
    """File descriptor of an empty file in memory (on disk where the system has no such thing)."""
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create("embodied-rl")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
