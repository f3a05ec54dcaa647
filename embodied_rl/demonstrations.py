"""Expert or policy episodes: collected to disk, and read back as imitation targets.

Every episode is a function of (run seed, task, attempt), so a collection that was interrupted goes
on with the attempts that are missing and ends with the same episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embodied_rl.algorithms.sft import Demonstrations
from embodied_rl.build import build_env, load_policy
from embodied_rl.config import ConfigError, TrainConfig
from embodied_rl.dataset import DatasetWriter, chunked_actions, load_dataset
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.evaluate import FIXED_STARTS
from embodied_rl.instructions import embed_instructions
from embodied_rl.registry import registry
from embodied_rl.rollout import start
from embodied_rl.seeding import derive_seed, torch_generator
from embodied_rl.types import TensorDict, VectorEnv

STEPS_PER_SECOND = {"atari": 15, "libero": 20, "maniskill": 20, "metaworld": 80}
"""By simulator (Meta-World: 5 physics steps of 2.5 ms, ManiSkill: 5 of 10 ms)."""
BATCH = 32
"""Episodes collected side by side."""

Act = Callable[[TensorDict, Tensor], Tensor]
"""(obs [N, ...], task ids [N]) -> actions [N, H, D]."""


def load_demonstrations(config: TrainConfig, folder: Path) -> Demonstrations:
    """(obs, action chunks, mask) of ``config.imitation``, collected first if no dataset is named.

    Raises:
        ConfigError: no expert, or a dataset whose observations or actions do not fit.
        DatasetError: the dataset folder cannot be read.
    """
    imitation = config.imitation
    assert imitation is not None
    if config.env.simulator.name == "vqa" and not imitation.dataset:
        return answered_questions(config, questions_per_task=imitation.episodes_per_task)
    if config.env.simulator.name == "mixture" and not imitation.dataset:
        return mixed_demonstrations(config, episodes_per_task=imitation.episodes_per_task)
    path = Path(imitation.dataset) if imitation.dataset else folder / "demonstrations"
    if not imitation.dataset:
        collect_dataset(
            config,
            path,
            episodes_per_task=imitation.episodes_per_task,
            action_noise=imitation.action_noise,
        )
    dataset = load_dataset(path)
    horizon = config.policy.resolved().get("horizon", 0) or config.env.chunk_length
    obs, actions, mask = chunked_actions(dataset, chunk_length=horizon)
    if config.env.instruction_embedding != "none":
        table = embed_instructions(dataset.tasks, kind=config.env.instruction_embedding)
        obs = {**obs, "instruction": table[dataset.task_index]}
    return obs, actions.float(), mask


def answered_questions(config: TrainConfig, *, questions_per_task: int) -> Demonstrations:
    """Questions of every task with their reference answers, turn by turn; nothing goes to disk.

    Returns:
        (obs [F, ...], answers uint8 [F, A], mask [F, 1]).

    Raises:
        ConfigError: noise on the actions, which are texts.
    """
    if config.imitation is not None and config.imitation.action_noise:
        raise ConfigError("imitation.action_noise is unused where actions are texts: set it to 0")
    rows = max(1, min(questions_per_task, BATCH))
    env = _single_steps(config, num_envs=rows)
    assert isinstance(env, SimulatorVectorEnv)
    simulator: Any = env.simulator
    parts: list[tuple[TensorDict, Tensor]] = []
    try:
        for task_id, name in enumerate(env.task_names):
            seeds = _seeds(config, name, questions_per_task + rows)
            for first in range(0, questions_per_task, rows):
                ids = torch.full((rows,), task_id)
                batch = torch.tensor(seeds[first : first + rows])
                obs = start(env, task_ids=ids, episode_seeds=batch).obs
                running = torch.arange(rows) < questions_per_task - first
                for turn in range(simulator.max_turns):
                    answers = simulator.reference_answers()
                    kept = {name: value[running] for name, value in obs.items()}
                    parts.append((kept, answers[running]))
                    if turn + 1 < simulator.max_turns:
                        obs, _, terminated, truncated, _ = env.step(answers)
                        running = running & ~(terminated | truncated)
    finally:
        env.close()
    obs = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
    answers = torch.cat([answers for _, answers in parts])
    return obs, answers, torch.ones((len(answers), 1), dtype=torch.bool)


def _single_steps(config: TrainConfig, *, num_envs: int) -> VectorEnv:
    """The environments of a run with rows that end for good and actions one at a time."""
    return build_env(
        config.env,
        seed=0,
        autoreset=False,
        num_envs=num_envs,
        group_size=1,
        chunk_length=1,
        normalize=False,
    )


def mixed_demonstrations(config: TrainConfig, *, episodes_per_task: int) -> Demonstrations:
    """Solved episodes of every task of a mixture, by experts and reference answers; in memory only.

    Returns:
        (obs [F, ...], chunks float32 [F, H, D + A], mask [F, H]).

    Raises:
        ConfigError: noise on the actions, or an expert that fails more often than not.
    """
    if config.imitation is not None and config.imitation.action_noise:
        raise ConfigError("imitation.action_noise is unused in a mixture: set it to 0")
    env = _single_steps(config, num_envs=episodes_per_task)
    parts: list[Demonstrations] = []
    try:
        for task_id, name in enumerate(env.task_names):
            ids = torch.full((episodes_per_task,), task_id)
            seeds = torch.tensor(_seeds(config, name, episodes_per_task))
            cursor = start(env, task_ids=ids, episode_seeds=seeds)
            parts.append(_mixed_episodes(env, cursor.obs, config.env.chunk_length))
    finally:
        env.close()
    obs = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    return obs, torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])


def _mixed_episodes(env: VectorEnv, obs: TensorDict, horizon: int) -> Demonstrations:
    """Every step of a solved episode per row, with the ``horizon`` actions from there on."""
    assert isinstance(env, SimulatorVectorEnv)
    simulator: Any = env.simulator
    steps: list[TensorDict] = []
    actions, valid, running = [], [], torch.ones(env.num_envs, dtype=torch.bool)
    solved = torch.zeros(env.num_envs, dtype=torch.bool)
    while bool(running.any()):
        steps.append(obs)
        actions.append(simulator.expert_actions(obs, env.task_ids))
        valid.append(running)
        obs, _, terminated, truncated, info = env.step(actions[-1])
        solved |= info["success"]
        running = running & ~(terminated | truncated)
    if int(solved.sum()) < env.num_envs / 2:
        raise ConfigError(
            f"the expert solves {int(solved.sum())} of {env.num_envs} episodes of "
            f"{env.task_names[int(env.task_ids[0])]}: give its environment more steps"
        )
    none = [torch.zeros_like(actions[0])] * (horizon - 1)
    over = [torch.zeros_like(running)] * (horizon - 1)
    chunks = torch.stack(actions + none).unfold(0, horizon, 1).movedim(-1, 2)  # [T, N, H, D + A]
    mask = torch.stack(valid + over).unfold(0, horizon, 1)
    kept = torch.stack(valid) & solved
    stacked = {name: torch.stack([step[name] for step in steps])[kept] for name in obs}
    return stacked, chunks[kept], mask[kept]


def steps_per_second(simulator: str) -> int:
    """Control steps in a second of the simulated world; 30 where that is not known."""
    return STEPS_PER_SECOND.get(simulator, 30)


def collect_dataset(
    config: TrainConfig,
    output: Path,
    *,
    episodes_per_task: int,
    policy_run: str = "",
    only_successes: bool = True,
    action_noise: float = 0.0,
) -> str:
    """Write ``episodes_per_task`` episodes of every task; returns one line about what was done.

    Args:
        config: environments, and the seed that the episodes derive from.
        output: dataset folder; episodes that are there already are kept and counted.
        episodes_per_task: episodes in all, per task.
        policy_run: run folder of the policy that acts, or empty for the scripted expert.
        only_successes: leave failed episodes out.
        action_noise: std of the noise on executed actions (DART); labels stay clean.

    Raises:
        ConfigError: no expert for this simulator, or one that fails too often.
    """
    writer = DatasetWriter(output, fps=steps_per_second(config.env.simulator.name))
    rows = max(1, min(episodes_per_task, BATCH))
    # One environment for the whole collection: starting simulators may take longer than episodes.
    env = build_env(
        replace(config.env, max_episode_steps=0),  # an expert may take longer than a policy may
        seed=0,
        autoreset=False,
        num_envs=rows,
        group_size=1,
        chunk_length=1,
        normalize=False,
    )
    try:
        act = _actor(config, env.task_names, policy_run)
        played = 0
        for task_id, name in enumerate(env.task_names):
            seeds = _seeds(config, name, 10 * episodes_per_task + 20)
            done = set(writer.seeds)
            wanted = episodes_per_task - len(done.intersection(seeds))
            queue = [seed for seed in seeds if seed not in done]
            while wanted > 0:
                batch, queue = queue[:rows], queue[rows:]
                if len(batch) < rows:
                    raise ConfigError(
                        f"{wanted} of {episodes_per_task} episodes of {name} are missing after "
                        f"{len(seeds)} attempts: collect with --all, or with --policy RUN"
                    )
                episodes = _play(env, act, task_id=task_id, seeds=batch, action_noise=action_noise)
                played += rows
                for seed, (obs, rest) in zip(batch, episodes, strict=True):
                    if wanted == 0 or (only_successes and not bool(rest["success"].any())):
                        continue
                    writer.add_episode(obs, **rest, task=env.instructions[task_id], seed=seed)
                    wanted -= 1
    finally:
        env.close()
    return (
        f"{writer.num_episodes} episodes, {writer.num_frames} frames in {output} "
        f"({played} played now)"
    )


def _seeds(config: TrainConfig, task: str, count: int) -> list[int]:
    """Environment seeds of the attempts on a task."""
    if config.env.simulator.name in FIXED_STARTS:
        first = derive_seed(config.seed, "demonstrations", task) % (2**30 - count)
        return list(range(first, first + count))  # neighbours start from different states
    return [derive_seed(config.seed, "demonstrations", task, attempt) for attempt in range(count)]


def _actor(config: TrainConfig, task_names: tuple[str, ...], policy_run: str) -> Act:
    """Who acts: a saved policy or the simulator's scripted expert."""
    if policy_run:
        policy, _, state = load_policy(policy_run)
        if state["normalizer"] is not None:
            raise ConfigError(
                f"{policy_run} sees normalised observations and a dataset holds raw ones: collect "
                "with a policy that was trained with env.normalize_obs=false"
            )
        generator = torch_generator(config.seed, "collect")

        def act(obs: TensorDict, task_ids: Tensor) -> Tensor:
            actions = policy.sample(obs, generator=generator).actions
            return actions if actions.ndim == 3 else actions.unsqueeze(1)

        return act
    simulator = config.env.simulator.name
    if simulator not in registry("experts").names():
        raise ConfigError(
            f"environment {simulator!r} has no scripted expert: give --policy RUN or a dataset"
        )
    expert = registry("experts").get(simulator)(task_names)
    return lambda obs, task_ids: expert(obs["state"], task_ids).unsqueeze(1)


def _play(
    env: VectorEnv, act: Act, *, task_id: int, seeds: list[int], action_noise: float
) -> list[tuple[TensorDict, TensorDict]]:
    """One episode per seed: (obs, {actions, rewards, success}), each leading with its length.

    A chunk is executed step by step, so that every frame has its own observation.
    """
    rows = len(seeds)
    obs = start(env, task_ids=torch.full((rows,), task_id), episode_seeds=torch.tensor(seeds)).obs
    running = torch.ones(rows, dtype=torch.bool)
    lengths = torch.zeros(rows, dtype=torch.int64)
    generators = [torch_generator(seed, "action_noise") for seed in seeds]
    steps: list[dict[str, Any]] = []
    chunk, position = act(obs, env.task_ids), 0
    while bool(running.any()):
        if position == chunk.shape[1]:
            chunk, position = act(obs, env.task_ids), 0
        actions = chunk[:, position]
        if actions.is_floating_point():
            actions = actions.clamp(-1, 1)
        position += 1
        executed = actions
        if action_noise:
            noise = [torch.randn(actions.shape[1:], generator=g) for g in generators]
            executed = actions + action_noise * torch.stack(noise)
        following, rewards, terminated, truncated, info = env.step(executed)
        steps.append(
            {"obs": obs, "actions": actions, "rewards": rewards, "success": info["success"]}
        )
        lengths += running.long()
        running &= ~(terminated | truncated)
        obs = following
    return [_episode(steps[:length], row) for row, length in enumerate(lengths.tolist())]


def _episode(steps: list[dict[str, Any]], row: int) -> tuple[TensorDict, TensorDict]:
    names = [name for name in steps[0]["obs"] if name != "instruction"]
    obs = {name: torch.stack([step["obs"][name][row] for step in steps]) for name in names}
    rest = {
        name: torch.stack([step[name][row] for step in steps])
        for name in ("actions", "rewards", "success")
    }
    return obs, rest
