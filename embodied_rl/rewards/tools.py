"""Answers that were found with tools (DeepSport, system 54).

A response is everything that the model wrote in one conversation, its turns one after the other
without what the tools replied (texts before the last one may be in ``data["turns"]`` instead, where
the environment ``vqa`` puts them):

    (<think>...</think> <tool_call>{"name": ..., "arguments": {...}}</tool_call>)*
    <think>...</think> <answer>...</answer>
"""

from __future__ import annotations

import json

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import Reward, clamp
from embodied_rl.rewards.match import match
from embodied_rl.types import Question

TAGS = ("think", "tool_call", "answer")
TOOL_SHARE, ATTEMPT_BONUS, FORM_PENALTY = 0.5, 0.03, 0.05
"""Of the paper; right from an accuracy of 0.5 on."""


def tool_calls(response: str, *, max_calls: int) -> list[str] | None:
    """The calls of a well-formed conversation as canonical JSON, in order; None for another one.

    Not well-formed: text outside the blocks, an empty thought or answer, blocks in another order,
    a call that is no JSON object with a name and arguments, two equal calls, too many of them.
    """
    turns = _turns(response)
    if turns is None or len(turns) % 2:
        return None
    names, contents = [name for name, _ in turns], [content for _, content in turns]
    if names != [*["think", "tool_call"] * (len(turns) // 2 - 1), "think", "answer"]:
        return None
    calls = [_canonical(content) for content in contents[1:-2:2]]
    said = {call for call in calls if call is not None}
    if len(said) < len(calls) or len(calls) > max_calls or not all(contents):
        return None
    return [call for call in calls if call is not None]


def _turns(response: str) -> list[tuple[str, str]] | None:
    """(tag, stripped content) of every block, None where there is anything but blocks."""
    turns, rest = [], response.strip()
    while rest:
        name = next((tag for tag in TAGS if rest.startswith(f"<{tag}>")), None)
        if name is None:
            return None
        content, closing, rest = rest[len(name) + 2 :].partition(f"</{name}>")
        if not closing or any(f"<{tag}>" in content for tag in TAGS):
            return None
        turns.append((name, content.strip()))
        rest = rest.lstrip()
    return turns


def _canonical(text: str) -> str | None:
    call = parse.json_value(text)
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        return None
    if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
        return None
    return json.dumps(call, sort_keys=True)


def gated_tool_use(
    response: str, question: Question, *, accuracy: Reward = match, max_calls: int = 8
) -> float:
    """Form g, accuracy a, tool bonus t in one: g (a + t) - 0.05 (1 - g); range [-0.05, 1.5].

    t is 0.5 a where a tool was called and a >= 0.5, 0.03 where one was called and a < 0.5, else 0.
    A repeated call spoils the form, as in the paper, and so do more than ``max_calls`` of them:
    calling everything must not be worth as much as calling what is needed.

    Args:
        response: the model's turns, or the last one of them; see the module.
        question: what ``accuracy`` needs; ``data["turns"]``, earlier texts.
        accuracy: a reward in [0, 1] of the last turn.
        max_calls: ours.
    """
    whole = "".join([*question.data.get("turns", ()), response])
    calls = tool_calls(whole, max_calls=max_calls)
    if calls is None:
        return -FORM_PENALTY
    right = clamp(accuracy(response, question))
    if not calls:
        return right
    return right + (TOOL_SHARE * right if right >= 0.5 else ATTEMPT_BONUS)
