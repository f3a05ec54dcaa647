"""The ``embodied-rl`` command. Nothing heavy is imported before a command is chosen."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "run a recipe, or continue a run: train metaworld/pick_place_flow_sde",
    "eval": "success rate of a run on held-out episodes, with a 95 %% interval",
    "check-env": "what an environment of your own lacks: check-env ID|module:attr",
    "collect": "write expert or policy episodes as a LeRobotDataset v3.0 folder",
    "demo": "the main job: imitate 10 episodes, improve by RL, compare, in five minutes",
    "build-vlm": "a real small vision-language model from registry packages: build-vlm FOLDER",
    "list": "names of envs, policies, algorithms, advantages, losses, rewards, samplers, recipes",
    "explain": "what a recipe resolves to: samples, gradient steps, memory",
    "plot": "curves of one or more run folders",
    "report": "write report.html of a run folder",
    "doctor": "what this machine can run, and how to mend what it cannot",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status.

    Every foreseeable mistake ends with one sentence on stderr and status 1 (2 for a wrong command
    line, 130 for Ctrl-C); anything else is a bug and shows its traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Two thread pools on the same cores slow each other down many times over.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle ones leave the core to simulators
    parser = argparse.ArgumentParser(
        prog="embodied-rl", description="Reinforcement learning for policies that act."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    known, rest = parser.parse_known_args(arguments[:1])
    if known.version:
        from embodied_rl import __version__

        print(__version__)
        return 0
    if known.command is None:
        parser.print_help()
        return 0 if arguments[:1] == [] else 2
    from embodied_rl import commands as implementation

    try:
        return implementation.run(known.command, [*rest, *arguments[1:]])
    except BrokenPipeError:  # the reader, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
