"""Scores of players on games, normalised, as a table.

    normalised = (score - random) / (human - random)

``random`` is the mean of random plays under the same protocol, on other seeds than those of the
table's own random player, so that its row is 0 within its interval; ``human`` is the published
score of whole games (``envs/atari_scores.py``), which 1,000 steps need not allow to reach.
Intervals: 95 % bootstrap over plays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embodied_rl.atari_chat.players import PLAYERS
from embodied_rl.atari_chat.protocol import STANDARD, ChatProtocol, Play, play
from embodied_rl.envs.atari_scores import ATARI_57
from embodied_rl.registry import near_names
from embodied_rl.seeding import derive_seed
from embodied_rl.statistics import bootstrap_interval
from embodied_rl.video import write_video


@dataclass(frozen=True, kw_only=True)
class Row:
    """One player on one game.

    Attributes:
        game, player: names.
        scores: of its plays.
        answers, malformed: counts over all plays.
        normalized: mean normalised score, and
        low, high: its interval; NaN where no human score is published.
    """

    game: str
    player: str
    scores: tuple[float, ...]
    answers: int
    malformed: int
    normalized: float
    low: float
    high: float


def tabulate(
    games: Sequence[str],
    players: Sequence[str],
    *,
    plays: int,
    seed: int,
    protocol: ChatProtocol = STANDARD,
    videos: Path | None = None,
    on_play: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Play every game with every player.

    Args:
        games: of ``embodied_rl.envs.atari_games.GAMES``.
        players: of ``PLAYERS``.
        plays: per player and game, each with its own seed, the same for all players.
        seed: root of these seeds.
        protocol: how it is played.
        videos: folder for a film of each player's first play.
        on_play: called with a line of text before every play.

    Raises:
        ValueError: an unknown player, or no plays.
    """
    for name in players:
        if name not in PLAYERS:
            raise ValueError(
                f"there is no player {name!r}{near_names(name, PLAYERS)} ({', '.join(PLAYERS)})"
            )
    if plays < 1:
        raise ValueError(f"plays={plays}: give at least 1")
    rows = []
    for game in games:
        reference = _plays(game, "random", "reference", plays, seed, protocol, None, on_play)
        floor = float(np.mean([one.score for one in reference]))
        for player in players:
            film = None if videos is None else videos / f"{game}-{player}.mp4"
            done = _plays(game, player, "table", plays, seed, protocol, film, on_play)
            rows.append(_row(game, player, done, floor))
    return rows


def _plays(
    game: str,
    player: str,
    stream: str,
    plays: int,
    seed: int,
    protocol: ChatProtocol,
    film: Path | None,
    on_play: Callable[[str], None],
) -> list[Play]:
    done = []
    for index in range(plays):
        on_play(f"{game}: {player} ({stream}), play {index + 1} of {plays}")
        own = derive_seed(seed, stream, game, index)
        one = play(
            game,
            PLAYERS[player](game, own),
            seed=own,
            protocol=protocol,
            film=film is not None and index == 0,
        )
        if one.frames and film is not None:
            write_video(film, enlarge_frames(one.frames), captions=one.captions, fps=15)
            one.frames, one.captions = [], []
        done.append(one)
    return done


def enlarge_frames(frames: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Screens at twice their height and four times their width: Atari pixels are wide."""
    return [frame.repeat(2, axis=0).repeat(4, axis=1) for frame in frames]


def _row(game: str, player: str, plays: Sequence[Play], floor: float) -> Row:
    scores = tuple(one.score for one in plays)
    human = ATARI_57[game][1] if game in ATARI_57 else float("nan")
    normalized = (np.array(scores) - floor) / (human - floor)
    low, high = bootstrap_interval(normalized)
    return Row(
        game=game,
        player=player,
        scores=scores,
        answers=sum(one.answers for one in plays),
        malformed=sum(one.malformed for one in plays),
        normalized=float(normalized.mean()),
        low=low,
        high=high,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    lines = [
        "| game | player | plays | score | normalised [95 %] | malformed answers |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = f"{row.normalized:.3f} [{row.low:.3f}, {row.high:.3f}]"
        lines.append(
            f"| {row.game} | {row.player} | {len(row.scores)} | {np.mean(row.scores):.1f} | "
            f"{interval if np.isfinite(row.normalized) else 'no human score'} | "
            f"{row.malformed}/{row.answers} |"
        )
    return "\n".join(lines)
