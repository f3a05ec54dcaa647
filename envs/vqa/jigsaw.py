"""``jigsaw_full`` and ``jigsaw_pair``: put a picture together again (system 10, Jigsaw-R1).

The picture is a plane of colour, c(x, y) = 128 + 90 (x u + y v) per channel with x, y in [-1/2,
1/2] and two different directions u, v in colour space, and shapes on it that cross the cuts. So
the place of every piece can be read from colours as well as from edges that fit. With few cells,
it also helps to know only that neighbouring pieces match at the cut.

Held out: pairs of colour and shape (see `scene`); the shapes of a held-out picture are all held-out
ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import (
    Image,
    Split,
    Task,
    check_range,
    guess_candidate,
    stream,
)
from embodied_rl.envs.vqa.scene import PALETTE, Item, asked_pairs, paint
from embodied_rl.types import Question

DIRECTIONS = ((1, 0, -1), (-1, 1, 0), (0, -1, 1), (-1, 0, 1), (1, -1, 0), (0, 1, -1))
RELATIONS = (
    ("above left", -1, -1),
    ("above", -1, 0),
    ("above right", -1, 1),
    ("left", 0, -1),
    ("right", 0, 1),
    ("below left", 1, -1),
    ("below", 1, 0),
    ("below right", 1, 1),
)
"""Name, rows and columns from the first piece to the second."""


@dataclass(frozen=True, kw_only=True)
class JigsawFullOptions:
    """Knobs of ``jigsaw_full``.

    Attributes:
        rows: of pieces.
        columns: of pieces.
        size: of the picture in pixels, cut down to whole pieces.
        num_shapes: drawn on the picture.
    """

    rows: int = 2
    columns: int = 2
    size: int = 64
    num_shapes: int = 4

    def __post_init__(self) -> None:
        _check(self)
        if self.rows * self.columns < 2:
            raise ValueError("one piece is no puzzle: choose rows x columns >= 2")


@dataclass(frozen=True, kw_only=True)
class JigsawPairOptions:
    """Knobs of ``jigsaw_pair``.

    Attributes:
        rows: of pieces, of which two neighbours are shown; >= 2.
        columns: likewise.
        size: of the whole picture in pixels, cut down to whole pieces.
        num_shapes: drawn on the whole picture.
    """

    rows: int = 2
    columns: int = 2
    size: int = 64
    num_shapes: int = 4

    def __post_init__(self) -> None:
        _check(self)
        check_range("rows", self.rows, 2, self.size // 12)
        check_range("columns", self.columns, 2, self.size // 12)


def _check(options: JigsawFullOptions | JigsawPairOptions) -> None:
    rows, columns, size = options.rows, options.columns, options.size
    check_range("num_shapes", options.num_shapes, 0, 256)
    check_range("size", size, 24, 1024)
    if rows < 1 or columns < 1 or size // max(rows, columns) < 12:
        raise ValueError(
            f"{rows} x {columns} pieces of a picture of {size} pixels are too small: choose fewer, "
            "or a larger size, so that a piece has at least 12 pixels"
        )


@dataclass(frozen=True)
class _Picture:
    """Content of a picture: the two colour directions and the shapes on them."""

    u: tuple[int, int, int]
    v: tuple[int, int, int]
    items: tuple[Item, ...]


def _draw_picture(
    rng: Random, options: JigsawFullOptions | JigsawPairOptions, split: Split
) -> _Picture:
    u = rng.choice(DIRECTIONS)
    v = rng.choice([d for d in DIRECTIONS if d != u and d != tuple(-c for c in u)])
    # Small enough that no piece is covered by one shape.
    radius = options.size // max(options.rows, options.columns) // 4
    items = tuple(
        Item(
            *rng.choice(asked_pairs(split)),
            rng.randrange(radius, options.size - radius),
            rng.randrange(radius, options.size - radius),
            radius,
        )
        for _ in range(options.num_shapes)
    )
    return _Picture(u, v, items)


def _pieces(picture: _Picture, options: JigsawFullOptions | JigsawPairOptions) -> list[list[Image]]:
    """``[rows][columns]`` of pieces."""
    height = options.size // options.rows * options.rows
    width = options.size // options.columns * options.columns
    y, x = np.mgrid[:height, :width]
    plane = (x / (width - 1) - 0.5)[..., None] * np.array(picture.u)
    plane = plane + (y / (height - 1) - 0.5)[..., None] * np.array(picture.v)
    image = np.rint(128 + 90 * plane).astype(np.uint8)
    for item in picture.items:
        paint(image, item)
    bands = np.split(image, options.rows, axis=0)
    return [[np.ascontiguousarray(p) for p in np.split(b, options.columns, axis=1)] for b in bands]


def make_full(
    options: JigsawFullOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """In which order do the mixed pieces restore the picture? ``data``: permutation, grid."""
    rng = stream("jigsaw_full", options, seed=seed, split=split)
    picture = _draw_picture(rng, options, split)
    count = options.rows * options.columns
    order = rng.sample(range(1, count + 1), count)
    return Question(
        task="jigsaw_full",
        prompt=(
            f"A picture was cut into {options.rows} x {options.columns} pieces (rows x columns), "
            "and the pieces were mixed. Number the pieces as shown, row by row from the top left, "
            f"starting at one. Answer with the {count} numbers, separated by spaces, in the order "
            "that restores the picture row by row."
        ),
        answer=" ".join(map(str, order)),
        images=(_mixed(picture, options, order),) if draw else (),
        data={
            "permutation": order,
            "grid": (options.rows, options.columns),
            "key": repr((picture, order)),
            "brief": "order?",
            "reward": "jigsaw_fraction",
        },
    )


def _mixed(picture: _Picture, options: JigsawFullOptions, order: list[int]) -> Image:
    """The picture whose piece number order[i] is the piece that belongs to place i."""
    right = [piece for row in _pieces(picture, options) for piece in row]
    shown = [right[order.index(number)] for number in range(1, len(order) + 1)]
    columns = options.columns
    rows = [np.hstack(shown[start : start + columns]) for start in range(0, len(shown), columns)]
    return np.ascontiguousarray(np.vstack(rows))


def make_pair(
    options: JigsawPairOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """On which side of the first piece lies the second? ``data``: relation, candidates, choices."""
    rng = stream("jigsaw_pair", options, seed=seed, split=split)
    picture = _draw_picture(rng, options, split)
    index = rng.randrange(len(RELATIONS))
    name, down, right = RELATIONS[index]
    row = rng.randrange(max(0, -down), options.rows - max(0, down))
    column = rng.randrange(max(0, -right), options.columns - max(0, right))
    images: tuple[Image, ...] = ()
    if draw:
        pieces = _pieces(picture, options)
        images = (pieces[row][column], pieces[row + down][column + right])
    letters = "ABCDEFGH"
    choices = ", ".join(f"{letters[i]}: {RELATIONS[i][0]}" for i in range(len(RELATIONS)))
    return Question(
        task="jigsaw_pair",
        prompt=(
            "These are two neighbouring pieces of one picture. Seen from the first, where is the "
            f"second? {choices}. Answer with one letter."
        ),
        answer=letters[index],
        images=images,
        data={
            "relation": name,
            "candidates": tuple(letters),
            "choices": tuple(name for name, _, _ in RELATIONS),
            "key": repr((picture, row, column, name)),
            "brief": "where?",
            "reward": "match",
        },
    )


def _plane(piece: Image) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least-squares plane of colour through the pixels that no shape covers.

    Returns:
        Colour at the middle of the piece ``[3]`` and its change per pixel to the right and down
        ``[2, 3]``.
    """
    height, width = piece.shape[:2]
    covered = np.zeros((height, width), bool)
    for rgb in PALETTE.values():
        covered |= (piece == rgb).all(-1)
    y, x = np.nonzero(~covered)
    columns = np.stack([np.ones(len(x)), x - (width - 1) / 2, y - (height - 1) / 2], axis=1)
    fit = np.linalg.lstsq(columns, piece[y, x].astype(float), rcond=None)[0]
    return np.asarray(fit[0], np.float64), np.asarray(fit[1:], np.float64)


def _offset(first: Image, second: Image) -> tuple[float, float]:
    """Rows and columns from the first piece to the second, by the colour of their planes."""
    (colour, slope), (other, other_slope) = _plane(first), _plane(second)
    slopes = (slope + other_slope) / 2
    right, down = np.linalg.lstsq(slopes.T, other - colour, rcond=None)[0]
    return down / first.shape[0], right / first.shape[1]


def solve_full(question: Question) -> str:
    """The order from the pixels: pieces sorted by where the planes of colour put them."""
    rows, columns = question.data["grid"]
    bands = np.split(question.images[0], rows, axis=0)
    shown = [piece for band in bands for piece in np.split(band, columns, axis=1)]
    offsets = [_offset(shown[0], piece) for piece in shown]
    top, left = (min(offset[axis] for offset in offsets) for axis in (0, 1))
    places = [round(down - top) * columns + round(right - left) for down, right in offsets]
    return " ".join(str(places.index(place) + 1) for place in range(rows * columns))


def solve_pair(question: Question) -> str:
    """The relation from the pixels, by the same planes."""
    offset = tuple(round(steps) for steps in _offset(*question.images))
    index = next(i for i, (_, *steps) in enumerate(RELATIONS) if tuple(steps) == offset)
    return "ABCDEFGH"[index]


def guess_full(question: Question, rng: Random) -> str:
    """A random order."""
    count = len(question.data["permutation"])
    return " ".join(map(str, rng.sample(range(1, count + 1), count)))


JIGSAW_FULL = Task(
    options=JigsawFullOptions,
    make_question=make_full,
    solve=solve_full,
    guess=guess_full,
    check=answers.same_order,
)
JIGSAW_PAIR = Task(
    options=JigsawPairOptions, make_question=make_pair, solve=solve_pair, guess=guess_candidate
)
