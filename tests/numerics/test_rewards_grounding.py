"""Boxes, points, spans, orders and changes against brute force and worked cases."""

import itertools
import json
import statistics

import numpy as np
import pytest

from embodied_rl.rewards.assignment import best_pairs
from embodied_rl.rewards.boxes import (
    box_iou,
    hungarian_boxes,
    iou,
    roi_iou,
    union_box_iou,
    union_iou,
    weighted_precision_recall,
)
from embodied_rl.rewards.group import variance_look
from embodied_rl.rewards.order import jigsaw_fraction, list_format, rerank_rrk3
from embodied_rl.rewards.points import affordance_hungarian, point_match
from embodied_rl.rewards.spans import tiou, tiou_scaled
from embodied_rl.rewards.transformation import transformation_partial
from embodied_rl.types import Question


def asked(answer: str = "x", **data: object) -> Question:
    return Question(task="t", prompt="p", answer=answer, data=data)


def random_boxes(rng: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    lefts, widths = rng.integers(0, 28, size=(count, 2)), rng.integers(1, 12, size=(count, 2))
    return [
        (float(x), float(y), float(x + w), float(y + h))
        for (x, y), (w, h) in zip(lefts, widths, strict=True)
    ]


def painted(boxes) -> np.ndarray:
    grid = np.zeros((40, 40), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        grid[int(x1) : int(x2), int(y1) : int(y2)] = True
    return grid


def test_iou_equals_counting_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = random_boxes(rng, 2)
        both, either = painted([a]) & painted([b]), painted([a, b])
        assert iou(a, b) == pytest.approx(both.sum() / either.sum())


def test_union_iou_equals_counting_pixels() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        a, b = random_boxes(rng, 5), random_boxes(rng, 3)
        pixels_a, pixels_b = painted(a), painted(b)
        expected = (pixels_a & pixels_b).sum() / (pixels_a | pixels_b).sum()
        assert union_iou(a, b) == pytest.approx(expected)


def test_best_pairs_equal_all_permutations() -> None:
    rng = np.random.default_rng(2)
    for rows, columns in itertools.product(range(1, 6), range(1, 6)):
        gains = rng.random((rows, columns))
        pairs = best_pairs(gains.tolist())
        short, long = sorted((rows, columns))
        table = gains if rows <= columns else gains.T
        best = max(
            sum(table[i, j] for i, j in enumerate(order))
            for order in itertools.permutations(range(long), short)
        )
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == short
        assert sum(gains[i, j] for i, j in pairs) == pytest.approx(best)


def test_hungarian_boxes_equals_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        said, true = random_boxes(rng, 4), random_boxes(rng, 4)
        best = max(
            sum((painted([a]) & painted([b])).sum() / painted([a, b]).sum() for a, b in pairs)
            for pairs in (zip(said, order, strict=True) for order in itertools.permutations(true))
        )
        response = json.dumps([list(box) for box in said])
        assert hungarian_boxes(response, asked(boxes=true)) == pytest.approx(best / 4)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("[0, 0, 10, 10]", 1.0),
        ("(0, 0, 10, 5)", 0.5),
        ('{"bbox_2d": [0, 0, 5, 10]}', 0.5),
        ("<answer>[[0, 0, 10, 10]]</answer>", 1.0),
        ("[0, 0, 10, 10] or [0, 0, 1, 1]", 0.0),
        ("[10, 10, 0, 0]", 0.0),
        ("[0, 0, 10]", 0.0),
        ("[0, 0, 10, NaN]", 0.0),
        ("[0, 0, true, true]", 0.0),
    ],
)
def test_one_box_is_read_strictly(response: str, expected: float) -> None:
    assert box_iou(response, asked(box=(0, 0, 10, 10))) == pytest.approx(expected)


def test_region_of_interest_is_a_threshold() -> None:
    question = asked(box=(0, 0, 10, 10))
    assert roi_iou("[0, 0, 10, 5]", question) == 1.0
    assert roi_iou("[0, 0, 10, 4.9]", question) == 0.0


def test_precision_and_recall_weights() -> None:
    question = asked(boxes=[(0, 0, 10, 10), (20, 20, 30, 30)])
    said = "[[0,0,10,10],[50,50,60,60],[70,70,80,80],[90,90,99,99]]"
    assert weighted_precision_recall(said, question, precision_weight=1.0) == 0.25
    assert weighted_precision_recall(said, question, precision_weight=0.0) == 0.5
    twice = "[[0,0,10,10],[0,0,10,10]]"
    assert weighted_precision_recall(twice, question, precision_weight=1.0) == 0.5


def test_each_region_needs_a_point_of_its_own() -> None:
    question = asked(boxes=[(0, 0, 10, 10), (5, 0, 15, 10)])
    # A greedy pairing gives (7, 5) the first region and leaves (2, 5) without one.
    assert point_match("[[7, 5], [2, 5]]", question) == 1.0
    assert point_match("[[7, 5]]", question) == 0.5
    assert point_match("[[7, 5], [2, 5], [90, 90], [91, 91]]", question) == 0.5


@pytest.mark.parametrize("said", ["[7,,5]", "[7, 5]]", "[7, 5", "[,7, 5]", "(7, 5", "[7 ; ; 5]"])
def test_a_point_in_broken_brackets_is_none(said: str) -> None:
    question = asked(boxes=[(0, 0, 10, 10)])
    assert point_match("the point (7, 5)", question) == point_match("[7 5]", question) == 1.0
    assert point_match(said, question) == 0.0


def test_affordance_thirds() -> None:
    question = asked(affordances=[{"bbox_2d": [0, 0, 100, 100], "point_2d": [50, 50]}])

    def value(box: list[float], point: list[float]) -> float:
        return affordance_hungarian(json.dumps([{"bbox_2d": box, "point_2d": point}]), question)

    assert value([0, 0, 100, 100], [50, 60]) == 1.0
    assert value([0, 0, 100, 70], [50, 60]) == 1.0  # IoU .7, mean difference 7.5
    assert value([0, 0, 100, 60], [50, 60]) == pytest.approx(1 / 3)  # IoU .6, mean 10
    assert value([0, 0, 100, 100], [50, 81]) == pytest.approx(2 / 3)  # 31 pixels away
    two = json.dumps([{"bbox_2d": [0, 0, 100, 100], "point_2d": [50, 50]}] * 2)
    assert affordance_hungarian(two, question) == 0.5


def test_tiou_equals_a_fine_discretisation() -> None:
    rng = np.random.default_rng(4)
    times = np.linspace(0, 20, 200_001)
    for _ in range(50):
        (a, b), (c, d) = np.sort(rng.uniform(0, 20, size=(2, 2)), axis=1)
        said, true = (times >= a) & (times <= b), (times >= c) & (times <= d)
        expected = (said & true).sum() / (said | true).sum()
        response = f"from {a:.6f} to {b:.6f} seconds"
        value = tiou(response, asked(span=(c, d)))
        assert value == pytest.approx(expected, abs=1e-3)


def test_tiou_reads_one_span_and_scales() -> None:
    question = asked(span=(0, 10))
    assert tiou("0-5", question) == 0.5
    assert tiou_scaled("0-5", question) == pytest.approx(0.5)
    assert tiou_scaled("0-7", question) == pytest.approx(1.0)
    assert tiou_scaled("0-3", question) == pytest.approx(0.0)
    assert tiou("5 to 0", question) == tiou("0 5 10", question) == 0.0


def test_jigsaw_positions_and_neighbours() -> None:
    question = asked(permutation=[1, 2, 3, 4, 5, 6], grid=(2, 3))
    assert jigsaw_fraction("1 2 3 4 6 5", question) == pytest.approx(4 / 6)
    # Of 2*2*3-2-3 = 7 pairs, swapping 5 and 6 leaves 1-2, 2-3, 1-4.
    assert jigsaw_fraction("1 2 3 4 6 5", question, measure="adjacency") == pytest.approx(3 / 7)
    # Both rows shifted as blocks: rows keep 4 pairs, columns none.
    assert jigsaw_fraction("4 5 6 1 2 3", question, measure="adjacency") == pytest.approx(4 / 7)
    assert jigsaw_fraction("1 1 1 1 1 1", question) == 0.0
    assert jigsaw_fraction("1 2 3", question) == 0.0


def test_rank_reward_is_1_exactly_with_positives_on_top() -> None:
    question = asked(positives=[1, 2], candidates=[1, 2, 3, 4])
    for order in itertools.permutations([1, 2, 3, 4]):
        value = rerank_rrk3(str(list(order)), question)
        assert (value == pytest.approx(1.0)) == (set(order[:2]) == {1, 2})
    assert rerank_rrk3("[1, 3, 2, 4]", question) == pytest.approx((1 + 1 / 27) / (1 + 1 / 8))
    assert rerank_rrk3("[1, 1, 2]", question) == rerank_rrk3("[1, 2, 9]", question) == 0.0


def test_list_format_multiplies_length_and_validity() -> None:
    question = asked(positives=[1], candidates=[1, 2, 3, 4], top_k=2)
    assert list_format("[1, 2]", question) == 1.0
    assert list_format("[1, 2, 3, 4]", question) == 0.5
    assert list_format("[1, 9]", question) == 0.5


def test_transformation_points_of_the_paper() -> None:
    question = asked(changes=[["cube", "colour", "red"], ["ball", "size", "large"]])

    def points(*said: list[str]) -> float:
        return transformation_partial(json.dumps(said), question) * 10

    assert points(["cube", "colour", "red"], ["ball", "size", "large"]) == pytest.approx(10)
    assert points(["cube", "colour", "blue"], ["ball", "size", "large"]) == pytest.approx(6.5)
    assert points(["cube", "size", "red"], ["ball", "size", "large"]) == pytest.approx(5.5)
    assert points(["cone", "size", "red"], ["ball", "size", "large"]) == pytest.approx(4)
    assert points(["ball", "size", "large"]) == pytest.approx(4)
    assert points(["ball", "size", "large"], ["ball", "size", "large"]) == pytest.approx(4)
    assert transformation_partial("", question) == transformation_partial("[]", question) < 0


def looking(answer, look) -> str:
    return f"<look>{json.dumps(look)}</look><answer>{json.dumps(answer)}</answer>"


def test_looking_pays_where_the_group_disagrees() -> None:
    sure, unsure, missed = [0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]
    question = asked(boxes=[sure, unsure, missed])
    nearly = [20, 20, 30, 28]
    responses = [
        looking([sure, unsure], [unsure]),
        looking([sure, nearly], [nearly]),
        looking([sure], [sure]),
        looking([sure], [sure, unsure, missed, [60, 60, 70, 70]]),
        looking([sure, [20, 20, 30, 24]], []),
    ]
    values = variance_look(responses, question, scores=[0.0] * 5)
    assert values == [1.0, 1.0, 0.0, 0.25, 0.0]
    agreeing = [looking([sure], [unsure])] * 3
    assert variance_look(agreeing, question, scores=[0.0] * 3) == [0.0] * 3


def test_looking_equals_counting_over_random_groups() -> None:
    rng = np.random.default_rng(5)
    boxes = [[x, 0, x + 5, 5] for x in range(0, 60, 10)]
    for _ in range(20):
        answers, looks = rng.random((2, 8, 6)) < 0.4
        responses = [
            looking(*([b for b, taken in zip(boxes, row, strict=True) if taken] for row in rows))
            for rows in zip(answers, looks, strict=True)
        ]
        found = answers.astype(float).T
        unsure = np.array([statistics.pvariance(column) > 0.15 for column in found.tolist()])
        values = variance_look(responses, asked(boxes=boxes), scores=[0.0] * 8, min_variance=0.15)
        for value, look in zip(values, looks, strict=True):
            most = max(look.sum(), unsure.sum())
            expected = (look & unsure).sum() / most if unsure.any() else 0.0
            assert value == pytest.approx(expected)


def test_the_union_ignores_order_and_overlap() -> None:
    question = asked(boxes=[(0, 0, 10, 10)])
    assert union_box_iou("[[0, 0, 6, 10], [4, 0, 10, 10]]", question) == pytest.approx(1.0)
    assert union_box_iou("[[0, 0, 5, 10], [10, 0, 15, 10]]", question) == pytest.approx(1 / 3)
    assert union_box_iou("", question) == 0.0


def neighbours(pieces, rows: int, columns: int) -> set:
    at = {(i // columns, i % columns): piece for i, piece in enumerate(pieces)}
    return {
        (piece, at[row + down, column + right], down)
        for (row, column), piece in at.items()
        for down, right in ((0, 1), (1, 0))
        if (row + down, column + right) in at
    }


@pytest.mark.parametrize("grid", [(3, 2), (2, 3), (3, 3), (1, 4), (4, 1)])
def test_jigsaw_adjacency_equals_looking_at_every_pair(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    count = grid[0] * grid[1]
    for _ in range(10):
        right, said = (rng.permutation(count).tolist() for _ in range(2))
        question = asked(permutation=right, grid=grid)
        true = neighbours(right, *grid)
        expected = len(true & neighbours(said, *grid)) / len(true)
        value = jigsaw_fraction(str(said), question, measure="adjacency")
        assert value == pytest.approx(expected)


def test_rankings_that_cannot_be_read_are_worth_nothing() -> None:
    question = asked(positives=[1], candidates=[1, 2, 3, 4])
    for said in ("", "no numbers", "[1, 1, 2, 3]", "[1.5, 2, 3, 4]"):
        assert list_format(said, question) == rerank_rrk3(said, question) == 0.0
    assert list_format("[4, 3, 2, 1]", question) == 1.0


def test_boxes_count_as_found_from_half_an_overlap_on() -> None:
    question = asked(boxes=[(0, 0, 10, 10), (20, 20, 30, 30)])
    # Precision 1 and recall 1/2 weigh the same.
    assert weighted_precision_recall("[[0, 0, 10, 5]]", question) == 0.75
    assert weighted_precision_recall("[[0, 0, 10, 4.9]]", question) == 0.0
    assert weighted_precision_recall("", question) == 0.0
    assert roi_iou("[0, 0, 10, 5]", asked(box=(0, 0, 10, 10)), threshold=0.6) == 0.0


def test_boxes_that_touch_share_nothing() -> None:
    unit = (0.0, 0.0, 1.0, 1.0)
    for other in ((1.0, 0.0, 2.0, 1.0), (0.0, 1.0, 1.0, 2.0), (1.0, 1.0, 2.0, 2.0)):
        assert iou(unit, other) == 0.0
    assert iou(unit, (0.5, 0.5, 1.5, 1.5)) == pytest.approx(0.25 / 1.75)


def test_edges_of_a_region_belong_to_it() -> None:
    question = asked(boxes=[(0, 0, 10, 20)])
    for point in ([0, 0], [10, 20], [0, 20], [10, 0]):
        assert point_match(json.dumps(point), question) == 1.0
    for point in ([-1, 5], [11, 5], [5, -1], [5, 21]):
        assert point_match(json.dumps(point), question) == 0.0


def test_more_than_256_predictions_are_not_looked_at() -> None:
    right = [0, 0, 10, 10]
    question = asked(boxes=[right], affordances=[{"bbox_2d": right, "point_2d": [5, 5]}])
    for reward, item in (
        (hungarian_boxes, right),
        (point_match, [5, 5]),
        (affordance_hungarian, {"bbox_2d": right, "point_2d": [5, 5]}),
    ):
        assert reward(json.dumps([item] * 256), question) == pytest.approx(1 / 256)
        assert reward(json.dumps([item] * 257), question) == 0.0


@pytest.mark.parametrize(
    "item",
    [
        {"bbox_2d": [0, 0, 100], "point_2d": [50, 50]},
        {"bbox_2d": [0, 0, 100, 100], "point_2d": [50, 50, 50]},
        {"bbox_2d": [0, 0, 100, "100"], "point_2d": [50, 50]},
        {"bbox_2d": [0, 0, 100, 100], "point_2d": [50, None]},
        {"bbox_2d": [0, 100, 100, 0], "point_2d": [50, 50]},
        {"bbox_2d": [100, 0, 0, 100], "point_2d": [50, 50]},
        {"bbox_2d": [0, 0, 0, 100], "point_2d": [50, 50]},
        {"bbox_2d": [0, 0, 100, 100]},
        [0, 0, 100, 100],
    ],
)
def test_an_affordance_that_cannot_be_read_spoils_the_list(item: object) -> None:
    good = {"bbox_2d": [0, 0, 100, 100], "point_2d": [50, 50]}
    question = asked(affordances=[good])
    assert affordance_hungarian(json.dumps([good]), question) == 1.0
    assert affordance_hungarian(json.dumps([item]), question) == 0.0
    assert affordance_hungarian(json.dumps([good, item]), question) == 0.0


def test_limits_of_an_affordance_are_not_reached() -> None:
    question = asked(affordances=[{"bbox_2d": [0, 0, 100, 100], "point_2d": [50, 50]}])

    def value(box: list[float], point: list[float]) -> float:
        return affordance_hungarian(json.dumps([{"bbox_2d": box, "point_2d": point}]), question)

    assert value([0, 0, 100, 65], [50, 50]) == pytest.approx(2 / 3)  # IoU .65, not above
    assert value([0, 0, 100, 100], [50, 80]) == pytest.approx(2 / 3)  # 30 pixels, not nearer
    assert value([0, 0, 100, 100], [50, 79]) == 1.0
    assert value([0, 0, 100, 100], [50, 101]) == pytest.approx(2 / 3)


def test_spans_apart_share_nothing() -> None:
    question = asked(span=(0, 10))
    assert tiou("20-30", question) == tiou("10 to 20", question) == tiou("", question) == 0.0
    for low, high in ((0.5, 0.5), (0.7, 0.3)):
        with pytest.raises(ValueError, match="must be less than"):
            tiou_scaled("0-5", question, low=low, high=high)


def test_changes_that_cannot_be_read_cost_like_wrong_ones() -> None:
    true = [["cube", "colour", "red"], ["ball", "size", "large"]]
    question = asked(changes=true)
    assert transformation_partial(json.dumps([*true, "what?"]), question) == pytest.approx(0.9)
    assert transformation_partial(json.dumps([*true, ["cone", "a", "b"]]), question) == 0.9
    assert transformation_partial("[]", question) == pytest.approx(-0.2)
    assert transformation_partial(json.dumps([["x", "y", "z"]] * 256), question) == -1.0
    assert transformation_partial(json.dumps(true * 129), question) == -1.0
    as_dicts = [dict(zip(("object", "attribute", "value"), c, strict=True)) for c in true]
    assert transformation_partial(json.dumps(as_dicts), question) == 1.0
    for changes in ([], ["unreadable"]):
        with pytest.raises(ValueError, match="must be"):
            transformation_partial("[]", asked(changes=changes))
