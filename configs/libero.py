"""Recipes for LIBERO: few-shot imitation, then reinforcement learning with a sparse reward.

``libero/<suite>_<algorithm>`` for the suites spatial, object, goal, 10 and 90; one policy for all
tasks of a suite, told by its instruction which one to do. The algorithms are those of
``configs.metaworld``. Observations are the vector ``relative`` and the instruction;
``libero/<suite>_images_<algorithm>`` sees two cameras and the robot's own joints instead, and wants
a GPU.

Training starts from the initial states 0 to 39 of each task, evaluation from all 50. Training takes
the ``fast`` control steps, evaluation the ``exact`` ones, which equal robosuite's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from embodied_rl.config import EnvConfig, EvalConfig, ImitationConfig, TrainConfig, component
from embodied_rl.configs.metaworld import ppo_for_flows
from embodied_rl.flow import FlowConfig

SUITES = ("spatial", "object", "goal", "10", "90")
CHUNK_LENGTH = 8
TIME_LIMITS = {"spatial": 200, "object": 200, "goal": 240, "10": 480, "90": 320}
"""Control steps; about twice what the expert needs for one pick-and-place."""
LEARNING_RATE = 2e-4
"""Falls to 0 over the run. Training success stands still after 300k steps with that or without."""
TRAINING_STATES = (0, 39)


def sft(suite: str) -> TrainConfig:
    """Imitate 4 expert episodes per task with one flow policy.

    The actions that the expert executes are noisy (DART), since clean episodes show no recoveries.
    """
    return TrainConfig(
        name=f"libero/{suite}_sft",
        env=EnvConfig(
            simulator=component(
                "envs",
                "libero",
                tasks=(f"libero_{suite}",),
                initial_states=TRAINING_STATES,
                stepping="fast",
            ),
            observations=("relative", "instruction"),
            num_envs=40,
            chunk_length=CHUNK_LENGTH,
            max_episode_steps=TIME_LIMITS[suite],
            instruction_embedding="hashed",
        ),
        policy=component("policies", "flow_mlp", flow=FlowConfig()),
        algorithm=ppo_for_flows().replace(learning_rate=LEARNING_RATE, lr_schedule="linear"),
        imitation=ImitationConfig(episodes_per_task=4, num_steps=5000, action_noise=0.3),
        evaluation=EvalConfig(
            episodes=4500 if suite == "90" else 500,
            modes=("greedy",),
            env_options={"stepping": "exact"},
        ),
        total_env_steps=0,
    )


def flow_sde(suite: str) -> TrainConfig:
    """Flow-SDE: stochastic sampling chain, PPO on its likelihood.

    Many episodes per update, advantages of one scale per task, and a critic for which running out
    of time is failure, as ``configs.metaworld`` for several tasks.
    """
    base = sft(suite)
    return replace(
        base,
        name=f"libero/{suite}_flow_sde",
        env=replace(base.env, num_envs=128),
        advantage=component("advantages", "gae", normalize="task", bootstrap_truncated=False),
        total_env_steps=4_000_000 if suite == "90" else 700_000,
    )


def flow_noise(suite: str) -> TrainConfig:
    """Flow-Noise: a noise network gives each step its std."""
    base = flow_sde(suite)
    flow = FlowConfig(sampler="noise", std_min=0.08, std_max=0.16)
    return replace(
        base,
        name=f"libero/{suite}_flow_noise",
        policy=base.policy.replace(flow=flow),
        algorithm=base.algorithm.replace(entropy_coef=0.005),
    )


def grpo(suite: str) -> TrainConfig:
    """GRPO on the same flow policy: groups of 8 episodes from one initial state, no critic."""
    base = flow_sde(suite)
    return replace(
        base,
        name=f"libero/{suite}_grpo",
        env=replace(base.env, group_size=8),
        policy=base.policy.replace(critic="none"),
        algorithm=component(
            "algorithms",
            "grpo",
            learning_rate=LEARNING_RATE,
            lr_schedule="linear",
            num_epochs=5,
            clip_ratio_low=0.02,
            clip_ratio_high=0.02,
        ),
        advantage=component("advantages", "group_relative"),
    )


def ppo(suite: str) -> TrainConfig:
    """The control: a Gaussian policy imitates by likelihood, then PPO."""
    base = flow_sde(suite)
    return replace(
        base,
        name=f"libero/{suite}_ppo",
        policy=component("policies", "gaussian_mlp", hidden_dims=(256, 256, 256), units="action"),
        algorithm=base.algorithm.replace(clip_ratio_low=0.2, clip_ratio_high=0.2),
    )


def images(suite: str, recipe: Callable[[str], TrainConfig]) -> TrainConfig:
    """Two cameras and the robot instead of poses, with a transformer; for a GPU."""
    base = recipe(suite)
    simulator = base.env.simulator.replace(images=("agentview", "wrist"), image_size=128)
    return replace(
        base,
        name=base.name.replace(suite, f"{suite}_images", 1),
        env=replace(
            base.env,
            simulator=simulator,
            observations=("agentview", "wrist", "robot", "instruction"),
        ),
        policy=component("policies", "flow_transformer", flow=FlowConfig()),
    )


ALGORITHMS = {
    "sft": sft,
    "flow_sde": flow_sde,
    "flow_noise": flow_noise,
    "grpo": grpo,
    "ppo": ppo,
}


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Every suite with every algorithm, and imitation and Flow-SDE from images."""
    table: dict[str, Callable[[], TrainConfig]] = {}
    for suite in SUITES:
        for name, recipe in ALGORITHMS.items():
            table[f"libero/{suite}_{name}"] = partial(recipe, suite)
        for name in ("sft", "flow_sde"):
            table[f"libero/{suite}_images_{name}"] = partial(images, suite, ALGORITHMS[name])
    return table
