"""Any envpool id as a ``VectorEnv``, and the simulator behind it (also Meta-World's).

envpool steps C++ environments in its own threads. A *pool* holds environments of one id. With one
task there is one pool of N environments, row n being environment n. With several tasks every task
has its own pools, made when first needed: a group of rows that starts an episode on task t takes
over a free group of environments of t, so that a batch may mix tasks in any proportion. Pools
whose environments are all free are closed, least recently used first, to stay below
``MAX_ENVS_PER_ROW`` environments per row.

Streams: environment e of a pool is seeded once, at construction, and its k-th start depends on
(seed, k) alone. Rows of a group have equal seeds and so equal k-th starts. Start key of a row:
(number of its environment group over the life of the run) * 2^32 + k.

envpool's own autoreset comes one step late (NEXT_STEP); it never happens here, because rows that
have ended are reset explicitly before they are stepped again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from embodied_rl.envs.base import (
    ArrayDict,
    BoolArray,
    IntArray,
    Resume,
    SimulatorVectorEnv,
    Transition,
    check_groups,
)
from embodied_rl.envs.spaces import Array, flatten_space, float32_space
from embodied_rl.registry import near_names
from embodied_rl.seeding import derive_seed

MAX_ENVS_PER_ROW = 3
REPLAYABLE_IDS = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
)
"""Ids, besides Meta-World's, whose stepping draws no random number.

Proven by tests/determinism/test_envs.py.
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One envpool id with its options.

    Attributes:
        name: name of the task.
        id: envpool id.
        instruction: what to do, in words.
        options: further options of ``envpool.make_gymnasium``.
        reusable: an environment can play more than one episode; False where only the first one
            after construction is right.
    """

    name: str
    id: str
    instruction: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    reusable: bool = True


class _Channel:
    """The C++ environments of one task, without envpool's Python layer around them.

    That layer builds trees and looks up its configuration in every call, which takes as long as
    stepping eight CartPoles. The arrays are the same, and nobody else writes to them.

    Args:
        env: what ``envpool.make_gymnasium`` returns.
        leaves: names of the observations.
        sparse_reward: see ``EnvPoolSimulator``.
    """

    def __init__(self, env: Any, leaves: Iterable[str], *, sparse_reward: bool) -> None:
        self._env = env
        self._sparse_reward = sparse_reward
        self._every = env.all_env_ids
        self._action_dtype = env._spec._action_spec[-1][0]
        names = [str(name) for name in env._state_keys]
        self._reward, self._done, self._cut = map(names.index, ("reward", "done", "trunc"))
        success = [name for name in ("info:success", "info:is_success") if name in names]
        self._success = names.index(success[0]) if success else None
        # ``obs``, or ``obs:robot.qpos`` for the leaf ``robot/qpos``
        found = [name for name in names if name.split(":")[0] == "obs"]
        bare = found[0] if len(found) == 1 else None
        self._obs = {leaf: names.index(bare or "obs:" + leaf.replace("/", ".")) for leaf in leaves}

    def send(self, actions: Array, envs: Array | None = None) -> None:
        """Start a step of ``envs`` [n] int32 (None: all) with ``actions`` [n, ...]."""
        envs = self._every if envs is None else envs
        actions = np.ascontiguousarray(actions, self._action_dtype)
        self._env._send([envs, envs, actions])  # environment, player, action

    def recv(self) -> Transition:
        """Wait for the step begun by ``send``."""
        raw = self._env._recv()
        rewards, truncated, success = raw[self._reward], raw[self._cut], None
        if self._success is not None:
            success = raw[self._success] > 0.5
            if self._sparse_reward:
                rewards = success.astype(np.float32)
        terminated = raw[self._done] > truncated  # done and not truncated
        return Transition(self._read_obs(raw), rewards, terminated, truncated, success)

    def reset(self, envs: Array) -> ArrayDict:
        """Start the next episode of ``envs`` [n] int32; returns observations [n, ...]."""
        self._env._reset(envs)
        return self._read_obs(self._env._recv())

    def _read_obs(self, raw: list[Array]) -> ArrayDict:
        return {name: _float32(raw[index]) for name, index in self._obs.items()}

    def close(self) -> None:
        """Stop the simulation threads and free the environments."""
        self._env.close()


@dataclass(eq=False)
class _Pool:
    """Environments of one task; ``size`` of them, in groups that are free or taken."""

    env: _Channel
    task_id: int
    first_group: int
    """Number of the first group over the life of the run."""
    seeds: list[int]
    starts: IntArray
    """[size] resets so far."""
    free: BoolArray
    """[size / G]."""
    last_used: int = 0

    @property
    def size(self) -> int:
        return len(self.seeds)


class EnvPoolSimulator:
    """The ``Simulator`` over one or more envpool ids with equal spaces.

    Args:
        tasks: what the rows can be; task ids index this sequence.
        num_envs: N.
        seed: of the derived streams.
        group_size: G rows that start alike.
        num_threads: simulation threads; None: all usable cores.
        resume: ``"replay"`` if stepping draws no random number, else ``"none"``.
        episode_seeds: [N] envpool seeds for the first episodes, instead of derived ones.
        sparse_reward: reward 1 on success and 0 otherwise, instead of the simulator's.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        num_envs: int,
        seed: int,
        group_size: int = 1,
        num_threads: int | None = None,
        resume: Resume = "none",
        episode_seeds: Sequence[int] | None = None,
        sparse_reward: bool = False,
    ) -> None:
        check_groups(num_envs, group_size)
        self.num_envs = num_envs
        self.task_names = tuple(task.name for task in tasks)
        self.instructions = tuple(task.instruction for task in tasks)
        self.resume: Resume = resume
        self._tasks = tuple(tasks)
        self._group_size = group_size
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._sparse_reward = sparse_reward
        raw_space, action_space = _make_spaces(tasks[0])
        leaves = flatten_space(raw_space)
        self.observation_space = spaces.Dict({k: float32_space(v) for k, v in leaves.items()})
        self.action_space: gymnasium.Space[Any] = action_space
        self._seed = seed
        self._groups_made = 0
        self._clock = 0
        self.reseed(seed, None if episode_seeds is None else np.asarray(episode_seeds, np.int64))

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """Close every pool; the next reset makes new ones with new seeds."""
        if episode_seeds is not None and episode_seeds.shape != (self.num_envs,):
            raise ValueError(
                f"episode_seeds has shape {episode_seeds.shape}, give ({self.num_envs},)"
            )
        self._seed = self._seed if seed is None else int(seed)
        self._episode_seeds = episode_seeds
        self._pools: list[_Pool] = []
        self._made_of_task = [0] * len(self._tasks)
        self._row_pool: list[_Pool | None] = [None] * self.num_envs
        self._row_task: IntArray = np.full(self.num_envs, -1, np.int64)
        self._row_env = np.zeros(self.num_envs, np.int32)
        self._layout: list[tuple[_Pool, IntArray]] = []
        self._single: _Channel | None = None
        self._in_flight: list[tuple[_Pool, IntArray]] = []

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """See ``Simulator.reset``; moves whole groups to environments of their new task."""
        moved = rows[(self._row_task[rows] != task_ids) | self._used_up(rows)]
        if moved.size:
            wanted = self._row_task.copy()
            wanted[rows] = task_ids
            self._move(moved, wanted)
        obs: ArrayDict = {}
        keys = np.zeros(rows.size, np.int64)
        for pool, positions in self._split(rows):
            envs = self._row_env[rows[positions]]
            pool.last_used = self._clock = self._clock + 1
            first = pool.env.reset(envs)
            pool.starts[envs] += 1
            groups = pool.first_group + envs.astype(np.int64) // self._group_size
            keys[positions] = (groups << 32) + pool.starts[envs]
            _scatter(obs, first, positions, rows.size)
        return obs, keys

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``."""
        if self._single is not None:
            if rows is None:
                self._single.send(actions)
            else:
                self._single.send(actions, self._row_env[rows])
            return
        every = np.arange(self.num_envs) if rows is None else rows
        self._in_flight = list(self._split(every))
        for pool, positions in self._in_flight:
            pool.env.send(actions[positions], self._row_env[every[positions]])

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        if self._single is not None:
            return self._single.recv()
        parts = [(pool.env.recv(), where) for pool, where in self._in_flight]
        count = sum(where.size for _, where in parts)
        merged: ArrayDict = {}
        obs: ArrayDict = {}
        for part, where in parts:
            fields = {
                "rewards": part.rewards,
                "terminated": part.terminated,
                "truncated": part.truncated,
            }
            if part.success is not None:
                fields["success"] = part.success
            _scatter(merged, fields, where, count)
            _scatter(obs, part.obs, where, count)
        return Transition(
            obs,
            merged["rewards"],
            merged["terminated"],
            merged["truncated"],
            merged.get("success"),
        )

    def _split(self, rows: IntArray) -> Iterator[tuple[_Pool, IntArray]]:
        """Per pool with any of ``rows`` [n]: the pool and the positions in ``rows`` it serves."""
        if rows.size == self.num_envs:
            yield from self._layout
            return
        position = np.full(self.num_envs, -1, np.int64)
        position[rows] = np.arange(rows.size)
        for pool, pool_rows in self._layout:
            served = position[pool_rows]
            served = served[served >= 0]
            if served.size:
                yield pool, served

    def _move(self, moved: IntArray, wanted: IntArray) -> None:
        """Give ``moved`` rows (whole groups) environments of their ``wanted`` [N] task."""
        size = self._group_size
        groups = np.unique(moved // size)
        if groups.size * size != moved.size:
            raise ValueError(
                f"the {size} rows of a group change their task together: reset all of them at once"
            )
        for group in groups:
            pool = self._row_pool[group * size]
            if pool is not None:
                pool.free[self._row_env[group * size] // size] = True
                self._row_task[group * size : (group + 1) * size] = -1
        for task_id in np.unique(wanted[groups * size]):
            self._place(groups[wanted[groups * size] == task_id], int(task_id))
        self._update_layout()

    def _place(self, groups: IntArray, task_id: int) -> None:
        """Take free environment groups of ``task_id``, and make a pool for what is missing."""
        slots = self._free_slots(task_id)[: groups.size]
        for pool, slot in slots:
            pool.free[slot] = False
        missing = groups.size - len(slots)
        if missing > 0:
            # At least an equal share, so that later changes of the mixture find free ones.
            share = -(-self.num_envs // (self._group_size * len(self._tasks)))
            count = missing if self._episode_seeds is not None else max(missing, share)
            seeds = self._new_seeds(task_id, count, groups[len(slots) :])
            self._close_unused(count * self._group_size)
            pool = self._add_pool(task_id, seeds)
            pool.free[:missing] = False
            slots += [(pool, slot) for slot in range(missing)]
        for group, (pool, slot) in zip(groups, slots, strict=True):
            span = slice(group * self._group_size, (group + 1) * self._group_size)
            self._row_task[span] = task_id
            self._row_env[span] = np.arange(self._group_size) + slot * self._group_size
            for row in range(span.start, span.stop):
                self._row_pool[row] = pool

    def _free_slots(self, task_id: int) -> list[tuple[_Pool, int]]:
        reusable = self._tasks[task_id].reusable
        return [
            (pool, int(slot))
            for pool in self._pools
            if pool.task_id == task_id
            for slot in np.flatnonzero(pool.free)
            if reusable or pool.starts[slot * self._group_size] == 0
        ]

    def _used_up(self, rows: IntArray) -> BoolArray:
        """[n] bool: rows whose environment has played its only episode."""
        if all(task.reusable for task in self._tasks):
            return np.zeros(rows.size, np.bool_)
        return np.array(
            [
                pool is not None
                and not self._tasks[pool.task_id].reusable
                and pool.starts[self._row_env[row]] > 0
                for row, pool in ((row, self._row_pool[row]) for row in rows)
            ],
            np.bool_,
        )

    def _new_seeds(self, task_id: int, count: int, groups: IntArray) -> list[int]:
        """Seeds of a new pool of ``count`` groups; the first ones will serve ``groups``."""
        if self._episode_seeds is not None:
            size = self._group_size
            return [
                int(self._episode_seeds[row])
                for group in groups
                for row in range(group * size, (group + 1) * size)
            ]
        serial = self._made_of_task[task_id]
        name = self._tasks[task_id].name
        seeds = [derive_seed(self._seed, "env", name, serial, slot) for slot in range(count)]
        return [seed for seed in seeds for _ in range(self._group_size)]

    def _close_unused(self, extra: int) -> None:
        """Close least recently used free pools until ``extra`` more environments fit."""
        unused = sorted((p for p in self._pools if p.free.all()), key=lambda p: p.last_used)
        total = sum(pool.size for pool in self._pools) + extra
        for pool in unused:
            if total <= MAX_ENVS_PER_ROW * self.num_envs:
                return
            total -= pool.size
            self._pools.remove(pool)
            pool.env.close()

    def _add_pool(self, task_id: int, seeds: list[int]) -> _Pool:
        groups = len(seeds) // self._group_size
        env = _make_pool(self._tasks[task_id], seeds, self._num_threads)
        leaves = self.observation_space.spaces
        pool = _Pool(
            env=_Channel(env, leaves, sparse_reward=self._sparse_reward),
            task_id=task_id,
            first_group=self._groups_made,
            seeds=seeds,
            starts=np.zeros(len(seeds), np.int64),
            free=np.ones(groups, np.bool_),
        )
        self._groups_made += groups
        self._made_of_task[task_id] += 1
        self._pools.append(pool)
        return pool

    def _update_layout(self) -> None:
        used = [pool for pool in self._pools if not pool.free.all()]
        self._layout = [
            (pool, np.array([r for r, p in enumerate(self._row_pool) if p is pool], np.int64))
            for pool in used
        ]
        whole = len(used) == 1 and used[0].size == self.num_envs
        in_order = whole and bool((self._row_env == np.arange(self.num_envs)).all())
        self._single = used[0].env if in_order else None

    def state_dict(self) -> dict[str, Any]:
        """Seeds and reset counts of every environment, and which row has which."""
        return {
            "seed": self._seed,
            "tasks": list(self.task_names),
            "groups_made": self._groups_made,
            "made_of_task": list(self._made_of_task),
            "clock": self._clock,
            "pools": [
                {
                    "task_id": pool.task_id,
                    "first_group": pool.first_group,
                    "last_used": pool.last_used,
                    "seeds": torch.tensor(pool.seeds, dtype=torch.int64),
                    "starts": torch.from_numpy(pool.starts.copy()),
                    "free": torch.from_numpy(pool.free.copy()),
                }
                for pool in self._pools
            ],
            "row_pool": torch.tensor([self._pool_index(row) for row in range(self.num_envs)]),
            "row_env": torch.from_numpy(self._row_env.copy()),
        }

    def _pool_index(self, row: int) -> int:
        pool = self._row_pool[row]
        assert pool is not None, "no reset yet"
        return self._pools.index(pool)

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """Make the same pools again and reset each environment as often as it was reset."""
        if list(state["tasks"]) != list(self.task_names):
            raise ValueError(
                f"this state is of the tasks {list(state['tasks'])}, this environment has "
                f"{list(self.task_names)}: make it with the same tasks"
            )
        self.reseed(int(state["seed"]), None)
        for saved in state["pools"]:
            pool = self._add_pool(int(saved["task_id"]), [int(s) for s in saved["seeds"]])
            pool.first_group = int(saved["first_group"])
            pool.last_used = int(saved["last_used"])
            pool.free = saved["free"].numpy().copy()
        self._groups_made = int(state["groups_made"])
        self._made_of_task = [int(count) for count in state["made_of_task"]]
        self._clock = int(state["clock"])
        self._row_env = state["row_env"].numpy().astype(np.int32)
        self._row_pool = [self._pools[int(index)] for index in state["row_pool"]]
        tasks = [self._pools[int(index)].task_id for index in state["row_pool"]]
        self._row_task = np.array(tasks, np.int64)
        self._update_layout()
        obs: ArrayDict = {}
        for pool, saved in zip(self._pools, state["pools"], strict=True):
            starts = saved["starts"].numpy()
            last = self._catch_up(pool, starts)
            rows = [r for r, p in enumerate(self._row_pool) if p is pool]
            envs = self._row_env[rows]
            values = {name: value[envs] for name, value in last.items()}
            _scatter(obs, values, np.array(rows, np.int64), self.num_envs)
        return obs

    def _catch_up(self, pool: _Pool, starts: IntArray) -> ArrayDict:
        """Reset environment e ``starts[e]`` times; returns the last observations [size, ...]."""
        last: ArrayDict = {}
        for k in range(int(starts.max(initial=0))):
            envs = np.flatnonzero(starts > k).astype(np.int32)
            _scatter(last, pool.env.reset(envs), envs, pool.size)
        pool.starts = starts.copy()
        return last

    def close(self) -> None:
        """Stop the simulation threads and free the environments."""
        for pool in self._pools:
            pool.env.close()
        self.reseed(self._seed, None)


def _scatter(target: ArrayDict, source: ArrayDict, where: Array, size: int) -> None:
    """``target[name][where] = source[name]``; missing targets are made, with ``size`` rows."""
    for name, value in source.items():
        if name not in target:
            target[name] = np.zeros((size, *value.shape[1:]), value.dtype)
        target[name][where] = value


def _float32(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float64 else value


def _make_spaces(task: Task) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    """Observation space and action space of a task."""
    envpool = _import_envpool()
    known = envpool.list_all_envs()
    if task.id not in known:
        raise ValueError(f"envpool has no id {task.id!r}{near_names(task.id, known)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds that lose precision in float32
        spec = envpool.make_spec(task.id, **task.options)
        return spec.gymnasium_observation_space, spec.gymnasium_action_space


def _make_pool(task: Task, seeds: list[int], num_threads: int) -> Any:
    envpool = _import_envpool()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds that lose precision in float32
        return envpool.make_gymnasium(
            task.id,
            num_envs=len(seeds),
            num_threads=min(num_threads, len(seeds)),
            env_seed=seeds,
            **task.options,
        )


def _import_envpool() -> Any:
    try:
        import envpool
    except ImportError as error:
        raise ValueError("envpool is not installed: pip install 'embodied-rl[envpool]'") from error
    return envpool


def make(
    *,
    id: str,
    num_envs: int,
    seed: int,
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    terminate_on_success: bool = True,
    episode_seeds: Sequence[int] | None = None,
    env_options: Mapping[str, Any] | None = None,
) -> SimulatorVectorEnv:
    """Any single-player envpool id.

    Args:
        id: envpool id, e.g. ``"CartPole-v1"``, ``"Pong-v5"``.
        num_envs: N rows.
        seed: of every row's stream.
        chunk_length: H actions per decision.
        max_episode_steps: time limit; None: that of the id.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows start alike.
        device: of observations, rewards and flags.
        num_threads: simulation threads; None: all usable cores.
        terminate_on_success: success ends an episode, where the simulator reports success.
        episode_seeds: [N] envpool seeds instead of derived ones.
        env_options: further options of the id (``{"stack_num": 4}``).

    Raises:
        ValueError: unknown id, or a number that does not fit.
    """
    options = dict(env_options or {})
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    simulator = EnvPoolSimulator(
        [Task(name=id, id=id, options=options)],
        num_envs=num_envs,
        seed=seed,
        group_size=group_size,
        num_threads=num_threads,
        resume="replay" if id in REPLAYABLE_IDS or id.startswith("MetaWorld/") else "none",
        episode_seeds=episode_seeds,
    )
    return SimulatorVectorEnv(  # the time limit is envpool's own
        simulator,
        chunk_length=chunk_length,
        autoreset=autoreset,
        group_size=group_size,
        terminate_on_success=terminate_on_success,
        device=device,
    )
