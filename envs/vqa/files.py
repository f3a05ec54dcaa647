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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from embodied_rl.envs.vqa.common import Image, Split, check_range, stable_hash
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
        max_image_side: pictures with a longer side are scaled down to this many pixels; 0: none
            are. Answers in pixels are not scaled with them.
    """

    path: str
    image_folder: str | None = None
    reward: str = "match"
    heldout_share: float = 0.1
    max_image_side: int = 0

    def __post_init__(self) -> None:
        check_range("heldout_share", self.heldout_share, 0.0, 1.0)
        check_range("max_image_side", self.max_image_side, 0, 16384)


@dataclass(frozen=True)
class _Row:
    """A row that has been checked: its question without pictures, and where they are."""

    question: Question
    pictures: tuple[Path | bytes, ...]
    names: tuple[str, ...]


class QuestionFile(Sequence[Question]):
    """The questions of one split of a file, in its order; pictures are read when asked for.

    Every row, and the head of every picture, is looked at once up front.

    Args:
        options: where they are.
        split: ``"train"`` or ``"heldout"``.

    Attributes:
        extent: (greatest height, greatest width, most pictures of a question); (1, 1, 0) if none.

    Raises:
        ValueError: a file type, a row or a picture that cannot be read; the message names the line.
    """

    def __init__(self, options: FileOptions, *, split: Split) -> None:
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
        self._side = options.max_image_side
        self._rows: list[_Row] = []
        folder = Path(options.image_folder) if options.image_folder else path.parent
        height, width, count = 1, 1, 0
        for place, row in readers[path.suffix](path):
            try:
                prompt, answer = _prompt(row), _answer(row)
                if _in_heldout(prompt, answer, options.heldout_share) != (split == "heldout"):
                    continue
                checked = _row(row, prompt, answer, folder, options.reward)
                for source, name in zip(checked.pictures, checked.names, strict=True):
                    size = _scaled_size(_size(source, name), self._side)
                    height, width = max(height, size[1]), max(width, size[0])
            except ValueError as error:
                raise ValueError(f"{path.name}, {place}: {error}") from None
            count = max(count, len(checked.pictures))
            self._rows.append(checked)
        self.extent = height, width, count

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Question: ...

    @overload
    def __getitem__(self, index: slice) -> list[Question]: ...

    def __getitem__(self, index: int | slice) -> Question | list[Question]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        row = self._rows[index]
        pictures = zip(row.pictures, row.names, strict=True)
        images = tuple(_decode(source, name, self._side) for source, name in pictures)
        return replace(row.question, images=images)

    def texts(self) -> list[Question]:
        """The questions without their pictures."""
        return [row.question for row in self._rows]


def load_questions(options: FileOptions, *, split: Split) -> list[Question]:
    """The questions of one split with their pictures, in the order of the file.

    Raises:
        ValueError: as `QuestionFile`.
    """
    return list(QuestionFile(options, split=split))


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


def _row(row: Mapping[str, Any], prompt: str, answer: str, folder: Path, reward: str) -> _Row:
    images = row.get("images", row.get("image"))
    if images is None:
        images = []
    listed = images if isinstance(images, list) else [images]
    found = [_picture(image, folder) for image in listed]
    question = Question(
        task=str(row.get("task") or row.get("data_source") or "vqa"),
        prompt=prompt,
        answer=answer,
        data={"key": repr((prompt, answer)), "reward": reward},
    )
    return _Row(question, tuple(source for source, _ in found), tuple(name for _, name in found))


def _picture(image: object, folder: Path) -> tuple[Path | bytes, str]:
    """Where a picture is, a path in ``folder`` or embedded bytes, and what to call it."""
    if isinstance(image, Mapping):
        data = image.get("bytes")
        if isinstance(data, str):
            try:
                data = base64.b64decode(data, validate=True)
            except binascii.Error:
                raise ValueError("the bytes of a picture in JSON must be base64 text") from None
        if data is not None:
            return data, "the embedded picture"
        image = image.get("path")
    if not isinstance(image, str):
        raise ValueError("a picture must be a path, or an object with bytes or path")
    path, root = (folder / image).resolve(), folder.resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"picture {image!r} lies outside the data folder: set image_folder")
    if not path.is_file():
        raise ValueError(f"picture {image!r} is missing from {folder}")
    return path, f"picture {image!r}"


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[PILImage.Image]:
    try:
        with PILImage.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            yield picture
    except (UnidentifiedImageError, OSError, PILImage.DecompressionBombError):
        raise ValueError(f"{name} is not a picture that Pillow reads") from None


def _size(source: Path | bytes, name: str) -> tuple[int, int]:
    """(width, height) from the head of a picture."""
    with _opened(source, name) as picture:
        return picture.size


def _scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) after scaling the longer side down to ``side`` pixels; 0: unchanged."""
    longest = max(size)
    if side == 0 or longest <= side:
        return size
    return max(round(size[0] * side / longest), 1), max(round(size[1] * side / longest), 1)


def _decode(source: Path | bytes, name: str, side: int) -> Image:
    """uint8 ``[height, width, 3]``."""
    with _opened(source, name) as picture:
        size = _scaled_size(picture.size, side)
        whole = picture.convert("RGB")
        return np.array(whole if size == whole.size else whole.resize(size))
