"""Normalisation of advantages, rewards and value targets.

- Advantages: (A - mean) / (std + 1e-8) over the rows that count, of the batch or of each task.
- Rewards: r / sqrt(var(R) + 1e-8) with R_t = r_t + gamma * R_{t-1}, the discounted return so far
  of each environment (Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients").
- Values: update ``RunningMoments`` with the returns, train the critic on ``normalize(returns)`` and
  read its predictions through ``denormalize``.

Axes: ``T`` decision step, ``N`` environment. All statistics are float64 and can be checkpointed.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from embodied_rl.advantages.scan import forward_scan
from embodied_rl.advantages.segments import segment_moments
from embodied_rl.types import Rollout

Normalize = Literal["batch", "task", "none"]
"""Which rows share a mean and a standard deviation: all, those of a task, or no normalisation."""

EPS = 1e-8


def standardize(x: Tensor, mask: Tensor, *, segments: Tensor | None = None) -> Tensor:
    """(x - mean) / (std + 1e-8) over the entries in ``mask``, with the unbiased std.

    Args:
        x: any shape.
        mask: bool, same shape; entries outside are 0 in the result.
        segments: int64, same shape: statistics are taken per distinct id. None: one for all.

    Returns:
        Shape and dtype of ``x``.
    """
    values = x[mask]
    if segments is None:
        index, num_segments = torch.zeros_like(values, dtype=torch.int64), 1
    else:
        ids, index = torch.unique(segments[mask], return_inverse=True)
        num_segments = ids.numel()
    mean, std, _ = segment_moments(values, index, num_segments=num_segments)
    out = torch.zeros_like(x)
    out[mask] = ((values.double() - mean[index]) / (std[index] + EPS)).to(x.dtype)
    return out


def normalize_advantages(
    advantages: Tensor, mask: Tensor, *, rollout: Rollout, normalize: Normalize
) -> Tensor:
    """Apply a named normalisation to the advantages of a rollout.

    Args:
        advantages: ``[T, N]``.
        mask: ``[T, N]`` bool, rows that enter the statistics; the others become 0.
        rollout: gives ``task_ids``.
        normalize: see ``Normalize``.

    Returns:
        ``[T, N]``.

    Raises:
        ValueError: an unknown ``normalize``.
    """
    if normalize == "batch":
        return standardize(advantages, mask)
    if normalize == "task":
        return standardize(advantages, mask, segments=rollout.task_ids)
    if normalize == "none":
        return torch.where(mask, advantages, 0.0)
    raise ValueError(f"normalize is {normalize!r}; use one of {', '.join(get_args(Normalize))}")


class RunningMoments:
    """Mean and variance of everything seen so far, merged batch by batch.

    The merge is exact (Chan, Golub & LeVeque 1979): any split of the same data into
    batches, or over processes followed by ``merge``, gives the same moments.

    Args:
        shape: shape of one observation; () for scalars.
        device: where the moments live.
    """

    def __init__(
        self, *, shape: tuple[int, ...] = (), device: torch.device | str | None = None
    ) -> None:
        self.shape = shape
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.sum_squares = torch.zeros(shape, dtype=torch.float64, device=device)
        """Sum of squared deviations from the mean."""

    @property
    def var(self) -> Tensor:
        """Population variance, ``shape``; 1 until something was seen."""
        var = self.sum_squares / self.count.clamp(min=1)
        return torch.where(self.count > 0, var, torch.ones_like(var))

    @property
    def std(self) -> Tensor:
        """sqrt(var + 1e-8), ``shape``; never 0."""
        return (self.var + EPS).sqrt()

    @torch.no_grad()
    def update(self, x: Tensor, *, mask: Tensor | None = None) -> None:
        """Add observations.

        Args:
            x: ``[..., *shape]``.
            mask: bool with the leading axes of ``x``; observations outside do not count.
        """
        leading = x.ndim - len(self.shape)
        assert x.shape[leading:] == self.shape, (x.shape, self.shape)
        rows = x[mask] if mask is not None else x.reshape(-1, *self.shape)
        rows = rows.double()
        if rows.shape[0] == 0:
            return
        batch = RunningMoments(shape=self.shape, device=self.mean.device)
        batch.count = torch.full_like(self.count, rows.shape[0])
        batch.mean = rows.mean(0)
        batch.sum_squares = (rows - batch.mean).square().sum(0)
        self.merge(batch)

    def merge(self, other: RunningMoments) -> None:
        """Add everything that ``other`` has seen."""
        total = self.count + other.count
        fraction = other.count / total.clamp(min=1)
        delta = other.mean - self.mean
        self.sum_squares = (
            self.sum_squares + other.sum_squares + delta.square() * self.count * fraction
        )
        self.mean = self.mean + delta * fraction
        self.count = total

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / std, shape and dtype of ``x``."""
        return ((x - self.mean) / self.std).to(x.dtype)

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        return (x * self.std + self.mean).to(x.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """``count``, ``mean``, ``sum_squares``."""
        return {
            "count": self.count.clone(),
            "mean": self.mean.clone(),
            "sum_squares": self.sum_squares.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``.

        Raises:
            ValueError: the stored moments have another shape.
        """
        if tuple(state["mean"].shape) != self.shape:
            raise ValueError(
                f"stored moments have shape {tuple(state['mean'].shape)}, expected {self.shape}: "
                "load the checkpoint of a run with the same normaliser"
            )
        device = self.mean.device
        self.count = state["count"].to(device, torch.float64).clone()
        self.mean = state["mean"].to(device, torch.float64).clone()
        self.sum_squares = state["sum_squares"].to(device, torch.float64).clone()


class ReturnNormalizer:
    """Scales rewards by the running standard deviation of the discounted return.

    The mean is not subtracted: that would change which policy is best. The accumulators run on
    from one rollout to the next, one per environment.

    Args:
        num_envs: N.
        gamma: discount per decision step.
        clip: bound on the absolute scaled reward.
        device: where the rewards live.
    """

    def __init__(
        self,
        *,
        num_envs: int,
        gamma: float = 0.99,
        clip: float = 10.0,
        device: torch.device | str | None = None,
    ) -> None:
        self.gamma = gamma
        self.clip = clip
        self.moments = RunningMoments(device=device)
        self.running = torch.zeros(num_envs, dtype=torch.float64, device=device)
        """Discounted return of the current episode of each environment."""

    @torch.no_grad()
    def __call__(self, rewards: Tensor, *, dones: Tensor, valid: Tensor) -> Tensor:
        """Update the statistics with a rollout, then scale its rewards by them.

        Args:
            rewards: ``[T, N]``.
            dones: ``[T, N]`` bool, the episode ended with this step.
            valid: ``[T, N]`` bool; other rows leave the accumulators as they are and return 0.

        Returns:
            ``[T, N]``, dtype of ``rewards``.
        """
        added = torch.where(valid, rewards.double(), 0.0)
        goes_on = (~(dones & valid)).double()
        # state after step t: 0 if done, else r_t + gamma * state; not stepped: as it was
        decay = torch.where(valid, self.gamma * goes_on, 1.0)
        states = forward_scan(added * goes_on, decay, initial=self.running)
        before = torch.cat([self.running[None], states[:-1]])
        self.moments.update(added + self.gamma * before, mask=valid)
        self.running = states[-1].clone()
        scaled = added / (self.moments.var + EPS).sqrt()
        return scaled.clamp(-self.clip, self.clip).to(rewards.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Moments and accumulators."""
        return {"moments": self.moments.state_dict(), "running": self.running.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``.

        Raises:
            ValueError: the stored accumulators are for another number of environments.
        """
        if state["running"].shape != self.running.shape:
            raise ValueError(
                f"stored reward statistics are for {state['running'].numel()} environments, this "
                f"run has {self.running.numel()}: resume with the same number of environments"
            )
        self.moments.load_state_dict(state["moments"])
        self.running = state["running"].to(self.running.device, torch.float64).clone()
