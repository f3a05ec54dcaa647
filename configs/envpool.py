"""Recipes for envpool's own environments: CartPole with PPO."""

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


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes of this file by name."""
    return {"cartpole_ppo": cartpole_ppo}
