"""Recipes for vision-language models that answer questions about pictures.

``vqa/shapes_sft``, ``vqa/shapes_grpo``: a tiny SmolVLM with random weights (1 M parameters)
imitates reference answers to 3,000 questions about coloured shapes (colour, count, comparison; one
object, or as many as the answer needs), then GRPO with a reward of 1 for the right answer. Another
model: ``--policy.model FOLDER_OR_HUB_NAME``; the whole task: ``--env.simulator.knobs '{}'``.
Training asks the ``train`` questions, evaluation the ``heldout`` ones, about pairs of colour and
shape that training never shows. How much the pictures matter: ``embodied-rl eval RUN --env-options
'{pictures: blank}'``.

``vqa/small_vlm_grpo``: the same questions for the model of 138 M parameters that ``embodied-rl
build-vlm small_vlm`` makes, with adapters on bfloat16 weights and fewer questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from embodied_rl.config import EnvConfig, EvalConfig, ImitationConfig, TrainConfig, component

KNOBS = {"kinds": ("colour", "count", "comparison"), "num_objects": 1, "max_count": 2}


def shapes_sft() -> TrainConfig:
    """Imitate the reference answers to three thousand questions."""
    return TrainConfig(
        name="vqa/shapes_sft",
        env=EnvConfig(
            simulator=component("envs", "vqa", tasks=("shapes_vqa",), knobs={"shapes_vqa": KNOBS}),
            num_envs=256,
            group_size=8,
        ),
        policy=component("policies", "vlm", model="tiny/smolvlm", max_new_tokens=16),
        algorithm=component(
            "algorithms", "grpo", learning_rate=1e-4, num_epochs=1, num_minibatches=2
        ),
        advantage=component("advantages", "group_relative"),
        imitation=ImitationConfig(
            episodes_per_task=3000, num_steps=250, batch_size=32, learning_rate=1e-3
        ),
        evaluation=EvalConfig(episodes=300, env_options={"split": "heldout"}),
        total_env_steps=0,
    )


def shapes_grpo() -> TrainConfig:
    """Then GRPO: eight answers to each of 32 questions per update."""
    base = shapes_sft()
    return replace(
        base,
        name="vqa/shapes_grpo",
        total_env_steps=1_024_000,
    )


def small_vlm_grpo() -> TrainConfig:
    """A real small model: 320 reference answers, then eight answers to each of 16 questions."""
    base = shapes_sft()
    return replace(
        base,
        name="vqa/small_vlm_grpo",
        env=replace(base.env, num_envs=128),
        policy=component(
            "policies",
            "vlm",
            model="small_vlm",
            dtype="bfloat16",
            lora_rank=16,
            max_new_tokens=4,
        ),
        algorithm=component(
            "algorithms", "grpo", learning_rate=5e-4, num_epochs=1, num_minibatches=1
        ),
        imitation=ImitationConfig(
            episodes_per_task=320, num_steps=20, batch_size=16, learning_rate=1e-3
        ),
        evaluation=replace(base.evaluation, modes=("greedy",)),
        total_env_steps=50 * 128,
    )


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes of this file by name."""
    return {
        "vqa/shapes_sft": shapes_sft,
        "vqa/shapes_grpo": shapes_grpo,
        "vqa/small_vlm_grpo": small_vlm_grpo,
    }
