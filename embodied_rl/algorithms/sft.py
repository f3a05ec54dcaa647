"""Supervised fine-tuning on demonstrations: flow matching or likelihood, as the policy defines it.

AdamW with linear warm-up over the first 5 % of the steps and cosine decay to zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from embodied_rl.config import ImitationConfig
from embodied_rl.types import TensorDict

Demonstrations = tuple[TensorDict, Tensor, Tensor]
"""(obs [F, ...], action chunks [F, H, D], mask [F, H])."""


class SFT:
    """Imitates expert chunks with the policy's own ``imitation_loss``.

    Args:
        policy: has ``imitation_loss``.
        config: options.
        demonstrations: all training rows in memory.
    """

    Config = ImitationConfig

    def __init__(
        self, policy: nn.Module, config: ImitationConfig, *, demonstrations: Demonstrations
    ) -> None:
        self.policy: Any = policy
        self.config = config
        self.demonstrations = demonstrations
        parameters = [p for name, p in policy.named_parameters() if not name.startswith("critic")]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.step = 0

    def gradient_steps(self, *, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the detached loss of every remaining gradient step."""
        obs, actions, mask = self.demonstrations
        while self.step < self.config.num_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * warmup_cosine(
                    self.step, total=self.config.num_steps
                )
            size = min(self.config.batch_size, len(actions))
            pick = torch.randint(len(actions), (size,), generator=generator, device=actions.device)
            picked = {name: value[pick] for name, value in obs.items()}
            loss = self.policy.imitation_loss(
                picked, actions[pick], mask[pick], generator=generator
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            yield loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and progress."""
        return {"optimizer": self.optimizer.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def warmup_cosine(step: int, *, total: int) -> float:
    """Learning-rate factor in [0, 1]."""
    warmup = max(total // 20, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
