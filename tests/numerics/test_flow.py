"""Flow samplers and chain likelihoods against closed forms, quadrature and loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from embodied_rl import flow
from embodied_rl.flow import FlowConfig

STOCHASTIC = ("sde", "cps", "noise")


def config(**options: Any) -> FlowConfig:
    options.setdefault("unit_reduction", "sum")
    options.setdefault("chain", "joint_sum")
    return FlowConfig(**options)


def gaussian_data_velocity(data_std: float) -> flow.Denoise:
    """Exact E[x_1 - x_0 | x_t] for x_0 ~ N(0, data_std^2)."""

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, None]:
        t = t.unsqueeze(-1).unsqueeze(-1)
        variance = ((1 - t) * data_std) ** 2 + t**2
        return (t - (1 - t) * data_std**2) / variance * x, None

    return denoise


def final_std(denoise: flow.Denoise, options: FlowConfig, *, step: int | None = None) -> float:
    """Exact std of the action under a linear velocity, from its response to each unit noise."""
    steps = options.num_denoise_steps
    rows = torch.eye(steps + 1, dtype=torch.float64)
    index = None if step is None else torch.full((steps + 1,), step)
    states = flow.sample_chain(
        denoise,
        rows[:, 0].view(-1, 1, 1),
        rows[:, 1:].view(-1, steps, 1, 1),
        options,
        step_index=index,
    )
    return float(states[:, -1].norm())


def mean_and_std(
    options: FlowConfig, k: int, x: Tensor, velocity: Tensor, std: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and std of step k from state x, by sampling with noise 0 and noise 1.

    Only step k is stochastic, and the steps before it have zero velocity, so x arrives unchanged.
    """
    steps = options.num_denoise_steps

    def denoise(state: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        here = bool((t - (1 - k / steps)).abs().max() < 1e-9)
        return (velocity if here else torch.zeros_like(velocity)).unsqueeze(1), std

    single = FlowConfig(**{**vars(options), "chain": "single_step"})
    index = torch.full((len(x),), k)
    shape = (len(x), steps, *x.shape[1:])
    zero = flow.sample_chain(denoise, x, torch.zeros(shape).double(), single, step_index=index)
    one = flow.sample_chain(denoise, x, torch.ones(shape).double(), single, step_index=index)
    assert torch.equal(zero[:, k], x)
    return zero[:, k + 1], one[:, k + 1] - zero[:, k + 1]


@pytest.mark.parametrize("steps", [2, 4, 10])
@pytest.mark.parametrize("noise_level", [0.3, 0.5, 1.0])
def test_sde_step_is_that_of_flow_grpo(steps: int, noise_level: float) -> None:
    torch.manual_seed(0)
    x, v = torch.randn(2, 16, 3, 2, dtype=torch.float64)
    options = config(num_denoise_steps=steps, noise_level=noise_level)
    delta = 1 / steps
    for k in range(steps):
        t = 1 - k * delta
        sigma = noise_level * math.sqrt(t / (1 - t if k else delta))
        mean, std = mean_and_std(options, k, x, v)
        drift = v + sigma**2 / (2 * t) * (x + (1 - t) * v)
        torch.testing.assert_close(mean, x - delta * drift)
        torch.testing.assert_close(std, torch.full_like(std, sigma * math.sqrt(delta)))


@pytest.mark.parametrize("steps", [2, 4, 9])
def test_first_and_last_std_of_sde(steps: int) -> None:
    std = flow.transition_steps("sde", steps, noise_level=0.7, dtype=torch.float64).std
    assert float(std[0]) == pytest.approx(0.7)
    assert float(std[-1]) == pytest.approx(0.7 / math.sqrt(steps * (steps - 1)))


def test_cps_step_by_hand() -> None:
    """K=2, a=2/3: cos = 1/2, sin = sqrt(3)/2, s = 1/2, x0_hat = x - v, x1_hat = x."""
    x, v = torch.randn(2, 8, 1, 2, dtype=torch.float64)
    mean, std = mean_and_std(config(sampler="cps", num_denoise_steps=2, noise_level=2 / 3), 0, x, v)
    torch.testing.assert_close(mean, 0.75 * x - 0.5 * v)
    torch.testing.assert_close(std, torch.full_like(std, math.sqrt(3) / 4))


@pytest.mark.parametrize("noise_level", [0.2, 0.5, 0.9])
def test_cps_keeps_the_amount_of_noise(noise_level: float) -> None:
    """With perfect predictions x_s = (1-s) x_0 + (unit noise) s at every step."""
    steps = flow.transition_steps("cps", 8, noise_level=noise_level, dtype=torch.float64)
    grid = flow.time_grid(8)
    t, s = grid[:-1], grid[1:]
    # x = (1-t) x0 + t x1 and v = x1 - x0, so these are the coefficients of x0 and of x1.
    data_coef = steps.x_coef * (1 - t) - steps.v_coef
    noise_coef = steps.x_coef * t + steps.v_coef
    torch.testing.assert_close(data_coef, 1 - s)
    torch.testing.assert_close((noise_coef**2 + steps.std**2).sqrt(), s)


def test_noise_sampler_has_the_ode_mean() -> None:
    x, v = torch.randn(2, 8, 1, 2, dtype=torch.float64)
    given = torch.full((8, 1, 1, 2), 0.1, dtype=torch.float64)
    mean, std = mean_and_std(config(sampler="noise", num_denoise_steps=4), 2, x, v, given)
    torch.testing.assert_close(mean, x - v / 4)
    torch.testing.assert_close(std, given.squeeze(1))


TABLE = [
    (4, "ode", 0.177),
    (4, "sde", 0.238),
    (4, "cps", 0.172),
    (40, "ode", 0.286),
    (40, "sde", 0.293),
    (40, "cps", 0.262),
    (1000, "ode", 0.300),
    (1000, "sde", 0.301),
    (1000, "cps", 0.276),
]


@pytest.mark.parametrize(("steps", "sampler", "expected"), TABLE)
def test_final_std_on_gaussian_data(steps: int, sampler: Any, expected: float) -> None:
    options = config(num_denoise_steps=steps, sampler=sampler, noise_level=0.5)
    std = final_std(gaussian_data_velocity(0.3), options)
    assert std == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.189), (1, 0.202), (2, 0.206), (3, 0.208)])
def test_final_std_with_one_sde_step(step: int, expected: float) -> None:
    options = FlowConfig(num_denoise_steps=4, noise_level=0.5, chain="single_step")
    std = final_std(gaussian_data_velocity(0.3), options, step=step)
    assert std == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("steps", "ode_error", "sde_error"),
    [(4, -0.159, -0.087), (50, -0.015, -0.005), (200, -0.004, 0.0005)],
)
def test_marginals_converge_with_the_number_of_steps(
    steps: int, ode_error: float, sde_error: float
) -> None:
    velocity = gaussian_data_velocity(0.5)
    ode = final_std(velocity, config(num_denoise_steps=steps, sampler="ode")) - 0.5
    sde = final_std(velocity, config(num_denoise_steps=steps, noise_level=0.5)) - 0.5
    assert ode == pytest.approx(ode_error, abs=6e-4)
    assert sde == pytest.approx(sde_error, abs=6e-4)


def test_no_noise_is_the_ode() -> None:
    torch.manual_seed(0)
    initial, noise = torch.randn(8, 2, 3).double(), torch.randn(8, 4, 2, 3).double()
    denoise = gaussian_data_velocity(0.4)
    expected = flow.ode_sample(denoise, initial, num_denoise_steps=4)
    for sampler in ("sde", "cps"):
        options = config(sampler=sampler, noise_level=1e-9)
        actions = flow.sample_chain(denoise, initial, noise, options)[:, -1]
        torch.testing.assert_close(actions, expected, atol=1e-7, rtol=0)
        loud = config(sampler=sampler, noise_level=0.5)
        actions = flow.sample_chain(denoise, initial, noise, loud)[:, -1]
        assert (actions - expected).abs().max() > 0.1


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_constant_velocity_is_exact(steps: int) -> None:
    initial, velocity = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    actions = flow.ode_sample(
        lambda x, t: (velocity.unsqueeze(1), None), initial, num_denoise_steps=steps
    )
    torch.testing.assert_close(actions, initial - velocity)


def test_learned_std_stays_in_range() -> None:
    raw = torch.tensor([-math.inf, -1e30, -1.0, 0.0, 1.0, 1e30, math.inf], dtype=torch.float64)
    std = flow.bounded_std(raw, std_min=0.08, std_max=0.16)
    assert float(std.min()) == pytest.approx(0.08)
    assert float(std.max()) == pytest.approx(0.16)
    assert float(std[3]) == pytest.approx(math.sqrt(0.08 * 0.16))
    assert bool((std.diff() >= 0).all())


class Toy:
    """A coupled nonlinear velocity with a learned std, on [B, S, H, D]."""

    def __init__(self, sampler: str, *, size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(size, size, generator=generator).double() / math.sqrt(size)
        self.has_std = sampler == "noise"
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        self.times += t.flatten().tolist()
        hidden = torch.tanh(x.flatten(2) @ self.weight + t.unsqueeze(-1)).view(x.shape)
        std = flow.bounded_std(hidden, std_min=0.1, std_max=0.3) if self.has_std else None
        return hidden - 0.5 * x, std


def toy_chain(
    options: FlowConfig, *, rows: int = 6, mask: Tensor | None = None
) -> tuple[Toy, flow.Chain, Tensor | None]:
    torch.manual_seed(0)
    horizon, dim = 3, 2
    toy = Toy(options.sampler, size=horizon * dim)
    steps = options.num_denoise_steps
    index = flow.draw_step_index(rows, options, generator=torch.Generator().manual_seed(3))
    initial = torch.randn(rows, horizon, dim).double()
    noise = torch.randn(rows, steps, horizon, dim).double()
    chain = flow.run_chain(toy, initial, noise, options, noise_mask=mask, step_index=index)
    return toy, chain, index


def brute_force(toy: Toy, states: Tensor, options: FlowConfig) -> Tensor:
    """Per-number log-density [B, K, H, D] of every step, one row, step and law at a time."""
    steps, level = options.num_denoise_steps, options.noise_level
    terms = torch.zeros_like(states[:, 1:])
    for row, k in itertools.product(range(len(states)), range(steps)):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        x = states[row, k]
        velocity, std = toy(x[None, None], torch.tensor([t]).double())
        data, noise = x - t * velocity[0, 0], x + (1 - t) * velocity[0, 0]
        if options.sampler == "sde":
            variance = level**2 * t / (1 - t if k else 1 / steps) / steps
            law = Normal((1 - s) * data + (s - variance / (2 * t)) * noise, math.sqrt(variance))
        elif options.sampler == "cps":
            if s == 0:
                continue
            angle = math.pi * level / 2
            law = Normal((1 - s) * data + s * math.cos(angle) * noise, s * math.sin(angle))
        else:
            assert std is not None
            law = Normal((1 - s) * data + s * noise, std[0, 0])
        terms[row, k] = law.log_prob(states[row, k + 1])
    return terms


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_joint_log_prob_is_the_sum_over_steps(sampler: Any) -> None:
    options = config(sampler=sampler)
    toy, chain, _ = toy_chain(options)
    log_probs, _ = flow.score_chain(toy, chain.states, options)
    expected = brute_force(toy, chain.states, options).sum((1, 2, 3)).unsqueeze(1)
    torch.testing.assert_close(flow.reduce_units(log_probs, options), expected)
    torch.testing.assert_close(flow.reduce_units(chain.log_probs, options), expected)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_units_split_the_joint_log_prob(sampler: Any) -> None:
    toy, chain, _ = toy_chain(config(sampler=sampler))
    log_probs, _ = flow.score_chain(toy, chain.states, config(sampler=sampler))
    terms = brute_force(toy, chain.states, config(sampler=sampler)).sum(1)
    tokens = flow.reduce_units(log_probs, config(sampler=sampler, units="token"))
    actions = flow.reduce_units(log_probs, config(sampler=sampler, units="action"))
    torch.testing.assert_close(tokens, terms.flatten(1))
    torch.testing.assert_close(actions, terms.sum(-1))


def test_unit_mean_and_joint_mean_scale_the_sum() -> None:
    toy, chain, _ = toy_chain(config())
    log_probs, _ = flow.score_chain(toy, chain.states, config())
    total = brute_force(toy, chain.states, config()).sum((1, 2, 3)).unsqueeze(1)
    mean = flow.reduce_units(log_probs, config(unit_reduction="mean"))
    torch.testing.assert_close(mean, total / 6)  # H * D = 6 numbers
    joint_mean = flow.reduce_units(log_probs, config(chain="joint_mean"))
    torch.testing.assert_close(joint_mean, total / 5)  # K + 1 = 5 states
    masked = torch.tensor([[True, True], [True, False], [False, False]])
    executed = flow.reduce_units(log_probs, config(unit_reduction="mean"), noise_mask=masked)
    kept = brute_force(toy, chain.states, config()).sum(1)[:, masked].sum(1, keepdim=True)
    torch.testing.assert_close(executed, kept / 3)


def test_two_layer_units_are_the_steps_in_order() -> None:
    for units, shape in (("chunk", (4, 1)), ("action", (4, 3)), ("token", (4, 6))):
        options = config(mdp="two_layer", units=units)
        toy, chain, _ = toy_chain(options)
        log_probs, _ = flow.score_chain(toy, chain.states, options)
        expected = brute_force(toy, chain.states, options).flatten(2)
        expected = expected.unflatten(2, (shape[1], -1)).sum(-1).flatten(1)
        torch.testing.assert_close(flow.reduce_units(log_probs, options), expected)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_single_step_scores_the_drawn_step_only(sampler: Any) -> None:
    options = config(sampler=sampler, chain="single_step")
    toy, chain, index = toy_chain(options)
    assert index is not None and len(index.unique()) > 1
    log_probs, entropy = flow.score_chain(toy, chain.states, options, step_index=index)
    expected = brute_force(toy, chain.states, options)[torch.arange(6), index]
    torch.testing.assert_close(log_probs, expected.unsqueeze(1))
    torch.testing.assert_close(chain.log_probs, expected.unsqueeze(1))
    assert entropy.shape == log_probs.shape


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_single_step_moves_by_the_ode_elsewhere(sampler: Any) -> None:
    options = config(sampler=sampler, chain="single_step")
    toy, chain, index = toy_chain(options)
    assert index is not None
    for row, k in itertools.product(range(6), range(4)):
        x = chain.states[row, k]
        velocity, _ = toy(x[None, None], torch.tensor([1 - k / 4]).double())
        on_the_ode = torch.allclose(chain.states[row, k + 1], x - velocity[0, 0] / 4)
        assert on_the_ode == (k != int(index[row]))


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_entropy_is_that_of_each_normal(sampler: Any) -> None:
    options = config(sampler=sampler)
    toy, chain, _ = toy_chain(options)
    _, entropy = flow.score_chain(toy, chain.states, options)
    steps = options.num_stochastic_steps
    if sampler == "noise":
        times = flow.time_grid(4)[:-1]
        _, std = toy(chain.states[:, :-1], times)
        assert std is not None
    else:
        std = flow.transition_steps(sampler, 4, noise_level=0.5, dtype=torch.float64).std[:steps]
        std = std.view(1, -1, 1, 1).expand_as(entropy)
    torch.testing.assert_close(entropy, Normal(torch.zeros_like(std), std).entropy())


@pytest.mark.parametrize("chain", ["joint_sum", "single_step"])
@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_rescoring_uses_the_sampling_grid(sampler: Any, chain: Any, steps: int) -> None:
    """ReinFlow samples on one linspace and re-scores on another."""
    options = config(sampler=sampler, chain=chain, num_denoise_steps=steps)
    toy, sampled, index = toy_chain(options, rows=32)
    sampling_times = list(dict.fromkeys(toy.times))
    toy.times.clear()
    flow.score_chain(toy, sampled.states, options, step_index=index)
    assert set(toy.times) == set(sampling_times[: options.num_stochastic_steps])
    assert sampling_times == [1 - k / steps for k in range(steps)]


def test_step_without_noise_is_not_scored() -> None:
    """The last cps step has std 0: a mask over its infinite density would give NaN gradients."""
    options = config(sampler="cps", num_denoise_steps=4)
    toy, chain, _ = toy_chain(options)
    toy.weight.requires_grad_()
    log_probs, entropy = flow.score_chain(toy, chain.states, options)
    assert log_probs.shape[1] == entropy.shape[1] == chain.log_probs.shape[1] == 3
    log_probs.sum().backward()
    assert toy.weight.grad is not None
    assert bool(toy.weight.grad.isfinite().all()) and bool(log_probs.isfinite().all())


def test_executed_noise_leaves_padding_to_the_ode() -> None:
    options = config(noise_dims="executed")
    mask = torch.tensor([[True, True], [True, True], [False, False]])
    toy, chain, _ = toy_chain(options, mask=mask)
    velocity, _ = toy(chain.states[:, :-1], flow.time_grid(4)[:-1])
    plain = chain.states[:, :-1] - velocity / 4
    torch.testing.assert_close(chain.states[:, 1:, 2], plain[:, :, 2])
    assert (chain.states[:, 1:, :2] - plain[:, :, :2]).abs().min() > 0
    log_probs, _ = flow.score_chain(toy, chain.states, options)
    expected = brute_force(toy, chain.states, options)[:, :, :2].sum((1, 2, 3))
    reduced = flow.reduce_units(log_probs, options, noise_mask=mask)
    torch.testing.assert_close(reduced.squeeze(1), expected)


def test_transitions_first_asked_for_in_inference_mode_can_be_trained_through() -> None:
    flow.transition_steps.cache_clear()
    initial = torch.randn(4, 1, 2)
    with torch.inference_mode():
        flow.ode_sample(gaussian_data_velocity(0.3), initial, num_denoise_steps=4)
    scale = torch.ones((), requires_grad=True)
    actions = flow.ode_sample(lambda x, t: (scale * x, None), initial, num_denoise_steps=4)
    actions.sum().backward()
    assert scale.grad is not None and float(scale.grad) != 0.0


# --- Policy gradient of a linear bandit, by exact quadrature ----------------------------------


def bandit_velocity(theta: Tensor, *, learned_std: bool) -> flow.Denoise:
    """``v_0 = w x_0 + c x_1 + b``, ``v_1 = u x_1``: the padded number x_1 moves x_0."""
    w, c, u, b, raw = theta

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        first = w * x[..., 0] + c * x[..., 1] + b
        velocity = torch.stack([first, u * x[..., 1]], -1)
        std = flow.bounded_std(raw, std_min=0.1, std_max=0.4).expand_as(x)
        return velocity, std if learned_std else None

    return denoise


def expected_reward(theta: Tensor, options: FlowConfig, *, goal: float) -> float:
    """Closed form of E[-(a_0 - goal)^2]: the chain is affine in its noise, hence Gaussian."""
    denoise = bandit_velocity(theta, learned_std=options.sampler == "noise")
    steps, unit = options.num_denoise_steps, torch.eye(2 * options.num_denoise_steps + 2)
    inputs = torch.cat([torch.zeros(1, unit.shape[1]), unit]).double()
    inputs = inputs.view(-1, steps + 1, 1, 2)
    states = flow.sample_chain(denoise, inputs[:, 0], inputs[:, 1:], options)
    action = states[:, -1, 0, 0]
    mean, response = action[0], action[1:] - action[0]
    return float(-((mean - goal) ** 2) - response.square().sum())


def finite_differences(theta: Tensor, reward: Callable[[Tensor], float]) -> Tensor:
    step = 1e-5 * torch.eye(len(theta)).double()
    return torch.tensor([(reward(theta + h) - reward(theta - h)) / 2e-5 for h in step]).double()


def quadrature_nodes(dimensions: int) -> tuple[Tensor, Tensor]:
    """Five Gauss-Hermite nodes per axis: exact up to degree 9, reward times score has degree 4."""
    points, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    nodes = np.array(list(itertools.product(points, repeat=dimensions)))
    mass = np.array([np.prod(w) for w in itertools.product(weights, repeat=dimensions)])
    return torch.from_numpy(nodes), torch.from_numpy(mass)


def score_gradient(
    theta: Tensor, options: FlowConfig, *, goal: float, units: Callable[[Tensor], Tensor]
) -> Tensor:
    """E[reward * grad log p(chain)], the chain's density as ``units`` of ``score_chain``."""
    theta = theta.clone().requires_grad_()
    denoise = bandit_velocity(theta, learned_std=options.sampler == "noise")
    steps = options.num_denoise_steps
    nodes, mass = quadrature_nodes(2 * steps + 2)
    nodes = nodes.view(-1, steps + 1, 1, 2)
    with torch.no_grad():
        states = flow.sample_chain(denoise, nodes[:, 0], nodes[:, 1:], options)
    reward = -(states[:, -1, 0, 0] - goal).square()
    log_probs, _ = flow.score_chain(denoise, states, options)
    objective = (mass * reward * units(log_probs)).sum()
    return torch.autograd.grad(objective, theta)[0]


THETA = torch.tensor([0.6, 0.8, 0.4, 0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_policy_gradient_equals_finite_differences(sampler: Any) -> None:
    options = config(sampler=sampler, num_denoise_steps=2)
    expected = finite_differences(THETA, lambda theta: expected_reward(theta, options, goal=0.5))
    gradient = score_gradient(
        THETA, options, goal=0.5, units=lambda lp: flow.reduce_units(lp, options).sum(1)
    )
    if sampler == "cps":
        # Its last step has no noise: what theta does there is not in the score of the chain.
        assert not torch.allclose(gradient, expected, rtol=1e-3)
        return
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("units", ["chunk", "token"])
@pytest.mark.parametrize("mdp", ["one_layer", "two_layer"])
def test_units_and_layers_have_the_same_gradient(units: Any, mdp: Any) -> None:
    options = config(num_denoise_steps=2, units=units, mdp=mdp)
    expected = finite_differences(THETA, lambda theta: expected_reward(theta, options, goal=0.5))
    gradient = score_gradient(
        THETA, options, goal=0.5, units=lambda lp: flow.reduce_units(lp, options).sum(1)
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_policy_gradient_needs_every_step_and_the_noised_padding() -> None:
    options = config(num_denoise_steps=2)
    expected = finite_differences(THETA, lambda theta: expected_reward(theta, options, goal=0.5))
    last = score_gradient(THETA, options, goal=0.5, units=lambda lp: lp[:, -1:].sum((1, 2, 3)))
    assert (last - expected).abs().max() > 0.05
    unpadded = score_gradient(THETA, options, goal=0.5, units=lambda lp: lp[..., 0].sum((1, 2)))
    # ``u`` moves only the padded number; leaving its score out loses all of its gradient.
    assert float(unpadded[2]) == 0.0
    assert abs(float(expected[2])) > 0.01


def test_unit_mask_counts_padding_exactly_when_it_is_noised() -> None:
    executed = torch.tensor([[True, True], [True, False], [False, False]])
    noised = flow.unit_mask(executed, config(units="action"), horizon=3, action_dim=2)
    assert noised.tolist() == [[True, True, True], [True, False, True], [False, False, False]]
    options = config(units="action", noise_dims="executed")
    quiet = flow.unit_mask(executed, options, horizon=3, action_dim=2)
    assert quiet.tolist() == [[True, True, False], [True, False, False], [False, False, False]]
    chunk = flow.unit_mask(executed, config(), horizon=3, action_dim=2)
    assert chunk.tolist() == [[True], [True], [False]]
    token = flow.unit_mask(executed, config(units="token"), horizon=2, action_dim=2)
    assert token[1].tolist() == [True, True, False, False]
    two = flow.unit_mask(
        executed, config(sampler="cps", mdp="two_layer", units="action"), horizon=2, action_dim=2
    )
    assert two[1].tolist() == [True, False] * 3


# --- Two-layer MDP, step draws, configuration -------------------------------------------------


def test_two_layer_weights() -> None:
    options = config(sampler="cps", mdp="two_layer", denoise_discount=0.5, denoise_clip_base=0.1)
    weights = flow.two_layer_weights(options, 6)
    assert weights is not None
    weight, clip = weights
    assert weight.tolist() == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    # By hand: (e^1.5 - 1) / (e^3 - 1) = 0.18243.
    assert clip.tolist() == pytest.approx([0.1, 0.1, 0.26418, 0.26418, 1.0, 1.0], abs=1e-5)
    assert flow.two_layer_weights(config(), 1) is None


def test_step_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    per_sample = flow.draw_step_index(6000, config(chain="single_step"), generator=generator)
    assert per_sample is not None
    counts = torch.bincount(per_sample, minlength=4)
    assert len(counts) == 4 and bool(((counts - 1500).abs() < 150).all())
    batch_options = config(chain="single_step", step_draw="batch")
    per_batch = flow.draw_step_index(50, batch_options, generator=generator)
    assert per_batch is not None and len(per_batch.unique()) == 1 and len(per_batch) == 50
    cps = flow.draw_step_index(200, config(sampler="cps", chain="single_step"), generator=generator)
    assert cps is not None and int(cps.max()) == 2
    assert flow.draw_step_index(5, config(), generator=generator) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_denoise_steps": 0}, "must be >= 1"),
        ({"num_denoise_steps": 1}, "set num_denoise_steps to 2"),
        ({"num_denoise_steps": 1, "sampler": "cps"}, "set num_denoise_steps=2"),
        ({"mdp": "two_layer", "chain": "single_step"}, "set chain='joint_sum'"),
        ({"mdp": "two_layer", "chain": "joint_mean"}, "set chain='joint_sum'"),
        ({"denoise_discount": 0.9}, "set it to 1"),
        ({"denoise_clip_base": 0.9}, "set it to 1"),
        ({"mdp": "two_layer", "denoise_clip_base": 0.0}, "denoise_clip_base"),
        ({"std_min": 0.2, "std_max": 0.1}, "std_min"),
        ({"noise_level": 0.0}, "sampler='ode'"),
        ({"sampler": "cps", "noise_level": 1.5}, "at most 1"),
        ({"sampler": "ode", "mdp": "two_layer"}, "set sampler='sde'"),
        ({"sampler": "ode", "chain": "single_step"}, "set sampler='sde'"),
    ],
)
def test_meaningless_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_ode_has_no_likelihood() -> None:
    options = config(sampler="ode")
    toy, chain, _ = toy_chain(options)
    assert chain.log_probs.shape[1] == 0
    with pytest.raises(ValueError, match="no likelihood"):
        flow.score_chain(toy, chain.states, options)
