"""Charts from code: what the drawn figure contains, and what it looks like (MSRL, system 32).

The model's program draws with matplotlib inside the sandbox; our code then reads the open figure
there: kinds of marks, data series, texts, the grid of axes, and the picture. The reference stays
outside, so a program that tampers with the reading still has to know the data.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt

from embodied_rl.rewards import parse
from embodied_rl.rewards.assignment import MAX_ITEMS, best_pairs
from embodied_rl.rewards.base import library, required
from embodied_rl.rewards.execute import Limits, run_code
from embodied_rl.rewards.match import normalize
from embodied_rl.types import Question

Gray = npt.NDArray[np.float64]
SIZE = 64
"""Side of the compared picture in pixels."""
MAX_VALUES = 2000
"""Longer series are cut: the comparison is meant for charts that people read."""
TEXT_CHARS = 200

READ_FIGURE = f"""
import json as _json
import numpy as _np
import matplotlib.pyplot as _plt
_figure = _plt.gcf()
_kinds, _series, _texts = set(), [], []
for _axes in _figure.axes:
    for _line in _axes.lines:
        _kinds.add("line"); _series.append(_np.asarray(_line.get_ydata(), float).tolist())
    for _bars in _axes.containers:
        _values = [p.get_width() if getattr(_bars, "orientation", "") == "horizontal"
                   else p.get_height() for p in _bars.patches]
        _kinds.add("bar"); _series.append([float(v) for v in _values])
    for _dots in _axes.collections:
        _offsets = _np.asarray(_dots.get_offsets(), float)
        _kinds.add("scatter"); _series.append(_offsets[:, 1].tolist())
    _wedges = [p for p in _axes.patches if type(p).__name__ == "Wedge"]
    if _wedges:
        _kinds.add("pie"); _series.append([(w.theta2 - w.theta1) / 360 for w in _wedges])
    _texts += [_axes.get_title(), _axes.get_xlabel(), _axes.get_ylabel()]
    _texts += [t.get_text() for t in _axes.texts]
    _legend = _axes.get_legend()
    _texts += [t.get_text() for t in _legend.get_texts()] if _legend else []
_texts += [_figure._suptitle.get_text()] if _figure._suptitle else []
_spec = _figure.axes[0].get_subplotspec() if _figure.axes else None
_layout = list(_spec.get_gridspec().get_geometry()) if _spec else [0, 0]
with open("figure.json", "w") as _file:
    _json.dump(dict(kinds=sorted(_kinds), series=[s[:{MAX_VALUES}] for s in _series[:{MAX_ITEMS}]],
                    texts=[t for t in _texts if t], layout=_layout), _file)
_figure.set_dpi(max(1.0, min({SIZE} * 4 / max(_figure.get_size_inches()), 200.0)))
_figure.savefig("figure.png", dpi=_figure.dpi)
"""


def _draw(
    response: str, limits: Limits | None, unsafe: bool
) -> tuple[dict[str, Any] | None, bytes | None]:
    """What was read of the figure, and its picture as PNG; None where the program failed."""
    code = parse.code_block(response)
    if code is None:
        return None, None
    files = ("figure.json", "figure.png")
    done = run_code(code, after=READ_FIGURE, collect=files, limits=limits, unsafe=unsafe)
    if not done.ok or set(done.files) != set(files):
        return None, None
    value = parse.json_value(done.files["figure.json"].decode(errors="replace"))
    return (value if isinstance(value, dict) else None), done.files["figure.png"]


def chart_text_struct(
    response: str,
    question: Question,
    *,
    weights: Sequence[float] = (0.4, 0.2, 0.2, 0.2),
    relative: float = 0.05,
    limits: Limits | None = None,
    unsafe: bool = False,
) -> float:
    """Agreement of the drawn figure with ``data["chart"]``; 0 if the program fails.

    The weighted mean of four shares: data (series paired for the most values within ``relative``
    of the reference), kinds of marks (intersection over union), layout (same grid of axes), texts
    (paired for the most similar characters). Extra series and texts count against it.

    Args:
        response: one fenced program that draws with matplotlib.
        question: ``data["chart"]`` = ``{"kinds": ["line" | "bar" | "scatter" | "pie", ...],
            "series": [[y, ...], ...], "texts": [...], "layout": [rows, columns]}``.
        weights: of data, kinds, layout and texts; the paper's are not public.
        relative: share of a reference value.
        limits: of the program.
        unsafe: see ``execute.run_code``.
    """
    true = required(question, "chart")
    said, _ = _draw(response, limits, unsafe)
    if said is None or not said.get("series"):
        return 0.0
    shares = (
        _paired(said["series"], true["series"], lambda a, b: _close_share(a, b, relative)),
        _overlap(set(said["kinds"]), set(true["kinds"])),
        float(list(said["layout"]) == list(true["layout"])),
        _paired(said["texts"], true["texts"], _similar),
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


def _overlap(said: set[str], true: set[str]) -> float:
    return len(said & true) / len(said | true) if said | true else 1.0


def chart_visual(
    response: str, question: Question, *, limits: Limits | None = None, unsafe: bool = False
) -> float:
    """Structural similarity of the drawn picture and ``data["picture"]``, at 64 x 64 in gray.

    ``data["picture"]`` is uint8 ``[height, width]`` or ``[height, width, 3]``. A blank page is
    similar to any chart with much white, so the value is rescaled: 0 for what a blank page gets, or
    less, and 1 for the picture itself. The paper asks a judge.
    """
    true = _thumbnail(np.asarray(required(question, "picture"), dtype=np.uint8))
    _, png = _draw(response, limits, unsafe)
    if png is None:
        return 0.0
    image = library("PIL.Image", extra="vqa")
    with image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        if picture.width * picture.height > 4_000_000:
            return 0.0
        said = _thumbnail(np.asarray(picture.convert("RGB"), dtype=np.uint8))
    blank = ssim(np.full_like(true, 255.0), true)
    if blank >= 1.0 - 1e-9:
        return float(ssim(said, true) >= blank)
    return max((ssim(said, true) - blank) / (1.0 - blank), 0.0)


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
