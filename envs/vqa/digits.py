"""``digits``: name a drawn digit after a few pictures of each in training (system 24, CLS-RL).

A digit is printed in Pillow's built-in outline font in one of several sizes, off the middle, turned
by a stated angle, with Gaussian noise of stated standard deviation on every pixel.

Few shots: the train split holds ``shots`` pictures of each digit and no more, seed s asking number
s modulo 10 * shots. Held out: (digit, font size, place) tuples, a fixed quarter; with ``turn`` they
are also of another kind than what was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

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

DIGITS_10 = tuple("0123456789")
HOLES = {"0": 1, "4": 1, "6": 1, "8": 2, "9": 1}
"""Closed loops of a printed digit, 0 for the others: what a policy that thinks says it sees."""
SCALES = (0.7, 0.78, 0.86)
"""Font size as a share of the picture."""
SHIFT = 0.08
"""Farthest from the middle, as a share of the picture, in each direction."""


@dataclass(frozen=True, kw_only=True)
class DigitsOptions:
    """Knobs of ``digits``.

    Attributes:
        shots: train pictures of each digit; 0: as many as there are seeds.
        size: of the picture in pixels.
        turn: degrees by which every picture is turned, to the left or to the right.
        noise: standard deviation of the grey levels, of 255.
    """

    shots: int = 16
    size: int = 28
    turn: int = 0
    noise: float = 16.0

    def __post_init__(self) -> None:
        check_range("shots", self.shots, 0, 10_000)
        check_range("size", self.size, 20, 1024)
        check_range("turn", self.turn, 0, 180)
        check_range("noise", self.noise, 0.0, 64.0)


@lru_cache(maxsize=4096)
def _ink(digit: str, scale: float, dx: int, dy: int, angle: int, size: int) -> Image:
    """Grey levels uint8 ``[size, size]`` of the digit without noise, dark on light."""
    page = PILImage.new("L", (size, size), 230)
    font = ImageFont.load_default(size=round(scale * size))
    ImageDraw.Draw(page).text((size / 2 + dx, size / 2 + dy), digit, 40, font=font, anchor="mm")
    turned = page.rotate(angle, resample=PILImage.Resampling.BILINEAR, fillcolor=230)
    return np.asarray(turned)


def _reach(size: int) -> int:
    return max(round(SHIFT * size), 1)


def make_question(
    options: DigitsOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Which digit? ``data``: candidates, thought (its closed loops)."""
    number = seed % (10 * options.shots) if options.shots and split == "train" else seed
    rng = stream("digits", options, seed=number, split=split)
    reach = _reach(options.size)
    digit, scale, dx, dy = draw_for_split(
        rng,
        split,
        lambda r: (
            DIGITS_10[number % 10] if options.shots and split == "train" else r.choice(DIGITS_10),
            r.choice(SCALES),
            r.randint(-reach, reach),
            r.randint(-reach, reach),
        ),
    )
    angle = rng.choice((-1, 1)) * options.turn
    noise_seed = rng.randrange(2**32)
    images: tuple[Image, ...] = ()
    if draw:
        noise = np.random.default_rng(noise_seed).normal(0, 1, (options.size, options.size))
        grey = _ink(digit, scale, dx, dy, angle, options.size) + options.noise * noise
        grey = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        images = (np.repeat(grey[..., None], 3, axis=2),)
    return Question(
        task="digits",
        prompt=f"Which digit is in the picture? {one_of(DIGITS_10)}",
        answer=digit,
        images=images,
        data={
            "candidates": DIGITS_10,
            "turn": options.turn,
            "thought": f"{HOLES.get(digit, 0)} holes",
            "brief": "digit?",
            "key": repr((digit, scale, dx, dy, angle, noise_seed)),
            "reward": "exact_label",
        },
    )


def solve(question: Question) -> str:
    """The digit whose clean picture, over all sizes and places, is least far from this one."""
    seen = question.images[0][..., 0].astype(float)
    size, turn = len(seen), question.data["turn"]
    reach = _reach(size)
    steps = range(-reach, reach + 1)
    best = {
        digit: min(
            float(np.square(_ink(digit, scale, dx, dy, angle, size) - seen).sum())
            for scale in SCALES
            for dx in steps
            for dy in steps
            for angle in {turn, -turn}
        )
        for digit in DIGITS_10
    }
    return min(best, key=lambda digit: best[digit])


DIGITS = Task(
    options=DigitsOptions, make_question=make_question, solve=solve, guess=guess_candidate
)
