"""A small generator of strings that also sees pictures: a ``StringGenerator`` with an eye.

Three strided convolutions, the same for every picture, leave a coarse grid of cells. All of them
together, through a normalised linear layer, are the gist v [B, E]; with the state p [B, E] of the
reader after the prompt

    h = tanh(W [p, v, p * v])

is the state that the writer starts from. What a cell saw, where it lies and in which picture is a
row of the memory m [B, T, E], and from its state s_u before every character the writer looks at it
K times (multi-head attention, Vaswani et al. 2017),

    x_0 = V [s_u, h],    y = x_(k-1) + attention(norm(x_(k-1)), norm(m)),    x_k = y + MLP(y),

before z_u = head(norm(x_K)). The gist tells what is there, the looks where it is. It learns simple
questions about pictures from nothing in seconds, which is what it is for: tests of rewards and
algorithms. Rows with equal observations, as the answers of a group have, are read once.

Axes: ``B`` rows, ``R`` different rows, ``M`` pictures of H x W pixels, ``T`` = M x cells,
``U`` tokens, ``E`` features, ``K`` looks.
"""

from __future__ import annotations

import string
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from embodied_rl.policies.characters import distinct_rows
from embodied_rl.policies.string_generator import StringGenerator
from embodied_rl.types import PolicySpec, TensorDict

ALPHABET = string.ascii_lowercase + string.digits + ' ,.[]<>/"'
WIDTHS = (16, 32, 32)
HEADS = 4


class Memory(NamedTuple):
    """What the writer looks at.

    Attributes:
        start: h, ``[B, E]``.
        looks: keys and values of every look, ``[B, heads, T, E / heads]``.
    """

    start: Tensor
    looks: list[tuple[Tensor, Tensor]]


class PictureGenerator(StringGenerator):
    """See the module.

    Args:
        spec: environment description; observations ``chat`` and ``images``, actions are texts.
        alphabet: characters that an answer may hold.
        max_new_tokens: longest answer, its end included.
        prompt_length: bytes of the prompt that are read, the last ones.
        dim: E, a multiple of 4.
        looks: K.
        temperature: divides the logits, in sampling and in scoring.
        critic: ``trunk``, a linear value head where the first character's would be, or ``none``.

    Raises:
        ValueError: no pictures, another action space, unknown option value.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        alphabet: str = ALPHABET,
        max_new_tokens: int = 16,
        prompt_length: int = 32,
        dim: int = 128,
        looks: int = 2,
        temperature: float = 1.0,
        critic: Literal["trunk", "none"] = "none",
    ) -> None:
        super().__init__(
            spec,
            alphabet=alphabet,
            max_new_tokens=max_new_tokens,
            prompt_length=prompt_length,
            dim=dim,
            temperature=temperature,
            critic=critic,
        )
        if "images" not in spec.obs_shapes:
            raise ValueError(
                "policy picture_generator sees pictures: use string_generator where there are none"
            )
        number, height, width, channels = spec.obs_shapes["images"]
        layers: list[nn.Module] = []
        for before, after in zip((channels, *WIDTHS), WIDTHS, strict=False):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.ReLU()]
            height, width = -(-height // 2), -(-width // 2)
        self.eye = nn.Sequential(*layers)
        self.gist = nn.Linear(number * WIDTHS[-1] * height * width, dim)
        self.gist_norm = nn.LayerNorm(dim)
        self.merge = nn.Linear(3 * dim, dim)
        self.mixer = nn.Linear(2 * dim, dim)
        self.lift = nn.Linear(WIDTHS[-1], dim)
        self.place = nn.Parameter(0.5 * torch.randn(number, height * width, dim))
        self.looks = nn.ModuleList(_Look(dim) for _ in range(looks))
        self.norm = nn.LayerNorm(dim)

    def _read(self, obs: TensorDict) -> tuple[Tensor, Memory]:
        """State ``[1, B, E]`` to start from, and the memory."""
        firsts, rows = distinct_rows(obs)
        obs = {name: value[firsts] for name, value in obs.items()}
        prompt = super()._read(obs)[0][0]
        pictures = obs["images"]
        scaled = pictures.flatten(0, 1).permute(0, 3, 1, 2).float() / 64 - 2
        features = self.eye(scaled).flatten(2)  # [R * M, 32, cells]
        gist = self.gist_norm(self.gist(features.reshape(len(pictures), -1))).relu()
        start = self.merge(torch.cat([prompt, gist, prompt * gist], 1)).tanh()[rows]
        cells = self.lift(features.transpose(1, 2)).view(len(pictures), *self.place.shape)
        memory = (cells + self.place).flatten(1, 2)
        looks = [k.remember(memory, rows) for k in self.looks if isinstance(k, _Look)]
        return start.unsqueeze(0), Memory(start, looks)

    def _look(self, hidden: Tensor, memory: Memory) -> Tensor:
        start = memory.start.unsqueeze(1).expand_as(hidden)
        hidden = self.mixer(torch.cat([hidden, start], -1))
        for look, (keys, values) in zip(self.looks, memory.looks, strict=True):
            hidden = look(hidden, keys, values)
        return self.norm(hidden)


class _Look(nn.Module):
    """One attention to the memory and a small network, both added to what was there."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.memory_norm, self.query_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.keys_values = nn.Linear(dim, 2 * dim)
        self.network = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim)
        )

    def remember(self, memory: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, heads, T, E / heads]`` of ``rows`` [B] of a memory [R, T, E]."""
        keys, values = self.keys_values(self.memory_norm(memory)).chunk(2, -1)
        return _heads(keys)[rows], _heads(values)[rows]

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``[B, U, E]`` after looking."""
        query = _heads(self.query(self.query_norm(hidden)))
        seen = nn.functional.scaled_dot_product_attention(query, keys, values)
        hidden = hidden + self.output(seen.transpose(1, 2).flatten(2))
        return hidden + self.network(hidden)


def _heads(x: Tensor) -> Tensor:
    """``[B, heads, T, E / heads]`` of ``[B, T, E]``."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
