"""Recipes for ManiSkill: few-shot imitation, then reinforcement learning with a sparse reward.

``maniskill/<task>_<algorithm>`` for the tasks that have a scripted expert, with the algorithms of
``configs/metaworld.py``; states, so that they run on a CPU. Chunks are of two actions, because an
action of ManiSkill lasts 50 ms and an episode 50 of them: with chunks of 8, 4 and 2, imitating the
same ten episodes of PickCube solved 21, 33, 66 % (``train maniskill/pick_cube_sft --seed 10
--env.chunk-length 8 --evaluation.manifest tune``, greedy).
``maniskill/<task>_rgb_flow_sde`` sees what the robot feels and the camera instead of object poses:
for a machine with an NVIDIA GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from embodied_rl.config import (
    EnvConfig,
    EvalConfig,
    ImitationConfig,
    TrainConfig,
    component,
)
from embodied_rl.configs.metaworld import ppo_for_flows
from embodied_rl.envs.maniskill.tasks import CONTROL_MODES, MAX_EPISODE_STEPS
from embodied_rl.flow import FlowConfig

CHUNK_LENGTH = 2
LEARNING_RATE = 3e-4
"""Three times that of Meta-World: PickCube went from 32 to 96 % in 160k steps with it."""
EPISODES = 10
"""Expert episodes imitated."""


def sft(task: str) -> TrainConfig:
    """Imitate expert episodes with a flow policy."""
    return TrainConfig(
        name=f"maniskill/{recipe_stem(task)}_sft",
        env=EnvConfig(
            simulator=component("envs", "maniskill", tasks=(task,), features="relative"),
            observations=("relative",),
            num_envs=128,
            chunk_length=CHUNK_LENGTH,
            max_episode_steps=MAX_EPISODE_STEPS[task],
        ),
        policy=component("policies", "flow_mlp", flow=FlowConfig()),
        algorithm=ppo_for_flows().replace(learning_rate=LEARNING_RATE, num_epochs=5),
        imitation=ImitationConfig(episodes_per_task=EPISODES, num_steps=2000),
        evaluation=EvalConfig(episodes=200),
        total_env_steps=0,
    )


def flow_sde(task: str) -> TrainConfig:
    """Flow-SDE: stochastic sampling chain, PPO on its likelihood.

    Running out of time is failure: a critic that looks past the time limit can come to predict
    success for a policy that has unlearned it (PickCube, one seed of two: 30 to 5 %).
    """
    return replace(
        sft(task),
        name=f"maniskill/{recipe_stem(task)}_flow_sde",
        advantage=component("advantages", "gae", bootstrap_truncated=False),
        total_env_steps=500_000,
    )


def flow_noise(task: str) -> TrainConfig:
    """Flow-Noise: a noise network gives each step its std."""
    base = flow_sde(task)
    flow = FlowConfig(sampler="noise", std_min=0.08, std_max=0.16)
    return replace(
        base,
        name=f"maniskill/{recipe_stem(task)}_flow_noise",
        policy=base.policy.replace(flow=flow),
        algorithm=base.algorithm.replace(entropy_coef=0.005),
    )


def grpo(task: str) -> TrainConfig:
    """GRPO on the same flow policy: groups of 8 episodes from one initial state, no critic."""
    base = flow_sde(task)
    return replace(
        base,
        name=f"maniskill/{recipe_stem(task)}_grpo",
        env=replace(base.env, group_size=8),
        policy=base.policy.replace(critic="none"),
        algorithm=component(
            "algorithms",
            "grpo",
            learning_rate=LEARNING_RATE,
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
        name=f"maniskill/{recipe_stem(task)}_ppo",
        policy=component("policies", "gaussian_mlp", hidden_dims=(256, 256, 256), units="action"),
        algorithm=base.algorithm.replace(clip_ratio_low=0.2, clip_ratio_high=0.2),
    )


def rgb_flow_sde(task: str) -> TrainConfig:
    """Flow-SDE on pictures and what the robot feels, from a dataset of one's own.

    Name the dataset with ``--imitation.dataset``: the scripted experts act on object poses, which
    observations with pictures leave out.
    """
    base = flow_sde(task)
    return replace(
        base,
        name=f"maniskill/{recipe_stem(task)}_rgb_flow_sde",
        env=replace(
            base.env,
            simulator=component("envs", "maniskill", tasks=(task,), obs_mode="rgb"),
            observations=(),
            num_envs=256,
        ),
        policy=component("policies", "flow_transformer", flow=FlowConfig()),
        imitation=None,
    )


ALGORITHMS = {
    "sft": sft,
    "flow_sde": flow_sde,
    "flow_noise": flow_noise,
    "grpo": grpo,
    "ppo": ppo,
    "rgb_flow_sde": rgb_flow_sde,
}


def recipe_stem(task: str) -> str:
    """``PickCube-v1`` as ``pick_cube``."""
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in task.removesuffix("-v1"))
    return words.removeprefix("_")


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Every task that has an expert, with every algorithm."""
    return {
        f"maniskill/{recipe_stem(task)}_{name}": partial(recipe, task)
        for task in CONTROL_MODES
        for name, recipe in ALGORITHMS.items()
    }
