"""TRL 1.16.0: token log-probabilities, entropies and the loss of its GRPOTrainer.

Their loss is a method of the trainer, ``_compute_loss``. It runs here as it is, on an object that
holds the settings it reads and hands it our log-probabilities for those of a model. Ours is a whole
update of ``GRPO`` on a policy whose parameters are the log-probabilities, so that what is compared
are the options of the configuration, by the gradient that they give.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from table import N, T, differs, ratios, same
from torch import Tensor, nn
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.policies.vlm.scoring import Head, token_log_probs
from embodied_rl.types import Advantages, LogProbOutput, Rollout

LENGTH = 32
"""TRL's ``max_completion_length``."""
CLIP: dict[str, Any] = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}


def compare_trl() -> None:
    """Every row against TRL."""
    compare_scores()
    compare_losses()
    compare_kl()
    compare_limits()


def compare_scores() -> None:
    """Log-probabilities of chosen tokens and entropies, with their gradients."""
    rng = torch.Generator().manual_seed(20)
    hidden = torch.randn(N * T, 7, generator=rng)
    weight = torch.randn(50, 7, generator=rng)
    tokens = torch.randint(50, (N * T,), generator=rng)
    for temperature in (1.0, 0.7):
        states = hidden.clone().requires_grad_()
        ours = token_log_probs(states, tokens, Head(weight, temperature), logits_at_once=400)
        logits = states @ weight.T / temperature
        theirs = selective_log_softmax(logits, tokens), entropy_from_logits(logits)
        slope = torch.randn(N * T, generator=rng)
        for name, mine, other in zip(("log-probability", "entropy"), ours, theirs, strict=True):
            quantity = f"{name} of tokens, temperature {temperature}"
            same(quantity, "TRL", mine.detach(), other.detach())
            grads = [
                torch.autograd.grad((slope * x).sum(), states, retain_graph=True)[0]
                for x in (mine, other)
            ]
            same("its gradient", "TRL", *grads)


class Table(nn.Module):
    """A policy whose parameters are the log-probabilities ``[N, T]`` of what was sampled."""

    def __init__(self, log_probs: Tensor) -> None:
        super().__init__()
        self.log_probs = nn.Parameter(log_probs.clone())

    def log_prob(self, obs: Any, actions: Tensor, replay: Any) -> LogProbOutput:
        """Those of the rows ``actions``."""
        log_probs = self.log_probs[actions]
        return LogProbOutput(log_probs=log_probs, entropy=torch.zeros_like(log_probs))


def ours(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference: Tensor | None = None,
    **options: Any,
) -> tuple[float, Tensor, dict[str, float]]:
    """(policy loss, gradient, statistics) of one step of ``GRPO`` with these options."""
    policy = Table(log_probs if reference is None else reference)
    config = GRPO.Config(num_epochs=1, num_minibatches=1, max_grad_norm=1e9, **CLIP, **options)
    update = GRPO(policy, config)  # pyright: ignore[reportArgumentType]
    policy.log_probs.data.copy_(log_probs)  # the reference stays what it was
    count = len(old)
    ids, yes = torch.arange(count).unsqueeze(0), torch.ones(1, count, dtype=torch.bool)
    zeros = torch.zeros(1, count)
    rollout = Rollout(
        obs={},
        actions=ids,
        log_probs=old.unsqueeze(0),
        unit_mask=mask.unsqueeze(0),
        values=zeros,
        next_values=zeros,
        rewards=zeros,
        terminated=yes,
        truncated=~yes,
        success=~yes,
        valid=yes,
        num_env_steps=ids,
        group_ids=ids,
        task_ids=ids,
        episode_ids=ids,
        policy_version=torch.zeros_like(ids),
    )
    stats = update.update(
        rollout, Advantages(advantages=advantages.unsqueeze(0), keep=yes), generator=None
    )
    assert policy.log_probs.grad is not None
    return stats["policy_loss"], policy.log_probs.grad, stats


def theirs(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str,
    level: str = "token",
    beta: float = 0.0,
    reference: Tensor | None = None,
) -> tuple[float, Tensor]:
    """(loss, gradient) of ``GRPOTrainer._compute_loss`` with these settings."""
    log_probs = log_probs.clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (log_probs, torch.zeros(N, T), None),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LENGTH,
        importance_sampling_level=level,
        loss_type=loss_type,
        beta=beta,
        epsilon_low=CLIP["clip_ratio_low"],
        epsilon_high=CLIP["clip_ratio_high"],
    )
    tokens = torch.zeros(N, T, dtype=torch.int64)
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": tokens[:, :1] + 1,
        "completion_ids": tokens,
        "completion_mask": mask.int(),
        "num_items_in_batch": mask.sum(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    (grad,) = torch.autograd.grad(loss, log_probs)
    return loss.item(), grad


def compare_losses() -> None:
    """The loss types of TRL that are options here, and GSPO's ratio."""
    log_probs, old, _, mask = ratios(21, 0.4)
    advantages = torch.randn(N, generator=torch.Generator().manual_seed(22))
    batch = log_probs, old, advantages, mask
    constant: dict[str, Any] = {"loss_mean": "constant", "constant_length": LENGTH}
    settings: list[tuple[str, str, dict[str, Any]]] = [
        ("grpo", "token", {"loss_mean": "chunk"}),
        ("bnpo", "token", {"loss_mean": "token"}),
        ("dapo", "token", {"loss_mean": "token"}),
        ("dr_grpo", "token", constant),
        ("grpo", "sequence", {"loss_mean": "chunk", "ratio": "sequence"}),
        ("bnpo", "sequence", {"loss_mean": "token", "ratio": "sequence"}),
    ]
    for loss_type, level, options in settings:
        loss, grad, _ = ours(*batch, **options)
        other_loss, other_grad = theirs(*batch, loss_type=loss_type, level=level)
        name = f"loss `{loss_type}`" + (", ratio of the sequence (GSPO)" * (level == "sequence"))
        same(name, "TRL", loss, other_loss)
        same("its gradient", "TRL", grad, other_grad)


def compare_kl() -> None:
    """The KL penalty (k3) in the loss, by value and gradient."""
    log_probs, old, _, mask = ratios(23, 0.4)
    reference = ratios(24, 0.4)[1]
    advantages = torch.randn(N, generator=torch.Generator().manual_seed(25))
    batch = log_probs, old, advantages, mask
    _, grad, stats = ours(*batch, reference=reference, kl_coef=0.04, loss_mean="token")
    free, _ = theirs(*batch, loss_type="bnpo")
    loss, other = theirs(*batch, loss_type="bnpo", beta=0.04, reference=reference)
    same("KL k3 to a reference", "TRL", stats["kl_ref"], (loss - free) / 0.04, atol=1e-4)
    same("gradient of loss and KL penalty", "TRL", grad, other)


def compare_limits() -> None:
    """What is left out of the loss, and ratios that run away."""
    log_probs, old, _, mask = ratios(26, 0.4)
    advantages = torch.randn(N, generator=torch.Generator().manual_seed(27))
    mask[:3] = False
    loss, _, _ = ours(log_probs, old, advantages, mask, loss_mean="chunk")
    other, _ = theirs(log_probs, old, advantages, mask, loss_type="grpo")
    differs(
        "loss `grpo` with three truncated answers of twelve masked",
        "TRL",
        loss,
        other,
        why="left out of the mean here, counted as 0 there",
        corrected=loss * (N - 3) / N,
    )
    log_probs[5, 0], old[5, 0], mask[5, 0], advantages[5] = 25.0, 0.0, True, -1.0
    loss, _, _ = ours(log_probs, old, advantages, mask, loss_mean="token")
    other, _ = theirs(log_probs, old, advantages, mask, loss_type="bnpo")
    why = "log ratios are limited to 20 here, not there"
    differs("loss `bnpo` at a log ratio of 25", "TRL", loss, other, why=why)
