"""Recipes for envpool's own environments: CartPole and Pong with PPO."""

from __future__ import annotations

from collections.abc import Callable

from embodied_rl.config import EnvConfig, EvalConfig, TrainConfig, component


def cartpole_ppo() -> TrainConfig:
    """CartPole-v1 in seconds: two tanh layers of 64, 8 environments."""
    return TrainConfig(
        name="cartpole_ppo",
        env=EnvConfig(
            simulator=component("envs", "envpool", id="CartPole-v1"), num_envs=8, num_threads=1
        ),
        policy=component("policies", "categorical_mlp"),
        algorithm=component(
            "algorithms", "ppo", learning_rate=1e-3, critic_learning_rate=1e-3, entropy_coef=0.0
        ),
        advantage=component("advantages", "gae", gamma=0.98, gae_lambda=0.8),
        num_steps=128,
        total_env_steps=200_000,
        evaluation=EvalConfig(episodes=50),
    )


def pong_ppo() -> TrainConfig:
    """Pong from pixels: Nature CNN, 4 stacked 84x84 frames."""
    return TrainConfig(
        name="pong_ppo",
        env=EnvConfig(simulator=component("envs", "envpool", id="Pong-v5"), num_envs=8),
        policy=component("policies", "categorical_cnn", trunk="nature"),
        algorithm=component(
            "algorithms",
            "ppo",
            learning_rate=2.5e-4,
            clip_ratio_low=0.1,
            clip_ratio_high=0.1,
            entropy_coef=0.01,
            lr_schedule="linear",
        ),
        num_steps=128,
        total_env_steps=10_000_000,
        evaluation=EvalConfig(episodes=10),
    )


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes of this file by name."""
    return {"cartpole_ppo": cartpole_ppo, "pong_ppo": pong_ppo}
