"""Texts as fixed-width tensors: UTF-8 bytes, filled up with zeros.

Axes: ``B`` rows, ``A`` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_bytes(texts: Sequence[str], *, width: int) -> Tensor:
    """uint8 ``[B, width]``; longer texts are cut after the last whole character, NULs are left out.

    Args:
        texts: B texts.
        width: A.
    """
    rows = torch.zeros((len(texts), width), dtype=torch.uint8)
    for row, text in zip(rows, texts, strict=True):
        data = text.replace("\0", "").encode("utf-8", errors="replace")
        if len(data) > width:
            data = data[:width].decode("utf-8", errors="ignore").encode()
        row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
    return rows


def from_bytes(rows: Tensor) -> list[str]:
    """The texts of uint8 ``[B, A]``."""
    return [
        bytes(row).rstrip(b"\0").decode("utf-8", errors="replace") for row in rows.cpu().numpy()
    ]
