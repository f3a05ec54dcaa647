"""Solids from code: how much of the reference solid the built one fills (CAD-RL, system 22).

The model's CadQuery program runs in the sandbox and hands out nothing but triangles; volumes,
surface and intersection are computed here, from them and from those of the reference program,
which runs in a process of its own.

    IoU = volume(said & true) / volume(said | true)

Both solids are cut by the same ``COLUMNS x COLUMNS`` vertical lines; along a line a solid is the
set of heights with a winding number other than 0, known exactly. Axes: [V, 3] vertices, [F, 3]
triangles, in the unit of the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import prepared_by, required
from embodied_rl.rewards.execute import Execution, Limits, check_library, run_codes
from embodied_rl.rewards.remember import Remembered, programs
from embodied_rl.types import Question

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
COLUMNS = 64
OFFSETS = (0.5 + 0.0137, 0.5 - 0.0271)
"""Of a line in its cell: uneven, or it would run through the edges of solids of round sizes."""
MAX_TRIANGLES = 20_000
CELLS = 1 << 18
"""Pairs of a triangle and a line near it that are tried at a time."""
LIMITS = Limits(wall_s=120.0, cpu_s=20, memory_bytes=4 << 30, output_bytes=8 << 20)

WRITE_MESH = f"""
import cadquery as _cq
import numpy as _np
_parts = [result.toCompound()] if isinstance(result, _cq.Assembly) else [result]
_parts = result.vals() if isinstance(result, _cq.Workplane) else _parts
_solids = [_solid for _part in _parts for _solid in _part.Solids()]
_solid = _cq.Compound.makeCompound(_solids)
_vertices, _triangles = _solid.tessellate(0.002 * _solid.BoundingBox().DiagonalLength, 0.2)
_mesh = _np.array([_vertices[i].toTuple() for t in _triangles for i in t]).reshape(-1, 9)
_mesh[:{MAX_TRIANGLES} + 1].astype("<f8").tofile("mesh.bin")
"""


@dataclass(frozen=True)
class Mesh:
    """A closed surface; where parts overlap it means their union.

    Attributes:
        corners: ``[F, 3, 3]`` triangle, corner, coordinate; counter-clockwise from outside.
    """

    corners: Array

    @property
    def volume(self) -> float:
        """Sum of det(a, b, c) / 6 over the triangles."""
        return float(np.linalg.det(self.corners).sum() / 6)

    @property
    def surface(self) -> float:
        """Sum of |(b - a) x (c - a)| / 2."""
        a, b, c = np.moveaxis(self.corners, 1, 0)
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum() / 2)


def _build(codes: Sequence[str], *, limits: Limits, unsafe: bool) -> list[Mesh | None]:
    check_library("cadquery", limits=limits, unsafe=unsafe)
    done = run_codes(
        codes,
        after=WRITE_MESH,
        collect=("mesh.bin",),
        limits=limits,
        library="cadquery",
        unsafe=unsafe,
    )
    return list(map(_mesh, done))


build_all = Remembered(_build)


def build(code: str, *, limits: Limits = LIMITS, unsafe: bool = False) -> Mesh | None:
    """Run a CadQuery program and take the solids of its ``result``.

    Args:
        code: leaves a Workplane, Shape or Assembly in ``result``.
        limits: of the program.
        unsafe: see ``execute.run_codes``.

    Returns:
        Their surface, or None where the program fails, leaves no solid, or one of more than 20,000
        triangles.

    Raises:
        SetupError: CadQuery or a protection is missing.
    """
    return build_all([code], limits=limits, unsafe=unsafe)[0]


def _mesh(done: Execution) -> Mesh | None:
    """The checked contents of ``mesh.bin``; a hostile program may have written anything."""
    data = done.files.get("mesh.bin", b"") if done.ok else b""
    if not data or len(data) % 72:
        return None
    corners = np.frombuffer(data, dtype="<f8").reshape(-1, 3, 3)
    plausible = np.isfinite(corners).all() and np.abs(corners).max() < 1e9
    return Mesh(corners) if plausible and len(corners) <= MAX_TRIANGLES else None


def _build_both(
    responses: Sequence[str],
    questions: Sequence[Question],
    *,
    limits: Limits = LIMITS,
    unsafe: bool = False,
    **_: Any,
) -> None:
    build_all(programs(responses, questions), limits=limits, unsafe=unsafe)


@prepared_by(_build_both)
def exec_geometry(
    response: str,
    question: Question,
    *,
    weights: Sequence[float] = (0.8, 0.1, 0.1),
    limits: Limits = LIMITS,
    unsafe: bool = False,
) -> float:
    """Agreement of the built solid with that of ``data["code"]``; 0 if the program fails.

    The weighted mean of IoU, of the ratio of the smaller to the larger volume, and of the same
    ratio of the surfaces. Nothing is moved or scaled: position counts. The paper adds a judge.

    Args:
        response: one CadQuery program that leaves the solid in ``result``, fenced or alone.
        question: ``data["code"]``, the reference program.
        weights: of IoU, volume and surface; ours.
        limits: of either program.
        unsafe: see ``execute.run_codes``.

    Raises:
        ValueError: the reference program fails or leaves no solid.
        SetupError: CadQuery or a protection is missing.
    """
    true = build(required(question, "code"), limits=limits, unsafe=unsafe)
    if true is None or true.volume <= 0:
        raise ValueError(f"data['code'] of task {question.task!r} must leave a solid in `result`")
    code = parse.program(response)
    said = build(code, limits=limits, unsafe=unsafe) if code is not None else None
    if said is None or said.volume <= 0:
        return 0.0
    shares = (
        solid_iou(said, true),
        ratio(said.volume, true.volume),
        ratio(said.surface, true.surface),
    )
    return sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights)


def ratio(a: float, b: float) -> float:
    """The smaller / the larger of two positive numbers."""
    return min(a, b) / max(a, b)


def solid_iou(a: Mesh, b: Mesh) -> float:
    """IoU of two solids; discretised in x and y alone, by ``COLUMNS`` lines each way."""
    low = np.minimum(a.corners.min((0, 1)), b.corners.min((0, 1)))[:2]
    size = np.maximum(a.corners.max((0, 1)), b.corners.max((0, 1)))[:2] - low
    steps = np.arange(COLUMNS)[:, None] + np.array(OFFSETS)
    xs, ys = (low + steps * size / COLUMNS).T
    found = [_crossings(mesh, xs, ys) for mesh in (a, b)]
    lines, heights = (np.concatenate([one[k] for one in found]) for k in (0, 1))
    zeros = [np.zeros(len(one[0]), np.int64) for one in found]
    signs = np.stack(
        [np.concatenate([found[0][2], zeros[1]]), np.concatenate([zeros[0], found[1][2]])]
    )
    order = np.lexsort((heights, lines))
    lines, heights, signs = lines[order], heights[order], signs[:, order]
    # Every line ends with winding number 0, so that sums over all lines are those of each.
    inside = signs.cumsum(1)[:, :-1] != 0
    lengths = np.diff(heights) * (np.diff(lines) == 0)
    either = float(lengths[inside.any(0)].sum())
    return float(lengths[inside.all(0)].sum()) / either if either > 0 else 0.0


def _crossings(mesh: Mesh, xs: Array, ys: Array) -> tuple[Integers, Array, Integers]:
    """Where vertical lines enter (+1) and leave (-1): line, height and sign, ``[H]`` each.

    A line that does not leave as often as it enters, which no closed surface has, counts nothing.
    """
    corners = mesh.corners
    low, high = corners[..., :2].min(1), corners[..., :2].max(1)
    first = np.stack([np.searchsorted(xs, low[:, 0]), np.searchsorted(ys, low[:, 1])], 1)
    last = np.stack([np.searchsorted(xs, high[:, 0]), np.searchsorted(ys, high[:, 1])], 1)
    sides = last - first
    area = _cross(corners[:, 1, :2] - corners[:, 0, :2], corners[:, 2, :2] - corners[:, 0, :2])
    counts = sides.prod(1) * (area != 0)
    # From corner k to the next one, per area: what is left of an edge is the share opposite to it.
    along = (corners[:, (1, 2, 0), :2] - corners[..., :2]) / np.where(area, area, 1)[:, None, None]
    edges = [(along[:, k, 0], along[:, k, 1]) for k in range(3)]
    parts = []
    for rows in _chunks(counts):
        of = np.repeat(rows, counts[rows])
        within = np.arange(len(of)) - np.repeat(counts[rows].cumsum() - counts[rows], counts[rows])
        i, j = first[of, 0] + within // sides[of, 1], first[of, 1] + within % sides[of, 1]
        x, y = xs[i], ys[j]
        # Barycentric coordinates: shares of the three corners, all positive inside.
        shares = [
            dx[of] * (y - corners[of, k, 1]) - dy[of] * (x - corners[of, k, 0])
            for k, (dx, dy) in ((1, edges[1]), (2, edges[2]))
        ]
        shares.append(1 - shares[0] - shares[1])
        hit = (shares[0] > 0) & (shares[1] > 0) & (shares[2] > 0)
        of = of[hit]
        heights = sum(share[hit] * corners[of, k, 2] for k, share in enumerate(shares))
        parts.append((i[hit] * len(ys) + j[hit], heights, np.where(area[of] > 0, -1, 1)))
    lines, heights, signs = (np.concatenate([part[k] for part in parts]) for k in range(3))
    balance = np.bincount(lines, signs, len(xs) * len(ys))
    closed = balance[lines] == 0
    return lines[closed], heights[closed], signs[closed]


def _chunks(counts: Integers) -> list[Integers]:
    """Triangles in order, so that their ``counts`` of lines to try fit into memory."""
    bounds = counts.cumsum() // CELLS
    return np.split(np.arange(len(counts)), np.flatnonzero(np.diff(bounds)) + 1)


def _cross(u: Array, v: Array) -> Array:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
