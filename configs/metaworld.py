"""Recipes for Meta-World: few-shot imitation, then reinforcement learning with a sparse reward.

``metaworld/<task>_<algorithm>`` for each of the 50 tasks, ``mt10`` and ``mt50``. The algorithms are
``sft`` (imitation only), ``flow_sde``, ``flow_noise`` and ``grpo`` (flow policy) and ``ppo``
(Gaussian policy, the control). The settings are one set for all tasks; only the time limit differs,
because the experts need between 40 and 350 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from embodied_rl.config import (
    Component,
    EnvConfig,
    EvalConfig,
    ImitationConfig,
    TrainConfig,
    component,
)
from embodied_rl.envs.metaworld_tasks import INSTRUCTIONS
from embodied_rl.flow import FlowConfig

CHUNK_LENGTH = 8


def sft(task: str) -> TrainConfig:
    """Imitate 10 expert episodes per task with a flow policy."""
    multi_task = task.startswith("mt")
    return TrainConfig(
        name=f"metaworld/{recipe_stem(task)}_sft",
        env=EnvConfig(
            simulator=component("envs", "metaworld", tasks=(task,)),
            num_envs=64,
            chunk_length=CHUNK_LENGTH,
            max_episode_steps=time_limit(task),
            instruction_embedding="hashed" if multi_task else "none",
        ),
        policy=component("policies", "flow_mlp", flow=FlowConfig()),
        algorithm=ppo_for_flows(),
        imitation=ImitationConfig(num_steps=6000 if multi_task else 2000),
        evaluation=EvalConfig(episodes=200),
        total_env_steps=0,
    )


def flow_sde(task: str) -> TrainConfig:
    """Flow-SDE: stochastic sampling chain, PPO on its likelihood."""
    base = sft(task)
    return replace(
        base,
        name=f"metaworld/{recipe_stem(task)}_flow_sde",
        total_env_steps=3_000_000 if task.startswith("mt") else 400_000,
    )


def flow_noise(task: str) -> TrainConfig:
    """Flow-Noise: a noise network gives each step its std."""
    base = flow_sde(task)
    flow = FlowConfig(sampler="noise", std_min=0.08, std_max=0.16)
    return replace(
        base,
        name=f"metaworld/{recipe_stem(task)}_flow_noise",
        policy=base.policy.replace(flow=flow),
        algorithm=base.algorithm.replace(entropy_coef=0.005),
    )


def grpo(task: str) -> TrainConfig:
    """GRPO on the same flow policy: groups of 8 episodes from one initial state, no critic."""
    base = flow_sde(task)
    return replace(
        base,
        name=f"metaworld/{recipe_stem(task)}_grpo",
        env=replace(base.env, group_size=8),
        policy=base.policy.replace(critic="none"),
        algorithm=component(
            "algorithms",
            "grpo",
            learning_rate=3e-5,
            num_epochs=5,
            clip_ratio_low=0.02,
            clip_ratio_high=0.02,
        ),
        advantage=component("advantages", "group_relative"),
    )


def ppo(task: str) -> TrainConfig:
    """The control: a Gaussian policy imitates by likelihood, then PPO."""
    base = flow_sde(task)
    return replace(
        base,
        name=f"metaworld/{recipe_stem(task)}_ppo",
        policy=component("policies", "gaussian_mlp", hidden_dims=(256, 256, 256)),
    )


def ppo_for_flows() -> Component:
    """PPO settings for flow policies; the clip range is in mean log-ratio per number."""
    return component(
        "algorithms",
        "ppo",
        learning_rate=3e-5,
        critic_learning_rate=1e-3,
        num_epochs=5,
        num_minibatches=4,
        clip_ratio_low=0.02,
        clip_ratio_high=0.02,
        critic_warmup=1,
    )


def time_limit(task: str) -> int:
    """Simulator steps an episode may take; at most the benchmark's 500."""
    return TIME_LIMITS.get(task, 200)


TIME_LIMITS: dict[str, int] = {"mt10": 200, "mt50": 500}
"""Tasks whose expert needs more than 120 steps in the worst of 20 episodes."""

ALGORITHMS = {
    "sft": sft,
    "flow_sde": flow_sde,
    "flow_noise": flow_noise,
    "grpo": grpo,
    "ppo": ppo,
}


def recipe_stem(task: str) -> str:
    """``pick-place-v3`` as ``pick_place``."""
    return task.removesuffix("-v3").replace("-", "_")


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Every task with every algorithm."""
    return {
        f"metaworld/{recipe_stem(task)}_{name}": partial(recipe, task)
        for task in (*INSTRUCTIONS, "mt10", "mt50")
        for name, recipe in ALGORITHMS.items()
    }
