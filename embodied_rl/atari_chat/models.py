"""Vision-language models of transformers as players.

``TransformersPlayer`` takes a model and its processor, e.g.

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    play("pong", TransformersPlayer(model, processor), seed=0)

``tiny_model`` builds a random one with a tokenizer of bytes; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.atari_chat.protocol import Message

PATCH, TINY_SIDE = 32, 64
IMAGE_TOKEN, NUM_TOKENS = 256, 258
"""Tokens 0 to 255 are bytes; 257 ends a text."""


class TransformersPlayer:
    """A ``ChatModel`` over anything that transformers can generate with.

    Args:
        model: with ``generate``.
        processor: with ``apply_chat_template`` and ``batch_decode``.
        max_new_tokens: of an answer.
        temperature: 0 takes the likeliest token.
        seed: of sampled answers.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model, self.processor = model, processor
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        torch.manual_seed(seed)  # generate draws from the global stream

    @torch.no_grad()
    def __call__(self, messages: Sequence[Message]) -> str:
        """Answer a conversation."""
        inputs = self.processor.apply_chat_template(
            list(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        sampling = {"temperature": self.temperature} if self.temperature else {}
        tokens = self.model.generate(
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=bool(sampling), **sampling
        )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0]


class ByteProcessor:
    """Processor of ``tiny_model``: a text is its bytes, a picture 2x2 patches of 32x32 pixels."""

    def apply_chat_template(self, messages: Sequence[Message], **_: Any) -> dict[str, Tensor]:
        """One conversation: ``input_ids``, ``attention_mask`` [1, L]; ``pixel_values`` [P, ...]."""
        tokens: list[int] = []
        pictures: list[np.ndarray] = []
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "image":
                pictures.append(part["image"])
                tokens += [IMAGE_TOKEN] * (TINY_SIDE // PATCH) ** 2
            else:
                tokens += part["text"].encode()
        ids = torch.tensor([tokens])
        pick = np.arange(TINY_SIDE)
        pixels = [
            picture[pick[:, None] * len(picture) // TINY_SIDE, pick * len(picture) // TINY_SIDE]
            for picture in pictures
        ]
        values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": values,
        }

    def batch_decode(self, tokens: Tensor, **_: Any) -> list[str]:
        """Bytes to texts; what is no UTF-8 is replaced."""
        return [
            bytes(token for token in row if token < IMAGE_TOKEN).decode(errors="replace")
            for row in tokens.tolist()
        ]


def tiny_model(seed: int, *, max_new_tokens: int = 24) -> TransformersPlayer:
    """A random LLaVA of about 100k weights; its answers are malformed.

    Raises:
        ValueError: transformers is not installed.
    """
    try:
        from transformers import (
            CLIPVisionConfig,
            LlamaConfig,
            LlavaConfig,
            LlavaForConditionalGeneration,
        )
    except ImportError as error:
        raise ValueError("model players need transformers: pip install 'embodied-rl[vlm]'") from (
            error
        )
    common: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**common, **heads, image_size=TINY_SIDE, patch_size=PATCH),
        text_config=LlamaConfig(
            **common,
            **heads,
            num_key_value_heads=2,
            vocab_size=NUM_TOKENS,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=NUM_TOKENS - 1,
            pad_token_id=NUM_TOKENS - 1,
        ),
        image_token_index=IMAGE_TOKEN,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    return TransformersPlayer(
        model, ByteProcessor(), max_new_tokens=max_new_tokens, temperature=1.0, seed=seed
    )
