"""Orders: jigsaw permutations (Jigsaw-R1, system 10) and page rankings (MM-R5, system 25)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import required
from embodied_rl.types import Question


def jigsaw_fraction(
    response: str, question: Question, *, measure: Literal["position", "adjacency"] = "position"
) -> float:
    """Share of an assembled puzzle that is right; 0 unless the answer uses every piece once.

    ``data["permutation"]`` is the right list of piece numbers, row by row; for ``adjacency`` also
    ``data["grid"]`` = (m rows, n columns), and what counts are the 2mn - m - n pairs of neighbours.
    """
    right = list(required(question, "permutation"))
    said = parse.integers(parse.answer_text(response) or "")
    if said is None or sorted(said) != sorted(right):
        return 0.0
    if measure == "position":
        return sum(a == b for a, b in zip(said, right, strict=True)) / len(right)
    if measure != "adjacency":
        raise ValueError(f"measure is {measure!r}; use 'position' or 'adjacency'")
    rows, columns = required(question, "grid")
    neighbours = _neighbours(right, rows=rows, columns=columns)
    return len(neighbours & _neighbours(said, rows=rows, columns=columns)) / len(neighbours)


def _neighbours(pieces: Sequence[int], *, rows: int, columns: int) -> set[tuple[int, int, str]]:
    """(piece, its right-hand or lower neighbour, which of the two)."""
    assert rows * columns == len(pieces) > 1, f"{rows} x {columns} pieces, not {len(pieces)}"
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    beside = {
        (pieces[r * columns + c], pieces[r * columns + c + 1], "right")
        for r, c in cells
        if c + 1 < columns
    }
    below = {
        (pieces[r * columns + c], pieces[(r + 1) * columns + c], "below")
        for r, c in cells
        if r + 1 < rows
    }
    return beside | below


def rerank_rrk3(response: str, question: Question) -> float:
    """Sum over positives of 1/rank^3, divided by its best value (MM-R5, system 25).

    ``data["positives"]`` are page numbers and ``data["candidates"]`` all of them. The answer is a
    list without repeats; positives that it leaves out earn nothing.
    """
    positives = set(required(question, "positives"))
    said = _ranking(response, question)
    ranks = [rank for rank, page in enumerate(said, start=1) if page in positives]
    best = sum(1 / rank**3 for rank in range(1, len(positives) + 1))
    return sum(1 / rank**3 for rank in ranks) / best


def list_format(response: str, question: Question) -> float:
    """1 if the answer lists ``data["top_k"]`` pages (default: all), each of them a candidate, once.

    Otherwise 0 for repeats, else (share of valid numbers) * (shorter / longer of both lengths).
    """
    candidates = set(required(question, "candidates"))
    wanted = int(question.data.get("top_k", len(candidates)))
    said = parse.integers(parse.answer_text(response) or "")
    if said is None or len(set(said)) != len(said):
        return 0.0
    valid = sum(page in candidates for page in said) / len(said)
    return valid * min(len(said), wanted) / max(len(said), wanted)


def _ranking(response: str, question: Question) -> list[int]:
    said = parse.integers(parse.answer_text(response) or "") or []
    candidates = set(required(question, "candidates"))
    if len(set(said)) != len(said) or not set(said) <= candidates:
        return []
    return said
