r"""A masked-diffusion language model: a bidirectional transformer that fills in masked characters.

An answer is a canvas of L tokens, text up to the first end token. Sampling starts from a canvas of
masks; each step draws every masked token from its own softmax and keeps the most probable draws
(LLaDA, Nie et al. 2025), L / ``num_steps`` of them.

The likelihood of such an answer is intractable. UniGRPO (Yang et al. 2025, MMaDA, section 3.3) puts
an estimate in its place: mask a random share of the answer (never the question) and average what
is predicted there,

    l(S) = 1/|S| \sum_{i in S} log p(a_i | o, a without S),    i in S with probability q,
    q ~ U(mask_ratio)

with |S| >= 1: an empty draw becomes the token that came nearest to being masked. M masks are drawn
per answer when it is sampled and are kept in ``replay``, so that old, new and reference
log-probabilities are of the same masks. Each mask is one ratio unit, U = M. A ratio of fixed share
is ``mask_ratio=(q, q)``; (1, 1) masks the whole answer.

Axes: ``B`` rows, ``M`` masks, ``L`` tokens, ``P`` prompt bytes, ``V`` tokens of the alphabet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embodied_rl.losses.reduce import masked_mean
from embodied_rl.policies.characters import Alphabet, draw_tokens, read_prompts, require_text
from embodied_rl.policies.nn import draw_uniform
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict


class MaskedDiffusion(nn.Module):
    """See the module. It has no critic: use a group-based advantage.

    Args:
        spec: environment description; observation ``chat``, actions are texts.
        alphabet: characters that an answer may hold.
        answer_length: L.
        prompt_length: P, bytes of the prompt that are read, the last ones.
        num_steps: denoising steps; 0: L, one token per step.
        temperature: divides the logits in sampling; scores are those of temperature 1.
        mask_ratio: bounds of the share of an answer that is masked.
        num_masks: M.
        dim, depth, heads: of the transformer.

    Raises:
        ValueError: another action space, or an option out of its range.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        alphabet: str = "0123456789",
        answer_length: int = 8,
        prompt_length: int = 32,
        num_steps: int = 0,
        temperature: float = 1.0,
        mask_ratio: tuple[float, float] = (0.1, 0.9),
        num_masks: int = 4,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        require_text(spec, name="masked_diffusion", answer_length=answer_length)
        low, high = mask_ratio
        if not 0 <= low <= high <= 1:
            raise ValueError(f"policy.mask_ratio is {mask_ratio}: use 0 <= low <= high <= 1")
        if num_masks < 1 or not 0 <= num_steps <= answer_length:
            raise ValueError(
                f"policy.num_masks={num_masks}, num_steps={num_steps}: use at least 1 mask and 0 "
                f"to {answer_length} steps"
            )
        self.spec, self.alphabet = spec, Alphabet(alphabet)
        self.answer_length, self.prompt_length = answer_length, prompt_length
        self.num_steps, self.temperature = num_steps or answer_length, temperature
        self.mask_ratio, self.num_masks = (low, high), num_masks
        self.masked = self.alphabet.size  # the token of a masked place
        self.byte_embedding = nn.Embedding(256, dim)
        self.token_embedding = nn.Embedding(self.alphabet.size + 1, dim)
        self.place = nn.Parameter(0.02 * torch.randn(prompt_length + answer_length, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), False)
        self.head = nn.Linear(dim, self.alphabet.size)

    @torch.no_grad()
    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Answer B prompts; a deterministic answer takes the most probable tokens.

        ``replay`` holds ``tokens`` int64 [B, L] and ``masks`` bool [B, M, L].
        """
        prompts = read_prompts(obs["chat"], length=self.prompt_length)
        tokens = self._denoise(prompts, deterministic=deterministic, generator=generator)
        actions = self.alphabet.to_bytes(tokens, width=self.spec.text_bytes)
        if deterministic:
            return PolicyOutput(actions=actions, values=self.value(obs))
        masks = self._draw_masks(len(tokens), like=self.place, generator=generator)
        log_probs, _ = self._score(prompts, tokens, masks)
        return PolicyOutput(
            actions=actions,
            log_probs=log_probs,
            values=self.value(obs),
            unit_mask=torch.ones_like(log_probs, dtype=torch.bool),
            replay={"tokens": tokens, "masks": masks},
        )

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Score the tokens in ``replay`` under its masks; a reference scores the same ones."""
        prompts = read_prompts(obs["chat"], length=self.prompt_length)
        log_probs, entropy = self._score(prompts, replay["tokens"], replay["masks"])
        return LogProbOutput(log_probs=log_probs, entropy=entropy)

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` zeros."""
        return self.place.new_zeros(len(obs["chat"]))

    def imitation_loss(
        self, obs: TensorDict, actions: Tensor, mask: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """-1/(q L) sum of log p over the masked tokens, q ~ U(0, 1) (LLaDA, Nie et al. 2025).

        Args:
            obs: [B, ...] observations.
            actions: uint8 [B, A] answers.
            mask: [B] or [B, 1] bool, rows that count.
            generator: source of the masks.
        """
        tokens = self.alphabet.to_tokens(actions, length=self.answer_length)
        prompts = read_prompts(obs["chat"], length=self.prompt_length)
        noise = draw_uniform(
            (len(tokens), self.answer_length + 1), like=self.place, generator=generator
        )
        share = 1 - noise[:, :1]  # in (0, 1]
        hidden = noise[:, 1:] < share
        log_p = torch.log_softmax(self.logits(prompts, tokens.masked_fill(hidden, self.masked)), -1)
        chosen = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        loss = -(chosen * hidden / share).mean(1)
        return masked_mean(loss, mask.view(-1))

    def set_progress(self, progress: float) -> None:
        """Nothing is annealed."""

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, M]`` from executed answers [B, 1]."""
        return executed.expand(-1, self.num_masks)

    def logits(self, prompts: Tensor, canvas: Tensor) -> Tensor:
        """``[B, L, V]`` at every place of ``canvas`` [B, L], whose tokens may be ``masked``."""
        inputs = torch.cat([self.byte_embedding(prompts), self.token_embedding(canvas)], 1)
        hidden = self.trunk(inputs + self.place)
        return self.head(hidden[:, self.prompt_length :])

    def _denoise(
        self, prompts: Tensor, *, deterministic: bool, generator: torch.Generator | None
    ) -> Tensor:
        """int64 ``[B, L]`` canvases filled in ``num_steps`` steps."""
        count, length, steps = len(prompts), self.answer_length, self.num_steps
        noise = draw_uniform((count, steps, length), like=self.place, generator=generator)
        canvas = torch.full((count, length), self.masked, device=prompts.device)
        for step in range(steps):
            logits = self.logits(prompts, canvas) / self.temperature
            if deterministic:
                drawn = logits.argmax(-1)
            else:
                drawn = draw_tokens(logits.flatten(0, 1), noise[:, step].flatten()).view(-1, length)
            chance = torch.softmax(logits, -1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
            chance = chance.masked_fill(canvas != self.masked, -1.0)
            kept = length * (step + 1) // steps - length * step // steps
            best = chance.topk(kept, 1).indices
            canvas = canvas.scatter(1, best, drawn.gather(1, best))
        return canvas

    def _draw_masks(self, count: int, *, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Bool ``[count, M, L]``, at least one token each."""
        shape = (count, self.num_masks, self.answer_length + 1)
        noise = draw_uniform(shape, like=like, generator=generator)
        low, high = self.mask_ratio
        share, noise = low + (high - low) * noise[..., :1], noise[..., 1:]
        return (noise < share) | (noise == noise.amin(-1, keepdim=True))

    def _score(self, prompts: Tensor, tokens: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(l(S), mean entropy) ``[B, M]`` of the masked tokens."""
        count, num_masks, length = masks.shape
        answers = tokens.unsqueeze(1).expand(masks.shape)
        canvas = answers.masked_fill(masks, self.masked).flatten(0, 1)
        logits = self.logits(prompts.repeat_interleave(num_masks, 0), canvas)
        log_p = torch.log_softmax(logits, -1).view(count, num_masks, length, -1)
        chosen = log_p.gather(-1, answers.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        masked = masks.sum(-1)
        return (chosen * masks).sum(-1) / masked, (entropy * masks).sum(-1) / masked
