"""The protocol: what a chat model sees of a game, what its answer means, and 1,000 steps of it.

Every ``act_every``-th step the model gets the last ``context`` screens as pictures and answers with
one JSON object ``{"reasoning": text, "action": index}``; the steps between are NOOP. An answer that
is anything else is counted as malformed and played as NOOP. A game that is over begins again; the
score is the sum of all rewards.

After Atari-GPT (arXiv 2408.15950): 1,000 steps, an action every second step, 512x512 pictures, four
of them. A step is ``frame_skip`` frames with sticky actions, as in the environments of ALE v5.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from embodied_rl.envs.atari import make as make_atari
from embodied_rl.envs.atari import native_actions
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.spaces import Array

Message: TypeAlias = dict[str, Any]
"""``{"role": "system" | "user", "content": parts}``; a part is ``{"type": "text", "text": str}`` or
``{"type": "image", "image": uint8 [side, side, 3]}``, as chat templates of transformers take it."""

ChatModel: TypeAlias = Callable[[Sequence[Message]], str]
"""Anything that answers a conversation with a text."""

SCREEN = (210, 160)
"""Height and width of the screen that is shown and filmed."""


@dataclass(frozen=True, kw_only=True)
class ChatProtocol:
    """The numbers of the protocol.

    Attributes:
        steps: of the environment, per play.
        act_every: the model chooses the first of this many steps, the others are NOOP.
        context: screens that the model sees, oldest first.
        side: of the square pictures, in pixels.
        frame_skip: frames per step.
        sticky_actions: probability that a frame repeats the action before it.
    """

    steps: int = 1000
    act_every: int = 2
    context: int = 4
    side: int = 512
    frame_skip: int = 4
    sticky_actions: float = 0.25


STANDARD = ChatProtocol()


@dataclass(kw_only=True)
class Play:
    """What came out of one play.

    Attributes:
        score: sum of rewards.
        answers: how often the model was asked.
        malformed: how many of its answers could not be played.
        games: games that ended.
        frames: screens [210, 160, 3], if filmed.
        captions: one text per frame.
    """

    score: float = 0.0
    answers: int = 0
    malformed: int = 0
    games: int = 0
    frames: list[Array] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


def play(
    game: str,
    model: ChatModel,
    *,
    seed: int,
    protocol: ChatProtocol = STANDARD,
    film: bool = False,
) -> Play:
    """Let ``model`` play ``protocol.steps`` steps.

    Args:
        game: one of ``embodied_rl.envs.atari_games.GAMES``.
        model: asked every ``act_every`` steps.
        seed: of the console.
        protocol: how it is asked.
        film: keep every screen with its caption.
    """
    env = _make_env(game, seed, protocol)
    names = native_actions(game)
    system = system_message(env.instructions[0], names)
    screen = _screen(env.reset()[0])
    pictures = deque([enlarge(screen, side=protocol.side)] * protocol.context, protocol.context)
    result, noop, reasoning = Play(), names.index("NOOP"), ""
    for step in range(protocol.steps):
        action = noop
        if step % protocol.act_every == 0:
            answer = model([system, user_message(pictures)])
            chosen, reasoning = parse_answer(answer, num_actions=len(names))
            result.answers += 1
            result.malformed += chosen is None
            action = noop if chosen is None else chosen
        obs, rewards, _, _, info = env.step(torch.tensor([action]))
        screen = _screen(obs)
        pictures.append(enlarge(screen, side=protocol.side))
        result.score += float(rewards[0])
        result.games += int(info["_episode"][0])
        if film:
            result.frames.append(screen)
            result.captions.append(
                f"{env.instructions[0]}\nstep {step + 1}   {names[action]}   "
                f"reward {float(rewards[0]):g}   score {result.score:g}   "
                f"malformed {result.malformed}/{result.answers}\n{reasoning}"
            )
    env.close()
    return result


def _make_env(game: str, seed: int, protocol: ChatProtocol) -> SimulatorVectorEnv:
    return make_atari(
        game=game,
        num_envs=1,
        seed=seed,
        frame_skip=protocol.frame_skip,
        frame_stack=1,
        image_size=SCREEN,
        grayscale=False,
        fire_reset=False,
        sticky_actions=protocol.sticky_actions,
    )


def system_message(instruction: str, action_names: Sequence[str]) -> Message:
    """The task, the actions by index, and the form of the answer."""
    actions = "\n".join(f"{index}: {name}" for index, name in enumerate(action_names))
    text = (
        f"You play an Atari 2600 game: {instruction}. You see the last screens, the newest last.\n"
        f"Actions:\n{actions}\n"
        'Answer with one JSON object and nothing else: {"reasoning": "<one sentence>", '
        '"action": <index of an action>}'
    )
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def user_message(pictures: Iterable[Array]) -> Message:
    """The last pictures [side, side, 3], and the question."""
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": "Your action?"}]}


def enlarge(screen: Array, *, side: int) -> Array:
    """A screen [H, W, 3] at [side, side, 3], every pixel its nearest one."""
    height, width = screen.shape[:2]
    rows, columns = np.arange(side) * height // side, np.arange(side) * width // side
    return screen[rows][:, columns]


def parse_answer(text: str, *, num_actions: int) -> tuple[int | None, str]:
    """(index of the action or None, reasoning) of an answer.

    The object may stand in other text, e.g. in a code fence. It has to have a text ``reasoning``
    and an integer ``action`` from 0 to ``num_actions`` - 1, else the answer is malformed: None.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        answer = json.loads(text[start : end + 1])
    except ValueError:  # also where there are no braces
        return None, ""
    if not isinstance(answer, dict) or not isinstance(answer.get("reasoning"), str):
        return None, ""
    action = answer.get("action")
    valid = type(action) is int and 0 <= action < num_actions
    return (action if valid else None), answer["reasoning"]


def _screen(obs: dict[str, torch.Tensor]) -> Array:
    """[H, W, 3] of an observation [1, 3, H, W]."""
    return obs["image"][0].permute(1, 2, 0).contiguous().numpy()
