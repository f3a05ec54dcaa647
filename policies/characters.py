"""Texts over a small alphabet as tokens, for small policies that read and answer conversations.

Token 0 ends an answer, the others are the characters of an alphabet. A prompt is the bytes of its
texts; what else its messages hold (pictures) is not read.

Axes: ``B`` rows, ``C`` bytes of a conversation, ``P`` bytes of a prompt, ``U`` tokens, ``A`` bytes
of an action, ``V`` tokens of the alphabet with the end, ``R`` rows of logits.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from embodied_rl.types import PolicySpec, TensorDict

END = 0


class Alphabet:
    """Characters and their tokens.

    Args:
        characters: distinct printable ASCII characters.

    Raises:
        ValueError: a character twice, or one that is not ASCII.
    """

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) < len(characters) or not characters.isascii():
            raise ValueError(
                f"policy.alphabet is {characters!r}: use distinct ASCII characters, e.g. 0123456789"
            )
        self.characters = characters
        self.bytes = torch.tensor([0, *characters.encode()], dtype=torch.uint8)
        """``[V]`` byte of each token."""
        self.numeric = torch.tensor([False, *(c.isdigit() for c in characters)])
        """``[V]`` bool, tokens that are digits."""

    @property
    def size(self) -> int:
        """V."""
        return len(self.bytes)

    def to_bytes(self, tokens: Tensor, *, width: int) -> Tensor:
        """uint8 ``[B, width]`` text of ``[B, U]`` tokens up to the first end."""
        before_end = (tokens != END).cumprod(1).bool()
        text = self.bytes.to(tokens.device)[tokens].masked_fill(~before_end, 0)
        out = text.new_zeros((len(tokens), width))
        out[:, : text.shape[1]] = text[:, :width]
        return out

    def to_tokens(self, texts: Tensor, *, length: int) -> Tensor:
        """int64 ``[B, length]`` tokens of uint8 ``[B, A]``, filled up with the end token.

        Raises:
            ValueError: a text is longer, or holds a character that the alphabet does not.
        """
        if texts.shape[1] > length and bool(texts[:, length:].any()):
            raise ValueError(f"a text is longer than the {length} tokens of an answer")
        found = torch.full((256,), -1, dtype=torch.int64)
        found[self.bytes.long()] = torch.arange(self.size)
        tokens = found.to(texts.device)[texts[:, :length].long()]
        if bool((tokens < 0).any()):
            byte = int(texts[:, :length][tokens < 0][0])
            raise ValueError(f"policy.alphabet has no {chr(byte)!r}: add it")
        padding = tokens.new_full((len(tokens), length - tokens.shape[1]), END)
        return torch.cat([tokens, padding], 1)


def read_prompts(chat: Tensor, *, length: int) -> Tensor:
    """int64 ``[B, length]`` bytes of the texts in uint8 ``[B, C]`` conversations, after zeros.

    Of a longer prompt the last bytes are read. Equal conversations are parsed once.
    """
    known: dict[bytes, Tensor] = {}
    rows = []
    for row in chat.cpu().numpy():
        data = bytes(row).rstrip(b"\0")
        if data not in known:
            known[data] = _prompt(json.loads(data), length)
        rows.append(known[data])
    return torch.stack(rows).to(chat.device)


def _prompt(messages: list[dict[str, object]], length: int) -> Tensor:
    texts: list[str] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
        else:
            assert isinstance(content, list)
            texts += [part["text"] for part in content if part["type"] == "text"]
    data = "\n".join(texts).encode()[-length:]
    return torch.tensor([*bytes(length - len(data)), *data])


def distinct_rows(obs: TensorDict) -> tuple[Tensor, Tensor]:
    """(first row of each kind ``[R]``, the kind of every row ``[B]``) of equal observations."""
    arrays = [value.flatten(1).cpu().contiguous().numpy() for value in obs.values()]
    kinds: dict[bytes, int] = {}
    firsts: list[int] = []
    rows: list[int] = []
    for row in range(len(arrays[0])):
        key = b"".join(array[row].tobytes() for array in arrays)
        if key not in kinds:
            kinds[key] = len(firsts)
            firsts.append(row)
        rows.append(kinds[key])
    device = next(iter(obs.values())).device
    return torch.tensor(firsts, device=device), torch.tensor(rows, device=device)


def draw_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """int64 ``[R]`` tokens of softmax(logits ``[R, V]``) by inverting its cumulative sum."""
    cumulative = torch.softmax(logits, 1).cumsum(1)
    tokens = torch.searchsorted(cumulative, uniform.contiguous().unsqueeze(1), right=True).squeeze(
        1
    )
    return tokens.clamp_(max=logits.shape[1] - 1)  # a sum that rounds to less than u


def require_text(spec: PolicySpec, *, name: str, answer_length: int) -> None:
    """Refuse environments whose observations or actions are no texts.

    Raises:
        ValueError: says what the policy needs.
    """
    if not spec.text_bytes or "chat" not in spec.obs_shapes:
        raise ValueError(
            f"policy {name} answers conversations: it needs an environment whose actions are texts "
            f"and whose observations hold 'chat', this one has {', '.join(spec.obs_shapes)}"
        )
    if not 1 <= answer_length <= spec.text_bytes:
        raise ValueError(
            f"an answer of {answer_length} characters does not fit the {spec.text_bytes} bytes of "
            f"an action: use 1 to {spec.text_bytes}"
        )
