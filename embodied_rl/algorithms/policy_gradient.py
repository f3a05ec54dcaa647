"""What PPO and GRPO share: minibatches, anchors to a reference, honest ratio statistics.

An update is an iterator of gradient steps, so that the trainer can either exhaust it (on-policy)
or take one step whenever the simulators are busy (asynchronous mode).

Axes: ``M`` kept rows of a rollout, ``B`` rows of a minibatch, ``U`` ratio units.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embodied_rl.losses.entropy import entropy_bonus
from embodied_rl.losses.kl import kl_in_reward, kl_penalty
from embodied_rl.losses.mismatch import mismatch_weights
from embodied_rl.losses.policy import MAX_LOG_RATIO, clipped_surrogate
from embodied_rl.losses.reduce import (
    Reduce,
    count_trajectory_units,
    masked_mean,
    num_groups,
    weighted_mean,
    zero_outside,
)
from embodied_rl.types import (
    Advantages,
    Batch,
    HasReference,
    LogProbOutput,
    Policy,
    Rollout,
    TensorDict,
)

Stats = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    """Options of every clipped policy-gradient update.

    Attributes:
        learning_rate: Adam learning rate of everything but the critic.
        num_epochs: passes over the rollout.
        num_minibatches: gradient steps per pass; a fresh permutation is drawn for each pass.
        micro_batch_size: rows per forward pass inside a gradient step (0: all), for memory; the
            result does not depend on it.
        clip_ratio_low, clip_ratio_high: the ratio is clipped to [1 - low, 1 + high], in the units
            and scale that the policy's ``log_probs`` have.
        dual_clip: lower bound ``dual_clip * A`` for negative advantages (Ye et al. 2020), 0: off.
        ratio: the ratio of each ``unit``, or the geometric mean of those of the decision
            (``sequence``: GSPO).
        max_log_ratio: bound on the log-ratio before the exponential; 6.9 in StableReinforce.
        loss_mean: what weighs equally in the policy loss: each ratio unit (``token``), each
            decision (``chunk``) or each episode (``trajectory``); ``constant`` divides the sum over
            all units by ``constant_length`` per decision (Dr. GRPO).
        constant_length: number of units that every decision counts as with
            ``loss_mean="constant"``: the largest possible one, or 1 for the plain sum (REINFORCE).
        numeric_weight: weight of the units that the policy calls numeric (``replay["numeric"]``) in
            the mean over tokens, others weigh 1 (precision token loss of CAD-RL).
        skip_unfinished: leave answers that a limit of length cut (``replay["unfinished"]``) out of
            the loss (overlong filtering of DAPO); they stay in the baseline of their group.
        entropy_coef: weight of the entropy bonus.
        kl_coef: weight of the KL penalty to the reference policy (the start weights), 0: off.
        kl_estimator: k1, k2 or k3 (Schulman 2020).
        kl_in: add the penalty to the ``loss`` or subtract it from the ``reward``.
        bc_coef: weight of the imitation loss on the demonstrations (anchor), 0: off.
        w2_coef: weight of the squared distance between the ode actions of the new and the reference
            policy from the same noise (ReinFlow), 0: off; flow policies only.
        mismatch_clip: where an engine generates (``policy.generation.backend``), weigh every token
            by pi_old / pi_backend, at most this much; 0: off.
        target_kl: stop the epochs once the mean squared joint log-ratio / 2 exceeds it, 0: off.
        max_grad_norm: global gradient clipping.
        lr_schedule: ``constant`` or ``linear`` decay to zero over the run.
        compile: run the loss and its gradient as one program made by ``torch.compile``: fewer and
            larger operations, after some tens of seconds at the start (and again when minibatches
            change their size, as they do with whole episodes). On a CPU it needs a C++ compiler.
    """

    learning_rate: float = 3e-4
    num_epochs: int = 4
    num_minibatches: int = 4
    micro_batch_size: int = 0
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    dual_clip: float = 0.0
    ratio: Literal["unit", "sequence"] = "unit"
    max_log_ratio: float = MAX_LOG_RATIO
    loss_mean: Literal["token", "chunk", "trajectory", "constant"] = "token"
    constant_length: int = 0
    numeric_weight: float = 1.0
    skip_unfinished: bool = False
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    bc_coef: float = 0.0
    w2_coef: float = 0.0
    mismatch_clip: float = 0.0
    target_kl: float = 0.0
    max_grad_norm: float = 0.5
    lr_schedule: Literal["constant", "linear"] = "constant"
    compile: bool = False


class PolicyGradient:
    """Shared machinery; a subclass adds its terms in ``extra_loss`` and its parameter groups.

    Args:
        policy: has ``log_prob``.
        config: options.
        demonstrations: (obs, actions [F, H, D], mask [F, H]) for ``bc_coef``.
        total_env_steps: length of the run, for the learning-rate schedule.
    """

    def __init__(
        self,
        policy: Policy,
        config: PolicyGradientConfig,
        *,
        demonstrations: tuple[TensorDict, Tensor, Tensor] | None = None,
        total_env_steps: int = 0,
    ) -> None:
        self.policy: Any = policy
        self.config = config
        self.demonstrations = demonstrations
        self.total_env_steps = total_env_steps
        self.num_updates = 0
        if config.bc_coef and demonstrations is None:
            raise ValueError(
                "algorithm.bc_coef needs demonstrations: set imitation, or bc_coef to 0"
            )
        require_consistent(config)
        self.reference: Any = None
        if config.kl_coef or config.w2_coef:
            self.reference = start_policy(self.policy)
        self.optimizer = torch.optim.Adam(self.parameter_groups(), eps=1e-5, fused=True)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.loss = self._loss
        if config.compile:
            require_compiler(self.trained[0].device)
            # fullgraph: what cannot be compiled is an error, and never runs uncompiled instead
            self.loss = torch.compile(self._loss, fullgraph=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; by default every parameter at ``learning_rate``."""
        return [{"params": list(self.policy.parameters()), "lr": self.config.learning_rate}]

    def extra_loss(self, batch: Batch, output: LogProbOutput, stats: Stats) -> Tensor | float:
        """Further terms of a subclass, as a mean over the rows of ``batch``."""
        return 0.0

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """Subtract the KL penalty to the reference from the rewards if ``kl_in="reward"``."""
        if not self.config.kl_coef or self.config.kl_in != "reward":
            return rollout
        reference = self._reference_log_probs(rollout)
        rewards = kl_in_reward(
            rollout.rewards,
            rollout.log_probs,
            reference,
            kl_coef=self.config.kl_coef,
            estimator=self.config.kl_estimator,
            unit_mask=rollout.unit_mask & rollout.valid.unsqueeze(-1),
        )
        return dataclasses.replace(rollout, rewards=rewards)

    def gradient_steps(
        self,
        rollout: Rollout,
        advantages: Advantages,
        *,
        generator: torch.Generator | None,
        env_steps: int = 0,
    ) -> Iterator[Stats]:
        """Yield detached statistics after every gradient step.

        An empty ``keep`` yields nothing: there is nothing to learn from. ``policy_lag`` is the
        mean number of updates between the policy that acted and the one that is updated,
        ``unfinished_fraction`` the share of the kept decisions that ``skip_unfinished`` leaves out.
        """
        further: Stats = {}
        if self.config.skip_unfinished:
            before = advantages.keep.sum().clamp(min=1)
            advantages = without_unfinished(rollout, advantages)
            further["unfinished_fraction"] = 1 - advantages.keep.sum() / before
        rows = self._kept_rows(rollout, advantages)
        total = len(rows.advantages)
        if total == 0:
            return
        self._set_learning_rate(env_steps)
        further["policy_lag"] = (
            self.num_updates - rollout.policy_version[advantages.keep].float().mean()
        )
        minibatch_size = math.ceil(total / self.config.num_minibatches)
        for _ in range(self.config.num_epochs):
            kl = 0.0
            device = rows.advantages.device
            order = torch.randperm(total, generator=generator, device=device)
            shuffled = take(rows, order)
            for start in range(0, total, minibatch_size):
                minibatch = take(shuffled, slice(start, start + minibatch_size))
                stats = self._gradient_step(minibatch, generator)
                kl = stats["joint_kl"]
                yield stats | further
            if self.config.target_kl and kl > self.config.target_kl:
                break
        self.num_updates += 1

    def update(
        self,
        rollout: Rollout,
        advantages: Advantages,
        *,
        generator: torch.Generator | None,
        env_steps: int = 0,
    ) -> dict[str, float]:
        """Take every gradient step of an on-policy update; returns mean statistics."""
        steps = self.gradient_steps(rollout, advantages, generator=generator, env_steps=env_steps)
        return mean_stats(list(steps))

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, reference and counters."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.num_updates,
            "reference": None if self.reference is None else self.reference.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])

    def _kept_rows(self, rollout: Rollout, advantages: Advantages) -> Batch:
        """Flatten [T, N] to the M rows that carry gradient, once per update."""
        keep = advantages.keep.flatten()
        index = None if bool(keep.all()) else keep.nonzero().squeeze(1)

        def flat(value: Tensor) -> Tensor:
            value = value.flatten(0, 1)
            return value if index is None else value[index]

        replay = {name: flat(value) for name, value in rollout.replay.items()}
        if self.reference is not None and self.config.kl_coef and self.config.kl_in == "loss":
            replay["reference_log_probs"] = flat(self._reference_log_probs(rollout))
        mask = flat(rollout.unit_mask)
        return Batch(
            obs={name: flat(value) for name, value in rollout.obs.items()},
            actions=flat(rollout.actions),
            log_probs=flat(rollout.log_probs),
            unit_mask=None if bool(mask.all()) else mask,
            values=flat(rollout.values),
            episode_ids=flat(rollout.episode_ids),
            advantages=flat(advantages.advantages),
            returns=None if advantages.returns is None else flat(advantages.returns),
            replay=replay,
        )

    @torch.no_grad()
    def _reference_log_probs(self, rollout: Rollout) -> Tensor:
        """``[T, N, U]`` log-probs of the stored actions under the reference policy."""
        obs = {name: value.flatten(0, 1) for name, value in rollout.obs.items()}
        replay = {name: value.flatten(0, 1) for name, value in rollout.replay.items()}
        output = self.reference.log_prob(obs, rollout.actions.flatten(0, 1), replay)
        return output.log_probs.unflatten(0, rollout.shape)

    @torch.enable_grad()  # asynchronous steps are taken inside ``collect``, which needs none
    def _gradient_step(self, batch: Batch, generator: torch.Generator | None) -> Stats:
        self.optimizer.zero_grad(set_to_none=True)
        if 0 < self.config.micro_batch_size < len(batch.advantages):
            stats = self._accumulate(batch, self.config.micro_batch_size)
        else:
            loss, stats = self.loss(batch, self._reduce(batch, slice(None), 1.0))
            loss.backward()
        stats |= self._anchor_step(batch, generator)
        stats["grad_norm"] = nn.utils.clip_grad_norm_(
            self.trained, self.config.max_grad_norm, foreach=True
        )
        self.optimizer.step()
        return stats

    def _accumulate(self, batch: Batch, micro_batch_size: int) -> Stats:
        """Gradients of a minibatch in parts that fit into memory."""
        total: Stats = {}
        size = len(batch.advantages)
        for start in range(0, size, micro_batch_size):
            rows = slice(start, start + micro_batch_size)
            part = take(batch, rows)
            share = len(part.advantages) / size
            loss, stats = self.loss(part, self._reduce(batch, rows, share))
            (loss * share).backward()
            total = {name: total.get(name, 0.0) + stats[name] * share for name in stats}
        return total

    def _reduce(self, batch: Batch, rows: slice, share: float) -> Reduce:
        """Mean over the units of ``batch[rows]``, a ``share`` of a minibatch.

        Weighted with ``share``, the parts add up to the mean over the whole minibatch.
        """
        by, mask = self.config.loss_mean, batch.unit_mask
        weighted = self.config.numeric_weight != 1
        if mask is None and by in ("token", "chunk") and not weighted:
            return masked_mean  # every row has as many units as the others
        if mask is None:
            mask = torch.ones_like(batch.log_probs, dtype=torch.bool)
        if weighted:
            weights = numeric_weights(batch, self.config.numeric_weight) * mask
            return partial(weighted_mean, weights=weights[rows], denominator=weights.sum() * share)
        if by == "constant":
            decisions = num_groups(mask, by="chunk").clamp(min=1)
            return partial(masked_mean, denominator=decisions * self.config.constant_length * share)
        groups = num_groups(mask, by=by, trajectory_ids=batch.episode_ids).clamp(min=1)
        sizes = count_trajectory_units(mask, batch.episode_ids) if by == "trajectory" else None
        return partial(
            masked_mean,
            by=by,
            trajectory_ids=batch.episode_ids[rows],
            trajectory_sizes=None if sizes is None else sizes[rows],
            denominator=groups * share,
        )

    def _loss(self, batch: Batch, reduce: Reduce) -> tuple[Tensor, Stats]:
        """Loss of a micro-batch; ``reduce`` divides by what the whole minibatch holds."""
        config = self.config
        output: LogProbOutput = self.policy.log_prob(batch.obs, batch.actions, batch.replay)
        advantages = batch.advantages
        clip = 1.0 if output.clip_scale is None else output.clip_scale
        if output.unit_weight is not None:
            advantages = advantages.unsqueeze(-1) * output.unit_weight
        advantages, mismatch = self._corrected(batch, advantages)
        loss, stats = clipped_surrogate(
            output.log_probs,
            old_log_probs=batch.log_probs,
            advantages=advantages,
            mask=batch.unit_mask,
            clip_ratio_low=config.clip_ratio_low * clip,
            clip_ratio_high=config.clip_ratio_high * clip,
            dual_clip=config.dual_clip or None,
            ratio=config.ratio,
            max_log_ratio=config.max_log_ratio,
            reduce=reduce,
        )
        stats = dict(stats) | joint_ratio_stats(output, batch) | mismatch
        stats["policy_loss"] = loss.detach()
        if config.entropy_coef:
            bonus, entropy_stats = entropy_bonus(
                output.entropy, mask=batch.unit_mask, reduce=reduce
            )
            loss = loss + config.entropy_coef * bonus
            stats |= entropy_stats
        if "reference_log_probs" in batch.replay:
            penalty, kl_stats = kl_penalty(
                output.log_probs,
                ref_log_probs=batch.replay["reference_log_probs"],
                mask=batch.unit_mask,
                estimator=config.kl_estimator,
                reduce=reduce,
            )
            loss = loss + config.kl_coef * penalty
            stats |= kl_stats
        loss = loss + self.extra_loss(batch, output, stats)
        return loss, stats

    def _corrected(self, batch: Batch, advantages: Tensor) -> tuple[Tensor, Stats]:
        """Advantages [B] or [B, U] weighed for what an engine sampled, and how far it was off."""
        sampled, clip = batch.replay.get("backend_log_probs"), self.config.mismatch_clip
        if sampled is None:
            if clip:
                raise ValueError(
                    "algorithm.mismatch_clip corrects for an engine and this policy samples with "
                    "the weights that are trained: set policy.generation.backend, or it to 0"
                )
            return advantages, {}
        weights, stats = mismatch_weights(batch.log_probs, sampled, clip=clip, mask=batch.unit_mask)
        if clip:
            advantages = weights * (
                advantages.unsqueeze(-1) if advantages.ndim == 1 else advantages
            )
        return advantages, stats

    def _anchor_step(self, batch: Batch, generator: torch.Generator | None) -> Stats:
        """Gradients of the anchors, added to those of the policy loss."""
        stats: Stats = {}
        if self.config.bc_coef and self.demonstrations is not None:
            obs, actions, mask = self.demonstrations
            pick_count = min(len(batch.advantages), 1024)
            pick = torch.randint(
                len(actions), (pick_count,), generator=generator, device=actions.device
            )
            picked = {name: value[pick] for name, value in obs.items()}
            loss = self.policy.imitation_loss(
                picked, actions[pick], mask[pick], generator=generator
            )
            (self.config.bc_coef * loss).backward()
            stats["bc_loss"] = loss.detach()
        if self.config.w2_coef:
            initial = batch.replay["chain"][:, 0]
            with torch.no_grad():
                anchor = self.reference.ode_actions(batch.obs, initial)
            loss = (self.policy.ode_actions(batch.obs, initial) - anchor).square().mean()
            (self.config.w2_coef * loss).backward()
            stats["w2"] = loss.detach()
        return stats

    def _set_learning_rate(self, env_steps: int) -> None:
        if self.config.lr_schedule == "constant" or not self.total_env_steps:
            return
        remaining = max(1.0 - env_steps / self.total_env_steps, 0.0)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * remaining


def require_consistent(config: PolicyGradientConfig) -> None:
    """Refuse options that contradict each other or would do nothing.

    Raises:
        ValueError: says which option to set, and how.
    """
    if config.kl_coef and config.kl_in == "loss" and config.kl_estimator == "k1":
        raise ValueError(
            "kl_estimator=k1 has no gradient as a loss: set it to k3, or kl_in to reward"
        )
    if (config.loss_mean == "constant") != (config.constant_length > 0):
        raise ValueError(
            "loss_mean=constant and constant_length go together: set both, e.g. constant_length to "
            "policy.max_new_tokens, or neither"
        )
    if config.numeric_weight != 1 and (config.loss_mean != "token" or config.numeric_weight <= 0):
        raise ValueError(
            f"numeric_weight={config.numeric_weight} weighs tokens in their mean: set it to a "
            "number above 0 and loss_mean to token"
        )
    if config.max_log_ratio <= 0:
        raise ValueError(f"max_log_ratio={config.max_log_ratio}: set it above 0, e.g. 6.9")


def without_unfinished(rollout: Rollout, advantages: Advantages) -> Advantages:
    """``advantages`` that do not keep the decisions which a limit of length cut.

    Raises:
        ValueError: the policy does not say which these are.
    """
    keep = advantages.keep & ~_from_replay(rollout.replay, "unfinished", "skip_unfinished to false")
    return dataclasses.replace(advantages, keep=keep)


def numeric_weights(batch: Batch, weight: float) -> Tensor:
    """``[B, U]``: ``weight`` for numeric units, else 1.

    Raises:
        ValueError: the policy does not say which units are numeric.
    """
    numeric = _from_replay(batch.replay, "numeric", "numeric_weight to 1")
    return torch.where(numeric, weight, 1.0)


def _from_replay(replay: TensorDict, name: str, otherwise: str) -> Tensor:
    if name not in replay:
        raise ValueError(
            f"this policy does not tell what is {name} (vlm and string_generator do): set "
            f"algorithm.{otherwise}"
        )
    return replay[name]


def start_policy(policy: Any) -> Any:
    """What a policy is to stay near: its own reference, or else a copy of its present weights."""
    if isinstance(policy, HasReference):
        return policy.reference()
    return copy.deepcopy(policy).requires_grad_(False)


def require_compiler(device: torch.device) -> None:
    """Refuse ``algorithm.compile`` where torch could not build its program.

    Raises:
        ValueError: a CPU without C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"algorithm.compile needs the C++ compiler {compiler}, which is not installed: install "
            "it, name another one in the environment variable CXX, or set algorithm.compile to "
            "false"
        )


@torch.no_grad()
def joint_ratio_stats(output: LogProbOutput, batch: Batch) -> Stats:
    """Statistics of the exact joint log-ratio, whatever scale the clipped one has."""
    new, old = output.joint_log_probs, batch.replay.get("joint_log_probs")
    if new is None or old is None:
        new = zero_outside(output.log_probs, batch.unit_mask).sum(-1)
        old = zero_outside(batch.log_probs, batch.unit_mask).sum(-1)
    delta = new - old
    return {"joint_log_ratio_abs": delta.abs().mean(), "joint_kl": 0.5 * delta.square().mean()}


def mean_stats(steps: list[Stats]) -> dict[str, float]:
    """Mean of each statistic over gradient steps; one synchronisation for all of them."""
    if not steps:
        return {"num_gradient_steps": 0.0}
    names = sorted({name for stats in steps for name in stats})
    columns = [
        torch.stack([stats[name].float() for stats in steps if name in stats]).mean()
        for name in names
    ]
    means = dict(zip(names, torch.stack(columns).tolist(), strict=True))
    return means | {"num_gradient_steps": float(len(steps))}


def take(batch: Batch, index: Tensor | slice) -> Batch:
    """The rows of a batch that ``index`` selects; a slice copies nothing."""

    def select(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: item[index] for name, item in value.items()}
        return None if value is None else value[index]

    return Batch(**{f.name: select(getattr(batch, f.name)) for f in dataclasses.fields(Batch)})
