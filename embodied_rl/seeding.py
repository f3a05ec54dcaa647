"""One run seed to independent random streams, by counter and not by state.

``derive_seed(seed, *path)`` = the first 30 bits of BLAKE2b("seed/path[0]/path[1]/...").

A stream is named by its path, e.g. ``("env", "pick-place-v3", 3)``. Because nothing is drawn from
a shared generator, adding, removing or reordering consumers never changes the stream of another,
and a stream needs no saved state to be found again.
"""

from __future__ import annotations

import hashlib

import torch


def _hash64(seed: int, path: tuple[int | str, ...]) -> int:
    # The type is part of the text, so that 1 and "1" name different streams.
    text = "/".join(f"{type(part).__name__}:{part}" for part in (int(seed), *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def derive_seed(seed: int, *path: int | str) -> int:
    """Seed of the stream named ``path``: an integer in [0, 2^30), equal on every machine.

    The seeds from 2^30 on are those of evaluation manifests.

    Args:
        seed: the seed of the run.
        path: what the stream is for, e.g. ``"env", task_name, row``.
    """
    return _hash64(seed, path) >> 34


def torch_generator(
    seed: int, *path: int | str, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A ``torch.Generator`` for the stream named ``path``, seeded with 63 bits."""
    return torch.Generator(device=device).manual_seed(_hash64(seed, path) >> 1)
