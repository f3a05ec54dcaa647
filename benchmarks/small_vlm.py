"""Speed, memory and rounding of a real small vision-language model on one thread of a CPU.

    embodied-rl build-vlm small_vlm
    python -m benchmarks.small_vlm small_vlm            # both tables of docs/vlm.md

Speed. The policy has adapters of rank 16. It answers 4 prompts (a picture of ``shapes_vqa`` to be
described, or a question about it) 8 times each with up to 16 tokens, then scores these answers with
and without gradient: medians of processor seconds over the rounds, after one that does not count.
Scored tokens are those of prompts and answers. Every precision has a process of its own, whose peak
of resident memory (VmHWM) is read after the rounds.

Rounding. 12 prompts are answered 8 times by the ``bfloat16`` model. The log-probabilities (nats) of
the tokens, as sampled s and as scored again r, are compared with those t of a float32 model that
has the same weights, and r with r', scored prompt by prompt: the same function of the same numbers
in matrices of other shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embodied_rl import small_vlm
from embodied_rl.types import Question, TensorDict

PROMPTS, GROUP, ROUNDING_PROMPTS = 4, 8, 12
DTYPES = ("float32", "bfloat16")
CLIP = 0.2
"""Of ratios, as in recipes: log(1 + CLIP) nats of difference alone would clip a token."""
PRECISIONS = "| difference | root mean square | largest | tokens over log 1.2 |\n|---|---|---|---|"
SPEEDS = (
    "| `dtype` | sampling | scoring without gradient | scoring and gradient | peak memory |\n"
    "|---|---|---|---|---|"
)


def conversations(count: int) -> TensorDict:
    """``count`` different prompts, each ``GROUP`` times; every other one asks for a description."""
    config = small_vlm.ProjectorConfig(batch_size=count)
    questions: list[Question] = small_vlm.draw_questions(config, 0)
    asked = [replace(q, prompt=small_vlm.DESCRIBE) if i % 2 else q for i, q in enumerate(questions)]
    obs = small_vlm.observations(asked)
    return {name: value.repeat_interleave(GROUP, 0) for name, value in obs.items()}


def make_policy(folder: str, *, dtype: str) -> Any:
    """The model with adapters, answering in up to 16 tokens."""
    return small_vlm.make_policy(folder, dtype=dtype, lora_rank=16, max_new_tokens=16)


def measure(folder: str, *, dtype: str, rounds: int) -> dict[str, float]:
    """Answers and tokens per processor second of the three stages, and peak memory in MiB."""
    policy, obs = make_policy(folder, dtype=dtype), conversations(PROMPTS)
    read = int(policy.reader(obs).mask.sum())
    seconds: dict[str, list[float]] = {"sampling": [], "scoring": [], "gradient": []}
    tokens: dict[str, list[int]] = {name: [] for name in seconds}
    for number in range(rounds + 1):
        generator = torch.Generator().manual_seed(number)
        spent, out = clocked(lambda g=generator: policy.sample(obs, generator=g))
        new = int(out.replay["num_tokens"].sum())
        stages = {
            "sampling": spent,
            "scoring": clocked(lambda o=out: without_gradient(policy, obs, o))[0],
            "gradient": clocked(lambda o=out: with_gradient(policy, obs, o))[0],
        }
        for name, value in stages.items():
            seconds[name].append(value)
            tokens[name].append(new if name == "sampling" else read + new)
    figures = {"peak": peak_memory()}
    for name, values in seconds.items():
        figures[f"{name}_answers"] = PROMPTS * GROUP / statistics.median(values[1:])
        rates = [n / s for n, s in zip(tokens[name][1:], values[1:], strict=True)]
        figures[f"{name}_tokens"] = statistics.median(rates)
    return figures


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """(processor seconds, result)."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


@torch.no_grad()
def without_gradient(policy: Any, obs: TensorDict, output: Any) -> Tensor:
    """Log-probabilities ``[B, U]`` of sampled answers."""
    return policy.log_prob(obs, output.actions, output.replay).log_probs


def with_gradient(policy: Any, obs: TensorDict, output: Any) -> None:
    """Score sampled answers and go back through them."""
    policy.log_prob(obs, output.actions, output.replay).log_probs.sum().backward()
    policy.zero_grad()


def peak_memory() -> float:
    """Peak of resident memory of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def rounding(folder: str) -> dict[str, tuple[float, float, float]]:
    """(root mean square, largest, share over log(1 + CLIP)) of each comparison's differences."""
    policy, exact = (make_policy(folder, dtype=dtype) for dtype in reversed(DTYPES))
    rounded = {name: value.float() for name, value in policy.model.state_dict().items()}
    exact.model.load_state_dict(rounded)
    obs = conversations(ROUNDING_PROMPTS)
    output = policy.sample(obs, generator=torch.Generator().manual_seed(0))
    real, again = output.unit_mask, without_gradient(policy, obs, output)
    alone = [without_gradient(policy, *part) for part in prompt_by_prompt(obs, output, len(again))]
    reference = without_gradient(exact, obs, output)
    pairs = {
        "sampled - scored again": (output.log_probs, again),
        "sampled - float32": (output.log_probs, reference),
        "scored again - float32": (again, reference),
        "scored again - scored prompt by prompt": (again, torch.cat(alone)),
    }
    differences = {name: (a - b)[real].double() for name, (a, b) in pairs.items()}
    return {
        name: (
            float(d.square().mean().sqrt()),
            float(d.abs().max()),
            float((d.abs() > math.log1p(CLIP)).double().mean()),
        )
        for name, d in differences.items()
    }


def prompt_by_prompt(obs: TensorDict, output: Any, rows: int) -> list[tuple[TensorDict, Any]]:
    """Observations and answers of every prompt for themselves."""
    parts = []
    for first in range(0, rows, GROUP):
        some = slice(first, first + GROUP)
        replay = {name: value[some] for name, value in output.replay.items()}
        own = replace(output, actions=output.actions[some], replay=replay)
        parts.append(({name: value[some] for name, value in obs.items()}, own))
    return parts


def speed_row(dtype: str, figures: dict[str, float]) -> str:
    """A row of the table of speeds."""
    cells = [
        f"{figures[f'{name}_answers']:.1f} answers/s, {figures[f'{name}_tokens']:.0f} tokens/s"
        for name in ("sampling", "scoring", "gradient")
    ]
    return f"| `{dtype}` | {' | '.join(cells)} | {figures['peak'] / 1024:.1f} GiB |"


def main(arguments: list[str]) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.small_vlm", description=__doc__)
    parser.add_argument("folder", help="of build-vlm, or another --policy.model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=DTYPES, help="one precision, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(measure(options.folder, dtype=options.only, rounds=options.rounds)))
        return
    print(SPEEDS)
    for dtype in DTYPES:
        command = [sys.executable, "-m", "benchmarks.small_vlm", options.folder]
        command += ["--only", dtype, "--rounds", str(options.rounds)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(speed_row(dtype, json.loads(output.splitlines()[-1])), flush=True)
    print(f"\n{PRECISIONS}")
    for name, (mean, largest, share) in rounding(options.folder).items():
        print(f"| {name} | {mean:.3f} | {largest:.2f} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main(sys.argv[1:])
