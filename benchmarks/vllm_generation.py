"""Generation by vLLM against the policy's own model: equality, weight updates, speed, memory.

    .venv-vllm/bin/python -m benchmarks.vllm_generation                  # tiny/qwen2_5_vl
    .venv-vllm/bin/python -m benchmarks.vllm_generation --model smol     # 106 M weights

Four measurements in one process, on pictures with questions of ``shapes_vqa``:

* greedy answers of both, token by token;
* weights moved by an optimiser and pushed: answers change, and are again those of transformers;
* tokens per second of processor and wall clock, the two taking turns, answers of full length;
* resident memory over iterations of a pushed update and a generation.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

from embodied_rl.build import policy_spec
from embodied_rl.config import EnvConfig, component
from embodied_rl.envs import make_env
from embodied_rl.policies import make_policy
from embodied_rl.policies.vlm import presets, text
from embodied_rl.policies.vlm.backends import Generation, Sampling
from embodied_rl.types import TensorDict

Pair = dict[str, Any]
"""The same policy with each backend, by the backend's name."""


SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""The decoder of SmolVLM-256M, here with random weights and few words."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one backend at one batch size: medians over rounds."""

    wall: float
    cpu: float


def questions(count: int, *, group: int = 1) -> tuple[Any, TensorDict]:
    """(environment, its first observation) with ``count`` rows."""
    env = make_env("vqa", num_envs=count, group_size=group, seed=0, tasks=("shapes_vqa",))
    return env, env.reset()[0]


def policies(model: str, tokens: int) -> Pair:
    """Equal weights in both, answers of up to ``tokens`` tokens."""
    env, _ = questions(1)
    spec = policy_spec(env, EnvConfig(simulator=component("envs", "vqa", tasks=("shapes_vqa",))))
    pair = {}
    for backend in ("transformers", "vllm"):
        torch.manual_seed(0)
        generation = Generation(backend=backend)  # pyright: ignore[reportArgumentType]
        policy: Any = make_policy(
            "vlm", spec, model=model, max_new_tokens=tokens, generation=generation
        )
        pair[backend] = policy
    return pair


def greedy_tokens(policy: Any, obs: TensorDict) -> list[str]:
    """The greedy answer of every row."""
    output = policy.sample(obs, deterministic=True, generator=None)
    return text.from_bytes(output.actions)


def equal_answers(pair: Pair, obs: TensorDict) -> tuple[int, list[str]]:
    """(rows in which both answer the same, answers of vLLM)."""
    first, second = (greedy_tokens(pair[name], obs) for name in ("transformers", "vllm"))
    return sum(a == b for a, b in zip(first, second, strict=True)), second


def move_weights(pair: Pair, *, size: float) -> None:
    """The same step of noise in place in both policies; relative to each weight's own spread."""
    for policy in pair.values():
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in policy.parameters():
                step = torch.randn(weight.shape, generator=noise)
                weight.add_(size * (weight.std() if weight.numel() > 1 else 0.0) * step)


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Tokens per second (wall clock, processor time of all threads) of ``work`` -> tokens."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def sampled_tokens(policy: Any, obs: TensorDict, *, seed: int) -> int:
    """Number of tokens of one call of ``sample``, re-scoring included."""
    output = policy.sample(obs, generator=torch.Generator().manual_seed(seed))
    return int(output.replay["num_tokens"].sum())


def unscored_tokens(policy: Any, obs: TensorDict, *, seed: int) -> int:
    """The same, of the engine by itself."""
    sampling = Sampling(
        max_new_tokens=policy.max_new_tokens, end_tokens=(policy.tokenizer.eos_token_id,)
    )
    seeds = 1000 * seed + torch.arange(len(obs["chat"]))
    return int(policy.engine.engine.generate(obs, sampling, seeds=seeds).lengths.sum())


def speeds(pair: Pair, *, batch: int, rounds: int) -> dict[str, Speed]:
    """All in turns on ``batch`` answers, eight to a question.

    ``vllm`` also scores its answers with the policy's model, as runs do; ``vllm alone`` does not.
    """
    _, obs = questions(batch, group=8)
    work: dict[str, Callable[[int], int]] = {
        "transformers": lambda seed: sampled_tokens(pair["transformers"], obs, seed=seed),
        "vllm": lambda seed: sampled_tokens(pair["vllm"], obs, seed=seed),
        "vllm alone": lambda seed: unscored_tokens(pair["vllm"], obs, seed=seed),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for seed in range(rounds + 1):
        for name, function in work.items():
            result = timed(partial(function, seed))
            if seed:  # the first round warms up
                results[name].append(result)
    medians = {name: np.median(values, axis=0) for name, values in results.items()}
    return {name: Speed(float(wall), float(cpu)) for name, (wall, cpu) in medians.items()}


def resident_mib() -> float:
    """Memory of this process, MiB."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def memory(pair: Pair, *, iterations: int, batch: int) -> list[float]:
    """Resident MiB after every tenth iteration of (weights change, push, generate)."""
    _, obs = questions(batch, group=8)
    found = []
    for iteration in range(1, iterations + 1):
        move_weights({"vllm": pair["vllm"]}, size=1e-3)
        sampled_tokens(pair["vllm"], obs, seed=iteration)
        if iteration % 10 == 0:
            found.append(resident_mib())
    return found


def main() -> None:
    """Print the four measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny/qwen2_5_vl")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.model == "smol":
            torch.manual_seed(0)
            with mock.patch.dict(presets.TEXT, SMOL):
                presets.save("tiny/smolvlm", folder)
        pair = policies(folder if options.model == "smol" else options.model, options.tokens)
    _, obs = questions(options.questions)
    same, before = equal_answers(pair, obs)
    print(f"greedy answers equal: {same}/{options.questions}")
    for update in range(3):
        move_weights(pair, size=0.1)
        same, after = equal_answers(pair, obs)
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        print(f"after update {update + 1}: {changed} changed, equal {same}/{options.questions}")
        before = after
    for batch in options.batches:
        found = speeds(pair, batch=batch, rounds=options.rounds)
        for name, speed in found.items():
            print(f"batch {batch}, {name}: {speed.wall:.0f} tok/s, {speed.cpu:.0f} per CPU second")
        ratios = [found[name].cpu / found["transformers"].cpu for name in ("vllm", "vllm alone")]
        print(f"batch {batch}: vllm / transformers {ratios[0]:.2f}, alone {ratios[1]:.2f}")
    if options.iterations:
        resident = memory(pair, iterations=options.iterations, batch=16)
        print("MiB after every tenth iteration:", ", ".join(f"{value:.0f}" for value in resident))


if __name__ == "__main__":
    main()
