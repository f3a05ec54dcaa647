"""``few_shot_classification``: name a picture after a few labelled examples (system 24, CLS-RL).

A class is a shape filled with a pattern; its name is an invented word, drawn anew for every
question, so that only the examples tell what it means.

Held out: classes, as pairs of shape and pattern (a fixed quarter); a held-out question has only
those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embodied_rl.envs.vqa.common import (
    Image,
    Split,
    Task,
    check_range,
    guess_candidate,
    one_of,
    stream,
)
from embodied_rl.envs.vqa.scene import BACKGROUND, SHAPES, shape_mask
from embodied_rl.types import Question

PATTERNS = ("plain", "rows", "columns", "slant", "dots", "checks")
INK = (30, 60, 120)
PALE = (165, 190, 230)
SYLLABLES = ("ba", "do", "fe", "gu", "ki", "lo", "mi", "nu", "pa", "ro", "su", "ti", "ve", "zo")
CLASSES = tuple((shape, pattern) for shape in SHAPES for pattern in PATTERNS)


@dataclass(frozen=True, kw_only=True)
class FewShotOptions:
    """Knobs of ``few_shot_classification``.

    Attributes:
        ways: classes in a question, 2 to 6.
        shots: examples of each.
        size: of each picture in pixels.
        shift: how far objects stand off the middle, in pixels, in each direction.
    """

    ways: int = 2
    shots: int = 1
    size: int = 48
    shift: int = 4

    def __post_init__(self) -> None:
        check_range("ways", self.ways, 2, 6)
        check_range("shots", self.shots, 1, 16)
        check_range("size", self.size, 32, 1024)
        check_range("shift", self.shift, 0, self.size // 8)


def is_held_out(shape: str, pattern: str) -> bool:
    """Whether the train split never shows this class: one pattern of every shape and the like."""
    return (SHAPES.index(shape) + PATTERNS.index(pattern)) % 4 == 0


def _draw(cls: tuple[str, str], dx: int, dy: int, size: int) -> Image:
    """One object of a class, off the middle by (dx, dy)."""
    radius = 3 * size // 8
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    dark = {
        "plain": np.ones_like(x, bool),
        "rows": y % 6 < 3,
        "columns": x % 6 < 3,
        "slant": (x + y) % 8 < 4,
        "dots": (x % 6 < 3) & (y % 6 < 3),
        "checks": (x // 5 + y // 5) % 2 == 0,
    }[cls[1]]
    glyph = np.where(dark[..., None], np.array(INK, np.uint8), np.array(PALE, np.uint8))
    image = np.empty((size, size, 3), np.uint8)
    image[:] = BACKGROUND
    top, left = size // 2 - radius + dy, size // 2 - radius + dx
    window = image[top : top + 2 * radius + 1, left : left + 2 * radius + 1]
    mask = shape_mask(cls[0], radius)
    window[mask] = glyph[mask]
    return image


def make_question(
    options: FewShotOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Which class is the last picture? Images: the examples in order, then the asked one."""
    rng = stream("few_shot_classification", options, seed=seed, split=split)
    classes = rng.sample(
        [c for c in CLASSES if is_held_out(*c) == (split == "heldout")], options.ways
    )
    words: list[str] = []
    while len(words) < options.ways:
        word = "".join(rng.sample(SYLLABLES, 2))
        if word not in words:
            words.append(word)
    order = rng.sample(list(range(options.ways)) * options.shots, options.ways * options.shots)
    target = rng.randrange(options.ways)
    shift = options.shift
    places = [
        (rng.randint(-shift, shift), rng.randint(-shift, shift)) for _ in range(len(order) + 1)
    ]
    pictures = [*order, target]
    images = tuple(
        _draw(classes[i], *place, options.size)
        for i, place in zip(pictures, places, strict=True)
        if draw
    )
    shown = ", ".join(f"picture {n}: {words[i]}" for n, i in enumerate(order, start=1))
    return Question(
        task="few_shot_classification",
        prompt=f"{shown}. What is picture {len(order) + 1}? {one_of(sorted(words))}",
        answer=words[target],
        images=images,
        data={
            "labels": [words[i] for i in order],
            "candidates": tuple(sorted(words)),
            "key": repr((classes, words, order, target, places)),
            "reward": "exact_label",
        },
    )


def solve(question: Question) -> str:
    """The label of the example whose object, cut out of its background, is most alike."""
    *examples, asked = [_cut_out(image) for image in question.images]
    distances = [float(np.abs(example - asked).mean()) for example in examples]
    return question.data["labels"][int(np.argmin(distances))]


def _cut_out(image: Image) -> np.ndarray:
    filled = (image != BACKGROUND).any(-1)
    rows, columns = np.nonzero(filled.any(1))[0], np.nonzero(filled.any(0))[0]
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)


FEW_SHOT = Task(
    options=FewShotOptions, make_question=make_question, solve=solve, guess=guess_candidate
)
