"""Question answering about pictures: tasks whose questions a program makes, and files.

``TASKS`` names every task; `load_task` imports one. `env` asks the questions as an environment.
Rewards are elsewhere: a generator knows its own only by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from embodied_rl.registry import near_names

if TYPE_CHECKING:
    from embodied_rl.envs.vqa.common import Task

__all__ = ["TASKS", "TaskEntry", "load_task"]


class TaskEntry(NamedTuple):
    """Where a task is, which reward checks it, and how far one gets without looking.

    ``chance`` and ``blind`` are what the plain scores of ``tests/conformance/test_vqa_tasks.py``
    give on held-out questions of default options: exact where the answer is one of some
    candidates, else measured (see docs/vqa.md).

    Attributes:
        target: module and name of the ``Task``.
        reward: name of the reward that checks the answers.
        chance: score of the task's own ``guess``, a random answer of the right form.
        blind: score of the best answer that is known from the text of the prompt alone.
        about: what the task asks, in words.
    """

    target: str
    reward: str
    chance: float
    blind: float
    about: str


TASKS: dict[str, TaskEntry] = {
    "shapes_vqa": TaskEntry(
        "shapes:SHAPES_VQA",
        "match",
        (3 / 4 + 1 / 3) / 4,
        (3 / 4 + 1 / 3) / 4,
        "count, name, find and compare coloured shapes",
    ),
    "shapes_ground": TaskEntry(
        "grounding:SHAPES_GROUND", "box_iou", 0.028, 0.055, "say where a coloured shape is"
    ),
    "crowd_boxes": TaskEntry(
        "grounding:CROWD_BOXES",
        "hungarian_boxes",
        0.022,
        0.062,
        "say where all shapes of a kind are",
    ),
    "jigsaw_full": TaskEntry(
        "jigsaw:JIGSAW_FULL",
        "jigsaw_fraction",
        1 / 4,
        1 / 4,
        "put the pieces of a picture in order",
    ),
    "jigsaw_pair": TaskEntry(
        "jigsaw:JIGSAW_PAIR", "match", 1 / 8, 1 / 8, "say how two pieces of a picture lie"
    ),
    "chart_qa": TaskEntry(
        "charts:CHART_QA",
        "match",
        (1 / 9 + 1 / 4 + 1 / 4) / 3,
        (1 / 9 + 1 / 4 + 1 / 4) / 3,
        "read a value, or the largest or smallest one, from a chart",
    ),
    "chart_to_code": TaskEntry(
        "charts:CHART_TO_CODE", "chart_text_struct", 0.0, 0.0, "write the program of a chart"
    ),
    "temporal_grounding": TaskEntry(
        "video:TEMPORAL_GROUNDING", "tiou", 0.182, 0.227, "say when an object is visible in a film"
    ),
    "strip_video": TaskEntry(
        "video:STRIP_VIDEO", "match", 1 / 4, 1 / 4, "name what flashes up between the frames shown"
    ),
    "trance_like": TaskEntry(
        "trance:TRANCE_LIKE",
        "transformation_partial",
        0.004,
        0.009,
        "list what changed between two views",
    ),
    "affordance_points": TaskEntry(
        "affordance:AFFORDANCE_POINTS", "point_match", 0.013, 0.049, "point at the handle of a tool"
    ),
    "few_shot_classification": TaskEntry(
        "few_shot:FEW_SHOT", "exact_label", 1 / 2, 1 / 2, "name a picture after labelled examples"
    ),
    "digits": TaskEntry("digits:DIGITS", "exact_label", 1 / 10, 1 / 10, "name a drawn digit"),
    "timeseries_plot": TaskEntry(
        "timeseries:TIMESERIES", "exact_label", 1 / 4, 1 / 4, "name the kind of a plotted signal"
    ),
    "page_rerank": TaskEntry(
        "pages:PAGE_RERANK", "rerank_rrk3", 0.12, 0.12, "put the pages about a title first"
    ),
    "pairwise_judge": TaskEntry(
        "judge:PAIRWISE_JUDGE", "match", 1 / 2, 1 / 2, "say which of two replies is right"
    ),
    "perception_checklist": TaskEntry(
        "judge:PERCEPTION_CHECKLIST",
        "perception_checklist",
        1 / 16,
        1 / 16,
        "count the objects of some colours and add the counts up",
    ),
    "retrieval_embed": TaskEntry(
        "retrieval:RETRIEVAL_EMBED",
        "embedding_rank_gap",
        1 / 50,
        0.002,
        "describe a picture so that it is found among many",
    ),
    "visual_search": TaskEntry(
        "search:VISUAL_SEARCH", "match", 1 / 10, 1 / 10, "read a digit that only a zoom shows"
    ),
    "cad_code": TaskEntry(
        "cad:CAD_CODE", "exec_geometry", 0.0, 0.004, "write the CadQuery program of a drawn solid"
    ),
}


def load_task(name: str) -> Task:
    """The task, imported on first use.

    Raises:
        ValueError: no such task; the message lists near ones.
    """
    if name not in TASKS:
        hint = near_names(name, TASKS) or f" (known: {', '.join(TASKS)})"
        raise ValueError(f"no task {name!r}{hint}")
    module, attribute = TASKS[name].target.split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
