"""Honest tests of the algorithmic systems on toy tasks of strings.

    python -m benchmarks.algorithm_tests 48 [--seeds 8]

22: CAD-RL's loss (numeric weight, overlong filter). 34: REINFORCE with baseline on strings with a
target and a forbidden motif. 46: UniGRPO against masks of a fixed share. 48: StableReinforce's
clamp and filter. Arms of a comparison have the same seeds (weights, questions, noise), and nothing
was tuned on them: a difference is the mean over seeds with its 95 % bootstrap interval, which for
few seeds is narrower than it says. Each takes minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

from benchmarks.strings import (
    Questions,
    answers_of,
    imitate,
    interval,
    learn,
    mean_score,
    play,
    policy_of,
)
from embodied_rl.advantages.group_relative import group_relative
from embodied_rl.advantages.monte_carlo import monte_carlo
from embodied_rl.advantages.normalize import standardize
from embodied_rl.advantages.reinforce_pp import reinforce_pp
from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.algorithms.ppo import PPO
from embodied_rl.losses.policy import clipped_surrogate


def differences(name: str, first: Sequence[float], second: Sequence[float]) -> None:
    """Print ``second`` - ``first`` over paired seeds."""
    pairs = [b - a for a, b in zip(first, second, strict=True)]
    print(f"{name}: {interval(pairs)} over {len(pairs)} paired seeds", flush=True)


def by_arm(seeds: int, arms: Sequence[Callable[[int], Any]]) -> list[list[Any]]:
    """What each arm gives for each seed; the arms of a seed run one after the other."""
    runs = [[arm(seed) for arm in arms] for seed in range(seeds)]
    return [list(column) for column in zip(*runs, strict=True)]


def writer(seed: int, **options: Any) -> Any:
    """A policy that writes one character after the other."""
    return policy_of("string_generator", seed=seed, **options)


# ---- 48: StableReinforce -------------------------------------------------------------------------

SYMBOLS = "abcde"
SPELL = [f"{a}{b}" for a, b in product("0123456789", repeat=2)]


def spelled(question: str, answer: str) -> float:
    """Whether the answer is the letter of the sum of two digits."""
    return float(answer[:1] == SYMBOLS[sum(map(int, question)) % 5])


class Faulty:
    """``spelled``, which in one of a hundred answers is 50 or -50 whatever was said."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def __call__(self, question: str, answer: str) -> float:
        """The reward."""
        if self.random.random() < 0.01:
            return 50.0 * self.random.choice((-1, 1))
        return spelled(question, answer)


def heavy_tailed(seed: int, sigma_filter: float) -> tuple[float, float]:
    """(final accuracy, variance of the accuracy over the last half of the updates)."""
    policy = writer(seed, alphabet=SYMBOLS, max_new_tokens=1, prompt_length=2)
    config = GRPO.Config(
        learning_rate=2e-3,
        num_epochs=2,
        num_minibatches=2,
        loss_mean="chunk",
        max_log_ratio=math.log(1e3),
    )
    env = Questions(SPELL[:64], Faulty(seed), num_envs=256, group=4, seed=seed)
    curve: list[float] = []
    learn(
        env,
        GRPO(policy, config),
        partial(reinforce_pp, sigma_filter=sigma_filter),
        steps=150,
        seed=seed,
        after_step=lambda step: curve.append(mean_score(policy, SPELL[:64], spelled)),
    )
    result = statistics.mean(curve[-10:]), statistics.variance(curve[len(curve) // 2 :])
    print(f"    seed {seed}, filter {sigma_filter:g}: accuracy {result[0]:.3f}", flush=True)
    return result


def exploding() -> None:
    """Loss and gradient at a log-ratio of 1000, with the clamp and without any."""
    for name, limit in (("plain", math.inf), ("clamped to ln 1000", math.log(1e3))):
        log_probs = torch.tensor([[1e3], [0.1]], requires_grad=True)
        loss, _ = clipped_surrogate(
            log_probs, torch.zeros(2, 1), torch.tensor([-1.0, 1.0]), max_log_ratio=limit
        )
        loss.backward()
        assert log_probs.grad is not None
        print(f"  log-ratio 1000, {name}: loss {loss.item():.4g}, gradient "
              f"{[round(g, 4) for g in log_probs.grad[:, 0].tolist()]}")  # fmt: skip


def windows() -> None:
    """Share of samples that the two windows zero, by the mean of the rewards."""
    rewards = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for mean in (0.0, 1.0, 5.0):
        z = standardize(rewards + mean, torch.ones_like(rewards, dtype=torch.bool))
        centred, raw = (z.abs() > 3), ((z - (rewards + mean).mean()).abs() > 3)
        shares = f"{centred.float().mean():.2%} (window at 0), {raw.float().mean():.2%}"
        print(f"  rewards of mean {mean:g}: zeroed {shares} (window at the raw mean, theirs)")


def stable_reinforce(seeds: int) -> None:
    """System 48."""
    exploding()
    windows()
    plain, filtered = by_arm(seeds, [partial(heavy_tailed, sigma_filter=f) for f in (0.0, 3.0)])
    for name, runs in (("no filter", plain), ("sigma filter 3", filtered)):
        print(f"  {name}: accuracy {interval([a for a, _ in runs])}, variance in training "
              f"{interval([v for _, v in runs], digits=5)}")  # fmt: skip
    differences("accuracy, filter on - off", [a for a, _ in plain], [a for a, _ in filtered])
    logs = [[math.log(v + 1e-6) for _, v in runs] for runs in (plain, filtered)]
    differences("ln variance in training, filter on - off", *logs)


# ---- 34: PaccMann^RL -----------------------------------------------------------------------------

ATOMS, FORBIDDEN = "CNOS", "OO"
MOTIFS = [m for m in map("".join, product(ATOMS, repeat=3)) if FORBIDDEN not in m]


def valid(string: str) -> bool:
    """Balanced parentheses around something, after an atom."""
    depth, before = 0, "("
    for character in string:
        if character in "()" and before == "(":
            return False
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return False
        before = character
    return depth == 0 and 0 < len(string) < 16


def affinity(motif: str, string: str) -> float:
    """Longest start of the motif in a valid string / 3, minus 0.5 if the forbidden one is in it."""
    if not valid(string):
        return 0.0
    found = max(n for n in range(4) if motif[:n] in string)
    return found / 3 - 0.5 * (FORBIDDEN in string)


def molecule(draw: random.Random) -> tuple[str, str]:
    """A random valid string of up to 14 characters, whatever the motif."""
    string = "".join(draw.choice(ATOMS) for _ in range(draw.randint(2, 9)))
    if draw.random() < 0.6:
        at = draw.randint(1, len(string))
        branch = "".join(draw.choice(ATOMS) for _ in range(draw.randint(1, 3)))
        string = f"{string[:at]}({branch}){string[at:]}"
    return draw.choice(MOTIFS), string


@cache
def generator_of(seed: int) -> Any:
    """A generator of valid strings that does not know what the motif is for."""
    policy = writer(seed, alphabet=ATOMS + "()", max_new_tokens=16, prompt_length=3, critic="trunk")
    imitate(policy, molecule, steps=300, seed=seed)
    return policy


REINFORCE: dict[str, Any] = {
    "num_epochs": 1,
    "num_minibatches": 1,
    "loss_mean": "constant",
    "constant_length": 1,
}


Baseline = Literal["values", "none"]


def reinforce(policy: Any, *, baseline: Baseline, rate: float = 1e-3) -> tuple[Any, Any]:
    """(update, advantage): REINFORCE with the value head as baseline, or without one."""
    config = PPO.Config(**REINFORCE, learning_rate=rate, critic_learning_rate=1e-2, value_coef=1.0)
    return PPO(policy, config), partial(monte_carlo, baseline=baseline, normalize="none")


def gradients(policy: Any, env: Questions, *, baseline: Baseline, count: int, seed: int) -> Tensor:
    """[count, parameters] policy gradients of independent batches at fixed weights."""
    _, advantage = reinforce(policy, baseline=baseline)
    rows, generator = [], torch.Generator().manual_seed(seed)
    fixed = copy.deepcopy(policy)
    update = GRPO(fixed, GRPO.Config(**REINFORCE, learning_rate=0.0, max_grad_norm=1e9))
    for _ in range(count):
        rollout = play(env, fixed, generator)
        update.update(rollout, advantage(rollout), generator=generator)
        grads = [p.grad for n, p in fixed.named_parameters() if not n.startswith("critic")]
        rows.append(torch.cat([g.flatten() for g in grads if g is not None]))
    return torch.stack(rows)


def molecules_run(seed: int, baseline: Baseline) -> dict[str, Any]:
    """One run on the motifs that are not held out, judged on the ten that are."""
    shuffled = random.Random(seed).sample(MOTIFS, len(MOTIFS))
    held_out, seen = shuffled[:10], shuffled[10:]
    policy = copy.deepcopy(generator_of(seed))

    def judged() -> tuple[list[float], float]:
        asked = [motif for motif in held_out for _ in range(100)]
        answers = answers_of(policy, asked, seed=seed + 1)
        rewards = [affinity(m, a) for m, a in zip(asked, answers, strict=True)]
        means = [statistics.mean(rewards[i : i + 100]) for i in range(0, 1000, 100)]
        return means, statistics.mean(map(valid, answers))

    before, _ = judged()
    env = Questions(seen, affinity, num_envs=128, group=4, seed=seed)
    update, advantage = reinforce(policy, baseline=baseline)
    learn(env, update, advantage, steps=150, seed=seed)
    after, share = judged()
    print(f"    seed {seed}, baseline {baseline}: {statistics.mean(before):.3f} -> "
          f"{statistics.mean(after):.3f}, valid {share:.3f}", flush=True)  # fmt: skip
    return {"policy": policy, "seen": seen, "before": before, "after": after, "valid": share}


def paccmann(seeds: int) -> None:
    """System 34."""
    names: tuple[Baseline, ...] = ("none", "values")
    results = by_arm(seeds, [partial(molecules_run, baseline=name) for name in names])
    arms = dict(zip(names, results, strict=True))
    for baseline, runs in arms.items():
        lifted = [
            sum(b > a for a, b in zip(run["before"], run["after"], strict=True)) for run in runs
        ]
        first, last = ([statistics.mean(run[when]) for run in runs] for when in ("before", "after"))
        print(f"  baseline {baseline}: held-out reward {interval(first)} -> {interval(last)}")
        print(f"    lifted {lifted} of 10 motifs, valid {interval([r['valid'] for r in runs])}")
    rewards = [[statistics.mean(run["after"]) for run in runs] for runs in arms.values()]
    differences("held-out reward, value baseline - none", *rewards)
    for seed, run in enumerate(arms["values"]):
        gradient_variance(seed, run["policy"], run["seen"])


def gradient_variance(seed: int, policy: Any, motifs: list[str]) -> None:
    """Spread of 60 gradients at the weights that were trained, with the baseline and without."""
    from scipy import stats

    env = Questions(motifs * 2, affinity, num_envs=64, group=1, seed=seed)
    baselines: tuple[Baseline, ...] = ("values", "none")
    arms = [gradients(policy, env, baseline=b, count=60, seed=seed) for b in baselines]
    total = (arms[0].var(0).sum() / arms[1].var(0).sum()).item()
    direction = torch.cat(arms).mean(0)
    shadows = [(rows @ direction / direction.norm()).tolist() for rows in arms]
    along = statistics.variance(shadows[0]) / statistics.variance(shadows[1])
    p = stats.levene(*shadows).pvalue
    print(
        f"  seed {seed}: gradient variance with / without baseline {total:.3f}; along the mean "
        f"gradient {along:.3f}, Levene p {p:.2g}"
    )


# ---- 22: CAD-RL ----------------------------------------------------------------------------------

SOLIDS = [f"{kind}{a}{b}" for kind in "BC" for a, b in product("123456789", repeat=2)]


def program(question: str) -> str:
    """The toy program of a solid: a box by two sides or a cylinder by radius and height."""
    kind, a, b = question
    return {"B": f"rect({a})ext({b})", "C": f"circ({a})ext({b})"}[kind]


def numbers(question: str, answer: str) -> list[int] | None:
    """The two numbers of an answer that would run, or None."""
    words = program(question)
    shape = [c if not c.isdigit() else "#" for c in words]
    if [c if not c.isdigit() else "#" for c in answer] != shape:
        return None
    return [int(c) for c in answer if c.isdigit()]


def geometry(question: str, answer: str) -> float:
    """0.2 for a program that runs, and 0.4 for each number by how near it is."""
    found = numbers(question, answer)
    if found is None:
        return 0.0
    wanted = [int(c) for c in question[1:]]
    return 0.2 + sum(0.4 * (1 - abs(a - b) / 8) for a, b in zip(found, wanted, strict=True))


def absolute_error(question: str, answer: str) -> float:
    """Mean absolute error of the numbers; of a program that does not run, the largest, 8."""
    found = numbers(question, answer)
    if found is None:
        return 8.0
    return statistics.mean(abs(a - int(b)) for a, b in zip(found, question[1:], strict=True))


CAD_ALPHABET = "123456789()rectixl"  # r e c t i x l: the letters of rect, circ, ext


def vague(draw: random.Random) -> tuple[str, str]:
    """A program of the right form whose numbers are right in half of all cases."""
    question = draw.choice(SOLIDS)
    said = [c if draw.random() < 0.5 else draw.choice("123456789") for c in question[1:]]
    return question, program(question[0] + "".join(said))


@cache
def drafter(seed: int) -> Any:
    """A policy that writes programs with vague numbers."""
    policy = writer(seed, alphabet=CAD_ALPHABET, max_new_tokens=16, prompt_length=3)
    imitate(policy, vague, steps=300, seed=seed)
    return policy


def cad_run(seed: int, weight: float) -> tuple[float, float, float]:
    """(absolute error before, after, reward after) on held-out solids."""
    held_out = random.Random(seed).sample(SOLIDS, 40)
    seen = [solid for solid in SOLIDS if solid not in held_out]
    policy = copy.deepcopy(drafter(seed))
    before = mean_score(policy, held_out * 10, absolute_error, seed=seed + 1)
    config = GRPO.Config(
        learning_rate=1e-3,
        num_epochs=1,
        num_minibatches=2,
        clip_ratio_low=0.4,
        clip_ratio_high=0.8,
        numeric_weight=weight,
    )
    env = Questions(seen, geometry, num_envs=128, group=8, seed=seed)
    learn(env, GRPO(policy, config), group_relative, steps=60, seed=seed)
    after, reward = (
        mean_score(policy, held_out * 10, f, seed=seed + 1) for f in (absolute_error, geometry)
    )
    print(f"    seed {seed}, numeric weight {weight:g}: {before:.3f} -> {after:.3f}", flush=True)
    return before, after, reward


SUMS = [f"{a}{b}" for a, b in product("0123456789", repeat=2)]


def thought(draw: random.Random) -> tuple[str, str]:
    """The sum of two digits, modulo 10, after some dots: half of all answers are right."""
    question = draw.choice(SUMS)
    right = sum(map(int, question)) % 10
    digit = right if draw.random() < 0.5 else draw.randint(0, 9)
    dots = 0
    while draw.random() < 0.86 and dots < 12:
        dots += 1
    return question, "." * dots + str(digit)


def summed(question: str, answer: str) -> float:
    """Whether the answer is dots and the right digit."""
    return float(answer.lstrip(".") == str(sum(map(int, question)) % 10))


@cache
def thinker(seed: int) -> Any:
    """A policy that answers after up to 12 dots, and is cut after 9 characters."""
    policy = writer(seed, alphabet="0123456789.", max_new_tokens=14, prompt_length=2)
    imitate(policy, thought, steps=300, seed=seed)
    policy.max_new_tokens = 9
    return policy


def overlong_run(seed: int, skip: bool) -> tuple[float, float, float]:
    """(share of cut answers at the start, reward at the end, share cut at the end)."""
    policy = copy.deepcopy(thinker(seed))
    generator = torch.Generator().manual_seed(seed)
    env = Questions(SUMS, summed, num_envs=256, group=8, seed=seed)

    def cut() -> float:
        return play(env, policy, generator).replay["unfinished"].float().mean().item()

    before = statistics.mean(cut() for _ in range(4))
    config = GRPO.Config(learning_rate=1e-3, num_epochs=1, num_minibatches=2, skip_unfinished=skip)
    learn(env, GRPO(policy, config), group_relative, steps=60, seed=seed)
    reward = statistics.mean(mean_score(policy, SUMS, summed, seed=s) for s in range(1, 11))
    print(f"    seed {seed}, filter {skip}: cut {before:.3f}, reward {reward:.3f}", flush=True)
    return before, reward, statistics.mean(cut() for _ in range(4))


def cad_rl(seeds: int) -> None:
    """System 22, its loss."""
    ones, twos = by_arm(seeds, [partial(cad_run, weight=w) for w in (1.0, 2.0)])
    for name, runs in (("weight 1", ones), ("weight 2", twos)):
        error, last, reward = (interval(column) for column in zip(*runs, strict=True))
        print(f"  numeric {name}: absolute error {error} -> {last}, reward {reward}")
    differences("absolute error, weight 2 - 1", [r[1] for r in ones], [r[1] for r in twos])
    off, on = by_arm(seeds, [partial(overlong_run, skip=skip) for skip in (False, True)])
    for name, runs in (("off", off), ("on", on)):
        first, reward, last = (interval(column) for column in zip(*runs, strict=True))
        print(f"  overlong filter {name}: cut {first} -> {last}, reward {reward}")
    differences("reward, overlong filter on - off", [r[1] for r in off], [r[1] for r in on])


# ---- 46: UniGRPO ---------------------------------------------------------------------------------

LETTERS = "abcd"
MASKS = {"U(.1,.9)": (0.1, 0.9), "fixed .5": (0.5, 0.5), "fixed 1": (1.0, 1.0)}


def next_letters(question: str, answer: str) -> float:
    """Share of the places that hold the letter after the one asked about, cyclically."""
    wanted = [LETTERS[(LETTERS.index(c) + 1) % 4] for c in question]
    return sum(a == b for a, b in zip(answer.ljust(8), wanted, strict=False)) / 8


def noisy_letters(draw: random.Random) -> tuple[str, str]:
    """A question and an answer in which two letters of five are right."""
    question = "".join(draw.choices(LETTERS, k=8))
    wanted = [LETTERS[(LETTERS.index(c) + 1) % 4] for c in question]
    return question, "".join(c if draw.random() < 0.2 else draw.choice(LETTERS) for c in wanted)


@cache
def filler(seed: int) -> Any:
    """A masked-diffusion policy whose answers are a little better than chance."""
    policy = policy_of(
        "masked_diffusion",
        seed=seed,
        alphabet=LETTERS,
        answer_length=8,
        prompt_length=8,
        num_steps=4,
        num_masks=2,
        dim=32,
    )
    imitate(policy, noisy_letters, steps=400, seed=seed)
    return policy


def diffusion_run(seed: int, mask_ratio: tuple[float, float], steps: int) -> tuple[float, float]:
    """Mean reward of sampled answers to unseen questions, (before, after)."""
    policy = copy.deepcopy(filler(seed))
    policy.mask_ratio = mask_ratio
    draw = random.Random(seed + 1000)
    pool = ["".join(draw.choices(LETTERS, k=8)) for _ in range(1200)]
    seen, unseen = pool[:1000], pool[1000:]
    before = mean_score(policy, unseen, next_letters, seed=1)
    config = GRPO.Config(
        learning_rate=1e-3, num_epochs=2, num_minibatches=1, loss_mean="chunk", kl_coef=0.01
    )
    env = Questions(seen, next_letters, num_envs=128, group=8, seed=seed)
    learn(env, GRPO(policy, config), group_relative, steps=steps, seed=seed)
    after = mean_score(policy, unseen, next_letters, seed=1)
    print(f"    seed {seed}, masks {mask_ratio}: {before:.3f} -> {after:.3f}", flush=True)
    return before, after


def unigrpo(seeds: int, steps: int = 150) -> None:
    """System 46."""
    arms = [partial(diffusion_run, mask_ratio=ratio, steps=steps) for ratio in MASKS.values()]
    results = by_arm(seeds, arms)
    for name, runs in zip(MASKS, results, strict=True):
        first, last = (interval(column) for column in zip(*runs, strict=True))
        print(f"  masks {name}: reward of unseen questions {first} -> {last}", flush=True)
    ours, *others = [[after for _, after in runs] for runs in results]
    for name, other in zip(list(MASKS)[1:], others, strict=True):
        differences(f"reward, U(.1,.9) - {name}", other, ours)


SYSTEMS: dict[str, tuple[Callable[[int], None], int]] = {
    "22": (cad_rl, 3),
    "34": (paccmann, 3),
    "46": (unigrpo, 3),
    "48": (stable_reinforce, 5),
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithm_tests")
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=0, help="0: that of the system")
    options = parser.parse_args()
    torch.set_num_threads(1)
    test, seeds = SYSTEMS[options.system]
    started = time.process_time()
    test(options.seeds or seeds)
    print(f"{time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
