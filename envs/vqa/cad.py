"""``cad_code``: the CadQuery program of a solid from drawing and sizes (system 22, CAD-RL).

Solids, in millimetres, standing on z = 0 and drawn from the top and from the front:

- ``plate``: a box of length x width x height, centred in x and y, with through holes along z;
- ``tube``: a cylinder with a through hole on its axis;
- ``shaft``: two cylinders one above the other;
- ``bracket``: an L of a floor and a wall at its left end, both ``thickness`` thick.

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

from embodied_rl.envs.vqa.common import Image, Split, Task, check_range, draw_for_split, stream
from embodied_rl.types import Question

KINDS = ("plate", "tube", "shaft", "bracket")


@dataclass(frozen=True, kw_only=True)
class CadCodeOptions:
    """Knobs of ``cad_code``.

    Attributes:
        kinds: of solid, each equally often.
        max_holes: through holes of a plate, drawn from 0 to this.
        size: of each of the two views in pixels.
    """

    kinds: tuple[str, ...] = KINDS
    max_holes: int = 3
    size: int = 64

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds is {self.kinds}: choose some of {KINDS}")
        check_range("max_holes", self.max_holes, 0, 4)
        check_range("size", self.size, 32, 1024)


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
"""Kind of solid and its sizes in mm, in the order in which the prompt states them."""


def _draw_sizes(rng: Random, options: CadCodeOptions) -> Sizes:
    kind = rng.choice(options.kinds)
    if kind == "plate":
        holes, diameter = rng.randint(0, options.max_holes), rng.randint(3, 6)
        length = rng.randint(8 * max(holes, 1) + 6, 48)
        return kind, (length, rng.randint(14, 40), rng.randint(4, 20), holes, diameter)
    if kind == "tube":
        outer = rng.randint(16, 48)
        return kind, (outer, rng.randint(6, outer - 6), rng.randint(8, 48))
    if kind == "shaft":
        lower = rng.randint(16, 48)
        return kind, (lower, rng.randint(8, 30), rng.randint(6, lower - 4), rng.randint(8, 18))
    length, height = rng.randint(20, 48), rng.randint(16, 48)
    return kind, (length, rng.randint(12, 40), height, rng.randint(4, 8))


def hole_places(length: int, holes: int) -> list[float]:
    """X of each hole: evenly spaced on the middle line of a plate."""
    return [length * ((index + 1) / (holes + 1) - 0.5) for index in range(holes)]


def describe(sizes: Sizes) -> str:
    """The solid in words, all sizes in mm."""
    kind, s = sizes
    if kind == "plate":
        drilled = (
            f" with {s[3]} through holes of diameter {s[4]} along z, evenly spaced in x on its "
            "middle line"
            if s[3]
            else ""
        )
        return f"a plate {s[0]} long (x), {s[1]} wide (y) and {s[2]} high (z){drilled}"
    if kind == "tube":
        return f"a tube of outer diameter {s[0]}, inner diameter {s[1]} and height {s[2]}"
    if kind == "shaft":
        return (
            f"a shaft of two cylinders: below, diameter {s[0]} and height {s[1]}; on it, diameter "
            f"{s[2]} and height {s[3]}"
        )
    return (
        f"an L bracket {s[0]} long (x), {s[1]} wide (y) and {s[2]} high (z), {s[3]} thick, its "
        f"wall "
        "at the end of smallest x"
    )


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
    """Top view (x right, y up) and front view (x right, z up), 50 mm across the picture."""
    kind, s = sizes
    y, x = np.mgrid[:size, :size]
    across, up = (x + 0.5) / size * 56 - 28, 28 - (y + 0.5) / size * 56
    z, r = up + 28 - 2, np.hypot(across, up)

    def box(horizontal: np.ndarray, width: float) -> np.ndarray:
        return np.abs(horizontal) <= width / 2

    if kind == "plate":
        top = box(across, s[0]) & box(up, s[1])
        for place in hole_places(s[0], s[3]):
            top &= np.hypot(across - place, up) > s[4] / 2
        front = box(across, s[0]) & (z >= 0) & (z <= s[2])
    elif kind == "tube":
        top = (r <= s[0] / 2) & (r > s[1] / 2)
        front = box(across, s[0]) & (z >= 0) & (z <= s[2])
    elif kind == "shaft":
        top = r <= s[0] / 2
        front = (box(across, s[0]) & (z >= 0) & (z <= s[1])) | (
            box(across, s[2]) & (z > s[1]) & (z <= s[1] + s[3])
        )
    else:
        top = box(across, s[0]) & box(up, s[1])
        wall = (across >= -s[0] / 2) & (across <= s[3] - s[0] / 2) & (z <= s[2])
        front = (box(across, s[0]) & (z <= s[3]) | wall) & (z >= 0)
    return _ink(top), _ink(front)


def _ink(mask: np.ndarray) -> Image:
    image = np.full((*mask.shape, 3), 250, np.uint8)
    image[mask] = (95, 115, 140)
    return image


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
            f"The pictures show {describe(sizes)} from the top and from the front; sizes in mm. It "
            "stands on z = 0, centred in x and y. Answer with a CadQuery program that leaves the "
            "solid in result."
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
            "reward": "cad_geometry",
        },
    )


def guess(question: Question, rng: Random) -> str:
    """The program of a random solid."""
    return reference_code(_draw_sizes(rng, CadCodeOptions(max_holes=question.data["max_holes"])))


CAD_CODE = Task(options=CadCodeOptions, make_question=make_question, solve=None, guess=guess)
