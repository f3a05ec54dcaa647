"""Low-rank adapters (LoRA, Hu et al. 2021): ``W x + (alpha / r) B A x`` with A, B of rank r.

They are added to the linear layers of the decoder by peft; all other weights are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from embodied_rl.types import LogProbOutput, TensorDict

MARK = "lora_"


def add_lora(model: Any, *, rank: int, alpha: int) -> None:
    """Freeze a model and give its decoder float32 adapters, whose output is 0 at first."""
    from peft import LoraConfig

    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    targets = [
        f"{prefix}.{name}"
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        if MARK in name:
            parameter.data = parameter.data.float()


@contextlib.contextmanager
def disabled(model: Any) -> Iterator[None]:
    """The model without its adapters."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight as the model has them without adapters, these merged in.

    ``W + (alpha / r) B A`` is rounded to the precision of W; one matrix at a time is made.
    """
    for name, value in model.state_dict().items():
        if MARK in name:
            continue
        before, layer, after = name.rpartition(".base_layer.")
        if layer and after == "weight":
            change = model.get_submodule(before).get_delta_weight("default")
            value = (value.float() + change.float()).to(value.dtype)
        yield (f"{before}.{after}" if layer else name), value


def trained_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is trained beside adapters: everything outside the model, i.e. the critic."""
    return {
        name: value
        for name, value in state.items()
        if MARK in name or not name.startswith("model.")
    }


def require_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse a state with other names.

    Raises:
        RuntimeError: as ``nn.Module.load_state_dict``.
    """
    different = sorted(own.keys() ^ given.keys())
    if different:
        raise RuntimeError(
            f"Error(s) in loading adapters:\n\t{len(different)} names differ, e.g. {different[0]}"
        )


class WithoutAdapters:
    """A policy's model before training, seen through the policy itself: nothing is copied.

    Args:
        policy: has ``model`` with adapters, and ``log_prob``.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    @torch.no_grad()
    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """That of the policy with its adapters off."""
        with disabled(self.policy.model):
            return self.policy.log_prob(obs, actions, replay)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the weights are those of the model."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        assert not state
