"""Masked means: known numbers, invariance to micro-batches, order and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl.losses.policy import clipped_surrogate
from embodied_rl.losses.reduce import count_trajectory_units, masked_mean, num_groups

X = torch.tensor([[1.0, 3.0, 99.0, 99.0], [5.0, 99.0, 99.0, 99.0], [2.0, 4.0, 6.0, 8.0]])
MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
IDS = torch.tensor([9, 9, 4])
BY: dict[str, dict[str, Any]] = {
    "token": {},
    "action": {"units_per_action": 2},
    "chunk": {},
    "trajectory": {"trajectory_ids": IDS},
}


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("token", [[1], [3], [5], [2], [4], [6], [8]]),
        ("action", [[1, 3], [5], [2, 4], [6, 8]]),
        ("chunk", [[1, 3], [5], [2, 4, 6, 8]]),
        ("trajectory", [[1, 3, 5], [2, 4, 6, 8]]),
    ],
)
def test_groups_weigh_equally(by: Any, groups: list[list[float]]) -> None:
    means = [sum(group) / len(group) for group in groups]
    expected = sum(means) / len(means)
    assert masked_mean(X, MASK, by=by, **BY[by]).item() == pytest.approx(expected)
    assert num_groups(MASK, by=by, **BY[by]) == len(groups)


@pytest.mark.parametrize("by", BY)
def test_no_mask_counts_everything(by: Any) -> None:
    everything = torch.ones_like(MASK)
    bare, full = masked_mean(X, by=by, **BY[by]), masked_mean(X, everything, by=by, **BY[by])
    torch.testing.assert_close(bare, full)


def test_a_vector_has_one_unit_per_row() -> None:
    x, mask = X[:, 0], torch.tensor([True, False, True])
    for by in ("token", "action", "chunk"):
        assert masked_mean(x, mask, by=by) == 1.5
    assert masked_mean(x, by="trajectory", trajectory_ids=IDS).item() == pytest.approx(2.5)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("seed", range(5))
def test_micro_batches_with_explicit_denominators_add_up_to_the_whole(by: Any, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, units = 23, 6
    mask = torch.rand(rows, units, generator=rng) < 0.4
    mask[3] = False
    old, log_probs = (torch.randn(rows, units, generator=rng).double() for _ in range(2))
    advantages = torch.randn(rows, generator=rng).double()
    ids = torch.randint(5, (rows,), generator=rng)
    options: dict[str, Any] = {"by": by, "units_per_action": 2 if by == "action" else 1}
    denominator = num_groups(mask, trajectory_ids=ids, **options)
    sizes = count_trajectory_units(mask, ids)

    def loss(x: Tensor, part: Tensor, **explicit: Any) -> Tensor:
        def reduce(losses: Tensor, counted: Tensor | None) -> Tensor:
            return masked_mean(losses, counted, trajectory_ids=ids[part], **options, **explicit)

        return clipped_surrogate(
            x[part], old[part], advantages[part], mask=mask[part], reduce=reduce
        )[0]

    whole = log_probs.clone().requires_grad_()
    everything = torch.arange(rows)
    loss(whole, everything).backward()
    parts = log_probs.clone().requires_grad_()
    for part in torch.randperm(rows, generator=rng).split([1, 9, 13]):
        loss(parts, part, denominator=denominator, trajectory_sizes=sizes[part]).backward()
    assert whole.grad is not None
    assert whole.grad.abs().max() > 0
    torch.testing.assert_close(parts.grad, whole.grad)


@pytest.mark.parametrize("by", BY)
def test_padding_rows_and_units_change_nothing(by: Any) -> None:
    options = dict(BY[by])
    expected = masked_mean(X, MASK, by=by, **options)
    wide = torch.nn.functional.pad(X, (0, 2, 0, 2), value=float("nan"))
    mask = torch.nn.functional.pad(MASK, (0, 2, 0, 2))
    if by == "trajectory":
        options["trajectory_ids"] = torch.cat([IDS, torch.tensor([77, 4])])
    torch.testing.assert_close(masked_mean(wide, mask, by=by, **options), expected)


@pytest.mark.parametrize("by", BY)
def test_an_empty_mask_gives_zero(by: Any) -> None:
    assert masked_mean(X, torch.zeros_like(MASK), by=by, **BY[by]) == 0


def test_wrong_options_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="token, action, chunk, trajectory"):
        masked_mean(X, MASK, by="sequence", denominator=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="does not divide"):
        masked_mean(X, MASK, by="action", units_per_action=3)
    with pytest.raises(ValueError, match="trajectory_ids"):
        masked_mean(X, MASK, by="trajectory")
