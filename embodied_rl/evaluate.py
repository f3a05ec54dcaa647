"""Honest evaluation: one policy on a manifest of (task, seed) pairs, in fresh environments.

A manifest is a pure function of (tasks, number of episodes, split). ``tune`` and ``test`` seeds lie
in disjoint ranges that training never draws from, every episode starts from its own seed in
environments that training never touches, and greedy and sampled actions see the same initial ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from embodied_rl import rollout
from embodied_rl.build import build_env, load_policy
from embodied_rl.config import EnvConfig, TrainConfig, evaluation_env, to_plain
from embodied_rl.registry import registry
from embodied_rl.seeding import derive_seed, torch_generator
from embodied_rl.statistics import wilson_interval
from embodied_rl.types import Policy, TensorDict, VectorEnv

Split = Literal["tune", "test"]
Mode = Literal["greedy", "sampled"]
Act = Callable[[VectorEnv, TensorDict, torch.Generator], torch.Tensor]
"""Actions [N, ...] for the observations of an environment."""
BLOCK = 50
"""Episodes played side by side; a constant, because sampling noise is drawn per block and step."""
SPLIT_RANGES: dict[str, int] = {"tune": 2**30, "test": 2**30 + 2**29}
"""First seed of each split; a range holds 2^29 seeds. Training seeds stay below 2^30."""
FIXED_STARTS = ("libero", "vqa")
"""Simulators that start from a short list of states, seed s from number s modulo its length."""
PACKAGES = {
    "atari": ("ale-py", "envpool"),
    "envpool": ("envpool",),
    "libero": ("hf-libero", "robosuite", "mujoco"),
    "maniskill": ("mani-skill", "sapien"),
    "metaworld": ("envpool", "metaworld", "mujoco"),
    "vqa": ("matplotlib", "numpy", "pillow"),
}
"""Whose versions, beside gymnasium's, are part of a simulator's fingerprint."""


@dataclass(frozen=True)
class Manifest:
    """Which episodes are played: task names and simulator seeds, [E] each."""

    split: Split
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """Identity of the episodes; equal hashes mean paired comparisons are allowed."""
        text = json.dumps([self.split, self.tasks, self.seeds])
        return hashlib.sha256(text.encode()).hexdigest()


def make_manifest(
    task_names: Sequence[str], *, episodes: int, split: Split, simulator: str = ""
) -> Manifest:
    """``episodes`` (task, seed) pairs, tasks in turn.

    Args:
        task_names: of the environment.
        episodes: how many.
        split: ``tune`` or ``test`` seeds.
        simulator: registered name of the environment. One of ``FIXED_STARTS`` gets consecutive
            seeds for each task, so that M episodes of a task use M different states of its list
            (of a longer list; of a shorter one each about equally often).

    Raises:
        ValueError: no episodes.
    """
    if episodes < 1:
        raise ValueError(f"evaluation needs at least one episode, got {episodes}")
    tasks = tuple(task_names[index % len(task_names)] for index in range(episodes))
    if simulator in FIXED_STARTS:
        first = SPLIT_RANGES[split]
        rounds = tuple(first + index // len(task_names) for index in range(episodes))
        return Manifest(split=split, tasks=tasks, seeds=rounds)
    seeds = tuple(
        SPLIT_RANGES[split] + derive_seed(0, "manifest", split, task, index) % 2**29
        for index, task in enumerate(tasks)
    )
    return Manifest(split=split, tasks=tasks, seeds=seeds)


def evaluate(
    policy: Policy,
    env_config: EnvConfig,
    manifest: Manifest,
    *,
    mode: Mode,
    normalizer: dict[str, Any] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Play every episode of a manifest once.

    Args:
        policy: sampled with its own noise (seeded by the manifest) or greedily.
        env_config: environments as in training; group size is 1 here.
        manifest: episodes.
        mode: ``greedy`` or ``sampled``.
        normalizer: state of the observation statistics the policy was trained with.
        on_batch: called with the number of episodes just finished.

    Returns:
        A record with ``success_rate``, ``ci_low``, ``ci_high`` (95 % Wilson), ``return_mean``,
        ``length_mean``, ``episodes``, ``mode``, ``manifest_sha256``, ``fingerprint``, ``per_task``
        and ``successes`` (a string of 0 and 1 in manifest order, for paired comparisons); for Atari
        ``human_normalized``.
    """

    def act(env: VectorEnv, obs: TensorDict, generator: torch.Generator) -> torch.Tensor:
        output = policy.sample(obs, deterministic=mode == "greedy", generator=generator)
        return output.actions

    device = policy_device(policy)
    blocks = _blocks(env_config, manifest, normalizer, device)
    return _play(blocks, act, env_config, manifest, mode=mode, device=device, on_batch=on_batch)


def evaluate_expert(
    env_config: EnvConfig,
    manifest: Manifest,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """``evaluate`` of the simulator's scripted expert, which acts at every simulator step.

    Raises:
        ValueError: the simulator has no expert.
    """
    name = env_config.simulator.name
    if name not in registry("experts").names():
        names = ", ".join(registry("experts").names())
        raise ValueError(f"environment {name!r} has no scripted expert (these have: {names})")
    experts: dict[tuple[str, ...], Any] = {}

    def act(env: VectorEnv, obs: TensorDict, generator: torch.Generator) -> torch.Tensor:
        if env.task_names not in experts:
            experts[env.task_names] = registry("experts").get(name)(env.task_names)
        return experts[env.task_names](obs["state"], env.task_ids)

    single, device = replace(env_config, chunk_length=1), torch.device("cpu")
    blocks = _blocks(single, manifest, None, device)
    return _play(blocks, act, single, manifest, mode="greedy", device=device, on_batch=on_batch)


def _play(
    blocks: Iterator[tuple[int, VectorEnv]],
    act: Act,
    env_config: EnvConfig,
    manifest: Manifest,
    *,
    mode: Mode,
    device: torch.device,
    on_batch: Callable[[int], None] | None,
) -> dict[str, Any]:
    """The record of ``evaluate`` for whoever acts."""
    results: list[dict[str, torch.Tensor]] = []
    digest, by_task = hashlib.sha256(), {task: hashlib.sha256() for task in manifest.tasks}
    for start, env in blocks:
        tasks = manifest.tasks[start : start + env.num_envs]
        seeds = torch.tensor(manifest.seeds[start : start + env.num_envs])
        cursor = rollout.start(env, task_ids=_task_ids(env, tasks), episode_seeds=seeds)
        for name in sorted(cursor.obs):
            values = cursor.obs[name].cpu()
            digest.update(values.contiguous().numpy().tobytes())
            for row, task in enumerate(tasks):
                by_task[task].update(values[row].contiguous().numpy().tobytes())
        generator = torch_generator(0, "evaluate", manifest.split, start, device=device)
        results.append(play_episodes(env, act, cursor, generator=generator))
        if on_batch is not None:
            on_batch(len(tasks))
    merged = {name: torch.cat([r[name] for r in results]) for name in results[0]}
    record = _record(merged, manifest, mode, fingerprint(env_config, digest.hexdigest()))
    for task, initial in by_task.items():
        record["per_task"][task]["fingerprint"] = fingerprint(env_config, initial.hexdigest())
    return record | extra_scores(env_config, record["return_mean"])


def extra_scores(env_config: EnvConfig, return_mean: float) -> dict[str, float]:
    """What the kind ``scores`` of the registry has for this environment, e.g. for Atari."""
    simulator = env_config.simulator
    if simulator.name not in registry("scores").names():
        return {}
    return registry("scores").get(simulator.name)(simulator.resolved(), return_mean)


def policy_device(policy: Policy) -> torch.device:
    """Where the policy's parameters are; the CPU for a policy without parameters."""
    parameters = policy.parameters() if isinstance(policy, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


def play_episodes(
    env: VectorEnv, act: Act, cursor: rollout.Cursor, *, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """One episode per row: ``success``, ``return``, ``length``, [N] each on the CPU, in order."""
    running = torch.ones(env.num_envs, dtype=torch.bool)
    results = {
        "success": torch.zeros(env.num_envs, dtype=torch.bool),
        "return": torch.zeros(env.num_envs),
        "length": torch.zeros(env.num_envs, dtype=torch.int64),
    }
    names = {"success": "success_once", "return": "return", "length": "length"}
    while bool(running.any()):
        with torch.no_grad():
            actions = act(env, cursor.obs, generator)
        cursor.obs, _, terminated, truncated, info = env.step(actions)
        ended = (terminated | truncated).cpu() & running
        for name, source in names.items():
            results[name][ended] = info["episode"][source].cpu()[ended].to(results[name].dtype)
        running &= ~ended
    return results


def fingerprint(env_config: EnvConfig, initial_obs_hash: str) -> str:
    """Hash of versions, environment options and every initial observation of the manifest."""
    versions = {}
    for package in ("gymnasium", *PACKAGES.get(env_config.simulator.name, ())):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    plain = to_plain(replace(env_config, num_envs=1, num_threads=0, group_size=1))
    del plain["num_shards"]
    text = json.dumps([versions, plain, initial_obs_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _blocks(
    config: EnvConfig,
    manifest: Manifest,
    normalizer: dict[str, Any] | None,
    device: torch.device,
) -> Iterator[tuple[int, VectorEnv]]:
    """(first episode, environment) of every block.

    Blocks of one size share an environment: starting simulators may take longer than a block.
    """
    env: VectorEnv | None = None
    try:
        for start in range(0, len(manifest.seeds), BLOCK):
            count = min(BLOCK, len(manifest.seeds) - start)
            if env is None or env.num_envs != count:
                if env is not None:
                    env.close()
                env = _make_env(config, count, normalizer, device)
            yield start, env
    finally:
        if env is not None:
            env.close()


def _make_env(
    config: EnvConfig, count: int, normalizer: dict[str, Any] | None, device: torch.device
) -> VectorEnv:
    env = build_env(
        config,
        seed=0,
        autoreset=False,
        num_envs=count,
        group_size=1,
        device=device,
        normalize=normalizer is not None,
    )
    if normalizer is not None:
        from embodied_rl.envs.wrappers import NormalizeObservation

        assert isinstance(env, NormalizeObservation)
        env.load_statistics(normalizer)
        env.training = False
    return env


def _task_ids(env: VectorEnv, tasks: Sequence[str]) -> torch.Tensor:
    index = {name: task_id for task_id, name in enumerate(env.task_names)}
    return torch.tensor([index[name] for name in tasks])


def _record(
    results: dict[str, torch.Tensor], manifest: Manifest, mode: Mode, print_hash: str
) -> dict[str, Any]:
    success = results["success"]
    low, high = wilson_interval(int(success.sum()), len(success))
    per_task: dict[str, Any] = {}
    for task in dict.fromkeys(manifest.tasks):
        rows = torch.tensor([name == task for name in manifest.tasks])
        wins, count = int(success[rows].sum()), int(rows.sum())
        task_low, task_high = wilson_interval(wins, count)
        per_task[task] = {
            "success_rate": wins / count,
            "ci_low": task_low,
            "ci_high": task_high,
            "episodes": count,
        }
    return {
        "success_rate": float(success.double().mean()),
        "ci_low": low,
        "ci_high": high,
        "episodes": len(success),
        "mode": mode,
        "manifest_split": manifest.split,
        "manifest_sha256": manifest.sha256,
        "fingerprint": print_hash,
        "return_mean": float(results["return"].double().mean()),
        "length_mean": float(results["length"].double().mean()),
        "per_task": per_task,
        "successes": "".join("1" if flag else "0" for flag in success.tolist()),
    }


def evaluate_recipe_expert(config: TrainConfig, *, episodes: int, split: Split) -> dict[str, Any]:
    """``evaluate_expert`` on the evaluation environments of a recipe, within its time limit.

    Raises:
        ValueError: the simulator has no expert.
    """
    env_config = replace(evaluation_env(config), num_envs=1, group_size=1)
    env = build_env(env_config, seed=0, autoreset=False, chunk_length=1, normalize=False)
    names = env.task_names
    env.close()
    simulator = config.env.simulator.name
    manifest = make_manifest(names, episodes=episodes, split=split, simulator=simulator)
    return evaluate_expert(env_config, manifest)


def evaluate_run(
    path: Path,
    *,
    checkpoint: str = "",
    episodes: int = 200,
    mode: Mode = "greedy",
    split: Split = "test",
    device: str = "cpu",
    env_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a saved policy; see ``evaluate`` for the record.

    Args:
        path: run folder or checkpoint folder.
        checkpoint: name of a checkpoint of the run (``best``, ``sft``, ``step_000000010``); by
            default the newest one.
        episodes: length of the manifest.
        mode: ``greedy`` or ``sampled``.
        split: ``tune`` or ``test`` seeds.
        device: where the policy runs.
        env_options: options of the simulator in place of those that the run is evaluated with,
            e.g. ``{"pictures": "blank"}``; they are part of the fingerprint.

    Raises:
        CheckpointError: no checkpoint there, or an unreadable one.
        ValueError: an option that the simulator does not have.
    """
    named = path / "checkpoints" / checkpoint
    policy, config, state = load_policy(
        named if named.is_dir() else path / checkpoint, device=device
    )
    changed = {**config.evaluation.env_options, **(env_options or {})}
    config = replace(config, evaluation=replace(config.evaluation, env_options=changed))
    task_names = state["task_names"]
    manifest = make_manifest(
        task_names, episodes=episodes, split=split, simulator=config.env.simulator.name
    )
    return evaluate(
        policy,
        evaluation_env(config),
        manifest,
        mode=mode,
        normalizer=state["normalizer"],
    )
