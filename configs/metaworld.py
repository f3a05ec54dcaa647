"""Recipes for Meta-World: few-shot imitation, then reinforcement learning with a sparse reward.

``metaworld/<task>_<algorithm>`` for each of the 50 tasks, ``mt10`` and ``mt50``. The algorithms are
``sft`` (imitation only), ``flow_sde``, ``flow_noise`` and ``grpo`` (flow policy) and ``ppo``
(Gaussian policy, the control). The settings are one set for all tasks; only the time limit differs,
because the experts need between 33 and 147 steps.
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
    """Imitate 5 expert episodes per task with a flow policy."""
    multi_task = task.startswith("mt")
    return TrainConfig(
        name=f"metaworld/{recipe_stem(task)}_sft",
        env=EnvConfig(
            simulator=component("envs", "metaworld", tasks=(task,), features="relative"),
            observations=("relative", "instruction") if multi_task else ("relative",),
            num_envs=64,
            chunk_length=CHUNK_LENGTH,
            max_episode_steps=time_limit(task),
            instruction_embedding="hashed" if multi_task else "none",
        ),
        policy=component("policies", "flow_mlp", flow=FlowConfig()),
        algorithm=ppo_for_flows(),
        imitation=ImitationConfig(episodes_per_task=5, num_steps=6000 if multi_task else 2000),
        evaluation=EvalConfig(episodes=200),
        total_env_steps=0,
    )


def flow_sde(task: str) -> TrainConfig:
    """Flow-SDE: stochastic sampling chain, PPO on its likelihood.

    Several tasks need more episodes per update, advantages of one scale per task, and a critic for
    which running out of time is failure: otherwise learning one task unlearns another.
    """
    base = sft(task)
    multi_task = task.startswith("mt")
    return replace(
        base,
        name=f"metaworld/{recipe_stem(task)}_flow_sde",
        env=replace(base.env, num_envs=256) if multi_task else base.env,
        advantage=component("advantages", "gae", normalize="task", bootstrap_truncated=False)
        if multi_task
        else base.advantage,
        total_env_steps={"mt10": 1_000_000, "mt50": 5_000_000}.get(task, 500_000),
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
            learning_rate=1e-4,
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
        policy=component("policies", "gaussian_mlp", hidden_dims=(256, 256, 256), units="action"),
        algorithm=base.algorithm.replace(clip_ratio_low=0.2, clip_ratio_high=0.2),
    )


def demo() -> TrainConfig:
    """What ``make demo`` runs: pick-place from 10 expert episodes, evaluated on test seeds."""
    base = flow_sde("pick-place-v3")
    assert base.imitation is not None
    return replace(
        base,
        name="demo",
        imitation=replace(base.imitation, episodes_per_task=10, num_steps=700),
        evaluation=EvalConfig(episodes=200, manifest="test"),
        total_env_steps=300_000,
    )


def ppo_for_flows() -> Component:
    """PPO settings for flow policies; the clip range is in mean log-ratio per number."""
    return component(
        "algorithms",
        "ppo",
        learning_rate=1e-4,
        critic_learning_rate=1e-3,
        num_epochs=10,
        num_minibatches=4,
        clip_ratio_low=0.02,
        clip_ratio_high=0.02,
        critic_warmup=1,
    )


def time_limit(task: str) -> int:
    """Simulator steps an episode may take: twice the expert's median, 100 at least.

    The benchmark allows 500; a shorter limit is the harder task and makes failures cheap.
    """
    if task.startswith("mt"):
        return 200
    return max(100, -(-2 * EXPERT_STEPS[task] // 20) * 20)


EXPERT_STEPS = {
    "assembly-v3": 89,
    "basketball-v3": 95,
    "bin-picking-v3": 110,
    "box-close-v3": 96,
    "button-press-topdown-v3": 66,
    "button-press-topdown-wall-v3": 57,
    "button-press-v3": 60,
    "button-press-wall-v3": 63,
    "coffee-button-v3": 33,
    "coffee-pull-v3": 79,
    "coffee-push-v3": 55,
    "dial-turn-v3": 75,
    "disassemble-v3": 147,
    "door-close-v3": 69,
    "door-lock-v3": 121,
    "door-open-v3": 78,
    "door-unlock-v3": 43,
    "drawer-close-v3": 78,
    "drawer-open-v3": 89,
    "faucet-close-v3": 65,
    "faucet-open-v3": 59,
    "hammer-v3": 68,
    "hand-insert-v3": 57,
    "handle-press-side-v3": 41,
    "handle-press-v3": 34,
    "handle-pull-side-v3": 83,
    "handle-pull-v3": 103,
    "lever-pull-v3": 80,
    "peg-insert-side-v3": 93,
    "peg-unplug-side-v3": 90,
    "pick-out-of-hole-v3": 118,
    "pick-place-v3": 52,
    "pick-place-wall-v3": 82,
    "plate-slide-back-side-v3": 42,
    "plate-slide-back-v3": 79,
    "plate-slide-side-v3": 48,
    "plate-slide-v3": 51,
    "push-back-v3": 83,
    "push-v3": 61,
    "push-wall-v3": 77,
    "reach-v3": 41,
    "reach-wall-v3": 45,
    "shelf-place-v3": 85,
    "soccer-v3": 49,
    "stick-pull-v3": 116,
    "stick-push-v3": 74,
    "sweep-into-v3": 56,
    "sweep-v3": 87,
    "window-close-v3": 79,
    "window-open-v3": 88,
}
"""Median steps to success of the scripted expert, 20 episodes."""

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
    by_task = {
        f"metaworld/{recipe_stem(task)}_{name}": partial(recipe, task)
        for task in (*INSTRUCTIONS, "mt10", "mt50")
        for name, recipe in ALGORITHMS.items()
    }
    return {"demo": demo, **by_task}
