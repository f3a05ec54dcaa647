"""The named variants of GRPO, each by what its source says that it changes.

The policies here are tables, so that the gradient of an update can be read off or enumerated.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embodied_rl.advantages.group_relative import group_relative, rloo
from embodied_rl.advantages.monte_carlo import monte_carlo
from embodied_rl.advantages.reinforce_pp import reinforce_pp
from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.algorithms.ppo import PPO
from embodied_rl.losses.policy import clipped_surrogate
from embodied_rl.types import Advantages, LogProbOutput, Rollout

ONE_STEP: dict[str, Any] = {"num_epochs": 1, "num_minibatches": 1, "max_grad_norm": 1e9}


class Scores(nn.Module):
    """Log-probabilities of stored units are the parameters; an action is the number of its row."""

    def __init__(self, log_probs: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(log_probs.clone())

    def log_prob(self, obs: Any, actions: Tensor, replay: Any) -> LogProbOutput:
        log_probs = self.table[actions]
        return LogProbOutput(log_probs=log_probs, entropy=torch.zeros_like(log_probs))


def rollout_of(
    rewards: Tensor,
    *,
    actions: Tensor | None = None,
    log_probs: Tensor | None = None,
    mask: Tensor | None = None,
    group_ids: Tensor | None = None,
    values: Tensor | None = None,
    **replay: Tensor,
) -> Rollout:
    """One decision in each of N rows, of U units."""
    count = len(rewards)
    rows = torch.arange(count)
    log_probs = torch.zeros(count, 1) if log_probs is None else log_probs
    yes, zeros = torch.ones(count, dtype=torch.bool), torch.zeros(count)

    def step(value: Tensor | None, default: Tensor) -> Tensor:
        return (default if value is None else value).unsqueeze(0)

    return Rollout(
        obs={},
        actions=step(actions, rows),
        log_probs=step(log_probs, log_probs),
        unit_mask=step(mask, torch.ones_like(log_probs, dtype=torch.bool)),
        values=step(values, zeros),
        next_values=step(zeros, zeros),
        rewards=step(rewards, rewards),
        terminated=step(yes, yes),
        truncated=step(~yes, yes),
        success=step(~yes, yes),
        valid=step(yes, yes),
        num_env_steps=step(yes.long(), yes),
        group_ids=step(group_ids, torch.zeros(count).long()),
        task_ids=step(torch.zeros(count).long(), yes),
        episode_ids=step(rows, rows),
        policy_version=step(torch.zeros(count).long(), yes),
        replay={name: value.unsqueeze(0) for name, value in replay.items()},
    )


def gradient(
    policy: Any, rollout: Rollout, advantages: Advantages, *, algorithm: Any = GRPO, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    update = algorithm(policy, algorithm.Config(**ONE_STEP, **options))
    stats = update.update(rollout, advantages, generator=torch.Generator().manual_seed(0))
    return policy.table.grad, stats


def of_lengths(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def ragged(**options: Any) -> tuple[Tensor, dict[str, float]]:
    """Gradient by token where answers of 2, 5 and 3 tokens have the advantages 1, 1 and -2."""
    mask = of_lengths(2, 5, 3)
    rollout = rollout_of(
        torch.tensor([1.0, 1.0, -2.0]),
        log_probs=torch.zeros(3, 5),
        mask=mask,
        unfinished=torch.tensor([False, True, False]),
        numeric=torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]).bool() & mask,
    )
    return gradient(
        Scores(torch.zeros(3, 5)), rollout, group_relative(rollout, scale="none"), **options
    )


# ---- what weighs equally: GRPO, Dr. GRPO, DAPO --------------------------------------------------


def test_the_mean_decides_how_much_a_token_of_a_long_answer_counts():
    mask = of_lengths(2, 5, 3)
    for name, options in {
        "grpo": {"loss_mean": "chunk"},
        "dapo": {"loss_mean": "token"},
        "dr_grpo": {"loss_mean": "constant", "constant_length": 5},
    }.items():
        grad, _ = ragged(**options)
        assert not grad[~mask].any()
        short, long, worse = (grad[row, 0].item() for row in range(3))
        assert grad[mask].tolist() == pytest.approx([short] * 2 + [long] * 5 + [worse] * 3)
        ratio = {"grpo": 5 / 2, "dapo": 1, "dr_grpo": 1}[name]
        assert short == pytest.approx(ratio * long)
        # a row, a token of ten, a token of fifteen that three answers of five would have
        assert short == pytest.approx(-{"grpo": 1 / 6, "dapo": 1 / 10, "dr_grpo": 1 / 15}[name])


class Sentences(nn.Module):
    """ "x" and "y", of one token, "za" and "zb", of two; logits of x, y, z and then of a, b."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits.clone())

    def log_prob(self, obs: Any, actions: Tensor, replay: Any) -> LogProbOutput:
        first, second = self.table[:3].log_softmax(0), self.table[3:].log_softmax(0)
        start, end = torch.tensor([0, 1, 2, 2])[actions], torch.tensor([0, 0, 0, 1])[actions]
        log_probs = torch.stack([first[start], second[end]], 1)
        return LogProbOutput(log_probs=log_probs, entropy=torch.zeros_like(log_probs))

    def probability(self) -> Tensor:
        first, second = self.table[:3].softmax(0), self.table[3:].softmax(0)
        return torch.cat([first[:2], first[2] * second])


def test_only_a_constant_denominator_gives_the_gradient_of_the_expected_reward():
    # each of the four sentences has probability 1/4: four rows are the whole distribution
    policy = Sentences(torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]).log())
    rewards = torch.tensor([1.0, 0.0, 2.0, 0.5])
    exact = torch.autograd.grad(-(policy.probability() * rewards).sum(), policy.table)[0]
    old = policy.log_prob(None, torch.arange(4), {}).log_probs.detach()
    rollout = rollout_of(rewards, log_probs=old, mask=of_lengths(1, 1, 2, 2))
    advantages = group_relative(rollout, scale="none")
    grad, _ = gradient(policy, rollout, advantages, loss_mean="constant", constant_length=1)
    torch.testing.assert_close(grad, exact)
    per_answer, _ = gradient(policy, rollout, advantages, loss_mean="chunk")
    assert torch.cosine_similarity(per_answer, exact, dim=0) < 0.99


def test_answers_that_were_cut_carry_no_gradient_and_stay_in_the_baseline():
    grad, stats = ragged(skip_unfinished=True)
    assert not grad[1].any()
    whole, _ = ragged()
    # five tokens of ten are left in the mean, the advantages are those of three answers
    torch.testing.assert_close(grad[[0, 2]], 2 * whole[[0, 2]])
    assert stats["unfinished_fraction"] == pytest.approx(1 / 3)
    rollout = rollout_of(torch.tensor([1.0, 0.0]), unfinished=torch.tensor([True, True]))
    policy: Any = Scores(torch.zeros(2, 1))
    update = GRPO(policy, GRPO.Config(skip_unfinished=True))
    assert update.update(rollout, group_relative(rollout), generator=None) == {
        "num_gradient_steps": 0.0
    }


def test_numeric_tokens_weigh_more_in_a_mean_that_stays_one():
    plain, weighted = ragged()[0], ragged(numeric_weight=3.0)[0]
    mask = of_lengths(2, 5, 3)
    numeric = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]).bool()
    relative = weighted[mask] / plain[mask]
    heavy, light = relative[numeric[mask]], relative[~numeric[mask]]
    assert heavy.tolist() == pytest.approx([3 * light[0].item()] * 4)
    assert light.tolist() == pytest.approx([light[0].item()] * 6)
    # the mean of equal losses is that loss: 4 heavy and 6 light weights average to 1
    assert (heavy.sum() + light.sum()).item() == pytest.approx(10)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_mean": "constant", "constant_length": 7},
        {"numeric_weight": 2.5},
        {"ratio": "sequence", "loss_mean": "chunk"},
        {"skip_unfinished": True},
    ],
)
def test_micro_batches_do_not_change_the_gradient(options):
    torch.testing.assert_close(ragged(**options)[0], ragged(**options, micro_batch_size=1)[0])
    torch.testing.assert_close(ragged(**options)[0], ragged(**options, micro_batch_size=2)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"loss_mean": "constant"},
        {"constant_length": 5},
        {"numeric_weight": 2.0, "loss_mean": "chunk"},
        {"numeric_weight": -1.0},
        {"max_log_ratio": 0.0},
    ],
)
def test_options_that_do_not_fit_together_are_refused(options):
    with pytest.raises(ValueError, match="set"):
        GRPO(Scores(torch.zeros(1, 1)), GRPO.Config(**options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("options", [{"numeric_weight": 2.0}, {"skip_unfinished": True}])
def test_a_policy_that_does_not_tell_what_an_option_needs_is_refused(options):
    rollout = rollout_of(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="this policy does not tell"):
        gradient(Scores(torch.zeros(2, 1)), rollout, group_relative(rollout), **options)


# ---- the ratio: GSPO, CAD-RL, StableReinforce ---------------------------------------------------


def surrogate(ratios: Tensor, advantage: float, **options: Any) -> tuple[float, Tensor, Any]:
    """Loss, gradient by token and statistics of one answer with these ratios."""
    log_probs = ratios.log().unsqueeze(0).requires_grad_()
    loss, stats = clipped_surrogate(
        log_probs, torch.zeros_like(log_probs), torch.tensor([advantage]).double(), **options
    )
    return loss.item(), torch.autograd.grad(loss, log_probs)[0][0], stats


def test_a_sequence_has_the_geometric_mean_of_its_ratios():
    ratios = torch.tensor([1.5, 1.2, 0.7, 0.9]).double()
    mean = math.prod(ratios.tolist()) ** 0.25
    loss, grad, stats = surrogate(ratios, 2.0, ratio="sequence", clip_ratio_high=1.0)
    assert loss == pytest.approx(-2 * mean) and stats["ratio_max"].item() == pytest.approx(mean)
    assert grad.tolist() == pytest.approx([grad[0].item()] * 4) and grad[0] < 0
    unit = surrogate(ratios, 2.0)[2]
    assert stats["approx_kl"].item() == pytest.approx(unit["approx_kl"].item())


def test_tokens_that_cancel_are_not_clipped_and_a_drift_of_all_of_them_is():
    cancel, drift = torch.tensor([3.0, 1 / 3]).double(), torch.full((2,), 1.05).double()
    options: dict[str, Any] = {"clip_ratio_low": 0.04, "clip_ratio_high": 0.04}
    for ratios, unit, sequence in ((cancel, 0.5, 0.0), (drift, 1.0, 1.0)):
        assert surrogate(ratios, 1.0, **options)[2]["clip_fraction"] == unit
        loss, grad, stats = surrogate(ratios, 1.0, ratio="sequence", **options)
        assert stats["clip_fraction"] == sequence and bool(grad.any()) == (sequence == 0)
    assert loss == pytest.approx(-1.04)


def test_padding_does_not_enter_the_ratio_of_a_sequence():
    log_probs = torch.tensor([[0.3, -0.1, math.nan, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False]])
    advantages = torch.ones(1).double()
    short, _ = clipped_surrogate(
        log_probs[:, :2], torch.zeros(1, 2).double(), advantages, ratio="sequence"
    )
    log_probs.requires_grad_()
    padded, stats = clipped_surrogate(
        log_probs, torch.zeros(1, 4).double(), advantages, mask=mask, ratio="sequence"
    )
    assert padded.item() == pytest.approx(short.item())
    grad = torch.autograd.grad(padded, log_probs)[0]
    assert grad.isfinite().all() and not grad[~mask].any() and stats["approx_kl"].isfinite()


def test_the_gradient_of_a_sequence_ratio_is_the_numeric_one():
    generator = torch.Generator().manual_seed(0)
    old, drift = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    advantages = torch.randn(5, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 4, generator=generator) > 0.3

    def loss(x: Tensor) -> Tensor:
        return clipped_surrogate(x, old, advantages, mask=mask, ratio="sequence")[0]

    assert torch.autograd.gradcheck(loss, (old + 0.2 * drift).requires_grad_())


def test_the_first_step_of_a_sequence_ratio_is_the_policy_gradient_of_the_mean_token():
    torch.testing.assert_close(
        ragged(ratio="sequence", loss_mean="chunk")[0], ragged(loss_mean="chunk")[0]
    )


@pytest.mark.parametrize(("ratio", "advantage"), [(1.7, 1.0), (0.65, -1.0)])
def test_the_stretched_trust_region_moves_where_the_usual_one_stands(ratio, advantage):
    ratios = torch.tensor([ratio]).double()
    assert not surrogate(ratios, advantage)[1].any()
    stretched: dict[str, Any] = {"clip_ratio_low": 0.4, "clip_ratio_high": 0.8}
    assert surrogate(ratios, advantage, **stretched)[1].any()
    beyond = torch.tensor([1.81 if ratio > 1 else 0.59]).double()
    loss, grad, _ = surrogate(beyond, advantage, **stretched)
    assert not grad.any() and loss == pytest.approx(-advantage * (1.8 if ratio > 1 else 0.6))


@pytest.mark.parametrize("log_ratio", [1e3, -1e3, 88.8])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_exploding_log_ratio_is_limited_before_the_exponential(log_ratio, advantage):
    policy = Scores(torch.tensor([[log_ratio], [0.0]]))
    rollout = rollout_of(torch.tensor([advantage, -advantage]), log_probs=torch.zeros(2, 1))
    advantages = group_relative(rollout, scale="none")
    grad, stats = gradient(
        policy, rollout, advantages, max_log_ratio=math.log(1e3), loss_mean="chunk"
    )
    assert grad.isfinite().all() and not grad[0].any() and grad[1].any()
    assert all(math.isfinite(value) for value in stats.values())
    if log_ratio > 0 > advantage:  # the only one whose unclipped branch counts
        assert stats["policy_loss"] == pytest.approx((1000 - 1) / 2, rel=1e-4)
    assert math.isinf(torch.tensor(abs(log_ratio)).exp().item())


# ---- the sigma filter ---------------------------------------------------------------------------


def filtered(rewards: Tensor, sigma: float = 3.0) -> tuple[Tensor, dict[str, float]]:
    rollout = rollout_of(rewards, group_ids=torch.arange(len(rewards)))
    result = reinforce_pp(rollout, sigma_filter=sigma)
    assert result.keep.all()
    return result.advantages[0], result.stats


@pytest.mark.parametrize("mean", [0.0, 5.0, -100.0])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_window_is_centred_on_the_mean_wherever_that_lies(mean, scale):
    rewards = torch.randn(64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    rewards[[7, 40]] = torch.tensor([30.0, -25.0])
    found, stats = filtered(mean + scale * rewards)
    plain, _ = filtered(mean + scale * rewards, sigma=0.0)
    assert found[[7, 40]].tolist() == [0.0, 0.0]
    others = [row for row in range(64) if row not in (7, 40)]
    assert torch.equal(found[others], plain[others]) and found[others].abs().min() > 0
    assert stats["sigma_filtered_fraction"] == pytest.approx(2 / 64)


def test_of_ten_numbers_none_is_three_standard_deviations_away_and_of_32_one_can_be():
    for count, outside in ((10, 0), (11, 1), (32, 1)):
        rewards = torch.zeros(count)
        rewards[3] = 1e4
        assert filtered(rewards)[1]["sigma_filtered_fraction"] * count == pytest.approx(outside)
    with pytest.raises(ValueError, match="above 0"):
        filtered(torch.zeros(3), sigma=-1.0)


# ---- REINFORCE with baseline, RLOO with the KL in the reward -------------------------------------


class Bandit(nn.Module):
    """A choice between as many actions as there are logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits.clone())

    def log_prob(self, obs: Any, actions: Tensor, replay: Any) -> LogProbOutput:
        log_probs = self.table.log_softmax(0)[actions].unsqueeze(1)
        return LogProbOutput(log_probs=log_probs, entropy=torch.zeros_like(log_probs))


LOGITS = torch.tensor([0.2, -0.4, 0.9])
REWARDS = torch.tensor([1.0, 3.0, -0.5])


@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_reinforce_with_any_baseline_has_the_gradient_of_the_expected_reward(baseline):
    probability = LOGITS.softmax(0)
    policy = Bandit(LOGITS)
    exact = torch.autograd.grad(-(policy.table.softmax(0) * REWARDS).sum(), policy.table)[0]
    mean, square = torch.zeros(3), torch.zeros(3)
    for action in range(3):
        actions = torch.tensor([action])
        rollout = rollout_of(
            REWARDS[actions],
            actions=actions,
            log_probs=LOGITS.log_softmax(0)[actions].unsqueeze(1),
            values=torch.full((1,), baseline),
        )
        grad, _ = gradient(
            Bandit(LOGITS),
            rollout,
            monte_carlo(rollout, normalize="none"),
            algorithm=PPO,
            loss_mean="constant",
            constant_length=1,
            value_coef=0.0,
        )
        mean, square = mean + probability[action] * grad, square + probability[action] * grad**2
    torch.testing.assert_close(mean, exact)
    assert (square - mean.square()).sum() > 0


@pytest.mark.parametrize("kl_coef", [0.0, 0.7])
def test_rloo_with_the_kl_in_the_reward_has_the_gradient_of_reward_minus_kl(kl_coef):
    reference = torch.tensor([0.0, 1.0, -1.0])
    exact_policy = Bandit(LOGITS)
    here = torch.distributions.Categorical(logits=exact_policy.table)
    there = torch.distributions.Categorical(logits=reference)
    kl = torch.distributions.kl_divergence(here, there)
    objective = (here.probs * REWARDS).sum() - kl_coef * kl
    exact = -torch.autograd.grad(objective, exact_policy.table)[0]
    probability, mean = LOGITS.softmax(0), torch.zeros(3)
    for pair in itertools.product(range(3), repeat=2):
        actions = torch.tensor(pair)
        policy: Any = Bandit(reference)
        options: dict[str, Any] = {"kl_coef": kl_coef, "kl_in": "reward", "kl_estimator": "k1"}
        update = GRPO(policy, GRPO.Config(**ONE_STEP, **options, loss_mean="chunk"))
        policy.table.data.copy_(LOGITS)  # the reference stays at the start
        rollout = update.shape_rewards(
            rollout_of(
                REWARDS[actions],
                actions=actions,
                log_probs=LOGITS.log_softmax(0)[actions].unsqueeze(1),
            )
        )
        update.update(rollout, rloo(rollout, drop_uninformative=False), generator=None)
        assert policy.table.grad is not None
        mean += probability[actions].prod() * policy.table.grad
    torch.testing.assert_close(mean, exact)
