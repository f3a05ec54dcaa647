import dataclasses
import json
import re
from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest

from embodied_rl.envs.vqa import TASKS, load_task
from embodied_rl.envs.vqa.common import blank_image, shuffle_images
from embodied_rl.types import Question

pytest.importorskip("PIL")

NAMES = sorted(TASKS)
# A knob of each task and a value that must change its questions.
KNOBS = {
    "affordance_points": {"clutter": 5},
    "cad_code": {"kinds": ("tube",)},
    "chart_qa": {"num_points": 6},
    "chart_to_code": {"num_points": 6},
    "crowd_boxes": {"num_objects": 20},
    "digits": {"turn": 30},
    "few_shot_classification": {"ways": 4},
    "jigsaw_full": {"rows": 3},
    "jigsaw_pair": {"rows": 3},
    "page_rerank": {"num_pages": 5},
    "perception_checklist": {"num_facts": 3},
    "retrieval_embed": {"num_candidates": 10},
    "shapes_ground": {"output": "points"},
    "shapes_vqa": {"kinds": ("count",), "max_count": 5},
    "strip_video": {"initial_frames": 8},
    "temporal_grounding": {"num_frames": 20},
    "timeseries_plot": {"noise": 0.2},
    "trance_like": {"num_objects": 8},
    "visual_search": {"num_plates": 4},
}


def make(name: str, *, seed: int, split: Any = "train", draw: bool = True, **knobs: Any):
    task = load_task(name)
    return task.make_question(task.options(**knobs), seed=seed, split=split, draw=draw)


def plain(data):
    return repr({key: value for key, value in sorted(data.items()) if key != "frames"})


def listed(question):
    """Whether the answer is one of some candidates."""
    return "candidates" in question.data and question.task != "page_rerank"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_makes_the_same_question_byte_for_byte(name):
    for split in ("train", "heldout"):
        first, second = (make(name, seed=7, split=split) for _ in range(2))
        assert (first.prompt, first.answer) == (second.prompt, second.answer)
        assert plain(first.data) == plain(second.data)
        pictures = zip(first.images, second.images, strict=True)
        assert all(np.array_equal(one, other) for one, other in pictures)
        undrawn = make(name, seed=7, split=split, draw=False)
        assert undrawn.images == ()
        assert (undrawn.prompt, undrawn.answer) == (first.prompt, first.answer)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_contiguous_uint8_and_the_prompt_names_the_form_of_the_answer(name):
    for seed in range(3):
        question = make(name, seed=seed)
        assert question.task == name and question.images
        for image in question.images:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert image.flags.c_contiguous and image.flags.writeable
            assert image.std() > 0
        assert "Answer with" in question.prompt and question.answer.strip()
        assert question.data["reward"] and question.data["key"]
        if listed(question):
            assert question.answer in question.data["candidates"]


@pytest.mark.parametrize("name", NAMES)
def test_no_test_question_appears_among_5000_train_questions(name):
    train = {make(name, seed=seed, draw=False).data["key"] for seed in range(5000)}
    test = {make(name, seed=seed, split="heldout", draw=False).data["key"] for seed in range(500)}
    assert not train & test
    assert len(test) > 50


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_the_two_splits_differ(name):
    number = 5 if name.startswith("chart") else 60
    train, test = (
        {
            b"".join(image.tobytes() for image in make(name, seed=seed, split=split).images)
            for seed in range(number)
        }
        for split in ("train", "heldout")
    )
    assert not train & test
    assert len(train) > number // 2


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_difficulty_knobs_change_the_questions(name):
    def faces(**knobs):
        questions = [make(name, seed=seed, **knobs) for seed in range(2)]
        return [(q.prompt, q.answer, [i.tobytes() for i in q.images]) for q in questions]

    assert faces() != faces(**KNOBS[name])
    assert faces() == faces()


def test_every_task_has_a_tested_knob_or_none_of_its_own():
    assert set(TASKS) - set(KNOBS) == {"pairwise_judge"}


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_split_and_impossible_options_are_refused_with_a_way_out(name):
    with pytest.raises(ValueError, match="choose 'train' or 'heldout'"):
        make(name, seed=0, split="valid")
    for option in dataclasses.fields(load_task(name).options):
        if option.type == "int" and option.name not in ("grid",):
            knobs: dict[str, Any] = {option.name: -1}
            with pytest.raises(ValueError):
                make(name, seed=0, **knobs)


@pytest.mark.parametrize("name", NAMES)
def test_guessing_scores_what_the_table_says(name):
    task, entry = load_task(name), TASKS[name]
    rng, scores = Random(0), []
    for seed in range(2000):
        question = make(name, seed=seed, split="heldout", draw=False)
        scores.append(score(question, task.guess(question, rng)))
    error = np.std(scores) / np.sqrt(len(scores))
    assert abs(np.mean(scores) - entry.chance) < 4 * error + 0.005, np.mean(scores)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_answer_scores_one_and_a_guess_differs_from_it(name):
    task, rng = load_task(name), Random(1)
    questions = [make(name, seed=seed, draw=False) for seed in range(20)]
    assert all(score(question, question.answer) == 1.0 for question in questions)
    assert any(task.guess(question, rng) != question.answer for question in questions)


CHOICE = [name for name in NAMES if listed(make(name, seed=0, draw=False))]


@pytest.mark.parametrize("name", sorted({*CHOICE} - {"retrieval_embed"}))
def test_no_word_of_the_prompt_tells_which_choice_is_right(name):
    seen, asked = (
        [make(name, seed=seed, split="heldout", draw=False) for seed in range(*ends)]
        for ends in ((0, 1200), (1200, 2400))
    )
    error = 4 * np.sqrt(TASKS[name].blind / len(asked))
    for label in (
        lambda question: question.answer,
        lambda question: str(question.data["candidates"].index(question.answer)),
    ):
        predict = naive_bayes([(question.prompt, label(question)) for question in seen])
        hits = np.mean([predict(question.prompt) == label(question) for question in asked])
        assert hits < TASKS[name].blind + error, hits


def test_the_place_of_a_label_among_the_examples_tells_nothing():
    questions = [make("few_shot_classification", seed=s, draw=False) for s in range(1200)]
    first = np.mean([q.answer == q.data["labels"][0] for q in questions])
    assert abs(first - 1 / 2) < 4 * np.sqrt(1 / 4 / 1200)


def naive_bayes(examples):
    """The likeliest label of a text from its words and their places in it."""

    def features(text):
        words = re.findall(r"[\w-]+", text)
        return {*words, *(f"{place} {word}" for place, word in enumerate(words))}

    labels = Counter(label for _, label in examples)
    counts = {label: Counter() for label in labels}
    for text, label in examples:
        counts[label].update(features(text))

    def predict(text):
        known = features(text)

        def likelihood(label):
            total = labels[label]
            return np.log(total) + sum(np.log((counts[label][w] + 1) / (total + 2)) for w in known)

        return max(labels, key=likelihood)

    return predict


@pytest.mark.parametrize("name", sorted({*NAMES} - {*CHOICE} | {"retrieval_embed"}))
def test_the_best_answer_known_from_the_text_alone_scores_what_the_table_says(name):
    task, rng = load_task(name), Random(2)
    seen, asked = (
        [make(name, seed=seed, split="heldout", draw=False) for seed in range(*ends)]
        for ends in ((0, 300), (300, 1100))
    )
    # So few texts that a table knows all there is to know from them.
    assert len({question.prompt for question in asked}) <= 100
    # The one thing in a text that may matter to where or what the answer is: which tool.
    topics = {question.data.get("tool") for question in seen}
    best = {}
    for topic in topics:
        same = [question for question in seen if question.data.get("tool") == topic]
        pool = [q.answer for q in same[:50]] + [task.guess(q, rng) for q in same[:50]]
        best[topic] = max(pool, key=lambda text: np.mean([score(q, text) for q in same[:150]]))
    scores = [score(question, best[question.data.get("tool")]) for question in asked]
    error = np.std(scores) / np.sqrt(len(scores))
    assert abs(np.mean(scores) - TASKS[name].blind) < 4 * error + 0.01, np.mean(scores)


@pytest.mark.parametrize("name", [name for name in NAMES if load_task(name).solve])
def test_who_reads_pixels_falls_to_the_text_prior_without_them(name):
    solve, scores = load_task(name).solve, []
    assert solve is not None
    for seed in range(12 if name == "chart_qa" else 100):
        question = blank_image(make(name, seed=seed, split="heldout"))
        try:
            with np.errstate(all="ignore"):
                scores.append(score(question, solve(question)))
        except (IndexError, ValueError, StopIteration, np.linalg.LinAlgError):
            scores.append(0.0)  # the reader finds nothing to read
    error = max(np.std(scores), 0.1) / np.sqrt(len(scores))
    assert np.mean(scores) < TASKS[name].blind + 4 * error, np.mean(scores)


@pytest.mark.parametrize("name", NAMES)
def test_the_check_of_success_takes_the_reference_and_no_other_answer(name):
    task = load_task(name)
    for seed in range(10):
        question, other = (make(name, seed=s, draw=False) for s in (seed, seed + 100))
        assert task.check(question, question.answer)
        assert task.check(question, f" {question.answer} ")
        if other.answer != question.answer and name not in ("page_rerank", "temporal_grounding"):
            assert not task.check(question, other.answer)
        for wrong in ("", "[", "nan", "[[NaN, 1, 2, 3]]", "x" * 9, "[" * 5000, question.prompt):
            assert not task.check(question, wrong), wrong


def test_the_blank_picture_and_the_picture_of_another_question_keep_the_text():
    questions = [make("shapes_vqa", seed=seed) for seed in range(4)]
    blank, shuffled = blank_image(questions[0]), shuffle_images(questions)
    assert blank.prompt == questions[0].prompt and blank.images[0].std() == 0
    assert blank.images[0].shape == questions[0].images[0].shape
    assert [q.prompt for q in shuffled] == [q.prompt for q in questions]
    for question, other in zip(shuffled, questions, strict=True):
        assert not np.array_equal(question.images[0], other.images[0])
    with pytest.raises(ValueError, match="at least two"):
        shuffle_images(questions[:1])


def test_an_unknown_task_is_named_with_near_ones():
    with pytest.raises(ValueError, match="shapes_vqa"):
        load_task("shape_vqa")


# Plain scores for the guess level alone; the rewards have their own tests.


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def iou(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = area([*low, *high])
    return shared / (area(one) + area(other) - shared)


def score(question: Question, text: str) -> float:
    data, task = question.data, question.task
    if task == "shapes_ground":
        return float(iou(np.array(json.loads(text)), np.array(data["boxes"][0])))
    if task == "crowd_boxes":
        from scipy.optimize import linear_sum_assignment

        found, wanted = json.loads(text), data["boxes"]
        table = np.array([[iou(np.array(a), np.array(b)) for b in wanted] for a in found])
        rows, columns = linear_sum_assignment(-table)
        return float(table[rows, columns].sum()) / max(len(found), len(wanted))
    if task == "jigsaw_full":
        pairs = zip(text.split(), data["permutation"], strict=True)
        return float(np.mean([a == str(b) for a, b in pairs]))
    if task == "temporal_grounding":
        (a, b), (c, d) = json.loads(text), data["span"]
        shared = max(min(b, d) - max(a, c), 0)
        return shared / ((b - a) + (d - c) - shared)
    if task == "affordance_points":
        x, y = json.loads(text)
        x1, y1, x2, y2 = data["boxes"][0]
        return float(x1 <= x < x2 and y1 <= y < y2)
    if task == "page_rerank":
        order = [int(number) for number in text.split(",")]
        best = sum(1 / rank**3 for rank in range(1, len(data["positives"]) + 1))
        return sum(1 / (order.index(page) + 1) ** 3 for page in data["positives"]) / best
    return float(text == question.answer)
