"""The linear recurrence behind every return: x_t = u_t + c_t * x_{t+1}, with x_T = 0.

Computed by recursive doubling (Hillis & Steele 1986): after pass k each row holds the sum over a
window of 2^k steps, so log2(T) tensor operations replace a Python loop over T. Axes: [T, N].
"""

from __future__ import annotations

from torch import Tensor


def reverse_scan(inputs: Tensor, decays: Tensor) -> Tensor:
    """Solve x_t = inputs_t + decays_t * x_{t+1} backwards in time.

    Args:
        inputs: ``[T, ...]`` floating point.
        decays: ``[T, ...]`` same shape; the last row is not used, for nothing follows it.

    Returns:
        ``[T, ...]`` new tensor x.
    """
    assert inputs.shape == decays.shape, (inputs.shape, decays.shape)
    out = inputs.clone()
    steps, window = inputs.shape[0], 1
    while window < steps:
        decays = decays[: steps - window]
        out[:-window].add_(decays * out[window:])
        decays = decays[:-window] * decays[window:]
        window *= 2
    return out


def forward_scan(inputs: Tensor, decays: Tensor, *, initial: Tensor) -> Tensor:
    """Solve x_t = inputs_t + decays_t * x_{t-1} forwards in time, from x_{-1} = ``initial``.

    Args:
        inputs: ``[T, ...]`` floating point.
        decays: ``[T, ...]`` same shape.
        initial: ``[...]``, the state before the first step.

    Returns:
        ``[T, ...]`` new tensor x.
    """
    started = inputs.clone()
    started[0] += decays[0] * initial
    return reverse_scan(started.flip(0), decays.flip(0)).flip(0)
