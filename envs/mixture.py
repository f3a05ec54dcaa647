"""``mixture``: rows of one batch belong to different environments, e.g. questions and a robot arm.

A task id belongs to one of the parts (``"reach/reach-0"``, ``"vqa/shapes_vqa"``); a row is stepped
by the part that its present task belongs to. Observations are the union of those of the parts,
zeros where a row's part has none of that name, and ``kind`` float32 [P], the one-hot of the part.
Actions are flat float32 [D + A]: D numbers in [-1, 1] for parts with a continuous action space (a
part with fewer takes the first ones), then A bytes (0 to 255) for parts whose actions are texts.
``info["reward_terms"]`` has the reward of each part's rows under its name.

Axes: N row, n rows of a partial call, P part, D numbers and A bytes of an action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from embodied_rl.envs import make_env
from embodied_rl.envs.base import (
    ArrayDict,
    BoolArray,
    IntArray,
    Resume,
    Simulator,
    SimulatorVectorEnv,
    Transition,
)
from embodied_rl.envs.spaces import Array, MixedSpace, TextSpace

KIND = "kind"


@dataclass(frozen=True)
class Part:
    """One of the mixed environments.

    Attributes:
        name: as it is registered.
        simulator: with as many rows as the mixture, of which it steps its own.
        first_task: id of its first task in the mixture.
        max_steps: of an episode; None: the simulator's own.
    """

    name: str
    simulator: Simulator
    first_task: int
    max_steps: int | None


def make(
    *,
    num_envs: int,
    seed: int,
    parts: Mapping[str, Mapping[str, Any]],
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    episode_seeds: Sequence[int] | None = None,
) -> SimulatorVectorEnv:
    """Environments mixed row by row; rows start with the tasks of all parts in turn.

    Args:
        num_envs: N rows.
        seed: of every row's stream.
        parts: options of each registered environment by its name, e.g.
            ``{"reach": {"max_episode_steps": 12}, "vqa": {"tasks": ["shapes_vqa"]}}``.
        chunk_length: H actions per decision; a text is the first of them.
        max_episode_steps: time limit of all parts; None: that of each part.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows share task and start.
        device: of observations, rewards and flags.
        episode_seeds: [N] seeds of the rows instead of derived ones.

    Raises:
        ValueError: fewer than two parts, an environment that does not end episodes with success, an
            action space that is neither a flat Box nor text, or observations of one name and
            different shapes.
    """
    if len(parts) < 2:
        raise ValueError(f"parts={dict(parts)}: a mixture takes two environments or more")
    built, first_task = [], 0
    for name, options in parts.items():
        env = make_env(
            name,
            num_envs=num_envs,
            seed=seed,
            autoreset=False,
            group_size=group_size,
            episode_seeds=episode_seeds,
            **options,
        )
        if not isinstance(env, SimulatorVectorEnv) or not env.terminate_on_success:
            raise ValueError(f"{name!r} cannot be mixed: its episodes must end with success")
        built.append(Part(name, env.simulator, first_task, env.max_episode_steps))
        first_task += len(env.task_names)
    return SimulatorVectorEnv(
        MixtureSimulator(built, num_envs=num_envs),
        chunk_length=chunk_length,
        max_episode_steps=max_episode_steps,
        autoreset=autoreset,
        group_size=group_size,
        device=device,
    )


class MixtureSimulator:
    """N rows, each of which is one of P environments at a time; see the module's docstring.

    Args:
        parts: with N rows each.
        num_envs: N.
    """

    resume: Resume = "replay"

    def __init__(self, parts: Sequence[Part], *, num_envs: int) -> None:
        self.parts = tuple(parts)
        self.num_envs = num_envs
        self.observation_space = joint_space(self.parts)
        self.numbers = max(_numbers(part) for part in self.parts)
        """D of the module's docstring."""
        self.action_space: spaces.Space[Any] = MixedSpace(
            numbers=self.numbers, text_bytes=max(_text_bytes(part) for part in self.parts)
        )
        self.task_names = tuple(f"{p.name}/{task}" for p in self.parts for task in _tasks(p))
        self.instructions = tuple(text for p in self.parts for text in p.simulator.instructions)
        if any(part.simulator.resume == "none" for part in self.parts):
            self.resume = "none"
        starts = [part.first_task for part in self.parts[1:]]
        self._part_of_task = np.searchsorted(starts, np.arange(len(self.task_names)), side="right")
        self._kinds: IntArray = np.zeros(num_envs, np.int64)
        self._steps: IntArray = np.zeros(num_envs, np.int64)
        self._replayed: IntArray = np.zeros(num_envs, np.int64)
        self._present: ArrayDict = {}

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """See ``Simulator.reseed``."""
        for part in self.parts:
            part.simulator.reseed(seed, episode_seeds)

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """See ``Simulator.reset``."""
        kinds = self._part_of_task[task_ids]
        self._kinds[rows] = kinds
        self._steps[rows] = self._replayed[rows] = 0
        obs, keys = self._empty(rows), np.zeros(rows.size, np.int64)
        for number, part in enumerate(self.parts):
            of_part = np.flatnonzero(kinds == number)
            if of_part.size:
                theirs = task_ids[of_part] - part.first_task
                found, key = part.simulator.reset(rows[of_part], theirs)
                _fill(obs, of_part, found)
                keys[of_part] = key * len(self.parts) + number  # no two parts share a start
        return obs, keys

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``."""
        rows = np.arange(self.num_envs) if rows is None else rows
        # What a part restored with its present state must not be stepped through again.
        again = self._replayed[rows] > 0
        self._replayed[rows[again]] -= 1
        self._again = np.flatnonzero(again)
        self._sent: list[IntArray] = []
        for number, part in enumerate(self.parts):
            of_part = np.flatnonzero((self._kinds[rows] == number) & ~again)
            self._sent.append(of_part)
            if of_part.size:
                part.simulator.send(self._action_of(part, actions[of_part]), rows[of_part])
        self._rows = rows
        self._steps[rows[~again]] += 1

    def _action_of(self, part: Part, actions: Array) -> Array:
        """Flat actions [n, D + A] as the part takes them."""
        space, numbers = part.simulator.action_space, self.numbers
        if isinstance(space, TextSpace):
            data = actions[:, numbers : numbers + _text_bytes(part)]
            return data.round().clip(0, 255).astype(np.uint8)
        assert isinstance(space, spaces.Box)
        values = actions[:, : _numbers(part)].clip(-1, 1)
        if not space.is_bounded():
            return values
        return (space.low + (values + 1) * (space.high - space.low) / 2).astype(np.float32)

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        rows, count = self._rows, self._rows.size
        obs, rewards = self._empty(rows), np.zeros(count, np.float32)
        restored = {name: value[rows[self._again]] for name, value in self._present.items()}
        _fill(obs, self._again, restored)
        terms = {part.name: np.zeros(count, np.float32) for part in self.parts}
        terminated, truncated, success, dropped = np.zeros((4, count), np.bool_)
        restarts = 0
        for part, of_part in zip(self.parts, self._sent, strict=True):
            if not of_part.size:
                continue
            step = part.simulator.recv()
            _fill(obs, of_part, step.obs)
            rewards[of_part] = terms[part.name][of_part] = step.rewards
            terminated[of_part] = step.terminated
            truncated[of_part] = step.truncated | self._out_of_time(part, rows[of_part])
            success[of_part] = False if step.success is None else step.success
            dropped[of_part] = False if step.dropped is None else step.dropped
            restarts += step.restarts
        return Transition(
            obs=obs,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            success=success,
            dropped=dropped if dropped.any() else None,
            restarts=restarts,
            reward_terms=terms,
        )

    def _out_of_time(self, part: Part, rows: IntArray) -> BoolArray:
        if part.max_steps is None:
            return np.zeros(rows.size, np.bool_)
        return self._steps[rows] >= part.max_steps

    def _empty(self, rows: IntArray) -> ArrayDict:
        """Zeros for ``rows`` [n] in every observation, and their kind."""
        obs = {
            name: np.zeros((rows.size, *(space.shape or ())), space.dtype)
            for name, space in self.observation_space.items()
        }
        obs[KIND][np.arange(rows.size), self._kinds[rows]] = 1
        return obs

    def state_dict(self) -> dict[str, Any] | None:
        """See ``Simulator.state_dict``."""
        states = {part.name: part.simulator.state_dict() for part in self.parts}
        if any(state is None for state in states.values()):
            return None
        own = {"kinds": self._kinds, "steps": self._steps}
        return states | {name: torch.from_numpy(value.copy()) for name, value in own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """See ``Simulator.load_state_dict``; parts that restore their present state are there."""
        self._kinds = state["kinds"].numpy().copy()
        steps = state["steps"].numpy()
        every = np.arange(self.num_envs)
        obs = self._empty(every)
        exact = np.zeros(self.num_envs, np.bool_)
        for number, part in enumerate(self.parts):
            found = part.simulator.load_state_dict(state[part.name])
            of_part = np.flatnonzero(self._kinds == number)
            _fill(obs, of_part, {name: value[of_part] for name, value in found.items()})
            exact[of_part] = part.simulator.resume == "exact"
        self._present = obs
        self._replayed = np.where(exact, steps, 0)
        self._steps = np.where(exact, steps, 0)
        return obs

    def expert_actions(self, obs: Mapping[str, torch.Tensor], task_ids: torch.Tensor) -> Any:
        """float32 [N, D + A]: what the experts of the parts do, and the reference answers.

        Args:
            obs: present observations of all rows.
            task_ids: [N] int64.
        """
        from embodied_rl.registry import registry

        actions = torch.zeros(self.num_envs, *(self.action_space.shape or ()))
        numbers = self.numbers
        for number, part in enumerate(self.parts):
            rows = torch.from_numpy(self._kinds == number)
            simulator: Any = part.simulator
            if not bool(rows.any()):
                continue
            if _text_bytes(part):
                answers = simulator.reference_answers()[rows].float()
                actions[rows, numbers : numbers + answers.shape[1]] = answers
            else:
                expert = registry("experts").get(part.name)(_tasks(part))
                done = expert(obs["state"][rows], task_ids[rows] - part.first_task)
                actions[rows, : done.shape[1]] = done.float()
        return actions

    def close(self) -> None:
        """Release every part."""
        for part in self.parts:
            part.simulator.close()


def joint_space(parts: Sequence[Part]) -> spaces.Dict:
    """Union of the observation spaces, and ``kind``.

    Raises:
        ValueError: two parts have different observations of one name.
    """
    leaves: dict[str, spaces.Space[Any]] = {KIND: spaces.Box(0, 1, (len(parts),), np.float32)}
    for part in parts:
        for name, space in part.simulator.observation_space.items():
            other = leaves.setdefault(name, space)
            if (other.shape, other.dtype) != (space.shape, space.dtype):
                raise ValueError(
                    f"{part.name!r} has an observation {name!r} of shape {space.shape}, another "
                    f"part one of {other.shape}: choose options that make them equal"
                )
    return spaces.Dict(leaves)


def _tasks(part: Part) -> tuple[str, ...]:
    return part.simulator.task_names


def _text_bytes(part: Part) -> int:
    space = part.simulator.action_space
    return space.shape[0] if isinstance(space, TextSpace) else 0


def _numbers(part: Part) -> int:
    """Numbers of an action, 0 for texts.

    Raises:
        ValueError: another action space.
    """
    space = part.simulator.action_space
    if isinstance(space, TextSpace):
        return 0
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{part.name!r} cannot be mixed: its actions are {space}, no flat Box")
    return space.shape[0]


def _fill(obs: ArrayDict, rows: IntArray, found: Mapping[str, Array]) -> None:
    for name, value in found.items():
        obs[name][rows] = value
