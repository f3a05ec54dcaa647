"""Conversations with one image each, in the tensors that environments of words give."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied_rl.policies import make_policy
from embodied_rl.policies.vlm import text
from embodied_rl.types import PolicySpec, TensorDict

CHAT, SIDE, ANSWER = 320, 56, 96
SHAPES = {"chat": (CHAT,), "images": (2, SIDE, SIDE, 3), "image_sizes": (2, 2)}
SPEC = PolicySpec(
    obs_shapes=SHAPES,
    obs_dtypes={"chat": "uint8", "images": "uint8", "image_sizes": "int64"},
    text_bytes=ANSWER,
)
RED, GREEN, BLUE = (230, 20, 20), (20, 200, 40), (30, 40, 220)
KINDS = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "gemma3", "llava", "paligemma")


def make(kind: str = "qwen2_5_vl", *, seed: int = 0, **options: Any) -> Any:
    pytest.importorskip("transformers", reason="the extra vlm is not installed")
    torch.manual_seed(seed)
    return make_policy("vlm", SPEC, **({"model": f"tiny/{kind}", "max_new_tokens": 9} | options))


def conversations(*rows: tuple[str, list[Any]], copies: int = 1) -> TensorDict:
    """Observations of (question, colours of its images or images) pairs, each ``copies`` times."""
    chats = []
    images = torch.zeros((len(rows), 2, SIDE, SIDE, 3), dtype=torch.uint8)
    sizes = torch.zeros((len(rows), 2, 2), dtype=torch.int64)
    for n, (question, shown) in enumerate(rows):
        parts = [{"type": "image"} for _ in shown] + [{"type": "text", "text": question}]
        chats.append(json.dumps([{"role": "user", "content": parts}]))
        for m, image in enumerate(shown):
            sizes[n, m] = SIDE
            images[n, m] = torch.as_tensor(image, dtype=torch.uint8)
    obs = {"chat": text.to_bytes(chats, width=CHAT), "images": images, "image_sizes": sizes}
    return {name: value.repeat_interleave(copies, 0) for name, value in obs.items()}


def mixed(*, copies: int = 1) -> TensorDict:
    """Prompts of different lengths with one, two and no images."""
    noise = torch.randint(0, 256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(5))
    return conversations(
        ("What colour is it?", [RED]),
        ("Which of the two images has more circles? Answer with one word.", [noise, BLUE]),
        ("Yes or no?", []),
        copies=copies,
    )


def given_answers(count: int = 6) -> TensorDict:
    """Fixed answers of 1 to 9 ordinary tokens, as replay."""
    tokens = torch.randint(1, 500, (count, 9), generator=torch.Generator().manual_seed(3))
    return {"tokens": tokens, "num_tokens": torch.tensor([9, 1, 3, 5, 9, 2])[:count]}


def no_actions(rows: int) -> Tensor:
    return torch.zeros((rows, ANSWER), dtype=torch.uint8)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disturb(policy: Any, *, size: float = 0.05) -> Any:
    """Move every trained weight in place, as an optimiser does."""
    noise = generator(4)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(size * torch.randn(weight.shape, generator=noise))
    return policy
