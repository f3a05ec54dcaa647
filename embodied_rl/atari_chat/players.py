"""Players that answer like a chat model: at random, by rules on the pictures, or a neural network.

``PLAYERS`` maps a name to ``make(game, seed) -> ChatModel``. The rules read the same pictures as a
model does; the ball and paddles of Pong and Breakout are found by their colours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from embodied_rl.atari_chat.protocol import SCREEN, ChatModel, Message
from embodied_rl.envs.atari import native_actions
from embodied_rl.envs.spaces import Array

PONG_COURT, PONG_BALL, PONG_PADDLE = slice(34, 194), (236, 236, 236), (92, 186, 92)
BREAKOUT_AIR, BREAKOUT_FLOOR, BREAKOUT_BALL = slice(93, 188), slice(189, 193), (200, 72, 72)
BREAKOUT_WALLS = (8, 151)


def random_player(game: str, seed: int) -> ChatModel:
    """Well-formed answers with uniformly random actions."""
    generator, count = np.random.default_rng(seed), len(native_actions(game))

    def answer(messages: Sequence[Message]) -> str:
        return _answer("a random action", int(generator.integers(count)))

    return answer


def scripted_player(game: str, seed: int) -> ChatModel:
    """Follows the ball; Pong and Breakout.

    Raises:
        ValueError: another game.
    """
    rules = {"pong": _follow_in_pong, "breakout": _follow_in_breakout}
    if game not in rules:
        raise ValueError(f"there is no scripted player of {game!r}: there is one of pong, breakout")
    names, rule = native_actions(game), rules[game]

    def answer(messages: Sequence[Message]) -> str:
        name, reasoning = rule(*_last_screens(messages))
        return _answer(reasoning, names.index(name))

    return answer


def tiny_player(game: str, seed: int) -> ChatModel:
    """A vision-language model of 100k random weights: what plugging in a real one takes."""
    from embodied_rl.atari_chat.models import tiny_model

    return tiny_model(seed)


def _answer(reasoning: str, action: int) -> str:
    return json.dumps({"reasoning": reasoning, "action": action})


def _last_screens(messages: Sequence[Message]) -> tuple[Array, Array]:
    """The two newest pictures, shrunk to the size of the screen [210, 160, 3]."""
    pictures = [part["image"] for part in messages[-1]["content"] if part["type"] == "image"]
    before, now = pictures[-2:] if len(pictures) > 1 else (pictures[-1], pictures[-1])
    return _shrink(before), _shrink(now)


def _shrink(picture: Array) -> Array:
    side = len(picture)
    # The last of the pixels that came from a pixel of the screen.
    rows, columns = (((np.arange(size) + 1) * side - 1) // size for size in SCREEN)
    return picture[rows][:, columns]


def _find(region: Array, colour: tuple[int, int, int]) -> tuple[float, float] | None:
    """Mean (row, column) of the pixels of ``colour`` in a region [h, w, 3]."""
    found = np.argwhere((region == colour).all(-1))
    return None if found.size == 0 else (float(found[:, 0].mean()), float(found[:, 1].mean()))


def _follow_in_pong(before: Array, now: Array) -> tuple[str, str]:
    ball, paddle = _find(now[PONG_COURT], PONG_BALL), _find(now[PONG_COURT], PONG_PADDLE)
    if ball is None or paddle is None:
        return "FIRE", "no ball in sight, so I serve"
    last = _find(before[PONG_COURT], PONG_BALL) or ball
    ahead = ball[0] + (ball[0] - last[0])  # where it will be when the paddle has moved
    if abs(ahead - paddle[0]) < 6:
        return "NOOP", "the paddle is level with the ball"
    if ahead < paddle[0]:
        return "RIGHT", "the ball is above the paddle"
    return "LEFT", "the ball is below the paddle"


def _follow_in_breakout(before: Array, now: Array) -> tuple[str, str]:
    ball = _find(now[BREAKOUT_AIR], BREAKOUT_BALL)
    left, right = BREAKOUT_WALLS
    paddle = _find(now[BREAKOUT_FLOOR, left : right + 1], BREAKOUT_BALL)
    if ball is None or paddle is None:
        return "FIRE", "no ball in sight, so I serve"
    last = _find(before[BREAKOUT_AIR], BREAKOUT_BALL) or ball
    fall, drift = ball[0] - last[0], ball[1] - last[1]
    target = ball[1]
    if fall > 0:
        remaining = BREAKOUT_FLOOR.start - BREAKOUT_AIR.start - ball[0]
        target = _reflect(ball[1] + drift * remaining / fall, left, right)
    offset = target - (paddle[1] + left)
    if abs(offset) < 5:
        return "NOOP", "the paddle is where the ball will land"
    if offset > 0:
        return "RIGHT", "the ball will land to the right"
    return "LEFT", "the ball will land to the left"


def _reflect(position: float, low: float, high: float) -> float:
    """Where a ball that bounces off both walls is, if it would be at ``position`` without them."""
    width = high - low
    folded = (position - low) % (2 * width)
    return low + min(folded, 2 * width - folded)


PLAYERS: dict[str, Callable[[str, int], ChatModel]] = {
    "random": random_player,
    "scripted": scripted_player,
    "tiny": tiny_player,
}
