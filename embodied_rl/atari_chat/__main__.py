"""``python -m embodied_rl.atari_chat``: play, print the table, write films."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from embodied_rl.atari_chat.players import PLAYERS
from embodied_rl.atari_chat.protocol import ChatProtocol
from embodied_rl.atari_chat.table import markdown, tabulate
from embodied_rl.video import VideoError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m embodied_rl.atari_chat",
        description="Scores of chat-style players on Atari games: 1,000 steps, JSON answers.",
    )
    parser.add_argument("--games", nargs="+", default=["pong", "breakout"])
    parser.add_argument(
        "--players", nargs="+", default=["random", "scripted"], help=f"of {', '.join(PLAYERS)}"
    )
    parser.add_argument("--plays", type=int, default=5, help="per player and game (default 5)")
    parser.add_argument("--steps", type=int, default=1000, help="per play (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/atari_chat"), help="folder of table and films"
    )
    parser.add_argument("--no-video", action="store_true")
    options = parser.parse_args(arguments)
    try:
        rows = tabulate(
            options.games,
            options.players,
            plays=options.plays,
            seed=options.seed,
            protocol=ChatProtocol(steps=options.steps),
            videos=None if options.no_video else options.output,
            on_play=lambda line: print(line, file=sys.stderr),
        )
    except (ValueError, VideoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = markdown(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "scores.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
