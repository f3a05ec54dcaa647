"""Question answering about pictures: tasks whose questions a program makes, and files.

``TASKS`` names every task; `load_task` imports one. The environment that asks the questions and the
rewards that check the answers are elsewhere: a generator knows its reward only by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from embodied_rl.registry import near_names

if TYPE_CHECKING:
    from embodied_rl.envs.vqa.common import Task

__all__ = ["TASKS", "TaskEntry", "load_task"]


class TaskEntry(NamedTuple):
    """Where a task is, which reward checks it, and what that reward gives for a random guess.

    ``chance`` is for default options: exact where the answer is one of some candidates, else
    measured on 2,000 questions by the task's own ``guess`` (see docs/vqa.md for the measure).
    """

    target: str
    reward: str
    chance: float


TASKS: dict[str, TaskEntry] = {
    "shapes_vqa": TaskEntry("shapes:SHAPES_VQA", "exact_match", (3 / 4 + 1 / 3) / 4),
    "shapes_ground": TaskEntry("grounding:SHAPES_GROUND", "box_iou", 0.027),
    "crowd_boxes": TaskEntry("grounding:CROWD_BOXES", "box_match", 0.022),
    "jigsaw_full": TaskEntry("jigsaw:JIGSAW_FULL", "jigsaw_fraction", 1 / 4),
    "jigsaw_pair": TaskEntry("jigsaw:JIGSAW_PAIR", "choice_match", 1 / 8),
    "chart_qa": TaskEntry("charts:CHART_QA", "numeric", (1 / 9 + 1 / 4 + 1 / 4) / 3),
    "chart_to_code": TaskEntry("charts:CHART_TO_CODE", "chart_code", 0.0),
    "temporal_grounding": TaskEntry("video:TEMPORAL_GROUNDING", "tiou", 0.244),
    "strip_video": TaskEntry("video:STRIP_VIDEO", "exact_match", 1 / 4),
    "trance_like": TaskEntry("trance:TRANCE_LIKE", "transformation_partial", 0.0),
    "affordance_points": TaskEntry("affordance:AFFORDANCE_POINTS", "point_match", 0.022),
    "few_shot_classification": TaskEntry("few_shot:FEW_SHOT", "class_match", 1 / 2),
    "timeseries_plot": TaskEntry("timeseries:TIMESERIES", "class_match", 1 / 4),
    "page_rerank": TaskEntry("pages:PAGE_RERANK", "rerank", 0.12),
    "pairwise_judge": TaskEntry("judge:PAIRWISE_JUDGE", "pairwise_choice", 1 / 2),
    "perception_checklist": TaskEntry("judge:PERCEPTION_CHECKLIST", "checklist", 1 / 16),
    "retrieval_embed": TaskEntry("retrieval:RETRIEVAL_EMBED", "retrieval_rank", 1 / 50),
    "cad_code": TaskEntry("cad:CAD_CODE", "cad_geometry", 0.0),
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
