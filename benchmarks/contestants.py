"""The contestants, each as (train one round, recent returns, close), and collection by itself.

Ours goes through ``embodied_rl.trainer.reinforce``, the loop that ``embodied-rl train`` runs:
logging, progress and the checkpoint at the end of each round included.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.sb3_adapter import make_model
from benchmarks.settings import HIDDEN_DIMS, Setting, make_pool
from benchmarks.single_file_ppo import SingleFilePPO
from embodied_rl import rollout as rollouts
from embodied_rl import trainer
from embodied_rl.config import CheckpointConfig, Component, EnvConfig, TrainConfig, component
from embodied_rl.metrics import METRICS_FILE, read_jsonl


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something that can be timed.

    Attributes:
        name: row of the table.
        run: does one round, ``Setting.round_iterations`` iterations.
        recent_return: mean return of the episodes that ended last, or NaN.
        close: frees everything.
    """

    name: str
    run: Callable[[], object]
    recent_return: Callable[[], float]
    close: Callable[[], object]


def simulator(setting: Setting) -> Component:
    """The environment of a setting as ours is configured."""
    return component(
        "envs",
        "envpool",
        id=setting.env_id,
        env_options=setting.env_options,
        terminate_on_success=False,
    )


def train_config(
    setting: Setting, *, seed: int, asynchronous: bool = False, compile: bool = False
) -> TrainConfig:
    """The options of ``setting`` as a configuration."""
    discrete = setting.env_id.startswith("CartPole")
    return TrainConfig(
        name="benchmark",
        env=EnvConfig(
            simulator=simulator(setting),
            num_envs=setting.num_envs,
            num_threads=setting.num_threads,
        ),
        policy=component(
            "policies",
            "categorical_mlp" if discrete else "gaussian_mlp",
            hidden_dims=HIDDEN_DIMS,
            activation="tanh",
            critic="separate",
        ),
        algorithm=component(
            "algorithms",
            "ppo",
            learning_rate=setting.learning_rate,
            critic_learning_rate=setting.learning_rate,
            num_epochs=setting.num_epochs,
            num_minibatches=setting.num_minibatches,
            clip_ratio_low=setting.clip_ratio,
            clip_ratio_high=setting.clip_ratio,
            entropy_coef=setting.entropy_coef,
            value_coef=1.0,
            max_grad_norm=setting.max_grad_norm,
            compile=compile,
        ),
        advantage=component(
            "advantages", "gae", gamma=setting.gamma, gae_lambda=setting.gae_lambda
        ),
        num_steps=setting.num_steps,
        checkpoint=CheckpointConfig(every=10**9),
        asynchronous=asynchronous,
        seed=seed,
        num_threads=1,
    )


def ours(
    setting: Setting,
    *,
    seed: int,
    folder: Path,
    asynchronous: bool = False,
    compile: bool = False,
) -> Contestant:
    """This project's trainer."""
    session = trainer.open_session(
        train_config(setting, seed=seed, asynchronous=asynchronous, compile=compile), folder
    )

    def run() -> None:
        total = session.env_steps + setting.round_iterations * setting.batch_size
        session.config = dataclasses.replace(session.config, total_env_steps=total)
        trainer.reinforce(session)

    def recent_return() -> float:
        records = read_jsonl(folder / METRICS_FILE)
        returns = [r["rollout/return"] for r in records if "rollout/return" in r]
        return float(np.mean(returns[-8:])) if returns else float("nan")

    def close() -> None:
        session.env.close()
        session.logger.close()

    name = "embodied-rl" + ", asynchronous" * asynchronous + ", compiled" * compile
    return Contestant(name=name, run=run, recent_return=recent_return, close=close)


def single_file(setting: Setting, *, seed: int, folder: Path) -> Contestant:
    """PPO in one file."""
    ppo = SingleFilePPO(setting, seed=seed, folder=folder)
    return Contestant(
        name="single-file PPO",
        run=lambda: ppo.train(setting.round_iterations),
        recent_return=lambda: _mean(ppo.returns),
        close=ppo.close,
    )


def stable_baselines3(setting: Setting, *, seed: int, folder: Path) -> Contestant:
    """Stable-Baselines3."""
    model = make_model(setting, seed=seed, folder=str(folder))
    env = model.get_env()
    assert env is not None
    steps = setting.round_iterations * setting.batch_size
    return Contestant(
        name="Stable-Baselines3",
        run=lambda: model.learn(steps, log_interval=1, reset_num_timesteps=False),
        recent_return=lambda: _mean([each["r"] for each in model.ep_info_buffer or ()]),
        close=env.close,
    )


def raw_stepping(setting: Setting, *, seed: int) -> Contestant:
    """Envpool alone: the same number of steps with random actions that were drawn beforehand."""
    pool = make_pool(setting, seed=seed)
    pool.reset()
    pool.action_space.seed(seed)
    actions = [
        np.stack([pool.action_space.sample() for _ in range(setting.num_envs)]) for _ in range(64)
    ]
    steps = setting.round_iterations * setting.num_steps

    def run() -> None:
        for step in range(steps):
            pool.step(actions[step % len(actions)])

    return Contestant(
        name="raw envpool stepping", run=run, recent_return=lambda: float("nan"), close=pool.close
    )


def collection(setting: Setting, *, seed: int, folder: Path) -> Contestant:
    """``rollout.collect`` alone: environment layer, policy, values, bookkeeping; no update."""
    session = trainer.open_session(train_config(setting, seed=seed), folder)
    cursor = rollouts.start(session.env)

    def run() -> None:
        for _ in range(setting.round_iterations):
            rollouts.collect(
                session.env,
                session.policy,
                cursor,
                num_steps=setting.num_steps,
                generator=session.generator,
            )

    def close() -> None:
        session.env.close()
        session.logger.close()

    return Contestant(
        name="`collect` (no update)", run=run, recent_return=lambda: float("nan"), close=close
    )


def _mean(values: Sequence[float] | deque[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
