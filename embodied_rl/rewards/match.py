"""Answers that are right or wrong: choices, labels, numbers.

``is_correct`` decides by what the question offers: a choice where ``data["choices"]`` lists the
options (Mixed-R1, system 67), a number where the reference is one, else the same words. ``choices``
are texts lettered A, B, C ... in order; the reference is a letter or the text of one.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from embodied_rl.rewards import parse
from embodied_rl.types import Question

LEAD_INS = ("the answer is", "the final answer is", "answer:", "answer is", "final answer:")


def normalize(text: str) -> str:
    """Lower case, single spaces, no lead-in such as "the answer is", no outer punctuation."""
    words = " ".join(text.casefold().split())
    for lead in LEAD_INS:
        words = words.removeprefix(lead)
    return words.strip(string.whitespace + ".,:;!?\"'`*$")


def choice_index(text: str, choices: Sequence[str]) -> int | None:
    """Which choice a text names: its letter, its wording, or the two together and agreeing.

    ``B``, ``(B)``, ``b.``, ``blue``, ``B. blue`` and ``The answer is B`` name the second of
    (red, blue); ``A or B`` and ``A. blue`` name none.
    """
    said = normalize(text)
    wordings = [normalize(choice) for choice in choices]
    letters = string.ascii_lowercase[: len(choices)]
    for index, (letter, wording) in enumerate(zip(letters, wordings, strict=True)):
        forms = {letter, f"({letter})", f"{letter})", wording}
        forms |= {f"{head} {wording}" for head in (f"{letter}.", f"({letter})", f"{letter})")}
        forms |= {f"{letter}: {wording}", f"{letter}, {wording}"}
        if said in forms:
            return index
    return None


def is_correct(answer: str | None, question: Question) -> bool:
    """Whether an extracted answer agrees with ``question.answer``; None never does.

    Raises:
        ValueError: the reference is empty or none of the choices.
    """
    if not question.answer.strip():
        raise ValueError(f"task {question.task!r} has an empty reference answer")
    if answer is None:
        return False
    choices = question.data.get("choices")
    if choices is not None:
        right = choice_index(question.answer, choices)
        if right is None:
            raise ValueError(f"the reference {question.answer!r} is none of the choices {choices}")
        return choice_index(answer, choices) == right
    reference = _as_number(question.answer)
    if reference is not None:
        said = parse.only_number(answer)
        return said is not None and math.isclose(said, reference, rel_tol=1e-6, abs_tol=1e-9)
    return normalize(answer) == normalize(question.answer)


def _as_number(text: str) -> float | None:
    try:
        number = float(text.strip().rstrip("%").replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def match(response: str, question: Question) -> float:
    """1 if the one answer is right: a choice, a number or the same words (system 67)."""
    return float(is_correct(parse.answer_text(response), question))


def exact_label(response: str, question: Question) -> float:
    """1 if the answer is the label in the same words, case and spaces apart (CLS-RL, system 24)."""
    answer = parse.answer_text(response)
    return float(answer is not None and normalize(answer) == normalize(question.answer))


def no_think_equal(response: str, question: Question) -> float:
    """1 if the whole response is the label, character for character (No-Thinking-CLS-RL, 24)."""
    return float(response.strip() == question.answer.strip() != "")


def numeric(
    response: str,
    question: Question,
    *,
    relative: float = 0.0,
    absolute: float = 1e-6,
    last: bool = False,
) -> float:
    """1 if the number of the answer is within ``max(relative * |reference|, absolute)``.

    Args:
        response: holds exactly one number in its answer.
        question: ``answer`` is a number.
        relative: share of the reference.
        absolute: in the reference's unit.
        last: take the last of several numbers, as GSM8K does; enumeration then may hit.

    Raises:
        ValueError: the reference is no number.
    """
    reference = _as_number(question.answer)
    if reference is None:
        raise ValueError(f"the reference {question.answer!r} is no number; use the reward 'match'")
    answer = parse.answer_text(response) or ""
    said = parse.last_number(answer) if last else parse.only_number(answer)
    if said is None:
        return 0.0
    return float(abs(said - reference) <= max(relative * abs(reference), absolute))


def chart_relaxed(response: str, question: Question, *, relative: float = 0.05) -> float:
    """ChartQA's relaxed accuracy: numbers within 5 %, words equal (systems 67 and 32)."""
    if _as_number(question.answer) is None:
        return exact_label(response, question)
    return numeric(response, question, relative=relative)
