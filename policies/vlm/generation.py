r"""Sampling answers token by token, each prompt computed once.

With logits z (already divided by the temperature) a token is drawn by inverting the cumulative
distribution of softmax(z) over the words that are left:

* top-k: the k words of largest probability;
* top-p: the smallest set of most probable words whose probability is at least p.

The log-probability that is recorded is log softmax(z)_x over *all* words: the policy is softmax(z),
and the two options only narrow what is explored. One uniform number per row and token is drawn
beforehand, so that the noise of a row does not depend on when others finish.

Axes: ``B`` rows, ``R`` rows that go on, ``U`` tokens, ``V`` words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Sampled tokens.

    Attributes:
        tokens: int64 ``[B, U]``, 0 after the end.
        lengths: int64 ``[B]``, tokens including the one that ended the answer.
        log_probs: float32 ``[B, U]``, 0 after the end.
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor

    @property
    def mask(self) -> Tensor:
        """``[B, U]`` bool, tokens that are real."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return places < self.lengths.unsqueeze(1)

    def select(self, rows: Tensor) -> Answers:
        """Those of some rows ``[b]`` int64."""
        return Answers(
            tokens=self.tokens[rows], lengths=self.lengths[rows], log_probs=self.log_probs[rows]
        )


Step = Callable[[Tensor, Tensor | None], Tensor]
"""(last tokens [R], rows to go on with or None for all) -> logits [R, V] of the next ones."""


def generate(
    logits: Tensor,
    step: Step,
    uniform: Tensor,
    *,
    end_tokens: Sequence[int],
    top_k: int = 0,
    top_p: float = 1.0,
    stopped: Callable[[list[int]], bool] | None = None,
    greedy: bool = False,
) -> Answers:
    """Draw answers of at most ``uniform.shape[1]`` tokens.

    Args:
        logits: float32 ``[B, V]`` of the first tokens, divided by the temperature.
        step: continues; finished rows leave it once they are half of those that are left.
        uniform: ``[B, U]`` in [0, 1), the noise.
        end_tokens: tokens that end an answer.
        top_k: see the module; 0 keeps every word.
        top_p: see the module; 1 keeps every word.
        stopped: whether the tokens so far end an answer (stop strings).
        greedy: take the most probable word.
    """
    count, limit = uniform.shape
    tokens = torch.zeros((count, limit), dtype=torch.int64, device=logits.device)
    log_probs = torch.zeros((count, limit), device=logits.device)
    lengths = torch.full((count,), limit, device=logits.device)
    ends = torch.tensor(list(end_tokens), device=logits.device)
    rows = torch.arange(count, device=logits.device)
    running = torch.ones_like(rows, dtype=torch.bool)
    for place in range(limit):
        log_p = torch.log_softmax(logits, 1)
        if greedy:
            drawn = logits.argmax(1)
        else:
            drawn = pick(log_p, uniform[rows, place], top_k=top_k, top_p=top_p)
        chosen = log_p.gather(1, drawn.unsqueeze(1)).squeeze(1)
        tokens[rows, place] = torch.where(running, drawn, 0)
        log_probs[rows, place] = torch.where(running, chosen, 0.0)
        finished = running & torch.isin(drawn, ends)
        if stopped is not None:
            finished |= _stopped(tokens[rows, : place + 1], running & ~finished, stopped)
        lengths[rows[finished]] = place + 1
        running &= ~finished
        left = int(running.sum())
        if left == 0 or place + 1 == limit:
            break
        keep = running.nonzero().squeeze(1) if 2 * left <= len(rows) else None
        if keep is not None:
            rows, running, drawn = rows[keep], running[keep], drawn[keep]
        logits = step(drawn, keep)
    longest = int(lengths.max())
    return Answers(tokens=tokens[:, :longest], lengths=lengths, log_probs=log_probs[:, :longest])


def pick(log_p: Tensor, uniform: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """int64 ``[R]`` words drawn from log-probabilities ``[R, V]`` with noise ``[R]``."""
    cumulative = narrow(log_p, top_k=top_k, top_p=top_p).exp().cumsum(1)
    # The first word whose cumulative probability exceeds u has a probability itself; u stays below
    # their sum, which is less than 1 where some are left out, or by rounding.
    total = cumulative[:, -1]
    u = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, u.unsqueeze(1), right=True).squeeze(1)


def narrow(logits: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """``[R, V]`` logits, -inf for the words that top-k and top-p leave out."""
    if 0 < top_k < logits.shape[1]:
        smallest = logits.topk(top_k, 1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(1, descending=True)
        p = torch.softmax(ordered, 1)
        before = p.cumsum(1) - p
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(1, order, ordered)
    return logits


def _stopped(tokens: Tensor, running: Tensor, stopped: Callable[[list[int]], bool]) -> Tensor:
    ended = torch.zeros_like(running)
    for row in running.nonzero().squeeze(1).tolist():
        ended[row] = stopped(tokens[row].tolist())
    return ended
