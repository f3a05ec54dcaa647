r"""Log-probabilities and entropies of tokens in bounded memory: logits exist a few rows at a time.

With z = c(W h) / tau the logits of a position (c is the identity, or s tanh(x / s) where a model
caps its logits at s), and p = softmax(z):

    log p(x) = z_x - log \sum_j e^{z_j}              d log p(x) / dz_j = [j = x] - p_j
    H = -\sum_j p_j log p_j                          dH / dz_j = -p_j (log p_j + H)

Log-probabilities of all words are kept for the backward pass where they are a single chunk; else,
and with a cap, it computes the logits of a chunk again. Logits and sums are float32 whatever the
precision of h and W: a bfloat16 logit between 16 and 32 would be wrong by up to 0.06.

Axes: ``S`` positions, ``E`` hidden features, ``V`` words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOGITS_AT_ONCE = 2**22
"""Numbers in one chunk of logits: 16 MiB in float32."""
WEIGHTS_AT_ONCE = 2**20
"""Numbers of W that are converted at once, 4 MiB in float32, where it has another precision."""


@dataclass(frozen=True)
class Head:
    """How a hidden state becomes logits.

    Attributes:
        weight: ``[V, E]``.
        temperature: tau.
        cap: s, or 0 where logits are not capped.
    """

    weight: Tensor
    temperature: float = 1.0
    cap: float = 0.0

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 ``[S, V]`` of hidden states ``[S, E]``, divided by the temperature."""
        logits = self._product(hidden)
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits if self.temperature == 1 else logits / self.temperature

    def _product(self, hidden: Tensor) -> Tensor:
        """float32 ``W h``, not rounded to the precision of W in between."""
        if self.weight.dtype != torch.bfloat16:
            return (hidden @ self.weight.T).float()
        hidden, words = hidden.float(), max(WEIGHTS_AT_ONCE // self.weight.shape[1], 1)
        return torch.cat([hidden @ part.float().T for part in self.weight.split(words)], 1)


def token_log_probs(
    hidden: Tensor, tokens: Tensor, head: Head, *, logits_at_once: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """(log-probability, entropy in nats) of every position, float32 ``[S]`` each, differentiable.

    Args:
        hidden: ``[S, E]`` states from which the tokens follow.
        tokens: ``[S]`` int64.
        head: output layer; gradients flow to its weight.
        logits_at_once: bound on the numbers of a chunk of logits; at least one row is computed.
    """
    rows = max(logits_at_once // head.weight.shape[0], 1)
    return _TokenLogProbs.apply(hidden, head.weight, tokens, head.temperature, head.cap, rows)


class _TokenLogProbs(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        temperature: float,
        cap: float,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, temperature, cap)
        log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(log_probs)
        kept: list[Tensor] = []
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            log_p = torch.log_softmax(head.logits(hidden[part]), 1)
            log_probs[part] = log_p.gather(1, tokens[part].unsqueeze(1)).squeeze(1)
            entropy[part] = log_p.exp().mul_(log_p).sum(1).neg_()
            # the slope of a cap is not to be had from log p
            if len(hidden) <= rows and not cap:
                kept.append(log_p)
        ctx.save_for_backward(hidden, weight, tokens, entropy, *kept)
        ctx.options = temperature, cap, rows
        ctx.set_materialize_grads(False)
        return log_probs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, tokens, entropy, *kept = ctx.saved_tensors
        temperature, cap, rows = ctx.options
        head = Head(weight, temperature, cap)
        by_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = torch.zeros_like(weight, dtype=torch.float32)
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            logits = None if kept else head.logits(hidden[part])
            log_p = kept[0] if logits is None else torch.log_softmax(logits, 1)
            slope = _by_logits(log_p, tokens[part], entropy[part], part, gradients)
            if temperature != 1:
                slope /= temperature
            if cap:
                assert logits is not None
                slope *= 1 - (logits * (temperature / cap)).square()
            slope = slope.to(hidden.dtype)
            if by_hidden is not None:
                by_hidden[part] = slope @ weight
            if by_weight is not None:
                by_weight += (slope.T @ hidden[part]).float()
        if by_weight is not None:
            by_weight = by_weight.to(weight.dtype)
        return by_hidden, by_weight, None, None, None, None


def _by_logits(
    log_p: Tensor,
    tokens: Tensor,
    entropy: Tensor,
    part: slice,
    gradients: tuple[Tensor | None, ...],
) -> Tensor:
    """Gradient ``[S, V]`` with respect to the logits of a chunk."""
    by_log_prob, by_entropy = gradients
    outer = torch.zeros_like(entropy) if by_log_prob is None else by_log_prob[part]
    outer = by_p = outer.unsqueeze(1)
    if by_entropy is not None:
        by_p = outer + by_entropy[part].unsqueeze(1) * (log_p + entropy.unsqueeze(1))
    return log_p.exp().mul_(-by_p).scatter_add_(1, tokens.unsqueeze(1), outer)
