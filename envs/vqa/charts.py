"""``chart_qa``, ``chart_to_code``: read a chart, or write its program (system 32, MSRL).

A chart is a `Chart`: kind, title, labels and whole numbers. `chart_code` writes it as a matplotlib
program, `draw_chart` draws it with the library's default style at fixed size, so that its pixels
repeat on one version of matplotlib; running the program gives the same pixels (a test compares
them).

Held out: titles, as pairs of what is measured and where ("Rain in Oslo"), a fixed quarter of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random

import numpy as np

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import (
    Image,
    Split,
    Task,
    check_range,
    draw_for_split,
    guess_candidate,
    one_of,
    stream,
)
from embodied_rl.types import Question

KINDS = ("bar", "line", "scatter")
MEASURES = ("Rain", "Sales", "Visits", "Births", "Snow", "Exports", "Noise", "Traffic")
PLACES = ("Oslo", "Lima", "Kyoto", "Cairo", "Quito", "Turin", "Perth", "Accra")
LABELS = (
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    ("A", "B", "C", "D", "E", "F"),
    ("cat", "dog", "owl", "fox", "ant", "bee"),
)
COLOURS = {
    "tab:blue": (31, 119, 180),
    "tab:orange": (255, 127, 14),
    "tab:green": (44, 160, 44),
    "tab:red": (214, 39, 40),
}
TOP = 10
"""Upper end of the value axis; values are whole numbers from 1 to 9."""
LEFT, RIGHT, BOTTOM, CEILING = 0.12, 0.97, 0.16, 0.86
"""Axes of the figure, as shares of its width and height."""
DPI = 80


@dataclass(frozen=True, kw_only=True)
class ChartOptions:
    """Knobs of ``chart_qa`` and ``chart_to_code``.

    Attributes:
        kinds: of chart, each equally often.
        num_points: labels on the axis, 2 to 6.
        width: of the picture in pixels.
        height: likewise.
        short: leave margins, ticks and grid as matplotlib has them, so that the program is half as
            long.
    """

    kinds: tuple[str, ...] = KINDS
    num_points: int = 4
    width: int = 240
    height: int = 180
    short: bool = False

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds is {self.kinds}: choose some of {KINDS}")
        check_range("num_points", self.num_points, 2, 6)
        check_range("width", self.width, 96, 1024)
        check_range("height", self.height, 96, 1024)


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    kind: str
    title: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    colour: str


def _draw_content(rng: Random, options: ChartOptions, split: Split) -> Chart:
    def title(rng: Random) -> str:
        return f"{rng.choice(MEASURES)} in {rng.choice(PLACES)}"

    number = options.num_points
    return Chart(
        kind=rng.choice(options.kinds),
        title=draw_for_split(rng, split, title),
        labels=rng.choice(LABELS)[:number],
        values=tuple(rng.sample(range(1, TOP), number)),
        colour=rng.choice(tuple(COLOURS)),
    )


def chart_code(chart: Chart, options: ChartOptions) -> str:
    """The matplotlib program that draws ``chart``; it leaves the figure in ``fig``."""
    width, height = options.width / DPI, options.height / DPI
    labels, values = repr(list(chart.labels)), repr(list(chart.values))
    lines = ["import matplotlib.pyplot as plt"]
    if not options.short:
        lines += [f"labels = {labels}", f"values = {values}"]
        labels, values = "labels", "values"
    draw = {
        "bar": f'ax.bar({labels}, {values}, color="{chart.colour}")',
        "line": f'ax.plot({labels}, {values}, color="{chart.colour}", marker="o")',
        "scatter": f'ax.scatter({labels}, {values}, color="{chart.colour}")',
    }[chart.kind]
    lines.append(f"fig, ax = plt.subplots(figsize=({width:g}, {height:g}), dpi={DPI})")
    if not options.short:
        lines.append(f"fig.subplots_adjust({LEFT}, {BOTTOM}, {RIGHT}, {CEILING})")
    lines.append(draw)
    if not options.short:
        lines.append(f"ax.set_xlim(-0.5, {len(chart.labels) - 0.5})")
    lines.append(f"ax.set_ylim(0, {TOP})")
    if not options.short:
        lines += [
            f"ax.set_yticks(range({TOP + 1}))",
            'ax.tick_params(labelsize="small")',
            'ax.grid(axis="y", alpha=0.4)',
        ]
    return "\n".join([*lines, f'ax.set_title("{chart.title}")'])


def draw_chart(chart: Chart, options: ChartOptions) -> Image:
    """The picture of ``chart``, uint8 ``[height, width, 3]``, without any global figure."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"):
        fig = Figure(figsize=(options.width / DPI, options.height / DPI), dpi=DPI)
        canvas = FigureCanvasAgg(fig)
        ax = fig.subplots()
        if chart.kind == "bar":
            ax.bar(chart.labels, chart.values, color=chart.colour)
        elif chart.kind == "line":
            ax.plot(chart.labels, chart.values, color=chart.colour, marker="o")
        else:
            ax.scatter(chart.labels, chart.values, color=chart.colour)
        ax.set_ylim(0, TOP)
        if not options.short:
            fig.subplots_adjust(LEFT, BOTTOM, RIGHT, CEILING)
            ax.set_xlim(-0.5, len(chart.labels) - 0.5)
            ax.set_yticks(range(TOP + 1))
            ax.tick_params(labelsize="small")
            ax.grid(axis="y", alpha=0.4)
        ax.set_title(chart.title)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def make_chart_qa(options: ChartOptions, *, seed: int, split: Split, draw: bool = True) -> Question:
    """A value, or the label of the largest or smallest one. ``data``: kind, chart, candidates."""
    rng = stream("chart_qa", options, seed=seed, split=split)
    chart = _draw_content(rng, options, split)
    kind = rng.choice(("value", "largest", "smallest"))
    asked, tolerance = None, 0.0
    if kind == "value":
        index = rng.randrange(len(chart.labels))
        asked, answer, tolerance = chart.labels[index], str(chart.values[index]), 0.05
        candidates = tuple(map(str, range(1, TOP)))
        text = f"What is the value of {asked}? Answer with one whole number from 1 to {TOP - 1}."
    else:
        pick = max if kind == "largest" else min
        answer = chart.labels[chart.values.index(pick(chart.values))]
        candidates = chart.labels
        text = f"Which label has the {kind} value? {one_of(candidates)}"
    return Question(
        task="chart_qa",
        prompt=text,
        answer=answer,
        images=(draw_chart(chart, options),) if draw else (),
        data={
            "kind": kind,
            "asked": asked,
            "chart": asdict(chart),
            "candidates": candidates,
            "tolerance": tolerance,
            "key": repr((chart, kind, asked)),
            "reward": "numeric" if kind == "value" else "match",
        },
    )


def make_chart_to_code(
    options: ChartOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Write the program that draws this chart. ``data``: chart, code (which runs)."""
    rng = stream("chart_to_code", options, seed=seed, split=split)
    chart = _draw_content(rng, options, split)
    code = chart_code(chart, options)
    return Question(
        task="chart_to_code",
        prompt=(
            "Write a matplotlib program that draws this chart: the same kind of chart, title, "
            f"labels and values, on a figure of {options.width / DPI:g} x {options.height / DPI:g} "
            f"inches at {DPI} dpi, named fig. Answer with the program alone."
        ),
        answer=code,
        images=(draw_chart(chart, options),) if draw else (),
        data={
            "chart": asdict(chart),
            "code": code,
            "options": asdict(options),
            "key": repr(chart),
            "reward": "chart_text_struct",
        },
    )


def read_values(image: Image, colour: str, number: int) -> list[int]:
    """The values of a chart from its pixels: where the colour stands over each label.

    A bar counts by its top, a line or points by their middle in the column of the label.
    """
    height, width = image.shape[:2]
    near = np.abs(image.astype(int) - COLOURS[colour]).max(-1) < 40
    left, right = LEFT * width, RIGHT * width
    values = []
    for index in range(number):
        x = left + (index + 0.5) / number * (right - left)
        rows = np.nonzero(near[:, round(x)])[0]
        is_bar = rows.max() >= (1 - BOTTOM) * height - 3 and len(rows) > 0.06 * height
        y = rows.min() if is_bar else rows.mean()
        share = ((1 - BOTTOM) * height - y) / ((CEILING - BOTTOM) * height)
        values.append(round(TOP * float(share)))
    return values


def solve_chart_qa(question: Question) -> str:
    """The answer from the pixels; labels and colour are taken as known."""
    data = question.data
    labels = data["chart"]["labels"]
    values = read_values(question.images[0], data["chart"]["colour"], len(labels))
    if data["kind"] == "value":
        return str(values[labels.index(data["asked"])])
    return labels[values.index((max if data["kind"] == "largest" else min)(values))]


def guess_code(question: Question, rng: Random) -> str:
    """The program of a random chart of the same size."""
    options = ChartOptions(**question.data["options"])
    return chart_code(_draw_content(rng, options, "train"), options)


CHART_QA = Task(
    options=ChartOptions,
    make_question=make_chart_qa,
    solve=solve_chart_qa,
    guess=guess_candidate,
    check=answers.same_number,
)
CHART_TO_CODE = Task(
    options=ChartOptions,
    make_question=make_chart_to_code,
    solve=None,
    guess=guess_code,
    check=answers.same_program,
)
