"""``cad_code``: the CadQuery program of a solid from its drawing (system 22, CAD-RL).

Solids, in millimetres, standing on z = 0 and drawn on squared paper from the top and from the
front:

- ``plate``: a box of length x width x height, centred in x and y, with through holes along z;
- ``tube``: a cylinder with a through hole on its axis;
- ``shaft``: two cylinders one above the other, the upper one thinner;
- ``bracket``: an L of a floor and a wall at its left end, both ``thickness`` thick.

Every size is a whole number of squares of 4 mm, so that counting squares gives it exactly. The
prompt is the same for every solid: what it is and how large can only be seen.

The reference measures are in closed form: volume V, box of the solid, centre of mass sum(V_i c_i)
/ V over the added and cut parts, number of through holes. CadQuery itself is not needed to make a
question; where it is installed a test builds every reference program and measures the solid.

Held out: sizes, as whole tuples (a fixed quarter of them).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from random import Random

import numpy as np

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import Image, Split, Task, check_range, draw_for_split, stream
from embodied_rl.types import Question

KINDS = ("plate", "tube", "shaft", "bracket")
SQUARE = 4
"""Side of a square of the paper in mm."""
SQUARES = 14
"""Squares across the paper: the largest solid is 12 long and keeps one on either side."""
PAPER, LINE, EDGE = (250, 250, 250), (205, 215, 225), (30, 40, 60)
LOW, HIGH = (95, 115, 140), (150, 170, 195)
"""Faces: of the front and the lower level, and of the upper level seen from the top."""


@dataclass(frozen=True, kw_only=True)
class CadCodeOptions:
    """Knobs of ``cad_code``.

    Attributes:
        kinds: of solid, each equally often.
        max_holes: through holes of a plate, drawn from 0 to this.
        size: of each of the two views in pixels, cut down to whole pixels per square.
    """

    kinds: tuple[str, ...] = KINDS
    max_holes: int = 3
    size: int = 112

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds is {self.kinds}: choose some of {KINDS}")
        check_range("max_holes", self.max_holes, 0, 4)
        check_range("size", self.size, 4 * SQUARES, 1024)


@dataclass(frozen=True)
class Measures:
    """What a solid measures, in mm, mm^3 and numbers.

    Attributes:
        volume: mm^3.
        box: length in x, y and z.
        centre: centre of mass, x, y and z.
        holes: through holes.
    """

    volume: float
    box: tuple[float, float, float]
    centre: tuple[float, float, float]
    holes: int


Sizes = tuple[str, tuple[int, ...]]
"""Kind of solid and its sizes in mm, in the order of the code below."""


def _draw_sizes(rng: Random, options: CadCodeOptions) -> Sizes:
    def size(low: int, high: int) -> int:
        """In mm, from ``low`` to ``high`` squares."""
        return SQUARE * rng.randint(low, high)

    kind = rng.choice(options.kinds)
    if kind == "plate":
        holes, diameter = rng.randint(0, options.max_holes), size(1, 2)
        # Room for the holes and a square between any two.
        length = size(min(max(3, 2 + holes + holes * diameter // SQUARE), 12), 12)
        # Without holes there is no diameter to tell apart.
        return kind, (length, size(4, 10), size(1, 6), holes, diameter if holes else SQUARE)
    if kind == "tube":
        outer = size(4, 12)
        return kind, (outer, size(1, outer // SQUARE - 2), size(2, 12))
    if kind == "shaft":
        lower = size(4, 12)
        return kind, (lower, size(2, 7), size(1, lower // SQUARE - 2), size(2, 5))
    return kind, (size(5, 12), size(3, 10), size(4, 12), size(1, 2))


def hole_places(length: int, holes: int) -> list[float]:
    """X of each hole: evenly spaced on the middle line of a plate."""
    return [length * ((index + 1) / (holes + 1) - 0.5) for index in range(holes)]


def reference_code(sizes: Sizes) -> str:
    """A CadQuery program that leaves the solid in ``result``."""
    kind, s = sizes
    base = "centered=(True, True, False)"
    lines = ["import cadquery as cq"]
    if kind == "plate":
        lines.append(f'result = cq.Workplane("XY").box({s[0]}, {s[1]}, {s[2]}, {base})')
        if s[3]:
            points = [(round(x, 6), 0) for x in hole_places(s[0], s[3])]
            lines.append(f"points = {points!r}")
            lines.append(f'result = result.faces(">Z").workplane().pushPoints(points).hole({s[4]})')
    elif kind == "tube":
        lines.append(
            f'result = cq.Workplane("XY").circle({s[0] / 2}).circle({s[1] / 2}).extrude({s[2]})'
        )
    elif kind == "shaft":
        lines.append(f'result = cq.Workplane("XY").circle({s[0] / 2}).extrude({s[1]})')
        lines.append(f'result = result.faces(">Z").workplane().circle({s[2] / 2}).extrude({s[3]})')
    else:
        lines.append(f'floor = cq.Workplane("XY").box({s[0]}, {s[1]}, {s[3]}, {base})')
        lines.append(f'wall = cq.Workplane("XY").box({s[3]}, {s[1]}, {s[2]}, {base})')
        lines.append(f"result = floor.union(wall.translate(({(s[3] - s[0]) / 2}, 0, 0)))")
    return "\n".join(lines)


def measure(sizes: Sizes) -> Measures:
    """The measures of a solid in closed form, from volumes and centres of its parts."""
    kind, s = sizes
    disc = math.pi / 4
    # Parts as (volume, x, y, z of its centre); a cut counts as a negative volume.
    if kind == "plate":
        hole = disc * s[4] ** 2 * s[2]
        cuts = [(-hole, x, 0.0, s[2] / 2) for x in hole_places(s[0], s[3])]
        parts = [(float(s[0] * s[1] * s[2]), 0.0, 0.0, s[2] / 2), *cuts]
        box, holes = (s[0], s[1], s[2]), s[3]
    elif kind == "tube":
        parts = [(disc * (s[0] ** 2 - s[1] ** 2) * s[2], 0.0, 0.0, s[2] / 2)]
        box, holes = (s[0], s[0], s[2]), 1
    elif kind == "shaft":
        lower, upper = disc * s[0] ** 2 * s[1], disc * s[2] ** 2 * s[3]
        parts = [(lower, 0.0, 0.0, s[1] / 2), (upper, 0.0, 0.0, s[1] + s[3] / 2)]
        box, holes = (s[0], s[0], s[1] + s[3]), 0
    else:
        floor, wall = float(s[0] * s[1] * s[3]), float(s[3] * s[1] * (s[2] - s[3]))
        parts = [(floor, 0.0, 0.0, s[3] / 2), (wall, (s[3] - s[0]) / 2, 0.0, (s[2] + s[3]) / 2)]
        box, holes = (s[0], s[1], s[2]), 0
    volume = sum(part[0] for part in parts)
    x, y, z = (sum(part[0] * part[axis] for part in parts) / volume for axis in (1, 2, 3))
    return Measures(volume, (float(box[0]), float(box[1]), float(box[2])), (x, y, z), holes)


def _views(sizes: Sizes, size: int) -> tuple[Image, Image]:
    """Top view (x right, y up, centred) and front view (x right, z up from the second line)."""
    cell = size // SQUARES
    pixels = SQUARES * cell
    y, x = np.mgrid[:pixels, :pixels]
    millimetres = SQUARE / cell
    across = (x + 0.5 - pixels / 2) * millimetres
    up = (pixels / 2 - y - 0.5) * millimetres
    z = (pixels - cell - y - 0.5) * millimetres
    kind, s = sizes
    r = np.hypot(across, up)

    def within(horizontal: np.ndarray, width: float) -> np.ndarray:
        return np.abs(horizontal) < width / 2

    upper = np.zeros_like(r, bool)
    if kind == "plate":
        top = within(across, s[0]) & within(up, s[1])
        for place in hole_places(s[0], s[3]):
            top &= np.hypot(across - place, up) > s[4] / 2
        front = within(across, s[0]) & (z > 0) & (z < s[2])
    elif kind == "tube":
        top = (r < s[0] / 2) & (r > s[1] / 2)
        front = within(across, s[0]) & (z > 0) & (z < s[2])
    elif kind == "shaft":
        top, upper = r < s[0] / 2, r < s[2] / 2
        front = (within(across, s[0]) & (z > 0) & (z < s[1])) | (
            within(across, s[2]) & (z > 0) & (z < s[1] + s[3])
        )
    else:
        top = within(across, s[0]) & within(up, s[1])
        upper = top & (across < s[3] - s[0] / 2)
        wall = within(across, s[0]) & (across < s[3] - s[0] / 2) & (z < s[2])
        front = (within(across, s[0]) & (z < s[3]) | wall) & (z > 0)
    return _paint(top, upper, cell), _paint(front, np.zeros_like(upper), cell)


def _paint(solid: np.ndarray, upper: np.ndarray, cell: int) -> Image:
    """Squared paper with a solid on it: its faces are transparent enough to count squares."""
    image = np.full((*solid.shape, 3), PAPER, np.uint8)
    lines = np.zeros_like(solid)
    lines[::cell] = lines[:, ::cell] = True
    image[lines] = LINE
    for part, colour in ((solid, LOW), (upper, HIGH)):
        image[part] = colour
        image[part & lines] = [c + 25 for c in colour]
    image[_outline(solid) | _outline(upper)] = EDGE
    return image


def _outline(part: np.ndarray) -> np.ndarray:
    """Pixels of a part with a neighbour outside it."""
    inside = part.copy()
    inside[1:] &= part[:-1]
    inside[:-1] &= part[1:]
    inside[:, 1:] &= part[:, :-1]
    inside[:, :-1] &= part[:, 1:]
    return part & ~inside


def make_question(
    options: CadCodeOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Write the program of this solid. ``data``: code, kind, sizes, and ``measures``."""
    rng = stream("cad_code", options, seed=seed, split=split)
    sizes = draw_for_split(rng, split, lambda rng: _draw_sizes(rng, options))
    code = reference_code(sizes)
    return Question(
        task="cad_code",
        prompt=(
            "The pictures show a solid from the top (x to the right, y up) and from the front (x "
            f"to the right, z up). A square of the paper is {SQUARE} mm. It is a plate (perhaps "
            "with through holes along z, evenly spaced in x on its middle line), a tube, a shaft "
            "of two cylinders or an L bracket. It stands on z = 0 and is centred in x and y. "
            "Answer with a CadQuery program that leaves the solid in result."
        ),
        answer=code,
        images=_views(sizes, options.size) if draw else (),
        data={
            "kind": sizes[0],
            "sizes": sizes[1],
            "code": code,
            "measures": asdict(measure(sizes)),
            "max_holes": options.max_holes,
            "key": repr(sizes),
            "reward": "exec_geometry",
        },
    )


def solve(question: Question) -> str:
    """The program from the pixels: extents, holes and steps of the two outlines, in squares."""
    top, front = question.images
    cell = len(top) // SQUARES
    # Paper and its lines are the only light colours.
    seen_top, seen_front = top.mean(-1) < 198, front.mean(-1) < 198

    def squares(pixels: np.ndarray) -> int:
        return SQUARE * round(int(pixels.sum()) / cell)

    length, width = squares(seen_top.any(0)), squares(seen_top.any(1))
    height = squares(seen_front.any(1))
    middle = seen_top[len(top) // 2]
    columns = seen_front.sum(0)[seen_front.any(0)]
    if seen_top[seen_top.any(1)][0].sum() < 0.9 * seen_top.any(0).sum():  # a round outline
        if middle.sum() < 0.95 * seen_top.any(0).sum():
            inner = length - squares(middle)
            return reference_code(("tube", (length, inner, height)))
        lower = SQUARE * round(int(columns[0]) / cell)
        upper = squares(columns > columns[0])
        return reference_code(("shaft", (length, lower, upper, height - lower)))
    thickness = SQUARE * round(int(columns[-1]) / cell)
    if thickness < height:
        return reference_code(("bracket", (length, width, height, thickness)))
    gaps = np.diff(np.flatnonzero(middle))
    holes = gaps[gaps > 1] - 1
    diameter = SQUARE * round(float(holes.mean()) / cell) if len(holes) else SQUARE
    return reference_code(("plate", (length, width, height, len(holes), diameter)))


def guess(question: Question, rng: Random) -> str:
    """The program of a random solid."""
    return reference_code(_draw_sizes(rng, CadCodeOptions(max_holes=question.data["max_holes"])))


CAD_CODE = Task(
    options=CadCodeOptions,
    make_question=make_question,
    solve=solve,
    guess=guess,
    check=answers.same_program,
)
