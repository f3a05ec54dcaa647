"""Losses by their properties: gradients, bounds, expectations, known numbers, other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from embodied_rl.losses.entropy import entropy_bonus
from embodied_rl.losses.flow_matching import flow_matching_loss
from embodied_rl.losses.kl import gaussian_kl, kl_estimate, kl_in_reward, kl_penalty
from embodied_rl.losses.policy import clipped_surrogate, policy_gradient, ratio_stats
from embodied_rl.losses.value import explained_variance, value_loss

NAN, INF = float("nan"), float("inf")


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().clone().requires_grad_()
    loss(at).backward()
    assert at.grad is not None
    return at.grad


# ---- clipped surrogate ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.5, 1.0, -1.2, False),
        (0.5, 1.0, -0.5, True),
        (0.5, -1.0, 0.8, False),
        (1.5, -1.0, 1.5, True),
        (1.1, 2.0, -2.2, True),
        (0.9, -2.0, 1.8, True),
    ],
)
def test_clipped_surrogate_at_known_points(
    ratio: float, advantage: float, loss: float, moves: bool
) -> None:
    log_probs = torch.tensor([[math.log(ratio)]], dtype=torch.float64)

    def run(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return clipped_surrogate(x, torch.zeros_like(x), torch.tensor([advantage]).double())

    value, stats = run(log_probs)
    assert value.item() == pytest.approx(loss)
    assert (gradient(lambda x: run(x)[0], log_probs) != 0).item() == moves
    assert stats["clip_fraction"].item() == float(not moves)
    assert stats["ratio_mean"].item() == pytest.approx(ratio)


def test_asymmetric_clip_bounds_each_side_on_its_own() -> None:
    log_probs = torch.tensor([1.25, 0.85]).log()[:, None]
    advantages = torch.tensor([1.0, -1.0])
    run = partial(clipped_surrogate, log_probs, torch.zeros(2, 1), advantages)
    assert run(clip_ratio_low=0.1, clip_ratio_high=0.28)[1]["clip_fraction"] == 0.5
    assert run(clip_ratio_low=0.28, clip_ratio_high=0.28)[1]["clip_fraction"] == 0


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("ratio_scale", [1.0, 0.3])
def test_clipped_surrogate_gradient_is_the_numeric_gradient(
    dual_clip: float | None, ratio_scale: float
) -> None:
    old, advantages = randn(6, 4, seed=1), randn(6, seed=2)
    log_probs = (old + 0.6 * randn(6, 4, seed=3)).requires_grad_()
    mask = randn(6, 4, seed=4) > -0.5

    def loss(x: Tensor) -> Tensor:
        return clipped_surrogate(
            x, old, advantages, mask=mask, dual_clip=dual_clip, ratio_scale=ratio_scale
        )[0]

    assert torch.autograd.gradcheck(loss, log_probs)


def test_clipped_surrogate_at_ratio_one_is_the_policy_gradient() -> None:
    log_probs, advantages = randn(7, 3, seed=1), randn(7, seed=2)
    plain = gradient(lambda x: policy_gradient(x, advantages)[0], log_probs)
    first = gradient(lambda x: clipped_surrogate(x, log_probs, advantages)[0], log_probs)
    torch.testing.assert_close(first, plain)
    scaled = gradient(
        lambda x: clipped_surrogate(x, log_probs, advantages, ratio_scale=0.25)[0], log_probs
    )
    torch.testing.assert_close(scaled, plain / 4)
    stats = clipped_surrogate(log_probs, log_probs, advantages)[1]
    assert {name: value.item() for name, value in stats.items()} == {
        "ratio_mean": 1, "ratio_max": 1, "approx_kl": 0, "clip_fraction": 0
    }  # fmt: skip


def test_policy_gradient_of_a_bandit_is_the_gradient_of_its_expected_reward() -> None:
    logits, rewards = randn(5, seed=1), randn(5, seed=2)
    probs = logits.softmax(-1)
    exact = gradient(lambda x: -(x.softmax(-1) * rewards).sum(), logits)
    estimate = gradient(
        lambda x: policy_gradient(
            x.log_softmax(-1)[:, None], rewards, reduce=lambda loss, _: (loss[:, 0] * probs).sum()
        )[0],
        logits,
    )
    torch.testing.assert_close(estimate, exact)


def test_clipping_is_pessimistic_and_linear_in_the_advantage() -> None:
    old, advantages = randn(50, 2, seed=1), randn(50, 2, seed=2)
    log_probs = old + randn(50, 2, seed=3)
    keep = partial(clipped_surrogate, log_probs, old, reduce=lambda loss, _: loss)
    clipped, free = keep(advantages)[0], keep(advantages, clip_ratio_low=1, clip_ratio_high=1e9)[0]
    assert (clipped >= free - 1e-12).all() and (clipped > free + 1e-3).any()
    torch.testing.assert_close(keep(3 * advantages)[0], 3 * clipped)


def test_clip_ranges_per_unit_equal_each_unit_on_its_own() -> None:
    old, advantages = randn(30, 3, seed=1), randn(30, seed=2)
    log_probs = old + 0.3 * randn(30, 3, seed=3)
    low, high = torch.tensor([0.01, 0.1, 0.4]), torch.tensor([0.02, 0.3, 0.2])
    together, stats = clipped_surrogate(
        log_probs, old, advantages, clip_ratio_low=low, clip_ratio_high=high
    )
    alone = [
        clipped_surrogate(
            log_probs[:, [u]],
            old[:, [u]],
            advantages,
            clip_ratio_low=low[u].item(),
            clip_ratio_high=high[u].item(),
        )
        for u in range(3)
    ]
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in alone) / 3, rel=1e-6)
    fractions = [s["clip_fraction"].item() for _, s in alone]
    assert stats["clip_fraction"].item() == pytest.approx(sum(fractions) / 3)
    assert len(set(fractions)) == 3


def test_dual_clip_bounds_the_loss_of_negative_advantages_only() -> None:
    old, advantages = torch.zeros(60, 1).double(), randn(60, seed=1)
    log_probs = 3 * randn(60, 1, seed=2)
    rows = partial(clipped_surrogate, reduce=lambda loss, _: loss[:, 0])
    plain = rows(log_probs, old, advantages)[0]
    dual, stats = rows(log_probs, old, advantages, dual_clip=3.0)
    bound = 3.0 * advantages.abs()
    negative = advantages < 0
    assert (plain[negative] > bound[negative]).any()
    assert (dual[negative] <= bound[negative] + 1e-12).all()
    torch.testing.assert_close(dual[~negative], plain[~negative])
    changed = (dual != plain).double().mean()
    assert stats["dual_clip_fraction"].item() == pytest.approx(changed.item()) != 0
    grads = gradient(lambda x: rows(x, old, advantages, dual_clip=3.0)[0].sum(), log_probs)
    assert (grads[:, 0][dual != plain] == 0).all()
    with pytest.raises(ValueError, match="above 1"):
        clipped_surrogate(log_probs, old, advantages, dual_clip=0.5)


def test_ratio_scale_over_a_summed_log_ratio_is_the_geometric_mean_of_ratios() -> None:
    ratios = randn(9, 4, seed=1).exp()
    joint = ratios.log().sum(-1, keepdim=True)
    geometric = ratios.prod(-1) ** 0.25
    stats = ratio_stats(joint, ratio_scale=0.25)
    assert stats["ratio_mean"].item() == pytest.approx(geometric.mean().item())
    assert stats["ratio_max"].item() == pytest.approx(geometric.max().item())


def test_approx_kl_estimates_the_divergence_of_the_old_from_the_new_policy() -> None:
    old, new = Normal(0.0, 1.0), Normal(0.3, 1.2)
    samples = randn(200_000, 1, seed=1)
    stats = ratio_stats(new.log_prob(samples) - old.log_prob(samples), ratio_scale=0.1)
    exact = kl_divergence(old, new).item()
    assert stats["approx_kl"].item() == pytest.approx(exact, rel=0.05)
    assert kl_divergence(new, old).item() != pytest.approx(exact, rel=0.15)


def test_a_policy_that_ran_away_gives_finite_losses() -> None:
    log_probs = torch.tensor([[1000.0], [-1000.0], [INF]])
    loss, stats = clipped_surrogate(log_probs, torch.zeros(3, 1), torch.tensor([-1.0, 1.0, 1.0]))
    assert loss.isfinite()
    assert all(value.isfinite() for value in stats.values())


# ---- masks, over every loss ----------------------------------------------------------------------

LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, Tensor]]]] = {
    "surrogate": lambda x, y, mask: clipped_surrogate(x, y, y.cos(), mask=mask, dual_clip=2.0),
    "policy_gradient": lambda x, y, mask: policy_gradient(x, y, mask=mask),
    "k2": lambda x, y, mask: kl_penalty(x, y, estimator="k2", mask=mask),
    "k3": lambda x, y, mask: kl_penalty(x, y, estimator="k3", mask=mask),
    "entropy": lambda x, y, mask: entropy_bonus(x * 1.0, mask=mask),
    "value": lambda x, y, mask: value_loss(x, y, mask=mask),
    "value_clip": lambda x, y, mask: value_loss(
        x, y, old_values=y + 1, clip_range=0.5, huber_delta=0.7, mask=mask
    ),
    "flow": lambda x, y, mask: flow_matching_loss(
        x[..., None], y[..., None], y[..., None] ** 2, mask=mask
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("padding", [NAN, INF, -INF, 1e30])
def test_masked_padding_changes_nothing(name: str, padding: float) -> None:
    x, y = randn(5, 4, seed=1), randn(5, 4, seed=2)
    padded_x, padded_y = (torch.nn.functional.pad(z, (0, 3), value=padding) for z in (x, y))
    mask = torch.nn.functional.pad(torch.ones(5, 4, dtype=torch.bool), (0, 3))
    loss, stats = LOSSES[name](x, y, None)
    padded_loss, padded_stats = LOSSES[name](padded_x, padded_y, mask)
    torch.testing.assert_close(padded_loss, loss)
    assert stats.keys() == padded_stats.keys()
    for key, value in stats.items():
        torch.testing.assert_close(padded_stats[key], value)
    grads = gradient(lambda z: LOSSES[name](z, y, None)[0], x)
    padded_grads = gradient(lambda z: LOSSES[name](z, padded_y, mask)[0], padded_x)
    torch.testing.assert_close(padded_grads[:, :4], grads)
    assert (padded_grads[:, 4:] == 0).all()


def test_advantages_of_padding_may_be_anything() -> None:
    log_probs, old = randn(2, 3, seed=1), randn(2, 3, seed=2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.where(mask, randn(2, 3, seed=3), NAN)
    for loss in (
        lambda x: clipped_surrogate(x, old, advantages, mask=mask, dual_clip=3.0)[0],
        lambda x: policy_gradient(x, advantages, mask=mask)[0],
    ):
        assert gradient(loss, log_probs).isfinite().all()
        assert loss(log_probs).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_everything_masked_gives_zero_loss_and_gradient(name: str) -> None:
    x, y = randn(3, 2, seed=1), randn(3, 2, seed=2)
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    assert LOSSES[name](x, y, nothing)[0] == 0
    assert (gradient(lambda z: LOSSES[name](z, y, nothing)[0], x) == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_statistics_carry_no_gradient(name: str) -> None:
    x = randn(3, 2, seed=1).requires_grad_()
    loss, stats = LOSSES[name](x, randn(3, 2, seed=2), None)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in stats.values())


# ---- KL ------------------------------------------------------------------------------------------

GRID = torch.linspace(-12, 12, 20001, dtype=torch.float64)
STEP = (GRID[1] - GRID[0]).item()


def expected_kl(params: Tensor, reference: Normal, estimator: str) -> Tensor:
    """Integral of the estimate under the policy, whose density carries no gradient."""
    policy = Normal(params[0], params[1].exp())
    log_probs = policy.log_prob(GRID)
    estimate = kl_estimate(log_probs, reference.log_prob(GRID), estimator=estimator)  # pyright: ignore[reportArgumentType]
    return (log_probs.detach().exp() * estimate).sum() * STEP


PARAMS = torch.tensor([0.4, math.log(0.8)], dtype=torch.float64)
REFERENCE = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: str) -> None:
    exact = kl_divergence(Normal(PARAMS[0], PARAMS[1].exp()), REFERENCE)
    torch.testing.assert_close(expected_kl(PARAMS, REFERENCE, estimator), exact)


def test_k2_is_close_when_the_policies_are_and_biased_when_not() -> None:
    near = torch.tensor([0.05, 0.0], dtype=torch.float64)
    exact = kl_divergence(Normal(near[0], near[1].exp()), REFERENCE).item()
    assert expected_kl(near, REFERENCE, "k2").item() == pytest.approx(exact, rel=0.01)
    exact = kl_divergence(Normal(PARAMS[0], PARAMS[1].exp()), REFERENCE).item()
    assert expected_kl(PARAMS, REFERENCE, "k2").item() != pytest.approx(exact, rel=0.01)


def test_expected_gradients_of_the_estimators_are_those_the_module_names() -> None:
    def reverse(params: Tensor) -> Tensor:
        return kl_divergence(Normal(params[0], params[1].exp()), REFERENCE)

    def forward(params: Tensor) -> Tensor:
        return kl_divergence(REFERENCE, Normal(params[0], params[1].exp()))

    for estimator, exact in (
        ("k1", torch.zeros(2, dtype=torch.float64)),
        ("k2", gradient(reverse, PARAMS)),
        ("k3", gradient(forward, PARAMS)),
    ):
        found = gradient(partial(expected_kl, reference=REFERENCE, estimator=estimator), PARAMS)
        torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)


def test_k1_is_refused_as_a_loss_and_unknown_estimators_everywhere() -> None:
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="use k2 or k3"):
        kl_penalty(x, x, estimator="k1")
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(x, x, estimator="k4")  # pyright: ignore[reportArgumentType]


def test_kl_penalty_pulls_towards_the_reference() -> None:
    logits, reference = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.5, 0.2, -0.3])
    logits.requires_grad_()
    for _ in range(2000):
        log_probs, ref = logits.log_softmax(-1), reference.log_softmax(-1)
        weights = log_probs.detach().exp()
        loss, _ = kl_penalty(
            log_probs[:, None], ref[:, None], reduce=lambda x, _, w=weights: (x[:, 0] * w).sum()
        )
        (grad,) = torch.autograd.grad(loss, logits)
        logits = (logits - 0.5 * grad).detach().requires_grad_()
    torch.testing.assert_close(logits.softmax(-1), reference.softmax(-1), atol=1e-3, rtol=0)


def test_kl_in_reward_subtracts_the_log_ratio_of_executed_units() -> None:
    rewards = torch.tensor([[1.0, 2.0]])
    log_probs = torch.tensor([[[0.5, NAN], [1.0, 1.0]]])
    reference = torch.tensor([[[0.0, 0.0], [2.0, 3.0]]])
    unit_mask = torch.tensor([[[True, False], [True, True]]])
    shaped = kl_in_reward(rewards, log_probs, reference, kl_coef=0.1, unit_mask=unit_mask)
    torch.testing.assert_close(shaped, torch.tensor([[0.95, 2.3]]))


def test_gaussian_kl_is_the_closed_form_of_torch() -> None:
    mean, ref, std = randn(4, 3, seed=1), randn(4, 3, seed=2), randn(3, seed=3).exp()
    exact = kl_divergence(Normal(mean, std), Normal(ref, std))
    torch.testing.assert_close(gaussian_kl(mean, ref, std=std), exact)


# ---- value, entropy, flow matching ---------------------------------------------------------------


def test_value_loss_is_half_the_squared_error_or_the_huber_loss_of_torch() -> None:
    values, returns = 3 * randn(40, seed=1), randn(40, seed=2)
    squared, stats = value_loss(values, returns)
    torch.testing.assert_close(2 * squared, torch.nn.functional.mse_loss(values, returns))
    assert stats == {}
    for delta in (0.1, 1.0, 50.0):
        huber = torch.nn.functional.huber_loss(values, returns, delta=delta)
        torch.testing.assert_close(value_loss(values, returns, huber_delta=delta)[0], huber)


def test_value_clipping_stops_predictions_that_moved_far_towards_the_target() -> None:
    old = torch.zeros(4)
    values = torch.tensor([0.1, 0.5, -0.5, 0.5])
    returns = torch.tensor([1.0, 1.0, 1.0, 0.4])
    clipped = partial(value_loss, old_values=old, clip_range=0.2)
    grads = gradient(lambda v: clipped(v, returns)[0], values)
    assert (grads != 0).tolist() == [True, False, True, False]
    _, stats = clipped(values, returns)
    assert stats["value_clip_fraction"] == 0.5
    free, _ = value_loss(values, returns)
    torch.testing.assert_close(value_loss(values, returns, old_values=old, clip_range=9)[0], free)
    assert clipped(values, returns)[0] > free


@pytest.mark.parametrize(
    "options", [{"clip_range": 0.2}, {"clip_range": 0.0}, {"huber_delta": -1.0}]
)
def test_value_loss_refuses_options_that_cannot_work(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        value_loss(torch.zeros(2), torch.zeros(2), **options)  # pyright: ignore[reportArgumentType]


def test_explained_variance_is_one_for_the_truth_and_zero_for_a_constant() -> None:
    returns = randn(30, seed=1)
    assert explained_variance(returns + 5, returns) == 1
    assert explained_variance(torch.full_like(returns, 2.0), returns).item() == pytest.approx(0)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3)
    padded = torch.cat([returns, torch.tensor([NAN])])
    assert explained_variance(padded, padded, mask=~padded.isnan()) == 1


def test_entropy_bonus_grows_the_entropy() -> None:
    logits = randn(1, 5, seed=1)

    def loss(x: Tensor) -> Tensor:
        return entropy_bonus(torch.distributions.Categorical(logits=x).entropy()[:, None])[0]

    after = logits - 0.1 * gradient(loss, logits)
    spread = [-(x.softmax(-1) * x.log_softmax(-1)).sum() for x in (logits, after)]
    assert spread[1] > spread[0]
    assert entropy_bonus(torch.full((2, 3), 1.5))[1]["entropy"] == 1.5


def test_one_euler_step_along_the_velocity_target_leads_from_noise_to_action() -> None:
    actions, noise = randn(3, 2, 4, seed=1), randn(3, 2, 4, seed=2)
    velocity = torch.zeros_like(noise).requires_grad_()
    for _ in range(60):
        loss, _ = flow_matching_loss(velocity, noise, actions)
        (grad,) = torch.autograd.grad(loss, velocity)
        velocity = (velocity - 4 * grad).detach().requires_grad_()
    # from t = 1 (noise) to t = 0 (action)
    torch.testing.assert_close(noise - velocity.detach(), actions, atol=1e-6, rtol=0)


def test_flow_matching_averages_over_dimensions_and_counted_actions() -> None:
    zeros = torch.zeros(2, 3, 2)
    velocity = torch.zeros(2, 3, 2)
    velocity[0, 0, 0] = 2.0
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert flow_matching_loss(velocity, zeros, zeros, mask=mask)[0].item() == pytest.approx(2 / 3)
