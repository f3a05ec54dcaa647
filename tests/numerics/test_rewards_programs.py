"""What programs draw and build: readings and scores against worked cases and closed forms."""

import io
import itertools
import math

import numpy as np
import pytest

from embodied_rl.rewards import chart, solid, warm
from embodied_rl.rewards.base import SetupError
from embodied_rl.rewards.chart import Figure, chart_text_struct, chart_visual, draw, ssim
from embodied_rl.rewards.execute import (
    Execution,
    Limits,
    check_library,
    check_protections,
    run_code,
    run_codes,
)
from embodied_rl.rewards.score import Term, score
from embodied_rl.rewards.solid import Mesh, exec_geometry, solid_iou
from embodied_rl.rewards.warm import Library
from embodied_rl.types import Question

PATIENT = Limits(wall_s=500.0, cpu_s=60, memory_bytes=4 << 30, output_bytes=8 << 20)


@pytest.fixture
def sandbox() -> None:
    try:
        check_protections()
    except SetupError as error:
        pytest.skip(str(error))


def asked(code: str = "reference", *images: np.ndarray) -> Question:
    return Question(task="t", prompt="p", answer=code, images=images, data={"code": code})


EVERY_KIND = """
import matplotlib.pyplot as plt
fig, axes = plt.subplots(2, 3)
axes[0, 0].bar(["cat", "dog"], [3, 4], label="pets")
axes[0, 0].legend()
axes[0, 1].barh([0, 1], [5, 6])
axes[0, 1].set(title="Title", xlabel="across", ylabel="up")
axes[0, 2].plot([1, 2, 3], [7, float("nan"), 9])
axes[1, 0].scatter([1, 2], [10, 11])
axes[1, 1].pie([1, 3])
axes[1, 2].errorbar([1, 2], [12, 13], yerr=1)
axes[1, 2].fill_between([1, 2], [0, 1])
axes[1, 2].annotate("note", (1, 1))
fig.suptitle("All")
plt.savefig("own.png")
plt.close("all")
"""


def test_every_kind_of_chart_is_read(sandbox) -> None:
    figure = draw(EVERY_KIND, limits=PATIENT)
    assert figure is not None
    assert figure.kinds == {"bar", "line", "scatter", "pie"}
    expected = [[3, 4], [5, 6], [7, 9], [10, 11], [0.25, 0.75], [12, 13]]
    assert len(figure.series) == len(expected)
    for values, true in zip(figure.series, expected, strict=True):
        assert values == pytest.approx(true)
    assert sorted(figure.texts) == sorted(
        ["cat", "dog", "pets", "Title", "across", "up", "note", "All"]
    )
    assert figure.layout == [2, 3]


def test_a_warm_process_draws_what_a_new_one_draws(sandbox) -> None:
    cold, warm = (
        run_code(EVERY_KIND, collect=("own.png",), limits=PATIENT, library=library)
        for library in ("", "matplotlib")
    )
    assert warm.ok and cold.ok and warm.files["own.png"] == cold.files["own.png"]


def test_a_batch_runs_each_program_once_and_together(sandbox, monkeypatch) -> None:
    batches = []

    def counted(codes, **options):
        batches.append([code.removeprefix(chart.KEEP_FIGURES) for code in codes])
        return run_codes(codes, **options)

    monkeypatch.setattr(chart, "run_codes", counted)
    monkeypatch.setattr(chart.draw_all, "kept", {})
    codes = [f"import matplotlib.pyplot as plt; plt.bar([0, 1], [1, {i}])" for i in range(4)]
    said = [*codes[1:], "1 / 0", codes[1], "", "```\na\n``` ```\nb\n```"]
    questions = [asked(codes[0])] * (len(said) - 1) + [Question(task="t", prompt="", answer="")]
    terms = [Term(name="text", reward=chart_text_struct, options={"limits": PATIENT})]
    scores = score(terms, said, questions, range(len(said)))
    assert batches == [[codes[0], *codes[1:], "1 / 0"]]
    alone = [chart_text_struct(code, asked(codes[0]), limits=PATIENT) for code in said]
    assert scores.values.tolist() == pytest.approx(alone) and alone[0] > alone[-1] == 0
    assert scores.failures == {"text": 1}


@pytest.mark.parametrize(
    "code",
    ["1 / 0", "import os; os._exit(0)"],
)
def test_a_program_that_breaks_off_draws_nothing(sandbox, code: str) -> None:
    assert draw(code, limits=PATIENT) is None


@pytest.mark.parametrize(
    "read",
    [
        None,
        [],
        {"kinds": 1, "series": [[1], "a"], "texts": [{}], "layout": [None]},
        {"kinds": ["bar"], "series": [[1, [2]]], "texts": [], "layout": [1, 1]},
        {"kinds": ["bar"], "series": [[True, "x"]], "texts": [], "layout": ["1"]},
    ],
)
def test_forged_readings_are_worth_nothing(monkeypatch: pytest.MonkeyPatch, read: object) -> None:
    true = Figure(frozenset({"bar"}), [[1.0]], [], [1, 1], b"")
    forged = chart._figure(read, b"no picture")
    monkeypatch.setattr(chart, "draw", lambda code, **_: true if code == "reference" else forged)
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    assert chart_text_struct("forged", asked()) == 0.0
    assert chart_visual("forged", asked("reference", picture)) == 0.0


def figure(
    series: list[list[float]],
    kinds: tuple[str, ...] = ("bar",),
    texts: tuple[str, ...] = (),
    layout: tuple[int, int] = (1, 1),
) -> Figure:
    return Figure(frozenset(kinds), series, list(texts), list(layout), b"")


def test_shares_of_a_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    true = figure([[10, 20], [1, 2, 3, 4]], ("bar", "line"), ("Rain", "mm"))
    drawn = {
        "reference": true,
        # Series in another order, off by 4 % and by 6 %; one value missing.
        "data": figure([[1, 2, 3], [10.4, 18.8]], ("bar", "line"), ("Rain", "mm")),
        "more data": figure([*true.series, [5], [6]], ("bar", "line"), ("Rain", "mm")),
        "kinds": figure(true.series, ("bar", "pie"), ("Rain", "mm")),
        "layout": figure(true.series, ("bar", "line"), ("Rain", "mm"), (2, 1)),
        "texts": figure(true.series, ("bar", "line"), ("MM.", "Pain", "x")),
        "nothing": figure([], ("bar", "line"), ("Rain", "mm")),
        "failure": None,
    }
    monkeypatch.setattr(chart, "draw", lambda code, **_: drawn[code])

    def value(code: str, *weights: float) -> float:
        return chart_text_struct(code, asked(), weights=weights)

    assert value("reference", 0.4, 0.2, 0.2, 0.2) == pytest.approx(1.0)
    assert value("data", 1, 0, 0, 0) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert value("more data", 1, 0, 0, 0) == pytest.approx(2 / 4)
    assert value("kinds", 0, 1, 0, 0) == pytest.approx(1 / 3)
    assert value("layout", 0, 0, 1, 0) == 0.0
    assert value("texts", 0, 0, 0, 1) == pytest.approx((1 + 3 / 4) / 3)
    assert value("layout", 0.4, 0.2, 0.2, 0.2) == pytest.approx(0.8)
    assert value("layout", 4, 2, 2, 2) == pytest.approx(0.8)
    assert value("nothing", 0.4, 0.2, 0.2, 0.2) == value("failure", 1, 1, 1, 1) == 0.0
    with pytest.raises(ValueError, match="must draw data"):
        chart_text_struct("data", asked("failure"))


def test_structural_similarity_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 255, size=(2, 10, 11))
    values = []
    for i, j in itertools.product(range(10 - 3), range(11 - 3)):
        x, y = a[i : i + 4, j : j + 4].ravel(), b[i : i + 4, j : j + 4].ravel()
        (var_x, cov), (_, var_y) = np.cov(x, y, bias=True)
        light = (2 * x.mean() * y.mean() + 6.5025) / (x.mean() ** 2 + y.mean() ** 2 + 6.5025)
        values.append(light * (2 * cov + 58.5225) / (var_x + var_y + 58.5225))
    assert ssim(a, b, window=4) == pytest.approx(np.mean(values))
    assert ssim(a, a) == pytest.approx(1.0)


BARS = """
import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(3, 2), dpi=64)
ax.bar(["a", "b", "c"], [{}, 4, 9])
"""


def picture_of_bars(first: float) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(3, 2), dpi=64)
    canvas = FigureCanvasAgg(drawing)
    drawing.subplots().bar(["a", "b", "c"], [first, 4, 9])
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def test_the_same_picture_is_worth_1_a_blank_one_nothing(sandbox) -> None:
    question = asked("", picture_of_bars(8))

    def value(code: str) -> float:
        return chart_visual(f"```python\n{code}```", question, limits=PATIENT)

    same, near = value(BARS.format(8)), value(BARS.format(2))
    blank = value("import matplotlib.pyplot as plt; plt.figure(figsize=(3, 2))\n")
    assert same == pytest.approx(1.0)
    assert 0.3 < near < 0.95 and blank == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="blank picture"):
        chart_visual("x", asked("", np.full((9, 9, 3), 255, np.uint8)))
    with pytest.raises(ValueError, match="must show the picture"):
        chart_visual("x", asked(""))


def test_broken_and_huge_pictures_are_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    huge = io.BytesIO()
    Image.new("L", (5000, 1)).save(huge, "PNG")
    for png in (b"", b"\x89PNG\r\n\x1a\n" + b"x" * 99, huge.getvalue()[:-20], huge.getvalue()):
        drawn = Figure(frozenset(), [], [], [1, 1], png)
        monkeypatch.setattr(chart, "draw", lambda code, drawn=drawn, **_: drawn)
        assert chart_visual("x", asked("", picture_of_bars(8))) == 0.0


CORNERS = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
BOX_FACES = [
    (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
    (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
]  # fmt: skip


def box(low, high) -> Mesh:
    """Corners counter-clockwise from outside."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    return Mesh((low + CORNERS * (high - low))[np.array(BOX_FACES)])


def tube(outer: float, inner: float, height: float, sides: int = 200) -> Mesh:
    """A ring of quadrilaterals with ``sides`` corners; a prism if ``inner`` is 0."""
    angles = np.linspace(0, 2 * np.pi, sides + 1)
    round_ = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rim = [  # outside going up, then inside going down
        np.concatenate([radius * round_, np.full((sides + 1, 1), z)], axis=-1)
        for radius, z in ((outer, 0.0), (outer, height), (inner, height), (inner, 0.0))
    ]
    faces = []
    for a, b in itertools.pairwise([*rim, rim[0]]):
        faces += [np.stack([a[:-1], a[1:], b[1:]], 1), np.stack([a[:-1], b[1:], b[:-1]], 1)]
    return Mesh(np.concatenate(faces))


def rotation(rng: np.random.Generator) -> np.ndarray:
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return matrix * np.linalg.det(matrix)


def test_volume_and_surface_equal_closed_forms_wherever_the_solid_lies() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b, c = rng.uniform(1, 5, size=3)
        moved = Mesh(box((0, 0, 0), (a, b, c)).corners @ rotation(rng) + rng.normal(size=3) * 9)
        assert moved.volume == pytest.approx(a * b * c)
        assert moved.surface == pytest.approx(2 * (a * b + b * c + c * a))
    ring = tube(5, 3, 4, sides=720)
    assert ring.volume == pytest.approx(math.pi * (25 - 9) * 4, rel=1e-4)
    assert ring.surface == pytest.approx(math.pi * (2 * 16 + 2 * 8 * 4), rel=1e-4)


def test_iou_of_boxes_equals_the_product_of_overlaps() -> None:
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(20):
        low, size = rng.uniform(0, 10, size=(2, 3)), rng.uniform(8, 20, size=(2, 3))
        high = low + size
        shared = np.prod(np.clip(high.min(0) - low.max(0), 0, None))
        expected = shared / (size.prod(1).sum() - shared)
        errors.append(solid_iou(box(low[0], high[0]), box(low[1], high[1])) - expected)
    assert np.abs(errors).max() < 0.03 and abs(np.mean(errors)) < 0.01


def test_iou_of_worked_solids() -> None:
    rng = np.random.default_rng(2)
    cube = box((0, 0, 0), (4, 4, 4))
    tilted = Mesh(cube.corners @ rotation(rng))
    for solid_ in (cube, tilted, tube(5, 3, 4)):
        assert solid_iou(solid_, solid_) == pytest.approx(1.0)
    assert solid_iou(cube, box((0, 0, 2), (4, 4, 6))) == pytest.approx(1 / 3)
    assert solid_iou(cube, box((5, 0, 0), (9, 4, 4))) == 0.0
    assert solid_iou(cube, box((0, 0, 4), (4, 4, 8))) == 0.0
    assert solid_iou(tube(5, 3, 4), tube(5, 0, 4)) == pytest.approx(1 - 9 / 25, abs=0.01)
    overlapping = Mesh(np.concatenate([box((0, 0, 0), (4, 4, 3)).corners, cube.corners]))
    assert solid_iou(overlapping, cube) == pytest.approx(1.0)
    inside_out = Mesh(cube.corners[:, ::-1])
    assert solid_iou(inside_out, cube) == pytest.approx(1.0)
    floor = Mesh(cube.corners[(cube.corners[..., 2] == 0).all(1)])
    assert len(floor.corners) == 2 and solid_iou(floor, cube) == solid_iou(floor, floor) == 0.0


def test_iou_does_not_depend_on_how_triangles_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    a = Mesh(tube(5, 3, 4).corners @ rotation(np.random.default_rng(3)))
    whole = solid_iou(a, tube(5, 2, 4))
    monkeypatch.setattr(solid, "CELLS", 500)
    assert solid_iou(a, tube(5, 2, 4)) == whole and 0.1 < whole < 0.9


def test_shares_of_a_solid(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {
        "reference": box((0, 0, 0), (2, 2, 2)),
        "half": box((0, 0, 0), (2, 2, 1)),
        "double": box((0, 0, 0), (2, 2, 4)),
        "elsewhere": box((9, 0, 0), (11, 2, 2)),
        "inside out": Mesh(box((0, 0, 0), (2, 2, 2)).corners[:, ::-1]),
        "failure": None,
    }
    monkeypatch.setattr(solid, "build", lambda code, **_: built[code])
    # IoU, volume and surface: of the half 1/2, 1/2 and 16/24; of the double 1/2, 1/2 and 24/40.
    values = {
        "reference": 1.0,
        "half": 0.8 / 2 + 0.1 / 2 + 0.1 * 2 / 3,
        "double": 0.8 / 2 + 0.1 / 2 + 0.1 * 3 / 5,
        "elsewhere": 0.2,
        "inside out": 0.0,
        "failure": 0.0,
    }
    for code, expected in values.items():
        assert exec_geometry(code, asked()) == pytest.approx(expected), code
    assert exec_geometry("half", asked(), weights=(5, 0, 0)) == pytest.approx(0.5)
    assert exec_geometry("", asked()) == exec_geometry("```\na\n``` ```\nb\n```", asked()) == 0.0
    with pytest.raises(ValueError, match="must leave a solid"):
        exec_geometry("half", asked("failure"))


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 71, b"\xff" * 72, b"\x00" * 72 * 20_001],
    ids=["none", "torn", "nan", "long"],
)
def test_forged_solids_are_refused(data: bytes) -> None:
    result = Execution(ok=True, reason="", stdout="", stderr="", files={"mesh.bin": data})
    assert solid._mesh(result) is None


@pytest.mark.parametrize(
    ("first_use", "memory_bytes", "message"),
    [
        ("import missing", 4 << 30, r"needs missing: pip install 'embodied-rl\[cad\]'"),
        ("1 / 0", 4 << 30, "missing cannot be used: ZeroDivisionError"),
        ("large = bytearray(1 << 28)", 1 << 28, "cannot be used within .*: MemoryError"),
    ],
)
def test_a_library_that_cannot_be_used_is_one_sentence(
    sandbox, monkeypatch, first_use: str, memory_bytes: int, message: str
) -> None:
    library = Library(extra="cad", first_use=first_use)
    monkeypatch.setitem(warm.LIBRARIES, "missing", library)
    with pytest.raises(SetupError, match=message):
        check_library("missing", limits=Limits(memory_bytes=memory_bytes))


CAD = "import cadquery as cq\n"
PLATE = CAD + 'result = cq.Workplane("XY").box(20, 10, 4).faces(">Z").workplane().hole(4)'


@pytest.mark.slow
def test_cadquery_programs_are_built_and_compared(sandbox) -> None:
    pytest.importorskip("cadquery", reason="needs cadquery: pip install 'embodied-rl[cad]'")
    plate = solid.build(PLATE, limits=PATIENT)
    assert plate is not None
    assert plate.volume == pytest.approx(20 * 10 * 4 - math.pi * 4 * 4, rel=1e-2)
    question = asked(PLATE)

    def value(code: str) -> float:
        return exec_geometry(f"```python\n{CAD}{code}\n```", question, limits=PATIENT)

    two_parts = 'w = cq.Workplane("XY")\nresult = cq.Assembly().add(w.box(20, 10, 4))'
    assert value(PLATE) == pytest.approx(1.0)
    assert 0.9 < value(two_parts) < 0.99
    assert value('result = cq.Workplane("XY").rect(20, 10)') == 0.0
    assert value("result = 3") == 0.0
