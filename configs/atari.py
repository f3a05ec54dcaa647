"""Recipes for Atari: ``atari/<game>_ppo`` for each of 104 games, ``pong_ppo``, ``breakout_ppo``.

The common PPO setting for Atari (J. Schulman et al. 2017, table 5) with two changes for CPUs: 16
environments instead of 8, and convolutions in bfloat16, which is wrong for a CPU without
``avx512_bf16`` (set ``--policy.precision float32`` there). Training sees clipped rewards and lives
as episodes; evaluation plays whole games and scores them in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from embodied_rl.config import Component, EnvConfig, EvalConfig, TrainConfig, component
from embodied_rl.envs.atari_games import GAMES


def atari_ppo(game: str) -> TrainConfig:
    """Any game from pixels: Nature CNN, 4 stacked 84x84 screens, 10M decisions."""
    return TrainConfig(
        name=f"atari/{game}_ppo",
        env=EnvConfig(
            simulator=component(
                "envs", "atari", game=game, terminal_on_life_loss=True, clip_rewards=True
            ),
            num_envs=16,
        ),
        policy=component("policies", "categorical_cnn", trunk="nature", precision="bfloat16"),
        algorithm=_ppo(learning_rate=5e-4, num_epochs=3, num_minibatches=8),
        num_steps=128,
        total_env_steps=10_000_000,
        num_threads=2,
        evaluation=EvalConfig(
            episodes=10, env_options={"terminal_on_life_loss": False, "clip_rewards": False}
        ),
    )


def pong_ppo() -> TrainConfig:
    """Pong for two cores: three actions, screens of 60x60, a small CNN, many small gradient steps.

    64 gradient steps per 1,024 decisions, where the common setting takes 16, each while the games
    of the next decision are simulated: a decision costs more than learning from it once more.
    """
    return TrainConfig(
        name="pong_ppo",
        env=EnvConfig(
            simulator=component(
                "envs",
                "atari",
                game="pong",
                actions=("NOOP", "RIGHT", "LEFT"),
                image_size=(60, 60),
            ),
            num_envs=16,
        ),
        policy=component(
            "policies", "categorical_cnn", trunk="small", feature_dim=256, precision="bfloat16"
        ),
        algorithm=_ppo(learning_rate=7e-4, num_epochs=4, num_minibatches=16).replace(
            clip_ratio_low=0.2, clip_ratio_high=0.2
        ),
        num_steps=64,
        total_env_steps=2_000_000,
        asynchronous=True,
        num_threads=1,
        evaluation=EvalConfig(episodes=10),
    )


def breakout_ppo() -> TrainConfig:
    """Breakout: the common setting, cut to 3M decisions."""
    config = atari_ppo("breakout")
    return replace(config, name="breakout_ppo", total_env_steps=3_000_000)


def _ppo(*, learning_rate: float, num_epochs: int, num_minibatches: int) -> Component:
    return component(
        "algorithms",
        "ppo",
        learning_rate=learning_rate,
        critic_learning_rate=learning_rate,
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
        clip_ratio_low=0.1,
        clip_ratio_high=0.1,
        entropy_coef=0.01,
        lr_schedule="linear",
    )


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes of this file by name."""
    return {f"atari/{game}_ppo": partial(atari_ppo, game) for game in GAMES} | {
        "pong_ppo": pong_ppo,
        "breakout_ppo": breakout_ppo,
    }
