"""Questions as people see them: the pictures, enlarged by whole pixels, and the text below.

``python -m embodied_rl.envs.vqa.sheet FILE.png [TASK ...]`` draws one held-out question of every
task, with its answer.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from embodied_rl.envs.vqa import TASKS, load_task
from embodied_rl.envs.vqa.common import Image
from embodied_rl.types import Question

GAP = 4
LINE = 15
PAPER = (255, 255, 255)


def draw_question(question: Question, *, width: int, text: str) -> Image:
    """The pictures in rows, then ``text``, uint8 ``[height, width, 3]``."""
    pictures = [PILImage.fromarray(picture) for picture in _scaled(question.images, width)]
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, width // 6) or [""]]
    places, x, y, tallest = [], GAP, GAP, 0
    for picture in pictures:
        if x > GAP and x + picture.width + GAP > width:
            x, y, tallest = GAP, y + tallest + GAP, 0
        places.append((x, y))
        x, tallest = x + picture.width + GAP, max(tallest, picture.height)
    top = y + tallest + GAP
    tile = PILImage.new("RGB", (width, top + LINE * len(lines) + GAP), PAPER)
    for picture, place in zip(pictures, places, strict=True):
        tile.paste(picture, place)
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(size=11)
    for number, line in enumerate(lines):
        pen.text((GAP, top + LINE * number), line, fill=(0, 0, 0), font=font)
    return np.array(tile)


def _scaled(pictures: Sequence[Image], width: int) -> list[Image]:
    """Enlarged by the same whole factor, at most 3, as far as four fit next to each other.

    What is wider than the tile is cut down by leaving pixels out.
    """
    widest = max((picture.shape[1] for picture in pictures), default=1)
    across = min(len(pictures), 4)
    factor = max(min(3, (width - GAP) // (across * (widest + GAP))), 1)
    skip = -(-(widest + 2 * GAP) // width)
    return [picture[::skip, ::skip].repeat(factor, 0).repeat(factor, 1) for picture in pictures]


def contact_sheet(names: Sequence[str], *, columns: int = 3, width: int = 440) -> Image:
    """A held-out question of each task with its answer, each below the shortest column so far."""
    stacks: list[list[Image]] = [[] for _ in range(columns)]
    heights = [0] * columns
    for name in names:
        task = load_task(name)
        question = task.make_question(task.options(), seed=0, split="heldout")
        tile = draw_question(
            question, width=width, text=f"{name}: {question.prompt}\n-> {question.answer}"
        )
        shortest = heights.index(min(heights))
        stacks[shortest].append(tile)
        heights[shortest] += len(tile) + 2 * GAP
    sheet = np.full((max(heights), columns * width, 3), 255, np.uint8)
    for column, stack in enumerate(stacks):
        top = 0
        for tile in stack:
            sheet[top : top + len(tile), column * width : (column + 1) * width] = tile
            top += len(tile) + 2 * GAP
    return sheet


if __name__ == "__main__":
    PILImage.fromarray(contact_sheet(sys.argv[2:] or list(TASKS))).save(sys.argv[1], optimize=True)
