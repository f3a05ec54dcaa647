"""Questions of your own: JSONL and parquet files, and LLaVA-style conversations.

A row of JSONL or parquet holds

- ``prompt``: text, or a list of messages ``{"role", "content"}``, of which the last user turn
counts;
- ``images`` (or ``image``): paths inside the data folder, or ``{"bytes": ...}`` / ``{"path": ...}``
  as parquet files of picture sets have them (bytes as base64 text in JSONL);
- ``answer``, or ``reward_model.ground_truth`` as verl writes it, or ``solution``;
- ``task``, or ``data_source``; without either the task is ``"vqa"``.

A LLaVA file is a JSON list of ``{"id", "image", "conversations": [{"from": "human", ...}, ...]}``:
every human turn is a question and the turn of "gpt" after it the answer; ``<image>`` tokens are
taken out.

Held out: rows whose prompt and answer hash into a fixed share, so that a question is on the same
side in every file that has it, in every order.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embodied_rl.envs.vqa.common import Image, Split, stable_hash
from embodied_rl.types import Question

IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Where the questions are.

    Attributes:
        path: of a ``.jsonl`` or ``.parquet`` file of rows, or a ``.json`` file of conversations.
        image_folder: that image paths are relative to; None: the folder of ``path``.
        reward: name of the reward that checks the answers.
        heldout_share: of rows that are held out.
    """

    path: str
    image_folder: str | None = None
    reward: str = "exact_match"
    heldout_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.heldout_share <= 1.0:
            raise ValueError(f"heldout_share is {self.heldout_share}: choose a value from 0 to 1")


def load_questions(options: FileOptions, *, split: Split) -> list[Question]:
    """The questions of one split, in the order of the file.

    Raises:
        ValueError: a file type, a row or a picture that cannot be read; the message names the line.
    """
    path = Path(options.path)
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}: give the path of a .jsonl, .parquet or .json file"
        )
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".json": _conversation_rows}
    if path.suffix not in readers:
        raise ValueError(
            f"{path.name} ends in {path.suffix!r}: give a .jsonl, .parquet or .json file"
        )
    folder = Path(options.image_folder) if options.image_folder else path.parent
    questions = []
    for place, row in readers[path.suffix](path):
        try:
            prompt, answer = _prompt(row), _answer(row)
            if _in_heldout(prompt, answer, options.heldout_share) == (split == "heldout"):
                questions.append(_question(row, prompt, answer, folder, options.reward))
        except ValueError as error:
            raise ValueError(f"{path.name}, {place}: {error}") from None
    return questions


def _in_heldout(prompt: str, answer: str, share: float) -> bool:
    return stable_hash(f"{prompt}\0{answer}") % 10_000 < round(10_000 * share)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name}, line {number}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path.name}, line {number}: a row must be a JSON object")
            yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet as pq

    number = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


def _conversation_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(items, list):
        raise ValueError(f"{path.name}: a file of conversations is a JSON list")
    for number, item in enumerate(items, start=1):
        turns = item.get("conversations") if isinstance(item, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(f"{path.name}, item {number}: it has no list of conversations")
        for asked, told in pairwise(turns):
            if asked.get("from") == "human" and told.get("from") == "gpt":
                row = {"prompt": asked.get("value"), "answer": told.get("value")}
                yield f"item {number}", row | {"image": item.get("image")}


def _prompt(row: Mapping[str, Any]) -> str:
    prompt = row.get("prompt", row.get("question", row.get("problem")))
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        asked = [m for m in prompt if isinstance(m, Mapping) and m.get("role") == "user"]
        prompt = asked[-1].get("content") if asked else None
    if not isinstance(prompt, str) or not prompt.replace(IMAGE_TOKEN, "").strip():
        raise ValueError("the row has no prompt: give text, or messages with a user turn")
    return prompt.replace(IMAGE_TOKEN, "").strip()


def _answer(row: Mapping[str, Any]) -> str:
    answer = row.get("answer")
    checked = row.get("reward_model")
    if answer is None and isinstance(checked, Mapping):
        answer = checked.get("ground_truth")
    if answer is None:
        answer = row.get("solution")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError("the row has no answer: give answer or reward_model.ground_truth")
    return str(answer)


def _question(
    row: Mapping[str, Any], prompt: str, answer: str, folder: Path, reward: str
) -> Question:
    images = row.get("images", row.get("image"))
    if images is None:
        images = []
    listed = images if isinstance(images, list) else [images]
    return Question(
        task=str(row.get("task") or row.get("data_source") or "vqa"),
        prompt=prompt,
        answer=answer,
        images=tuple(_image(image, folder) for image in listed),
        data={"key": repr((prompt, answer)), "reward": reward},
    )


def _image(image: object, folder: Path) -> Image:
    """Picture from a path in ``folder`` or embedded bytes, uint8 ``[height, width, 3]``."""
    if isinstance(image, Mapping):
        data = image.get("bytes")
        if data is None:
            image = image.get("path")
        elif isinstance(data, str):
            try:
                return _decode(base64.b64decode(data, validate=True), "the embedded picture")
            except binascii.Error:
                raise ValueError("the bytes of a picture in JSON must be base64 text") from None
        else:
            return _decode(data, "the embedded picture")
    if not isinstance(image, str):
        raise ValueError("a picture must be a path, or an object with bytes or path")
    path, root = (folder / image).resolve(), folder.resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"picture {image!r} lies outside the data folder: set image_folder")
    if not path.is_file():
        raise ValueError(f"picture {image!r} is missing from {folder}")
    return _decode(path.read_bytes(), f"picture {image!r}")


def _decode(data: bytes, name: str) -> Image:
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    try:
        with PILImage.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError):
        raise ValueError(f"{name} is not a picture that Pillow reads") from None
