"""The rows of the comparison, and the tensors that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

T, N, GROUP = 21, 12, 4
"""Steps (or tokens), environments (or responses), size of a group."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    quantity: str
    peer: str
    relation: str
    difference: float
    passed: bool


ROWS: list[Row] = []


def largest(a: Tensor | float, b: Tensor | float) -> float:
    """Largest absolute difference."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return (a - b).abs().max().item()


def same(
    quantity: str, peer: str, ours: Tensor | float, theirs: Tensor | float, *, atol: float = 1e-5
) -> None:
    """Record that two results must be equal."""
    gap = largest(ours, theirs)
    ROWS.append(Row(quantity, peer, "equal", gap, gap <= atol))


def differs(
    quantity: str,
    peer: str,
    ours: Tensor | float,
    theirs: Tensor | float,
    *,
    why: str,
    corrected: Tensor | float | None = None,
) -> None:
    """Record a difference by design; ``corrected`` is theirs expressed through ours."""
    gap = largest(ours, theirs)
    explained = corrected is None or largest(corrected, theirs) < 1e-4
    ROWS.append(Row(quantity, peer, f"differs: {why}", gap, gap > 1e-4 and explained))


def ratios(seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihoods, old ones, advantages and mask, ``[N, T]``."""
    rng = torch.Generator().manual_seed(seed)
    old = torch.randn(N, T, generator=rng)
    log_probs = old + spread * torch.randn(N, T, generator=rng)
    advantages = torch.randn(N, T, generator=rng)
    return log_probs, old, advantages, torch.rand(N, T, generator=rng) < 0.7


def report() -> int:
    """Print the table; returns the number of rows that failed."""
    print("| quantity | against | relation | largest difference | result |")
    print("|---|---|---|---|---|")
    for row in ROWS:
        result = "pass" if row.passed else "**FAIL**"
        print(f"| {row.quantity} | {row.peer} | {row.relation} | {row.difference:.1e} | {result} |")
    failed = sum(not row.passed for row in ROWS)
    print(f"\n{len(ROWS)} comparisons, {failed} failed.")
    return failed
