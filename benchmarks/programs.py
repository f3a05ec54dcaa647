"""Processor time of programs that rewards run, in new interpreters and in forks of warm processes.

    python -m benchmarks.programs                  # charts and, where CadQuery is installed, solids

User and system time of this process and of all that it started, per program of the tasks
``chart_to_code`` and ``cad_code``; what a warm process takes to start is a row of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os

from embodied_rl.envs.vqa import load_task
from embodied_rl.rewards import chart, solid, warm
from embodied_rl.rewards.execute import Limits, run_codes

KINDS = (
    ("chart_to_code", "matplotlib", chart.KEEP_FIGURES, chart.READ_FIGURE, chart.LIMITS),
    ("cad_code", "cadquery", "", solid.WRITE_MESH, solid.LIMITS),
)


def codes_of(task: str, number: int) -> list[str]:
    """Reference programs of a task with the options it has by default."""
    loaded = load_task(task)
    make = loaded.make_question
    return [
        make(loaded.options(), seed=seed, split="train", draw=False).answer
        for seed in range(number)
    ]


def seconds(codes: list[str], *, after: str, limits: Limits, library: str) -> float:
    """Processor time of running ``codes``, from before a warm process starts to its end."""
    before = sum(os.times()[:4])
    done = run_codes(codes, after=after, limits=limits, library=library)
    assert all(execution.ok for execution in done), next(e for e in done if not e.ok)
    warm.close_all()
    return sum(os.times()[:4]) - before


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cold", type=int, default=10, help="programs in new interpreters")
    parser.add_argument("--warm", type=int, default=200, help="programs in forks")
    options = parser.parse_args()
    for task, library, before, after, limits in KINDS:
        if importlib.util.find_spec(library) is None:
            print(f"{task}: {library} is not installed")
            continue
        codes = [before + code for code in codes_of(task, options.warm)]
        cold = seconds(codes[: options.cold], after=after, limits=limits, library="")
        start = seconds([], after=after, limits=limits, library=library)
        forks = seconds(codes, after=after, limits=limits, library=library) - start
        each, fork = cold / options.cold, forks / options.warm
        print(
            f"{task}: new interpreter {each:.3f} s, fork {fork:.3f} s ({each / fork:.0f} times "
            f"less), start of the warm process {start:.2f} s"
        )


if __name__ == "__main__":
    main()
