"""Every registered reward: three adversaries against the honest answer, hostile text, no surprise.

A reward without an entry in ``CASES`` fails. ``ties`` names the adversaries that may equal the
honest answer (terms that only punish cannot tell silence from honesty); none may beat it.
"""

import functools
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from embodied_rl.registry import BUILTIN, options_of, registry
from embodied_rl.rewards.base import SetupError
from embodied_rl.rewards.execute import Limits, check_protections
from embodied_rl.rewards.judge import RuleJudge
from embodied_rl.types import Question

PROMPT = "Which? Options: A. red B. blue. Numbers 1 2 3 4 5. Box [0,0,1,1]. Use <answer></answer>."


@dataclass(frozen=True)
class Case:
    honest: str
    repetition: str
    answer: str = "blue"
    data: dict[str, Any] = field(default_factory=dict)
    prompt: str = PROMPT
    ties: frozenset[str] = frozenset()
    best: float | None = 1.0
    needs: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    images: tuple[np.ndarray, ...] = ()

    @property
    def question(self) -> Question:
        return Question(
            task="t", prompt=self.prompt, answer=self.answer, data=self.data, images=self.images
        )

    @property
    def adversaries(self) -> dict[str, str]:
        return {"empty": "", "repetition": self.repetition, "copy": self.prompt}


def answered(text: str) -> str:
    return f"<think>I look.</think><answer>{text}</answer>"


CHOICES = {"choices": ["red", "blue"]}
ALL_CHOICES = answered("A B red blue A. red B. blue")
ALL_NUMBERS = answered(" ".join(map(str, range(10))))
BOX = {"box": (10, 10, 20, 30)}
BOXES = {"boxes": [(0, 0, 10, 10), (50, 50, 60, 60)]}
GRID = [[x, y, x + 10, y + 10] for x in range(0, 100, 10) for y in range(0, 100, 10)]
ALL_BOXES = answered(str(GRID))
BOTH = answered("[[0,0,10,10],[50,50,60,60]]")
SECOND_BOX = answered("[10, 10, 20, 30]")
CHANGES = {"changes": [["cube", "colour", "red"], ["ball", "size", "large"]]}
ALL_CHANGES = str(
    [
        [thing, attribute, value]
        for thing in ("cube", "ball")
        for attribute, value in (("colour", "red"), ("colour", "blue"), ("size", "large"))
    ]
).replace("'", '"')
HANDLE = {"bbox_2d": [10, 10, 50, 50], "point_2d": [30, 30]}
ALL_HANDLES = answered(str([dict(HANDLE, bbox_2d=box) for box in GRID[:20]]).replace("'", '"'))
FACTS = {
    "facts": [("red circle", "3", ["1", "2", "3"]), ("blue square", "left", ["left", "right"])],
    "generic_phrases": ["as we can see"],
}
EVERY_FACT = (
    "red circle 1. red circle 2. red circle 3. blue square left. blue square right. "
    "red circle 1 2 3, blue square left right"
)
TRUE_FACTS = "There are 3: red circle 3. The blue square is left."
CAPTION = {"caption": "a red cube lies left of a blue ball"}
RETRIEVAL = {"positive": "red cube on a table", "negatives": ["blue ball", "green cone outside"]}
PAGES = {"positives": [4, 2], "candidates": [1, 2, 3, 4, 5]}
REPHRASED = "is the small circle drawn in red or in blue"
TOOL_CALL = (
    "<think>I look.</think>"
    '<tool_call>{{"name": "frames", "arguments": {{"start": {}, "end": {}}}}}</tool_call>'
)
SPAM = "word " * 3000

DRAWING = """
import matplotlib.pyplot as plt
plt.bar([0, 1, 2], [1, 3, 2])
plt.title("Rain")
"""
PROGRAM = f"```python{DRAWING}```"
SOLID = """
import cadquery as cq
result = cq.Workplane("XY").box(3, 2, 1)
"""
PATIENT = {"limits": Limits(wall_s=500.0, cpu_s=60, memory_bytes=4 << 30, output_bytes=8 << 20)}


def picture() -> np.ndarray:
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.bar([0, 1, 2], [1, 3, 2])
    axes.set_title("Rain")
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


MANY_PROGRAMS = PROGRAM * 5


def says_blue(response: str, question: Question) -> float:
    return 10.0 * (response == answered("B"))


CASES = {
    "chart_text_struct": Case(PROGRAM, MANY_PROGRAMS, data={"code": DRAWING}, options=PATIENT),
    "chart_visual": Case(PROGRAM, MANY_PROGRAMS, options=PATIENT, images=(picture(),)),
    "consistency_gate": Case(
        answered("B"),
        ALL_CHOICES,
        data=CHOICES,
        best=2.0,
        options={"judge": RuleJudge(lambda response, question: 1.0)},
    ),
    "exec_geometry": Case(
        f"```python{SOLID}```",
        f"```python{SOLID}```" * 5,
        data={"code": SOLID},
        needs="cadquery",
        options=PATIENT,
    ),
    "exec_ok": Case(PROGRAM, MANY_PROGRAMS, options=PATIENT),
    "gated_tool_use": Case(
        f"{TOOL_CALL.format(0, 4)}<think>I see.</think><answer>B</answer>",
        "".join(TOOL_CALL.format(i, i + 1) for i in range(50))
        + "<think>I see.</think><answer>B</answer>",
        data=CHOICES,
        best=1.5,
    ),
    "judge_score": Case(
        answered("B"), ALL_CHOICES, data=CHOICES, options={"judge": RuleJudge(says_blue)}
    ),
    "accuracy_and_format": Case(answered("B"), ALL_CHOICES, data=CHOICES),
    "affordance_hungarian": Case(
        answered(str([HANDLE]).replace("'", '"')), ALL_HANDLES, data={"affordances": [HANDLE]}
    ),
    "bmas": Case(answered("a red cube"), answered("red " * 500), answer="a red cube"),
    "box_iou": Case(SECOND_BOX, ALL_BOXES, data=BOX),
    "calibration_log": Case(
        answered("B") + "<confidence>0.9</confidence>",
        answered("A B") + "<confidence>0.99 0.5 0.1</confidence>",
        data=CHOICES,
        best=None,
    ),
    "caption_overlap": Case(
        f"<caption>{CAPTION['caption']}</caption>",
        "<caption>" + "a red blue cube ball " * 50 + "</caption>",
        data=CAPTION,
    ),
    "chart_relaxed": Case(answered("5.1"), ALL_NUMBERS, answer="5"),
    "embedding_rank_gap": Case(
        answered("red cube on a table"),
        answered("red cube blue ball green cone outside on a table " * 20),
        data=RETRIEVAL,
        best=None,
    ),
    "exact_label": Case(answered("Blue"), answered("red blue green")),
    "format_tags": Case(answered("x"), answered("x") * 5),
    "hard_format_result": Case(answered("B"), ALL_CHOICES, data=CHOICES),
    "hungarian_boxes": Case(BOTH, ALL_BOXES, data=BOXES),
    "jigsaw_fraction": Case(
        answered("3 1 2 4"), answered("1 2 3 4 " * 24), data={"permutation": [3, 1, 2, 4]}
    ),
    "list_format": Case(answered("[4, 2, 1, 3, 5]"), answered("4 2 " * 50), data=PAGES),
    "match": Case(answered("B"), ALL_CHOICES, data=CHOICES),
    "math_equivalence": Case(
        answered(r"\frac{1}{2}"),
        answered("0, 1, 1/2, 1/3, 2"),
        answer="0.5",
        needs="math_verify",
    ),
    "ngram_repetition": Case(
        "one two three four", SPAM, best=0.0, ties=frozenset({"empty", "copy"})
    ),
    "no_think_equal": Case("blue", "red blue blue"),
    "nonrepeat": Case("It is a cup. Its handle is left.", SPAM),
    "numeric": Case(answered("5"), ALL_NUMBERS, answer="5"),
    "overlong": Case("short", SPAM, best=0.0, ties=frozenset({"empty", "copy"})),
    "perception_checklist": Case(
        '<checklist>["yes", "3"]</checklist>',
        '<checklist>["yes", "no", "1", "2", "3"]</checklist>',
        data={"checklist": ["yes", "3"]},
    ),
    "point_match": Case(
        answered("[[5,5],[55,55]]"),
        answered(str([[x, y] for x in range(5, 100, 10) for y in range(5, 100, 10)])),
        data=BOXES,
    ),
    "reflection_length": Case(
        "<answer>A</answer> now I check it <answer>B</answer>", "<answer>A</answer>" * 9, best=None
    ),
    "reflection_transition": Case(
        "<answer>B</answer> check <answer>B</answer>",
        "<answer>A</answer><answer>B</answer>" * 3,
        data=CHOICES,
    ),
    "rephrase_similarity": Case(
        f"<rephrase>{REPHRASED}</rephrase><answer>B</answer>",
        f"<rephrase>{(REPHRASED + PROMPT) * 20}</rephrase><answer>B</answer>",
        data=CHOICES | {"rephrase": REPHRASED},
    ),
    "rerank_rrk3": Case(answered("[2, 4, 1, 3, 5]"), answered("2 4 " * 9), data=PAGES),
    "roi_iou": Case(SECOND_BOX, ALL_BOXES, data=BOX),
    "tiou": Case(answered("3.0 to 7.0"), answered("0 10 3 7"), data={"span": (3, 7)}),
    "tiou_scaled": Case(answered("3 to 7"), answered("0 10 3 7"), data={"span": (3, 7)}),
    "transformation_partial": Case(
        answered('[["cube","colour","red"],["ball","size","large"]]'),
        answered(ALL_CHANGES),
        data=CHANGES,
    ),
    "ts_composite": Case(
        f"<think>{TRUE_FACTS}</think><answer>B</answer>",
        f"<think>{EVERY_FACT}</think><answer>B</answer>",
        data=FACTS | CHOICES,
        best=1.5,
    ),
    "union_box_iou": Case(BOTH, ALL_BOXES, data=BOXES),
    "visual_fact_coverage": Case(TRUE_FACTS, EVERY_FACT, data=FACTS),
    "weighted_precision_recall": Case(BOTH, ALL_BOXES, data=BOXES),
}

HOSTILE = {
    "brackets": "[" * 100_000,
    "braces": "<answer>" + "{" * 50_000 + "</answer>",
    "open tags": "<answer>" * 10_000,
    "crossed tags": "</answer><answer>" * 5_000,
    "digits": "<answer>" + "9" * 100_000 + "</answer>",
    "commas": "<answer>1" + ",1" * 50_000 + "</answer>",
    "signs": "<answer>" + "-+" * 50_000 + "</answer>",
    "boxed": "\\boxed{" * 10_000,
    "nan": "<answer>[NaN, Infinity, -Infinity, 1e999]</answer>",
    "nested json": '<answer>[{"bbox_2d": [[1]], "point_2d": {}}, null, true, [1e400]]</answer>',
    "fences": "```" * 30_000,
    "nul": "<answer>\x00\ud800</answer>",
    "spaces": " \t\n" * 30_000,
    "huge integer": "<answer>[1" + "0" * 400 + ", 2, 3, 4]</answer>",
}


def reward_of(name: str) -> Any:
    case = CASES[name]
    if case.needs is not None:
        pytest.importorskip(case.needs, reason=f"needs {case.needs}, see docs/rewards.md")
    if case.options is PATIENT:
        try:
            check_protections()
        except SetupError as error:
            pytest.skip(str(error))
    return functools.partial(registry("rewards").get(name), **case.options)


@functools.cache
def honest_value(name: str) -> float:
    return reward_of(name)(CASES[name].honest, CASES[name].question)


def test_every_registered_reward_has_a_case() -> None:
    assert set(CASES) == set(BUILTIN["rewards"])


@pytest.mark.parametrize("name", CASES)
def test_honest_answer_earns_its_best(name: str) -> None:
    case, reward = CASES[name], reward_of(name)
    value = honest_value(name)
    if case.options is not PATIENT:  # seconds each
        assert value == reward(case.honest, case.question)
    if case.best is not None:
        assert value == pytest.approx(case.best)


@pytest.mark.parametrize("adversary", ["empty", "repetition", "copy"])
@pytest.mark.parametrize("name", CASES)
def test_no_adversary_beats_the_honest_answer(name: str, adversary: str) -> None:
    case, reward = CASES[name], reward_of(name)
    honest = honest_value(name)
    value = reward(case.adversaries[adversary], case.question)
    assert value <= honest if adversary in case.ties else value < honest


@pytest.mark.parametrize("name", sorted(set(CASES) - {"math_equivalence"}))
def test_hostile_text_neither_raises_nor_hangs_nor_wins(name: str) -> None:
    case, reward = CASES[name], reward_of(name)
    honest = honest_value(name)
    for label, text in HOSTILE.items():
        start = time.process_time()
        assert reward(text, case.question) <= honest, label
        assert time.process_time() - start < 2.0, label


GROUP = ["a short honest answer here", "", "word " * 800, PROMPT]
LOOKS = [
    "<look>[[50, 50, 60, 60]]</look>" + BOTH,  # some find the second box
    "",
    f"<look>{GRID}</look>" + answered("[0, 0, 10, 10]"),
    PROMPT,
    BOTH,
]


@pytest.mark.parametrize("name", BUILTIN["group_rewards"])
def test_every_group_reward_pays_adversaries_no_more_than_the_honest_answer(name: str) -> None:
    reward = registry("group_rewards").get(name)
    looks = name == "variance_look"
    responses, data = (LOOKS, BOXES) if looks else (GROUP, CHOICES)
    question = Question(task="t", prompt=PROMPT, answer="blue", data=data)
    scores = [1.0] + [0.0] * (len(responses) - 1)
    values = reward(responses, question, scores=scores)
    assert len(values) == len(responses)
    assert values[0] == max(values)
    assert values == reward(responses, question, scores=scores)
    assert not looks or values[0] > max(values[1:])


def test_the_docs_name_every_reward_its_options_and_its_system() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip()[1:-1].split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    assert all(len(row) == 5 for row in rows), [row for row in rows if len(row) != 5]
    documented = {row[0].strip("`"): row for row in rows}
    known = {name: kind for kind in ("rewards", "group_rewards") for name in BUILTIN[kind]}
    assert len(rows) == len(documented) and set(documented) == set(known)
    for name, kind in known.items():
        _, _, _, source, options = documented[name]
        taken = set(options_of(registry(kind).get(name))) - {"scores"}
        assert set(re.findall(r"`(\w+)`", options)) == taken, name
        assert re.search(r"\[\d+(, \d+)*\]", source) or source.startswith("no system"), name
