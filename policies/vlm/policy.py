"""A vision-language model as a policy: observations are conversations, actions are texts.

One decision is one answer of L tokens a_1 ... a_L, the last of which ends it:

    log pi(answer | o) = sum_u log softmax(z_u / temperature)[a_u]

over the whole vocabulary; top-k, top-p and stop strings narrow what is sampled and not what is
scored. The ratio units are the tokens, the real ones are in ``PolicyOutput.unit_mask``. A value is
a linear function of the hidden state at the last token of the prompt.

Axes: ``B`` rows, ``U`` tokens of the longest answer, ``A`` bytes of an action, ``P`` prompts.
"""

from __future__ import annotations

import copy
import dataclasses
import string
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embodied_rl.losses.reduce import masked_mean
from embodied_rl.policies.nn import draw_uniform, orthogonal_, require_choice
from embodied_rl.policies.vlm import adapters, backends, text
from embodied_rl.policies.vlm import model as models
from embodied_rl.policies.vlm.generation import Answers, generate
from embodied_rl.policies.vlm.packing import Decoding, KeysValues, Packing
from embodied_rl.policies.vlm.prompts import PromptReader, Prompts
from embodied_rl.policies.vlm.scoring import Head, token_log_probs
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS_AT_ONCE = 256
"""Prompts of a forward pass without answers, to bound memory."""
TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**17}
"""Tokens of a packed pass by kind of device.

Few enough for the caches of a CPU, which is then not busy with memory; many enough that adding up
the gradients of the weights once per pass costs nothing.
"""


class VLM(nn.Module):
    """See the module.

    Args:
        spec: environment description; observations ``chat``, ``images`` and ``image_sizes``.
        model: folder of a model in the layout of the hub, hub name, or ``tiny/<model type>``.
        dtype: of the weights; log-probabilities are float32. With ``bfloat16`` sampled and
            re-scored log-probabilities agree within its rounding, and full training loses small
            steps: use it with ``lora_rank``, whose weights stay float32.
        max_new_tokens: longest answer.
        temperature: divides the logits, in sampling and in scoring.
        top_k, top_p: words that sampling is narrowed to; 0 and 1 keep all.
        stop: strings that end an answer, of which they stay a part.
        lora_rank: train low-rank adapters of the decoder's linear layers and nothing else, 0: train
            everything. Checkpoints then hold adapters and critic; the model is read again from
            ``model``, and is the reference of a KL penalty.
        lora_alpha: the output of the adapters is scaled by ``lora_alpha / lora_rank``.
        gradient_checkpointing: keep one activation per layer and compute the others again.
        critic: ``trunk``, a linear value head, or ``none``.
        generation: who generates answers, see ``backends``. The state of a policy is the same with
            every backend.

    Raises:
        ValueError: another action space, an unreadable model, unknown option value.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        model: str,
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: tuple[str, ...] = (),
        lora_rank: int = 0,
        lora_alpha: int = 16,
        gradient_checkpointing: bool = False,
        critic: Literal["trunk", "none"] = "none",
        generation: backends.Generation = backends.Generation(),
    ) -> None:
        super().__init__()
        require_choice("policy.dtype", dtype, tuple(DTYPES))
        require_choice("policy.critic", critic, ("trunk", "none"))
        _require(spec, temperature=temperature, max_new_tokens=max_new_tokens)
        self.spec, self.stop = spec, tuple(stop)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.top_k, self.top_p = top_k, top_p
        self.model, processor = models.load(model, dtype=DTYPES[dtype])
        self.reader = PromptReader(processor)
        self.lora = lora_rank > 0
        if self.lora:
            adapters.add_lora(self.model, rank=lora_rank, alpha=lora_alpha)
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self.train()
        self.critic: nn.Module | None = None
        if critic == "trunk":
            width = self.model.config.get_text_config().hidden_size
            self.critic = orthogonal_(nn.Linear(width, 1), 1.0)
        self.engine: backends.FollowingEngine | None = None
        if generation.backend == "vllm":
            from embodied_rl.policies.vlm.vllm_backend import following_vllm

            self.engine = following_vllm(self, dtype=dtype, generation=generation)

    @property
    def head(self) -> Head:
        """The output layer."""
        return models.output_head(self.model, temperature=self.temperature)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.reader.processor.tokenizer

    @torch.no_grad()
    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Answer B conversations; a deterministic answer is greedy and has no likelihood.

        ``actions`` are uint8 [B, A]; ``replay`` holds ``tokens`` int64 [B, U], ``num_tokens``
        int64 [B] and, for algorithms, ``unfinished`` [B] and ``numeric`` [B, U] (see
        ``PolicyOutput``). Prompts that are equal are computed once.
        """
        if self.engine is not None:
            return self._sample_from(self.engine, obs, greedy=deterministic, generator=generator)
        prompts = self.reader(obs)
        keep: KeysValues = {}
        layout, hidden, inputs = self._prompts(prompts, keep=keep)
        last = hidden[layout.prompt_index[:, -1]]
        order = prompts.rows.argsort(stable=True)  # answers to one prompt are neighbours
        rows = prompts.rows[order]
        decoding = Decoding(keep, prompts.mask, rows, room=self.max_new_tokens)
        positions = models.next_positions(inputs, prompts.mask)[rows].unsqueeze(1)
        positions = positions.expand(-1, inputs.positions.shape[2])
        head = self.head

        def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
            nonlocal positions
            if rows is not None:
                decoding.select(rows)
                positions = positions[rows]
            states = models.run_step(self.model, decoding, tokens=tokens, positions=positions)
            positions = positions + 1
            return head.logits(states)

        logits = head.logits(last)[rows]
        uniform = logits.new_zeros((len(rows), self.max_new_tokens))
        if not deterministic:
            uniform = draw_uniform(uniform.shape, like=logits, generator=generator)[order]
        with torch.inference_mode():  # a step is hundreds of small operations
            answers = generate(
                logits,
                step,
                uniform,
                end_tokens=models.end_tokens(self.model, self.tokenizer),
                top_k=self.top_k,
                top_p=self.top_p,
                stopped=self._stopped if self.stop else None,
                greedy=deterministic,
            )
        answers = answers.select(order.argsort())
        return self._output(answers, self._values(last, prompts.rows), likelihood=not deterministic)

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Score the tokens in ``replay``; ``actions`` are their text and are not used again."""
        return self._score(self.reader(obs), replay["tokens"], replay["num_tokens"])

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values; zeros without a critic."""
        if self.critic is None:
            return torch.zeros(len(obs["chat"]), device=obs["chat"].device)
        values = []
        for i in range(0, len(obs["chat"]), ROWS_AT_ONCE):
            prompts = self.reader({name: v[i : i + ROWS_AT_ONCE] for name, v in obs.items()})
            layout, hidden, _ = self._prompts(prompts)
            part = self._values(hidden[layout.prompt_index[:, -1]], prompts.rows)
            assert part is not None
            values.append(part)
        return torch.cat(values)

    def imitation_loss(
        self, obs: TensorDict, actions: Tensor, mask: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Cross entropy of answers in nats per token; the tokens of prompts are not learned.

        Args:
            obs: [B, ...] observations.
            actions: uint8 [B, A] answers.
            mask: [B] or [B, 1] bool, rows that count.
            generator: unused, likelihoods need no noise.
        """
        tokens, lengths = self.encode(text.from_bytes(actions))
        tokens, lengths = tokens.to(actions.device), lengths.to(actions.device)
        scored = self._score(self.reader(obs), tokens, lengths)
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        return masked_mean(-scored.log_probs, real & mask.view(-1, 1))

    def encode(self, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(tokens int64 [B, U], their number int64 [B]) of answers, each with its end token."""
        rows = [
            [*self.tokenizer.encode(answer, add_special_tokens=False), self.tokenizer.eos_token_id]
            for answer in answers
        ]
        padded = nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=0
        )
        return padded, torch.tensor([len(row) for row in rows])

    def reference(self) -> Any:
        """The policy to be anchored to: without adapters, or else a copy of the present weights."""
        if self.lora:
            return adapters.WithoutAdapters(self)
        return copy.deepcopy(self).requires_grad_(False)

    def set_progress(self, progress: float) -> None:
        """Nothing is annealed."""

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, 1]`` from executed answers [B, 1]; tokens are masked by ``PolicyOutput``."""
        return executed

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Everything, or adapters and critic alone where only these are trained."""
        state = super().state_dict(*args, **kwargs)
        return adapters.trained_part(state) if self.lora else state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Restore ``state_dict``."""
        if not self.lora:
            return super().load_state_dict(state_dict, strict, assign)
        if strict:
            adapters.require_same(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def _prompts(
        self, prompts: Prompts, *, keep: KeysValues | None = None
    ) -> tuple[Packing, Tensor, models.DecoderInputs]:
        """Layout, hidden states [S, E] and inputs of prompts without answers."""
        none = prompts.rows[:0]
        inputs = models.decoder_inputs(self.model, prompts)
        blocks = models.blocks(self.model, prompts)
        layout = Packing(prompts.mask, none, none, blocks=blocks, keep=keep)
        hidden = models.run_packed(
            self.model, inputs, layout, tokens=none.view(0, 0), mask=prompts.mask
        )
        return layout, hidden, inputs

    def _score(self, prompts: Prompts, tokens: Tensor, lengths: Tensor) -> LogProbOutput:
        """Portion by portion, so that the backward pass goes through the caches as well."""
        at_once = TOKENS_AT_ONCE["cpu" if tokens.device.type == "cpu" else "cuda"]
        portions = prompts.portions(lengths, at_once=at_once)
        parts = [
            self._score_portion(prompts.select(rows), tokens[rows], lengths[rows])
            for rows in portions
        ]
        order = torch.cat(portions).argsort()
        values = [part.values for part in parts if part.values is not None]
        return LogProbOutput(
            log_probs=torch.cat([part.log_probs for part in parts])[order],
            entropy=torch.cat([part.entropy for part in parts])[order],
            values=torch.cat(values)[order] if values else None,
        )

    def _score_portion(self, prompts: Prompts, tokens: Tensor, lengths: Tensor) -> LogProbOutput:
        """Prompts and answers in one packed pass; the last token of an answer is only predicted."""
        mask, read = prompts.mask, (lengths - 1).clamp(min=0)
        layout = Packing(mask, prompts.rows, read, blocks=models.blocks(self.model, prompts))
        hidden = models.run_packed(
            self.model,
            models.decoder_inputs(self.model, prompts),
            layout,
            tokens=tokens[:, : layout.answer_mask.shape[1]],
            mask=mask,
        )
        ends = layout.prompt_index[:, -1]
        # a token follows from the state of the one before; the first from the end of the prompt
        before = torch.cat([ends[prompts.rows].unsqueeze(1), layout.answer_index], 1)
        real = torch.arange(before.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        scores = token_log_probs(hidden[before[real]], tokens[:, : real.shape[1]][real], self.head)
        where = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        zeros = torch.zeros(tokens.shape, device=tokens.device)
        log_probs, entropy = (zeros.masked_scatter(where, score) for score in scores)
        return LogProbOutput(
            log_probs=log_probs, entropy=entropy, values=self._values(hidden[ends], prompts.rows)
        )

    def _values(self, last: Tensor, rows: Tensor) -> Tensor | None:
        """``[B]`` from the states [P, E] at the ends of prompts."""
        return None if self.critic is None else self.critic(last.float()).squeeze(-1)[rows]

    def _sample_from(
        self,
        engine: backends.FollowingEngine,
        obs: TensorDict,
        *,
        greedy: bool,
        generator: torch.Generator | None,
    ) -> PolicyOutput:
        """As ``sample``; ``replay`` also holds ``backend_log_probs`` [B, U], of the engine."""
        sampling = backends.Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=self.stop,
            end_tokens=tuple(models.end_tokens(self.model, self.tokenizer)),
            greedy=greedy,
        )
        seeds = torch.zeros(len(obs["chat"]), dtype=torch.int64)
        if not greedy:
            noise = draw_uniform(seeds.shape, like=seeds, generator=generator)
            seeds = (noise.double() * 2**31).long()
        answers = engine.generate(self, obs, sampling, seeds=seeds)
        if greedy:
            return self._output(answers, None, likelihood=False)
        scored = backends.score(self, obs, answers)
        output = self._output(
            dataclasses.replace(answers, log_probs=scored.log_probs), scored.values, likelihood=True
        )
        more = {"backend_log_probs": answers.log_probs}
        return dataclasses.replace(output, replay=output.replay | more)

    def _stopped(self, tokens: list[int]) -> bool:
        """Whether the last tokens hold a stop string; a token is at least one byte."""
        tail = max(len(stop.encode()) for stop in self.stop)
        ending = self.tokenizer.decode(tokens[-tail:], skip_special_tokens=True)
        return any(stop in ending for stop in self.stop)

    @cached_property
    def _numeric_words(self) -> Tensor:
        """``[V]`` bool on the CPU, words with a digit."""
        numeric = torch.zeros(len(self.head.weight), dtype=torch.bool)  # some words have no token
        for word, number in self.tokenizer.get_vocab().items():
            numeric[number] = any(digit in word for digit in string.digits)
        return numeric

    def _unfinished(self, answers: Answers) -> Tensor:
        """``[B]`` bool, answers that neither an end token nor a stop string ended."""
        limit = answers.lengths == self.max_new_tokens
        last = answers.tokens.gather(1, answers.lengths.unsqueeze(1) - 1).squeeze(1)
        ends = torch.tensor(models.end_tokens(self.model, self.tokenizer), device=last.device)
        cut = limit & ~torch.isin(last, ends)
        if self.stop:
            for row in cut.nonzero().squeeze(1).tolist():
                cut[row] = not self._stopped(answers.tokens[row].tolist())
        return cut

    def _output(self, answers: Answers, values: Tensor | None, *, likelihood: bool) -> PolicyOutput:
        lengths = answers.lengths.tolist()
        rows = [row[:n] for row, n in zip(answers.tokens.tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        actions = text.to_bytes(texts, width=self.spec.text_bytes).to(answers.tokens.device)
        if values is None:
            values = torch.zeros(len(rows), device=actions.device)
        if not likelihood:
            return PolicyOutput(actions=actions, values=values)
        return PolicyOutput(
            actions=actions,
            log_probs=answers.log_probs,
            values=values,
            unit_mask=answers.mask,
            replay={
                "tokens": answers.tokens,
                "num_tokens": answers.lengths,
                "unfinished": self._unfinished(answers),
                "numeric": self._numeric_words.to(actions.device)[answers.tokens] & answers.mask,
            },
        )


def _require(spec: PolicySpec, *, temperature: float, max_new_tokens: int) -> None:
    if not spec.text_bytes or "chat" not in spec.obs_shapes:
        raise ValueError(
            "policy vlm answers conversations: it needs an environment whose actions are texts and "
            f"whose observations hold 'chat', this one has {', '.join(spec.obs_shapes)}"
        )
    if temperature <= 0:
        raise ValueError(
            f"policy.temperature is {temperature}: use a number above 0; greedy answers are those "
            "of evaluation in mode greedy"
        )
    if max_new_tokens < 1:
        raise ValueError(f"policy.max_new_tokens is {max_new_tokens}: use at least 1")
