"""The systems that `benchmarks.systems` tests: recipes, variants, metrics and rules as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from embodied_rl.configs import builtin_recipes
from embodied_rl.configs.vqa_systems import ROWS
from embodied_rl.envs.vqa import load_task
from embodied_rl.envs.vqa.forms import Form, attempts, shaped
from embodied_rl.registry import registry
from embodied_rl.rewards import chart, parse, solid
from embodied_rl.rewards.overlap import trigram_embedding, words_of
from embodied_rl.types import Question

Stage = tuple[str, ...]
SFT: Stage = ("--total-env-steps", "0")
"""Imitation alone."""
RL: Stage = ()
"""Reinforcement as the recipe has it."""
BLANK: Mapping[str, Any] = {"blank": True}
"""Options of a view: every picture is plain grey."""
SAMPLED: Mapping[str, Any] = {"sampled": True}
"""Options of a view: answers are drawn at temperature 1, not greedy."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train.

    Attributes:
        name: within its system.
        stages: overlays of the recipe; the first one imitates, the others start from the last.
        views: options of the environment by name, for further questions at the end.
        recipe: instead of that of the system.
    """

    name: str
    stages: tuple[Stage, ...]
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Whether ``of`` - ``times`` * ``minus`` lies above a bound; see `benchmarks.systems`.

    Attributes:
        says: what is measured, in words.
        of, minus: ``variant:metric`` or ``variant:metric@view``; an empty ``minus`` is 0.
        above: the bound.
        times: factor of ``minus``.
        report: only say the figure.
    """

    says: str
    of: str
    minus: str = ""
    above: float = 0.0
    times: float = 1.0
    report: bool = False


@dataclass(frozen=True, kw_only=True)
class System:
    """A published system and its honest test.

    Attributes:
        number: of the source listing.
        title: its name.
        recipe: registered name.
        components: registered names that carry its mechanism.
        test: what is asked of it, in words.
        metrics: names in ``METRICS``.
        variants: in the order in which they run.
        rules: what decides.
        note: said at the end of its row.
        questions: held-out ones that every case answers; those of several tasks share them.
    """

    number: int
    title: str
    recipe: str
    components: tuple[str, ...]
    test: str
    metrics: tuple[str, ...]
    variants: tuple[Variant, ...]
    rules: tuple[Rule, ...]
    note: str = ""
    questions: int = 200


# --- metrics: (question, answer, form of the answer) -> [0, 1] ---------------------------------


def right(question: Question, answer: str, form: Form) -> float:
    """The task's own check."""
    return float(shaped(load_task(question.task), form=form).check(question, answer))


def reward_of(name: str, question: Question, answer: str, form: Form) -> float:
    """A registered reward that ends at 1."""
    return max(registry("rewards").get(name)(answer, question), 0.0)


def in_place(question: Question, answer: str, form: Form) -> float:
    """Share of the pieces in place; NaN for questions without pieces to order."""
    if "permutation" not in question.data:
        return float("nan")
    return reward_of("jigsaw_fraction", question, answer, form)


def recall_at_1(question: Question, answer: str, form: Form) -> float:
    """The first page said is one of those asked for."""
    first = answer.split(",")[0].strip()
    return float(first.isdigit() and int(first) in question.data["positives"])


def first_right(question: Question, answer: str, form: Form) -> float:
    """The first of two attempts is right."""
    said = attempts(answer)
    return float(bool(said) and load_task(question.task).check(question, said[0]))


def to_right(question: Question, answer: str, form: Form) -> float:
    """Wrong, then right."""
    last = right(question, answer, form)
    return last * (1 - first_right(question, answer, form))


def to_wrong(question: Question, answer: str, form: Form) -> float:
    """Right, then wrong."""
    return first_right(question, answer, form) * (1 - right(question, answer, form))


def found_first(question: Question, answer: str, form: Form) -> float:
    """The right caption is the nearest one by cosine of mean trigram embeddings."""
    said = words_of(answer)
    if not said:
        return 0.0
    captions = question.data["candidates"]
    vectors = np.stack([_mean(words) for words in (said, *map(words_of, captions))])
    cosines = vectors[1:] @ vectors[0]
    best = np.flatnonzero(cosines >= cosines.max() - 1e-12)
    return float(len(best) == 1 and captions[best[0]] == question.data["positive"])


def _mean(words: list[str]) -> np.ndarray:
    rows = trigram_embedding(words)
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
    return mean / np.linalg.norm(mean)


def of_task(name: str, question: Question, answer: str, form: Form) -> float:
    """The reward that the question names, for questions of one task; NaN for all others."""
    if question.task != name:
        return float("nan")
    return reward_of(question.data["reward"], question, answer, form)


def runs(question: Question, answer: str, form: Form) -> float:
    """The program runs and leaves a chart or a solid."""
    code = parse.program(answer)
    make = {"chart_to_code": chart.draw, "cad_code": solid.build}[question.task]
    return float(code is not None and make(code) is not None)


FOUR = ("shapes_vqa", "shapes_ground", "digits", "retrieval_embed")
METRICS: dict[str, Callable[[Question, str, Form], float]] = {
    "right": right,
    "first": first_right,
    "to_right": to_right,
    "to_wrong": to_wrong,
    "recall@1": recall_at_1,
    "found": found_first,
    "place": in_place,
    "runs": runs,
    "solid": partial(reward_of, "exec_geometry"),
    "chart": partial(reward_of, "chart_text_struct"),
    "looks": partial(reward_of, "chart_visual"),
    "tiou": partial(reward_of, "tiou"),
    "rrk3": partial(reward_of, "rerank_rrk3"),
    "partial": partial(reward_of, "transformation_partial"),
    "facts": partial(reward_of, "visual_fact_coverage"),
    **{name: partial(of_task, name) for name in FOUR},
}


def _knobs(task: str, **values: Any) -> Stage:
    return ("--env.simulator.knobs", str({task: values}))


def _jigsaw(rows: int, columns: int) -> Stage:
    return _knobs("jigsaw_full", rows=rows, columns=columns, size=28, num_shapes=2)


def _pair(side: int) -> dict[str, Any]:
    return {"jigsaw_pair": {"rows": side, "columns": side, "size": 14 * side, "num_shapes": side}}


PAIR: Stage = (
    "--env.simulator.tasks",
    "jigsaw_pair",
    "--env.simulator.knobs",
    str(_pair(2)),
    "--policy.alphabet",
    "ABCDEFGH",
)

_BEFORE_AND_AFTER = (
    Variant(name="sft", stages=(SFT,)),
    Variant(name="rl", stages=(SFT, RL), views={"blank": BLANK}),
)
LONGER: Stage = ("--imitation.num-steps", "400")
FEW: Stage = ("--imitation.num-steps", "40")
SHORT: Stage = ("--imitation.num-steps", "20")
MORE: Stage = ("--imitation.num-steps", "900")
_SAMPLED = {"sampled": SAMPLED}
_SAMPLED_TOO = (
    Variant(name="sft", stages=(SFT,), views=_SAMPLED),
    Variant(name="rl", stages=(SFT, RL), views={"blank": BLANK, **_SAMPLED}),
)
_TURNED = {"turned": {"knobs": {"digits": {"turn": 15}}}}
_THINK: Stage = (
    "--env.simulator.answer-form",
    "think",
    "--env.simulator.reward",
    "accuracy_and_format",
    "--policy.max-new-tokens",
    "48",
)
_THINK_FILM: Stage = (
    "--env.simulator.answer-form",
    "think",
    "--policy.max-new-tokens",
    "56",
)
_FILM = {"num_frames": 6, "size": 14, "grid": 1, "num_objects": 0, "seconds_per_frame": 1}
_NOISY = _knobs("temporal_grounding", **_FILM, label_noise=0.3)
_SEEN = {"seen": {"split": "train"}}


MIXED_UPDATES = 40


def _alone(task: str, *, updates: int) -> Stage:
    """One task of the mixture: as many gradient steps, a quarter of the rows of each."""
    knobs = builtin_recipes()["vqa/mixed_r1"]().env.simulator.options["knobs"][task]
    rows = ROWS // len(FOUR)
    steps = {"env.num-envs": rows, "imitation.batch-size": 16, "total-env-steps": updates * rows}
    changes = [word for key, value in steps.items() for word in (f"--{key}", str(value))]
    return ("--env.simulator.tasks", task, *_knobs(task, **knobs), *changes)


JIGSAW = System(
    number=10,
    title="Jigsaw-R1",
    recipe="vqa/jigsaw_r1",
    components=("jigsaw_full", "jigsaw_pair", "jigsaw_fraction"),
    test="2x1 at least 90 %; 2x2 at least twice the chance of 25 % in place; the pair task trained "
    "on 2x2 above the chance of 12.5 % on 3x3; reinforcement above imitation.",
    metrics=("right", "place"),
    variants=(
        Variant(name="sft 2x1", stages=((*SFT, *_jigsaw(2, 1), *SHORT),)),
        Variant(name="rl 2x1", stages=((*SFT, *_jigsaw(2, 1), *SHORT), _jigsaw(2, 1))),
        Variant(name="sft 2x2", stages=(SFT,)),
        Variant(name="rl 2x2", stages=(SFT, RL), views={"blank": BLANK}),
        Variant(name="longer 2x2", stages=((*SFT, *LONGER),)),
        Variant(name="sft pair", stages=((*SFT, *PAIR, *FEW),), views={"3x3": {"knobs": _pair(3)}}),
        Variant(
            name="rl pair",
            stages=((*SFT, *PAIR, *FEW), PAIR),
            views={"3x3": {"knobs": _pair(3)}},
        ),
    ),
    rules=(
        Rule(says="2x1 right", of="rl 2x1:right", above=0.9),
        Rule(says="2x1 reinforcement - imitation", of="rl 2x1:right", minus="sft 2x1:right"),
        Rule(says="2x2 in place", of="rl 2x2:place", above=0.5),
        Rule(says="2x2 reinforcement - imitation", of="rl 2x2:place", minus="sft 2x2:place"),
        Rule(says="2x2 after imitation of 400 steps alone", of="longer 2x2:place", report=True),
        Rule(says="2x2 without the picture", of="rl 2x2:place@blank", report=True),
        Rule(says="pair 2x2", of="rl pair:right", report=True),
        Rule(says="pair reinforcement - imitation", of="rl pair:right", minus="sft pair:right"),
        Rule(says="pair 3x3", of="rl pair:right@3x3", above=0.125),
    ),
    note="Where right answers are to be had without end, imitation carried on gets further than "
    "reinforcement from the share in place.",
)


CLS = System(
    number=24,
    title="CLS-RL / No-Thinking-CLS-RL",
    recipe="vqa/cls_rl",
    components=("digits", "exact_label", "no_think_equal", "accuracy_and_format"),
    test="16 pictures per digit: without thinking at least with thinking - 1 point, at no more "
    "than half the tokens; reinforcement against imitation of equal length, also on digits turned "
    "by 15 degrees.",
    metrics=("right",),
    variants=(
        Variant(name="sft", stages=((*SFT, *MORE),), views=_TURNED),
        Variant(name="no-think", stages=(SFT, RL), views=_TURNED),
        Variant(name="think", stages=((*SFT, *_THINK), _THINK), views=_TURNED),
    ),
    rules=(
        Rule(says="no-think - think", of="no-think:right", minus="think:right", above=-0.01),
        Rule(
            says="tokens of think - 2 x no-think",
            of="think:tokens",
            minus="no-think:tokens",
            times=2,
        ),
        Rule(says="no-think", of="no-think:right", report=True),
        Rule(says="reinforcement - imitation", of="no-think:right", minus="sft:right", report=True),
        Rule(
            says="the same, turned",
            of="no-think:right@turned",
            minus="sft:right@turned",
            report=True,
        ),
    ),
    note="Digits are printed, not scanned. Imitation alone had 900 steps, the others 300: after "
    "either the 160 pictures of training are nearly all answered: little is left to reinforce.",
)

RERANK = System(
    number=25,
    title="MM-R5",
    recipe="vqa/mm_r5",
    components=("page_rerank", "rerank_rrk3", "list_format"),
    test="The reward is 1 exactly with the positives on top "
    "(`test_rank_reward_is_1_exactly_with_positives_on_top`); recall@1 after reinforcement "
    "above that after imitation.",
    metrics=("recall@1", "rrk3"),
    variants=_SAMPLED_TOO,
    rules=(
        Rule(says="reinforcement - imitation", of="rl:recall@1", minus="sft:recall@1"),
        Rule(says="recall@1 of 3 pages", of="rl:recall@1", report=True),
        Rule(
            says="reinforcement - imitation, answers drawn at temperature 1",
            of="rl:recall@1@sampled",
            minus="sft:recall@1@sampled",
            report=True,
        ),
        Rule(says="without the picture", of="rl:recall@1@blank", report=True),
    ),
    note=" 3 pages, not 10; imitation in place of a cosine baseline, which would need an embedding "
    "model. The settings are a first guess; answers got shorter by reinforcement: pages after "
    "those asked for earn nothing.",
)

TIMEMASTER = System(
    number=37,
    title="TimeMaster",
    recipe="vqa/timemaster",
    components=("timeseries_plot", "ts_composite"),
    test="Four kinds of signals at least 90 %; the extension pays nothing whenever the answer is "
    "wrong (`test_extension_counts_only_when_right`).",
    metrics=("right", "facts"),
    variants=_SAMPLED_TOO,
    rules=(
        Rule(says="kind right", of="rl:right", above=0.9),
        Rule(says="reinforcement - imitation", of="rl:right", minus="sft:right", report=True),
        Rule(
            says="the same, answers drawn at temperature 1",
            of="rl:right@sampled",
            minus="sft:right@sampled",
            report=True,
        ),
        Rule(says="periods right", of="rl:facts", report=True),
        Rule(
            says="periods, reinforcement - imitation", of="rl:facts", minus="sft:facts", report=True
        ),
        Rule(says="without the picture", of="rl:right@blank", report=True),
    ),
    note=" 80 steps of imitation and 120 updates. With 60 the reward still rose at the end, and "
    "seeds 4 to 6 gave .920 [.862, .980]: hence twice as many, with new seeds. Imitation alone "
    "reaches 0.97 of the train questions of seed 10 in 120 steps, at less cost.",
)


_SHARP: Stage = ("--policy.temperature", "0.7")
"""Of reinforcement: fewer of the programs that are drawn have a wrong character."""
CAD = System(
    number=22,
    title="CAD-RL (task)",
    recipe="vqa/cad_rl",
    components=("cad_code", "exec_ok", "exec_geometry"),
    test="95 % of the programs run; solids match better than after imitation by 0.1.",
    metrics=("runs", "solid"),
    variants=(
        Variant(name="sft", stages=(SFT,)),
        Variant(name="rl", stages=(SFT, _SHARP)),
    ),
    rules=(
        Rule(says="runs", of="rl:runs", above=0.95),
        Rule(says="reinforcement - imitation", of="rl:solid", minus="sft:solid", above=0.1),
        Rule(says="match", of="rl:solid", report=True),
    ),
    note="Tubes alone, 24 of them to imitate, then 40 updates of 256 programs drawn at temperature "
    "0.7; match is the reward: IoU and the ratios of volume and surface. Needs the extra `cad`. "
    "The loss has a row of its own. What the programs take themselves, a third more, is not in the "
    "seconds.",
)

_SHARPER: Stage = ("--policy.temperature", "0.6")
_SEEN_CHART: Stage = ("--env.simulator.reward", "chart_visual", *_SHARPER)
MSRL = System(
    number=32,
    title="MSRL",
    recipe="vqa/msrl",
    components=("chart_to_code", "exec_ok", "chart_text_struct", "chart_visual"),
    test="Text and then picture above imitation and above as many updates by text alone; 95 % of "
    "the programs run; 0.8 of the text right.",
    metrics=("runs", "chart", "looks"),
    variants=(
        Variant(name="sft", stages=(SFT,)),
        Variant(name="two stages", stages=(SFT, _SHARPER, _SEEN_CHART)),
        Variant(name="one stage", stages=(SFT, _SHARPER, _SHARPER)),
    ),
    rules=(
        Rule(says="two stages - imitation", of="two stages:looks", minus="sft:looks"),
        Rule(says="two stages - one", of="two stages:looks", minus="one stage:looks"),
        Rule(says="runs", of="two stages:runs", above=0.95),
        Rule(says="text", of="two stages:chart", above=0.8),
        Rule(says="text after imitation", of="sft:chart", report=True),
        Rule(says="picture after imitation", of="sft:looks", report=True),
    ),
    questions=100,
    note="Bars alone, two of them, 256 charts to imitate; the program is the short one of the "
    "task. 8 updates of 128 programs per stage, drawn at temperature 0.6: too few, after imitation "
    "that is too good, for either reward to move anything. What the programs take themselves, more "
    "than the updates around them, is not in the seconds.",
)

JUDGE = System(
    number=48,
    title="R1-Reward (task)",
    recipe="vqa/r1_reward",
    components=("pairwise_judge",),
    test="The better of two replies: reinforcement above imitation, both above the chance of 50 %.",
    metrics=("right",),
    variants=_BEFORE_AND_AFTER,
    rules=(
        Rule(says="right", of="rl:right", above=0.5),
        Rule(says="reinforcement - imitation", of="rl:right", minus="sft:right"),
        Rule(says="right after imitation", of="sft:right", above=0.5),
        Rule(says="without the picture", of="rl:right@blank", report=True),
    ),
    note=" Which reply is right is asked of pairs of colour and shape never seen in training. The "
    "lift is seen in each of the three seeds and is small: by the last 30 updates only 2 to 10 % "
    "of the groups hold answers that differ. The loss and the filter have a row of their own.",
)

SRPO_LIKE = System(
    number=56,
    title="SRPO",
    recipe="vqa/srpo",
    components=("reflection_transition", "reflection_length", "answer_form=reflect"),
    test="Of answers drawn at temperature 1: the second of two attempts above the first; wrong to "
    "right at least twice right to wrong; first attempts at most 2 points below those after "
    "imitation; spoiling them never pays "
    "(`test_spoiling_the_first_answer_pays_in_srpo_and_not_here`).",
    metrics=("right", "first", "to_right", "to_wrong"),
    variants=(
        Variant(name="sft", stages=(SFT,), views=_SAMPLED),
        Variant(name="closed", stages=(SFT, RL), views=_SAMPLED),
        Variant(
            name="srpo",
            stages=(SFT, ("--env.simulator.reward-options", "{scheme: srpo}")),
            views=_SAMPLED,
        ),
    ),
    rules=(
        Rule(says="second - first", of="closed:right@sampled", minus="closed:first@sampled"),
        Rule(
            says="wrong to right - 2 x right to wrong",
            of="closed:to_right@sampled",
            minus="closed:to_wrong@sampled",
            times=2,
        ),
        Rule(
            says="first attempt, reinforcement - imitation",
            of="closed:first@sampled",
            minus="sft:first@sampled",
            above=-0.02,
        ),
        Rule(
            says="the same with the paper's table of worths",
            of="srpo:first@sampled",
            minus="sft:first@sampled",
            report=True,
        ),
        Rule(says="second attempt", of="closed:right@sampled", report=True),
        Rule(says="after imitation", of="sft:right@sampled", report=True),
        Rule(says="greedy, first", of="closed:first", report=True),
        Rule(says="greedy, second", of="closed:right", report=True),
    ),
    note="Paid by the paper's table the policy learns to spoil its first answers, as feared; paid "
    "by ours both attempts get better, and the second one finds little to mend in the first.",
)

TIMELENS = System(
    number=60,
    title="TimeLens",
    recipe="vqa/timelens",
    components=("temporal_grounding", "tiou"),
    test="Without thinking at least with thinking - 1 point of tIoU, at no more than 0.3 of the "
    "tokens; clean labels above 30 % noisy ones.",
    metrics=("tiou", "right"),
    variants=(
        Variant(name="no-think", stages=(SFT, RL)),
        Variant(name="think", stages=((*SFT, *_THINK_FILM), _THINK_FILM)),
        Variant(name="noisy", stages=((*SFT, *_NOISY), _NOISY)),
    ),
    rules=(
        Rule(says="no-think - think", of="no-think:tiou", minus="think:tiou", above=-0.01),
        Rule(
            says="tokens of think - 3.3 x no-think",
            of="think:tokens",
            minus="no-think:tokens",
            times=10 / 3,
        ),
        Rule(says="clean - noisy", of="no-think:tiou", minus="noisy:tiou"),
        Rule(says="mean tIoU", of="no-think:tiou", report=True),
        Rule(says="R@.5", of="no-think:right", report=True),
    ),
    note=" Thoughts say for each frame whether the object is visible.",
)

STAR = System(
    number=63,
    title="STAR-R1",
    recipe="vqa/star_r1",
    components=("trance_like", "transformation_partial"),
    test="Exact lists of changes above those after the sparse reward; naming everything is worth "
    "less than the honest list (`test_no_adversary_beats_the_honest_answer`), silence less than "
    "nothing (`test_transformation_points_of_the_paper`).",
    metrics=("right", "partial"),
    variants=(
        Variant(name="sft", stages=(SFT,)),
        Variant(name="partial", stages=(SFT, RL)),
        Variant(name="sparse", stages=(SFT, ("--env.simulator.reward", "correct"))),
    ),
    rules=(
        Rule(says="partial - sparse", of="partial:right", minus="sparse:right"),
        Rule(says="partial - imitation", of="partial:right", minus="sft:right", report=True),
        Rule(says="exact", of="partial:right", report=True),
    ),
    note="Two objects, one change, the same view. Larger steps (5e-4) made both rewards worse than "
    "imitation on seed 4, which was not counted.",
)

AFFORDANCE = System(
    number=64,
    title="Affordance-R1",
    recipe="vqa/affordance_r1",
    components=("affordance_points", "point_match"),
    test="The point in the handle at least 70 %; tools never seen in training above imitation.",
    metrics=("right",),
    variants=(
        Variant(name="sft", stages=(SFT,), views=_SEEN),
        Variant(name="rl", stages=(SFT, RL), views=_SEEN),
        Variant(name="longer", stages=((*SFT, *LONGER),)),
    ),
    rules=(
        Rule(says="unseen tools", of="rl:right", above=0.7),
        Rule(says="reinforcement - imitation", of="rl:right", minus="sft:right"),
        Rule(says="seen tools", of="rl:right@seen", report=True),
        Rule(says="imitation of 400 steps alone", of="longer:right", report=True),
    ),
    note="Without the closed loop with a grasp. Seeds 4 to 6 gave .862 [.700, .967] for unseen "
    "tools, which touches the bound: for that seeds 7 to 9 were run, with imitation alone beside.",
)

MIXED = System(
    number=67,
    title="Mixed-R1",
    recipe="vqa/mixed_r1",
    components=("score", "bmas", "match", "box_iou", "exact_label", "embedding_rank_gap"),
    test="Four tasks in one batch at most 2 points below each alone, with as many gradient steps "
    "and answers per task; BMAS is 1 for itself, symmetric, falls with dropped words and does not "
    "pay repetition (`test_bmas_is_1_for_itself_symmetric_and_falls_as_words_are_dropped`).",
    metrics=FOUR,
    variants=(
        Variant(name="joint", stages=(SFT, RL)),
        *(
            Variant(
                name=task, stages=(_alone(task, updates=0), _alone(task, updates=MIXED_UPDATES))
            )
            for task in FOUR
        ),
    ),
    rules=tuple(
        Rule(
            says=f"{task}, joint - alone",
            of=f"joint:{task}",
            minus=f"{task}:{task}",
            above=-0.02,
        )
        for task in FOUR
    )
    + tuple(Rule(says=f"{task}, joint", of=f"joint:{task}", report=True) for task in FOUR),
    questions=1000,
    note="400 steps of imitation, then 40 updates; a quarter of the questions are of each task. "
    "In no arm does the reward rise much in the 40 updates: the arms differ by imitation, where "
    "digits lose by the company and no other task is seen to.",
)

RETRIEVAL = System(
    number=70,
    title="UME-R1",
    recipe="vqa/ume_r1",
    components=("retrieval_embed", "embedding_rank_gap"),
    test="Recall@1 of 50 captions after reinforcement above imitation.",
    metrics=("found", "right"),
    variants=(Variant(name="sft", stages=(SFT,)), Variant(name="rl", stages=(SFT, RL))),
    rules=(
        Rule(says="reinforcement - imitation", of="rl:found", minus="sft:found"),
        Rule(says="recall@1", of="rl:found", report=True),
    ),
    note="The generated caption alone is embedded; no discriminative embedding beside it. Captions "
    "grow to the longest that is allowed: words after the caption cost little.",
)

SYSTEMS: tuple[System, ...] = (
    JIGSAW,
    CAD,
    CLS,
    RERANK,
    MSRL,
    TIMEMASTER,
    JUDGE,
    SRPO_LIKE,
    TIMELENS,
    STAR,
    AFFORDANCE,
    MIXED,
    RETRIEVAL,
)
