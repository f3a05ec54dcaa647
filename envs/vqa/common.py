"""What all question generators share: random streams, held-out content, and the controls of a test.

A generator is a pure function ``make_question(options, *, seed, split, draw=True) -> Question``.
Its random stream is seeded by SHA-256 of (task, options, split, seed), so a question is the same
in every process, on every machine and for every number of workers. Every question carries in
``data``

- ``key``: everything that the picture and the question are drawn from, as text: two questions with
  different keys differ in content, and the keys of the two splits never meet;
- ``reward``: the name of the reward that checks the answer.

``draw=False`` leaves the pictures out and changes nothing else: for statistics over many questions.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from embodied_rl.envs.vqa import answers
from embodied_rl.types import Question

Image = npt.NDArray[np.uint8]
Split = Literal["train", "heldout"]
T = TypeVar("T")


class MakeQuestion(Protocol):
    """A pure function of (options, split, seed)."""

    def __call__(self, options: Any, *, seed: int, split: Split, draw: bool = True) -> Question:
        """The question of ``seed`` in ``split``; without pictures where ``draw`` is False."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What comes back where a text is no final answer.

    Attributes:
        text: of the message, shown after its pictures.
        images: uint8 ``[height, width, 3]`` each.
        reward: of the turn that it replies to.
    """

    text: str
    images: tuple[Image, ...] = ()
    reward: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: how its questions are made, answered by reading the picture, and guessed at.

    Attributes:
        options: frozen dataclass of difficulty knobs; its defaults are the standard task.
        make_question: the generator.
        solve: an answer from the pictures alone, or None where only the bookkeeping knows it.
        guess: a random answer of the right form by one who knows the text alone.
        check: whether an answer is right (see `answers`); the success of an episode.
        reply: ``(question, texts)`` -> the reply to the last of the texts that a policy wrote in
            its turns, None where that is the final answer; a pure function that takes any text.
            None for tasks of one turn. Tasks of several have the reference texts of the turns
            before the answer in ``question.data["tool_turns"]``.
    """

    options: type[Any]
    make_question: MakeQuestion
    solve: Callable[[Question], str] | None
    guess: Callable[[Question, Random], str]
    check: Callable[[Question, str], bool] = answers.same_words
    reply: Callable[[Question, Sequence[str]], Reply | None] | None = None


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same in every process (Python's own is salted)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stream(task: str, options: object, *, seed: int, split: Split) -> Random:
    """The random stream of one question.

    Raises:
        ValueError: ``split`` is neither ``"train"`` nor ``"heldout"``.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}: choose 'train' or 'heldout'")
    return Random(stable_hash(f"{task}|{options!r}|{split}|{seed}"))


def held_out(key: str) -> bool:
    """Whether content with this key belongs to the held-out split: a fixed quarter of all keys."""
    return stable_hash(key) % 4 == 0


def draw_for_split(
    rng: Random, split: Split, draw: Callable[[Random], T], key: Callable[[T], str] = repr
) -> T:
    """Draw content until it lies on the side of ``split``."""
    for _ in range(1000):
        content = draw(rng)
        if held_out(key(content)) == (split == "heldout"):
            return content
    raise ValueError(f"these options leave no content for the {split} split: allow more variety")


def guess_candidate(question: Question, rng: Random) -> str:
    """One of the answers that the prompt allows, each equally likely."""
    return rng.choice(question.data["candidates"])


def one_of(candidates: Sequence[str]) -> str:
    """The last sentence of a prompt whose answer is one of ``candidates``."""
    return f"Answer with one of: {', '.join(candidates)}."


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise a ValueError that says which values of option ``name`` work."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}: choose a value from {low} to {high}")


def blank_image(question: Question) -> Question:
    """The question with every picture replaced by plain grey: what is left is the text prior."""
    return _with_pictures(question, question, lambda image: np.full_like(image, 128))


def _with_pictures(
    question: Question, source: Question, change: Callable[[Image], Image]
) -> Question:
    """``question`` with the changed pictures of ``source``, those that its tools show included."""
    data = dict(question.data)
    if "frames" in data:
        data["frames"] = tuple(map(change, source.data["frames"]))
    return replace(question, images=tuple(map(change, source.images)), data=data)


def shuffle_images(questions: Sequence[Question]) -> list[Question]:
    """Each question with the pictures of the next one: same statistics of pictures, wrong picture.

    Raises:
        ValueError: fewer than two questions, which cannot swap anything.
    """
    if len(questions) < 2:
        raise ValueError("shuffle_images needs at least two questions")
    following = [*questions[1:], questions[0]]
    pairs = zip(questions, following, strict=True)
    return [_with_pictures(question, other, lambda image: image) for question, other in pairs]


def without_image_answerable(
    seen: Sequence[Question],
    asked: Sequence[Question],
    *,
    feature: Callable[[Question], str] = lambda question: question.prompt,
) -> float:
    """Share of ``asked`` that a text-only predictor answers: the commonest answer in ``seen``.

    ``feature`` is what the predictor conditions on: the whole prompt, or a part of it where prompts
    hardly repeat. For a feature it has not seen it answers what is commonest of all.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall = Counter(question.answer for question in seen)
    for question in seen:
        counts[feature(question)][question.answer] += 1
    hits = sum(
        (counts.get(feature(question)) or overall).most_common(1)[0][0] == question.answer
        for question in asked
    )
    return hits / len(asked)
