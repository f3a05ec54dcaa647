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

import itertools
import math
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "embodied_rl_packed"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
LOG2_E = math.log2(math.e)
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

    @cached_property
    def spans(self) -> Spans:
        """What sees what without windows, as runs of packed tokens."""
        lengths = torch.cat([self.prompt_mask.sum(1), self.answer_mask.sum(1)]).tolist()
        ends = list(itertools.accumulate(lengths, initial=0))
        sequences = [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]
        count = len(self.prompt_mask)
        prompts, answers = sequences[:count], sequences[count:]
        if self.blocks is None:
            own = _runs(sequences)
        else:
            sees = (self.among_prompts(None)[n, 0] for n in range(count))
            masks = (each[real][:, real] for each, real in zip(sees, self.prompt_mask, strict=True))
            own = [
                Run(tokens, 1, torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)[None, None])
                for tokens, mask in zip(prompts, masks, strict=True)
            ] + _runs(answers)
        # neighbours that answer one prompt are the queries of its keys together
        rows = self.rows[self.answer_mask.any(1)].tolist()
        shared: list[tuple[slice, slice]] = []
        for row, same in itertools.groupby(zip(rows, answers, strict=True), lambda pair: pair[0]):
            group = [span for _, span in same]
            shared.append((slice(group[0].start, group[-1].stop), prompts[row]))
        return Spans(own, shared)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """See ``Layout``; one row of S tokens."""
        if self.keep is not None:
            self.keep[layer] = _gather(k, self.prompt_index), _gather(v, self.prompt_index)
        if q.device.type == "cpu" and window is None:
            return _AttentionBySpans.apply(q, k, v, self.spans, scale)
        return self.attend_by_mask(q, k, v, scale=scale, window=window)

    def attend_by_mask(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """As ``attend``, with padding; a prompt is repeated for each of its answers."""
        queries, keys, values = (_gather(x, self.prompt_index) for x in (q, k, v))
        out = _attention(queries, keys, values, self.among_prompts(window), scale)
        packed = [out.transpose(1, 2)[self.prompt_mask]]
        if self.answer_mask.numel():
            index = torch.cat([self.prompt_index[self.rows], self.answer_index], 1)
            queries, keys, values = (
                _gather(q, self.answer_index),
                _gather(k, index),
                _gather(v, index),
            )
            out = _attention(queries, keys, values, self.from_answers(window), scale)
            packed.append(out.transpose(1, 2)[self.answer_mask])
        return torch.cat(packed).unsqueeze(0)


class Run(NamedTuple):
    """Neighbouring sequences of one length, each of which sees itself.

    Attributes:
        tokens: packed tokens of all of them.
        rows: number of sequences.
        bias: ``[1, 1, n, n]``, 0 or -inf, or None where no token sees a later one.
    """

    tokens: slice
    rows: int
    bias: Tensor | None = None


class Spans(NamedTuple):
    """Attention of packed tokens as attention of runs of them.

    Attributes:
        own: prompts and answers, which see themselves.
        shared: (tokens of answers, tokens of the prompt that they see as well).
    """

    own: list[Run]
    shared: list[tuple[slice, slice]]


def _runs(sequences: list[slice]) -> list[Run]:
    """Neighbours of one length together."""
    runs = []
    for _, same in itertools.groupby(sequences, lambda span: span.stop - span.start):
        group = list(same)
        runs.append(Run(slice(group[0].start, group[-1].stop), len(group)))
    return runs


class _AttentionBySpans(torch.autograd.Function):
    r"""Attention of packed tokens to what they see of themselves, then of answers to their prompt.

    With out_i and l_i the output and the log-sum-exp of the scores of attention to part i alone,

        l = \log(e^{l_1} + e^{l_2})        out = \sum_i e^{l_i - l} out_i

    The gradients of one part are those of attention to it alone with (out, l) in the place of
    (out_i, l_i): they are made of p = exp(s - l) and ds = p * (d_out v^T - sum(d_out * out)).
    Runs of packed tokens are views: nothing is gathered or filled up, and keys of a prompt meet the
    queries of all its answers at once.

    The kernels are those that ``scaled_dot_product_attention`` runs on a CPU: it keeps l to itself.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [S, h, d]
        out = q.new_empty((*q.shape[:2], v.shape[2]))
        log_sum = out.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
        for tokens, count, bias in spans.own:
            part = (_heads(x[tokens], count) for x in (q, k, v))
            own, log_own = _flash(*part, 0.0, bias is None, attn_mask=bias, scale=scale)
            _heads(out[tokens], count).copy_(own)
            _heads(log_sum[tokens], count).copy_(log_own)
        for tokens, keys in spans.shared:
            part = (_heads(q[tokens]), _heads(k[keys]), _heads(v[keys]))
            shared, log_shared = _flash(*part, 0.0, False, scale=scale)
            own, log_own = _heads(out[tokens]), _heads(log_sum[tokens])
            own.lerp_(shared, (log_shared - log_own).sigmoid_().unsqueeze(3).to(own.dtype))
            log_own.copy_(torch.logaddexp(log_own, log_shared))
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.options = spans, scale
        return out.unsqueeze(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, out, log_sum = ctx.saved_tensors
        spans, scale = ctx.options
        by_out = gradients[0][0]
        by_inputs = [torch.empty_like(x) for x in inputs]
        for tokens, count, bias in spans.own:
            given = [_heads(x[tokens], count) for x in (by_out, *inputs, out, log_sum)]
            parts = _flash_backward(*given, 0.0, bias is None, attn_mask=bias, scale=scale)
            for by_input, part in zip(by_inputs, parts, strict=True):
                _heads(by_input[tokens], count).copy_(part)
        for tokens, keys in spans.shared:
            places = tokens, keys, keys
            seen = [_heads(x[place]) for x, place in zip(inputs, places, strict=True)]
            rest = [_heads(x[tokens]) for x in (by_out, out, log_sum)]
            parts = _flash_backward(rest[0], *seen, *rest[1:], 0.0, False, scale=scale)
            for by_input, place, part in zip(by_inputs, places, parts, strict=True):
                _heads(by_input[place]).add_(part)
        return *(x.transpose(0, 1).unsqueeze(0) for x in by_inputs), None, None


def _heads(packed: Tensor, count: int = 1) -> Tensor:
    """``[count, h, n, ...]``, a view of packed ``[count * n, h, ...]``."""
    return packed.unflatten(0, (count, -1)).transpose(1, 2)


class Decoding:
    """Layout of one new token for each of R answers, behind kept keys and values.

    What is kept of a prompt is kept once, and read once per token for all its answers together.
    With s the scores of both parts in powers of 2, and m the largest of them in a row,

        out = sum_i 2^{s_i - m} v_i / sum_i 2^{s_i - m}

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
        q = q.view(rows, keys.shape[1], -1, features) * (scale * LOG2_E)
        shared, own = (together(q) @ shared_keys).float(), (q @ keys).float()
        if self.padded or window is not None:
            shared += self._hides(window)
        if window is not None:
            own[..., : max(self.past + 1 - window, 0)] = -torch.inf
        largest = torch.maximum(apart(shared.amax(3, True)), own.amax(3, True))
        shared.sub_(together(largest)).exp2_()
        own.sub_(largest).exp2_()
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
    tokens = packed.squeeze(0).transpose(0, 1)  # [S, h, d]
    rows = tokens.index_select(0, index.flatten())
    return rows.view(*index.shape, *tokens.shape[1:]).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``[rows, h, Q, d]``; keys and values may have fewer heads."""
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return scaled_dot_product_attention(q, k, v, mask, scale=scale)
