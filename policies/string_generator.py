"""A small conditional generator of strings: prompt bytes to characters, one after the other.

A recurrent network (GRU, Cho et al. 2014) reads the prompt; from its state another one writes

    log pi(answer | o) = sum_u log softmax(z_u / temperature)[a_u]

where the last token is the end, unless the answer was cut at its limit. The ratio units are the
tokens, as in a vision-language model. The value is a linear function of the state after the prompt.

Axes: ``B`` rows, ``U`` tokens, ``V`` tokens of the alphabet, ``E`` features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from embodied_rl.losses.reduce import masked_mean
from embodied_rl.policies.characters import END, Alphabet, draw_tokens, read_prompts, require_text
from embodied_rl.policies.nn import draw_uniform, orthogonal_, require_choice
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict


class StringGenerator(nn.Module):
    """See the module.

    Args:
        spec: environment description; observation ``chat``, actions are texts.
        alphabet: characters that an answer may hold.
        max_new_tokens: longest answer, its end included.
        prompt_length: bytes of the prompt that are read, the last ones.
        dim: E.
        temperature: divides the logits, in sampling and in scoring.
        critic: ``trunk``, a linear value head, or ``none``.

    Raises:
        ValueError: another action space, unknown option value.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        alphabet: str = "0123456789",
        max_new_tokens: int = 8,
        prompt_length: int = 32,
        dim: int = 64,
        temperature: float = 1.0,
        critic: Literal["trunk", "none"] = "none",
    ) -> None:
        super().__init__()
        require_choice("policy.critic", critic, ("trunk", "none"))
        require_text(spec, name="string_generator", answer_length=max_new_tokens)
        self.spec, self.alphabet = spec, Alphabet(alphabet)
        self.max_new_tokens, self.prompt_length = max_new_tokens, prompt_length
        self.temperature = temperature
        self.byte_embedding = nn.Embedding(256, dim)
        self.reader = nn.GRU(dim, dim, batch_first=True)
        self.start = self.alphabet.size  # what comes before the first token
        self.token_embedding = nn.Embedding(self.alphabet.size + 1, dim)
        self.writer = nn.GRU(dim, dim, batch_first=True)
        self.head = nn.Linear(dim, self.alphabet.size)
        self.critic = orthogonal_(nn.Linear(dim, 1), 1.0) if critic == "trunk" else None

    @torch.no_grad()
    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Answer B prompts; a deterministic answer is greedy and has no likelihood.

        ``replay`` holds ``tokens`` int64 [B, U], ``num_tokens`` int64 [B], ``unfinished`` [B] and
        ``numeric`` [B, U] bool.
        """
        prompt, memory = self._read(obs)
        count, limit = prompt.shape[1], self.max_new_tokens
        uniform = draw_uniform((count, limit), like=prompt, generator=generator)
        tokens = torch.zeros((count, limit), dtype=torch.int64, device=prompt.device)
        running = torch.ones(count, dtype=torch.bool, device=prompt.device)
        last, state = torch.full_like(tokens[:, :1], self.start), prompt
        for place in range(limit):
            hidden, state = self.writer(self.token_embedding(last), state)
            logits = self.head(self._look(hidden, memory)[:, 0]) / self.temperature
            drawn = logits.argmax(1) if deterministic else draw_tokens(logits, uniform[:, place])
            tokens[:, place] = torch.where(running, drawn, END)
            running &= drawn != END
            if not running.any():
                break
            last = tokens[:, place : place + 1]
        actions = self.alphabet.to_bytes(tokens, width=self.spec.text_bytes)
        values = self._value(prompt, memory)
        if deterministic:
            return PolicyOutput(actions=actions, values=values)
        lengths = ((tokens != END).sum(1) + 1).clamp(max=limit)
        real = self._real(tokens, lengths)
        return PolicyOutput(
            actions=actions,
            log_probs=self._score(prompt, memory, tokens, lengths)[0],
            values=values,
            unit_mask=real,
            replay={
                "tokens": tokens,
                "num_tokens": lengths,
                "unfinished": running,
                "numeric": self.alphabet.numeric.to(tokens.device)[tokens] & real,
            },
        )

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Score the tokens in ``replay`` in one pass."""
        prompt, memory = self._read(obs)
        log_probs, entropy = self._score(prompt, memory, replay["tokens"], replay["num_tokens"])
        return LogProbOutput(
            log_probs=log_probs, entropy=entropy, values=self._value(prompt, memory)
        )

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values; zeros without a critic."""
        return self._value(*self._read(obs))

    def imitation_loss(
        self, obs: TensorDict, actions: Tensor, mask: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Cross entropy of answers uint8 [B, A] in nats per token; ``mask`` [B] or [B, 1] rows."""
        tokens = self.alphabet.to_tokens(actions, length=self.max_new_tokens)
        lengths = ((tokens != END).sum(1) + 1).clamp(max=self.max_new_tokens)
        log_probs, _ = self._score(*self._read(obs), tokens, lengths)
        return masked_mean(-log_probs, self._real(tokens, lengths) & mask.view(-1, 1))

    def set_progress(self, progress: float) -> None:
        """Nothing is annealed."""

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, 1]`` from executed answers [B, 1]; tokens are masked by ``PolicyOutput``."""
        return executed

    def _read(self, obs: TensorDict) -> tuple[Tensor, Any]:
        """State ``[1, B, E]`` after the prompts, and what ``_look`` looks at."""
        prompts = read_prompts(obs["chat"], length=self.prompt_length)
        return self.reader(self.byte_embedding(prompts))[1], None

    def _score(
        self, prompt: Tensor, memory: Any, tokens: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies) ``[B, U]``, 0 after the end.

        Nothing is computed after the end of the longest answer, unless a compiled program asks,
        whose shapes may not depend on data.
        """
        padded = tokens.shape[1]
        if not torch.compiler.is_compiling():
            tokens = tokens[:, : max(int(lengths.max()), 1)]
        before = torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], 1)
        hidden, _ = self.writer(self.token_embedding(before), prompt)
        log_p = torch.log_softmax(self.head(self._look(hidden, memory)) / self.temperature, -1)
        chosen = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        real = self._real(tokens, lengths)
        rest = (0, padded - tokens.shape[1])
        return (
            nn.functional.pad(chosen.masked_fill(~real, 0.0), rest),
            nn.functional.pad(entropy.masked_fill(~real, 0.0), rest),
        )

    def _look(self, hidden: Tensor, memory: Any) -> Tensor:
        """``[B, U, E]`` for the head, from the writer's states."""
        return hidden

    def _real(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """``[B, U]`` bool, tokens up to the end."""
        return torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)

    def _value(self, prompt: Tensor, memory: Any) -> Tensor:
        if self.critic is None:
            return prompt.new_zeros(prompt.shape[1])
        return self.critic(self._look(prompt[0].unsqueeze(1), memory)).view(-1)
