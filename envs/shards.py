"""Several vector environments as one, stepped by threads: one simulates while another is acted for.

``ShardedVectorEnv`` joins S shards of n rows into one environment of N = S n rows. Stepped as a
whole, it is an ordinary ``VectorEnv``. ``collect`` instead goes through ``shards`` in turn: while
the policy acts for one, the others simulate, so that a decision costs

    max(S inference, inference + simulation)   instead of   S inference + simulation

where both do not want the same cores. Threads are enough: simulators that are worth it run in
worker processes or in C++ without the interpreter lock.

Axes: S shard, n row of a shard, N row.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from embodied_rl.envs.wrappers import Step, Wrapper
from embodied_rl.types import TensorDict, VectorEnv


class Shard(Wrapper):
    """One of several environments: ``send`` has the whole decision stepped by a thread.

    Args:
        env: environment to wrap.
        index, count: which shard of how many; ``group_ids`` are ``id * count + index``, so that
            no two shards have the same.
    """

    def __init__(self, env: VectorEnv, *, index: int, count: int) -> None:
        self._index, self._count = index, count
        super().__init__(env)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"shard-{index}")
        self._step: Future[Step] | None = None
        self.obs: TensorDict = {}
        """The latest observation; empty before the first reset."""

    def _copy_ids(self) -> None:
        self.task_ids = self.env.task_ids
        self.group_ids = self.env.group_ids * self._count + self._index

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """See ``VectorEnv.reset``."""
        self.obs, info = super().reset(seed=seed, options=options)
        return self.obs, info

    def send(self, actions: Tensor) -> None:
        """See ``VectorEnv.send``; every action of a chunk is taken in the background."""
        if self._step is not None:
            raise ValueError("send twice: call recv before the next send")
        self._step = self._thread.submit(self.env.step, actions)

    def recv(self) -> Step:
        """See ``VectorEnv.recv``; raises what the step raised."""
        if self._step is None:
            raise ValueError("recv without send: call send(actions) first")
        running, self._step = self._step, None
        step = running.result()
        self._copy_ids()
        self.obs = step[0]
        return step

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """See ``VectorEnv.load_state_dict``."""
        self.obs = super().load_state_dict(state)
        return self.obs

    def close(self) -> None:
        """Let the running step end, then release the simulators."""
        self._thread.shutdown()
        super().close()


class ShardedVectorEnv:
    """S environments as one whose rows are theirs, one after the other; see the module.

    Args:
        envs: alike in everything but their random streams; owned from here on.
        group_size: G of the environments.

    Rows are given tasks in turn over all N rows, as in one environment of that size.
    """

    def __init__(self, envs: Sequence[VectorEnv], *, group_size: int = 1) -> None:
        count = len(envs)
        self.shards = tuple(Shard(env, index=i, count=count) for i, env in enumerate(envs))
        first = self.shards[0]
        self.num_envs = sum(shard.num_envs for shard in self.shards)
        self.single_observation_space = first.single_observation_space
        self.single_action_space = first.single_action_space
        self.metadata = first.metadata
        self.device = first.device
        self.task_names = first.task_names
        groups = torch.arange(self.num_envs, device=self.device) // group_size
        for shard, task_ids in zip(self.shards, self.split(groups), strict=True):
            shard.task_ids = task_ids % len(self.task_names)

    @property
    def task_ids(self) -> Tensor:
        """[N] task of each row."""
        return torch.cat([shard.task_ids for shard in self.shards])

    @property
    def group_ids(self) -> Tensor:
        """[N] equal for rows with the same start."""
        return torch.cat([shard.group_ids for shard in self.shards])

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instruction text of every task id."""
        return self.shards[0].instructions

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """The parts of ``values`` [N, ...] that belong to each shard, [n, ...]."""
        return values.split([shard.num_envs for shard in self.shards])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """See ``VectorEnv.reset``; shard i is given ``seed + i``."""
        given = {"task_ids": self.task_ids} | (options or {})
        parts = {name: self.split(torch.as_tensor(value)) for name, value in given.items()}
        for i, shard in enumerate(self.shards):
            own = {name: values[i] for name, values in parts.items()}
            if shard.obs and "reset_mask" in own and not bool(own["reset_mask"].any()):
                continue
            shard.reset(seed=None if seed is None else seed + i, options=own)
        return joined([shard.obs for shard in self.shards]), {}

    def send(self, actions: Tensor) -> None:
        """See ``VectorEnv.send``."""
        for shard, part in zip(self.shards, self.split(actions), strict=True):
            shard.send(part)

    def recv(self) -> Step:
        """See ``VectorEnv.recv``."""
        steps = [shard.recv() for shard in self.shards]
        parts = (joined(part) for part in zip(*steps, strict=True))
        obs, rewards, terminated, truncated, info = parts
        return obs, rewards, terminated, truncated, info

    def step(self, actions: Tensor) -> Step:
        """See ``VectorEnv.step``."""
        self.send(actions)
        return self.recv()

    def state_dict(self) -> dict[str, Any] | None:
        """See ``VectorEnv.state_dict``."""
        states = [shard.state_dict() for shard in self.shards]
        return None if any(state is None for state in states) else {"shards": states}

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """See ``VectorEnv.load_state_dict``."""
        parts = zip(self.shards, state["shards"], strict=True)
        return joined([shard.load_state_dict(part) for shard, part in parts])

    def close(self) -> None:
        """See ``VectorEnv.close``."""
        for shard in self.shards:
            shard.close()


def joined(parts: Sequence[Any]) -> Any:
    """Tensors, or dicts of them, put one after the other along their first axis."""
    if isinstance(parts[0], dict):
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(tuple(parts))
