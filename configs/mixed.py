"""One policy for two kinds of tasks: it answers questions in words and moves a point to a goal.

``mixed/shapes_and_reach``: the policy ``joint`` imitates reference answers to "Which colour has the
...?" and straight ways to the goal, few of each, then GRPO on both at once: groups of questions and
groups of episodes in one batch, through one advantage and one loss. The time limit leaves no step
to spare for a goal along an axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from embodied_rl.config import EnvConfig, EvalConfig, ImitationConfig, TrainConfig, component
from embodied_rl.flow import FlowConfig

SHAPES = {"kinds": ["colour"], "size": 32, "grid": 2, "num_objects": 2, "max_count": 2}


def parts(*, split: str, pictures: str = "shown") -> dict[str, dict[str, Any]]:
    """Options of the two environments; ``pictures="blank"`` is a control."""
    return {
        "reach": {"max_episode_steps": 9},
        "vqa": {
            "tasks": ["shapes_vqa"],
            "knobs": {"shapes_vqa": SHAPES},
            "split": split,
            "answer_bytes": 8,
            "pictures": pictures,
        },
    }


def shapes_and_reach() -> TrainConfig:
    """Imitate 300 examples of each, then GRPO in groups of 8."""
    return TrainConfig(
        name="mixed/shapes_and_reach",
        env=EnvConfig(
            simulator=component("envs", "mixture", parts=parts(split="train")),
            num_envs=512,
            group_size=8,
            chunk_length=4,
        ),
        policy=component("policies", "joint", flow=FlowConfig(noise_level=0.3)),
        algorithm=component(
            "algorithms", "grpo", learning_rate=2e-4, num_epochs=1, num_minibatches=4
        ),
        advantage=component("advantages", "group_relative"),
        imitation=ImitationConfig(
            episodes_per_task=300, num_steps=500, batch_size=128, learning_rate=1e-3
        ),
        evaluation=EvalConfig(episodes=600),
        total_env_steps=500_000,
    )


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes of this file by name."""
    return {"mixed/shapes_and_reach": shapes_and_reach}
