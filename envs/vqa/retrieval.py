"""``retrieval_embed``: a caption that is found among many (system 70, UME-R1).

A picture holds two objects, its caption names them with their places. The other captions differ
from it in one word or more, so that an embedding must carry every detail.

Held out: pairs of colour and shape (see `scene`): both objects of a held-out picture are held-out
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from embodied_rl.envs.vqa.common import Split, Task, check_range, guess_candidate, stream
from embodied_rl.envs.vqa.scene import (
    Item,
    Pair,
    asked_pairs,
    draw_scene,
    place_in,
    read_scene,
)
from embodied_rl.types import Question

PLACES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Knobs of ``retrieval_embed``.

    Attributes:
        num_candidates: captions, one of which is right; up to 500.
        size: of the picture in pixels.
        hard_share: share of wrong captions that differ from the right one in one object only.
    """

    num_candidates: int = 50
    size: int = 64
    hard_share: float = 0.5

    def __post_init__(self) -> None:
        check_range("num_candidates", self.num_candidates, 2, 500)
        check_range("size", self.size, 24, 1024)
        check_range("hard_share", self.hard_share, 0.0, 1.0)


Object = tuple[Pair, int]
"""Colour and shape, and the quarter of the picture."""


def caption(first: Object, second: Object) -> str:
    """``a red ring top left and a blue cross bottom right``, quarters in reading order."""
    return " and ".join(
        f"a {pair[0]} {pair[1]} {PLACES[place]}"
        for pair, place in sorted((first, second), key=lambda item: item[1])
    )


def _draw_objects(rng: Random, split: Split) -> tuple[Object, Object]:
    places = rng.sample(range(4), 2)
    return (rng.choice(asked_pairs(split)), places[0]), (rng.choice(asked_pairs(split)), places[1])


def make_question(
    options: RetrievalOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Which caption? ``data``: candidates (captions), positive, negatives."""
    rng = stream("retrieval_embed", options, seed=seed, split=split)
    first, second = _draw_objects(rng, split)
    right = caption(first, second)
    captions = {right: None}
    while len(captions) < options.num_candidates:
        other_first, other_second = _draw_objects(rng, split)
        if rng.random() < options.hard_share:
            other_first, other_second = first, (other_second[0], second[1])
        captions[caption(other_first, other_second)] = None
    candidates = rng.sample(list(captions), options.num_candidates)
    images = ()
    if draw:
        pairs, cells = (first[0], second[0]), (first[1], second[1])
        jitter = Random(seed)
        items: tuple[Item, ...] = place_in(jitter, pairs, cells, size=options.size, grid=2)
        images = (draw_scene(items, size=options.size),)
    return Question(
        task="retrieval_embed",
        prompt=(
            "Describe the picture so that it is found among many: which objects are where? Answer "
            "with one line: a COLOUR SHAPE PLACE and a COLOUR SHAPE PLACE (places: "
            f"{', '.join(PLACES)})."
        ),
        answer=right,
        images=images,
        data={
            "candidates": tuple(candidates),
            "positive": right,
            "negatives": tuple(text for text in candidates if text != right),
            "key": repr((right, candidates)),
            "brief": "what?",
            "reward": "embedding_rank_gap",
        },
    )


def solve(question: Question) -> str:
    """The caption from the pixels."""
    image = question.images[0]
    half = len(image) / 2
    first, second = (
        (item.pair, 2 * (item.y >= half) + (item.x >= half)) for item in read_scene(image)
    )
    return caption(first, second)


RETRIEVAL_EMBED = Task(
    options=RetrievalOptions, make_question=make_question, solve=solve, guess=guess_candidate
)
