r"""Layers of transformers with the same weights and results that take less processor time.

RMS norm of rows x with E features, weight w and gradient g of its output:

    r = (mean(x^2) + eps)^{-1/2}        y = w x r        dx = r (w g - x r mean(w g x r))

Autograd keeps ``x r`` and takes ten passes over the features for the gradient; here x alone is kept
and half of the passes are in place. Sums are float32 whatever the precision of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

RMS_NORMS = (
    "InternVLVisionRMSNorm",
    "LlamaRMSNorm",
    "Qwen2RMSNorm",
    "Qwen2_5_VLRMSNorm",
    "Qwen3VLTextRMSNorm",
)
"""Classes of transformers that compute y; others add 1 to w or round elsewhere."""


def replace_layers(model: nn.Module) -> None:
    """Give those layers of a model that are known their ``forward`` from here."""
    for module in model.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = PatchEmbedding
        elif type(module).__name__ in RMS_NORMS:
            module.__class__ = RMSNorm


class PatchEmbedding(nn.Conv3d):
    """A convolution that takes a patch of its own size for a row of a matrix.

    Qwen's vision towers cut pictures into patches before they convolve them. As a matrix product
    that takes a sixth of the processor time of oneDNN's convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[N, E, ...]`` of ``[N, C, T, H, W]``."""
        if input.shape[2:] != self.kernel_size or self.groups > 1 or any(self.padding):
            return super().forward(input)
        rows = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return rows.view(*rows.shape, 1, 1, 1)


class RMSNorm(nn.Module):
    """See the module; made by ``replace_layers`` alone."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., E]`` of the same shape."""
        given = hidden_states, self.weight, self.variance_epsilon
        return _RMSNorm.apply(*given) if torch.is_grad_enabled() else _rms_norm(*given)[0]


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(y ``[..., E]``, r ``[..., 1]``)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    r = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return weight * (x * r).to(x.dtype), r


class _RMSNorm(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        y, r = _rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, r = ctx.saved_tensors
        by_y, normed = gradients[0].float(), x * r
        slope = by_y * normed
        by_weight = slope.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        by_x = by_y * weight
        by_x.addcmul_(normed, slope.mul_(weight).mean(-1, keepdim=True), value=-1).mul_(r)
        return by_x.to(x.dtype), None if by_weight is None else by_weight.to(weight.dtype), None
