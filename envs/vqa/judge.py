"""``pairwise_judge`` and ``perception_checklist``: tasks made from the questions of ``shapes_vqa``.

``pairwise_judge`` (system 48, R1-Reward) shows a picture, a question and two answers, one of them
right, and asks for the better one. Right and wrong answers have the same distribution and either
place is equally likely, so a policy that does not look scores 1/2.

``perception_checklist`` (system 42, PEARL) asks K facts about a picture, each checked by itself,
and a last question computed from them: how many objects the counted colours are together.

Held out: pairs of colour and shape, as in `shapes` and `scene`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from embodied_rl.envs.vqa import answers, shapes
from embodied_rl.envs.vqa.common import Split, Task, check_range, guess_candidate, stream
from embodied_rl.envs.vqa.scene import (
    COLOURS,
    asked_pairs,
    draw_scene,
    place,
    read_scene,
    shown_pairs,
)
from embodied_rl.types import Question


@dataclass(frozen=True, kw_only=True)
class PairwiseJudgeOptions:
    """Knobs of ``pairwise_judge``.

    Attributes:
        question: knobs of the questions that are judged; ``shortcut`` there lets the text prior
        win.
    """

    question: shapes.ShapesVQAOptions = field(default_factory=shapes.ShapesVQAOptions)


@dataclass(frozen=True, kw_only=True)
class ChecklistOptions:
    """Knobs of ``perception_checklist``.

    Attributes:
        num_facts: K colours that are counted.
        size: of the picture in pixels.
        grid: objects stand in the cells of a raster of grid x grid.
        max_each: objects of one counted colour, drawn from 0 to this.
        num_others: objects of colours nobody asks for.
    """

    num_facts: int = 2
    size: int = 64
    grid: int = 4
    max_each: int = 3
    num_others: int = 2

    def __post_init__(self) -> None:
        check_range("num_facts", self.num_facts, 1, len(COLOURS) - 1)
        check_range("num_others", self.num_others, 1, self.grid**2)
        most = self.num_facts * self.max_each + self.num_others
        if most > self.grid**2:
            raise ValueError(f"up to {most} objects do not fit {self.grid**2} cells: raise grid")


def make_pairwise(
    options: PairwiseJudgeOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Which of two answers is right? ``data``: candidates, answers, inner (the judged question)."""
    rng = stream("pairwise_judge", options, seed=seed, split=split)
    inner = shapes.make_question(options.question, seed=seed, split=split, draw=draw)
    wrong = rng.choice([c for c in inner.data["candidates"] if c != inner.answer])
    place_of_right = rng.randrange(2)
    replies = (inner.answer, wrong) if place_of_right == 0 else (wrong, inner.answer)
    text = inner.prompt.split(" Answer with one of:")[0]
    return Question(
        task="pairwise_judge",
        prompt=(
            f"Question about the picture: {text} Reply 1: {replies[0]}. Reply 2: {replies[1]}. "
            "Which reply is right? Answer with one of: 1, 2."
        ),
        answer=str(place_of_right + 1),
        images=inner.images,
        data={
            "candidates": ("1", "2"),
            "answers": replies,
            "inner": replace(inner, images=()),
            "key": inner.data["key"],
            "brief": f"{inner.data['brief']} {replies[0]} or {replies[1]}?",
            "reward": "match",
        },
    )


def solve_pairwise(question: Question) -> str:
    """The reply that agrees with the answer read from the pixels."""
    inner = replace(question.data["inner"], images=question.images)
    return str(question.data["answers"].index(shapes.solve(inner)) + 1)


def make_checklist(
    options: ChecklistOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """K counts and their sum. ``data``: checklist, final, asked (colours)."""
    rng = stream("perception_checklist", options, seed=seed, split=split)
    asked = rng.sample(COLOURS, options.num_facts)
    counts = [rng.randint(0, options.max_each) for _ in asked]
    rest = [pair for pair in asked_pairs(split) if pair[0] not in asked]
    # The first of the others is a pair that only this split may be asked about.
    pairs = [rng.choice(rest)]
    pairs += [
        rng.choice([p for p in shown_pairs(split) if p[0] not in asked])
        for _ in range(options.num_others - 1)
    ]
    for colour, count in zip(asked, counts, strict=True):
        pairs += [
            rng.choice([p for p in shown_pairs(split) if p[0] == colour]) for _ in range(count)
        ]
    items = place(rng, pairs, size=options.size, grid=options.grid)
    facts = [f"{k}. How many {c} objects are there?" for k, c in enumerate(asked, start=1)]
    return Question(
        task="perception_checklist",
        prompt=(
            f"{' '.join(facts)} Last: how many objects have one of these colours? Answer with "
            "<checklist>[number, ...]</checklist> for the numbered questions in their order, and "
            "<answer>number</answer> for the last."
        ),
        answer=_write(counts),
        images=(draw_scene(items, size=options.size),) if draw else (),
        data={
            "asked": tuple(asked),
            "checklist": tuple(map(str, counts)),
            "final": str(sum(counts)),
            "max_each": options.max_each,
            "key": repr((asked, items)),
            "reward": "perception_checklist",
        },
    )


def _write(counts: list[int]) -> str:
    return f"<checklist>{json.dumps(counts)}</checklist><answer>{sum(counts)}</answer>"


def solve_checklist(question: Question) -> str:
    """The counts from the pixels."""
    seen = Counter(item.colour for item in read_scene(question.images[0]))
    return _write([seen[colour] for colour in question.data["asked"]])


def guess_checklist(question: Question, rng: Random) -> str:
    """Random counts and their sum."""
    return _write([rng.randint(0, question.data["max_each"]) for _ in question.data["asked"]])


PAIRWISE_JUDGE = Task(
    options=PairwiseJudgeOptions,
    make_question=make_pairwise,
    solve=solve_pairwise,
    guess=guess_candidate,
)
PERCEPTION_CHECKLIST = Task(
    options=ChecklistOptions,
    make_question=make_checklist,
    solve=solve_checklist,
    guess=guess_checklist,
    check=answers.same_checklist,
)
