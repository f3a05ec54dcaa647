"""``timeseries_plot``: name the kind of signal in a plot (system 37, TimeMaster).

Signals are sine, square, sawtooth and noise, with a number of periods, a phase and an amplitude,
plus Gaussian noise of a stated standard deviation; drawn as a line with numpy alone.

Held out: (kind, periods, amplitude) triples, a fixed quarter of them, spread over all kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

from embodied_rl.envs.vqa.common import (
    Image,
    Split,
    Task,
    check_range,
    guess_candidate,
    one_of,
    stream,
)
from embodied_rl.types import Question

KINDS = ("sine", "square", "sawtooth", "noise")
PERIODS = (2, 3, 4, 5)
AMPLITUDES = (5, 6, 7, 8)
"""In tenths of half the plot's height."""


@dataclass(frozen=True, kw_only=True)
class TimeSeriesOptions:
    """Knobs of ``timeseries_plot``.

    Attributes:
        width: of the plot in pixels, one sample per pixel.
        height: of the plot in pixels.
        noise: standard deviation added to every signal, as a share of half the height.
    """

    width: int = 96
    height: int = 48
    noise: float = 0.03

    def __post_init__(self) -> None:
        check_range("width", self.width, 48, 1024)
        check_range("height", self.height, 24, 1024)
        check_range("noise", self.noise, 0.0, 0.5)


def signal(kind: str, periods: int, phase: float, number: int) -> npt.NDArray[np.float64]:
    """``number`` samples of a periodic signal with values in [-1, 1]."""
    turns = periods * np.arange(number) / number + phase
    if kind == "sine":
        return np.sin(2 * np.pi * turns)
    if kind == "square":
        return np.where(turns % 1 < 0.5, 1.0, -1.0)
    return 2 * (turns % 1) - 1


def _plot(values: npt.NDArray[np.float64], options: TimeSeriesOptions) -> Image:
    """A line through values in [-1, 1], one per column, on white with a grey axis."""
    height = options.height
    image = np.full((height, options.width, 3), 255, np.uint8)
    image[height // 2] = 205
    rows = np.rint((1 - np.clip(values, -1, 1)) / 2 * (height - 1)).astype(int)
    for column, (row, last) in enumerate(zip(rows, [rows[0], *rows[:-1]], strict=True)):
        low, high = sorted((int(row), int(last)))
        image[low : high + 1, column] = (20, 60, 160)
    return image


def make_question(
    options: TimeSeriesOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Which kind of signal is this? ``data``: candidates, periods, amplitude, facts."""
    rng = stream("timeseries_plot", options, seed=seed, split=split)
    kind = rng.choice(KINDS)
    grid = [
        (p, a)
        for p in PERIODS
        for a in AMPLITUDES
        if is_held_out(kind, p, a) == (split == "heldout")
    ]
    periods, amplitude = rng.choice(grid)
    phase, noise_seed = rng.randrange(100) / 100, rng.randrange(2**32)
    count = "no" if kind == "noise" else str(periods)
    images: tuple[Image, ...] = ()
    if draw:
        images = (_plot(_values(kind, periods, amplitude, phase, noise_seed, options), options),)
    return Question(
        task="timeseries_plot",
        prompt=f"Which kind of signal does the plot show? {one_of(KINDS)}",
        answer=kind,
        images=images,
        data={
            "candidates": KINDS,
            "periods": periods,
            "amplitude": amplitude / 10,
            "key": repr((kind, periods, amplitude, phase, noise_seed)),
            "brief": "kind?",
            "thought": f"periods {count}",
            "facts": [("periods", count, (*map(str, PERIODS), "no"))],
            "reward": "exact_label",
        },
    )


def is_held_out(kind: str, periods: int, amplitude: int) -> bool:
    """Whether the train split never shows this triple: a quarter of those of each kind."""
    return (KINDS.index(kind) + periods + amplitude) % 4 == 0


def _values(
    kind: str, periods: int, amplitude: int, phase: float, seed: int, options: TimeSeriesOptions
) -> npt.NDArray[np.float64]:
    random = Random(seed)
    noise = np.array([random.gauss(0, 1) for _ in range(options.width)])
    if kind == "noise":
        return amplitude / 20 * noise
    clean = signal(kind, periods, phase, options.width)
    return amplitude / 10 * clean + options.noise * noise


def solve(question: Question) -> str:
    """The kind whose best-fitting curve, over all periods and phases, leaves the least error."""
    dark = (question.images[0] == (20, 60, 160)).all(-1)
    height, width = dark.shape
    weights = dark / np.maximum(dark.sum(0), 1)
    seen = 1 - 2 * (weights * np.arange(height)[:, None]).sum(0) / (height - 1)
    best = {}
    for kind in KINDS[:3]:
        curves = [signal(kind, p, phase / 50, width) for p in PERIODS for phase in range(50)]
        errors = [np.sum((seen - c * (seen @ c) / (c @ c)) ** 2) for c in curves if seen @ c > 0]
        best[kind] = min(errors) / np.sum((seen - seen.mean()) ** 2)
    kind = min(best, key=lambda name: best[name])
    return kind if best[kind] < 0.5 else "noise"


TIMESERIES = Task(
    options=TimeSeriesOptions, make_question=make_question, solve=solve, guess=guess_candidate
)
