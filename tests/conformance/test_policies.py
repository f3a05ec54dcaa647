"""What every registered policy owes the rest of the library, and every flow option with it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl.flow import FlowConfig
from embodied_rl.policies import make_policy
from embodied_rl.registry import BUILTIN
from embodied_rl.types import PolicyOutput, PolicySpec, TensorDict

BATCH = 6
WORDS = ("joint", "masked_diffusion", "picture_generator", "string_generator", "vlm")
"""Policies that answer conversations, which have tests of their own."""
H, D, A = 3, 2, 4


def spec_of(
    *, vector: bool = True, instruction: bool = False, image: int = 0, **rest: Any
) -> PolicySpec:
    shapes: dict[str, tuple[int, ...]] = {}
    if vector:
        shapes |= {"state": (5,), "goal": (3,)}
    if instruction:
        shapes["instruction"] = (16,)
    if image:
        shapes["image"] = (3, image, image)
    dtypes = {name: "uint8" if name == "image" else "float32" for name in shapes}
    return PolicySpec(obs_shapes=shapes, obs_dtypes=dtypes, **rest)


CHUNK: dict[str, Any] = {"action_dim": D, "chunk_length": H}


@dataclass(frozen=True)
class Case:
    """A policy to build; ``id`` names it in the test report."""

    id: str
    name: str
    spec: PolicySpec
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, *, seed: int = 0) -> Any:
        """Build it with no parameter left (nearly) zero: zero gates and heads hide paths."""
        torch.manual_seed(seed)
        policy: Any = make_policy(self.name, self.spec, **self.options)
        with torch.no_grad():
            for parameter in policy.parameters():
                if float(parameter.abs().mean()) < 0.05:
                    noise = torch.randn_like(parameter)
                    parameter.add_(0.3 / parameter[0].numel() ** 0.5 * noise)
        return policy

    def obs(self, rows: int = BATCH, *, seed: int = 1) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)
        obs: TensorDict = {}
        for name, shape in self.spec.obs_shapes.items():
            if self.spec.obs_dtypes[name] == "uint8":
                pixels = torch.randint(0, 256, (rows, *shape), generator=generator)
                obs[name] = pixels.to(torch.uint8)
            else:
                obs[name] = torch.randn((rows, *shape), generator=generator)
        return obs

    def expert_actions(self, rows: int = BATCH) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        if self.spec.num_actions:
            return torch.randint(self.spec.num_actions, (rows,), generator=generator)
        horizon = self.options.get("horizon") or self.spec.chunk_length
        return torch.randn((rows, horizon, self.spec.action_dim), generator=generator)


def case(name: str, spec: PolicySpec, **options: Any) -> Case:
    shown = [f"{k}={v}" for k, v in options.items() if k != "flow" and not isinstance(v, tuple)]
    images = [n for n, shape in spec.obs_shapes.items() if len(shape) == 3]
    return Case("-".join([name, *images, *shown]), name, spec, options)


SMALL_MLP: dict[str, Any] = {"hidden_dims": (16, 16), "critic_hidden_dims": (8,)}
SMALL_FORMER: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2}
TEXT = spec_of(instruction=True, **CHUNK)
IMAGE_TEXT = spec_of(instruction=True, image=32, **CHUNK)
DISCRETE = spec_of(num_actions=A)
PIXELS = spec_of(vector=False, image=36, num_actions=A)

CASES = [
    *(case("gaussian_mlp", spec_of(**CHUNK), critic=c) for c in ("separate", "trunk", "none")),
    *(case("gaussian_mlp", spec_of(**CHUNK), units=u) for u in ("token", "action")),
    case("gaussian_mlp", spec_of(action_dim=D)),
    *(case("categorical_mlp", DISCRETE, critic=c) for c in ("separate", "trunk", "none")),
    *(
        case("categorical_cnn", PIXELS, trunk=t, feature_dim=32, critic=c)
        for t, c in (
            ("nature", "trunk"),
            ("impala", "separate"),
            ("nature", "none"),
            ("small", "trunk"),
        )
    ),
    *(case("flow_mlp", TEXT, critic=c, **SMALL_MLP) for c in ("separate", "trunk", "none")),
    case("flow_mlp", TEXT, horizon=H + 2, **SMALL_MLP),
    *(
        case("flow_transformer", IMAGE_TEXT, critic=c, **SMALL_FORMER)
        for c in ("separate", "obs_tokens", "action_expert", "none")
    ),
    case("flow_transformer", TEXT, horizon=H + 2, **SMALL_FORMER),
    case("flow_transformer", spec_of(vector=False, image=32, **CHUNK), **SMALL_FORMER),
]


def flow_cases() -> Iterator[Case]:
    """Every likelihood of every sampler, on a chunk with two padded actions."""
    layers = (
        ("joint_sum", "one_layer"),
        ("joint_mean", "one_layer"),
        ("single_step", "one_layer"),
        ("joint_sum", "two_layer"),
    )
    for sampler, (chain, mdp), units, dims in itertools.product(
        ("sde", "cps", "noise"), layers, ("token", "action", "chunk"), ("all", "executed")
    ):
        options: dict[str, Any] = {
            "sampler": sampler,
            "chain": chain,
            "mdp": mdp,
            "units": units,
            "noise_dims": dims,
        }
        flow = FlowConfig(num_denoise_steps=3, **options)
        label = "-".join(["flow_mlp", *options.values()])
        yield Case(label, "flow_mlp", TEXT, {"flow": flow, "horizon": H + 2, **SMALL_MLP})
    for sampler, chain in (("noise", "joint_sum"), ("cps", "single_step")):
        options = {"sampler": sampler, "chain": chain}
        flow = FlowConfig(num_denoise_steps=3, **options)
        label = f"flow_transformer-{sampler}-{chain}"
        yield Case(label, "flow_transformer", TEXT, {"flow": flow, **SMALL_FORMER})


FLOW_CASES = list(flow_cases())
every_case = pytest.mark.parametrize("policy_case", CASES, ids=lambda c: c.id)
every_likelihood = pytest.mark.parametrize("policy_case", CASES + FLOW_CASES, ids=lambda c: c.id)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_output(first: PolicyOutput, second: PolicyOutput) -> None:
    assert torch.equal(first.actions, second.actions)
    assert first.log_probs is not None and second.log_probs is not None
    assert torch.equal(first.log_probs, second.log_probs)
    for name, value in first.replay.items():
        assert torch.equal(value, second.replay[name]), name


def test_every_registered_policy_is_here() -> None:
    # sb3 has no likelihood; tests/conformance/test_interop.py compares it with the original.
    # vlm and joint read conversations; tests/vlm and test_mixture.py ask the same of them.
    assert {c.name for c in CASES} == set(BUILTIN["policies"]) - {"sb3", *WORDS}


@every_likelihood
def test_ratio_is_one_before_the_first_update(policy_case: Case) -> None:
    policy, obs = policy_case.make(), policy_case.obs()
    sampled = policy.sample(obs, generator=generator())
    scored = policy.log_prob(obs, sampled.actions, sampled.replay)
    torch.testing.assert_close(scored.log_probs, sampled.log_probs, atol=5e-5, rtol=1e-5)
    assert scored.log_probs.requires_grad and not sampled.log_probs.requires_grad
    if scored.joint_log_probs is not None:
        old = sampled.replay["joint_log_probs"]
        torch.testing.assert_close(scored.joint_log_probs, old, atol=5e-4, rtol=1e-5)


@every_likelihood
def test_rescoring_does_not_depend_on_the_minibatch(policy_case: Case) -> None:
    policy, obs = policy_case.make(), policy_case.obs()
    sampled = policy.sample(obs, generator=generator())
    pick = torch.tensor([4, 1])
    part = policy.log_prob(
        {name: value[pick] for name, value in obs.items()},
        sampled.actions[pick],
        {name: value[pick] for name, value in sampled.replay.items()},
    )
    torch.testing.assert_close(part.log_probs, sampled.log_probs[pick], atol=5e-5, rtol=1e-5)


@every_likelihood
def test_units_agree_with_unit_mask(policy_case: Case) -> None:
    policy, obs, spec = policy_case.make(), policy_case.obs(), policy_case.spec
    sampled = policy.sample(obs, generator=generator())
    executed = torch.ones(BATCH, spec.chunk_length, dtype=torch.bool)
    executed[1, 1:] = False
    executed[2] = False
    mask = policy.unit_mask(executed)
    scored = policy.log_prob(obs, sampled.actions, sampled.replay)
    assert mask.shape == scored.log_probs.shape == scored.entropy.shape
    assert mask.dtype == torch.bool
    assert bool(mask[1].any()) and not bool(mask[2].any())
    if scored.unit_weight is not None:
        assert scored.unit_weight.shape == scored.clip_scale.shape == mask.shape[1:]
    # Without padding, a chunk that ran to its end has every unit in effect.
    if policy_case.options.get("horizon", 0) == 0:
        assert bool(mask[0].all())


@every_likelihood
def test_same_generator_same_sample(policy_case: Case) -> None:
    policy, obs = policy_case.make(), policy_case.obs()
    first, second = (policy.sample(obs, generator=generator()) for _ in range(2))
    assert_same_output(first, second)
    other = policy.sample(obs, generator=generator(8))
    assert not torch.equal(other.log_probs, first.log_probs)


@every_likelihood
def test_permuting_rows_and_noise_permutes_the_sample(
    policy_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, obs = policy_case.make(), policy_case.obs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain = policy.sample(obs, generator=generator())

    def permuted(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: draw(*args, **options)[order]

    for name in ("randn", "rand", "randint"):
        monkeypatch.setattr(torch, name, permuted(getattr(torch, name)))
    shuffled = {name: value[order] for name, value in obs.items()}
    moved = policy.sample(shuffled, generator=generator())
    torch.testing.assert_close(moved.actions, plain.actions[order])
    torch.testing.assert_close(moved.log_probs, plain.log_probs[order], atol=5e-5, rtol=1e-5)
    for name, value in plain.replay.items():
        torch.testing.assert_close(moved.replay[name], value[order], atol=5e-4, rtol=1e-5)


@every_likelihood
def test_every_tensor_is_made_on_the_device_of_the_policy(policy_case: Case) -> None:
    """The meta device computes nothing, but refuses to mix with the CPU."""
    policy = policy_case.make().to("meta")
    obs = {name: value.to("meta") for name, value in policy_case.obs().items()}
    sampled = policy.sample(obs, generator=generator())
    scored = policy.log_prob(obs, sampled.actions, sampled.replay)
    outputs = [sampled.actions, sampled.log_probs, scored.log_probs, scored.entropy, scored.values]
    outputs += [*sampled.replay.values(), policy.value(obs)]
    outputs += [policy.sample(obs, deterministic=True, generator=generator()).actions]
    assert {tensor.device.type for tensor in outputs} == {"meta"}
    for weights in (scored.unit_weight, scored.clip_scale):
        assert weights is None or weights.device.type == "meta"


@every_case
def test_state_dict_and_copy_carry_the_whole_policy(policy_case: Case) -> None:
    policy, obs = policy_case.make(), policy_case.obs()
    policy.vector_input.fit(policy_case.obs(50, seed=9))
    sampled = policy.sample(obs, generator=generator())
    restored = policy_case.make(seed=5)
    assert not torch.allclose(
        restored.log_prob(obs, sampled.actions, sampled.replay).log_probs, sampled.log_probs
    )
    restored.load_state_dict(policy.state_dict())
    for twin in (restored, copy.deepcopy(policy)):
        assert_same_output(twin.sample(obs, generator=generator()), sampled)
        scored = twin.log_prob(obs, sampled.actions, sampled.replay)
        torch.testing.assert_close(scored.log_probs, sampled.log_probs, atol=5e-5, rtol=1e-5)
        assert torch.equal(twin.value(obs), policy.value(obs))


@every_case
def test_deterministic_samples(policy_case: Case) -> None:
    policy, obs, spec = policy_case.make(), policy_case.obs(), policy_case.spec
    first, second = (
        policy.sample(obs, deterministic=True, generator=generator()) for _ in range(2)
    )
    assert torch.equal(first.actions, second.actions)
    assert first.log_probs is None
    sampled = policy.sample(obs, generator=generator())
    assert first.actions.shape == sampled.actions.shape
    assert first.actions.dtype == sampled.actions.dtype
    expected = (BATCH,) if spec.num_actions else (BATCH, spec.chunk_length, spec.action_dim)
    assert tuple(first.actions.shape) == expected


@pytest.mark.parametrize("name", ["flow_mlp", "flow_transformer"])
def test_greedy_start_from_zero_needs_no_noise(name: str) -> None:
    policy = make_policy(name, TEXT, flow=FlowConfig(greedy_start="zero"))
    obs = Case(name, name, TEXT).obs()
    first, second = (
        policy.sample(obs, deterministic=True, generator=generator(seed)) for seed in (0, 1)
    )
    assert torch.equal(first.actions, second.actions)


@every_case
def test_values_are_one_function_of_the_observation(policy_case: Case) -> None:
    """RLinf averages the value over denoise steps when sampling and takes one when training."""
    policy, obs = policy_case.make(), policy_case.obs()
    expected = policy.value(obs)
    assert expected.shape == (BATCH,)
    if policy_case.options.get("critic") == "none":
        assert torch.equal(expected, torch.zeros(BATCH))
    else:
        assert float(expected.detach().std()) > 0
    for seed in (0, 1):
        sampled = policy.sample(obs, generator=generator(seed))
        scored = policy.log_prob(obs, sampled.actions, sampled.replay)
        torch.testing.assert_close(scored.values, expected)
        if sampled.values is not None:
            torch.testing.assert_close(sampled.values, expected)


@every_case
def test_values_are_sampled_where_the_trunk_is_shared(policy_case: Case) -> None:
    policy = policy_case.make()
    critic = policy_case.options.get("critic")
    shared = critic in ("trunk", "obs_tokens")
    for deterministic in (False, True):
        output = policy.sample(
            policy_case.obs(), deterministic=deterministic, generator=generator()
        )
        assert (output.values is not None) == shared


def gradients(policy: Any, loss: Tensor) -> dict[str, bool]:
    policy.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: p.grad is not None and bool((p.grad != 0).any())
        for name, p in policy.named_parameters()
    }


@every_likelihood
def test_gradients_reach_every_actor_parameter(policy_case: Case) -> None:
    policy, obs = policy_case.make(), policy_case.obs(32)
    sampled = policy.sample(obs, generator=generator())
    scored = policy.log_prob(obs, sampled.actions, sampled.replay)
    reached = gradients(policy, scored.log_probs.sum())
    actor = {name for name in reached if not name.startswith("critic")}
    assert {name for name, hit in reached.items() if hit} == actor


@every_case
def test_gradients_reach_every_critic_parameter(policy_case: Case) -> None:
    kind = policy_case.options.get("critic")
    if kind == "none":
        return
    policy, obs = policy_case.make(), policy_case.obs(32)
    reached = gradients(policy, policy.value(obs).square().sum())
    critic = {name for name in reached if name.startswith("critic")}
    assert critic and all(reached[name] for name in critic)
    if kind in (None, "separate") and policy_case.name != "categorical_cnn":
        assert {name for name, hit in reached.items() if hit} == critic


@pytest.mark.parametrize(
    "policy_case",
    [
        *(c for c in CASES if not c.name.startswith("flow")),
        *(c for c in FLOW_CASES if "joint_sum-one_layer-action-all" in c.id),
    ],
    ids=lambda c: c.id,
)
def test_entropy_is_minus_the_mean_log_prob(policy_case: Case) -> None:
    policy = policy_case.make()
    rows = 64 if "cnn" in policy_case.name else 4000
    draws = 4000 // rows
    obs = {name: v.expand(rows, *v.shape[1:]) for name, v in policy_case.obs(1).items()}
    source = generator()
    samples = [policy.sample(obs, generator=source) for _ in range(draws)]
    log_probs = torch.cat([sample.log_probs for sample in samples])
    entropy = policy.log_prob(obs, samples[0].actions, samples[0].replay).entropy.mean(0)
    standard_error = log_probs.std(0) / len(log_probs) ** 0.5
    assert bool(((-log_probs.mean(0) - entropy).abs() < 4 * standard_error + 1e-4).all())


def test_categorical_samples_follow_the_probabilities() -> None:
    policy: Any = make_policy("categorical_mlp", spec_of(num_actions=5))
    wanted = torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0])
    with torch.no_grad():
        policy.policy_head.weight.zero_()
        policy.policy_head.bias.copy_(wanted.log().clamp(min=-1e4))
    obs = {"state": torch.zeros(20_000, 5), "goal": torch.zeros(20_000, 3)}
    actions = policy.sample(obs, generator=generator()).actions
    frequency = torch.bincount(actions, minlength=5) / len(actions)
    assert bool(((frequency - wanted).abs() < 0.015).all())
    assert float(frequency[1]) == float(frequency[4]) == 0.0
    mode = policy.sample(obs, deterministic=True, generator=None).actions
    assert bool((mode == 0).all())


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_categorical_extreme_uniforms_draw_possible_actions(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = make_policy("categorical_mlp", spec_of(num_actions=3))
    with torch.no_grad():
        policy.policy_head.bias.copy_(torch.tensor([-1e4, 0.0, 0.1]))
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, uniform))
    actions = policy.sample(
        {"state": torch.zeros(4, 5), "goal": torch.zeros(4, 3)}, generator=None
    ).actions
    assert bool((actions == (1 if uniform == 0.0 else 2)).all())


def test_categorical_survives_a_cumulative_sum_below_the_uniform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = case("categorical_mlp", spec_of(num_actions=50))
    policy, obs, uniform = many.make(), many.obs(500), 1.0 - 2**-24
    with torch.no_grad():
        logits = policy.policy_head(policy.trunk(policy.vector_input(obs)))
    assert bool((logits.log_softmax(1).exp().cumsum(1)[:, -1] <= uniform).any())
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, uniform))
    assert int(policy.sample(obs, generator=None).actions.max()) == 49


@every_case
def test_imitation_learns_the_experts_choice(policy_case: Case) -> None:
    policy, obs = policy_case.make(), policy_case.obs()
    actions = policy_case.expert_actions()
    length = actions.shape[1] if actions.ndim == 3 else 1
    mask = torch.ones(BATCH, length, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    losses = []
    source = generator()
    for _ in range(60):
        loss = policy.imitation_loss(obs, actions, mask, generator=source)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@every_case
def test_masked_expert_actions_change_nothing(policy_case: Case) -> None:
    policy, obs = policy_case.make(), policy_case.obs()
    actions = policy_case.expert_actions()
    length = actions.shape[1] if actions.ndim == 3 else 1
    mask = torch.ones(BATCH, length, dtype=torch.bool)
    mask[2] = False
    changed = actions.clone()
    changed[2] = (changed[2] + 1) % 4 if actions.ndim == 1 else 1e3
    first, second = (
        policy.imitation_loss(obs, chunk, mask, generator=generator())
        for chunk in (actions, changed)
    )
    assert torch.equal(first, second)
    unmasked = policy.imitation_loss(obs, changed, torch.ones_like(mask), generator=generator())
    assert not torch.equal(first, unmasked)


def test_gaussian_likelihood_is_that_of_independent_normals() -> None:
    for units, axes in (("token", ()), ("action", (-1,)), ("chunk", (-2, -1))):
        policy: Any = case("gaussian_mlp", spec_of(**CHUNK), units=units).make()
        obs, actions = case("gaussian_mlp", spec_of(**CHUNK)).obs(), torch.randn(BATCH, H, D)
        mean = policy.sample(obs, deterministic=True, generator=None).actions
        law = torch.distributions.Normal(mean, policy.log_std.detach().exp().view(H, D))
        expected = law.log_prob(actions)
        expected = expected.sum(axes).view(BATCH, -1) if axes else expected.flatten(1)
        scored = policy.log_prob(obs, actions, {})
        torch.testing.assert_close(scored.log_probs, expected)
        entropy = law.entropy().sum(axes).view(BATCH, -1) if axes else law.entropy().flatten(1)
        torch.testing.assert_close(scored.entropy, entropy)
        loss = policy.imitation_loss(
            obs, actions, torch.ones(BATCH, H, dtype=torch.bool), generator=None
        )
        torch.testing.assert_close(loss, -law.log_prob(actions).mean())


def test_standardised_observations_are_clipped_and_undo_scale() -> None:
    policy: Any = make_policy("gaussian_mlp", spec_of(action_dim=D))
    rows = {"state": 100 + 5 * torch.randn(500, 5), "goal": torch.full((500, 3), 2.0)}
    policy.vector_input.fit(rows)
    x = policy.vector_input(rows)
    assert x.shape == (500, 8)
    goal, state = x[:, :3], x[:, 3:]  # names in sorted order
    assert torch.equal(goal, torch.zeros(500, 3))
    torch.testing.assert_close(state.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(state.std(0), torch.ones(5), atol=1e-4, rtol=0)
    far = policy.vector_input({"state": torch.full((1, 5), 1e6), "goal": torch.zeros(1, 3)})
    assert float(far.max()) == 10.0


@pytest.mark.parametrize("noise_dims", ["all", "executed"])
def test_only_the_chosen_numbers_leave_the_ode(noise_dims: Any) -> None:
    flow = FlowConfig(noise_dims=noise_dims)
    padded = case("flow_mlp", TEXT, flow=flow, horizon=H + 2, **SMALL_MLP)
    policy, obs = padded.make(), padded.obs()
    chain = policy.sample(obs, generator=generator()).replay["chain"]
    times = torch.tensor([1.0, 0.75, 0.5, 0.25])
    velocity, _ = policy.denoise(policy.encode(obs))(chain[:, :-1], times)
    deviation = (chain[:, 1:] - (chain[:, :-1] - velocity / 4)).abs().amax((0, 1, 3))
    noised = [True] * H + [noise_dims == "all"] * 2
    assert (deviation > 1e-3).tolist() == noised


@pytest.mark.parametrize("name", ["flow_mlp", "flow_transformer"])
def test_ode_policy_samples_but_has_no_likelihood(name: str) -> None:
    policy = make_policy(name, TEXT, flow=FlowConfig(sampler="ode"))
    obs = Case(name, name, TEXT).obs()
    sampled = policy.sample(obs, generator=generator())
    assert sampled.log_probs is None and sampled.actions.shape == (BATCH, H, D)
    with pytest.raises(ValueError, match="sampler"):
        policy.log_prob(obs, sampled.actions, sampled.replay)


@pytest.mark.parametrize("name", ["flow_mlp", "flow_transformer"])
def test_ode_actions_are_the_greedy_sample(name: str) -> None:
    flow_case = Case(name, name, TEXT)
    policy, obs = flow_case.make(), flow_case.obs()
    initial = torch.randn((BATCH, H, D), generator=generator())
    greedy = policy.sample(obs, deterministic=True, generator=generator()).actions
    anchored = policy.ode_actions(obs, initial)
    torch.testing.assert_close(anchored, greedy)
    assert anchored.requires_grad


def test_transformer_encodes_the_context_once_per_decision() -> None:
    policy: Any = case("flow_transformer", TEXT, **SMALL_FORMER).make()
    calls: list[int] = []
    policy.context.register_forward_hook(lambda *_: calls.append(1))
    sampled = policy.sample(Case("", "", TEXT).obs(), generator=generator())
    assert len(calls) == 1
    policy.log_prob(Case("", "", TEXT).obs(), sampled.actions, sampled.replay)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["state", "instruction", "image"])
def test_transformer_reads_every_observation(name: str) -> None:
    flow_case = case("flow_transformer", IMAGE_TEXT, **SMALL_FORMER)
    policy, obs = flow_case.make(), flow_case.obs()
    changed = obs | {name: flow_case.obs(seed=4)[name]}
    first, second = (
        policy.sample(o, deterministic=True, generator=generator()).actions for o in (obs, changed)
    )
    assert (first - second).abs().max() > 1e-5


CONTINUOUS = spec_of(action_dim=D)
CHANNELS_LAST = PolicySpec(
    obs_shapes={"image": (84, 84, 3)}, obs_dtypes={"image": "uint8"}, num_actions=2
)
TINY_IMAGE = spec_of(vector=False, image=16, num_actions=2)
NOTHING = PolicySpec(obs_shapes={"grid": (2, 2)}, obs_dtypes={"grid": "float32"}, action_dim=2)


@pytest.mark.parametrize(
    ("name", "spec", "options", "message"),
    [
        ("gaussian_mlp", DISCRETE, {}, "use categorical_mlp"),
        ("flow_mlp", DISCRETE, {}, "use categorical_mlp"),
        ("flow_transformer", DISCRETE, {}, "use categorical_mlp"),
        ("categorical_mlp", CONTINUOUS, {}, "use gaussian_mlp"),
        ("categorical_cnn", CONTINUOUS, {}, "use gaussian_mlp"),
        ("gaussian_mlp", spec_of(vector=False, image=36, action_dim=2), {}, "flow_transformer"),
        ("categorical_mlp", PIXELS, {}, "categorical_cnn"),
        ("categorical_cnn", DISCRETE, {}, "use categorical_mlp"),
        ("categorical_mlp", spec_of(num_actions=2, chunk_length=4), {}, "env.chunk_length to 1"),
        ("categorical_cnn", CHANNELS_LAST, {}, "channel axis to the front"),
        ("categorical_cnn", TINY_IMAGE, {}, "impala"),
        ("categorical_cnn", PIXELS, {"trunk": "vgg"}, "nature, small, impala"),
        ("flow_transformer", NOTHING, {}, "needs a vector"),
        ("flow_transformer", TEXT, {"dim": 30, "heads": 4}, "set it to 24"),
        ("flow_transformer", TEXT, {"critic": "trunk"}, "obs_tokens"),
        ("flow_mlp", TEXT, {"horizon": 2}, "set it to 3 or more"),
        ("flow_mlp", TEXT, {"critic": "both"}, "separate, trunk, none"),
        ("gaussian_mlp", CONTINUOUS, {"units": "word"}, "token, action, chunk"),
        ("gaussian_mlp", CONTINUOUS, {"activation": "sine"}, "tanh"),
    ],
)
def test_wrong_specs_say_what_to_change(
    name: str, spec: PolicySpec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(name, spec, **options)


def test_expert_chunks_of_another_length_are_refused() -> None:
    flow_case = case("flow_mlp", TEXT, horizon=H + 2, **SMALL_MLP)
    short, mask = torch.zeros(BATCH, H, D), torch.ones(BATCH, H, dtype=torch.bool)
    with pytest.raises(ValueError, match="chunks of 5 actions"):
        flow_case.make().imitation_loss(flow_case.obs(), short, mask, generator=None)
