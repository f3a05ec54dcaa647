"""Charts from code: what the drawn figure contains, and what it looks like (MSRL, system 32).

The model's program draws with matplotlib inside the sandbox; our code then reads the open figure
there: kinds of marks, data series, texts, the grid of axes, and the picture. The reference program
runs in a process of its own, so a program that tampers with the reading still has to know the data.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt

from embodied_rl.rewards import parse
from embodied_rl.rewards.assignment import MAX_ITEMS, best_pairs
from embodied_rl.rewards.base import library, prepared_by, required
from embodied_rl.rewards.execute import Execution, Limits, check_library, run_codes
from embodied_rl.rewards.match import normalize
from embodied_rl.rewards.remember import Remembered, programs
from embodied_rl.types import Question

Gray = npt.NDArray[np.float64]
SIZE = 64
"""Side of the compared picture in pixels."""
MAX_SIDE = 2000
"""Side of the drawn picture in pixels."""
MAX_VALUES = 2000
"""Longer series are cut: the comparison is meant for charts that people read."""
TEXT_CHARS = 200
LIMITS = Limits(cpu_s=10)
FILES = ("figure.json", "figure.png")

KEEP_FIGURES = """
import matplotlib.pyplot as _plt
_plt.close = lambda *_: None
"""
READ_FIGURE = f"""
import json as _json
import math as _math
import numpy as _np
import matplotlib.pyplot as _plt
_figure = _plt.gcf()
_figure.savefig("figure.png", dpi=min(_figure.dpi, {MAX_SIDE} / max(_figure.get_size_inches())))
_kinds, _series, _texts = set(), [], []
for _axes in _figure.axes:
    for _line in _axes.lines:
        _kinds.add("line")
        _series.append(_line.get_ydata(orig=False))
    for _bars in _axes.containers:
        if type(_bars).__name__ == "BarContainer":
            _side = "get_width" if _bars.orientation == "horizontal" else "get_height"
            _kinds.add("bar")
            _series.append([getattr(_bar, _side)() for _bar in _bars.patches])
    for _dots in _axes.collections:
        if type(_dots).__name__ == "PathCollection":
            _kinds.add("scatter")
            _series.append(_dots.get_offsets()[:, 1])
    _wedges = [p for p in _axes.patches if type(p).__name__ == "Wedge"]
    if _wedges:
        _kinds.add("pie")
        _series.append([(w.theta2 - w.theta1) / 360 for w in _wedges])
    _legend = _axes.get_legend()
    _ticks = [*_axes.get_xticklabels(), *_axes.get_yticklabels()]
    _texts += [t.get_text() for t in _ticks if any(c.isalpha() for c in t.get_text())]
    _texts += [_axes.get_title(), _axes.get_xlabel(), _axes.get_ylabel()]
    _texts += [t.get_text() for t in (*_axes.texts, *(_legend.get_texts() if _legend else ()))]
_texts += [_figure.get_suptitle()]
_series = [_np.ma.filled(_np.ma.asarray(s, float), _np.nan).ravel().tolist() for s in _series]
_spec = _figure.axes[0].get_subplotspec() if _figure.axes else None
with open("figure.json", "w") as _file:
    _json.dump({{
        "kinds": sorted(_kinds),
        "series": [[v for v in s if _math.isfinite(v)][:{MAX_VALUES}] for s in _series],
        "texts": [t for t in _texts if t],
        "layout": list(_spec.get_gridspec().get_geometry()) if _spec else [0, 0],
    }}, _file)
"""


@dataclass(frozen=True)
class Figure:
    """What a program drew.

    Attributes:
        kinds: of marks, among line, bar, scatter and pie.
        series: values of each line (y), set of bars (length), cloud of points (y) or pie (share).
        texts: titles, labels of axes and ticks with letters, legends, annotations.
        layout: rows and columns of the grid of axes.
        png: the picture.
    """

    kinds: frozenset[str]
    series: list[list[float]]
    texts: list[str]
    layout: list[int]
    png: bytes


def _draw(codes: Sequence[str], *, limits: Limits, unsafe: bool) -> list[Figure | None]:
    check_library("matplotlib", limits=limits, unsafe=unsafe)
    done = run_codes(
        [KEEP_FIGURES + code for code in codes],
        after=READ_FIGURE,
        collect=FILES,
        limits=limits,
        library="matplotlib",
        unsafe=unsafe,
    )
    return list(map(_read, done))


draw_all = Remembered(_draw)


def draw(code: str, *, limits: Limits = LIMITS, unsafe: bool = False) -> Figure | None:
    """Run a program that draws with matplotlib and read its current figure.

    ``plt.close`` does nothing, so that a program may close what it has saved.

    Returns:
        What it drew, or None where it failed.

    Raises:
        SetupError: matplotlib or a protection is missing.
    """
    return draw_all([code], limits=limits, unsafe=unsafe)[0]


def _read(done: Execution) -> Figure | None:
    if not done.ok or set(done.files) != set(FILES):
        return None
    read = parse.json_value(done.files["figure.json"].decode(errors="replace"))
    return _figure(read, done.files["figure.png"])


def _figure(read: Any, png: bytes) -> Figure | None:
    """The checked contents of ``figure.json``; a hostile program may have written anything."""
    parts = read if isinstance(read, dict) else {}
    series, layout = _list_of(parts.get("series"), list), _list_of(parts.get("layout"), int)
    kinds, texts = _list_of(parts.get("kinds"), str), _list_of(parts.get("texts"), str)
    values = [*itertools.chain.from_iterable(series), *layout]
    if not all(map(parse.is_number, values)):
        return None
    return Figure(frozenset(kinds), series, texts, layout, png)


def _list_of(value: Any, kind: Any) -> list[Any]:
    """``value`` if it is a list of nothing but ``kind``, else an empty one."""
    good = isinstance(value, list) and all(isinstance(item, kind) for item in value)
    return value if good else []


def _drawn(response: str, limits: Limits, unsafe: bool) -> Figure | None:
    code = parse.program(response)
    return draw(code, limits=limits, unsafe=unsafe) if code is not None else None


def _draw_both(
    responses: Sequence[str],
    questions: Sequence[Question],
    *,
    limits: Limits = LIMITS,
    unsafe: bool = False,
    **_: Any,
) -> None:
    draw_all(programs(responses, questions), limits=limits, unsafe=unsafe)


def _draw_said(
    responses: Sequence[str],
    questions: Sequence[Question],
    *,
    limits: Limits = LIMITS,
    unsafe: bool = False,
) -> None:
    draw_all(programs(responses), limits=limits, unsafe=unsafe)


@prepared_by(_draw_both)
def chart_text_struct(
    response: str,
    question: Question,
    *,
    weights: Sequence[float] = (0.4, 0.2, 0.2, 0.2),
    relative: float = 0.05,
    limits: Limits = LIMITS,
    unsafe: bool = False,
) -> float:
    """Agreement of the drawn figure with that of ``data["code"]``; 0 if the program fails.

    The weighted mean of four shares: data (series paired for the most values within ``relative``
    of the reference), kinds of marks (intersection over union), layout (same grid of axes), texts
    (paired for the most similar characters). Extra series and texts count against it. A figure
    without data scores 0.

    Args:
        response: one program that draws with matplotlib, fenced or alone.
        question: ``data["code"]``, the reference program.
        weights: of data, kinds, layout and texts; the paper's are not public.
        relative: share of a reference value.
        limits: of either program.
        unsafe: see ``execute.run_codes``.

    Raises:
        ValueError: the reference program fails or draws no data.
    """
    true = draw(required(question, "code"), limits=limits, unsafe=unsafe)
    if true is None or not true.series:
        raise ValueError(f"data['code'] of task {question.task!r} must draw data with matplotlib")
    said = _drawn(response, limits, unsafe)
    if said is None or not said.series:
        return 0.0
    shares = (
        _paired(said.series, true.series, lambda a, b: _close_share(a, b, relative)),
        len(said.kinds & true.kinds) / len(said.kinds | true.kinds),
        float(said.layout == true.layout),
        _paired(said.texts, true.texts, _similar),
    )
    return sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights)


def _paired(said: Sequence[Any], true: Sequence[Any], gain: Any) -> float:
    """Sum of the best pairing's gains / the larger number of items; 1 if both are empty."""
    if not said and not true:
        return 1.0
    if len(said) > MAX_ITEMS:
        return 0.0
    gains = [[gain(a, b) for b in true] for a in said]
    return sum(gains[i][j] for i, j in best_pairs(gains)) / max(len(said), len(true))


def _close_share(said: Sequence[float], true: Sequence[float], relative: float) -> float:
    pairs = zip(said, true, strict=False)
    hits = sum(math.isclose(a, b, rel_tol=0, abs_tol=relative * abs(b) + 1e-9) for a, b in pairs)
    return hits / max(len(said), len(true), 1)


def _similar(said: str, true: str) -> float:
    return SequenceMatcher(None, normalize(said)[:TEXT_CHARS], normalize(true)[:TEXT_CHARS]).ratio()


@prepared_by(_draw_said)
def chart_visual(
    response: str, question: Question, *, limits: Limits = LIMITS, unsafe: bool = False
) -> float:
    """Structural similarity of the drawn picture and the question's first, at 64 x 64 in gray.

    A blank page is similar to any chart with much white, so the value is rescaled: 0 for what a
    blank page gets, or less, and 1 for the picture itself. The paper asks a judge.

    Raises:
        ValueError: the question has no picture, or a blank one.
    """
    if not question.images:
        raise ValueError(f"task {question.task!r} must show the picture for this reward")
    true = _thumbnail(question.images[0])
    blank = ssim(np.full_like(true, 255.0), true)
    if blank > 1.0 - 1e-9:
        raise ValueError(f"task {question.task!r} shows a blank picture")
    figure = _drawn(response, limits, unsafe)
    said = _decoded(figure.png) if figure is not None else None
    if said is None:
        return 0.0
    return max((ssim(_thumbnail(said), true) - blank) / (1.0 - blank), 0.0)


def _decoded(png: bytes) -> npt.NDArray[np.uint8] | None:
    """``[height, width, 3]``; None if it is no picture or too large a one."""
    image = library("PIL.Image", extra="vqa")
    try:
        with image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            if max(picture.size) > 2 * MAX_SIDE:
                return None
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises on broken files
        return None


def _thumbnail(picture: npt.NDArray[np.uint8]) -> Gray:
    image = library("PIL.Image", extra="vqa")
    gray = image.fromarray(picture).convert("L").resize((SIZE, SIZE), image.Resampling.BOX)
    return np.asarray(gray, dtype=np.float64)


def ssim(a: Gray, b: Gray, *, window: int = 8) -> float:
    """Mean structural similarity over all windows (Wang et al. 2004, eq. 13), gray in [0, 255]."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    views = [np.lib.stride_tricks.sliding_window_view(p, (window, window)) for p in (a, b)]
    x, y = (view.reshape(*view.shape[:2], -1) for view in views)
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    covariance = (x * y).mean(-1) - mean_x * mean_y
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    value /= (mean_x**2 + mean_y**2 + c1) * (x.var(-1) + y.var(-1) + c2)
    return float(value.mean())
