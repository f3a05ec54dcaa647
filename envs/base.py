"""Episodes over a simulator: chunks, time limit, success, metrics, autoreset, exact resume.

A ``Simulator`` is the little that a simulator file has to supply, in numpy: start episodes in some
rows, step some rows. ``SimulatorVectorEnv`` turns it into the ``VectorEnv`` of
``embodied_rl.types``. One decision executes up to H actions ("sub-steps") open loop:

    rewards[n] = sum_h step_rewards[n, h] * unit_mask[n, h]
    success[n] = any_h success[n, h] * unit_mask[n, h]

A row leaves the chunk with the sub-step that terminates or truncates it; it is not stepped again
before its reset, which happens at the end of the chunk (SAME_STEP) or on request (DISABLED).

Axes: N row (environment), n rows of a partial call, H action of the chunk, D action dimension,
S sub-step since the last reset.

Exact resume needs no access to the simulator's memory: an episode is a deterministic function of
its start and of the actions since, so the running episode's actions are kept and replayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from embodied_rl.envs.spaces import ActionCodec, Array, ArrayDict
from embodied_rl.registry import near_names
from embodied_rl.types import TensorDict

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

Resume: TypeAlias = Literal["replay", "exact", "none"]

RESET_OPTIONS = ("reset_mask", "task_ids", "episode_seeds")


@dataclass(frozen=True, slots=True)
class Transition:
    """One sub-step of n rows, in the order in which they were sent.

    Attributes:
        obs: arrays [n, ...] that the simulator will not write to again.
        rewards: [n] float32.
        terminated, truncated: [n] bool.
        success: [n] bool, or None for a simulator that has no notion of success.
        dropped: [n] bool, the simulator lost the episode and did not take the step (a worker
            process died); None: no row did.
        restarts: worker processes that were restarted since the last sub-step.
        reward_terms: [n] float32 each, what the rewards are made of, by name; always the same
            names. None for a simulator whose rewards have no parts.
    """

    obs: ArrayDict
    rewards: Array
    terminated: BoolArray
    truncated: BoolArray
    success: BoolArray | None
    dropped: BoolArray | None = None
    restarts: int = 0
    reward_terms: ArrayDict | None = None


class Simulator(Protocol):
    """What a simulator file supplies; numpy, no episode bookkeeping, never resets by itself."""

    num_envs: int
    observation_space: spaces.Dict
    action_space: gymnasium.Space[Any]
    task_names: tuple[str, ...]
    instructions: tuple[str, ...]
    resume: Resume
    """How a state is restored. ``"replay"``: episodes are functions of their start and actions,
    ``state_dict`` tells the starts, ``load_state_dict`` goes there. ``"exact"``: the two save and
    restore the present state. ``"none"``: they are not called."""

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """Start the next episode of ``rows`` [n] on ``task_ids`` [n].

        Returns observations [n, ...] and start keys [n] int64: equal keys, equal initial states;
        a key never comes back for another start.
        """
        ...

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """Start a sub-step of ``rows`` [n] (None: all) with ``actions`` [n, ...]."""
        ...

    def recv(self) -> Transition:
        """Finish the sub-step begun by ``send``."""
        ...

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """Forget all streams; the next ``reset`` (of all rows) starts from new ones.

        ``seed`` None keeps the run's. ``episode_seeds`` [N] are the simulator's own seeds, one per
        row, instead of derived ones.
        """
        ...

    def state_dict(self) -> dict[str, Any] | None:
        """Tensors, numbers, strings, lists and dicts of them; None if it turns out impossible."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """Restore; returns observations [N, ...] of the restored starts or states."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


@runtime_checkable
class Renderer(Protocol):
    """A simulator that has pictures."""

    def render(self, row: int) -> npt.NDArray[np.uint8]:
        """[H, W, 3] picture of the present state of ``row``."""
        ...


@dataclass(slots=True)
class _Decision:
    """What one call of ``step`` did, before autoreset; all arrays lead with N."""

    rewards: Array
    step_rewards: Array
    unit_mask: Tensor
    valid: Tensor
    num_env_steps: Tensor
    terminated: BoolArray
    truncated: BoolArray
    success: Tensor
    reward_terms: ArrayDict


class SimulatorVectorEnv:
    """The ``VectorEnv`` over any ``Simulator``.

    Args:
        simulator: the rows to run; owned from here on, ``close`` closes it.
        chunk_length: H actions per decision; actions are [N, D] (or [N]) for 1, else [N, H, D].
        max_episode_steps: truncate after this many sub-steps; None leaves it to the simulator.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows share task and initial state.
        terminate_on_success: success ends the episode, as ``terminated``.
        device: where observations, rewards and flags are put.

    Info tensors may be shared between steps: read them, do not write to them.
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        chunk_length: int = 1,
        max_episode_steps: int | None = None,
        autoreset: bool = True,
        group_size: int = 1,
        terminate_on_success: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        n = simulator.num_envs
        _require_positive(chunk_length=chunk_length, group_size=group_size)
        if max_episode_steps is not None:
            _require_positive(max_episode_steps=max_episode_steps)
        check_groups(n, group_size)
        self.simulator = simulator
        self.num_envs = n
        self.chunk_length = chunk_length
        self.group_size = group_size
        self.max_episode_steps = max_episode_steps
        self.terminate_on_success = terminate_on_success
        self.device = torch.device(device)
        mode = AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED
        self.metadata: dict[str, Any] = {"autoreset_mode": mode}
        self.single_observation_space = simulator.observation_space
        self._codec = ActionCodec(simulator.action_space, n, chunk_length)
        self.single_action_space = self._codec.space
        self.task_names = simulator.task_names
        self._autoreset = autoreset
        self._start_bookkeeping()

    def _start_bookkeeping(self) -> None:
        n, h = self.num_envs, self.chunk_length
        groups = np.arange(n, dtype=np.int64) // self.group_size
        self._task_ids: IntArray = groups % len(self.task_names)
        self._group_ids: IntArray = groups.copy()
        self._length: IntArray = np.zeros(n, np.int64)
        self._return = np.zeros(n, np.float32)
        self._success_once: BoolArray = np.zeros(n, np.bool_)
        self._success_at_end: BoolArray = np.zeros(n, np.bool_)
        self._active: BoolArray = np.ones(n, np.bool_)
        self._rows: IntArray | None = None  # rows that are stepped; None: all of them
        self._obs: ArrayDict = {}
        self._pending: Array | None = None
        # Sub-steps as (tick, rows, actions); ticks before every row's last reset are dropped.
        self._journal: deque[tuple[int, IntArray | None, Array]] = deque()
        self._tick = 0
        self._reset_tick: IntArray = np.zeros(n, np.int64)
        # Of the decision at hand: episodes that the simulator lost, workers that it restarted.
        self._restarts = 0
        # What every ordinary step returns unchanged.
        self._false: BoolArray = np.zeros(n, np.bool_)
        self._dropped = self._false
        self._all_rows: IntArray = np.arange(n, dtype=np.int64)
        self._ones = self._tensor(np.ones(n, np.int64))
        self._all_true = self._tensor(np.ones(n, np.bool_))
        self._all_false = self._tensor(self._false)
        self._zeros = self._tensor(np.zeros(n, np.int64))
        self._full_mask = self._tensor(np.ones((n, h), np.bool_))
        self._no_episode = self._episode_info()
        self._publish_ids()

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instruction text of every task id."""
        return self.simulator.instructions

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """Start episodes, in all rows unless told otherwise.

        Args:
            seed: forget all random streams and start new ones; only with all rows.
            options: ``reset_mask`` [N] bool, ``task_ids`` [N] int64 (read where the mask is set),
                ``episode_seeds`` [N] int64 simulator seeds of the rows; only with all rows.

        Returns:
            Observations of all N rows, and an empty dict.

        Raises:
            ValueError: unknown option, wrong shape, unknown task id, a group with two tasks, or a
                first reset that leaves rows out.
        """
        options = options or {}
        for name in options:
            if name not in RESET_OPTIONS:
                hint = near_names(name, RESET_OPTIONS)
                raise ValueError(f"reset has no option {name!r}{hint}; options: {RESET_OPTIONS}")
        if self._pending is not None:
            raise ValueError("reset between send and recv: call recv first")
        rows = self._rows_to_reset(options.get("reset_mask"))
        episode_seeds = options.get("episode_seeds")
        fresh = seed is not None or episode_seeds is not None
        if (fresh or not self._obs) and rows.size != self.num_envs:
            raise ValueError(
                "the first reset, and any reset with a seed, starts all rows: leave reset_mask out"
            )
        self._assign_tasks(rows, options.get("task_ids"))
        if fresh:
            seeds = None if episode_seeds is None else self._vector("episode_seeds", episode_seeds)
            self.simulator.reseed(seed, seeds)
        self._obs = self._start(rows)
        return self._tensors(self._obs), {}

    def _rows_to_reset(self, mask: Tensor | Array | None) -> IntArray:
        if mask is None:
            return np.arange(self.num_envs, dtype=np.int64)
        rows = np.flatnonzero(self._vector("reset_mask", mask, np.bool_)).astype(np.int64)
        if rows.size == 0:
            raise ValueError("reset_mask selects no row: set at least one entry to True")
        return rows

    def _vector(self, name: str, value: Tensor | Array, dtype: npt.DTypeLike = np.int64) -> Array:
        array = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.shape != (self.num_envs,):
            raise ValueError(f"{name} has shape {array.shape}, give ({self.num_envs},)")
        return array.astype(dtype)

    def _assign_tasks(self, rows: IntArray, task_ids: Tensor | Array | None) -> None:
        if task_ids is None:
            return
        wanted = self._task_ids.copy()
        wanted[rows] = self._vector("task_ids", task_ids)[rows]
        bad = np.flatnonzero((wanted < 0) | (wanted >= len(self.task_names)))
        if bad.size:
            raise ValueError(
                f"row {bad[0]}: task id {wanted[bad[0]]} does not exist, "
                f"give 0 to {len(self.task_names) - 1}"
            )
        by_group = wanted.reshape(-1, self.group_size)
        mixed = np.flatnonzero((by_group != by_group[:, :1]).any(1))
        if mixed.size:
            first = mixed[0] * self.group_size
            raise ValueError(
                f"rows {first} to {first + self.group_size - 1} are one group of group_size="
                f"{self.group_size}: give them the same task id"
            )
        self._task_ids = wanted

    def _start(self, rows: IntArray) -> ArrayDict:
        """Begin episodes in ``rows``; returns observations of all rows as new arrays."""
        obs, keys = self.simulator.reset(rows, self._task_ids[rows])
        self._group_ids[rows] = keys
        self._length[rows] = 0
        self._return[rows] = 0.0
        self._success_once[rows] = False
        self._success_at_end[rows] = False
        self._active[rows] = True
        self._reset_tick[rows] = self._tick
        oldest = self._reset_tick.min()
        while self._journal and self._journal[0][0] < oldest:
            self._journal.popleft()
        self._update_rows()
        self._publish_ids()
        return merge(self._obs, rows, obs, self.num_envs)

    def _update_rows(self) -> None:
        self._rows = None if self._active.all() else np.flatnonzero(self._active)

    def _publish_ids(self) -> None:
        # Copies: a caller may keep the tensors of this step.
        self.task_ids = self._tensor(self._task_ids.copy())
        self.group_ids = self._tensor(self._group_ids.copy())

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, Tensor, dict[str, Any]]:
        """One decision: (obs, rewards [N], terminated [N], truncated [N], info)."""
        self.send(actions)
        return self.recv()

    def send(self, actions: Tensor) -> None:
        """Start the first sub-step.

        Raises:
            ValueError: wrong shape, NaN, an index outside the action space, or no reset before.
        """
        if not self._obs:
            raise ValueError("step before reset: call reset() once first")
        if self._pending is not None:
            raise ValueError("send twice: call recv before the next send")
        array = self._codec.decode(actions)
        self._send_rows(array if self.chunk_length == 1 else array[:, 0], self._rows)
        self._pending = array

    def _send_rows(self, actions: Array, rows: IntArray | None) -> None:
        """One sub-step of ``rows`` with their entries of ``actions`` [N, ...]."""
        if rows is not None:
            if rows.size == 0:
                return
            actions = actions[rows]
        if self.simulator.resume == "replay":
            self._journal.append((self._tick, rows, actions))
        self._tick += 1
        self.simulator.send(actions, rows)

    def recv(self) -> tuple[TensorDict, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Finish the decision begun by ``send``; see ``VectorEnv`` for ``info``."""
        if self._pending is None:
            raise ValueError("recv without send: call send(actions) first")
        whole = self.chunk_length == 1 and self._rows is None
        decision = self._recv_all() if whole else self._recv_chunk(self._pending)
        self._pending = None
        return self._finish(decision)

    def _recv_all(self) -> _Decision:
        """The common case, H = 1 and every row running, in as few operations as possible."""
        transition = self.simulator.recv()
        self._note_failures(self._all_rows, transition)
        self._obs = transition.obs
        terminated, solved = transition.terminated, transition.success
        success = self._all_false
        if solved is not None:
            # Copied, since a reset writes to the metrics while ``solved`` goes to the caller.
            success = self._tensor(solved)
            np.copyto(self._success_at_end, solved)
            np.logical_or(self._success_once, solved, out=self._success_once)
            if self.terminate_on_success:
                terminated = terminated | solved
        self._length += 1
        self._return += transition.rewards
        truncated = transition.truncated
        if transition.dropped is not None:
            truncated = truncated | transition.dropped
        if self.max_episode_steps is not None:
            truncated = truncated | (self._length >= self.max_episode_steps)
        return _Decision(
            rewards=transition.rewards,
            step_rewards=transition.rewards[:, None],
            unit_mask=self._full_mask,
            valid=self._all_true,
            num_env_steps=self._ones,
            terminated=terminated,
            truncated=truncated > terminated,  # truncated and not terminated
            success=success,
            reward_terms=transition.reward_terms or {},
        )

    def _recv_chunk(self, actions: Array) -> _Decision:
        """Up to H sub-steps; rows drop out where their episode ends."""
        n, h = self.num_envs, self.chunk_length
        step_rewards = np.zeros((n, h), np.float32)
        unit_mask = np.zeros((n, h), np.bool_)
        terminated, truncated, success = np.zeros((3, n), np.bool_)
        terms: ArrayDict = {}
        rows = self._active_rows()
        valid = self._active.copy()
        for k in range(h):
            if rows.size == 0:
                break
            if k > 0:
                self._send_rows(actions[:, k], None if rows.size == n else rows)
            transition = self.simulator.recv()
            self._note_failures(rows, transition)
            self._obs = merge(self._obs, rows, transition.obs, n)
            step_rewards[rows, k] = transition.rewards
            unit_mask[rows, k] = True
            for name, value in (transition.reward_terms or {}).items():
                terms.setdefault(name, np.zeros(n, np.float32))[rows] += value
            solved = transition.success if transition.success is not None else self._false[rows]
            success[rows] |= solved
            terminated[rows], truncated[rows] = self._advance(rows, transition, solved)
            rows = rows[~(terminated[rows] | truncated[rows])]
        return _Decision(
            rewards=step_rewards.sum(1),
            step_rewards=step_rewards,
            unit_mask=self._tensor(unit_mask),
            valid=self._tensor(valid),
            num_env_steps=self._tensor(unit_mask.sum(1)),
            terminated=terminated,
            truncated=truncated,
            success=self._tensor(success),
            reward_terms=terms,
        )

    def _active_rows(self) -> IntArray:
        return np.arange(self.num_envs) if self._rows is None else self._rows

    def _advance(
        self, rows: IntArray, transition: Transition, solved: BoolArray
    ) -> tuple[BoolArray, BoolArray]:
        """Metrics of one sub-step of ``rows`` [n]; returns (terminated, truncated) [n]."""
        self._length[rows] += 1
        self._return[rows] += transition.rewards
        self._success_once[rows] |= solved
        self._success_at_end[rows] = solved
        terminated = transition.terminated
        if self.terminate_on_success:
            terminated = terminated | solved
        truncated = transition.truncated
        if transition.dropped is not None:
            truncated = truncated | transition.dropped
        if self.max_episode_steps is not None:
            truncated = truncated | (self._length[rows] >= self.max_episode_steps)
        return terminated, truncated > terminated

    def _note_failures(self, rows: IntArray, transition: Transition) -> None:
        """Remember what the simulator lost, for the info of this decision."""
        self._restarts += transition.restarts
        if transition.dropped is not None and transition.dropped.any():
            self._dropped = self._dropped.copy()
            self._dropped[rows] |= transition.dropped

    def _finish(
        self, decision: _Decision
    ) -> tuple[TensorDict, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Episode ends, autoreset, and the way to torch."""
        done = decision.terminated | decision.truncated
        obs = self._tensors(self._obs)
        info: dict[str, Any] = {
            "success": decision.success,
            "valid": decision.valid,
            "num_env_steps": decision.num_env_steps,
            "unit_mask": decision.unit_mask,
            "step_rewards": self._tensor(decision.step_rewards),
            "final_obs": obs,
            "_final_obs": self._all_false,
            "episode": self._no_episode,
            "_episode": self._all_false,
            "dropped": self._all_false,
            "worker_restarts": self._zeros,
        }
        if decision.reward_terms:
            info["reward_terms"] = self._tensors(decision.reward_terms)
        ended = done.any()
        if ended:
            info["_final_obs"] = info["_episode"] = self._tensor(done)
            info["episode"] = self._episode_info()
        if self._restarts or self._dropped is not self._false:
            self._add_failures(info)
        if ended:
            if self._autoreset:
                self._obs = self._start(np.flatnonzero(done))
                obs = self._tensors(self._obs)
            else:
                self._active &= ~done
                self._update_rows()
        return (
            obs,
            self._tensor(decision.rewards),
            self._tensor(decision.terminated),
            self._tensor(decision.truncated),
            info,
        )

    def _add_failures(self, info: dict[str, Any]) -> None:
        """Lost episodes are no episodes; nothing of them is kept for a resume."""
        counts = np.zeros(self.num_envs, np.int64)
        counts[0] = self._restarts
        kept = self._tensor(~self._dropped)
        info["worker_restarts"] = self._tensor(counts)
        info["dropped"] = self._tensor(self._dropped)
        info["_episode"] = info["_episode"] & kept
        info["valid"] = info["valid"] & kept
        self._length[self._dropped] = 0
        self._reset_tick[self._dropped] = self._tick
        self._dropped, self._restarts = self._false, 0

    def _episode_info(self) -> TensorDict:
        return {
            "return": self._tensor(self._return.copy()),
            "length": self._tensor(self._length.copy()),
            "success_once": self._tensor(self._success_once.copy()),
            "success_at_end": self._tensor(self._success_at_end.copy()),
        }

    def _tensor(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def _tensors(self, arrays: ArrayDict) -> TensorDict:
        return {name: self._tensor(array) for name, array in arrays.items()}

    def state_dict(self) -> dict[str, Any] | None:
        """Exact state for a bitwise resume: the starts and actions of the running episodes.

        Returns None for a simulator that cannot be restored.
        """
        if self.simulator.resume == "none":
            return None
        if not self._obs:
            raise ValueError("state_dict before reset: call reset() once first")
        if self._pending is not None:
            raise ValueError("state_dict between send and recv: call recv first")
        simulator = self.simulator.state_dict()
        if simulator is None:
            return None
        state = {
            "simulator": simulator,
            "task_ids": torch.from_numpy(self._task_ids.copy()),
            "group_ids": torch.from_numpy(self._group_ids.copy()),
            "active": torch.from_numpy(self._active.copy()),
            "episode": {name: value.cpu() for name, value in self._episode_info().items()},
        }
        if self.simulator.resume == "replay":
            state["actions"] = torch.from_numpy(self._journal_actions())
        return state

    def _journal_actions(self) -> Array:
        """Actions of the running episodes, [N, S, ...], zero behind each row's length."""
        size = int(self._length.max())
        shape = (self.num_envs, size, *self._codec.shape)
        actions = np.zeros(shape, self._codec.dtype)
        filled = np.zeros(self.num_envs, np.int64)
        for tick, rows, values in self._journal:
            every = np.arange(self.num_envs) if rows is None else rows
            keep = self._reset_tick[every] <= tick
            index = every[keep]
            actions[index, filled[index]] = values[keep]
            filled[index] += 1
        assert np.array_equal(filled, self._length)
        return actions

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """Restore ``state_dict`` by replaying the running episodes; returns the observation.

        Takes about (resets so far + steps of the running episodes) of simulator time.

        Raises:
            ValueError: the state is of an environment with another number of rows.
        """
        if state["active"].shape[0] != self.num_envs:
            raise ValueError(
                f"this state has {state['active'].shape[0]} environments: "
                f"make the environment with num_envs={state['active'].shape[0]}"
            )
        episode = state["episode"]
        self._task_ids = state["task_ids"].numpy().copy()
        self._group_ids = state["group_ids"].numpy().copy()
        self._active = state["active"].numpy().copy()
        self._length = episode["length"].numpy().copy()
        self._return = episode["return"].numpy().copy()
        self._success_once = episode["success_once"].numpy().copy()
        self._success_at_end = episode["success_at_end"].numpy().copy()
        self._update_rows()
        self._publish_ids()
        self._obs = self.simulator.load_state_dict(state["simulator"])
        self._pending = None
        if self.simulator.resume == "replay":
            self._replay(state["actions"].numpy())
        return self._tensors(self._obs)

    def _replay(self, actions: Array) -> None:
        """Step every row through its ``_length`` first entries of ``actions`` [N, S, ...]."""
        self._journal.clear()
        self._tick = 0
        self._reset_tick = np.zeros(self.num_envs, np.int64)
        for k in range(actions.shape[1]):
            rows = np.flatnonzero(self._length > k)
            self._send_rows(actions[:, k], None if rows.size == self.num_envs else rows)
            obs = self.simulator.recv().obs
            self._obs = merge(self._obs, rows, obs, self.num_envs)

    def render(self, row: int) -> npt.NDArray[np.uint8]:
        """[H, W, 3] picture of the present state of ``row``.

        Raises:
            ValueError: this simulator has no pictures.
        """
        if not isinstance(self.simulator, Renderer):
            raise ValueError(f"{type(self.simulator).__name__} has no pictures")
        return self.simulator.render(row)

    def close(self) -> None:
        """Release the simulator."""
        self.simulator.close()


def merge(old: ArrayDict, rows: IntArray, new: ArrayDict, num_envs: int) -> ArrayDict:
    """``old`` [N, ...] with ``rows`` [n] replaced by ``new`` [n, ...], as new arrays.

    ``old`` may be empty when ``rows`` is all of them, in order.
    """
    if rows.size == num_envs:
        return new
    merged = {}
    for name, value in new.items():
        merged[name] = old[name].copy()
        merged[name][rows] = value
    return merged


def check_groups(num_envs: int, group_size: int) -> None:
    """Raise ValueError unless ``group_size`` divides ``num_envs``."""
    if num_envs % group_size:
        low = max(group_size, num_envs - num_envs % group_size)
        raise ValueError(
            f"num_envs={num_envs} is not a multiple of group_size={group_size}: use num_envs={low}"
        )


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
