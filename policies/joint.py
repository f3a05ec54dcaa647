"""One trunk for questions and control, with a flow head that acts and a token head that answers.

A row whose ``chat`` holds a conversation is answered, any other row is acted on:

    f = trunk(images, state, words of the chat)                                       [B, W]
    log pi(text | o) = sum_u log softmax(out GRU(byte_{u-1}, ...; f))[byte_u]
    log pi(a | o) = log p(chain of the action | f), see `flow`

The ratio units of a batch are first A tokens and then the units of a chunk: a row has those of its
kind, the others are masked. A token is a byte of the answer, and 0 ends it. Both heads score all
rows, so that a mixed batch is one pass. A question is the mean of its words' embeddings, which are
looked up by a hash of the word. All of it is small and starts from nothing: a language model is the
policy `vlm`.

Axes: ``B`` rows, ``U`` ratio units, ``H`` executed actions, ``D`` numbers and ``A`` bytes of an
action, ``W`` width, ``K`` denoise steps.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embodied_rl import flow
from embodied_rl.flow import FlowConfig
from embodied_rl.losses.reduce import masked_mean
from embodied_rl.policies.flow_policy import FlowPolicy
from embodied_rl.policies.flow_transformer import ContextBlock
from embodied_rl.policies.nn import (
    VectorInput,
    draw_uniform,
    mlp,
    orthogonal_,
    require_choice,
    time_embedding,
)
from embodied_rl.policies.vision import PatchTokens
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict

DEFAULT_FLOW = FlowConfig()
NUM_BYTES = 256
TABLE = 1024
"""Entries of the table that words are hashed into; entry 0 is no word."""
WORD = re.compile(r"\w+")


class Joint(nn.Module):
    """See the module.

    Args:
        spec: an environment `mixture` of texts and continuous actions.
        flow: sampler and likelihood of the action head; a chunk is one ratio unit.
        dim: W.
        num_blocks: of self-attention in the trunk.
        num_heads: of each of them.
        max_words: of a conversation that are read, the last ones.
        image_grid: side of the grid of tokens that a picture becomes.
        hidden_dims: widths of the velocity MLP.
        action_clip_scale: clip range of the units of a chunk relative to that of tokens. Where
            ``flow`` takes means over numbers and steps, log-ratios of chunks are that much smaller.
        critic: ``trunk``, a linear value head, or ``none``.

    Raises:
        ValueError: an environment without texts, continuous actions or pictures, or ratio units
            that are not chunks.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        flow: FlowConfig = DEFAULT_FLOW,
        dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        max_words: int = 24,
        image_grid: int = 4,
        hidden_dims: tuple[int, ...] = (128, 128),
        action_clip_scale: float = 0.1,
        critic: Literal["trunk", "none"] = "none",
    ) -> None:
        super().__init__()
        require_choice("policy.critic", critic, ("trunk", "none"))
        if not (spec.text_bytes and spec.action_dim and "images" in spec.obs_shapes):
            raise ValueError(
                "policy joint answers questions about pictures and acts: it needs the environment "
                "mixture of vqa and one with continuous actions"
            )
        if flow.units != "chunk" or flow.mdp != "one_layer":
            raise ValueError(
                "policy joint scores a chunk as a whole: set policy.flow.units to chunk and "
                "policy.flow.mdp to one_layer"
            )
        self.spec, self.max_words, self.action_clip_scale = spec, max_words, action_clip_scale
        self.vector_input = VectorInput(spec, exclude=("chat",))
        self.state_layer = nn.Linear(self.vector_input.dim, dim)
        self.words = nn.Embedding(TABLE, dim)
        self.patches = PatchTokens(3, dim=dim, grid=image_grid)
        num_tokens = 1 + spec.obs_shapes["images"][0] * self.patches.num_tokens
        self.places = nn.Parameter(0.02 * torch.randn(num_tokens, dim))
        self.blocks = nn.Sequential(*(ContextBlock(dim, num_heads) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(dim)
        self.actor = ActionHead(spec, flow=flow, dim=dim, hidden_dims=hidden_dims)
        self.speaker = TokenHead(dim, length=spec.text_bytes)
        self.critic: nn.Module | None = None
        if critic == "trunk":
            self.critic = orthogonal_(nn.Linear(dim, 1), 1.0)

    def features(self, obs: TensorDict) -> Tensor:
        """[B, W] of the observations."""
        entries = hashed_words(obs["chat"], count=self.max_words)
        real = (entries > 0).unsqueeze(-1).float()
        words = (self.words(entries) * real).sum(1) / real.sum(1).clamp(min=1)
        read = self.state_layer(self.vector_input(obs)) + words
        images = obs["images"].permute(0, 1, 4, 2, 3)
        patches = self.patches(images.flatten(0, 1)).unflatten(0, images.shape[:2]).flatten(1, 2)
        tokens = torch.cat([read.unsqueeze(1), patches], 1) + self.places
        return self.norm(self.blocks(tokens)[:, 0])

    @torch.no_grad()
    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Actions [B, H, D + A] ([B, D + A] for H = 1); ``replay`` holds tokens and chain."""
        features, asked = self.features(obs), is_asked(obs)
        done = self.actor.sample(
            {"features": features}, deterministic=deterministic, generator=generator
        )
        noise = draw_uniform(
            (len(features), self.speaker.length), like=features, generator=generator
        )
        tokens = self.speaker.generate(features, None if deterministic else noise)
        numbers = torch.where(asked.view(-1, 1, 1), 0.0, done.actions)
        texts = torch.zeros(*numbers.shape[:2], self.spec.text_bytes, device=numbers.device)
        texts[:, 0] = torch.where(asked.unsqueeze(1), tokens, 0).float()
        actions = torch.cat([numbers, texts], -1)
        actions = actions.squeeze(1) if self.spec.chunk_length == 1 else actions
        values = self._values(features)
        if deterministic:
            return PolicyOutput(actions=actions, values=values)
        assert done.log_probs is not None, "a sampler without noise: set policy.flow.sampler to sde"
        said, _ = self.speaker.score(features, tokens)
        mask = self._units(asked, tokens)
        log_probs = torch.where(mask, torch.cat([said, done.log_probs], 1), 0.0)
        joint = torch.where(asked, log_probs.sum(1), done.replay["joint_log_probs"])
        return PolicyOutput(
            actions=actions,
            log_probs=log_probs,
            values=values,
            unit_mask=mask,
            replay=done.replay | {"tokens": tokens, "joint_log_probs": joint},
        )

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Score the tokens and chains in ``replay``; each row that of its head."""
        features, asked, tokens = self.features(obs), is_asked(obs), replay["tokens"]
        done = self.actor.log_prob({"features": features}, actions, replay)
        said, entropy = self.speaker.score(features, tokens)
        mask = self._units(asked, tokens)
        log_probs = torch.where(mask, torch.cat([said, done.log_probs], 1), 0.0)
        assert done.joint_log_probs is not None
        return LogProbOutput(
            log_probs=log_probs,
            entropy=torch.where(mask, torch.cat([entropy, done.entropy], 1), 0.0),
            values=self._values(features),
            joint_log_probs=torch.where(asked, log_probs.sum(1), done.joint_log_probs),
            clip_scale=torch.where(
                torch.arange(mask.shape[1], device=mask.device) < tokens.shape[1],
                1.0,
                self.action_clip_scale,
            ),
        )

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values; zeros without a critic."""
        if self.critic is None:
            return torch.zeros(len(obs["chat"]), device=obs["chat"].device)
        return self._values(self.features(obs))

    def imitation_loss(
        self, obs: TensorDict, actions: Tensor, mask: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Flow matching on the chunks plus cross entropy of the answers in nats per token.

        Args:
            obs: [B, ...] observations of either kind.
            actions: [B, H, D + A] float32.
            mask: [B, H] bool, False past the end of an episode.
            generator: source of t and noise.
        """
        features, asked = self.features(obs), is_asked(obs)
        numbers = actions[..., : self.spec.action_dim]
        acted = mask & ~asked.unsqueeze(1)
        loss = self.actor.imitation_loss(
            {"features": features}, numbers, acted, generator=generator
        )
        tokens = actions[:, 0, self.spec.action_dim :].long()
        said, _ = self.speaker.score(features, tokens)
        return loss + masked_mean(-said, spoken(tokens) & asked.unsqueeze(1))

    def set_progress(self, progress: float) -> None:
        """Anneal the noise of the action head."""
        self.actor.set_progress(progress)

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, 1]``; the units of answers are masked by ``PolicyOutput``."""
        return executed.any(1, keepdim=True)

    def _values(self, features: Tensor) -> Tensor:
        if self.critic is None:
            return features.new_zeros(len(features))
        return self.critic(features).squeeze(-1)

    def _units(self, asked: Tensor, tokens: Tensor) -> Tensor:
        """[B, U] bool: the tokens of an answer up to its end, or the last unit, of a chunk."""
        asked = asked.unsqueeze(1)
        return torch.cat([asked & spoken(tokens), ~asked], 1)


class ActionHead(FlowPolicy[Tensor]):
    """MLP velocity field over action chunks, given features [B, W]; see `flow_policy`."""

    def __init__(
        self, spec: PolicySpec, *, flow: FlowConfig, dim: int, hidden_dims: tuple[int, ...]
    ) -> None:
        super().__init__(spec, flow=flow, horizon=0, values_from_encoding=False)
        chunk, width = self.horizon * spec.action_dim, hidden_dims[0]
        self.feature_layer = nn.Linear(dim, width)
        self.chunk_layer = nn.Linear(chunk, width, bias=False)
        self.time_layer = nn.Linear(32, width, bias=False)
        self.layers = nn.Sequential(nn.SiLU(), mlp((*hidden_dims, chunk), activation=nn.SiLU))

    def encode(self, obs: TensorDict) -> Tensor:
        """[B, 1, width]: the share of the features in the first layer."""
        return self.feature_layer(obs["features"]).unsqueeze(1)

    def denoise(self, encoding: Tensor) -> flow.Denoise:
        """Velocity [B, S, H, D]."""

        def field(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            hidden = self.chunk_layer(x.flatten(2)) + encoding
            hidden = hidden + self.time_layer(time_embedding(t, 32))
            return self.layers(hidden).view(x.shape), None

        return field

    def predict_value(self, encoding: Tensor) -> Any:
        """None: the value is the trunk's."""
        return None


class TokenHead(nn.Module):
    """A recurrent network over the bytes of an answer, given features [B, W].

    Args:
        dim: W.
        length: A, tokens of the longest answer.
    """

    def __init__(self, dim: int, *, length: int) -> None:
        super().__init__()
        self.length = length
        self.start = nn.Linear(dim, dim)
        self.embedding = nn.Embedding(NUM_BYTES, dim)
        self.cell = nn.GRU(2 * dim, dim, batch_first=True)
        self.out = nn.Linear(dim, NUM_BYTES)

    def logits(self, features: Tensor, tokens: Tensor) -> Tensor:
        """[B, U, 256] of each token, given those before it."""
        before = nn.functional.pad(tokens[:, :-1], (1, 0))
        inputs = torch.cat(
            [self.embedding(before), features.unsqueeze(1).expand(-1, tokens.shape[1], -1)], -1
        )
        hidden, _ = self.cell(inputs, self.start(features).tanh().unsqueeze(0))
        return self.out(hidden)

    def score(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies in nats), [B, U] each, of tokens int64 [B, U]."""
        log_probs = self.logits(features, tokens).log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy

    def generate(self, features: Tensor, noise: Tensor | None) -> Tensor:
        """int64 [B, A], zeros from the end on; ``noise`` [B, A] uniform, None: greedy."""
        tokens = torch.zeros(len(features), self.length, dtype=torch.int64, device=features.device)
        hidden = self.start(features).tanh().unsqueeze(0)
        last, running = tokens[:, 0], torch.ones(len(features), dtype=torch.bool)
        running = running.to(features.device)
        for u in range(self.length):
            inputs = torch.cat([self.embedding(last), features], -1).unsqueeze(1)
            states, hidden = self.cell(inputs, hidden)
            logits = self.out(states.squeeze(1))
            if noise is None:
                drawn = logits.argmax(-1)
            else:
                # the first byte whose cumulative probability exceeds the uniform number
                total = logits.softmax(-1).cumsum(-1)
                drawn = (total <= noise[:, u : u + 1] * total[:, -1:]).sum(-1)
                drawn = drawn.clamp(max=NUM_BYTES - 1)
            last = torch.where(running, drawn, 0)
            tokens[:, u] = last
            running = running & (last != 0)
            if not bool(running.any()):
                break
        return tokens


def is_asked(obs: TensorDict) -> Tensor:
    """[B] bool: rows with a conversation."""
    return obs["chat"][:, 0] != 0


def spoken(tokens: Tensor) -> Tensor:
    """[B, U] bool of tokens [B, U]: those before the end, and the end itself."""
    ended = (tokens == 0).cumsum(1)
    return (ended - (tokens == 0).long()) == 0


def hashed_words(chat: Tensor, *, count: int) -> Tensor:
    """int64 [B, count] entries of the last words of conversations uint8 [B, C]; 0: no word."""
    rows = torch.zeros(len(chat), count, dtype=torch.int64)
    for row, data in zip(rows, chat.cpu().numpy(), strict=True):
        text = data.tobytes().rstrip(b"\0")
        if text:
            words = WORD.findall(conversation_text(text))[-count:]
            hashes = [1 + zlib.crc32(word.lower().encode()) % (TABLE - 1) for word in words]
            row[: len(hashes)] = torch.tensor(hashes)
    return rows.to(chat.device)


def conversation_text(data: bytes) -> str:
    """All texts of a JSON conversation, one after the other."""
    texts = []
    for message in json.loads(data):
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        texts += [part["text"] for part in parts if "text" in part]
    return "\n".join(texts)
