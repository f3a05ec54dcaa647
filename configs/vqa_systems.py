"""Recipes of published systems that answer questions about pictures, by system number.

Each is the smallest form of a system's mechanism: a policy of 0.5 to 1.5 M parameters with random
weights that writes characters (``picture_generator``) learns the task of the system by imitation
for a few hundred steps, then by GRPO with the system's reward. A minute or two on one core.
`benchmarks.systems` tests them. A vision-language model instead: ``--policy.name vlm --policy.model
FOLDER_OR_HUB_NAME --env.simulator.prompt full``.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from embodied_rl.config import EnvConfig, EvalConfig, ImitationConfig, TrainConfig, component

ROWS = 256
"""Answers per update: sixteen to each of 16 questions."""

SHAPES = {"size": 28, "grid": 2, "num_objects": 2}
"""Two objects, each in a corner of its own that is one token."""


FORM = {"task": {}, "correct": {}}
"""The task's reward reads an answer generously; the check of success, added to it, does not."""
SLOW: dict[str, Any] = {"group_size": 8, "learning_rate": 2e-4}
"""Small steps over more questions: three hundred updates do not lose what imitation taught."""


def _recipe(
    name: str,
    *tasks: str,
    knobs: Mapping[str, Any],
    reward: str | Mapping[str, Any] = "task",
    characters: int,
    prompt: int = 32,
    imitation_steps: int,
    questions: int = 4000,
    updates: int,
    group_size: int = 16,
    learning_rate: float = 5e-4,
    **options: Any,
) -> TrainConfig:
    return TrainConfig(
        name=name,
        env=EnvConfig(
            simulator=component(
                "envs", "vqa", tasks=tasks, knobs=knobs, reward=reward, prompt="brief", **options
            ),
            num_envs=ROWS,
            group_size=group_size,
        ),
        policy=component(
            "policies", "picture_generator", max_new_tokens=characters, prompt_length=prompt
        ),
        algorithm=component(
            "algorithms", "grpo", learning_rate=learning_rate, num_epochs=1, num_minibatches=2
        ),
        advantage=component("advantages", "group_relative"),
        imitation=ImitationConfig(
            episodes_per_task=questions,
            num_steps=imitation_steps,
            batch_size=64,
            learning_rate=2e-3,
        ),
        evaluation=EvalConfig(episodes=200, env_options={"split": "heldout"}),
        total_env_steps=updates * ROWS,
    )


def _of_programs(config: TrainConfig, *, rows: int) -> TrainConfig:
    """For tasks that have no brief prompt, whose answers are programs: ``rows`` per update.

    A program is long and one wrong character ends it: 128 of them per gradient step.
    """
    simulator = config.env.simulator.replace(prompt="full")
    assert config.imitation is not None
    return replace(
        config,
        env=replace(config.env, simulator=simulator, num_envs=rows),
        policy=config.policy.replace(alphabet=string.printable[:95] + "\n"),
        algorithm=config.algorithm.replace(num_minibatches=rows // 128),
        imitation=replace(config.imitation, batch_size=32),
        total_env_steps=config.total_env_steps // ROWS * rows,
    )


def jigsaw_r1() -> TrainConfig:
    """System 10, Jigsaw-R1: order the pieces of a picture, paid by the share in place."""
    return _recipe(
        "vqa/jigsaw_r1",
        "jigsaw_full",
        knobs={"jigsaw_full": {"rows": 2, "columns": 2, "size": 28, "num_shapes": 2}},
        prompt=6,
        characters=8,
        imitation_steps=80,
        questions=20000,
        reward=FORM,
        updates=400,
        **SLOW,
    )


def cad_rl() -> TrainConfig:
    """System 22, CAD-RL: the CadQuery program of a drawn tube, paid by the solid it builds.

    Two dozen programs to imitate teach how one is written, and little of how to read a drawing.
    """
    config = _recipe(
        "vqa/cad_rl",
        "cad_code",
        knobs={"cad_code": {"kinds": ["tube"], "size": 56}},
        characters=96,
        imitation_steps=120,
        questions=24,
        updates=40,
        group_size=8,
        learning_rate=1e-4,
    )
    return _of_programs(config, rows=256)


def cls_rl() -> TrainConfig:
    """System 24, No-Thinking-CLS-RL: the whole answer is the label, 16 pictures per class."""
    return _recipe(
        "vqa/cls_rl",
        "digits",
        knobs={"digits": {"shots": 16}},
        reward="no_think_equal",
        prompt=6,
        characters=2,
        imitation_steps=300,
        updates=40,
    )


def mm_r5() -> TrainConfig:
    """System 25, MM-R5: rank pages for a title, paid by 1 / rank^3 of those that bear it."""
    return _recipe(
        "vqa/mm_r5",
        "page_rerank",
        knobs={"page_rerank": {"num_pages": 3, "width": 84, "height": 48, "hard_share": 0.0}},
        prompt=11,
        characters=8,
        imitation_steps=400,
        questions=20000,
        updates=200,
        **SLOW,
    )


def timemaster() -> TrainConfig:
    """System 37, TimeMaster: name a plotted signal; form, label and, if it is right, what is seen.

    The judge of the paper is a rule: the stated number of periods.
    """
    return _recipe(
        "vqa/timemaster",
        "timeseries_plot",
        knobs={"timeseries_plot": {"width": 56, "height": 28}},
        reward="ts_composite",
        answer_form="think",
        prompt=5,
        characters=64,
        imitation_steps=80,
        questions=20000,
        updates=120,
        **SLOW,
    )


def msrl() -> TrainConfig:
    """System 32, MSRL: the program of a chart, paid by its text.

    The second stage starts from these weights: ``--env.simulator.reward chart_visual``.
    """
    chart = {"kinds": ["bar"], "num_points": 2, "width": 96, "height": 96, "short": True}
    config = _recipe(
        "vqa/msrl",
        "chart_to_code",
        knobs={"chart_to_code": chart},
        characters=200,
        imitation_steps=180,
        questions=256,
        updates=8,
        group_size=8,
        learning_rate=5e-5,
    )
    return _of_programs(config, rows=128)


def r1_reward() -> TrainConfig:
    """System 48, R1-Reward: which of two replies about a picture is right?"""
    question = {
        "kinds": ["colour", "position"],
        "size": 28,
        "grid": 2,
        "max_count": 2,
        "num_objects": 2,
    }
    return _recipe(
        "vqa/r1_reward",
        "pairwise_judge",
        knobs={"pairwise_judge": {"question": question}},
        prompt=56,
        characters=2,
        imitation_steps=450,
        questions=20000,
        updates=300,
        **SLOW,
    )


def srpo() -> TrainConfig:
    """System 56, SRPO: answer, say whether it is right, answer again; paid by the transition."""
    return _recipe(
        "vqa/srpo",
        "shapes_vqa",
        knobs={
            "shapes_vqa": {
                "kinds": ["colour"],
                "size": 28,
                "grid": 2,
                "max_count": 2,
                "num_objects": 2,
            }
        },
        reward="reflection_transition",
        answer_form="reflect",
        characters=56,
        imitation_steps=300,
        questions=20000,
        updates=100,
        **SLOW,
    )


def timelens() -> TrainConfig:
    """System 60, TimeLens: when is an object visible, without thinking, paid by tIoU."""
    return _recipe(
        "vqa/timelens",
        "temporal_grounding",
        knobs={
            "temporal_grounding": {
                "num_frames": 6,
                "size": 14,
                "grid": 1,
                "num_objects": 0,
                "seconds_per_frame": 1,
            }
        },
        prompt=4,  # nothing else is in the film: which object is asked for does not matter
        characters=8,
        imitation_steps=50,
        updates=40,
    )


def star_r1() -> TrainConfig:
    """System 63, STAR-R1: what changed between two views, paid in parts, silence costs."""
    return _recipe(
        "vqa/star_r1",
        "trance_like",
        knobs={
            "trance_like": {
                "size": 28,
                "grid": 2,
                "num_objects": 2,
                "max_changes": 1,
                "turn": False,
            }
        },
        prompt=14,
        characters=26,
        imitation_steps=260,
        questions=20000,
        reward=FORM,
        updates=200,
        **SLOW,
    )


def affordance_r1() -> TrainConfig:
    """System 64, Affordance-R1: the point at which a hand takes hold of a tool."""
    return _recipe(
        "vqa/affordance_r1",
        "affordance_points",
        knobs={"affordance_points": {"size": 56, "clutter": 0, "min_scale": 0.5, "max_scale": 0.9}},
        prompt=6,
        characters=10,
        imitation_steps=90,
        questions=20000,
        reward=FORM,
        updates=300,
        **SLOW,
    )


def mixed_r1() -> TrainConfig:
    """System 67, Mixed-R1: four kinds of tasks in one batch, each with its own reward.

    A brief prompt must tell which task it is of: ``position`` asks what ``shapes_ground`` asks.
    """
    return _recipe(
        "vqa/mixed_r1",
        "shapes_vqa",
        "shapes_ground",
        "digits",
        "retrieval_embed",
        knobs={
            "shapes_vqa": {"kinds": ["colour"], "max_count": 2, **SHAPES},
            "shapes_ground": SHAPES,
            "digits": {"shots": 0},
            "retrieval_embed": {"size": 28, "num_candidates": 20},
        },
        characters=72,
        answer_bytes=128,
        imitation_steps=400,
        updates=40,
        **SLOW,
    )


def ume_r1() -> TrainConfig:
    """System 70, UME-R1: a caption that is found among fifty, paid by its rank and its gap."""
    return _recipe(
        "vqa/ume_r1",
        "retrieval_embed",
        knobs={"retrieval_embed": {"size": 28}},
        prompt=5,
        characters=72,
        imitation_steps=120,
        questions=20000,
        updates=100,
        **SLOW,
    )


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes of this file by name."""
    functions = (
        jigsaw_r1,
        cad_rl,
        cls_rl,
        mm_r5,
        msrl,
        timemaster,
        r1_reward,
        srpo,
        timelens,
        star_r1,
        affordance_r1,
        mixed_r1,
        ume_r1,
    )
    return {f"vqa/{function.__name__}": function for function in functions}
