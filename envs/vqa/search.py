"""``visual_search``: a digit too small to see until one asks for a closer look (system 8).

A canvas of S x S pixels holds coloured plates with a digit of 5 x 7 pixels each. The question shows
the canvas at V x V pixels, every (S/V)-th pixel of it, and asks for the digit on one plate. With
S/V >= 8 no pixel of a digit is among those: one turn without the tool stays at chance, 1/10,
whatever it sees. The tool is written as

    <tool_call>{"bbox": [x1, y1, x2, y2]}</tool_call>

in pixels of the canvas and returns that part of it at V x V pixels, so that a box of V pixels comes
back as it is. The form that chat models are trained to write is understood too:
``{"name": "zoom", "arguments": {"bbox": [...]}}``, also with Qwen's ``image_zoom_in_tool`` and
``bbox_2d``. A call that cannot be read, or a box outside, is answered with what to do.

Held out: places; a held-out question asks about a plate where no train question's stands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from embodied_rl.envs.vqa.common import (
    Image,
    Reply,
    Split,
    Task,
    check_range,
    draw_for_split,
    guess_candidate,
    one_of,
    stream,
)
from embodied_rl.envs.vqa.scene import BACKGROUND, PALETTE
from embodied_rl.envs.vqa.video import zoom
from embodied_rl.types import Question

COLOURS = ("red", "green", "blue", "purple")
INK = (255, 255, 255)
DIGITS = tuple("0123456789")
STEP = 8
"""Plates stand on multiples of this, so that a digit lies between the pixels that are shown."""
OPENING, CLOSING = "<tool_call>", "</tool_call>"
TOOLS = {"zoom": "bbox", "image_zoom_in_tool": "bbox_2d"}
"""Names under which the tool may be called, and that of their argument."""
# Rows of 5 pixels, the left one the highest bit
GLYPHS = {
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
}


@dataclass(frozen=True, kw_only=True)
class VisualSearchOptions:
    """Knobs of ``visual_search``.

    Attributes:
        size: S, side of the canvas in pixels.
        view: V, side of what is shown; divides S.
        num_plates: with a digit each, of different colours; the asked one is among them.
        call_cost: what a call of the tool takes off the reward.
    """

    size: int = 256
    view: int = 32
    num_plates: int = 3
    call_cost: float = 0.0

    def __post_init__(self) -> None:
        check_range("view", self.view, 24, 512)
        check_range("size", self.size, 2 * self.view, 4096)
        check_range("num_plates", self.num_plates, 1, len(COLOURS))
        check_range("call_cost", self.call_cost, 0.0, 1.0)
        if self.size % self.view:
            near = self.size // self.view * self.view
            raise ValueError(f"size is {self.size}: a multiple of view, such as {near}")

    @property
    def step(self) -> int:
        """Pixels of the canvas for one that is shown."""
        return self.size // self.view

    @property
    def plate(self) -> int:
        """Side of a plate in pixels: two of those that are shown, and room for the digit."""
        return 2 * max(self.step, STEP)


def make_question(
    options: VisualSearchOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """The question of ``seed``; ``data``: ``frames`` (the canvas), ``plates``, ``tool_turns``."""
    rng = stream("visual_search", options, seed=seed, split=split)
    plates = draw_for_split(
        rng, split, lambda rng: _place(rng, options), key=lambda plates: repr(plates[0][2:])
    )
    colour, digit, x, y = plates[0]
    canvas = draw_canvas(plates, options) if draw else None
    view = options.view
    prompt = (
        f"This is a picture of {options.size} x {options.size} pixels, shown at {view} x {view}. "
        f'To see a part of it closer, write {OPENING}{{"bbox": [x1, y1, x2, y2]}}{CLOSING} in '
        f"pixels of the full picture; a box of {view} pixels is shown as it is. Which digit stands "
        f"on the {colour} plate? {one_of(DIGITS)}"
    )
    return Question(
        task="visual_search",
        prompt=prompt,
        answer=digit,
        images=() if canvas is None else (whole(canvas, view),),
        data={
            "frames": () if canvas is None else (canvas,),
            "view": view,
            "size": options.size,
            "colour": colour,
            "plates": plates,
            "tool_turns": (call(box_at(x, y, options.size, view)),),
            "call_cost": options.call_cost,
            "candidates": DIGITS,
            "key": repr(plates),
            "reward": "match",
        },
    )


Plate = tuple[str, str, int, int]
"""Colour, digit, and the pixel of the upper left corner (x, y)."""


def _place(rng: Random, options: VisualSearchOptions) -> tuple[Plate, ...]:
    """The asked plate first, in different cells of a raster that is moved by half a cell or not."""
    side = options.plate
    cells = (options.size - side) // side
    colours = rng.sample(COLOURS, options.num_plates)
    spots = rng.sample(range(cells * cells), options.num_plates)
    shift = side // 2 * rng.randrange(2)
    return tuple(
        (colour, rng.choice(DIGITS), spot % cells * side + shift, spot // cells * side + shift)
        for colour, spot in zip(colours, spots, strict=True)
    )


def draw_canvas(plates: Sequence[Plate], options: VisualSearchOptions) -> Image:
    """uint8 [S, S, 3]."""
    canvas = np.empty((options.size, options.size, 3), np.uint8)
    canvas[:] = BACKGROUND
    for colour, digit, x, y in plates:
        canvas[y : y + options.plate, x : x + options.plate] = PALETTE[colour]
        canvas[y + 1 : y + 8, x + 2 : x + 7][glyph(digit)] = INK
    return canvas


@lru_cache(maxsize=16)
def glyph(digit: str) -> npt.NDArray[np.bool_]:
    """[7, 5] bool, the pixels of a digit."""
    rows = np.array(GLYPHS[digit])
    return (rows[:, None] >> np.arange(4, -1, -1)) % 2 == 1


def whole(canvas: Image, view: int) -> Image:
    """The canvas at ``view`` x ``view`` pixels."""
    return zoom(canvas, (0, 0, canvas.shape[1], canvas.shape[0]), size=view)


def call(box: Sequence[int]) -> str:
    """The text that asks for ``box``."""
    return f"{OPENING}{json.dumps({'bbox': list(box)})}{CLOSING}"


def box_at(x: int, y: int, size: int, view: int) -> tuple[int, int, int, int]:
    """A box of ``view`` pixels that shows pixel (x, y) and what is right of it and below."""
    left, top = (min(max(side, 0), size - view) for side in (x, y))
    return left, top, left + view, top + view


def reply(question: Question, texts: Sequence[str]) -> Reply | None:
    """The tool's answer to the last of ``texts``; None where it is the final answer."""
    text = texts[-1]
    if OPENING not in text:
        return None
    cost = -float(question.data["call_cost"])
    box = read_call(text, question.data["size"])
    if box is None:
        how = call((0, 0, question.data["view"], question.data["view"]))
        return Reply(text=f"No picture: write {how} with a box inside the picture.", reward=cost)
    crop = zoom(question.data["frames"][0], box, size=question.data["view"])
    return Reply(text=f"The part {list(box)} of the picture.", images=(crop,), reward=cost)


def read_call(text: str, size: int) -> tuple[int, int, int, int] | None:
    """The box of the only call in ``text``, None where there is none that can be shown."""
    rest = text.partition(OPENING)[2]
    body, closing, after = rest.partition(CLOSING)
    if not closing or OPENING in after:
        return None
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    box = _box_of(found)
    if not isinstance(box, list) or len(box) != 4 or any(type(side) is not int for side in box):
        return None
    x1, y1, x2, y2 = box
    return (x1, y1, x2, y2) if 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size else None


def _box_of(found: Any) -> Any:
    """What the value of a call holds in the place of its box; None where there is no such place."""
    if not isinstance(found, dict):
        return None
    if set(found) == {"bbox"}:
        return found["bbox"]
    name, arguments = found.get("name"), found.get("arguments")
    if not isinstance(name, str) or name not in TOOLS or not isinstance(arguments, dict):
        return None
    return arguments.get(TOOLS[name])


def next_text(question: Question, pictures: Sequence[Image]) -> str:
    """What a player who reads the pixels writes: a call first, then the digit it sees.

    Args:
        question: its prompt names the colour.
        pictures: seen so far: the whole picture, then what the tool returned.
    """
    colour, size, view = question.data["colour"], question.data["size"], question.data["view"]
    if len(pictures) == 1:
        y, x = np.argwhere((pictures[0] == PALETTE[colour]).all(-1)).min(0).tolist()
        step = size // view
        # The plate may begin between two pixels that are shown.
        before = step - 1 if step < STEP else 0
        return call(box_at(x * step - before, y * step - before, size, view))
    crop = pictures[-1]
    y, x = np.argwhere((crop == PALETTE[colour]).all(-1)).min(0).tolist()
    window = (crop == INK).all(-1)[y + 1 : y + 8, x + 2 : x + 7]
    return next((d for d in DIGITS if np.array_equal(window, glyph(d))), "")


def solve(question: Question) -> str:
    """The answer from the pixels, as one who asks for the part where the plate is."""
    pictures = [question.images[0]]
    answer = reply(question, [next_text(question, pictures)])
    assert answer is not None
    return next_text(question, [*pictures, *answer.images])


VISUAL_SEARCH = Task(
    options=VisualSearchOptions,
    make_question=make_question,
    solve=solve,
    guess=guess_candidate,
    reply=reply,
)
