"""Scenes of coloured shapes: drawing them, and reading them back from the pixels.

A scene is a list of `Item`; pixel (x, y) counts from the top left, x to the right. Boxes are
``[x1, y1, x2, y2]`` with x2 and y2 one past the last pixel, so that x2 - x1 is the width in pixels.

Held out: the pairs of colour and shape with (colour index + shape index) % 3 == 0, which are 12 of
36, two of every colour and two of every shape. No train picture contains one.

`read_scene` shares nothing with the drawing but the palette: connected components of equal colour,
then a shape from which pixels of its bounding box are filled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import numpy.typing as npt

from embodied_rl.envs.vqa.common import Image, Split

BACKGROUND = (238, 236, 228)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 150, 70),
    "blue": (35, 85, 215),
    "yellow": (240, 195, 30),
    "purple": (145, 55, 175),
    "black": (25, 25, 30),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
PLURALS = {shape: f"{shape}s" for shape in SHAPES} | {"cross": "crosses"}

Pair = tuple[str, str]
"""Colour and shape."""


@dataclass(frozen=True, slots=True)
class Item:
    """One drawn object: its colour and shape, the pixel at its centre, and half its width."""

    colour: str
    shape: str
    x: int
    y: int
    radius: int

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.colour, self.shape

    @property
    def box(self) -> list[int]:
        """``[x1, y1, x2, y2]``."""
        x, y, radius = self.x, self.y, self.radius
        return [x - radius, y - radius, x + radius + 1, y + radius + 1]


ALL_PAIRS: tuple[Pair, ...] = tuple((c, s) for c in COLOURS for s in SHAPES)


def is_held_out(pair: Pair) -> bool:
    """Whether no train picture contains this pair of colour and shape."""
    return (COLOURS.index(pair[0]) + SHAPES.index(pair[1])) % 3 == 0


HELD_OUT = tuple(pair for pair in ALL_PAIRS if is_held_out(pair))
TRAIN_PAIRS = tuple(pair for pair in ALL_PAIRS if not is_held_out(pair))


def asked_pairs(split: Split) -> tuple[Pair, ...]:
    """Pairs that a question may be about: in the held-out split the held-out ones."""
    return HELD_OUT if split == "heldout" else TRAIN_PAIRS


def shown_pairs(split: Split) -> tuple[Pair, ...]:
    """Pairs that may stand beside it: in the held-out split all."""
    return ALL_PAIRS if split == "heldout" else TRAIN_PAIRS


def draw_pair(rng: Random, pairs: Sequence[Pair], *, but: Sequence[Pair] = ()) -> Pair:
    """One of ``pairs`` that is not in ``but``."""
    return rng.choice([pair for pair in pairs if pair not in but])


def place(rng: Random, pairs: Sequence[Pair], *, size: int, grid: int) -> tuple[Item, ...]:
    """Put objects into different cells of a raster, off their centres by up to a pixel.

    Raises:
        ValueError: more objects than cells, or cells under 12 pixels.
    """
    if len(pairs) > grid * grid:
        raise ValueError(f"{len(pairs)} objects do not fit {grid * grid} cells: raise grid")
    cells = rng.sample(range(grid * grid), len(pairs))
    return place_in(rng, pairs, cells, size=size, grid=grid)


def place_in(
    rng: Random, pairs: Sequence[Pair], cells: Sequence[int], *, size: int, grid: int
) -> tuple[Item, ...]:
    """Like `place`, with the cells given in reading order from 0."""
    step = size // grid
    if step < 12:
        raise ValueError(f"cells of {step} pixels are too small to see: size // grid must be >= 12")
    radius = step // 2 - 2
    return tuple(
        Item(
            colour,
            shape,
            cell % grid * step + step // 2 + rng.choice((-1, 0)),
            cell // grid * step + step // 2 + rng.choice((-1, 0)),
            radius,
        )
        for (colour, shape), cell in zip(pairs, cells, strict=True)
    )


@lru_cache(maxsize=256)
def shape_mask(shape: str, radius: int) -> npt.NDArray[np.bool_]:
    """Filled pixels of a shape, ``[2 radius + 1, 2 radius + 1]``."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    circle = x**2 + y**2 <= (radius + 0.3) ** 2
    masks = {
        "circle": circle,
        "square": np.ones_like(circle),
        "triangle": 2 * np.abs(x) <= y + radius,
        "cross": (np.abs(x) <= radius // 3) | (np.abs(y) <= radius // 3),
        "ring": circle & (x**2 + y**2 > (radius / 2) ** 2),
        "diamond": np.abs(x) + np.abs(y) <= radius,
    }
    return masks[shape]


def paint(image: Image, item: Item) -> None:
    """Draw one object into ``image`` in place; what lies outside is cut off."""
    mask = shape_mask(item.shape, item.radius)
    x1, y1, x2, y2 = item.box
    height, width = image.shape[:2]
    window = image[max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)]
    top, left = max(-y1, 0), max(-x1, 0)
    shown = mask[top : top + window.shape[0], left : left + window.shape[1]]
    window[shown] = PALETTE[item.colour]


def draw_scene(items: Sequence[Item], *, size: int) -> Image:
    """The picture of a scene, uint8 ``[size, size, 3]``."""
    image = np.empty((size, size, 3), np.uint8)
    image[:] = BACKGROUND
    for item in items:
        paint(image, item)
    return image


def components(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.intp]]:
    """Pixels ``[n, 2]`` (y, x) of each connected region of ``mask``, neighbours also diagonally."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while left:
        queue = [left.pop()]
        for y, x in queue:
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    queue.append(near)
        regions.append(np.array(sorted(queue)))
    return regions


def read_shape(filled: npt.NDArray[np.bool_]) -> str:
    """The shape of a region, from which pixels of its bounding box it fills."""
    radius = (filled.shape[0] - 1) // 2
    if not filled[radius, radius]:
        return "ring"
    if filled[0, 0]:
        return "square"
    if filled[-1, 0]:
        return "triangle"
    outer, inner = radius + math.ceil(0.6 * radius), radius + radius // 2
    if filled[outer, outer]:
        return "circle"
    return "diamond" if filled[inner, inner] else "cross"


def read_scene(image: Image) -> list[Item]:
    """The objects of a picture that `draw_scene` drew, in reading order of their centres."""
    items = []
    for colour, rgb in PALETTE.items():
        for pixels in components((image == rgb).all(-1)):
            (y1, x1), (y2, x2) = pixels.min(0), pixels.max(0)
            filled = np.zeros((y2 - y1 + 1, x2 - x1 + 1), bool)
            filled[pixels[:, 0] - y1, pixels[:, 1] - x1] = True
            shape, radius = read_shape(filled), int(y2 - y1) // 2
            items.append(Item(colour, shape, int(x1) + radius, int(y1) + radius, radius))
    return sorted(items, key=lambda item: (item.y, item.x))
