"""``shapes_ground`` and ``crowd_boxes``: where an object is, as boxes or points in pixels.

Boxes are ``[x1, y1, x2, y2]``, x to the right and y down from the top left corner, x2 and y2 one
past the last pixel. ``shapes_ground`` asks for the one object of a pair of colour and shape,
``crowd_boxes`` for every one of several among many.

Held out: pairs of colour and shape (see `scene`); the held-out split asks about held-out ones only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import Split, Task, check_range, stream
from embodied_rl.envs.vqa.scene import (
    PLURALS,
    Item,
    asked_pairs,
    draw_pair,
    draw_scene,
    place,
    read_scene,
    shown_pairs,
)
from embodied_rl.types import Question

OUTPUTS = ("boxes", "points")


@dataclass(frozen=True, kw_only=True)
class ShapesGroundOptions:
    """Knobs of ``shapes_ground``.

    Attributes:
        size: of the picture in pixels.
        grid: objects stand in the cells of a raster of grid x grid; fewer cells, larger objects.
        num_objects: in the picture, the asked one included.
        output: ``"boxes"`` (reward box_iou) or ``"points"`` (point_match).
    """

    size: int = 64
    grid: int = 4
    num_objects: int = 5
    output: str = "boxes"

    def __post_init__(self) -> None:
        _check(self.output, self.num_objects, self.grid)


@dataclass(frozen=True, kw_only=True)
class CrowdBoxesOptions:
    """Knobs of ``crowd_boxes``.

    Attributes:
        size: of the picture in pixels.
        grid: objects stand in the cells of a raster of grid x grid.
        num_objects: in the picture, the asked ones included.
        max_targets: objects that are asked for, drawn from 1 to this.
        output: ``"boxes"`` (reward hungarian_boxes) or ``"points"`` (point_match).
    """

    size: int = 96
    grid: int = 6
    num_objects: int = 14
    max_targets: int = 4
    output: str = "boxes"

    def __post_init__(self) -> None:
        _check(self.output, self.num_objects, self.grid)
        check_range("max_targets", self.max_targets, 1, self.num_objects)


def _check(output: str, num_objects: int, grid: int) -> None:
    if output not in OUTPUTS:
        raise ValueError(f"output is {output!r}: choose one of {OUTPUTS}")
    check_range("num_objects", num_objects, 1, grid * grid)


def make_shapes_ground(
    options: ShapesGroundOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Where is the one object of this colour and shape? ``data``: boxes, points, width, height."""
    rng = stream("shapes_ground", options, seed=seed, split=split)
    form = {
        "boxes": "Answer with its bounding box [x1, y1, x2, y2]",
        "points": "Answer with its centre [x, y]",
    }[options.output]
    reward = {"boxes": "box_iou", "points": "point_match"}[options.output]
    return _question("shapes_ground", options, rng, split, draw, 1, form, reward)


def make_crowd_boxes(
    options: CrowdBoxesOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Where are all objects of this colour and shape? ``data``: boxes, points, width, height."""
    rng = stream("crowd_boxes", options, seed=seed, split=split)
    number = rng.randint(1, options.max_targets)
    form = {
        "boxes": "Answer with a list of bounding boxes [[x1, y1, x2, y2], ...]",
        "points": "Answer with a list of their centres [[x, y], ...]",
    }[options.output]
    reward = {"boxes": "hungarian_boxes", "points": "point_match"}[options.output]
    return _question("crowd_boxes", options, rng, split, draw, number, form, reward)


def _question(
    task: str,
    options: ShapesGroundOptions | CrowdBoxesOptions,
    rng: Random,
    split: Split,
    draw: bool,
    number: int,
    form: str,
    reward: str,
) -> Question:
    pair = draw_pair(rng, asked_pairs(split))
    others = [other for other in shown_pairs(split) if other != pair]
    pairs = [pair] * number + [rng.choice(others) for _ in range(options.num_objects - number)]
    items = place(rng, pairs, size=options.size, grid=options.grid)
    targets = _in_reading_order(items[:number])
    one = task == "shapes_ground"
    name = f"{pair[0]} {pair[1] if one else PLURALS[pair[1]]}"
    question = f"Where is the {name}?" if one else f"Where are all {name}?"
    return Question(
        task=task,
        prompt=f"{question} The picture is {options.size} x {options.size} pixels. "
        f"{form} in pixels from the top left.",
        answer=_write(targets, output=options.output, one=one),
        images=(draw_scene(items, size=options.size),) if draw else (),
        data={
            "pair": pair,
            "box": targets[0].box,
            "boxes": [item.box for item in targets],
            "points": [[item.x, item.y] for item in targets],
            "width": options.size,
            "height": options.size,
            "max_targets": options.max_targets if isinstance(options, CrowdBoxesOptions) else 1,
            "output": options.output,
            "key": repr((pair, items)),
            "brief": question,
            "reward": reward,
        },
    )


def _in_reading_order(items: tuple[Item, ...] | list[Item]) -> list[Item]:
    return sorted(items, key=lambda item: (item.y, item.x))


def _write(items: list[Item], *, output: str, one: bool) -> str:
    places = [item.box if output == "boxes" else [item.x, item.y] for item in items]
    return json.dumps(places[0] if one else places)


def solve(question: Question) -> str:
    """The answer from the pixels: connected components of the asked colour and shape."""
    seen = [item for item in read_scene(question.images[0]) if item.pair == question.data["pair"]]
    one = question.task == "shapes_ground"
    return _write(seen, output=question.data["output"], one=one)


def guess(question: Question, rng: Random) -> str:
    """Random boxes or points in the picture, as many as may be asked for."""
    data = question.data
    places = []
    for _ in range(rng.randint(1, data["max_targets"])):
        xs, ys = (sorted(rng.sample(range(data[s] + 1), 2)) for s in ("width", "height"))
        box = [xs[0], ys[0], xs[1], ys[1]]
        places.append(box if data["output"] == "boxes" else [xs[0], ys[0]])
    return json.dumps(places[0] if question.task == "shapes_ground" else places)


SHAPES_GROUND = Task(
    options=ShapesGroundOptions,
    make_question=make_shapes_ground,
    solve=solve,
    guess=guess,
    check=answers.places,
)
CROWD_BOXES = Task(
    options=CrowdBoxesOptions,
    make_question=make_crowd_boxes,
    solve=solve,
    guess=guess,
    check=answers.places,
)
