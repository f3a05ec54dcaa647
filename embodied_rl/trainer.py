"""``train(config)``: imitate if asked to, then collect -> advantage -> update -> log -> save.

The loop below is the whole of it; everything it calls is a registered component or a module that
can be read on its own. A run is a function of its configuration: interrupting it at any checkpoint
and resuming gives the same bits as not interrupting it (on a CPU, with a simulator that can be
restored).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embodied_rl import checkpoint
from embodied_rl import rollout as rollouts
from embodied_rl.advantages.normalize import ReturnNormalizer
from embodied_rl.algorithms.policy_gradient import PolicyGradient, Stats, mean_stats
from embodied_rl.algorithms.sft import SFT, Demonstrations
from embodied_rl.build import (
    build_policy,
    build_training_env,
    load_policy,
    policy_spec,
    usable_device,
)
from embodied_rl.checkpoint import CheckpointError, CheckpointManager
from embodied_rl.config import ConfigError, TrainConfig, check, evaluation_env, to_yaml
from embodied_rl.demonstrations import load_demonstrations
from embodied_rl.envs.wrappers import NormalizeObservation
from embodied_rl.evaluate import evaluate, make_manifest
from embodied_rl.metrics import MetricsLogger
from embodied_rl.registry import registry
from embodied_rl.rollout import Cursor
from embodied_rl.samplers.base import TaskSampler
from embodied_rl.seeding import derive_seed, torch_generator
from embodied_rl.types import Advantages, Policy, Rollout, TensorDict, VectorEnv


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what survives."""


@dataclass
class Session:
    """Everything a run consists of; ``state_dict`` is what a checkpoint holds."""

    config: TrainConfig
    folder: Path
    env: VectorEnv
    policy: Policy
    algorithm: PolicyGradient
    sampler: TaskSampler
    generator: torch.Generator
    logger: MetricsLogger
    checkpoints: CheckpointManager
    demonstrations: Demonstrations | None = None
    reward_normalizer: ReturnNormalizer | None = None
    cursor: Cursor | None = None
    iteration: int = 0
    pending: Iterator[Stats] = field(default_factory=lambda: iter(()))
    overlapped: list[Stats] = field(default_factory=list)

    @property
    def env_steps(self) -> int:
        """Simulator steps of reinforcement learning so far."""
        return 0 if self.cursor is None else self.cursor.env_steps

    def advance_update(self) -> None:
        """Take some pending gradient steps: all of them within one rollout (asynchronous mode)."""
        options = self.algorithm.config
        share = math.ceil(options.num_epochs * options.num_minibatches / self.config.num_steps)
        self.overlapped += itertools.islice(self.pending, share)

    def finish_update(self) -> list[Stats]:
        """Take every pending gradient step; returns the statistics of the whole update."""
        stats = [*self.overlapped, *self.pending]
        self.overlapped = []
        return stats

    @property
    def module(self) -> nn.Module:
        """The policy as a module."""
        assert isinstance(self.policy, nn.Module)
        return self.policy

    def state_dict(self) -> dict[str, Any]:
        """Policy, optimiser, sampler, RNG, environment and cursor."""
        cursor = self.cursor
        return {
            "config": to_yaml(self.config),
            "spec": spec_plain(self.policy),
            "policy": self.module.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "sampler": self.sampler.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "task_names": list(self.env.task_names),
            "normalizer": observation_statistics(self.env),
            "reward_normalizer": None
            if self.reward_normalizer is None
            else self.reward_normalizer.state_dict(),
            "env": None if cursor is None else self.env.state_dict(),
            "cursor": None
            if cursor is None
            else {
                "obs": cursor.obs,
                "episode_ids": cursor.episode_ids,
                "next_episode_id": cursor.next_episode_id,
                "env_steps": cursor.env_steps,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; without environment state, episodes start afresh."""
        self.module.load_state_dict(state["policy"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["generator"])
        self.iteration = state["iteration"]
        if self.reward_normalizer is not None:
            self.reward_normalizer.load_state_dict(state["reward_normalizer"])
        if state["cursor"] is None:
            return
        self.cursor = Cursor(**on_device(state["cursor"], self.env.device))
        if state["env"] is None:
            rollouts.restart(self.env, self.cursor)
        else:
            self.cursor.obs = self.env.load_state_dict(state["env"])


def train(
    config: TrainConfig, *, folder: Path | None = None, resume: bool = False, final: bool = True
) -> Path:
    """Run a configuration to its end.

    Args:
        config: what to run.
        folder: run folder; a new one under ``config.runs`` by default.
        resume: continue from the newest complete checkpoint in ``folder``.
        final: evaluate after imitation and at the end.

    Returns:
        The run folder.

    Raises:
        ConfigError: a configuration that cannot run.
        TrainingError: a metric (loss, gradient norm, return) is NaN or infinite.
    """
    check(config)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    session = open_session(config, folder)
    try:
        if resume:
            session.load_state_dict(newest_checkpoint(session))
            session.logger.truncate(session.iteration)
        else:
            if config.imitation is not None:
                imitate(session)
            save(session)
        if final and config.imitation is not None and session.iteration == 0:
            run_evaluation(session, label="sft")
        if session.env_steps < config.total_env_steps:
            reinforce(session)
            if final:
                run_evaluation(session, label="rl")
    finally:
        session.env.close()
        session.logger.close()
    return session.folder


def open_session(config: TrainConfig, folder: Path | None) -> Session:
    """Build every part of a run and its folder (None: a new one)."""
    torch.manual_seed(derive_seed(config.seed, "global"))
    device = usable_device(config.device)
    env = build_training_env(
        config.env,
        seed=derive_seed(config.seed, "env"),
        autoreset=config.num_steps > 0,
        device=device,
    )
    policy = build_policy(config, policy_spec(env, config.env))
    assert isinstance(policy, nn.Module)
    policy.to(device)
    if config.init_from:
        start_from(config, policy, env)
    if folder is None:
        folder = claim_run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    demonstrations = None
    if config.imitation is not None:
        demonstrations = on_device(load_demonstrations(config, folder), device)
        fit_inputs(policy, demonstrations)
    return Session(
        config=config,
        folder=folder,
        env=env,
        policy=policy,
        algorithm=build_algorithm(config, policy, demonstrations),
        demonstrations=demonstrations,
        sampler=registry("samplers").get(config.sampler.name)(
            num_tasks=len(env.task_names),
            **{"seed": derive_seed(config.seed, "sampler"), **config.sampler.options},
        ),
        generator=torch_generator(config.seed, "train", device=device),
        logger=MetricsLogger(folder, total_env_steps=config.total_env_steps),
        checkpoints=CheckpointManager(
            folder / "checkpoints", keep_last=config.checkpoint.keep_last
        ),
        reward_normalizer=ReturnNormalizer(
            num_envs=config.env.num_envs,
            gamma=config.advantage.options.get("gamma", 0.99),
            device=device,
        )
        if config.normalize_rewards
        else None,
    )


def on_device(tree: Any, device: torch.device) -> Any:
    """``tree`` of dicts and tuples with its tensors on ``device``."""
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: on_device(value, device) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(on_device(value, device) for value in tree)
    return tree


def start_from(config: TrainConfig, policy: Policy, env: VectorEnv) -> None:
    """Copy weights and observation statistics of the run ``config.init_from``.

    Raises:
        ConfigError: the other policy has another shape or other observation statistics.
    """
    start, _, state = load_policy(config.init_from)
    assert isinstance(policy, nn.Module) and isinstance(start, nn.Module)
    try:
        policy.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"init_from={config.init_from} holds another policy: take the same policy options and "
            f"observations as that run ({str(error).splitlines()[1].strip()})"
        ) from error
    if (state["normalizer"] is None) == isinstance(env, NormalizeObservation):
        raise ConfigError("init_from and this run differ in env.normalize_obs: set it alike")
    if isinstance(env, NormalizeObservation):
        env.load_statistics(state["normalizer"])


def newest_checkpoint(session: Session) -> dict[str, Any]:
    """State of the newest complete checkpoint of the run.

    Raises:
        CheckpointError: there is none.
    """
    path = session.checkpoints.latest()
    if path is None:
        raise CheckpointError(
            f"{session.folder} has no complete checkpoint to resume from: start the recipe again"
        )
    state = checkpoint.load(path)
    assert isinstance(state, dict)
    return state


def observation_statistics(env: VectorEnv) -> dict[str, Any] | None:
    """State of the observation normaliser around ``env``, or None without one."""
    return env.statistics() if isinstance(env, NormalizeObservation) else None


def reinforce(session: Session) -> None:
    """The reinforcement-learning loop."""
    config, algorithm = session.config, session.algorithm
    while session.env_steps < config.total_env_steps:
        started, cpu_started = time.perf_counter(), time.process_time()
        session.policy.set_progress(session.env_steps / config.total_env_steps)
        refresh_sampler(session)
        rollout, advantages = gather(session)
        collected = time.perf_counter()
        overlapped = session.finish_update()
        session.pending = algorithm.gradient_steps(
            rollout, advantages, generator=session.generator, env_steps=session.env_steps
        )
        stats = overlapped if config.asynchronous else session.finish_update()
        session.iteration += 1
        now = time.perf_counter()
        timing = {
            "time/steps_per_second": int(rollout.num_env_steps.sum()) / (now - started),
            "time/collect_seconds": collected - started,
            "time/update_seconds": now - collected,
            "time/cpu_seconds": time.process_time() - cpu_started,
        }
        log(session, rollout, advantages.stats | mean_stats(stats), timing)
        if session.iteration % config.checkpoint.every == 0:
            save(session)
        if config.evaluation.every and session.iteration % config.evaluation.every == 0:
            run_evaluation(session, label="rl")
    save(session)


def gather(session: Session) -> tuple[Rollout, Advantages]:
    """A rollout with its advantages; refilled while groups without gradient may be replaced."""
    config = session.config
    parts: list[Rollout] = []
    while True:
        rollout = session.algorithm.shape_rewards(next_rollout(session))
        parts.append(normalize_rewards(session, rollout))
        session.sampler.update(*task_outcomes(session))
        rollout = rollouts.concat_rollouts(parts)
        advantages = registry("advantages").get(config.advantage.name)(
            rollout, **config.advantage.options
        )
        wanted = config.env.num_envs // config.env.group_size
        kept = advantages.stats.get("kept_group_fraction", 1.0) * wanted * len(parts)
        if len(parts) > config.max_refills or kept >= wanted:
            return rollout, advantages


def next_rollout(session: Session) -> Rollout:
    """Whole episodes of the tasks the sampler proposes, or the next ``num_steps`` decisions.

    Once more if the simulator lost every episode; it gives up by itself if that goes on.
    """
    config = session.config
    while True:
        if config.num_steps == 0 or session.cursor is None:
            groups = session.sampler.propose(config.env.num_envs // config.env.group_size)
            begin_episodes(session, groups.repeat_interleave(config.env.group_size))
        assert session.cursor is not None
        rollout = rollouts.collect(
            session.env,
            session.policy,
            session.cursor,
            num_steps=config.num_steps,
            generator=session.generator,
            policy_version=lambda: session.algorithm.num_updates,
            while_stepping=session.advance_update if config.asynchronous else None,
        )
        if bool(rollout.valid.any()):
            return rollout


def begin_episodes(session: Session, task_ids: torch.Tensor) -> None:
    """Start an episode of ``task_ids`` [N] in every row."""
    if session.cursor is None:
        session.cursor = rollouts.start(session.env, task_ids=task_ids)
    else:
        rollouts.restart(session.env, session.cursor, task_ids=task_ids)


def refresh_sampler(session: Session) -> None:
    """Roll out what the sampler asks to have measured anew; counted, and not trained on."""
    group = session.config.env.group_size
    rows = session.config.env.num_envs // group
    wanted = session.sampler.refresh_ids()
    trials = -(-session.sampler.refresh_trials // group)
    queue = wanted.repeat_interleave(max(trials, 1))
    for start in range(0, len(queue), rows):
        ids = queue[start : start + rows]
        padded = torch.cat([ids, ids[:1].expand(rows - len(ids))])
        begin_episodes(session, padded.repeat_interleave(group))
        assert session.cursor is not None
        rollouts.collect(session.env, session.policy, session.cursor, generator=session.generator)
        session.sampler.refresh(*task_outcomes(session))


def normalize_rewards(session: Session, rollout: Rollout) -> Rollout:
    """Scale rewards by the running std of the return, if configured."""
    if session.reward_normalizer is None:
        return rollout
    scaled = session.reward_normalizer(rollout.rewards, dones=rollout.dones, valid=rollout.valid)
    return dataclasses.replace(rollout, rewards=scaled)


def imitate(session: Session) -> None:
    """Few-shot imitation, then the checkpoint ``checkpoints/sft``."""
    config = session.config
    demonstrations = session.demonstrations
    assert config.imitation is not None and demonstrations is not None
    sft = SFT(session.module, config.imitation, demonstrations=demonstrations)
    generator = torch_generator(config.seed, "imitation", device=session.env.device)
    with session.logger.progress("imitation", total=config.imitation.num_steps) as advance:
        losses: list[torch.Tensor] = []
        for loss in sft.gradient_steps(generator=generator):
            losses.append(loss)
            if len(losses) == 50:
                mean = float(torch.stack(losses).mean())
                require_finite({"sft/loss": mean}, session)
                session.logger.scalar("sft/loss", mean, step=sft.step)
                advance(len(losses), f"loss {mean:.4f}")
                losses.clear()
    session.algorithm = build_algorithm(config, session.policy, demonstrations)
    checkpoint.save(session.checkpoints.folder / "sft", session.state_dict())


def fit_inputs(policy: Policy, demonstrations: Demonstrations) -> None:
    """Standardise the policy's vector inputs with the statistics of the demonstrations."""
    from embodied_rl.policies.nn import VectorInput

    assert isinstance(policy, nn.Module)
    for module in policy.modules():
        if isinstance(module, VectorInput):
            module.fit(demonstrations[0])


def build_algorithm(
    config: TrainConfig, policy: Policy, demonstrations: Demonstrations | None
) -> PolicyGradient:
    """The configured algorithm with a fresh optimiser, its reference being the present policy."""
    target = registry("algorithms").get(config.algorithm.name)
    try:
        return target(
            policy,
            target.Config(**config.algorithm.resolved()),
            demonstrations=demonstrations,
            total_env_steps=config.total_env_steps,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def task_outcomes(session: Session) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(task ids [M], successes [M], trials [M]) of the episodes that ended in the last rollout."""
    cursor = session.cursor
    assert cursor is not None
    task_ids, inverse = cursor.finished["task_ids"].unique(return_inverse=True)
    zeros = torch.zeros(len(task_ids), dtype=torch.float64)
    success = cursor.finished["success_once"].double()
    return (
        task_ids,
        zeros.scatter_add(0, inverse, success),
        zeros.scatter_add(0, inverse, torch.ones_like(success)),
    )


def log(
    session: Session, rollout: Rollout, stats: dict[str, float], timing: dict[str, float]
) -> None:
    """One line of metrics per iteration; raises on NaN before anything is saved."""
    assert session.cursor is not None
    finished = session.cursor.finished
    metrics: dict[str, float] = timing | {
        "time/env_steps": float(session.env_steps),
        "rollout/reward_mean": float(rollout.rewards[rollout.valid].mean()),
        "rollout/extra_rollouts": float(session.sampler.extra_rollouts),
        "env/worker_restarts": float(session.cursor.worker_restarts),
        "env/dropped_episodes": float(session.cursor.dropped_episodes),
    }
    metrics |= {
        f"rollout/reward_{name}": float(term[rollout.valid].mean())
        for name, term in rollout.reward_terms.items()
    }
    if len(finished["return"]):
        metrics |= {
            "rollout/success_rate": float(finished["success_once"].float().mean()),
            "rollout/return": float(finished["return"].mean()),
            "rollout/episode_length": float(finished["length"].float().mean()),
            "rollout/episodes": float(len(finished["return"])),
            "rollout/success_variance": success_variance(finished),
        }
    metrics |= {f"train/{name}": value for name, value in stats.items()}
    require_finite(metrics, session)
    session.logger.log(session.iteration, metrics)


def success_variance(finished: TensorDict) -> float:
    """Mean over episodes of the unbiased variance of success within their task.

    What a group-relative gradient can be made of: 0 where every task is always or never solved.
    """
    _, index, count = finished["task_ids"].unique(return_inverse=True, return_counts=True)
    success = finished["success_once"].double()
    mean = torch.zeros(len(count), dtype=torch.float64).scatter_add(0, index, success) / count
    variance = mean * (1 - mean) * count / (count - 1).clamp(min=1)
    return float((variance * count).sum() / count.sum())


def require_finite(metrics: dict[str, float], session: Session) -> None:
    """Raise TrainingError naming the first metric that is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} became {value} in iteration {session.iteration}: lower the learning rate "
                f"or the clip range; the last good checkpoint is kept, resume it with "
                f"`embodied-rl train --resume {session.folder}`"
            )


def save(session: Session) -> None:
    """Write a checkpoint of the present iteration; best is by training return.

    A pending asynchronous update is finished first, so that a checkpoint is always between two
    updates; the schedule of checkpoints is part of the configuration.
    """
    session.overlapped = session.finish_update()
    require_finite(mean_stats(session.overlapped), session)
    session.checkpoints.save(
        session.iteration,
        session.state_dict(),
        metric=session.logger.last.get("rollout/return"),
    )


def run_evaluation(session: Session, *, label: str) -> list[dict[str, Any]]:
    """Evaluate the present policy in every configured mode; appends to ``evaluations.jsonl``."""
    config = session.config.evaluation
    manifest = make_manifest(
        session.env.task_names,
        episodes=config.episodes,
        split=config.manifest,
        simulator=session.config.env.simulator.name,
    )
    records = []
    for mode in config.modes:
        record = evaluate(
            session.policy,
            evaluation_env(session.config),
            manifest,
            mode=mode,
            normalizer=observation_statistics(session.env),
        )
        record |= {"label": label, "env_steps": session.env_steps}
        append_evaluation(session.folder, record)
        records.append(record)
    return records


def append_evaluation(folder: Path, record: dict[str, Any]) -> None:
    """Add one record to the run's ``evaluations.jsonl``."""
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def spec_plain(policy: Policy) -> dict[str, Any]:
    """``PolicySpec`` as JSON data."""
    spec = policy.spec
    return {
        "obs_shapes": {name: list(shape) for name, shape in spec.obs_shapes.items()},
        "obs_dtypes": dict(spec.obs_dtypes),
        "action_dim": spec.action_dim,
        "num_actions": spec.num_actions,
        "chunk_length": spec.chunk_length,
        "num_tasks": spec.num_tasks,
        "text_bytes": spec.text_bytes,
    }


def claim_run_folder(config: TrainConfig) -> Path:
    """Make ``<runs>/<name>/<time>-seed<seed>``, numbered if it exists.

    Runs that start in the same second get folders of their own.
    """
    parent = Path(config.runs) / config.name
    parent.mkdir(parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
    for count in itertools.count(1):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable")
