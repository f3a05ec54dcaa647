"""Parsing, right and wrong answers, lengths, reflection, confidence and overlap of words."""

import itertools
import math
import os
import random
from collections import Counter

import numpy as np
import pytest

from embodied_rl.registry import registry
from embodied_rl.rewards import equivalence, parse
from embodied_rl.rewards.format import accuracy_and_format, format_tags, hard_format_result
from embodied_rl.rewards.group import cosine_length, dylr, shortest_correct
from embodied_rl.rewards.length import ngram_repetition, nonrepeat, overlong
from embodied_rl.rewards.match import chart_relaxed, exact_label, match, no_think_equal, numeric
from embodied_rl.rewards.overlap import (
    bleu4,
    bmas,
    caption_overlap,
    embedding_rank_gap,
    perception_checklist,
    rephrase_similarity,
    rouge_l,
    similarity,
    ts_composite,
    visual_fact_coverage,
)
from embodied_rl.rewards.reflection import (
    calibration_log,
    reflection_length,
    reflection_transition,
)
from embodied_rl.rewards.tools import gated_tool_use
from embodied_rl.types import Question


def asked(answer: str = "x", **data: object) -> Question:
    return Question(task="t", prompt="p", answer=answer, data=data)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>A?</think><answer> B </answer>", "B"),
        ("<think><answer>A</answer></think><answer>B</answer>", "B"),
        ("plain", "plain"),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"<answer>\boxed{3}</answer>", "3"),
        (r"\boxed{1} \boxed{2}", None),
        (r"\boxed{1", None),
        ("<answer>A</answer><answer>B</answer>", None),
        ("<answer>A", None),
        ("</answer>A<answer>", None),
        ("<answer><answer>A</answer></answer>", None),
        ("<think>A", None),
        ("", None),
    ],
)
def test_answer_text_takes_one_answer_or_none(response: str, expected: str | None) -> None:
    assert parse.answer_text(response) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.5 and -2", [1234.5, -2.0]),
        ("1,2,3", [1.0, 2.0, 3.0]),
        ("1,234,567", [1234567.0]),
        ("12,34", [12.0, 34.0]),
        ("1e3 .5 +4", [1000.0, 0.5, 4.0]),
        ("1e9999", []),
        ("none", []),
    ],
)
def test_numbers(text: str, expected: list[float]) -> None:
    assert parse.numbers(text) == expected


def test_code_block_is_the_only_fence() -> None:
    assert parse.code_block("x ```python\na = 1\n``` y") == "a = 1\n"
    assert parse.code_block("```\na\n``` ```\nb\n```") is None


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B", True),
        ("(b)", True),
        ("B. blue", True),
        ("The answer is B.", True),
        ("blue", True),
        ("A. blue", False),
        ("A or B", False),
        ("C", False),
        ("bl", False),
    ],
)
def test_choices(said: str, right: bool) -> None:
    assert match(said, asked("B", choices=["red", "blue"])) == float(right)


def test_numbers_with_tolerance_refuse_a_list() -> None:
    assert numeric("about 98.1 cm", asked("100"), relative=0.02) == 1.0
    assert numeric("97.9", asked("100"), relative=0.02) == 0.0
    assert numeric("99 100", asked("100")) == 0.0
    assert numeric("99 100", asked("100"), last=True) == 1.0
    assert chart_relaxed("105", asked("100")) == chart_relaxed("-95", asked("-100")) == 1.0
    assert chart_relaxed("105.1", asked("100")) == 0.0
    assert chart_relaxed("Norway", asked("norway")) == 1.0


def test_an_unusable_reference_is_an_error_not_a_reward() -> None:
    with pytest.raises(ValueError, match="empty reference"):
        match("anything", asked(""))
    with pytest.raises(ValueError, match="none of the choices"):
        match("A", asked("Z", choices=["red", "blue"]))
    with pytest.raises(ValueError, match="no number"):
        numeric("3", asked("three"))


@pytest.mark.parametrize(
    ("said", "reference", "right"),
    [
        ("0.5", r"\frac{1}{2}", True),
        (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("x^2+1", "(x+1)^2", False),
        ("1/2, 1/3", "1/2", False),
        ("$1$ $2$", "1", False),
    ],
)
def test_formulas_that_are_the_same(said: str, reference: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert registry("rewards").get("math_equivalence")(said, asked(reference)) == float(right)


def test_a_formula_that_never_ends_scores_0_and_the_next_one_is_compared() -> None:
    pytest.importorskip("math_verify")
    reward = registry("rewards").get("math_equivalence")
    assert reward("9^{9^{9^9}}", asked("2"), timeout_s=1.0) == 0.0
    assert reward("1+1", asked("2"), timeout_s=20.0) == 1.0


def test_a_formula_is_compared_after_the_worker_was_killed_and_not_by_that_of_a_parent() -> None:
    pytest.importorskip("math_verify")
    reward = registry("rewards").get("math_equivalence")
    worker = equivalence._WORKER
    assert reward("1+1", asked("2"), timeout_s=60.0) == 1.0
    assert worker.process is not None
    worker.process.kill()
    worker.process.wait()
    assert reward("1+1", asked("2"), timeout_s=60.0) == 1.0
    child = os.fork()
    if child == 0:
        os._exit(worker._running() is None)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert worker._running() is not None


def test_a_formula_is_not_run_as_a_program(monkeypatch, tmp_path) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(equivalence, "_WORKER", worker := equivalence._Worker())
    reward = registry("rewards").get("math_equivalence")
    code = "__import__('os').mkdir('here')"
    for said in (code, rf"\text{{{code}}}", f"1+{code}", f"2 {code}", f"2*(1+{code}"):
        reward(said, asked("3"), timeout_s=60.0)
    assert list(tmp_path.iterdir()) == []
    assert worker.process is not None
    worker._stop(worker.process)


def test_format_is_exact() -> None:
    good = "<think>a</think>\n<answer>b</answer>"
    assert format_tags(good, asked()) == 1.0
    for bad in (f"x{good}", f"{good}x", "<answer>b</answer><think>a</think>", good + good):
        assert format_tags(bad, asked()) == 0.0
    assert format_tags("<think> </think><answer>b</answer>", asked()) == 0.0
    assert hard_format_result(good, asked("b")) == 1.0
    assert hard_format_result("<answer>b</answer>", asked("b")) == 0.0


def test_overlong_is_a_line_from_the_margin_to_the_limit() -> None:
    lengths = {7: 0.0, 8: 0.0, 9: -0.5, 10: -1.0, 99: -1.0}
    for length, expected in lengths.items():
        assert overlong("w " * length, asked(), max_length=10, margin=2) == expected


def test_repeated_trigrams() -> None:
    assert ngram_repetition("a b c a b c", asked()) == -0.25  # abc bca cab abc
    assert ngram_repetition("a b c d", asked()) == 0.0


def test_shortest_correct_response_gets_the_bonus() -> None:
    texts = ["w " * n for n in (5, 3, 2, 3)]
    assert shortest_correct(texts, asked(), scores=[1, 1, 0, 1]) == [0, 0.2, 0, 0.2]
    assert shortest_correct(texts, asked(), scores=[1, 1, 0, 1], min_length=3) == [0] * 4
    assert shortest_correct(texts, asked(), scores=[0] * 4) == [0] * 4


def test_dylr_moves_wrong_answers_only_to_the_mean_correct_length() -> None:
    texts = ["w " * n for n in (8, 12, 0, 5, 10, 15, 20, 50)]
    values = dylr(texts, asked(), scores=[1, 1, 0, 0, 0, 0, 0, 0])
    assert values == pytest.approx([0, 0, -0.5, -0.25, 0, -0.25, -0.5, -0.5])
    assert dylr(["w " * 750], asked(), scores=[0])[0] == 0.0


def test_cosine_length_ends_and_middle() -> None:
    texts = ["", "w " * 50, "w " * 100]
    right = cosine_length(texts, asked(), scores=[1, 1, 1], max_length=100)
    assert right == pytest.approx([1.0, 0.75, -1.0])
    wrong = cosine_length(texts, asked(), scores=[0, 0, 0], max_length=100)
    assert wrong == pytest.approx([-1.0, -0.75, -1.0])


def attempts(first: bool, second: bool) -> str:
    return "".join(f"<answer>{'B' if right else 'A'}</answer>" for right in (first, second))


def mean_reward(first: float, second: float, scheme: str) -> float:
    reward = registry("rewards").get("reflection_transition")
    question = asked("B", choices=["red", "blue"])
    total = 0.0
    for a, b in itertools.product((True, False), repeat=2):
        chance = (first if a else 1 - first) * (second if b else 1 - second)
        total += chance * reward(attempts(a, b), question, scheme=scheme)
    return total


def test_spoiling_the_first_answer_pays_in_srpo_and_not_here() -> None:
    q = 0.8
    # The honest policy repeats its first answer; the other one spoils it and then tries.
    honest = {s: q * v for s, v in (("srpo", 0.75), ("closed", 1.0))}
    assert mean_reward(0.0, q, "srpo") == pytest.approx(0.8)
    assert honest["srpo"] == pytest.approx(0.6)
    for second in (0.0, 0.3, q, 1.0):
        spoiled, tried = (mean_reward(first, second, "closed") for first in (0.0, q))
        assert tried >= spoiled
    assert mean_reward(0.0, q, "closed") < honest["closed"]
    assert reflection_transition("<answer>B</answer>", asked("B")) == 0.5


def test_reflection_length_peaks_at_twice_the_first_part() -> None:
    first = "a b c d <answer>A</answer>"
    values = {}
    for extra in range(1, 12):
        words = " ".join(f"w{i}" for i in range(extra))
        values[extra] = reflection_length(f"{first} {words} <answer>B</answer>", asked())
    assert max(values, key=values.__getitem__) == 4  # 5 words, then 5 more
    assert values[4] == pytest.approx(1.0)


def test_stated_confidence_is_best_at_the_true_rate() -> None:
    for rate in (0.2, 0.5, 0.7):
        expected = {}
        for percent in range(1, 100):
            tail = f"<confidence>{percent}%</confidence>"
            right = calibration_log(f"<answer>x</answer>{tail}", asked("x"))
            wrong = calibration_log(f"<answer>y</answer>{tail}", asked("x"))
            expected[percent] = rate * right + (1 - rate) * wrong
        assert max(expected, key=expected.__getitem__) == round(100 * rate)
    assert calibration_log("<answer>x</answer>", asked("x")) == pytest.approx(math.log(0.01) - 1)


def test_bleu_and_rouge_of_worked_cases() -> None:
    the_cat = ["the", "cat", "sat", "on", "the", "mat"]
    assert bleu4(the_cat, the_cat) == pytest.approx(1.0)
    assert rouge_l(the_cat, the_cat) == 1.0
    police = ["police", "killed", "the", "gunman"]  # Lin 2004, section 3.1
    assert rouge_l(["police", "kill", "the", "gunman"], police) == 0.75
    assert rouge_l(["the", "gunman", "kill", "police"], police) == 0.5
    # 7 x "the" against two: clipped precision 2/7 (Papineni et al. 2002); no pair in common.
    clipped = bleu4(["the"] * 7, the_cat)
    assert clipped == pytest.approx((2 / 7 * 1 / 7 * 1 / 6 * 1 / 5) ** 0.25)
    short = bleu4(the_cat[:3], the_cat)
    assert short == pytest.approx(math.exp(1 - 6 / 3) * 1.0)


def test_rouge_equals_brute_force_subsequences() -> None:
    rng = random.Random(0)
    for _ in range(30):
        a, b = ([rng.choice("xyz") for _ in range(rng.randint(1, 7))] for _ in range(2))
        common = max(
            n
            for n in range(len(a) + 1)
            if {*itertools.combinations(a, n)} & {*itertools.combinations(b, n)}
        )
        precision, recall = common / len(a), common / len(b)
        expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l(a, b) == pytest.approx(expected)


def test_bmas_is_1_for_itself_symmetric_and_falls_as_words_are_dropped() -> None:
    words = ["a", "small", "red", "cube", "lies", "behind", "three", "yellow", "balls"]
    values = [bmas(" ".join(words[:n]), asked(" ".join(words))) for n in range(len(words), 0, -1)]
    assert values[0] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(values))
    one, other = "red cube left", "blue ball on the left"
    assert bmas(one, asked(other)) == pytest.approx(bmas(other, asked(one)))
    assert Counter(words)["red"] == 1
    assert bmas("red " * 50, asked(" ".join(words))) < bmas("red", asked(" ".join(words)))


def test_rank_and_gap() -> None:
    question = asked(positive="red cube", negatives=["blue ball", "green cone"])
    near, far = embedding_rank_gap("red cube", question), embedding_rank_gap("blue ball", question)
    assert near > 0.5 > far == 0.0


def test_facts_that_are_contradicted_do_not_count() -> None:
    question = asked(
        facts=[("circle", "3", ["1", "2", "3"]), ("square", "left", ["left", "right"])]
    )
    assert visual_fact_coverage("The circle count is 3. Nothing else.", question) == 0.5
    assert visual_fact_coverage("circle 3. circle 2. square left", question) == 0.5
    assert visual_fact_coverage("circles 3", question) == 0.0


def test_extension_counts_only_when_right() -> None:
    question = asked(
        "B",
        choices=["a", "b"],
        facts=[("wave", "sine", ["sine", "saw"])],
        generic_phrases=["as we"],
    )
    thought = "<think>the wave is sine</think>"
    assert ts_composite(f"{thought}<answer>B</answer>", question) == pytest.approx(1.5)
    assert ts_composite(f"{thought}<answer>A</answer>", question) == pytest.approx(0.1)
    generic = "<think>as we see the wave is sine</think><answer>B</answer>"
    assert ts_composite(generic, question) == pytest.approx(1.2)


def one_hot(words) -> np.ndarray:
    vocabulary = "abcdefghijklmnopqrstuvwxyz"
    return np.array([[float(word == letter) for letter in vocabulary] for word in words])


def test_similarity_of_unrelated_words_counts_the_shared_ones() -> None:
    rng = random.Random(1)
    for _ in range(50):
        said, true = (rng.sample("abcdefgh", rng.randint(1, 8)) for _ in range(2))
        shared = len({*said} & {*true})
        expected = (shared / len(said) + shared / len(true)) / 2
        assert similarity(said, true, one_hot) == pytest.approx(expected)
    assert similarity(["a", "a", "b"], ["a", "c"], one_hot) == pytest.approx((1 / 3 + 1 / 2) / 2)


def rephrased(words: str, answer: str = "7") -> str:
    return f"<rephrase>{words}</rephrase><answer>{answer}</answer>"


def test_a_rephrased_question_is_measured_from_the_unchanged_one() -> None:
    data = {"question": "a b", "rephrase": "a c d e"}
    question = asked("7", **data)

    def value(words: str, answer: str = "7") -> float:
        return rephrase_similarity(rephrased(words, answer), question, embed=one_hot)

    # The question itself has one of two words in common: (1/2 + 1/4) / 2 = 3/8.
    assert value("a c d e") == pytest.approx(1.0)
    assert value("a b") == value("") == value("x y z") == 0.0
    assert value("a c d") == pytest.approx(((1 + 3 / 4) / 2 - 3 / 8) / (5 / 8))
    assert value("a c d e", answer="8") == 0.0
    assert rephrase_similarity("a c d e <answer>7</answer>", question, embed=one_hot) == 0.0
    with pytest.raises(ValueError, match="must differ from the question"):
        rephrase_similarity(rephrased("a"), asked("7", question="a b", rephrase="b a"))
    with pytest.raises(ValueError, match="must differ"):
        rephrase_similarity(rephrased("a"), asked("7", rephrase=""))


def conversation(*intervals: tuple[int, int], answer: str = "B", name: str = "frames") -> str:
    calls = [
        f'<think>look</think><tool_call>{{"name": "{name}", "arguments": '
        f'{{"start": {start}, "end": {end}}}}}</tool_call>\n'
        for start, end in intervals
    ]
    return "".join(calls) + f"<think>seen</think><answer>{answer}</answer>"


def test_tool_bonus_and_gate() -> None:
    question = asked("B", choices=["red", "blue"])

    def value(response: str, **options) -> float:
        return gated_tool_use(response, question, **options)

    assert value(conversation((0, 4))) == value(conversation((0, 4), (4, 8))) == 1.5
    assert value(conversation()) == 1.0
    assert value(conversation((0, 4), answer="A")) == 0.03
    assert value(conversation(answer="A")) == 0.0
    for share, with_tool in ((0.6, 0.9), (0.5, 0.75), (0.4, 0.43)):
        options = {"accuracy": lambda response, question, share=share: share}
        assert value(conversation((0, 4)), **options) == pytest.approx(with_tool)
        assert value(conversation(), **options) == pytest.approx(share)


def test_a_tool_conversation_out_of_form_costs() -> None:
    question = asked("B", choices=["red", "blue"])
    good = conversation((0, 4))
    swapped = good.replace('"start": 0, "end": 4', '"end": 4,  "start": 0')
    spam = conversation(*((i, i + 1) for i in range(9)))
    bad = {
        "the same interval twice": conversation((0, 4), (0, 4)),
        "the same in another order": swapped.partition("<think>seen")[0] + good,
        "more calls than allowed": spam,
        "text outside": good + "!",
        "text between": good.replace("</think>", "</think> hm ", 1),
        "no thought": good.replace("<think>look</think>", ""),
        "an empty thought": good.replace("look", " "),
        "an empty answer": conversation((0, 4), answer=""),
        "no answer": good.partition("<think>seen")[0],
        "an answer that does not end": good.removesuffix("</answer>"),
        "two answers": good + "<think>x</think><answer>B</answer>",
        "no JSON": good.replace('{"name"', "{name"),
        "a list": good.replace('{"start": 0, "end": 4}', "[0, 4]"),
        "another key": good.replace('"arguments"', '"args"'),
        "a call inside a thought": f"<think>{good}</think><answer>B</answer>",
        "nothing": "",
    }
    assert gated_tool_use(good, question) == 1.5
    assert gated_tool_use(spam, question, max_calls=9) == 1.5
    for label, response in bad.items():
        assert gated_tool_use(response, question) == -0.05, label


def test_labels_are_words_or_the_whole_response() -> None:
    assert exact_label("<answer> Blue. </answer>", asked("blue")) == 1.0
    assert exact_label("<answer>light blue</answer>", asked("blue")) == 0.0
    assert no_think_equal(" blue ", asked("blue")) == 1.0
    for other in ("Blue", "<answer>blue</answer>", "blue blue", ""):
        assert no_think_equal(other, asked("blue")) == 0.0
    assert no_think_equal("", asked("")) == 0.0


def test_accuracy_and_form_are_weighted() -> None:
    cases = {
        "<think>a</think><answer>b</answer>": 1.0,
        "<answer>b</answer>": 0.9,
        "<think>a</think><answer>c</answer>": 0.1,
        "<answer>c</answer>": 0.0,
    }
    for response, expected in cases.items():
        assert accuracy_and_format(response, asked("b")) == pytest.approx(expected)


def test_sentences_that_repeat() -> None:
    assert nonrepeat("A cup. Its handle. A lid.", asked()) == 1.0
    assert nonrepeat("A cup. Its handle. a  CUP!", asked()) == 0.0
    assert nonrepeat("cup cup cup handle", asked()) == 0.0
    assert nonrepeat(" p ", asked()) == nonrepeat("", asked()) == 0.0


def test_captions_average_both_overlaps() -> None:
    question = asked(caption="police killed the gunman")
    said = "police kill the gunman"
    bleu = (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25  # n-grams with 1 added from n = 2 on
    value = caption_overlap(f"<caption>{said}</caption>", question)
    assert value == pytest.approx((bleu + 0.75) / 2)
    assert caption_overlap(said, question) == 0.0


def test_checklists_are_compared_item_by_item() -> None:
    question = asked(checklist=["yes", "3", "red", "left"])

    def value(items: str) -> float:
        return perception_checklist(f"<checklist>{items}</checklist>", question)

    assert value('["Yes", 3, "red.", "left"]') == 1.0
    assert value('["3", "yes", "red", "right"]') == 0.25
    assert value('["yes", "3", "red"]') == value('["yes", "3", "red", "left", "up"]') == 0.0
    assert value("yes 3 red left") == 0.0


@pytest.mark.parametrize(
    ("scheme", "table"),
    [
        ("closed", {"rr": 1.0, "wr": 0.75, "rw": 0.25, "ww": 0.0}),
        ("srpo", {"rr": 0.75, "wr": 1.0, "rw": 0.25, "ww": 0.0}),
    ],
)
def test_worth_of_two_attempts(scheme, table: dict[str, float]) -> None:
    for (first, second), worth in table.items():
        response = attempts(first == "r", second == "r")
        question = asked("B", choices=["red", "blue"])
        assert reflection_transition(response, question, scheme=scheme) == worth
    assert reflection_transition("<answer>B</answer>" * 3, asked("B")) == 0.0
    assert reflection_transition("<answer>B</answer><answer>", asked("B")) == 0.0
    assert reflection_transition("", asked("B")) == 0.0


def test_reflection_length_falls_like_a_bell() -> None:
    first = "one two three <answer>A</answer>"  # 4 words
    for extra, expected in ((4, 1.0), (5, math.exp(-0.25)), (2, math.exp(-1.0))):
        rest = " ".join(f"w{i}" for i in range(extra - 1))
        value = reflection_length(f"{first} {rest} <answer>B</answer>", asked())
        assert value == pytest.approx(expected)
    assert reflection_length(first, asked()) == 0.0
    assert reflection_length("<answer>A</answer><answer>", asked()) == 0.0
    assert reflection_length("<answer> </answer> b c <answer>A</answer>", asked()) == 0.0


def test_log_scores_of_worked_confidences() -> None:
    def value(answer: str, confidence: str) -> float:
        response = f"<answer>{answer}</answer><confidence>{confidence}</confidence>"
        return calibration_log(response, asked("x"))

    assert value("x", "0.5") == pytest.approx(math.log(0.5))
    assert value("y", "0.25") == value("y", "25 %") == pytest.approx(math.log(0.75) - 1)
    assert value("x", "1") == value("x", "100%") == pytest.approx(math.log(0.99))
    assert value("y", "1") == value("x", "1.01") == pytest.approx(math.log(0.01) - 1)
    assert value("x", "0") == pytest.approx(math.log(0.01))
    assert value("x", "-0.5") == value("x", "0.5 or 0.9") == pytest.approx(math.log(0.01) - 1)


def test_tolerances_of_numbers_by_default() -> None:
    assert match("3.0000001", asked("3")) == numeric("3.0000009", asked("3")) == 1.0
    assert match("3.01", asked("3")) == numeric("3.01", asked("3")) == 0.0
    assert match("0", asked("0")) == 1.0 and match("0.001", asked("0")) == 0.0
    assert numeric("two", asked("2")) == 0.0


def test_overlong_starts_at_384_words_by_default() -> None:
    lengths = {384: 0.0, 448: -0.5, 512: -1.0}
    for length, expected in lengths.items():
        assert overlong("w " * length, asked()) == expected
    for margin in (0, 11):
        with pytest.raises(ValueError, match="must lie in"):
            overlong("w", asked(), margin=margin, max_length=10)
    assert ngram_repetition("a a", asked()) == 0.0
    assert ngram_repetition("a a a a", asked(), n=2) == pytest.approx(-2 / 3)


def test_a_score_of_one_half_counts_as_correct() -> None:
    texts = ["w " * 3, "w " * 9]
    scores = [0.5, 0.49]
    assert shortest_correct(texts, asked(), scores=scores) == [0.2, 0.0]
    assert dylr(texts, asked(), scores=scores) == [0.0, -0.5]
    right, wrong = cosine_length(texts, asked(), scores=scores, max_length=1000)
    assert right > 0.9 and wrong < -0.9


def test_rank_and_gap_of_worked_cosines() -> None:
    question = asked(positive="a b", negatives=["a", "c"])
    half = math.sqrt(0.5)  # cosine of "a" with the direction of "a b"

    def value(words: str) -> float:
        return embedding_rank_gap(words, question, embed=one_hot)

    assert value("a b") == pytest.approx(1 - half / 2)
    assert value("a") == pytest.approx((half - 1 / 2) / 2)  # the negative "a" comes first
    assert value("b") == pytest.approx(half)
    assert value("c") == value("") == 0.0


def test_silence_shares_no_words() -> None:
    for words in ([], ["a"]):
        assert bleu4([], words) == bleu4(words, []) == 0.0
        assert rouge_l([], words) == rouge_l(words, []) == 0.0
    assert bmas("", asked("a red cube")) == 0.0
    with pytest.raises(ValueError, match="no words"):
        bmas("a", asked("?!"))
