"""Recipes for vision-language models that answer questions about pictures.

``vqa/shapes_sft``, ``vqa/shapes_grpo``: a tiny Qwen2.5-VL with random weights (1 M parameters)
imitates reference answers to questions about coloured shapes, then GRPO with a reward of 1 for the
right answer. Any other model: ``--policy.model FOLDER_OR_HUB_NAME``. Training asks the ``train``
questions, evaluation the ``heldout`` ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from embodied_rl.config import EnvConfig, EvalConfig, ImitationConfig, TrainConfig, component


def shapes_sft() -> TrainConfig:
    """Imitate the reference answers to a few thousand questions."""
    return TrainConfig(
        name="vqa/shapes_sft",
        env=EnvConfig(
            simulator=component("envs", "vqa", tasks=("shapes_vqa",)), num_envs=128, group_size=8
        ),
        policy=component("policies", "vlm", model="tiny/qwen2_5_vl", max_new_tokens=16),
        algorithm=component("algorithms", "grpo", learning_rate=1e-4, num_epochs=1),
        advantage=component("advantages", "group_relative"),
        imitation=ImitationConfig(
            episodes_per_task=4000, num_steps=600, batch_size=32, learning_rate=1e-3
        ),
        evaluation=EvalConfig(episodes=300, env_options={"split": "heldout"}),
        total_env_steps=0,
    )


def shapes_grpo() -> TrainConfig:
    """Then GRPO: eight answers to each of 16 questions per update."""
    base = shapes_sft()
    return replace(
        base,
        name="vqa/shapes_grpo",
        total_env_steps=25_600,
    )


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes of this file by name."""
    return {"vqa/shapes_sft": shapes_sft, "vqa/shapes_grpo": shapes_grpo}
