"""Task samplers against ``bandit_prompts``: prompts of known success, no network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from embodied_rl.registry import registry
from embodied_rl.samplers import TaskSampler
from embodied_rl.samplers.difficulty_ladder import DifficultyLadder
from embodied_rl.samplers.success_window import SuccessWindow
from embodied_rl.samplers.uniform import Uniform
from embodied_rl.samplers.vade_thompson import VadeThompson
from embodied_rl.samplers.vas_mixed import VasMixed

NAMES = ("uniform", "vade_thompson", "vas_mixed", "success_window", "difficulty_ladder")
BATCH, GROUP = 32, 8
Make = Callable[[int, int], TaskSampler]


def make(name: str, num_tasks: int, *, seed: int = 0, **options: Any) -> TaskSampler:
    return registry("samplers").get(name)(num_tasks=num_tasks, seed=seed, **options)


def counts(sampler: TaskSampler, n: int) -> np.ndarray:
    ids = sampler.propose(n)
    assert ids.dtype == torch.int64 and ids.shape == (n,)
    return np.bincount(ids.numpy(), minlength=sampler.num_tasks)


def report(sampler: TaskSampler, ids: np.ndarray, successes: np.ndarray, trials: int) -> None:
    sampler.update(
        torch.from_numpy(ids), torch.from_numpy(successes), torch.full((len(ids),), trials)
    )


class BanditRun:
    """Rolls a sampler out on prompts of success ``p`` and records Var = p (1 - p) of proposals."""

    def __init__(
        self,
        sampler: TaskSampler,
        *,
        seed: int,
        difficulty: tuple[float, float] = (0.5, 0.5),
        drift: float = 0.0,
        num_steps: int = 60,
        shuffled: bool = False,
    ) -> None:
        rng = np.random.default_rng(seed)
        p = rng.beta(*difficulty, size=sampler.num_tasks)
        chosen, best, mean = [], [], []
        self.rollouts = 0
        for _ in range(num_steps):
            refresh = sampler.refresh_ids().numpy()
            # The control hands the outcomes of other prompts to the sampler.
            outcome_of = rng.permutation(p) if shuffled else p
            if len(refresh):
                trials = sampler.refresh_trials
                k = torch.from_numpy(rng.binomial(trials, outcome_of[refresh]))
                sampler.refresh(torch.from_numpy(refresh), k, torch.full_like(k, trials))
            ids = sampler.propose(BATCH).numpy()
            report(sampler, ids, rng.binomial(GROUP, outcome_of[ids]), GROUP)
            self.rollouts += BATCH * GROUP
            variance = p * (1 - p)
            chosen.append(variance[ids].mean())
            best.append(np.sort(variance)[-BATCH:].mean())
            mean.append(variance.mean())
            p = p + drift * (1 - p)
        uniform = np.mean(mean)
        self.captured = (np.mean(chosen) - uniform) / (np.mean(best) - uniform)
        self.extra_rollouts = sampler.extra_rollouts


def captured(make_sampler: Make, *, seeds: int = 8, **options: Any) -> np.ndarray:
    runs = [BanditRun(make_sampler(1000, s), seed=s, **options) for s in range(seeds)]
    return np.array([run.captured for run in runs])


def vade(num_tasks: int, seed: int) -> TaskSampler:
    return VadeThompson(num_tasks=num_tasks, seed=seed)


def vas(num_tasks: int, seed: int) -> TaskSampler:
    return VasMixed(num_tasks=num_tasks, seed=seed)


def lower_bound(differences: np.ndarray) -> float:
    """Lower end of the 95 % bootstrap interval of the mean of paired differences."""
    rng = np.random.default_rng(0)
    draws = rng.choice(differences, size=(2000, len(differences))).mean(axis=1)
    return float(np.quantile(draws, 0.025))


def test_vade_captures_the_variance_gap_at_the_rollouts_of_uniform() -> None:
    runs = [BanditRun(vade(1000, s), seed=s) for s in range(8)]
    control = BanditRun(Uniform(num_tasks=1000, seed=0), seed=0)
    assert min(run.captured for run in runs) >= 0.6
    assert all(run.extra_rollouts == 0 for run in runs)
    assert runs[0].rollouts == control.rollouts


def test_plain_thompson_reaches_what_was_measured_for_it() -> None:
    gap = captured(lambda n, s: VadeThompson(num_tasks=n, seed=s, num_draws=1), seeds=4)
    assert 0.3 <= gap.mean() <= 0.4


def test_uniform_captures_nothing() -> None:
    gap = captured(lambda n, s: Uniform(num_tasks=n, seed=s))
    assert abs(gap.mean()) < 0.05


def test_vas_captures_some_of_the_gap_and_counts_its_refreshes() -> None:
    runs = [BanditRun(vas(1000, s), seed=s) for s in range(8)]
    assert np.mean([run.captured for run in runs]) >= 0.15
    # Refreshes before updates 0, 28 and 56: 2.6 times the rollouts of uniform in all.
    assert {run.extra_rollouts for run in runs} == {3 * 1000 * 8}
    assert_allclose((runs[0].extra_rollouts + runs[0].rollouts) / runs[0].rollouts, 2.6, atol=0.05)


@pytest.mark.parametrize("make_sampler", [vade, vas])
def test_shuffled_outcomes_give_no_gain(make_sampler: Make) -> None:
    assert abs(captured(make_sampler, shuffled=True).mean()) < 0.05


def test_variance_fraction_orders_the_gain() -> None:
    gaps = [
        captured(lambda n, s, f=fraction: VasMixed(num_tasks=n, seed=s, variance_fraction=f)).mean()
        for fraction in (0.0, 0.5, 1.0)
    ]
    assert abs(gaps[0]) < 0.05
    assert gaps[0] < gaps[1] < gaps[2]


def test_decay_helps_where_the_policy_drifts() -> None:
    drifting = {"difficulty": (0.3, 1.5), "drift": 0.01, "num_steps": 200}
    kept = captured(
        lambda n, s: VadeThompson(num_tasks=n, seed=s, decay_per_pass=1.0, decay_on_visit=1.0),
        **drifting,
    )
    faded = captured(vade, **drifting)
    assert lower_bound(faded - kept) > 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("num_tasks", "n"), [(1, 8), (10, 8), (10, 64), (50, 50), (5000, 32)])
def test_proposals_are_ids_for_any_ratio_of_tasks_and_proposals(
    name: str, num_tasks: int, n: int
) -> None:
    sampler = make(name, num_tasks)
    assert isinstance(sampler, TaskSampler)
    rng = np.random.default_rng(0)
    for _ in range(6):
        assert counts(sampler, n).sum() == n
        ids = sampler.propose(n).numpy()
        report(sampler, ids, rng.uniform(0, GROUP, size=n), GROUP)
    assert counts(sampler, 0).sum() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [1, 25])
def test_state_round_trips_through_json_and_continues_identically(
    name: str, num_steps: int
) -> None:
    def step(sampler: TaskSampler, rng: np.random.Generator) -> list[int]:
        refresh = sampler.refresh_ids()
        if len(refresh):
            k = torch.from_numpy(rng.integers(0, 9, size=len(refresh)))
            sampler.refresh(refresh, k, torch.full_like(k, 8))
        ids = sampler.propose(7).numpy()
        # Two of seven are never heard of again, and outcomes are extreme.
        report(sampler, ids[:5], rng.choice([0, 0, 4, 8, 8], size=5), 8)
        return ids.tolist()

    options = {"vas_mixed": {"refresh_every": 7}, "difficulty_ladder": {"max_rung_updates": 9}}
    rng, twin_rng = np.random.default_rng(1), np.random.default_rng(1)
    sampler = make(name, 20, **options.get(name, {}))
    twin = make(name, 20, seed=99, **options.get(name, {}))
    for _ in range(num_steps):
        step(sampler, rng)
    state = sampler.state_dict()
    text = json.dumps({k: v for k, v in state.items() if not isinstance(v, torch.Tensor)})
    twin.load_state_dict({**state, **json.loads(text)})
    twin_rng.bit_generator.state = rng.bit_generator.state
    assert [step(sampler, rng) for _ in range(40)] == [step(twin, twin_rng) for _ in range(40)]
    assert sampler.extra_rollouts == twin.extra_rollouts


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_is_a_snapshot(name: str) -> None:
    sampler = make(name, 4)
    state = sampler.state_dict()
    report(sampler, np.array([0, 1]), np.array([1, 1]), 1)
    assert state["trials"].sum() == 0


def test_state_of_another_sampler_or_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not belong to Uniform"):
        make("uniform", 4).load_state_dict(make("vas_mixed", 4).state_dict())
    with pytest.raises(ValueError, match="is of 4 tasks, this run has 5"):
        make("uniform", 5).load_state_dict(make("uniform", 4).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_repeated_ids_add_up(name: str) -> None:
    one, many = make(name, 3), make(name, 3)
    report(one, np.array([2, 0]), np.array([3, 1]), 4)
    report(many, np.array([2, 0, 2, 0]), np.array([2, 0.5, 1, 0.5]), 2)
    for sampler in (one, many):
        assert_allclose(sampler.state_dict()["successes"], [1, 0, 3])
        assert_allclose(sampler.state_dict()["trials"], [4, 0, 4])


@pytest.mark.parametrize(
    ("ids", "successes", "sentence"),
    [
        ([0, 3], [1, 1], "0 ... 2"),
        ([0, 1], [1, 5], "between 0 and trials"),
        ([0, 1], [1, -1], "between"),
        ([0], [1, 1], "be"),
    ],
)
def test_bad_outcomes_are_refused(ids: list[int], successes: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        report(make("uniform", 3), np.array(ids), np.array(successes), 2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vade_thompson", {"num_draws": 0}),
        ("vade_thompson", {"decay_per_pass": 1.5}),
        ("vas_mixed", {"refresh_trials": 0}),
        ("success_window", {"low": 0.9, "high": 0.1}),
        ("difficulty_ladder", {"num_rungs": 0}),
        ("uniform", {"num_tasks": 0}),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        make(name, **{"num_tasks": 4, **options})


def test_uniform_proposes_every_task_equally_often() -> None:
    sampler = Uniform(num_tasks=7, seed=3)
    total = np.zeros(7, dtype=np.int64)
    for n in (3, 1, 20, 5, 7, 2):
        total += counts(sampler, n)
        assert total.max() - total.min() <= 1
    assert len(set(Uniform(num_tasks=50, seed=0).propose(50).tolist())) == 50


@pytest.mark.parametrize(("n", "most"), [(8, 2), (16, 4), (64, 13)])
def test_vade_on_ten_tasks_prefers_middling_ones_and_starves_none(n: int, most: int) -> None:
    p = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.4, 0.5, 0.6])
    sampler = VadeThompson(num_tasks=10, seed=0)
    rng = np.random.default_rng(0)
    total = np.zeros(10)
    for step in range(60):
        per_task = counts(sampler, n)
        assert per_task.max() <= most
        ids = np.repeat(np.arange(10), per_task)
        report(sampler, ids, rng.binomial(GROUP, p[ids]), GROUP)
        total += per_task if step >= 20 else 0
    share = total / total.sum()
    assert share[7:].sum() > 1.4 * 0.3
    assert share.min() > 0.01


def test_vade_counts_fade_to_the_prior_on_two_time_scales() -> None:
    sampler = VadeThompson(num_tasks=2, seed=0, decay_per_pass=0.25, decay_on_visit=0.5)
    report(sampler, np.array([0, 1]), np.array([8, 8]), 16)
    report(sampler, np.array([0]), np.array([0]), 4)
    # One of two tasks: half a pass, so a factor sqrt(.25) = .5 on all and .5 more on the visited.
    assert_allclose(sampler.successes, [2, 4])
    assert_allclose(sampler.trials, [8, 8])
    for _ in range(200):
        report(sampler, np.array([0]), np.array([1]), 4)
    assert sampler.trials[1] < 1e-9


def test_vas_refreshes_all_tasks_every_so_many_updates() -> None:
    sampler = VasMixed(num_tasks=5, seed=0, refresh_every=3, refresh_trials=2)
    asked = []
    for _ in range(8):
        ids = sampler.refresh_ids()
        asked.append(len(ids))
        for half in (ids[:2], ids[2:]):  # in parts, as a trainer may have to
            sampler.refresh(half, torch.ones(len(half)), torch.full((len(half),), 2))
        report(sampler, np.array([0]), np.array([1]), 1)
    assert asked == [5, 0, 0, 5, 0, 0, 5, 0]
    assert sampler.extra_rollouts == 3 * 5 * 2
    assert len(VasMixed(num_tasks=5, seed=0, refresh_every=0).refresh_ids()) == 0


def test_refresh_replaces_an_estimate_and_training_adds_to_it() -> None:
    sampler = VasMixed(num_tasks=2, seed=0)
    report(sampler, np.array([0]), np.array([4]), 4)
    sampler.refresh(torch.tensor([0]), torch.tensor([2]), torch.tensor([8]))
    report(sampler, np.array([0]), np.array([6]), 8)
    assert_allclose(sampler.measured_success(unmeasured=0.5), [0.5, 0.5])


def test_vas_is_uniform_when_no_task_has_variance() -> None:
    sampler = VasMixed(num_tasks=6, seed=0)
    report(sampler, np.arange(6), np.array([4, 4, 4, 0, 0, 0]), 4)
    assert counts(sampler, 12).tolist() == [2] * 6


def test_window_keeps_middling_and_unknown_tasks() -> None:
    sampler = SuccessWindow(num_tasks=6, seed=0, explore_fraction=0.0)
    report(sampler, np.arange(5), np.array([0, 1, 5, 9.5, 10]), 10)
    assert counts(sampler, 30).tolist() == [0, 10, 10, 0, 0, 10]


def test_window_explores_the_longest_unseen_task_first() -> None:
    sampler = SuccessWindow(num_tasks=6, seed=0, explore_fraction=0.5)
    for task in (2, 0, 1):
        report(sampler, np.array([task]), np.array([8]), 8)
    report(sampler, np.array([3, 4, 5]), np.array([4, 4, 4]), 8)
    assert [np.flatnonzero(counts(sampler, 2)[:3])[0] for _ in range(6)] == [2, 0, 1, 2, 0, 1]


def test_window_follows_the_policy_back_into_the_window() -> None:
    sampler = SuccessWindow(num_tasks=2, seed=0, explore_fraction=0.0)
    report(sampler, np.array([0, 1]), np.array([0, 40]), 80)
    assert counts(sampler, 8).tolist() == [0, 8]
    for _ in range(2):  # of 96 rollouts 8 are successes, but of the last 16 half
        report(sampler, np.array([0]), np.array([4]), 8)
    assert counts(sampler, 8).tolist() == [4, 4]


def test_window_falls_back_to_the_nearest_tasks() -> None:
    sampler = SuccessWindow(num_tasks=3, seed=0, low=0.4, high=0.6)
    report(sampler, np.arange(3), np.array([0, 3, 10]), 10)
    assert counts(sampler, 4).tolist() == [0, 4, 0]


def measured_ladder(**options: Any) -> DifficultyLadder:
    """Twelve tasks measured once, success 11/12 of task 0 down to 0 of task 11."""
    sampler = DifficultyLadder(num_tasks=12, seed=0, **options)
    seen = np.concatenate([sampler.propose(n).numpy() for n in (5, 7)])
    assert sorted(seen.tolist()) == list(range(12)), "the first pass measures every task once"
    report(sampler, np.arange(12), np.arange(12)[::-1].copy(), 12)
    return sampler


def test_ladder_climbs_from_easy_to_hard_as_success_comes() -> None:
    sampler = measured_ladder(review_fraction=0.0)
    rungs = []
    for _ in range(4):
        rungs.append(np.flatnonzero(counts(sampler, 9)).tolist())
        report(sampler, np.array(rungs[-1]), np.zeros(3), 8)
        assert np.flatnonzero(counts(sampler, 9)).tolist() == rungs[-1], "not mastered: stay"
        for _ in range(4):
            report(sampler, np.array(rungs[-1]), np.full(3, 8), 8)
    assert rungs == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert counts(sampler, 24).tolist() == [2] * 12, "past the top all tasks are proposed"


def test_ladder_moves_on_from_a_rung_out_of_reach() -> None:
    sampler = measured_ladder(max_rung_updates=5)
    rungs = []
    for _ in range(12):
        rungs.append(int(np.median(sampler.propose(101).numpy())) // 3)
        report(sampler, np.arange(12), np.zeros(12), 8)
    assert rungs == [0] * 5 + [1] * 5 + [2] * 2


def test_ladder_reviews_the_rungs_below() -> None:
    sampler = measured_ladder(review_fraction=0.25)
    assert counts(sampler, 12)[:3].sum() == 12
    for _ in range(4):
        report(sampler, np.arange(3), np.full(3, 8), 8)
    per_task = counts(sampler, 12)
    assert per_task[:3].sum() == 3 and per_task[3:6].sum() == 9


def test_ladder_sorts_the_tasks_ahead_by_their_newest_estimate() -> None:
    sampler = measured_ladder(review_fraction=0.0)
    assert np.flatnonzero(counts(sampler, 9)).tolist() == [0, 1, 2]
    for _ in range(4):
        report(sampler, np.array([0, 1, 2, 11]), np.full(4, 8), 8)
    assert np.flatnonzero(counts(sampler, 9)).tolist() == [3, 4, 11]


def test_ladder_skips_measuring_when_told_the_difficulty() -> None:
    sampler = DifficultyLadder(num_tasks=8, seed=0)
    report(sampler, np.arange(8), np.arange(8), 8)
    assert np.flatnonzero(counts(sampler, 8)).tolist() == [6, 7]


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_thousand_prompts_are_fast(name: str) -> None:
    sampler = make(name, 100_000)
    ids = np.arange(100_000)
    report(sampler, ids, np.random.default_rng(0).integers(0, 9, size=len(ids)), 8)
    start = time.perf_counter()
    for _ in range(3):
        report(sampler, sampler.propose(512).numpy(), np.full(512, 4), 8)
    assert (time.perf_counter() - start) / 3 < 0.5
