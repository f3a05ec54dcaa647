"""The driver: weighted sums, routing by task, groups, and failures that are counted."""

import math

import pytest

from embodied_rl.rewards.base import SetupError, library
from embodied_rl.rewards.score import GroupTerm, Term, score
from embodied_rl.types import Question


def asked(task: str = "a", answer: str = "x") -> Question:
    return Question(task=task, prompt="p", answer=answer)


def length(response: str, question: Question, *, scale: float = 1.0) -> float:
    return scale * len(response)


def one(response: str, question: Question) -> float:
    return 1.0


def broken(response: str, question: Question) -> float:
    if response == "nan":
        return math.nan
    if response == "inf":
        return math.inf
    if response == "raise":
        raise KeyError("box")
    return 1.0


def minus_best(responses, question, *, scores):
    return [s - max(scores) for s in scores]


def test_terms_are_weighted_and_summed_with_their_options() -> None:
    terms = [
        Term(name="length", reward=length, weight=2.0, options={"scale": 10.0}),
        Term(name="one", reward=one, weight=-0.5),
    ]
    result = score(terms, ["a", "bbb"], [asked()] * 2, [0, 0])
    assert result.values.tolist() == [19.5, 59.5]
    assert result.terms["length"].tolist() == [10.0, 30.0]
    assert result.failures == {"length": 0, "one": 0}


def test_each_task_has_its_own_terms() -> None:
    terms = [
        Term(name="length", reward=length, tasks=frozenset({"a"})),
        Term(name="one", reward=one, tasks=frozenset({"b"})),
    ]
    result = score(terms, ["xyz", "xyz"], [asked("a"), asked("b")], [0, 1])
    assert result.values.tolist() == [3.0, 1.0]
    assert result.applies["one"].tolist() == [False, True]
    with pytest.raises(ValueError, match="no reward term applies to task 'c'"):
        score(terms, ["x"], [asked("c")], [0])


def test_what_raises_or_is_not_finite_scores_0_and_is_counted() -> None:
    terms = [Term(name="broken", reward=broken), Term(name="one", reward=one)]
    responses = ["fine", "raise", "nan", "inf"]
    result = score(terms, responses, [asked()] * 4, [0] * 4)
    assert result.values.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert result.failures == {"broken": 3, "one": 0}
    assert result.first_failures == {"broken": "KeyError: 'box'"}


def test_groups_are_seen_whole_even_when_interleaved() -> None:
    terms = [
        Term(name="length", reward=length),
        GroupTerm(name="gap", reward=minus_best, weight=10.0),
    ]
    result = score(terms, ["a", "bb", "ccc", "dddd"], [asked()] * 4, [7, 3, 7, 3])
    assert result.terms["gap"].tolist() == [-2.0, -2.0, 0.0, 0.0]
    assert result.values.tolist() == [-19.0, -18.0, 3.0, 4.0]


def test_group_scores_come_from_the_named_term() -> None:
    terms = [
        Term(name="length", reward=length),
        Term(name="one", reward=one),
        GroupTerm(name="gap", reward=minus_best, scores_from="one"),
    ]
    assert score(terms, ["a", "bb"], [asked()] * 2, [0, 0]).terms["gap"].tolist() == [0.0, 0.0]


def test_a_failing_group_is_counted_per_response() -> None:
    def short(responses, question, *, scores):
        return [0.0]

    terms = [Term(name="one", reward=one), GroupTerm(name="short", reward=short)]
    result = score(terms, ["a", "b", "c"], [asked()] * 3, [0, 0, 0])
    assert result.failures["short"] == 3 and "1 values for 3" in result.first_failures["short"]


def test_a_missing_library_stops_the_run_with_one_sentence() -> None:
    def needs(response: str, question: Question) -> float:
        return library("no_such_library.part", extra="vqa").x

    with pytest.raises(SetupError, match=r"needs no_such_library: pip install 'embodied-rl\[vqa"):
        score([Term(name="needs", reward=needs)], ["a"], [asked()], [0])


@pytest.mark.parametrize(
    ("terms", "responses", "groups", "message"),
    [
        ([Term(name="a", reward=one)], ["x"], [0, 1], "one question and one group id"),
        ([Term(name="a", reward=one)] * 2, ["x"], [0], "different names"),
        (
            [Term(name="a", reward=one), GroupTerm(name="g", reward=minus_best, scores_from="b")],
            ["x"],
            [0],
            "scores_from='b'",
        ),
    ],
)
def test_mistakes_are_named(terms, responses, groups, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(terms, responses, [asked()] * len(responses), groups)
