"""A small generator of strings that also sees pictures: a ``StringGenerator`` with an eye.

Three strided convolutions, the same for every picture, and a normalised linear layer turn the
pictures of a conversation into features v [B, E]; with the state p [B, E] of the reader after the
prompt

    h = tanh(W [p, v, p * v])

is the state that the writer starts from, and every character depends on it again,

    z_u = head(relu(V [s_u, h])),

where s_u is the writer's state: a picture that is seen only at the start is forgotten before it
matters. It learns simple questions about pictures from nothing in
seconds, which is what it is for: tests of rewards and algorithms.

Axes: ``B`` rows, ``M`` pictures of H x W pixels, ``E`` features.
"""

from __future__ import annotations

import string
from typing import Literal

import torch
from torch import Tensor, nn

from embodied_rl.policies.string_generator import StringGenerator
from embodied_rl.types import PolicySpec, TensorDict

ALPHABET = string.ascii_lowercase + string.digits + ' ,.[]<>/"'
WIDTHS = (16, 32, 32)


class PictureGenerator(StringGenerator):
    """See the module.

    Args:
        spec: environment description; observations ``chat`` and ``images``, actions are texts.
        alphabet: characters that an answer may hold.
        max_new_tokens: longest answer, its end included.
        prompt_length: bytes of the prompt that are read, the last ones.
        dim: E.
        temperature: divides the logits, in sampling and in scoring.
        critic: ``trunk``, a linear value head, or ``none``.

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
        self.eye = nn.Sequential(*layers, nn.Flatten())
        self.gather = nn.Linear(number * WIDTHS[-1] * height * width, dim)
        self.norm = nn.LayerNorm(dim)
        self.merge = nn.Linear(3 * dim, dim)
        self.mixer = nn.Linear(2 * dim, dim)

    def _read(self, obs: TensorDict) -> Tensor:
        """State ``[1, B, E]`` after the prompts and the pictures."""
        prompt = super()._read(obs)[0]
        pictures = obs["images"]
        scaled = pictures.flatten(0, 1).permute(0, 3, 1, 2).float() / 64 - 2
        seen = self.norm(self.gather(self.eye(scaled).view(len(pictures), -1))).relu()
        merged = self.merge(torch.cat([prompt, seen, prompt * seen], 1))
        return merged.tanh().unsqueeze(0)

    def _mix(self, hidden: Tensor, prompt: Tensor) -> Tensor:
        first = prompt[0].unsqueeze(1).expand_as(hidden)
        return self.mixer(torch.cat([hidden, first], -1)).relu()
