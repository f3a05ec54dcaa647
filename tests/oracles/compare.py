"""Compare our numerics with rlinf 0.3.0, verl 0.9.1 and TRL 1.16.0 on random tensors.

Where the definitions coincide the results must be equal; where they differ by design the
difference is asserted, together with the correction that turns one into the other if there is one.
Prints a markdown table; the exit code is 1 if any row fails. ``tests/oracles/run.sh`` builds the
environment that the packages need and runs this file in it.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

warnings.filterwarnings("ignore")

from rlinf.algorithms import advantages as rlinf_adv  # noqa: E402
from rlinf.algorithms import losses as rlinf_loss  # noqa: E402
from rlinf.algorithms import utils as rlinf_utils  # noqa: E402
from rlinf.utils.utils import get_loss_agg_func  # noqa: E402
from table import GROUP, ROWS, N, Row, T, differs, ratios, report, same  # noqa: E402
from trl_peer import compare_trl  # noqa: E402
from verl.trainer.ppo import core_algos as verl  # noqa: E402

from embodied_rl.advantages.gae import gae, gae_advantages  # noqa: E402
from embodied_rl.advantages.group_relative import group_advantages, group_relative  # noqa: E402
from embodied_rl.advantages.normalize import standardize  # noqa: E402
from embodied_rl.advantages.reinforce_pp import reinforce_pp  # noqa: E402
from embodied_rl.losses.entropy import entropy_bonus  # noqa: E402
from embodied_rl.losses.kl import kl_estimate  # noqa: E402
from embodied_rl.losses.policy import clipped_surrogate  # noqa: E402
from embodied_rl.losses.reduce import masked_mean  # noqa: E402
from embodied_rl.losses.value import value_loss  # noqa: E402
from embodied_rl.types import Rollout  # noqa: E402


def responses(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token rewards and values of N responses ``[N, T]`` and their mask, of random length."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, T + 1, (N,), generator=rng)
    mask = torch.arange(T)[None] < lengths[:, None]
    rewards = torch.randn(N, T, generator=rng) * mask
    values = torch.randn(N, T, generator=rng) * mask
    return rewards, values, mask


def rollout_of(rewards: Tensor, values: Tensor, mask: Tensor, *, group_ids: Tensor) -> Rollout:
    """The responses as a rollout of T steps in N environments, terminated at their last token."""
    ends = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1)) * ~ends
    shape = (T, N)
    zeros, none = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    return Rollout(
        obs={},
        actions=zeros,
        log_probs=torch.zeros(*shape, 1),
        unit_mask=torch.ones(*shape, 1, dtype=torch.bool),
        values=values.T,
        next_values=next_values.T,
        rewards=rewards.T,
        terminated=ends.T,
        truncated=none,
        success=none,
        valid=mask.T,
        num_env_steps=zeros,
        group_ids=group_ids.expand(shape),
        task_ids=zeros,
        episode_ids=torch.arange(N).expand(shape),
        policy_version=zeros,
    )


def compare_gae() -> None:
    """GAE, raw and normalised, and the treatment of time limits."""
    rng = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(T, N, generator=rng), torch.randn(T + 1, N, generator=rng)
    dones = torch.rand(T, N, generator=rng) < 0.1
    theirs, returns = rlinf_adv.compute_gae_advantages_and_returns(
        rewards,
        gamma=0.97,
        gae_lambda=0.9,
        values=values,
        normalize_advantages=False,
        dones=torch.cat([torch.zeros(1, N, dtype=torch.bool), dones]),
    )
    run = partial(gae_advantages, rewards, values[:-1], dones=dones, gamma=0.97, gae_lambda=0.9)
    ours = run(values[1:] * ~dones)
    same("GAE advantages, done = terminated", "rlinf", ours, theirs)
    same("GAE returns", "rlinf", ours + values[:-1], returns)
    everything = torch.ones_like(dones)
    same(
        "GAE advantages, normalised over the batch (eps 1e-8 / 1e-5)",
        "rlinf",
        standardize(ours, everything),
        rlinf_utils.safe_normalize(theirs, loss_mask=everything),
        atol=1e-4,
    )
    differs(
        "GAE advantages, done = truncated",
        "rlinf",
        run(values[1:]),
        theirs,
        why="we bootstrap V(final_obs) at a time limit, this function ends the episode there",
    )
    token_rewards, token_values, mask = responses(1)
    rollout = rollout_of(token_rewards, token_values, mask, group_ids=torch.zeros(N).long())
    result = gae(rollout, gamma=0.97, gae_lambda=0.9)
    adv, ret = verl.compute_gae_advantage_return(
        token_rewards, token_values, mask.float(), torch.tensor(0.97), torch.tensor(0.9)
    )
    assert result.returns is not None
    same("GAE advantages of padded responses, normalised", "verl", result.advantages.T, adv * mask)
    same("GAE returns of padded responses", "verl", result.returns.T * mask, ret * mask)


def compare_groups() -> None:
    """GRPO, Dr. GRPO and RLOO, including a group of one."""
    rewards, values, mask = responses(2)
    group_ids = torch.arange(N) // GROUP
    rollout = rollout_of(rewards, values, mask, group_ids=group_ids)
    scores = rewards.sum(-1)
    theirs, _ = rlinf_adv.compute_grpo_advantages(scores.view(-1, GROUP), mask.T, GROUP)
    result = group_relative(rollout)
    same("GRPO advantages", "rlinf", result.advantages, theirs, atol=1e-4)

    index = np.array([f"prompt-{g}" for g in group_ids.tolist()])
    for name, scale in (("GRPO", "std"), ("Dr. GRPO", "none")):
        theirs, _ = verl.compute_grpo_outcome_advantage(
            rewards, mask, index, norm_adv_by_std_in_grpo=scale == "std"
        )
        ours = group_relative(rollout, scale=scale).advantages.T  # pyright: ignore[reportArgumentType]
        same(f"{name} advantages", "verl", ours, theirs, atol=1e-4)
    ours = group_relative(rollout, scale="none", leave_one_out=True).advantages.T
    same(
        "RLOO advantages",
        "verl",
        ours,
        verl.compute_rloo_outcome_advantage(rewards, mask, index)[0],
    )
    vectorized = verl.compute_rloo_vectorized_outcome_advantage(rewards, mask, index)[0]
    same("RLOO advantages (vectorised)", "verl", ours, vectorized)

    lone = np.arange(N)
    theirs, _ = verl.compute_grpo_outcome_advantage(rewards, mask, lone)
    differs(
        "GRPO advantage of an episode alone in its group",
        "verl",
        group_advantages(scores, torch.arange(N))[:, None] * mask,
        theirs,
        why="0 and not kept here, the raw score there",
        corrected=scores[:, None] * mask,
    )


def compare_reinforce() -> None:
    """REINFORCE++ and its group baseline."""
    rewards, values, mask = responses(3)
    group_ids = torch.arange(N) // GROUP
    rollout = rollout_of(rewards, values, mask, group_ids=group_ids)
    theirs, _ = verl.compute_reinforce_plus_plus_outcome_advantage(
        rewards,
        mask.float(),
        config=SimpleNamespace(gamma=0.9),
    )
    same("REINFORCE++ advantages", "verl", reinforce_pp(rollout, gamma=0.9).advantages.T, theirs)
    with_baseline = reinforce_pp(rollout, baseline="group").advantages
    theirs, _ = verl.compute_reinforce_plus_plus_baseline_outcome_advantage(
        rewards,
        mask.float(),
        group_ids.numpy(),
    )
    same("REINFORCE++-baseline advantages", "verl", with_baseline.T, theirs)

    # rlinf takes one score per response; its own baseline option fails on the shapes it documents
    scores = rewards.sum(-1)
    outcome = rewards.new_zeros(N, T).scatter(1, mask.sum(-1, keepdim=True) - 1, scores[:, None])
    plain = reinforce_pp(rollout_of(outcome, values, mask, group_ids=group_ids)).advantages
    centred = group_advantages(scores, group_ids, scale="none")
    count = mask.sum()
    for name, paid, ours in (
        ("REINFORCE++ advantages of outcomes", scores, plain),
        ("REINFORCE++-baseline advantages", centred, with_baseline),
    ):
        theirs, _ = rlinf_adv.compute_reinpp_advantages(paid[None], mask.T, GROUP)
        differs(
            name,
            "rlinf",
            ours,
            theirs * mask.T,
            why="unbiased std here, population std there: a factor sqrt(n / (n - 1))",
            corrected=ours * (count / (count - 1)).sqrt(),
        )


def compare_policy_loss() -> None:
    """The clipped surrogate with dual clip: value, gradient and statistics."""
    log_probs, old, advantages, mask = ratios(4, 0.8)
    log_probs.requires_grad_()
    loss, stats = clipped_surrogate(
        log_probs, old, advantages, mask=mask, clip_ratio_high=0.28, dual_clip=3.0
    )
    theirs, metrics = rlinf_loss.compute_ppo_actor_loss(
        log_probs, old, 0.2, 0.28, advantages, mask, clip_ratio_c=3.0
    )
    verl_loss, clip_fraction, verl_kl, lower_fraction = verl.compute_policy_loss(
        old, log_probs, advantages, mask, cliprange_low=0.2, cliprange_high=0.28, clip_ratio_c=3.0
    )
    (ours_grad,) = torch.autograd.grad(loss, log_probs, retain_graph=True)
    for peer, other in (("rlinf", theirs), ("verl", verl_loss)):
        same("clipped surrogate with dual clip", peer, loss.detach(), other.detach())
        (grad,) = torch.autograd.grad(other, log_probs, retain_graph=True)
        same("its gradient", peer, ours_grad, grad)
    same("clip fraction", "rlinf", stats["clip_fraction"], metrics["actor/clip_fraction"])
    same("mean ratio", "rlinf", stats["ratio_mean"], metrics["actor/ratio"])
    same("clip fraction", "verl", stats["clip_fraction"], clip_fraction)
    same("dual clip fraction", "verl", stats["dual_clip_fraction"], lower_fraction)
    why = "k3 here (never negative), the mean of -log ratio (k1) there"
    k1 = masked_mean((old - log_probs).detach(), mask)
    for peer, kl in (("rlinf", metrics["actor/approx_kl"]), ("verl", verl_kl.detach())):
        differs("approximate KL", peer, stats["approx_kl"], kl, why=why, corrected=k1)

    far, zero = torch.full((1, 1), 25.0), torch.zeros(1, 1)
    ours = clipped_surrogate(far, zero, -torch.ones(1))[0]
    same("surrogate at log ratio 25", "verl", 1, ours / verl.compute_policy_loss(
        zero, far, -torch.ones(1, 1), torch.ones(1, 1), cliprange=0.2, clip_ratio_c=1e30
    )[0])  # fmt: skip
    differs(
        "surrogate at log ratio 25",
        "rlinf",
        ours,
        rlinf_loss.compute_ppo_actor_loss(far, zero, 0.2, 0.2, -torch.ones(1, 1))[0],
        why="log ratios are limited to 20 here, not there unless asked",
    )


def compare_value_loss() -> None:
    """Clipped value losses, squared and Huber."""
    values, returns, old, mask = ratios(5, 0.8)
    run = partial(value_loss, values, returns, old_values=old, mask=mask)
    ours, _ = run(clip_range=0.2, huber_delta=0.5)
    theirs, _ = rlinf_loss.compute_ppo_critic_loss(values, returns, old, 0.2, 0.5, mask)
    same("clipped Huber value loss", "rlinf", ours, theirs)
    ours, stats = run(clip_range=0.2)
    theirs, fraction = verl.compute_value_loss(values, returns, old, mask, 0.2)
    same("clipped squared value loss", "verl", ours, theirs)
    same("value clip fraction", "verl", stats["value_clip_fraction"], fraction)


def compare_kl_and_entropy() -> None:
    """KL estimators, their limits, and the entropy of logits."""
    log_probs, reference, _, mask = ratios(6, 0.5)
    for name in ("k1", "k2", "k3"):
        ours = kl_estimate(log_probs, reference, estimator=name)  # pyright: ignore[reportArgumentType]
        same(f"KL {name}", "rlinf", ours, rlinf_utils.kl_penalty(log_probs, reference, name))
        same(f"KL {name}", "verl", ours, verl.kl_penalty(log_probs, reference, name))
    far = torch.tensor([[-5.0]])
    for peer, penalty in (("rlinf", rlinf_utils.kl_penalty), ("verl", verl.kl_penalty)):
        ours = kl_estimate(far, torch.zeros(1, 1))
        theirs: Any = penalty(far, torch.zeros(1, 1), "k3")
        why = "k3 is capped at 10 nats there, which also cuts its gradient"
        differs("KL k3 at log ratio -5", peer, ours, theirs, why=why, corrected=ours.clamp(max=10))
    logits = torch.randn(N, T, 9, generator=torch.Generator().manual_seed(7))
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    same(
        "entropy of masked tokens",
        "verl",
        entropy_bonus(entropy, mask=mask)[1]["entropy"],
        verl.compute_entropy_loss(logits, mask),
    )


def compare_reductions() -> None:
    """Masked means."""
    x, _, _, mask = ratios(8, 1.0)
    same("mean by token", "rlinf", masked_mean(x, mask), get_loss_agg_func("token-mean")(x, mask))
    per_row = get_loss_agg_func("seq-mean-token-mean")
    same("mean by chunk", "rlinf", masked_mean(x, mask, by="chunk"), per_row(x, mask))
    same("mean by token", "verl", masked_mean(x, mask), verl.agg_loss(x, mask, "token-mean"))
    theirs = verl.agg_loss(x, mask, "seq-mean-token-mean")
    same("mean by chunk", "verl", masked_mean(x, mask, by="chunk"), theirs)
    theirs = verl.agg_loss(x, mask, "seq-mean-token-sum")
    same("sum over tokens, denominator rows", "verl", masked_mean(x, mask, denominator=N), theirs)
    mask[0] = False
    theirs = verl.agg_loss(x, mask, "seq-mean-token-mean")
    same("mean by chunk with an empty row", "verl", masked_mean(x, mask, by="chunk"), theirs)
    ours, theirs = masked_mean(x, mask, by="chunk"), per_row(x, mask)
    passed = bool(ours.isfinite() and theirs.isnan())
    relation = "differs: an empty row is left out here, NaN there"
    ROWS.append(Row("mean by chunk with an empty row", "rlinf", relation, float("nan"), passed))


def main() -> int:
    """Run every comparison and print the table."""
    compare_gae()
    compare_groups()
    compare_reinforce()
    compare_policy_loss()
    compare_value_loss()
    compare_kl_and_entropy()
    compare_reductions()
    compare_trl()
    return 1 if report() else 0


if __name__ == "__main__":
    sys.exit(main())
