"""Prompts and their answers as one sequence without padding, each prompt once.

    packed = [prompt 1 | ... | prompt P | answer 1 | ... | answer R]         S tokens

Everything that works on single tokens (projections, norms, MLPs) runs on the packed sequence.
Attention alone needs to know what belongs together: prompts attend to themselves, an answer to its
own prompt and to itself. ``Packing.attend`` gathers keys and values of the padded layout from the
packed ones, so that the keys of a prompt are computed once and their gradients from all its answers
add up; on a CPU they are not repeated either (``_AttentionByParts``). ``Decoding.attend`` is its
counterpart for one new token per answer, with kept keys.

Models call ``attend`` in the place of their attention, as the implementation ``ATTENTION``; no
model has a cache or a mask of its own.

Axes: ``P`` prompts, ``L`` tokens of the longest prompt, ``R`` answers, ``U`` tokens of the longest
answer, ``S`` packed tokens, ``h`` heads, ``d`` features of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "embodied_rl_packed"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
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
        answer_index = (self.answer_mask.flatten().cumsum(0) - 1).clamp(min=0)
        self.prompt_index = prompt_index
        self.answer_index = answer_index.view(self.answer_mask.shape) + prompt_mask.sum()
        self._among_prompts: dict[int | None, Tensor] = {}
        self._from_answers: dict[int | None, Tensor] = {}
        self._parts: tuple[_Part, _Part] | None = None

    def pack(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """``[S, ...]`` of ``[P, L, ...]`` and ``[R, U, ...]``."""
        return torch.cat([prompts[self.prompt_mask], answers[self.answer_mask]])

    def among_prompts(self, window: int | None) -> Tensor:
        """Bool ``[P, 1, L, L]``, which tokens of a prompt see which.

        Queries that are padding see something also, lest their softmax be 0 / 0.
        """
        if window not in self._among_prompts:
            real = self.prompt_mask
            place = real.cumsum(1) - 1
            sees = _sees(place, place, window)
            if self.blocks is not None:
                same = self.blocks.unsqueeze(2) == self.blocks.unsqueeze(1)
                sees |= same & (self.blocks >= 0).unsqueeze(1)
            sees = sees & real.unsqueeze(1) | ~real.unsqueeze(2)
            self._among_prompts[window] = sees.unsqueeze(1)
        return self._among_prompts[window]

    def from_answers(self, window: int | None) -> Tensor:
        """Bool ``[R, 1, U, L + U]``, which tokens of its prompt and of itself an answer sees."""
        if window not in self._from_answers:
            real, rows = self.prompt_mask, self.rows
            place = real.cumsum(1) - 1
            units = torch.arange(self.answer_mask.shape[1], device=real.device)
            places = real.sum(1)[rows].unsqueeze(1) + units
            sees = _sees(places, torch.cat([place[rows], places], 1), window)
            key_real = torch.cat([real[rows], self.answer_mask], 1)
            sees = sees & key_real.unsqueeze(1) | ~self.answer_mask.unsqueeze(2)
            self._from_answers[window] = sees.unsqueeze(1)
        return self._from_answers[window]

    def parts(self) -> tuple[_Part, _Part]:
        """What an answer sees: its prompt, and itself up to the present token."""
        if self._parts is None:
            mask, groups = self.answer_mask, Groups(self.rows, len(self.prompt_mask))
            row, unit = mask.nonzero(as_tuple=True)
            slot = groups.slots[row]
            prompts = _Part(
                query_index=self.answer_index[groups.members].flatten(1),
                key_index=self.prompt_index,
                key_mask=self.prompt_mask,
                places=(slot // groups.size, slot % groups.size * mask.shape[1] + unit),
                causal=False,
            )
            own = _Part(
                query_index=self.answer_index,
                key_index=self.answer_index,
                key_mask=mask,
                places=(row, unit),
                causal=True,
            )
            self._parts = prompts, own
        return self._parts

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """See ``Layout``; one row of S tokens."""
        keys, values = _gather(k, self.prompt_index), _gather(v, self.prompt_index)
        if self.keep is not None:
            self.keep[layer] = keys, values
        mask = self.among_prompts(window)
        out = _attention(_gather(q, self.prompt_index), keys, values, mask, scale)
        packed = [out.transpose(1, 2)[self.prompt_mask]]
        if self.answer_mask.numel():
            by_parts = window is None and q.device.type == "cpu"
            attention = self._answers_by_parts if by_parts else self._answers_by_mask
            packed.append(attention(q, k, v, scale, window))
        return torch.cat(packed).unsqueeze(0)

    def _answers_by_parts(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, _: int | None
    ) -> Tensor:
        """``[A, h, d]`` of the tokens of answers, without windows and on a CPU."""
        return _AttentionByParts.apply(q, k, v, self, scale)

    def _answers_by_mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """``[A, h, d]`` of the tokens of answers; a prompt is repeated for each of its answers."""
        index = torch.cat([self.prompt_index[self.rows], self.answer_index], 1)
        q, k, v = _gather(q, self.answer_index), _gather(k, index), _gather(v, index)
        out = _attention(q, k, v, self.from_answers(window), scale)
        return out.transpose(1, 2)[self.answer_mask]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some of the keys of answers, in rows of queries and keys. A tokens are those of all answers.

    Attributes:
        query_index: ``[rows, Q]`` packed token of every query; repeated where rows are filled up.
        key_index: ``[rows, K]`` packed token of every key; repeated where rows are filled up.
        key_mask: ``[rows, K]`` bool, keys that are real.
        places: ``[A]`` row and ``[A]`` query of every token of an answer.
        causal: whether a query sees no later key; those that fill up are then the last ones.
    """

    query_index: Tensor
    key_index: Tensor
    key_mask: Tensor
    places: tuple[Tensor, Tensor]
    causal: bool

    def options(self, q: Tensor, scale: float) -> dict[str, Any]:
        """Keyword arguments of the kernels."""
        bias = None
        if not self.causal and not bool(self.key_mask.all()):
            bias = q.new_zeros(self.key_mask.shape).masked_fill_(~self.key_mask, -torch.inf)
            bias = bias[:, None, None]
        return {"attn_mask": bias, "scale": scale}

    def spread(self, packed: Tensor, *, fill: float = 0.0) -> Tensor:
        """``[rows, h, Q, d]`` of the answers' ``[A, h, d]``."""
        rows = packed.new_full((*self.query_index.shape, *packed.shape[1:]), fill)
        rows[self.places] = packed
        return rows.transpose(1, 2)

    def pack(self, rows: Tensor) -> Tensor:
        """``[A, h, d]`` of ``[rows, h, Q, d]``."""
        return rows.transpose(1, 2)[self.places]


class _AttentionByParts(torch.autograd.Function):
    r"""Attention of answers, to the keys of a prompt from all of them at once.

    With out_i and l_i the output and the log-sum-exp of the scores of attention to part i alone,

        l = \log(e^{l_1} + e^{l_2})        out = \sum_i e^{l_i - l} out_i

    The gradients of one part are those of attention to it alone with (out, l) in the place of
    (out_i, l_i): they are made of p = exp(s - l) and ds = p * (d_out v^T - sum(d_out * out)). Rows
    are laid out again for them, so that only packed tensors are kept.

    The kernels are those that ``scaled_dot_product_attention`` runs on a CPU: it keeps l to itself.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Packing, scale: float) -> Tensor:
        outs, sums = [], []
        for part in layout.parts():
            out, log_sum = _flash(
                _gather(q, part.query_index),
                _gather(k, part.key_index),
                _gather(v, part.key_index),
                0.0,
                part.causal,
                **part.options(q, scale),
            )
            outs.append(part.pack(out))
            sums.append(part.pack(log_sum.unsqueeze(3)))
        log_sum = torch.logaddexp(*sums)
        first, second = (out * (each - log_sum).exp() for out, each in zip(outs, sums, strict=True))
        out = (first + second).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.options = layout, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, log_sum = ctx.saved_tensors
        layout, scale = ctx.options
        by_q, by_k, by_v = torch.zeros_like(out), [], []
        never = torch.finfo(log_sum.dtype).max  # exp(s - never) = 0 for queries that fill rows up
        for part in layout.parts():
            dq, dk, dv = _flash_backward(
                part.spread(gradients[0]),
                _gather(q, part.query_index),
                _gather(k, part.key_index),
                _gather(v, part.key_index),
                part.spread(out),
                part.spread(log_sum, fill=never).squeeze(3),
                0.0,
                part.causal,
                **part.options(q, scale),
            )
            by_q += part.pack(dq)
            by_k.append(dk.transpose(1, 2)[part.key_mask])
            by_v.append(dv.transpose(1, 2)[part.key_mask])
        before = by_q.new_zeros((q.shape[2] - len(by_q), *by_q.shape[1:]))
        packed = (torch.cat(rows) for rows in ([before, by_q], by_k, by_v))
        return *(rows.transpose(0, 1).unsqueeze(0) for rows in packed), None, None


class Decoding:
    """Layout of one new token for each of R answers, behind kept keys and values.

    What is kept of a prompt is kept once, and read once per token for all its answers together. With
    s the scores of both parts and m the largest of them in a row,

        out = sum_i e^{s_i - m} v_i / sum_i e^{s_i - m}

    Each part adds its sums, so that nothing longer than a head passes between the two. Keys are
    kept with their tokens side by side, which makes the scores of a single query twice as fast on a
    CPU. Room for what is kept of answers is made a few tokens at a time: rows that lie far apart in
    memory are read half as fast.

    Args:
        prompts: keys and values that ``Packing`` kept.
        prompt_mask: ``[P, L]`` bool.
        rows: ``[R]`` int64, the prompt of every answer.
        room: number of tokens that will follow.
        step: tokens for which room is made at once.
    """

    def __init__(
        self, prompts: KeysValues, prompt_mask: Tensor, rows: Tensor, *, room: int, step: int = 32
    ) -> None:
        # keys are [rows, heads, features, tokens] here
        self.prompts = {
            layer: (k.transpose(2, 3).contiguous(), v.contiguous())
            for layer, (k, v) in prompts.items()
        }
        self.prompt_mask, self.rows, self.room, self.step = prompt_mask, rows, room, step
        self.groups = Groups(rows, len(prompt_mask))
        self.padded = not bool(prompt_mask.all())
        self.past = 0
        self.kept: KeysValues = {}
        for layer, (_, values) in prompts.items():
            heads, features = values.shape[1], values.shape[3]
            self.kept[layer] = (
                values.new_empty((len(rows), heads, features, 0)),
                values.new_empty((len(rows), heads, 0, features)),
            )
        self._bias: dict[int | None, Tensor] = {}

    def advance(self) -> None:
        """The token that was attended from is now a past one."""
        self.past += 1
        self._bias.clear()

    def select(self, rows: Tensor) -> None:
        """Go on with some of the answers, and with their prompts alone."""
        prompts, self.rows = self.rows[rows].unique(return_inverse=True)
        self.prompts = {layer: (k[prompts], v[prompts]) for layer, (k, v) in self.prompts.items()}
        self.kept = {layer: (k[rows], v[rows]) for layer, (k, v) in self.kept.items()}
        self.prompt_mask = self.prompt_mask[prompts]
        self.groups = Groups(self.rows, len(prompts))

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """See ``Layout``; R rows of one token."""
        (shared_keys, shared_values), (keys, values) = self.prompts[layer], self._keep(layer, k, v)
        together, apart = self.groups.together, self.groups.apart
        # heads that share their keys are the queries of one key: nothing is repeated
        rows, heads, _, features = q.shape
        q = q.view(rows, keys.shape[1], -1, features) * scale
        shared, own = (together(q) @ shared_keys).float(), (q @ keys).float()
        if self.padded or window is not None:
            shared += self._hides(window)
        if window is not None:
            own[..., : max(self.past + 1 - window, 0)] = -torch.inf
        largest = torch.maximum(apart(shared.amax(3, True)), own.amax(3, True))
        shared.sub_(together(largest)).exp_()
        own.sub_(largest).exp_()
        total = apart(shared.sum(3, True)) + own.sum(3, True)
        out = apart(shared.to(v.dtype) @ shared_values) + own.to(v.dtype) @ values
        return (out / total).to(v.dtype).reshape(rows, 1, heads, features)

    def _keep(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of answers up to the present token, which are added."""
        keys, values = self.kept[layer]
        if self.past == values.shape[2]:
            more = min(self.step, self.room - self.past)
            keys, values = self.kept[layer] = _longer(keys, 3, more), _longer(values, 2, more)
        keys[..., self.past], values[:, :, self.past] = k[:, :, 0], v[:, :, 0]
        return keys[..., : self.past + 1], values[:, :, : self.past + 1]

    def _hides(self, window: int | None) -> Tensor:
        """``[P, 1, 1, L]``, -inf for what the next token of answers does not see of its prompt.

        Computed once per token, not once per layer.
        """
        if window not in self._bias:
            sees = self.prompt_mask
            if window is not None:
                place = sees.cumsum(1)
                sees = sees & (place[:, -1:] + self.past + 1 - place < window)
            bias = torch.zeros(sees.shape, device=sees.device).masked_fill_(~sees, -torch.inf)
            self._bias[window] = bias[:, None, None]
        return self._bias[window]


def _longer(kept: Tensor, axis: int, more: int) -> Tensor:
    """``kept`` with place for ``more`` tokens along ``axis``."""
    past = kept.shape[axis]
    longer = kept.new_empty((*kept.shape[:axis], past + more, *kept.shape[axis + 1 :]))
    longer.narrow(axis, 0, past).copy_(kept)
    return longer


class Groups:
    """The answers of every prompt side by side.

    Args:
        rows: ``[R]`` int64, the prompt of every answer.
        count: P.
    """

    def __init__(self, rows: Tensor, count: int) -> None:
        sizes = rows.bincount(minlength=count)
        order = rows.argsort(stable=True)
        numbers = torch.arange(len(rows), device=rows.device)
        self.size = int(sizes.max())  # G, answers of the prompt that has most
        first = sizes.cumsum(0) - sizes
        slots = torch.empty_like(rows)
        slots[order] = rows[order] * self.size + numbers - first[rows[order]]
        members = rows.new_zeros(count * self.size)
        members[slots] = numbers
        self.slots, self.members = slots, members.view(count, self.size)
        # groups of one size in their order, as samplers make them, are found without an index
        self.regular = torch.equal(slots, numbers) and len(rows) == count * self.size

    def together(self, value: Tensor) -> Tensor:
        """``[P, h, G * n, d]`` of ``[R, h, n, d]``; what fills smaller groups up is arbitrary."""
        groups = (
            value.view(*self.members.shape, *value.shape[1:])
            if self.regular
            else value[self.members]
        )
        return groups.transpose(1, 2).flatten(2, 3)

    def apart(self, value: Tensor) -> Tensor:
        """``[R, h, n, d]`` of ``[P, h, G * n, d]``."""
        rows = value.unflatten(2, (self.size, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self.regular else rows[self.slots]


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
