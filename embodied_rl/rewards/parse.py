r"""What a response says: tagged blocks, the answer, numbers, JSON, boxes, points, spans.

Strict on purpose. Where a response offers several answers, none is taken: a reader that picks the
last (or the first that fits) pays for enumeration. Everything runs in time linear in the length,
also on text written to break it: blocks are found by scanning, JSON is tried at one place only.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) with x1 < x2 and y1 < y2."""
Point = tuple[float, float]
Span = tuple[float, float]
"""(start, end) with start < end."""

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4})?")
GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.|$|[eE])")
TUPLE = re.compile(r"[\[(]([^\[\]()]{1,200})[\])]")
SEPARATED = re.compile(r"\s*[^\s,;]+(?:(?:\s*[,;]\s*|\s+)[^\s,;]+)*\s*")
"""Words with one comma, semicolon or spaces between them."""
BOX_KEYS = ("bbox_2d", "bbox", "box")
POINT_KEYS = ("point_2d", "point")


def blocks(text: str, name: str) -> list[str] | None:
    """Contents of every ``<name>...</name>`` in order; None where tags do not pair up."""
    opening, closing = f"<{name}>", f"</{name}>"
    if text.count(opening) != text.count(closing):
        return None
    found, start = [], 0
    while (begin := text.find(opening, start)) >= 0:
        end = text.find(closing, start)
        following = text.find(opening, begin + len(opening))
        if end < begin or 0 <= following < end:
            return None
        found.append(text[begin + len(opening) : end])
        start = end + len(closing)
    return found


def block(text: str, name: str) -> str | None:
    """Content of the only ``<name>...</name>``; None if there is none or more than one."""
    found = blocks(text, name)
    return found[0] if found is not None and len(found) == 1 else None


def after_thinking(text: str) -> str:
    """What follows the last ``</think>``; the whole text without one."""
    return text.rpartition("</think>")[2]


def answer_text(response: str) -> str | None:
    r"""The one answer of a response.

    After the last ``</think>``: the content of the only ``<answer>`` block if there is any such
    tag, else all of it; inside that, the content of the only ``\boxed{}`` if there is any.

    Returns:
        Stripped text, or None if it is empty, unfinished or given more than once.
    """
    text = after_thinking(response)
    if "<answer>" in text or "</answer>" in text:
        content = block(text, "answer")
        if content is None:
            return None
        text = content
    elif "<think>" in text:  # thinking that never ends is no answer
        return None
    if r"\boxed" in text:
        content = boxed(text)
        if content is None:
            return None
        text = content
    return text.strip() or None


def boxed(text: str) -> str | None:
    r"""Content of the only ``\boxed{...}``, braces balanced; equal repeats count as one."""
    found, start = set[str](), 0
    while (begin := text.find(r"\boxed{", start)) >= 0:
        begin += len(r"\boxed{")
        end = _closing_brace(text, begin)
        if end is None:
            return None
        found.add(text[begin:end])
        start = end
    return found.pop() if len(found) == 1 else None


def _closing_brace(text: str, begin: int) -> int | None:
    depth = 1
    for position in range(begin, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return position
    return None


def numbers(text: str) -> list[float]:
    """Every finite number in order; ``1,234.5`` is one number, ``1,2`` are two, ``1e3`` is 1000."""
    found = []
    for match in NUMBER.finditer(text):
        word = match.group()
        grouped = "," in word and GROUPED.match(word.lstrip("+-")) is not None
        if grouped and not re.fullmatch(r"[-+]?\d{1,3}(,\d{3})*(\.\d+)?([eE][-+]?\d+)?", word):
            grouped = False
        parts = [word.replace(",", "")] if grouped else word.split(",")
        found += [float(part) for part in parts if part]
    return [number for number in found if math.isfinite(number)]


def last_number(text: str) -> float | None:
    """The last number, the convention of GSM8K; it pays for enumeration, so prefer the next."""
    found = numbers(text)
    return found[-1] if found else None


def only_number(text: str) -> float | None:
    """The number of a text that has exactly one."""
    found = numbers(text)
    return found[0] if len(found) == 1 else None


def json_value(text: str) -> Any:
    """The JSON value that starts at the first bracket (or at the first one of a code fence).

    Returns:
        The value, or None if there is none, it is broken, or holds NaN or infinity.
    """
    starts = [position for position in (text.find("["), text.find("{")) if position >= 0]
    if not starts:
        return None
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    try:
        return decoder.raw_decode(text, min(starts))[0]
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def code_block(response: str) -> str | None:
    """Content of the only fenced block after the thinking, without its language; None otherwise."""
    text = after_thinking(response)
    parts = text.split("```")
    if len(parts) != 3:
        return None
    language, newline, code = parts[1].partition("\n")
    return code if newline and len(language) < 20 and code.strip() else None


def program(response: str) -> str | None:
    """The one program of a response: its only fenced block, or its answer if there is no fence."""
    if "```" in response:
        return code_block(response)
    return answer_text(response)


def _vectors(text: str, length: int, keys: tuple[str, ...]) -> list[tuple[float, ...]] | None:
    """Lists of ``length`` numbers: in JSON, as values of ``keys``, or as (1, 2) in plain text."""
    value = json_value(text)
    if isinstance(value, dict):
        value = [value]
    items: list[Any] | None = value if isinstance(value, list) else None
    if items is not None and _is_vector(items, length):
        if len(_loose_vectors(text, length)) == 1:
            return [tuple(map(float, items))]
        items = None
    if items is not None:
        rows = [_row(item, keys) for item in items]
        if not all(_is_vector(row, length) for row in rows):
            return None
        return [tuple(map(float, row)) for row in rows]
    return _loose_vectors(text, length) or None


def _loose_vectors(text: str, length: int) -> list[tuple[float, ...]]:
    """Lists of ``length`` numbers within a text, in brackets that all pair up.

    A reward that reads ``[3,,4]]`` as a point teaches to write it, since nothing is lost by it.
    """
    if any(text.count(opening) != text.count(closing) for opening, closing in ("[]", "()")):
        return []
    rows = [numbers(part) for part in TUPLE.findall(text) if SEPARATED.fullmatch(part)]
    return [tuple(row) for row in rows if len(row) == length]


def _row(item: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(item, dict):
        return item
    return next((item[key] for key in keys if key in item), None)


def _is_vector(value: Any, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(is_number(number) for number in value)
    )


def is_number(value: Any) -> bool:
    """A finite int or float that fits a float, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300


def boxes(text: str) -> list[Box] | None:
    """Every box; None if there is none, or one of them is empty or turned inside out."""
    rows = _vectors(text, 4, BOX_KEYS)
    if not rows or not all(row[0] < row[2] and row[1] < row[3] for row in rows):
        return None
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def points(text: str) -> list[Point] | None:
    """Every point (x, y); None if there is none."""
    rows = _vectors(text, 2, POINT_KEYS)
    return [(row[0], row[1]) for row in rows] if rows else None


def span(text: str) -> Span | None:
    """The one interval of a text with exactly two numbers, as in ``from 3.5 to 7 s``."""
    found = [abs(n) for n in numbers(text)]  # the minus of "3-7" is a dash, times start at 0
    if len(found) != 2 or found[0] >= found[1]:
        return None
    return found[0], found[1]


def integers(text: str) -> list[int] | None:
    """All whole numbers of a list; None if it is empty or another kind of number is among them."""
    found = numbers(text)
    if not found or any(number != int(number) for number in found):
        return None
    return [int(number) for number in found]
