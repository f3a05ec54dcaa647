"""What every environment must do, as checks that say what to mend.

A check takes ``build(**options) -> VectorEnv`` and raises ``CheckFailure``. The conformance tests
run them over the environments of this package, ``embodied-rl check-env`` over one's own.

Axes: N row, H action of a chunk.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from embodied_rl.envs import make_env
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.spaces import TextSpace
from embodied_rl.envs.vector import LocalSimulator, RowEnv, RowTransition, make_workers
from embodied_rl.registry import near_names, options_of, registry
from embodied_rl.types import VectorEnv

Build = Callable[..., VectorEnv]
"""Takes ``num_envs``, ``seed`` and any option of ``make_env``."""
EPISODE_METRICS = {"return", "length", "success_once", "success_at_end"}


COMMON_OPTIONS = {
    "chunk_length",
    "max_episode_steps",
    "autoreset",
    "group_size",
    "episode_seeds",
}


class CheckFailure(AssertionError):  # noqa: N818 (what a test calls it)
    """An environment that breaks a rule; the message says which, and what to mend."""


def require(condition: bool | np.bool_ | Tensor, message: str) -> None:
    """Raise CheckFailure unless ``condition``."""
    if not bool(condition):
        raise CheckFailure(message)


def random_actions(env: VectorEnv, *, steps: int, chunk: int = 1, seed: int = 0) -> Tensor:
    """[steps, N, ...] actions, or [steps, N, H, ...]; continuous ones also beyond the bounds.

    Texts are printable ASCII of any length.
    """
    generator = torch.Generator().manual_seed(seed)
    lead = (steps, env.num_envs) if chunk == 1 else (steps, env.num_envs, chunk)
    space = env.single_action_space
    if isinstance(space, spaces.Discrete):
        return torch.randint(0, int(space.n), lead, generator=generator)
    require(isinstance(space, spaces.Box), f"the action space is {space}: give a Box or a Discrete")
    if isinstance(space, TextSpace):
        letters = torch.randint(32, 127, (*lead, *space.shape), generator=generator)
        lengths = torch.randint(0, space.shape[0] + 1, (*lead, 1), generator=generator)
        return (letters * (torch.arange(space.shape[0]) < lengths)).to(torch.uint8)
    return torch.rand((*lead, *(space.shape or ())), generator=generator) * 2.4 - 1.2


def same(a: Any, b: Any) -> bool:
    """Equality of trees of tensors, bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def rows(tree: Any, index: Any) -> Any:
    """Some rows of every tensor of a tree."""
    return {k: rows(v, index) for k, v in tree.items()} if isinstance(tree, dict) else tree[index]


def check_spaces(build: Build) -> None:
    """Observations, rewards and flags have the shapes, types and names of ``VectorEnv``."""
    env = build(num_envs=4, seed=3)
    require(isinstance(env, VectorEnv), "it lacks attributes or methods of types.VectorEnv")
    require(
        env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP,
        "metadata['autoreset_mode'] is not SAME_STEP, which autoreset=True stands for",
    )
    step: Any = [env.reset()[0]]
    for actions in random_actions(env, steps=4):
        step = env.step(actions)
    obs, rewards, terminated, truncated, info = step
    for tree in (obs, info["final_obs"]):
        _check_observations(env, tree)
    require(rewards.shape == (4,) and rewards.dtype == torch.float32, "rewards are not float32 [N]")
    flags = {name: info[name] for name in ("success", "valid", "_final_obs", "_episode")}
    for name, flag in ({"terminated": terminated, "truncated": truncated} | flags).items():
        require(flag.shape == (4,) and flag.dtype == torch.bool, f"{name} is not bool [N]")
    for name in ("unit_mask", "step_rewards"):
        require(info[name].shape == (4, 1), f"info[{name!r}] is not [N, H]")
    require(info["num_env_steps"].tolist() == [1] * 4, "info['num_env_steps'] is not 1 per step")
    require(
        set(info["episode"]) == EPISODE_METRICS, f"info['episode'] is not {sorted(EPISODE_METRICS)}"
    )
    require(env.task_ids.shape == env.group_ids.shape == (4,), "task_ids or group_ids are not [N]")
    require(
        len(env.instructions) == len(env.task_names), "there is not one instruction for each task"
    )
    space = env.single_action_space
    if isinstance(space, spaces.Box) and space.is_bounded() and not isinstance(space, TextSpace):
        require(
            space == spaces.Box(-1, 1, space.shape), "a bounded action space is not offered as ±1"
        )
    env.close()


def _check_observations(env: VectorEnv, tree: Mapping[str, Tensor]) -> None:
    require(
        set(tree) == set(env.single_observation_space),
        f"observations are {sorted(tree)}, the space says {sorted(env.single_observation_space)}",
    )
    for name, value in tree.items():
        space = env.single_observation_space[name]
        shape, dtype = (env.num_envs, *(space.shape or ())), value.numpy(force=True).dtype
        require(
            value.shape == shape,
            f"observation {name!r} has shape {tuple(value.shape)}, its space says {shape}",
        )
        require(
            dtype == space.dtype and dtype != np.float64,
            f"observation {name!r} is {dtype}, its space {space.dtype}: use one type, not float64",
        )
        require(torch.isfinite(value.float()).all(), f"observation {name!r} has NaN or infinity")


def check_autoreset(build: Build) -> None:
    """Finished rows restart inside the step; metrics and flags are those of the old episode."""
    env = build(num_envs=4, seed=3, max_episode_steps=5)
    obs, _ = env.reset()
    returns, lengths = torch.zeros(4), torch.zeros(4, dtype=torch.int64)
    ended = torch.zeros(4, dtype=torch.bool)
    for actions in random_actions(env, steps=12):
        groups = env.group_ids
        obs, rewards, terminated, truncated, info = env.step(actions)
        done = terminated | truncated
        require(not (terminated & truncated).any(), "a step is terminated and truncated at once")
        for name in ("_final_obs", "_episode"):
            require(torch.equal(info[name], done), f"info[{name!r}] is not terminated | truncated")
        returns += rewards
        lengths += 1
        require((lengths <= 5).all(), "max_episode_steps=5 does not end an episode after 5 steps")
        episode = info["episode"]
        require(
            torch.allclose(episode["return"][done], returns[done], atol=1e-6),
            "info['episode']['return'] is not the sum of the rewards",
        )
        require(
            torch.equal(episode["length"][done], lengths[done]),
            "info['episode']['length'] is not the number of steps",
        )
        require(
            same(rows(info["final_obs"], ~done), rows(obs, ~done)),
            "final_obs of a running row is not its observation",
        )
        require(
            torch.equal(env.group_ids != groups, done),
            "group_ids change at other times than when an episode starts",
        )
        returns[done], lengths[done] = 0.0, 0
        ended |= done
    require(ended.all(), "a row did not end within its time limit")
    env.close()


def check_disabled(build: Build) -> None:
    """Without autoreset, finished rows stand still until ``reset_mask`` selects them."""
    env = build(num_envs=4, seed=3, max_episode_steps=3, autoreset=False)
    require(
        env.metadata["autoreset_mode"] is AutoresetMode.DISABLED,
        "metadata['autoreset_mode'] is not DISABLED with autoreset=False",
    )
    obs, _ = env.reset()
    alive = torch.ones(4, dtype=torch.bool)
    for actions in random_actions(env, steps=3):
        obs, _, terminated, truncated, info = env.step(actions)
        require(torch.equal(info["valid"], alive), "info['valid'] is not: this row was stepped")
        alive &= ~(terminated | truncated)
    require(not alive.any(), "max_episode_steps=3 does not end an episode after 3 steps")
    again, rewards, terminated, truncated, info = env.step(random_actions(env, steps=1)[0])
    require(same(again, obs), "the observation of a finished row changes")
    flags = info["valid"] | terminated | truncated | info["success"]
    require(not flags.any(), "a finished row has a flag set")
    require(
        rewards.tolist() == [0.0] * 4 and info["num_env_steps"].tolist() == [0] * 4,
        "a finished row has a reward or counts steps",
    )
    mask = torch.tensor([False, True, False, True])
    restarted, _ = env.reset(options={"reset_mask": mask})
    require(same(rows(restarted, ~mask), rows(obs, ~mask)), "reset touches rows outside its mask")
    require(not same(rows(restarted, mask), rows(obs, mask)), "reset does not restart its rows")
    moved, _, _, _, info = env.step(random_actions(env, steps=1, seed=5)[0])
    require(torch.equal(info["valid"], mask), "rows outside the mask of a reset are stepped")
    require(same(rows(moved, ~mask), rows(obs, ~mask)), "a finished row moves with the others")
    env.close()


def check_chunks(build: Build) -> None:
    """A decision of H actions equals H decisions."""
    options: dict[str, Any] = {"num_envs": 4, "seed": 3, "autoreset": False, "max_episode_steps": 7}
    single, chunked = build(**options), build(**options, chunk_length=4)
    require(same(single.reset()[0], chunked.reset()[0]), "the chunk length changes the start")
    for actions in random_actions(chunked, steps=3, chunk=4):
        parts: list[Any] = [single.step(actions[:, k]) for k in range(4)]
        obs, rewards, terminated, truncated, info = chunked.step(actions)
        require(same(obs, parts[-1][0]), "a chunk leads to another observation than its actions")
        rewards_of_steps = torch.stack([p[1] for p in parts], 1)
        require(
            torch.equal(info["step_rewards"], rewards_of_steps),
            "step_rewards are not those of the single steps",
        )
        require(torch.allclose(rewards, rewards_of_steps.sum(1)), "rewards are not their sum")
        for name, flag, index in (("terminated", terminated, 2), ("truncated", truncated, 3)):
            either = torch.stack([p[index] for p in parts]).any(0)
            require(torch.equal(flag, either), f"{name} of a chunk is not that of any of its steps")
        success = torch.stack([p[4]["success"] for p in parts]).any(0)
        require(torch.equal(info["success"], success), "success of a chunk is not that of any step")
        valid = torch.stack([p[4]["valid"] for p in parts], 1)
        require(torch.equal(info["unit_mask"], valid), "unit_mask is not which steps were taken")
        require(
            torch.equal(info["num_env_steps"], info["unit_mask"].sum(1)),
            "num_env_steps is not the number of steps taken",
        )
    single.close()
    chunked.close()


def check_groups(build: Build) -> None:
    """Rows with equal group ids start from equal observations."""
    env = build(num_envs=6, seed=3, group_size=3, max_episode_steps=3)
    starts: dict[int, Any] = {}
    obs, _ = env.reset()
    require(len(set(env.group_ids.tolist())) == 2, "6 rows of group_size=3 are not two groups")
    require(
        env.task_ids[0] == env.task_ids[1] == env.task_ids[2], "rows of a group have several tasks"
    )
    new = torch.ones(6, dtype=torch.bool)
    for actions in random_actions(env, steps=10):
        for row in torch.nonzero(new).flatten().tolist():
            group = int(env.group_ids[row])
            require(
                same(starts.setdefault(group, rows(obs, row)), rows(obs, row)),
                "rows with equal group ids start differently: seed them alike",
            )
        obs, _, terminated, truncated, _ = env.step(actions)
        new = terminated | truncated
    require(len(starts) >= 4, "episodes that start one after the other have the same group id")
    env.close()


def check_episodes_differ(build: Build) -> None:
    """Consecutive episodes start differently."""
    env = build(num_envs=6, seed=3)
    first, second, third = (env.reset()[0] for _ in range(3))
    require(
        not (same(first, second) or same(second, third) or same(first, third)),
        "every episode starts alike: use the seed in reset (or ignore this, if that is the task)",
    )
    env.close()


def _trajectory(env: VectorEnv, actions: Tensor) -> list[Any]:
    return [env.reset()[0], *(env.step(action)[:4] for action in actions)]


def check_seeds(build: Build) -> None:
    """Equal seeds and actions give equal episodes, bit for bit."""
    first, second = build(num_envs=4, seed=3), build(num_envs=4, seed=3)
    actions = random_actions(first, steps=40)
    require(
        same(_trajectory(first, actions), _trajectory(second, actions)),
        "equal seeds and actions give different episodes: draw only from the seed of reset",
    )
    first.close()
    second.close()


def check_episode_seeds(build: Build) -> None:
    """Permuting the seeds of the rows permutes the episodes."""
    order = torch.tensor([2, 0, 3, 1])
    seeds = torch.tensor([11, 12, 13, 14])
    first = build(num_envs=4, seed=0, episode_seeds=seeds.tolist())
    second = build(num_envs=4, seed=0, episode_seeds=seeds[order].tolist())
    tasks = torch.zeros(4, dtype=torch.int64)
    options = {"task_ids": tasks}
    a, b = first.reset(options=options)[0], second.reset(options=options)[0]
    for actions in random_actions(first, steps=20):
        require(same(rows(a, order), b), "a row depends on its position or on the other rows")
        a, b = first.step(actions)[0], second.step(actions[order])[0]
    first.close()
    second.close()


def check_resume(build: Build) -> None:
    """A restored environment goes on as the saved one does, bit for bit."""
    env, restored = build(num_envs=4, seed=3), build(num_envs=4, seed=3)
    obs: Any = {}
    for seed in (0, 1):  # what the first episode left behind must not matter
        obs, _ = env.reset()
        for actions in random_actions(env, steps=15, seed=seed):
            obs, *_ = env.step(actions)
    state = env.state_dict()
    if state is not None:
        require(
            same(restored.load_state_dict(state), obs),
            "a restored environment is in another state: an episode is no function of its seed "
            "and actions, or state_dict lacks something (resume='none' gives up on it)",
        )
        after = random_actions(env, steps=15, seed=1)
        pairs = ((env.step(action)[:4], restored.step(action)[:4]) for action in after)
        require(all(same(x, y) for x, y in pairs), "a restored environment goes on differently")
    env.close()
    restored.close()


CHECKS: dict[str, tuple[Callable[[Build], None], set[str]]] = {
    "spaces": (check_spaces, set()),
    "autoreset": (check_autoreset, {"max_episode_steps"}),
    "waiting": (check_disabled, {"max_episode_steps", "autoreset"}),
    "chunks": (check_chunks, {"chunk_length", "max_episode_steps", "autoreset"}),
    "groups": (check_groups, {"group_size", "max_episode_steps"}),
    "variety": (check_episodes_differ, set()),
    "seeds": (check_seeds, set()),
    "rows": (check_episode_seeds, {"episode_seeds"}),
    "resume": (check_resume, set()),
}
"""Name -> (check, options of ``make_env`` that it uses)."""


# --- one environment at a time ---------------------------------------------------------------


def check_row(make_row: Callable[[], RowEnv]) -> None:
    """A ``RowEnv`` by itself: shapes and types that workers would not notice."""
    env, twin = make_row(), make_row()
    require(
        isinstance(env.observation_space, spaces.Dict)
        and not any(isinstance(s, spaces.Dict) for s in env.observation_space.values()),
        "observation_space is not a flat Dict of named leaves",
    )
    require(
        len(env.task_names) == len(env.instructions) > 0,
        "task_names and instructions are not of one length",
    )
    space = env.action_space
    space.seed(0)
    for task_id in range(min(len(env.task_names), 3)):
        obs = env.reset(task_id=task_id, seed=5 + task_id)
        other = twin.reset(task_id=task_id, seed=5 + task_id)
        for _ in range(10):
            _check_row_obs(env, obs)
            require(
                all(np.array_equal(obs[name], other[name]) for name in obs),
                "two instances differ after the same task, seed and actions",
            )
            action = np.asarray(space.sample())
            step, copy = env.step(action), twin.step(action)
            require(isinstance(step, RowTransition), "step does not return a RowTransition")
            require(np.isfinite(step.reward), f"the reward is {step.reward}")
            if step.terminated or step.truncated:
                break
            obs, other = step.obs, copy.obs
    env.close()
    twin.close()


def _check_row_obs(env: RowEnv, obs: Mapping[str, Any]) -> None:
    require(
        set(obs) == set(env.observation_space),
        f"observations are {sorted(obs)}, the space says {sorted(env.observation_space)}",
    )
    for name, space in env.observation_space.items():
        value = np.asarray(obs[name])
        require(
            value.shape == space.shape,
            f"observation {name!r} has shape {value.shape}, its space says {space.shape}",
        )
        require(
            space.dtype is not None and np.can_cast(value.dtype, space.dtype, "same_kind"),
            f"observation {name!r} is {value.dtype}, its space {space.dtype}",
        )


def _check_workers(factory: str, options: Mapping[str, Any], local: Build) -> None:
    """Rows in two worker processes play what rows in this process do."""
    simulator = make_workers(factory, options, num_envs=3, num_workers=2, seed=3, timeout=60.0)
    one, many = local(num_envs=3, seed=3), SimulatorVectorEnv(simulator)
    try:
        actions = random_actions(one, steps=20)
        require(
            same(_trajectory(one, actions), _trajectory(many, actions)),
            "worker processes play other episodes than this process: something besides the seed "
            "decides (time, a global generator, files)",
        )
        require(simulator.worker_restarts == 0, "a worker process failed: see above")
    finally:
        one.close()
        many.close()


# --- the command -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Outcome of one check: ``ok``, ``fail`` or ``skip``, and what to mend or why."""

    check: str
    outcome: str
    detail: str = ""


def check_env(name: str, options: Mapping[str, Any]) -> Iterator[Finding]:
    """Run every check that fits on one environment.

    Args:
        name: a registered name, an id of gymnasium, or ``module:attr`` of a factory of ``RowEnv``
            or of a function like ``make_env`` (it then takes ``num_envs`` and ``seed``).
        options: of that environment.

    Raises:
        ValueError: no such environment.
    """
    build, known, more = _resolve(name, options)
    for check, (function, needed) in CHECKS.items():
        missing = sorted(needed - known)
        if missing:
            yield Finding(check, "skip", f"it takes no {' and no '.join(missing)}")
        else:
            yield _run(check, lambda function=function: function(build))
    for check, action in more.items():
        yield _run(check, action)


def _run(check: str, action: Callable[[], None]) -> Finding:
    try:
        action()
    except CheckFailure as failure:
        return Finding(check, "fail", str(failure))
    except Exception as error:
        return Finding(check, "fail", f"{type(error).__name__}: {error}")
    return Finding(check, "ok")


def _resolve(
    name: str, options: Mapping[str, Any]
) -> tuple[Build, set[str], dict[str, Callable[[], None]]]:
    """(build, options of ``make_env`` it takes, further checks)."""
    if name in registry("envs").names():
        return _registered(name, options)
    module, colon, attribute = name.partition(":")
    if not colon or "-v" in attribute:
        import gymnasium

        if not colon and name not in gymnasium.registry:
            hint = near_names(name, [*registry("envs").names(), *gymnasium.registry])
            raise ValueError(f"there is no environment {name!r}{hint} (or give module:attr)")
        return _registered("gymnasium", {"id": name, **options})
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error
    if "num_envs" in (known := set(options_of(target))):
        return lambda **given: target(**given, **options), known, {}

    def build(
        *, num_envs: int, seed: int, group_size: int = 1, episode_seeds: Any = None, **rest: Any
    ) -> VectorEnv:
        simulator = LocalSimulator(
            lambda: target(**options),
            num_envs=num_envs,
            seed=seed,
            group_size=group_size,
            episode_seeds=episode_seeds,
        )
        return SimulatorVectorEnv(simulator, group_size=group_size, **rest)

    more: dict[str, Callable[[], None]] = {
        "one row": lambda: check_row(lambda: target(**options)),
        "workers": lambda: _check_workers(name, options, build),
    }
    return build, COMMON_OPTIONS, more


def _registered(
    name: str, options: Mapping[str, Any]
) -> tuple[Build, set[str], dict[str, Callable[[], None]]]:
    known = set(options_of(registry("envs").get(name)))
    return lambda **given: make_env(name, **given, **options), known, {}
