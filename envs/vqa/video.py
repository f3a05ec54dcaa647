"""``temporal_grounding``, ``strip_video``: when and what in a film (systems 54, 59, 60).

``temporal_grounding`` shows a film of T frames with the time of each in the prompt (TimeLens writes
timestamps as text between the frames) and asks from when to when an object is visible, in seconds:
frame i lasts from i * dt to (i + 1) * dt, so an object in frames a to b is visible in [a dt, (b+1)
dt].

``strip_video`` shows a few frames of a long film; something flashes up between them. What it was
can only be seen by asking for further frames: `pick_frames`, `clip_frames` and `zoom`, on
``data["frames"]``, are the tools.

Held out: pairs of colour and shape (see `scene`); the asked object of a held-out film
of ``temporal_grounding``, and the moving object of one of ``strip_video``, is a held-out pair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import (
    Image,
    Split,
    Task,
    check_range,
    guess_candidate,
    one_of,
    stream,
)
from embodied_rl.envs.vqa.scene import (
    COLOURS,
    SHAPES,
    Item,
    asked_pairs,
    draw_pair,
    draw_scene,
    place,
    read_scene,
    shown_pairs,
)
from embodied_rl.types import Question


@dataclass(frozen=True, kw_only=True)
class TemporalGroundingOptions:
    """Knobs of ``temporal_grounding``.

    Attributes:
        num_frames: of the film, all shown.
        size: of a frame in pixels.
        grid: objects stand in the cells of a raster of grid x grid.
        num_objects: visible all the time, besides the asked one.
        max_length: frames that the event lasts, drawn from 1 to this; 0: half the film.
        seconds_per_frame: dt.
        label_noise: share of train questions whose reference is a random interval, for the test of
            system 60 that cleaned labels win; ``data["clean_span"]`` keeps the right one.
    """

    num_frames: int = 12
    size: int = 32
    grid: int = 2
    num_objects: int = 1
    max_length: int = 4
    seconds_per_frame: float = 0.5
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        check_range("num_frames", self.num_frames, 2, 512)
        check_range("size", self.size, 12 * self.grid, 1024)
        check_range("num_objects", self.num_objects, 0, self.grid**2 - 1)
        check_range("max_length", self.max_length, 0, self.num_frames)
        check_range("label_noise", self.label_noise, 0.0, 1.0)
        check_range("seconds_per_frame", self.seconds_per_frame, 0.01, 3600)


@dataclass(frozen=True, kw_only=True)
class StripVideoOptions:
    """Knobs of ``strip_video``.

    Attributes:
        num_frames: of the film.
        initial_frames: shown with the question, evenly spaced; the event is in none of them, unless
            the whole film is shown. So fewer than ``num_frames`` leave one turn without tools at
            chance.
        event_frames: for which the event is visible.
        size: of a frame in pixels.
        num_choices: colours that the prompt names.
    """

    num_frames: int = 64
    initial_frames: int = 4
    event_frames: int = 4
    size: int = 48
    num_choices: int = 4

    def __post_init__(self) -> None:
        check_range("num_frames", self.num_frames, 3, 4096)
        check_range("initial_frames", self.initial_frames, 2, self.num_frames)
        check_range("event_frames", self.event_frames, 1, self.num_frames - 2)
        check_range("num_choices", self.num_choices, 2, 4)
        check_range("size", self.size, 36, 1024)
        if not self.starts():
            raise ValueError("the event does not fit between two initial frames: make it shorter")

    def shown(self) -> tuple[int, ...]:
        """Indices of the frames shown with the question, first and last included."""
        steps = self.initial_frames - 1
        return tuple(round(i * (self.num_frames - 1) / steps) for i in range(steps + 1))

    def starts(self) -> list[int]:
        """First frames for which the event stays clear of the shown ones."""
        shown = self.shown()
        lasts = range(self.num_frames - self.event_frames + 1)
        if self.initial_frames == self.num_frames:
            return list(lasts)
        return [a for a in lasts if not any(a <= s < a + self.event_frames for s in shown)]


def _span(rng: Random, options: TemporalGroundingOptions) -> tuple[int, int]:
    """First frame and one past the last one; one frame at least is without the event."""
    longest = min(options.max_length or options.num_frames // 2, options.num_frames - 1)
    length = rng.randint(1, max(longest, 1))
    start = rng.randint(0, options.num_frames - length)
    return start, start + length


def make_temporal_grounding(
    options: TemporalGroundingOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """From when to when is it visible? ``data``: span, clean_span, duration (seconds)."""
    rng = stream("temporal_grounding", options, seed=seed, split=split)
    pair = draw_pair(rng, asked_pairs(split))
    others = [draw_pair(rng, shown_pairs(split), but=[pair]) for _ in range(options.num_objects)]
    event, *still = place(rng, [pair, *others], size=options.size, grid=options.grid)
    start, stop = _span(rng, options)
    dt = options.seconds_per_frame
    clean = [round(start * dt, 3), round(stop * dt, 3)]
    span = clean
    if split == "train" and rng.random() < options.label_noise:
        span = [round(frame * dt, 3) for frame in _span(rng, options)]
    images: tuple[Image, ...] = ()
    if draw:
        before = draw_scene(still, size=options.size)
        during = draw_scene([*still, event], size=options.size)
        frames = range(options.num_frames)
        images = tuple((during if start <= i < stop else before).copy() for i in frames)
    times = ", ".join(f"{i * dt:g}" for i in range(options.num_frames))
    duration = round(options.num_frames * dt, 3)
    return Question(
        task="temporal_grounding",
        prompt=(
            f"These are the frames of a film, which start at {times} seconds; it ends at "
            f"{duration:g}. From when to when is the {pair[0]} {pair[1]} visible? Answer with "
            "[start, end] in seconds."
        ),
        answer=json.dumps(span),
        images=images,
        data={
            "pair": pair,
            "span": span,
            "clean_span": clean,
            "duration": duration,
            "seconds_per_frame": dt,
            "num_frames": options.num_frames,
            "key": repr((event, still, start, stop)),
            "brief": f"When is the {pair[0]} {pair[1]}?",
            "thought": " ".join(str(int(start <= i < stop)) for i in range(options.num_frames)),
            "reward": "tiou",
        },
    )


def solve_temporal_grounding(question: Question) -> str:
    """The span from the pixels: the frames in which the asked object is seen."""
    seen = [
        any(item.pair == question.data["pair"] for item in read_scene(frame))
        for frame in question.images
    ]
    dt = question.data["seconds_per_frame"]
    start, stop = seen.index(True), len(seen) - seen[::-1].index(True)
    return json.dumps([round(start * dt, 3), round(stop * dt, 3)])


def guess_span(question: Question, rng: Random) -> str:
    """A random interval of whole frames."""
    frames = sorted(rng.sample(range(question.data["num_frames"] + 1), 2))
    return json.dumps([round(frame * question.data["seconds_per_frame"], 3) for frame in frames])


def make_strip_video(
    options: StripVideoOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Which colour flashed up? ``data``: frames (the whole film), shown, event, candidates."""
    rng = stream("strip_video", options, seed=seed, split=split)
    shape = rng.choice(SHAPES)
    radius = options.size // 6
    # Drawn from all that the split may show, so that no rule about pairs narrows the answer down.
    colours = [colour for colour in COLOURS if (colour, shape) in shown_pairs(split)]
    candidates = tuple(sorted(rng.sample(colours, options.num_choices)))
    answer = rng.choice(candidates)
    moving = draw_pair(rng, [pair for pair in asked_pairs(split) if pair[1] != shape])
    start = rng.choice(options.starts())
    path = (rng.randrange(options.size), rng.choice((-2, -1, 1, 2)))
    corner = rng.choice((radius + 1, options.size - radius - 2))
    event = Item(answer, shape, corner, radius + 1, radius)
    frames: tuple[Image, ...] = ()
    if draw:
        frames = tuple(
            _frame(
                i, options, moving, path, event if 0 <= i - start < options.event_frames else None
            )
            for i in range(options.num_frames)
        )
    shown = options.shown()
    numbers = ", ".join(map(str, shown))
    return Question(
        task="strip_video",
        prompt=(
            f"These are frames {numbers} of a film with frames 0 to {options.num_frames - 1}. "
            f"Somewhere in the film a {shape} appears for {options.event_frames} frames. Which "
            f"colour has it? {one_of(candidates)}"
        ),
        answer=answer,
        images=tuple(frames[i] for i in shown) if draw else (),
        data={
            "frames": frames,
            "shown": shown,
            "shape": shape,
            "event": (start, start + options.event_frames),
            "candidates": candidates,
            "key": repr((event, moving, path, start)),
            "reward": "match",
        },
    )


def _frame(
    index: int,
    options: StripVideoOptions,
    moving: tuple[str, str],
    path: tuple[int, int],
    event: Item | None,
) -> Image:
    """A frame: an object that runs to and fro in the lower half, and the event above it."""
    radius, size = options.size // 6, options.size
    reach = size - 2 * radius - 1
    phase = (path[0] + path[1] * index) % (2 * reach)
    x = radius + (phase if phase <= reach else 2 * reach - phase)
    mover = Item(*moving, x, size - radius - 2, radius)
    return draw_scene([mover] if event is None else [mover, event], size=size)


def pick_frames(question: Question, indices: Sequence[int]) -> tuple[Image, ...]:
    """Tool: these frames of the film.

    Raises:
        ValueError: an index outside the film.
    """
    frames = question.data["frames"]
    for index in indices:
        if not 0 <= index < len(frames):
            raise ValueError(
                f"there is no frame {index}: the film has frames 0 to {len(frames) - 1}"
            )
    return tuple(frames[index] for index in indices)


def clip_frames(question: Question, start: int, stop: int, *, number: int) -> tuple[Image, ...]:
    """Tool: ``number`` frames spread evenly over frames ``start`` to ``stop``, both included.

    Raises:
        ValueError: an interval outside the film or the wrong way round, or fewer than one frame.
    """
    if stop < start or number < 1:
        raise ValueError(
            f"clip {start} to {stop} with {number} frames: give start <= stop, number >= 1"
        )
    spread = np.linspace(start, stop, number).round().astype(int).tolist()
    return pick_frames(question, sorted({start, stop, *spread} if number > 1 else {start}))


def zoom(image: Image, box: Sequence[int], *, size: int) -> Image:
    """Tool: the part of a picture in ``box``, enlarged to ``[size, size, 3]`` by nearest pixel.

    Raises:
        ValueError: the box is empty or reaches out of the picture.
    """
    x1, y1, x2, y2 = box
    height, width = image.shape[:2]
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(
            f"box {list(box)} does not lie in the picture of {width} x {height} pixels"
        )
    rows = y1 + np.arange(size) * (y2 - y1) // size
    columns = x1 + np.arange(size) * (x2 - x1) // size
    return np.ascontiguousarray(image[rows[:, None], columns])


def solve_strip_video(question: Question) -> str:
    """The answer from the pixels of the whole film, as one who asks for every frame."""
    frames = pick_frames(question, range(len(question.data["frames"])))
    seen = (item for frame in frames for item in read_scene(frame))
    return next(item.colour for item in seen if item.shape == question.data["shape"])


TEMPORAL_GROUNDING = Task(
    options=TemporalGroundingOptions,
    make_question=make_temporal_grounding,
    solve=solve_temporal_grounding,
    guess=guess_span,
    check=answers.overlapping_span,
)
STRIP_VIDEO = Task(
    options=StripVideoOptions,
    make_question=make_strip_video,
    solve=solve_strip_video,
    guess=guess_candidate,
)
