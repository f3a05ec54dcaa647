r"""Flow-matching samplers and the likelihood of their denoising chains.

Convention (openpi, LeRobot): t=1 is noise, t=0 is the action, ``x_t = (1-t) x_0 + t x_1`` with
``x_1 ~ N(0, I)`` and ``v ~ E[x_1 - x_0 | x_t]``. The grid is ``t_k = 1 - k/K``, ``s = t_{k+1}``,
``delta = 1/K``. With ``x0_hat = x - t v`` and ``x1_hat = x + (1-t) v`` every sampler is one
Gaussian step ``x' ~ N(w0 x0_hat + w1 x1_hat, std^2)``:

    ode    w0 = 1-s, w1 = s                                   std = 0
    sde    w0 = 1-s, w1 = s - sigma^2 delta / (2t)            std = sigma sqrt(delta)
           sigma = a sqrt(t / (1-t)), with 1-t_1 for 1-t at t = 1   (Flow-GRPO eq. 9, pi_RL)
    cps    w0 = 1-s, w1 = s cos(pi a / 2)                     std = s sin(pi a / 2)
    noise  the ode mean                                       std given by a network (Flow-Noise)

Axes: ``B`` rows, ``K`` denoise steps, ``S`` steps evaluated together, ``H`` actions of the
predicted chunk, ``D`` action dimension, ``U`` ratio units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(x [B, S, H, D], t [S]) -> (velocity [B, S, H, D], std [B, S, H, D] or None)."""

Sampler = Literal["ode", "sde", "cps", "noise"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How a flow policy samples and how its chain becomes a likelihood.

    Attributes:
        num_denoise_steps: K.
        sampler: transition kernel of sampling with exploration, see the module docstring.
        noise_level: ``a`` of ``sde`` and ``cps``.
        std_min, std_max: range of the learned std of ``noise``; may be annealed by the trainer.
        chain: ``joint_sum`` sums the log-probabilities of all stochastic steps (exact);
            ``joint_mean`` divides that sum by K+1 (RLinf's Flow-Noise: widens the clip range by
            that factor); ``single_step`` makes one drawn step stochastic and the others ode, and
            scores only that one (RLinf's Flow-SDE).
        mdp: ``one_layer``: the chunk is the action; ``two_layer``: every denoise step is a
            transition of its own (DPPO) and a ratio unit of its own.
        units: granularity of the ratio: each number (``token``), each action of the chunk
            (``action``) or the whole ``chunk``.
        unit_reduction: ``sum`` keeps exact likelihoods; ``mean`` takes the mean over the numbers
            in a unit, i.e. the geometric-mean ratio (GSPO's length normalisation), which keeps the
            clip range comparable across chunk sizes.
        noise_dims: noise ``all`` predicted numbers, or only those that are ``executed`` (the others
            follow the ode and stay out of the likelihood).
        step_draw: ``single_step`` draws one step for the whole ``batch`` or per ``sample``.
        denoise_discount: ``two_layer`` weighs step k by ``discount^(K-1-k)`` (DPPO eq. 5).
        denoise_clip_base: ``two_layer`` clip range of the first step relative to the last; it
            grows exponentially in between (DPPO appendix). 1 means the same range everywhere.
        anneal_to: noise at the end of the run relative to its start (``noise_level``, ``std_min``
            and ``std_max``), reached linearly.
        greedy_start: a deterministic sample follows the ode from a ``sampled`` x_1 or from
            ``zero``, the mode of the prior.
    """

    num_denoise_steps: int = 4
    sampler: Sampler = "sde"
    noise_level: float = 0.5
    std_min: float = 0.08
    std_max: float = 0.16
    chain: Literal["joint_sum", "joint_mean", "single_step"] = "joint_mean"
    mdp: Literal["one_layer", "two_layer"] = "one_layer"
    units: Literal["token", "action", "chunk"] = "chunk"
    unit_reduction: Literal["sum", "mean"] = "mean"
    noise_dims: Literal["all", "executed"] = "all"
    step_draw: Literal["batch", "sample"] = "sample"
    denoise_discount: float = 1.0
    denoise_clip_base: float = 1.0
    anneal_to: float = 1.0
    greedy_start: Literal["sampled", "zero"] = "sampled"

    def __post_init__(self) -> None:
        """Refuse combinations that have no meaning, naming the value that would work."""
        if self.num_denoise_steps < 1:
            raise ValueError(f"num_denoise_steps is {self.num_denoise_steps}, it must be >= 1")
        if self.sampler == "sde" and self.num_denoise_steps < 2:
            raise ValueError("sampler='sde' divides by 1-t_1: set num_denoise_steps to 2 or more")
        if self.sampler == "cps" and self.num_denoise_steps < 2:
            raise ValueError("the last step of sampler='cps' has no noise: set num_denoise_steps=2")
        if self.mdp == "two_layer" and self.chain == "single_step":
            raise ValueError("mdp='two_layer' scores every step: set chain='joint_sum'")
        if self.mdp == "two_layer" and self.chain == "joint_mean":
            raise ValueError("mdp='two_layer' has one ratio per step: set chain='joint_sum'")
        if self.mdp == "one_layer" and self.denoise_discount != 1.0:
            raise ValueError("denoise_discount is unused with mdp='one_layer': set it to 1")
        if self.mdp == "one_layer" and self.denoise_clip_base != 1.0:
            raise ValueError("denoise_clip_base is unused with mdp='one_layer': set it to 1")
        if not 0.0 < self.denoise_clip_base <= 1.0:
            raise ValueError("denoise_clip_base must lie in (0, 1]")
        if self.anneal_to <= 0.0:
            raise ValueError(f"anneal_to is {self.anneal_to}, it must be > 0; 1 keeps the noise")
        if not 0.0 < self.std_min < self.std_max:
            raise ValueError("std_min and std_max must satisfy 0 < std_min < std_max")
        if self.sampler in ("sde", "cps") and self.noise_level <= 0:
            raise ValueError("noise_level must be > 0; for no noise set sampler='ode'")
        if self.sampler == "cps" and self.noise_level > 1:
            raise ValueError("noise_level of sampler='cps' is a share of a right angle: at most 1")
        if self.sampler == "ode" and self.mdp == "two_layer":
            raise ValueError("mdp='two_layer' needs noise in every step: set sampler='sde'")
        if self.sampler == "ode" and self.chain == "single_step":
            raise ValueError("chain='single_step' needs a noisy step: set sampler='sde'")

    @property
    def num_stochastic_steps(self) -> int:
        """Steps with a density; steps with std 0 are left out by construction, not by a mask."""
        steps = {"ode": 0, "cps": self.num_denoise_steps - 1}
        return steps.get(self.sampler, self.num_denoise_steps)


@dataclass(frozen=True)
class Steps:
    """The affine transition of each step: mean = x_coef x + v_coef v. Each field is [K]."""

    times: Tensor
    x_coef: Tensor
    v_coef: Tensor
    std: Tensor


def time_grid(num_denoise_steps: int) -> Tensor:
    """``[K+1]`` float64 times from 1 (noise) to 0 (action)."""
    return 1.0 - torch.arange(num_denoise_steps + 1, dtype=torch.float64) / num_denoise_steps


@lru_cache(maxsize=64)
def transition_steps(
    sampler: Sampler,
    num_denoise_steps: int,
    *,
    noise_level: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Steps:
    """The transitions of a sampler on the uniform grid, in float64 and then cast."""
    # The cache outlives the caller's mode, and inference tensors cannot enter a later backward.
    with torch.inference_mode(False):
        return _transition_steps(sampler, num_denoise_steps, noise_level, dtype, device)


def _transition_steps(
    sampler: Sampler,
    num_denoise_steps: int,
    noise_level: float,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Steps:
    grid = time_grid(num_denoise_steps)
    t, s = grid[:-1], grid[1:]
    delta = t - s
    w0, w1, std = 1 - s, s.clone(), torch.zeros_like(s)
    if sampler == "sde":
        one_minus_t = torch.where(t == 1, delta, 1 - t)
        variance_rate = noise_level**2 * t / one_minus_t
        w1 = s - variance_rate * delta / (2 * t)
        std = (variance_rate * delta).sqrt()
    elif sampler == "cps":
        w1 = s * math.cos(math.pi * noise_level / 2)
        std = s * math.sin(math.pi * noise_level / 2)
    x_coef, v_coef = w0 + w1, (1 - t) * w1 - t * w0
    fields = (value.to(dtype=dtype, device=device) for value in (t, x_coef, v_coef, std))
    return Steps(*fields)


def bounded_std(raw: Tensor, *, std_min: float, std_max: float) -> Tensor:
    """Learned std of Flow-Noise: log-variance interpolated by ``(tanh(raw)+1)/2`` (pi_RL)."""
    low, high = 2 * math.log(std_min), 2 * math.log(std_max)
    return torch.exp(0.5 * (low + (high - low) * (torch.tanh(raw) + 1) / 2))


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Elementwise log N(x; mean, std^2) in nats."""
    return _standard_log_prob((x - mean) / std) - std.log()


def _standard_log_prob(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def ode_sample(denoise: Denoise, initial: Tensor, *, num_denoise_steps: int) -> Tensor:
    """Euler integration of the velocity from ``initial`` [B, H, D] at t=1 to the action at t=0."""
    steps = transition_steps("ode", num_denoise_steps, dtype=initial.dtype, device=initial.device)
    x = initial
    for k in range(num_denoise_steps):
        velocity, _ = denoise(x.unsqueeze(1), steps.times[k : k + 1])
        x = steps.x_coef[k] * x + steps.v_coef[k] * velocity.squeeze(1)
    return x


@dataclass(frozen=True)
class Chain:
    """A sampled denoising chain.

    Attributes:
        states: [B, K+1, H, D] from x_1 to the action.
        log_probs: [B, S, H, D] log-density of the stochastic steps, S as in ``score_chain``.
    """

    states: Tensor
    log_probs: Tensor


def run_chain(
    denoise: Denoise,
    initial: Tensor,
    noise: Tensor,
    config: FlowConfig,
    *,
    noise_mask: Tensor | None = None,
    step_index: Tensor | None = None,
) -> Chain:
    """Run the stochastic sampler and keep the likelihood of what it drew.

    With ``x' = mean + std * noise`` the log-density of a step is that of its noise minus log std,
    so that sampling needs no second pass of the model.

    Args:
        denoise: the velocity (and, for ``noise``, std) model.
        initial: x_1, [B, H, D] standard normal.
        noise: [B, K, H, D] standard normal, one draw per step.
        config: sampler options.
        noise_mask: [H, D] bool, numbers that receive noise; the others follow the ode. None: all.
            ``log_probs`` outside it are those of numbers that were not drawn: leave them out.
        step_index: [B] int64, the one stochastic step of ``chain="single_step"``; None otherwise.
    """
    steps = _stochastic_steps(config, initial)
    ode = _steps_like("ode", config, initial)
    states, stds = [initial], []
    for k in range(config.num_denoise_steps):
        x = states[-1]
        velocity, std = denoise(x.unsqueeze(1), steps.times[k : k + 1])
        velocity = velocity.squeeze(1)
        std = steps.std[k].expand_as(x) if std is None else std.squeeze(1)
        drawn = steps.x_coef[k] * x + steps.v_coef[k] * velocity + std * noise[:, k]
        if step_index is not None or noise_mask is not None:
            plain = ode.x_coef[k] * x + ode.v_coef[k] * velocity
            drawn = torch.where(_noised(k, noise_mask, step_index, x), drawn, plain)
        states.append(drawn)
        stds.append(std)
    noise = _scored(noise, config, step_index)
    std = _scored(torch.stack(stds, 1), config, step_index)
    return Chain(torch.stack(states, 1), _standard_log_prob(noise) - std.log())


def _scored(values: Tensor, config: FlowConfig, step_index: Tensor | None) -> Tensor:
    """The stochastic steps [B, S, ...] of per-step values [B, K, ...]."""
    if step_index is None:
        return values[:, : config.num_stochastic_steps]
    return values[torch.arange(len(values), device=values.device), step_index].unsqueeze(1)


def sample_chain(
    denoise: Denoise,
    initial: Tensor,
    noise: Tensor,
    config: FlowConfig,
    *,
    noise_mask: Tensor | None = None,
    step_index: Tensor | None = None,
) -> Tensor:
    """States [B, K+1, H, D] of ``run_chain``, from x_1 to the action; same arguments."""
    chain = run_chain(denoise, initial, noise, config, noise_mask=noise_mask, step_index=step_index)
    return chain.states


def score_chain(
    denoise: Denoise, states: Tensor, config: FlowConfig, *, step_index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-density and entropy of the stochastic steps of stored chains, all in one pass.

    Args:
        denoise: the model under the parameters to score with.
        states: [B, K+1, H, D] from ``sample_chain``.
        config: the options that sampled the chain (the grid must be the same).
        step_index: [B] for ``chain="single_step"``, else None.

    Returns:
        (log_probs, entropy), each [B, S, H, D] with S = stochastic steps (1 for single_step).

    Raises:
        ValueError: ``sampler="ode"`` has no density.
    """
    if config.num_stochastic_steps == 0:
        raise ValueError("sampler='ode' has no likelihood: set flow.sampler to sde, cps or noise")
    steps = _stochastic_steps(config, states)
    x = _scored(states[:, :-1], config, step_index)
    target = _scored(states[:, 1:], config, step_index)
    if step_index is None:
        index, times_shape = torch.arange(config.num_stochastic_steps, device=x.device), (-1,)
    else:
        index, times_shape = step_index, (-1, 1)
    # One row per step [1, S, 1, 1], or one per sample [B, 1, 1, 1].
    shape = (1, -1, 1, 1) if step_index is None else (-1, 1, 1, 1)
    x_coef, v_coef, std = (
        value[index].view(shape) for value in (steps.x_coef, steps.v_coef, steps.std)
    )
    velocity, learned_std = denoise(x, steps.times[index].view(times_shape))
    std = std if learned_std is None else learned_std
    log_probs = gaussian_log_prob(target, x_coef * x + v_coef * velocity, std)
    entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).expand_as(log_probs)
    return log_probs, entropy


def reduce_units(values: Tensor, config: FlowConfig, *, noise_mask: Tensor | None = None) -> Tensor:
    """Per-number terms [B, S, H, D] to ratio units [B, U].

    U is 1, H or H*D for ``chunk``, ``action``, ``token``, times S for ``mdp="two_layer"`` (step
    major). Numbers outside ``noise_mask`` [H, D] are left out.
    """
    mask = torch.ones_like(values[0, 0]) if noise_mask is None else noise_mask.to(values.dtype)
    values = values * mask
    if config.units == "chunk":
        values, count = values.sum((-2, -1), keepdim=True), mask.sum().view(1, 1)
    elif config.units == "action":
        values, count = values.sum(-1, keepdim=True), mask.sum(-1, keepdim=True)
    else:
        count = torch.ones_like(mask)
    if config.unit_reduction == "mean":
        values = values / count.clamp(min=1)
    if config.mdp == "one_layer":
        values = values.sum(1, keepdim=True)
        if config.chain == "joint_mean":
            values = values / (config.num_denoise_steps + 1)
    return values.flatten(1)


def unit_mask(executed: Tensor, config: FlowConfig, *, horizon: int, action_dim: int) -> Tensor:
    """Which ratio units took effect.

    Predicted actions beyond H_executed are padding: never executed, but if they are noised
    (``noise_dims="all"``) their intermediate states moved the executed ones through the model, so
    their score belongs in the likelihood of any chunk that was executed at all.

    Args:
        executed: [B, H_executed] bool; False inside a chunk that ended early. Those actions are
            left out as the caller asks, although their noise too had an influence.
        config: flow options.
        horizon: predicted chunk length, >= H_executed.
        action_dim: D of the predicted action, padding included.

    Returns:
        [B, U] bool. A chunk is one unit, effective if any of its actions was executed.
    """
    any_executed = executed.any(1, keepdim=True)
    padding = any_executed.expand(-1, horizon - executed.shape[1])
    if config.noise_dims == "executed":
        padding = torch.zeros_like(padding)
    mask = torch.cat([executed, padding], 1)
    if config.units == "chunk":
        mask = any_executed
    elif config.units == "token":
        mask = mask.repeat_interleave(action_dim, 1)
    repeats = config.num_stochastic_steps if config.mdp == "two_layer" else 1
    return mask.repeat(1, repeats)


def two_layer_weights(config: FlowConfig, num_units: int) -> tuple[Tensor, Tensor] | None:
    """(advantage weight [U], clip scale [U]) of the two-layer MDP, or None for one layer.

    Weight of step k: ``denoise_discount^(K'-1-k)``. Clip scale with ``r = k/(K'-1)`` and rate 3:
    ``base + (1-base) (e^{3r}-1)/(e^3-1)`` (DPPO, "clipping ratio that follows the denoise step").
    """
    if config.mdp == "one_layer":
        return None
    count = config.num_stochastic_steps
    k = torch.arange(count, dtype=torch.float32)
    weight = config.denoise_discount ** (count - 1 - k)
    progress = k / max(count - 1, 1)
    base = config.denoise_clip_base
    clip = base + (1 - base) * torch.expm1(3 * progress) / math.expm1(3.0)
    per_step = num_units // count
    return weight.repeat_interleave(per_step), clip.repeat_interleave(per_step)


def annealed(config: FlowConfig, progress: float) -> FlowConfig:
    """``config`` with its noise scaled by ``1 + (anneal_to - 1) progress``."""
    if config.anneal_to == 1.0:
        return config
    scale = 1.0 + (config.anneal_to - 1.0) * progress
    return replace(
        config,
        noise_level=config.noise_level * scale,
        std_min=config.std_min * scale,
        std_max=config.std_max * scale,
    )


def draw_step_index(
    batch_size: int, config: FlowConfig, *, generator: torch.Generator | None
) -> Tensor | None:
    """``[B]`` the stochastic step of ``chain="single_step"``, uniform; None for other chains."""
    if config.chain != "single_step":
        return None
    draws = 1 if config.step_draw == "batch" else batch_size
    device = None if generator is None else generator.device
    index = torch.randint(config.num_stochastic_steps, (draws,), generator=generator, device=device)
    return index.expand(batch_size).clone()


def _stochastic_steps(config: FlowConfig, like: Tensor) -> Steps:
    return _steps_like("ode" if config.sampler == "noise" else config.sampler, config, like)


def _steps_like(sampler: Sampler, config: FlowConfig, like: Tensor) -> Steps:
    return transition_steps(
        sampler,
        config.num_denoise_steps,
        noise_level=config.noise_level,
        dtype=like.dtype,
        device=like.device,
    )


def _noised(k: int, noise_mask: Tensor | None, step_index: Tensor | None, like: Tensor) -> Tensor:
    noised = torch.ones((1, *like.shape[1:]), dtype=torch.bool, device=like.device)
    if noise_mask is not None:
        noised = noised & noise_mask
    if step_index is not None:
        noised = noised & (step_index == k).view(-1, 1, 1)
    return noised
