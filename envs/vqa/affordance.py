"""``affordance_points``: where to take hold of a tool (system 64, Affordance-R1).

A tool is a handle (brown) and a working part (grey), drawn as rectangles and discs whose
arrangement is the tool's. It lies in one of four directions anywhere in the picture, next to loose
pieces.

Held out: tools. The held-out split shows tools of which the train split has none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

import numpy as np

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import Image, Split, Task, check_range, stream
from embodied_rl.envs.vqa.scene import BACKGROUND
from embodied_rl.types import Question

HANDLE = (139, 90, 43)
PART = (120, 126, 135)
CLUTTER = ((180, 160, 200), (160, 200, 170), (205, 180, 150))
TOOLS: dict[str, tuple[tuple[float, float, float, float], tuple[tuple[float, ...], ...]]] = {
    # Handle box and grey parts in a unit square, y down: boxes (x1, y1, x2, y2), discs (x, y, r).
    "hammer": ((0.44, 0.3, 0.56, 1.0), ((0.2, 0.1, 0.8, 0.3),)),
    "axe": ((0.44, 0.1, 0.56, 1.0), ((0.56, 0.1, 0.85, 0.4),)),
    "spoon": ((0.45, 0.4, 0.55, 1.0), ((0.5, 0.22, 0.18),)),
    "knife": ((0.42, 0.62, 0.58, 1.0), ((0.45, 0.0, 0.55, 0.62),)),
    "mug": ((0.78, 0.35, 0.95, 0.7), ((0.2, 0.2, 0.78, 0.9),)),
    "rake": (
        (0.46, 0.25, 0.54, 1.0),
        ((0.1, 0.15, 0.9, 0.25), (0.1, 0.0, 0.16, 0.15), (0.84, 0.0, 0.9, 0.15)),
    ),
    "pan": ((0.45, 0.6, 0.55, 1.0), ((0.5, 0.3, 0.3),)),
    "spade": ((0.45, 0.0, 0.55, 0.6), ((0.3, 0.6, 0.7, 1.0),)),
    "wrench": ((0.43, 0.25, 0.57, 0.8), ((0.5, 0.15, 0.15), (0.3, 0.8, 0.7, 0.95))),
}
HELDOUT_TOOLS = ("pan", "spade", "wrench")
TRAIN_TOOLS = tuple(tool for tool in TOOLS if tool not in HELDOUT_TOOLS)


@dataclass(frozen=True, kw_only=True)
class AffordanceOptions:
    """Knobs of ``affordance_points``.

    Attributes:
        size: of the picture in pixels.
        min_scale: smallest length of the tool, as a share of the picture.
        max_scale: largest.
        turn: whether the tool may lie in all four directions.
        clutter: loose pieces beside it.
    """

    size: int = 96
    min_scale: float = 0.35
    max_scale: float = 0.6
    turn: bool = True
    clutter: int = 2

    def __post_init__(self) -> None:
        check_range("min_scale", self.min_scale, 0.3, self.max_scale)
        check_range("max_scale", self.max_scale, self.min_scale, 1.0)
        check_range("size", self.size, 48, 1024)
        check_range("clutter", self.clutter, 0, 16)


@dataclass(frozen=True)
class _Content:
    tool: str
    x: int
    y: int
    length: int
    turns: int
    clutter: tuple[tuple[int, int, int, int], ...]


def _mask(part: tuple[float, ...], content: _Content, size: int) -> np.ndarray:
    """Pixels of a part: its unit square turned by quarters, scaled and moved into the picture."""
    y, x = np.mgrid[:size, :size]
    u, v = (x + 0.5 - content.x) / content.length, (y + 0.5 - content.y) / content.length
    for _ in range(content.turns):
        u, v = v, 1 - u
    if len(part) == 3:
        return (u - part[0]) ** 2 + (v - part[1]) ** 2 <= part[2] ** 2
    return (part[0] <= u) & (u <= part[2]) & (part[1] <= v) & (v <= part[3])


def _draw(content: _Content, size: int) -> Image:
    image = np.empty((size, size, 3), np.uint8)
    image[:] = BACKGROUND
    for x, y, length, colour in content.clutter:
        image[y : y + length, x : x + length] = CLUTTER[colour]
    handle, parts = TOOLS[content.tool]
    image[_mask(handle, content, size)] = HANDLE
    for part in parts:
        image[_mask(part, content, size)] = PART
    return image


def _handle_box(content: _Content, size: int) -> list[int]:
    """Pixels of the handle, less what a part covers: ``[x1, y1, x2, y2]`` from the outlines."""
    handle, parts = TOOLS[content.tool]
    mask = _mask(handle, content, size)
    for part in parts:
        mask = mask & ~_mask(part, content, size)
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def make_question(
    options: AffordanceOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Where to hold this tool? ``data``: boxes (handle), points (its middle), affordance, tool."""
    rng = stream("affordance_points", options, seed=seed, split=split)
    size = options.size
    length = round(size * rng.uniform(options.min_scale, options.max_scale))
    small = size // 8
    content = _Content(
        tool=rng.choice(HELDOUT_TOOLS if split == "heldout" else TRAIN_TOOLS),
        x=rng.randint(0, size - length),
        y=rng.randint(0, size - length),
        length=length,
        turns=rng.randrange(4) if options.turn else 0,
        clutter=tuple(
            (rng.randrange(size - small), rng.randrange(size - small), small, rng.randrange(3))
            for _ in range(options.clutter)
        ),
    )
    box = _handle_box(content, size)
    point = [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2]
    return Question(
        task="affordance_points",
        prompt=(
            f"Where would a hand take hold of this {content.tool}? The picture is {size} x {size} "
            "pixels. Answer with one point [x, y] in pixels from the top left."
        ),
        answer=json.dumps(point),
        images=(_draw(content, size),) if draw else (),
        data={
            "tool": content.tool,
            "affordance": "hold",
            "boxes": [box],
            "points": [point],
            "output": "points",
            "width": size,
            "height": size,
            "key": repr(content),
            "brief": "point?",
            "reward": "point_match",
        },
    )


def solve(question: Question) -> str:
    """The point from the pixels: the middle of everything brown."""
    rows, columns = np.nonzero((question.images[0] == HANDLE).all(-1))
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return json.dumps([int(box[0] + box[2]) // 2, int(box[1] + box[3]) // 2])


def guess(question: Question, rng: Random) -> str:
    """A random pixel."""
    return json.dumps(
        [rng.randrange(question.data["width"]), rng.randrange(question.data["height"])]
    )


AFFORDANCE_POINTS = Task(
    options=AffordanceOptions,
    make_question=make_question,
    solve=solve,
    guess=guess,
    check=answers.places,
)
