import json
from itertools import permutations
from random import Random

import pytest

from embodied_rl.envs.vqa import answers
from embodied_rl.types import Question

BOXES = [[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]]


def question(answer="", **data):
    return Question(task="t", prompt="p", answer=answer, data=data)


@pytest.mark.parametrize(
    ("check", "asked", "right", "wrong"),
    [
        (
            answers.same_words,
            question("top left"),
            ["Top  Left.", "top left"],
            ["left", "top-left"],
        ),
        (answers.same_number, question("7"), ["7", "7.0", " 7 "], ["70", "seven", "nan", "7 or 8"]),
        (answers.same_number, question("Mon"), ["mon"], ["7", "Tue"]),
        (answers.same_order, question("2 1 3"), ["2 1 3", "2, 1, 3."], ["1 2 3", "2 1", "213"]),
        (
            answers.positives_first,
            question(positives=[3, 1], candidates=(1, 2, 3, 4)),
            ["1, 3, 2, 4", "3 1 4 2"],
            ["1, 2, 3, 4", "1, 3", "1, 3, 2, 2", "1, 3, 2, 4, 5", "3, 1, 1, 2, 4"],
        ),
        (
            answers.places,
            question(boxes=BOXES[:1], output="boxes"),
            ["[0, 0, 10, 10]", "[[0, 0, 10, 10]]", "[0, 0, 10, 5]", "[0.0, 0, 20, 10]"],
            [
                "[0, 0, 10, 4.9]",
                "[0, 0, 21, 10]",
                "[10, 10, 0, 0]",
                "[0, 0, 10]",
                "[true, 0, 10, 9]",
            ],
        ),
        (
            answers.places,
            question(boxes=BOXES[:2], output="points"),
            ["[[25, 5], [5, 5]]", "[[0, 0], [20, 9]]"],
            ["[[5, 5], [6, 6]]", "[[5, 5]]", "[[5, 5], [30, 5]]", "[[5, 5], [25, 5], [25, 5]]"],
        ),
        (
            answers.overlapping_span,
            question(clean_span=[2.0, 4.0]),
            ["[2, 4]", "[2, 3]", "[1, 5]"],
            ["[2, 2.9]", "[0, 5]", "[4, 2]", "[2]", "2, 4", "[-Infinity, Infinity]"],
        ),
        (
            answers.same_changes,
            question(changes=[[1, "colour", "red"], [3, "shape", "ring"]]),
            ['[[3, "shape", "ring"], [1, "Colour", "red"]]'],
            ['[[1, "colour", "red"]]', '[[1, "colour", "red"], [3, "shape", "cross"]]', "[1, 2]"],
        ),
        (
            answers.same_checklist,
            question(checklist=("2", "0"), final="2"),
            ["<checklist>[2, 0]</checklist><answer>2</answer>"],
            [
                "<checklist>[0, 2]</checklist><answer>2</answer>",
                "<checklist>[2, 0]</checklist><answer>3</answer>",
                "<checklist>[2, 0]</checklist>",
                "<checklist>[2, 0]</checklist><answer>2</answer><answer>3</answer>",
            ],
        ),
        (
            answers.same_program,
            question("a = [1, 2]\nf('x')"),
            [
                'a=[1,2]; f("x")',
                "```python\na = [1, 2]  # two\nf('x')\n```",
                "a = [1,\n 2]\n\nf('x')",
            ],
            ["a = [1, 3]\nf('x')", "a = [1, 2]", "a = [1, 2", "```\na = [1, 2]\n```", "\0"],
        ),
    ],
)
def test_right_answers_are_taken_and_wrong_ones_are_not(check, asked, right, wrong):
    assert [text for text in right if not check(asked, text)] == []
    assert [text for text in wrong if check(asked, text)] == []


def test_places_are_paired_as_well_as_they_can_be():
    rng = Random(0)
    for _ in range(200):
        boxes = [[x := rng.randrange(12), y := rng.randrange(4), x + 8, y + 8] for _ in range(4)]
        points = [[rng.randrange(20), rng.randrange(12)] for _ in range(4)]
        inside = [[b[0] <= p[0] < b[2] and b[1] <= p[1] < b[3] for b in boxes] for p in points]
        best = any(all(inside[i][j] for i, j in enumerate(p)) for p in permutations(range(4)))
        asked = question(boxes=boxes, output="points")
        assert answers.places(asked, json.dumps(points)) == best
