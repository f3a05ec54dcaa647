"""``shapes_vqa``: count, colour, position and comparison in a picture of coloured shapes.

Every kind of question draws its answer first, uniformly from the candidates that the prompt names,
and then a scene in which it is true. So a policy that sees the text alone scores 1/len(candidates).

Shortcut. With ``shortcut`` = q > 0 the answer is with probability q the one that the text
suggests: the candidate with index (index of the asked shape) % len(candidates). The best text-only
predictor then scores exactly q, and the questions whose answer is another one (``data["prior"] !=
answer``) need the picture. System 5 (VPPO) and others that reward the use of the image are
measured on those.

Held out: pairs of colour and shape (see `scene`). The held-out split asks about held-out pairs
(kind ``colour``: shows at least one).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any

from embodied_rl.envs.vqa.common import Split, Task, check_range, guess_candidate, one_of, stream
from embodied_rl.envs.vqa.scene import (
    COLOURS,
    HELD_OUT,
    PLURALS,
    SHAPES,
    Item,
    Pair,
    asked_pairs,
    draw_pair,
    draw_scene,
    is_held_out,
    place,
    place_in,
    read_scene,
    shown_pairs,
)
from embodied_rl.types import Question

POSITIONS = ("top left", "top right", "bottom left", "bottom right")
COMPARISONS = ("more", "fewer", "same")
KINDS = ("count", "colour", "position", "comparison")


@dataclass(frozen=True, kw_only=True)
class ShapesVQAOptions:
    """Knobs of ``shapes_vqa``.

    Attributes:
        kinds: questions to draw from, each equally often.
        size: of the picture in pixels, ``[size, size, 3]``.
        grid: objects stand in the cells of a raster of grid x grid; even.
        num_objects: in the picture, as long as the answer does not need more.
        max_count: the largest answer of a count.
        shortcut: share of questions that the text alone answers; 0: no more than chance.
    """

    kinds: tuple[str, ...] = KINDS
    size: int = 64
    grid: int = 4
    num_objects: int = 5
    max_count: int = 3
    shortcut: float = 0.0

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds is {self.kinds}: choose some of {KINDS}")
        if self.grid % 2:
            raise ValueError(
                f"grid is {self.grid}: an even number, so that every cell has a corner"
            )
        check_range("shortcut", self.shortcut, 0.0, 1.0)
        check_range("max_count", self.max_count, 1, self.grid**2 // 2)
        check_range("num_objects", self.num_objects, 1, self.grid**2)


@dataclass(frozen=True)
class _Asked:
    """A question before its scene: kind, text, what it asks about, and which answers it allows."""

    kind: str
    text: str
    asked: tuple[str, ...]
    candidates: tuple[str, ...]
    shape: str
    brief: str


def make_question(
    options: ShapesVQAOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """The question of ``seed``; ``data``: kind, candidates, prior (the text's answer), objects."""
    rng = stream("shapes_vqa", options, seed=seed, split=split)
    asked = _ask(rng, options, split)
    prior = asked.candidates[SHAPES.index(asked.shape) % len(asked.candidates)]
    answer = _pick(rng, asked.candidates, prior, options.shortcut)
    items = _SCENES[asked.kind](rng, options, split, asked, answer)
    return Question(
        task="shapes_vqa",
        prompt=f"{asked.text} {one_of(asked.candidates)}",
        answer=answer,
        images=(draw_scene(items, size=options.size),) if draw else (),
        data={
            "kind": asked.kind,
            "asked": asked.asked,
            "candidates": asked.candidates,
            "prior": prior,
            "objects": items,
            "brief": asked.brief,
            "key": repr((asked.kind, asked.asked, items)),
            "reward": "match",
        },
    )


def _pick(rng: Random, candidates: tuple[str, ...], prior: str, shortcut: float) -> str:
    if shortcut == 0.0:
        return rng.choice(candidates)
    if rng.random() < shortcut:
        return prior
    return rng.choice([candidate for candidate in candidates if candidate != prior])


def _ask(rng: Random, options: ShapesVQAOptions, split: Split) -> _Asked:
    kind = rng.choice(options.kinds)
    colour, shape = draw_pair(rng, asked_pairs(split))
    if kind == "count":
        text = f"How many {colour} {PLURALS[shape]} are in the picture?"
        numbers = tuple(str(number) for number in range(options.max_count + 1))
        brief = f"How many {colour} {PLURALS[shape]}?"
        return _Asked(kind, text, (colour, shape), numbers, shape, brief)
    if kind == "colour":
        shown = [c for c in COLOURS if (c, shape) in shown_pairs(split)]
        # As many in both splits, so that both have the same chance level.
        choices = tuple(sorted(rng.sample(shown, 4)))
        brief = f"What colour is the {shape}?"
        return _Asked(kind, f"Which colour has the {shape}?", (shape,), choices, shape, brief)
    if kind == "position":
        text = f"In which corner of the picture is the {colour} {shape}?"
        brief = f"Where is the {colour} {shape}?"
        return _Asked(kind, text, (colour, shape), POSITIONS, shape, brief)
    other = draw_pair(rng, shown_pairs(split), but=[(colour, shape)])
    text = (
        f"Are the {colour} {PLURALS[shape]} more or fewer than the {other[0]} {PLURALS[other[1]]}, "
        "or the same number?"
    )
    brief = f"More {colour} {PLURALS[shape]} or {other[0]} {PLURALS[other[1]]}?"
    return _Asked(kind, text, (colour, shape, *other), COMPARISONS, shape, brief)


def _fill(rng: Random, pairs: list[Pair], wanted: int, allowed: list[Pair]) -> list[Pair]:
    return pairs + [rng.choice(allowed) for _ in range(wanted - len(pairs))]


def _scene_count(
    rng: Random, options: ShapesVQAOptions, split: Split, asked: _Asked, answer: str
) -> tuple[Item, ...]:
    pair = (asked.asked[0], asked.asked[1])
    others = [other for other in shown_pairs(split) if other != pair]
    pairs = _fill(rng, [pair] * int(answer), options.num_objects, others)
    return place(rng, pairs, size=options.size, grid=options.grid)


def _scene_colour(
    rng: Random, options: ShapesVQAOptions, split: Split, asked: _Asked, answer: str
) -> tuple[Item, ...]:
    others = [pair for pair in shown_pairs(split) if pair[1] != asked.shape]
    pairs = _fill(rng, [(answer, asked.shape)], options.num_objects, others)
    if split == "heldout" and not any(map(is_held_out, pairs)):
        pairs = [pairs[0], *pairs[2:], rng.choice([p for p in HELD_OUT if p in others])]
    return place(rng, pairs, size=options.size, grid=options.grid)


def _scene_position(
    rng: Random, options: ShapesVQAOptions, split: Split, asked: _Asked, answer: str
) -> tuple[Item, ...]:
    pair, grid = (asked.asked[0], asked.asked[1]), options.grid
    others = [other for other in shown_pairs(split) if other != pair]
    corner = [cell for cell in range(grid * grid) if _corner(cell, grid) == answer]
    first = rng.choice(corner)
    free = [cell for cell in range(grid * grid) if cell != first]
    pairs = _fill(rng, [pair], options.num_objects, others)
    cells = [first, *rng.sample(free, len(pairs) - 1)]
    return place_in(rng, pairs, cells, size=options.size, grid=grid)


def _corner(cell: int, grid: int) -> str:
    row, column = divmod(cell, grid)
    return POSITIONS[2 * (2 * row >= grid) + (2 * column >= grid)]


def _scene_comparison(
    rng: Random, options: ShapesVQAOptions, split: Split, asked: _Asked, answer: str
) -> tuple[Item, ...]:
    first, second = asked.asked[:2], asked.asked[2:]
    numbers = range(options.max_count + 1)
    counts = {
        "more": [(a, b) for a in numbers for b in numbers if a > b],
        "fewer": [(a, b) for a in numbers for b in numbers if a < b],
        "same": [(a, a) for a in numbers],
    }
    a, b = rng.choice(counts[answer])
    pairs: list[Pair] = [(first[0], first[1])] * a + [(second[0], second[1])] * b
    others = [pair for pair in shown_pairs(split) if pair not in (first, second)]
    pairs = _fill(rng, pairs, options.num_objects, others)
    return place(rng, pairs, size=options.size, grid=options.grid)


_SCENES = {
    "count": _scene_count,
    "colour": _scene_colour,
    "position": _scene_position,
    "comparison": _scene_comparison,
}


def solve(question: Question) -> str:
    """The answer from the pixels: connected components by colour, shapes from filled pixels."""
    return answer_from(read_scene(question.images[0]), question)


def answer_from(seen: list[Item], question: Question) -> str:
    """The answer to the question about objects that somebody has seen in the picture."""
    counts = Counter(item.pair for item in seen)
    asked: Any = question.data["asked"]
    kind = question.data["kind"]
    if kind == "count":
        return str(counts[asked])
    if kind == "colour":
        return next(item.colour for item in seen if item.shape == asked[0])
    if kind == "position":
        item = next(item for item in seen if item.pair == asked)
        height, width = question.images[0].shape[:2]
        vertical = "bottom" if 2 * item.y + 1 >= height - 1 else "top"
        return f"{vertical} {'right' if 2 * item.x + 1 >= width - 1 else 'left'}"
    first, second = counts[asked[:2]], counts[asked[2:]]
    return "same" if first == second else "more" if first > second else "fewer"


SHAPES_VQA = Task(
    options=ShapesVQAOptions, make_question=make_question, solve=solve, guess=guess_candidate
)
