"""``trance_like``: which objects changed between two views (system 63, STAR-R1; TRANCE).

The first picture shows numbered places of objects (1, 2, ... row by row), the second the same scene
after some objects changed colour or shape, seen after the stated quarter turns. The answer lists
(object, attribute, new value).

Held out: pairs of colour and shape (see `scene`): train scenes never hold one, and every object of
a held-out scene before the change is one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import Split, Task, check_range, stream
from embodied_rl.envs.vqa.scene import (
    COLOURS,
    SHAPES,
    Item,
    asked_pairs,
    draw_scene,
    place,
    read_scene,
    shown_pairs,
)
from embodied_rl.types import Question

VALUES = {"colour": COLOURS, "shape": SHAPES}


@dataclass(frozen=True, kw_only=True)
class TranceOptions:
    """Knobs of ``trance_like``.

    Attributes:
        size: of each picture in pixels.
        grid: objects stand in the cells of a raster of grid x grid.
        num_objects: in the scene.
        max_changes: changes, drawn from 1 to this; each of another object.
        turn: whether the second view may be turned by quarter turns.
    """

    size: int = 64
    grid: int = 4
    num_objects: int = 4
    max_changes: int = 2
    turn: bool = True

    def __post_init__(self) -> None:
        check_range("num_objects", self.num_objects, 1, self.grid**2)
        check_range("max_changes", self.max_changes, 1, self.num_objects)


def turned(item: Item, turns: int, *, size: int) -> Item:
    """Where an object stands after ``turns`` quarter turns clockwise; itself, it stays upright."""
    x, y = item.x, item.y
    for _ in range(turns):
        x, y = size - 1 - y, x
    return replace(item, x=x, y=y)


def _in_reading_order(items: Sequence[Item], *, size: int, grid: int) -> list[Item]:
    step = size // grid
    return sorted(items, key=lambda item: (item.y // step, item.x // step))


def _change(rng: Random, item: Item, split: Split) -> tuple[str, str]:
    """Another colour or shape for ``item`` that this split may show."""
    allowed = shown_pairs(split)
    attribute = rng.choice(("colour", "shape"))
    if attribute == "colour":
        return attribute, rng.choice(
            [c for c in COLOURS if c != item.colour and (c, item.shape) in allowed]
        )
    return attribute, rng.choice(
        [s for s in SHAPES if s != item.shape and (item.colour, s) in allowed]
    )


def make_question(
    options: TranceOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """What changed? ``data``: changes ``[[object, attribute, value], ...]``, turns."""
    rng = stream("trance_like", options, seed=seed, split=split)
    pairs = [rng.choice(asked_pairs(split)) for _ in range(options.num_objects)]
    size, grid = options.size, options.grid
    before = _in_reading_order(place(rng, pairs, size=size, grid=grid), size=size, grid=grid)
    after, changes = list(before), []
    number = rng.randint(1, options.max_changes)
    for index in sorted(rng.sample(range(len(before)), number)):
        attribute, value = _change(rng, before[index], split)
        after[index] = replace(before[index], **{attribute: value})
        changes.append([index + 1, attribute, value])
    turns = rng.randrange(4) if options.turn else 0
    view = [turned(item, turns, size=size) for item in after]
    images = (draw_scene(before, size=size), draw_scene(view, size=size)) if draw else ()
    seen = (
        f"after turning the scene {90 * turns} degrees clockwise" if turns else "from the same side"
    )
    return Question(
        task="trance_like",
        prompt=(
            "The first picture shows objects, numbered row by row from the top left, starting at "
            f"1. The second shows them later, {seen}; some changed colour or shape. Answer with a "
            "list of [object, attribute, new value] (attributes: colour of "
            f"{', '.join(COLOURS)}; shape of {', '.join(SHAPES)})."
        ),
        answer=json.dumps(changes),
        images=images,
        data={
            "changes": changes,
            "turns": turns,
            "grid": grid,
            "num_objects": options.num_objects,
            "max_changes": options.max_changes,
            "key": repr((before, changes, turns)),
            "brief": f"{turns} turns. what?",
            "reward": "transformation_partial",
        },
    )


def solve(question: Question) -> str:
    """The changes from the pixels: both scenes read, the second turned back."""
    first, second = question.images
    size, grid = len(first), question.data["grid"]
    before = _in_reading_order(read_scene(first), size=size, grid=grid)
    back = (4 - question.data["turns"]) % 4
    later = [turned(item, back, size=size) for item in read_scene(second)]
    found = []
    for number, item in enumerate(before, start=1):
        now = min(later, key=lambda other: abs(other.x - item.x) + abs(other.y - item.y))
        if now.colour != item.colour:
            found.append([number, "colour", now.colour])
        if now.shape != item.shape:
            found.append([number, "shape", now.shape])
    return json.dumps(found)


def guess(question: Question, rng: Random) -> str:
    """Random changes, as many as there may be."""
    data = question.data
    number = rng.randint(1, data["max_changes"])
    objects = sorted(rng.sample(range(1, data["num_objects"] + 1), number))
    attributes = [rng.choice(tuple(VALUES)) for _ in objects]
    return json.dumps(
        [[o, a, rng.choice(VALUES[a])] for o, a in zip(objects, attributes, strict=True)]
    )


TRANCE_LIKE = Task(
    options=TranceOptions,
    make_question=make_question,
    solve=solve,
    guess=guess,
    check=answers.same_changes,
)
