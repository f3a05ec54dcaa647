"""Whether a response keeps its form: tagged blocks in order and nothing around them.

Systems 12 (observe/think/answer), 26 (think/look/answer), 33, 47, 64 (think/rethink/answer).
"""

from __future__ import annotations

from collections.abc import Sequence

from embodied_rl.rewards import parse
from embodied_rl.rewards.match import is_correct
from embodied_rl.types import Question


def format_tags(
    response: str, question: Question, *, tags: Sequence[str] = ("think", "answer")
) -> float:
    """1 if the response is exactly one block of each tag, in this order, none of them empty.

    The words of a block must not be those of the prompt, and no tag may occur inside another.
    """
    rest = response.strip()
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        content = parse.block(rest, tag)
        if content is None or not rest.startswith(opening):
            return 0.0
        said = content.strip()
        if not said or "<" + "/" in content or said == question.prompt.strip():
            return 0.0
        rest = rest[len(opening) + len(content) + len(closing) :].strip()
    return float(not rest)


def hard_format_result(
    response: str, question: Question, *, tags: Sequence[str] = ("think", "answer")
) -> float:
    """1 if both the form and the answer are right (Vision-R1, system 47)."""
    correct = is_correct(parse.answer_text(response), question)
    return float(correct and format_tags(response, question, tags=tags) == 1.0)


def accuracy_and_format(
    response: str,
    question: Question,
    *,
    accuracy_weight: float = 0.9,
    format_weight: float = 0.1,
    tags: Sequence[str] = ("think", "answer"),
) -> float:
    """``accuracy_weight`` * right + ``format_weight`` * form (system 8: .9, .1)."""
    correct = is_correct(parse.answer_text(response), question)
    form = format_tags(response, question, tags=tags)
    return accuracy_weight * correct + format_weight * form
