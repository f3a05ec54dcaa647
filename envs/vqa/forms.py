"""How a question is put and how its answer is written, for every task.

Prompts: ``full``, or ``brief``, the few words in ``data["brief"]`` for models that learn the task
by imitation and need not be told its form.

Forms of the answer, with the reference answer that imitation learns:

- ``plain``: the answer alone;
- ``think``: ``<think>what is seen</think><answer>...</answer>``, with ``data["thought"]``;
- ``reflect``: ``<answer>first</answer> yes|no <answer>last</answer>`` (system 56, SRPO). The first
  attempt of the reference is right or a guess, equally often; the last one is right.

What is judged is the one answer after the thinking, or the last of two attempts.
``Question.answer`` stays the answer alone, ``data["reference"]`` is the whole text.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Literal

from embodied_rl.envs.vqa.common import Split, Task, stable_hash
from embodied_rl.rewards import parse
from embodied_rl.types import Question

Prompt = Literal["full", "brief"]
Form = Literal["plain", "think", "reflect"]
PROMPTS = ("full", "brief")
ASKED: dict[str, str] = {
    "plain": "",
    "think": " Say what you see in <think></think>, then the answer in <answer></answer>.",
    "reflect": " Answer in <answer></answer>, say whether it is right, yes or no, and answer again "
    "in <answer></answer>.",
}
"""What the full prompt adds for each form."""


def shaped(task: Task, *, prompt: Prompt = "full", form: Form = "plain") -> Task:
    """``task`` with its questions put and answered like this; ``solve`` and ``guess`` stay plain.

    Raises:
        ValueError: unknown prompt or form. A question of a task that has no brief prompt, or no
            thought to be said, raises too.
    """
    if prompt not in PROMPTS or form not in ASKED:
        raise ValueError(
            f"prompt={prompt!r}, answer_form={form!r}: give one of {', '.join(PROMPTS)} and one of "
            f"{', '.join(ASKED)}"
        )
    if prompt == "full" and form == "plain":
        return task

    def make_question(options: object, *, seed: int, split: Split, draw: bool = True) -> Question:
        question = task.make_question(options, seed=seed, split=split, draw=draw)
        text = _of(question, "brief") if prompt == "brief" else question.prompt + ASKED[form]
        whole = {"reference": reference(task, question, form)}
        return replace(question, prompt=text, data={**question.data, **whole})

    def check(question: Question, text: str) -> bool:
        last = last_answer(text, form)
        return last is not None and task.check(question, last)

    return replace(task, make_question=make_question, check=check)


def reference(task: Task, question: Question, form: Form) -> str:
    """The reference answer in this form."""
    right = question.answer
    if form == "think":
        return f"<think>{_of(question, 'thought')}</think><answer>{right}</answer>"
    if form == "reflect":
        rng = Random(stable_hash(f"reflect|{question.data['key']}"))
        first = right if rng.random() < 0.5 else task.guess(question, rng)
        word = "yes" if first == right else "no"
        return f"<answer>{first}</answer> {word} <answer>{right}</answer>"
    return right


def attempts(text: str) -> list[str]:
    """Every ``<answer>`` in order, stripped; none where the tags do not pair up."""
    return [part.strip() for part in parse.blocks(text, "answer") or ()]


def last_answer(text: str, form: Form) -> str | None:
    """The answer that counts, None if there is none or more than the form has."""
    if form == "plain":
        return text
    if form == "think":
        return parse.answer_text(text)
    said = attempts(text)
    return said[-1] if 1 <= len(said) <= 2 else None


def _of(question: Question, key: str) -> str:
    if key not in question.data:
        raise ValueError(
            f"task {question.task!r} has no data[{key!r}]: use "
            + ("prompt='full'" if key == "brief" else "another answer_form than 'think'")
        )
    return question.data[key]
