import math
import subprocess
import sys
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from embodied_rl.envs.vqa import load_task
from embodied_rl.envs.vqa.common import blank_image, without_image_answerable
from embodied_rl.envs.vqa.scene import COLOURS, SHAPES, Item, draw_scene, read_scene

pytest.importorskip("PIL")

ORACLES = [
    ("shapes_vqa", {}),
    ("shapes_vqa", {"size": 96, "num_objects": 12, "shortcut": 0.7}),
    ("shapes_ground", {}),
    ("shapes_ground", {"output": "points", "grid": 2, "num_objects": 3}),
    ("crowd_boxes", {}),
    ("crowd_boxes", {"output": "points"}),
    ("jigsaw_full", {}),
    ("jigsaw_full", {"rows": 1, "columns": 2}),
    ("jigsaw_full", {"rows": 3, "columns": 3, "size": 96}),
    ("jigsaw_pair", {}),
    ("jigsaw_pair", {"rows": 3, "columns": 4, "size": 96}),
    ("temporal_grounding", {"num_frames": 16}),
    ("strip_video", {}),
    ("strip_video", {"num_frames": 12, "initial_frames": 12}),
    ("trance_like", {"num_objects": 8, "max_changes": 4}),
    ("affordance_points", {}),
    ("few_shot_classification", {"ways": 4, "shots": 2}),
    ("timeseries_plot", {}),
    ("perception_checklist", {"num_facts": 3}),
    ("pairwise_judge", {}),
    ("retrieval_embed", {}),
    ("visual_search", {}),
    ("visual_search", {"size": 96, "num_plates": 4}),
    ("visual_search", {"size": 512}),
    ("cad_code", {}),
    ("cad_code", {"max_holes": 4, "size": 224}),
]


def make(name: str, *, seed: int, split: Any = "train", draw: bool = True, **knobs: Any):
    task = load_task(name)
    return task.make_question(task.options(**knobs), seed=seed, split=split, draw=draw)


def solver(name):
    solve = load_task(name).solve
    assert solve is not None
    return solve


@pytest.mark.parametrize(("name", "knobs"), ORACLES)
def test_the_answer_read_from_the_pixels_is_the_reference(name, knobs):
    solve = solver(name)
    for split in ("train", "heldout"):
        for seed in range(25):
            question = make(name, seed=seed, split=split, **knobs)
            assert solve(question) == question.answer, (split, seed)


def test_charts_and_pages_read_from_the_pixels():
    for seed in range(6):
        question = make("chart_qa", seed=seed)
        assert solver("chart_qa")(question) == question.answer
    for seed in range(10):
        question = make("page_rerank", seed=seed, max_positives=3)
        ranking = solver("page_rerank")(question).split(", ")
        positives = question.data["positives"]
        assert {int(page) for page in ranking[: len(positives)]} == set(positives)


@pytest.mark.parametrize("radius", range(4, 20))
def test_every_shape_is_recognised_at_every_radius(radius):
    size = 2 * radius + 5
    for shape in SHAPES:
        for colour in COLOURS:
            item = Item(colour, shape, radius + 2, radius + 1, radius)
            assert read_scene(draw_scene([item], size=size)) == [item]


def test_the_shortcut_lets_the_text_answer_just_the_stated_share():
    def feature(question):
        # What the prior depends on: the kind of question, the asked shape, and the choices.
        shape = next(word for word in question.data["asked"] if word in SHAPES)
        return f"{question.data['kind']} {shape} {question.data['candidates']}"

    for share in (0.7, 0.9):
        sets = [
            [make("shapes_vqa", seed=seed, draw=False, shortcut=share) for seed in range(*ends)]
            for ends in ((0, 4000), (4000, 7000))
        ]
        hits = without_image_answerable(*sets, feature=feature)
        assert abs(hits - share) < 4 * math.sqrt(share * (1 - share) / 3000)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_without_a_shortcut_the_text_answers_no_more_than_chance(split):
    seen = [make("shapes_vqa", seed=seed, split=split, draw=False) for seed in range(6000)]
    asked = [make("shapes_vqa", seed=s, split=split, draw=False) for s in range(6000, 9000)]
    groups = defaultdict(list)
    for question in asked:
        groups[question.data["kind"]].append(question)
    for kind, questions in groups.items():
        same = [question for question in seen if question.data["kind"] == kind]
        chance = 1 / len(questions[0].data["candidates"])
        error = math.sqrt(chance * (1 - chance) / len(questions))
        assert without_image_answerable(same, questions) < chance + 4 * error, kind


def test_a_blank_picture_leaves_the_reader_nothing_but_zero_counts():
    questions = [make("shapes_vqa", seed=seed, kinds=("count",)) for seed in range(300)]
    solve = solver("shapes_vqa")
    answers = [solve(blank_image(question)) for question in questions]
    assert set(answers) == {"0"}
    hits = np.mean([a == q.answer for a, q in zip(answers, questions, strict=True)])
    assert abs(hits - 1 / 4) < 0.1


def test_reference_programs_draw_the_same_chart_as_the_picture(tmp_path):
    questions = [
        make("chart_to_code", seed=seed, split="heldout", short=short)
        for seed in range(4)
        for short in (False, True)
    ]
    lines = ["import matplotlib", "matplotlib.use('Agg')", "import numpy as np"]
    for index, question in enumerate(questions):
        (tmp_path / f"{index}.py").write_text(question.answer)
        lines.append(f"exec(open({str(tmp_path / f'{index}.py')!r}).read())")
        lines.append("fig.canvas.draw()")
        picture = "np.asarray(fig.canvas.buffer_rgba())[..., :3]"
        lines.append(f"np.save({str(tmp_path / f'{index}.npy')!r}, {picture})")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=tmp_path)
    for index, question in enumerate(questions):
        assert np.array_equal(np.load(tmp_path / f"{index}.npy"), question.images[0])


def inside(kind, s, x, y, z):
    """Whether a point lies in the solid, from the words of the prompt."""
    if kind == "plate":
        solid = (abs(x) <= s[0] / 2) & (abs(y) <= s[1] / 2) & (z <= s[2])
        gap = s[0] / (s[3] + 1)
        for hole in range(s[3]):
            solid &= (x + s[0] / 2 - gap * (hole + 1)) ** 2 + y**2 > s[4] ** 2 / 4
        return solid
    if kind == "tube":
        return (4 * (x**2 + y**2) <= s[0] ** 2) & (4 * (x**2 + y**2) > s[1] ** 2) & (z <= s[2])
    if kind == "shaft":
        across = 4 * (x**2 + y**2)
        upper = (across <= s[2] ** 2) & (z > s[1]) & (z <= s[1] + s[3])
        return ((across <= s[0] ** 2) & (z <= s[1])) | upper
    wall = (x <= s[3] - s[0] / 2) & (z <= s[2])
    return (abs(x) <= s[0] / 2) & (abs(y) <= s[1] / 2) & ((z <= s[3]) | wall)


@pytest.mark.parametrize("kind", ["plate", "tube", "shaft", "bracket"])
def test_cad_measures_equal_a_count_of_voxels(kind):
    step = 0.5
    for seed in range(4):
        data = make("cad_code", seed=seed, kinds=(kind,), draw=False).data
        measures, sizes = data["measures"], data["sizes"]
        axes = [
            np.arange(low, low + length, step) + step / 2
            for low, length in zip(
                [-measures["box"][0] / 2, -measures["box"][1] / 2, 0], measures["box"], strict=True
            )
        ]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        solid = np.broadcast_to(inside(kind, sizes, x, y, z), [len(axis) for axis in axes])
        volume = solid.sum() * step**3
        assert volume == pytest.approx(measures["volume"], rel=0.03)
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            weights = solid.sum(others)
            centre = (weights * axes[axis]).sum() / weights.sum()
            assert centre == pytest.approx(measures["centre"][axis], abs=0.25)
            extent = axes[axis][weights > 0]
            assert extent[-1] - extent[0] + step == pytest.approx(measures["box"][axis], abs=1.0)


def test_cad_reference_programs_build_solids_of_the_stated_measures():
    pytest.importorskip("cadquery", reason="solids need embodied-rl[cad]")
    for seed in range(12):
        question = make("cad_code", seed=seed, draw=False)
        space: dict = {}
        exec(question.data["code"], space)
        solid, measures = space["result"].val(), question.data["measures"]
        assert solid.Volume() == pytest.approx(measures["volume"], rel=1e-6)
        box = solid.BoundingBox()
        assert (box.xlen, box.ylen, box.zlen) == pytest.approx(measures["box"], rel=1e-4)
        assert solid.Center().toTuple() == pytest.approx(measures["centre"], abs=1e-4)


def test_temporal_label_noise_moves_the_stated_share_of_train_references_only():
    noisy = [make("temporal_grounding", seed=s, draw=False, label_noise=0.3) for s in range(2000)]
    moved = np.mean([q.data["span"] != q.data["clean_span"] for q in noisy])
    # A random interval is the right one now and then.
    assert 0.23 < moved < 0.33
    test = [make("temporal_grounding", seed=s, split="heldout", label_noise=0.3) for s in range(50)]
    assert all(q.data["span"] == q.data["clean_span"] for q in test)
