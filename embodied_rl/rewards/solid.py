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

import itertools
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
Interval = tuple[float, float]
COLUMNS = 64
OFFSETS = (0.5 + 0.0137, 0.5 - 0.0271)
"""Of a line in its cell: uneven, or it would run through the edges of solids of round sizes."""
MAX_TRIANGLES = 20_000
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
    in_a, in_b = (_heights(mesh, xs, ys) for mesh in (a, b))
    both = sum(_length(_shared(p, q)) for p, q in zip(in_a, in_b, strict=True))
    either = sum(map(_length, in_a)) + sum(map(_length, in_b)) - both
    return both / either if either > 0 else 0.0


def _heights(mesh: Mesh, xs: Array, ys: Array) -> list[list[Interval]]:
    """Where each vertical line is inside, ``[X * Y]`` lists of disjoint intervals in order."""
    crossings: list[list[tuple[float, int]]] = [[] for _ in range(len(xs) * len(ys))]
    for corners in mesh.corners:
        columns, heights, sign = _hits(corners, xs, ys)
        for column, height in zip(columns, heights, strict=True):
            crossings[column].append((height, sign))
    return [_intervals(sorted(column)) for column in crossings]


def _hits(corners: Array, xs: Array, ys: Array) -> tuple[list[int], list[float], int]:
    """Lines through a triangle, the heights there, and +1 where going up means going in."""
    low, high = corners.min(0), corners.max(0)
    i = slice(*np.searchsorted(xs, (low[0], high[0])))
    j = slice(*np.searchsorted(ys, (low[1], high[1])))
    a, b, c = corners[:, :2]
    area = _cross(b - a, c - a)
    if area == 0 or i.start == i.stop or j.start == j.stop:
        return [], [], 0
    points = np.stack(np.meshgrid(xs[i], ys[j], indexing="ij"), axis=-1)
    # Barycentric coordinates: shares of the three corners, all positive inside.
    shares = np.stack([_cross(c - b, points - b), _cross(a - c, points - c)], axis=-1) / area
    shares = np.concatenate([shares, 1 - shares.sum(-1, keepdims=True)], axis=-1)
    inside = (shares > 0).all(-1)
    rows, columns = np.nonzero(inside)
    numbers = (rows + i.start) * len(ys) + columns + j.start
    return numbers.tolist(), (shares[inside] @ corners[:, 2]).tolist(), -1 if area > 0 else 1


def _cross(u: Array, v: Array) -> Array:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _intervals(crossings: Sequence[tuple[float, int]]) -> list[Interval]:
    """Heights with a winding number other than 0."""
    found, winding, start = [], 0, 0.0
    for height, sign in crossings:
        if winding == 0:
            start = height
        winding += sign
        if winding == 0:
            found.append((start, height))
    return found


def _shared(a: Sequence[Interval], b: Sequence[Interval]) -> list[Interval]:
    pairs = ((max(p[0], q[0]), min(p[1], q[1])) for p, q in itertools.product(a, b))
    return [pair for pair in pairs if pair[0] < pair[1]]


def _length(intervals: Sequence[Interval]) -> float:
    return sum(high - low for low, high in intervals)
