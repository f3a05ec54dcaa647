"""Prompts and their answers as one sequence without padding, each prompt once.

    packed = [prompt 1 | ... | prompt P | answer 1 | ... | answer R]         S tokens

Everything that works on single tokens (projections, norms, MLPs) runs on the packed sequence.
Attention alone needs to know what belongs together: prompts attend to themselves, an answer to its
own prompt and to itself. ``Packing.attend`` gathers keys and values of the padded layout from the
packed ones, so that the keys of a prompt are computed once and their gradients from all its answers
add up. ``Decoding.attend`` is its counterpart for one new token per answer, with kept keys.

Models call ``attend`` in the place of their attention, as the implementation ``ATTENTION``; no
model has a cache or a mask of its own.

Axes: ``P`` prompts, ``L`` tokens of the longest prompt, ``R`` answers, ``U`` tokens of the longest
answer, ``S`` packed tokens, ``h`` heads, ``d`` features of a head.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "embodied_rl_packed"
KeysValues = dict[int, tuple[Tensor, Tensor]]
"""Keys and values ``[rows, heads, tokens, features]`` of every layer."""


class Layout(Protocol):
    """What stands in for the attention of a model."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """``[rows, tokens, h, d]`` from ``[rows, h, tokens, d]``."""
        ...


class Packing:
    """Layout of prompts and answers in one row.

    Args:
        prompt_mask: ``[P, L]`` bool, the tokens that are real; a prompt has at least one.
        rows: ``[R]`` int64, the prompt of every answer; R may be 0.
        lengths: ``[R]`` int64, tokens of every answer.
        blocks: ``[P, L]`` int64: prompt tokens of the same block, numbered from 0, see each other
            in both directions; -1 for tokens that only see what came before.
        keep: keys and values of the prompts are put here.
    """

    def __init__(
        self,
        prompt_mask: Tensor,
        rows: Tensor,
        lengths: Tensor,
        *,
        blocks: Tensor | None = None,
        keep: KeysValues | None = None,
    ) -> None:
        device = prompt_mask.device
        longest = int(lengths.max()) if len(lengths) else 0
        self.prompt_mask, self.rows, self.blocks, self.keep = prompt_mask, rows, blocks, keep
        self.answer_mask = torch.arange(longest, device=device) < lengths.unsqueeze(1)
        prompt_index = (prompt_mask.flatten().cumsum(0) - 1).clamp(min=0).view(prompt_mask.shape)
        answer_index = self.answer_mask.flatten().cumsum(0) - 1 + prompt_mask.sum()
        self.prompt_index = prompt_index
        self.answer_index = answer_index.view(self.answer_mask.shape)
        self.key_index = torch.cat([prompt_index[rows], self.answer_index], 1)
        self._masks: dict[int | None, tuple[Tensor, Tensor]] = {}

    def pack(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """``[S, ...]`` of ``[P, L, ...]`` and ``[R, U, ...]``."""
        return torch.cat([prompts[self.prompt_mask], answers[self.answer_mask]])

    def masks(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Who sees whom: bool ``[P, 1, L, L]`` among prompts, ``[R, 1, U, L + U]`` for answers.

        Queries that are padding see something also, lest their softmax be 0 / 0.
        """
        if window not in self._masks:
            real, rows = self.prompt_mask, self.rows
            place = real.cumsum(1) - 1
            units = torch.arange(self.answer_mask.shape[1], device=real.device)
            places = real.sum(1)[rows].unsqueeze(1) + units
            among = _sees(place, place, window)
            if self.blocks is not None:
                same = self.blocks.unsqueeze(2) == self.blocks.unsqueeze(1)
                among |= same & (self.blocks >= 0).unsqueeze(1)
            among = among & real.unsqueeze(1) | ~real.unsqueeze(2)
            answers = _sees(places, torch.cat([place[rows], places], 1), window)
            key_real = torch.cat([real[rows], self.answer_mask], 1)
            answers = answers & key_real.unsqueeze(1) | ~self.answer_mask.unsqueeze(2)
            self._masks[window] = among.unsqueeze(1), answers.unsqueeze(1)
        return self._masks[window]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """See ``Layout``; one row of S tokens."""
        among, answers = self.masks(window)
        keys, values = _gather(k, self.prompt_index), _gather(v, self.prompt_index)
        if self.keep is not None:
            self.keep[layer] = keys, values
        out = _attention(_gather(q, self.prompt_index), keys, values, among, scale)
        packed = [out.transpose(1, 2)[self.prompt_mask]]
        if len(self.rows):
            out = _attention(
                _gather(q, self.answer_index),
                _gather(k, self.key_index),
                _gather(v, self.key_index),
                answers,
                scale,
            )
            packed.append(out.transpose(1, 2)[self.answer_mask])
        return torch.cat(packed).unsqueeze(0)


class Decoding:
    """Layout of one new token for each of R answers, behind kept keys and values.

    Args:
        prompts: keys and values that ``Packing`` kept.
        prompt_mask: ``[P, L]`` bool.
        rows: ``[R]`` int64, the prompt of every answer.
        room: number of tokens that will follow.
    """

    def __init__(
        self, prompts: KeysValues, prompt_mask: Tensor, rows: Tensor, *, room: int
    ) -> None:
        self.kept = {
            layer: (_with_room(keys[rows], room), _with_room(values[rows], room))
            for layer, (keys, values) in prompts.items()
        }
        more = torch.ones((len(rows), room), dtype=torch.bool, device=rows.device)
        self.mask = torch.cat([prompt_mask[rows], more], 1)
        self.place = self.mask.cumsum(1) - 1
        self.length = prompt_mask.shape[1]

    def advance(self) -> None:
        """The token that was attended from is now a past one."""
        self.length += 1

    def select(self, rows: Tensor) -> None:
        """Go on with some of the answers."""
        self.kept = {layer: (k[rows], v[rows]) for layer, (k, v) in self.kept.items()}
        self.mask, self.place = self.mask[rows], self.place[rows]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """See ``Layout``; R rows of one token."""
        keys, values = self.kept[layer]
        end = self.length + 1
        keys[:, :, self.length], values[:, :, self.length] = k[:, :, 0], v[:, :, 0]
        mask = self.mask[:, :end]
        if window is not None:
            mask = mask & (self.place[:, end - 1 : end] - self.place[:, :end] < window)
        # heads that share their keys are the queries of one key: nothing is repeated
        rows, heads, _, features = q.shape
        grouped = q.view(rows, keys.shape[1], -1, features)
        out = scaled_dot_product_attention(
            grouped, keys[:, :, :end], values[:, :, :end], mask[:, None, None], scale=scale
        )
        return out.reshape(rows, 1, heads, features)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The implementation that transformers calls; ``layout`` is passed through the decoder."""
    window = None if sliding_window is None else int(sliding_window)
    out = layout.attend(module.layer_idx, query, key, value, scale=scaling, window=window)
    return out, None


AttentionInterface.register(ATTENTION, packed_attention)


def _sees(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Bool ``[rows, Q, K]``: key not after the query, and fewer than ``window`` places before."""
    distance = query.unsqueeze(2) - key.unsqueeze(1)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _gather(packed: Tensor, index: Tensor) -> Tensor:
    """``[rows, h, tokens, d]`` of packed ``[1, h, S, d]``."""
    tokens = packed[0].transpose(0, 1)  # [S, h, d]
    rows = tokens.index_select(0, index.flatten())
    return rows.view(*index.shape, *tokens.shape[1:]).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``[rows, h, Q, d]``; keys and values may have fewer heads."""
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _with_room(value: Tensor, room: int) -> Tensor:
    rows, heads, _, features = value.shape
    return torch.cat([value, value.new_empty((rows, heads, room, features))], 2)
