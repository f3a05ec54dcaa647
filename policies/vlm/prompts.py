"""From observations to what a vision-language model reads.

An observation is a conversation (``chat``, UTF-8 JSON) and its images (``images``, each in the
upper left corner of its frame, ``image_sizes`` high and wide). Rows with equal observations are one
prompt: ``unique_prompts`` finds them, the processor is asked once, and what it made is kept for as
long as it fits into memory.

Axes: ``B`` rows of an observation, ``P`` different prompts, ``L`` tokens of the longest prompt,
``M`` images of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from embodied_rl.types import TensorDict

CACHE_BYTES = 256 * 2**20
NAMES = ("chat", "images", "image_sizes")
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Prompts:
    """Different prompts of a batch.

    Attributes:
        singles: what the processor made of each of the P prompts.
        rows: ``[B]`` int64, the prompt of every row.
        padding: the token that prompts are filled up with.
    """

    singles: Sequence[TensorDict]
    rows: Tensor
    padding: int

    @cached_property
    def inputs(self) -> TensorDict:
        """What the model takes; tensors per token are ``[P, L]``, filled up on the left."""
        batch = collate(self.singles, padding=self.padding)
        return {name: value.to(self.rows.device) for name, value in batch.items()}

    @property
    def mask(self) -> Tensor:
        """``[P, L]`` bool, the tokens that are real."""
        return self.inputs["attention_mask"].bool()

    def select(self, rows: Tensor) -> Prompts:
        """Those of some rows ``[b]``, which keep their order."""
        kept, inverse = self.rows[rows].unique(return_inverse=True)
        return Prompts([self.singles[n] for n in kept.tolist()], inverse, self.padding)

    def portions(self, lengths: Tensor, *, at_once: int) -> list[Tensor]:
        """All rows in portions ``[b]`` int64 of about ``at_once`` tokens, a row being the least.

        Rows of one prompt stay together where they fit into a portion, and are neighbours else.

        Args:
            lengths: ``[B]`` int64, tokens that follow the prompt in every row.
            at_once: tokens of prompts and rows together.
        """
        groups: list[list[int]] = [[] for _ in self.singles]
        for row, prompt in enumerate(self.rows.tolist()):
            groups[prompt].append(row)
        sizes, portions, left = lengths.tolist(), [], 0
        for single, group in zip(self.singles, groups, strict=True):
            own = single["input_ids"].shape[1]
            whole = own + sum(sizes[row] for row in group)
            fresh = whole > left
            for row in group:
                if fresh or sizes[row] > left:
                    portions.append([])
                    left = at_once - own
                elif row == group[0]:
                    left -= own
                fresh = False
                portions[-1].append(row)
                left -= sizes[row]
        return [torch.tensor(rows, device=self.rows.device) for rows in portions]


class PromptReader:
    """Reads observations with a model's processor.

    Args:
        processor: of ``processing.load_processor``.
        cache_bytes: of processed prompts that are kept.
    """

    def __init__(self, processor: Any, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.processor = processor
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[bytes, TensorDict] = OrderedDict()
        self._size = 0

    def __call__(self, obs: TensorDict) -> Prompts:
        """The different prompts of ``obs`` [B, ...] in the order of their first rows.

        Raises:
            ValueError: a conversation that is no JSON, or names another number of images.
        """
        arrays = {name: obs[name].cpu().numpy() for name in NAMES if name in obs}
        rows, firsts, keys = unique_prompts(arrays)
        parts = [self._prompt(arrays, first, key) for first, key in zip(firsts, keys, strict=True)]
        return Prompts(
            parts,
            rows=torch.tensor(rows, device=obs["chat"].device),
            padding=int(self.processor.tokenizer.pad_token_id),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptReader:
        """A reader of its own that shares the processor, which is not changed by reading."""
        return PromptReader(self.processor, cache_bytes=self.cache_bytes)

    def _prompt(self, arrays: dict[str, np.ndarray], row: int, key: bytes) -> TensorDict:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        prompt = self._read(arrays, row)
        self._cache[key] = prompt
        self._size += _bytes(prompt)
        while self._size > self.cache_bytes and len(self._cache) > 1:
            self._size -= _bytes(self._cache.popitem(last=False)[1])
        return prompt

    def render(self, arrays: dict[str, np.ndarray], row: int) -> tuple[str, list[Image.Image]]:
        """(text of one conversation in the format of the model, its images).

        Raises:
            ValueError: see ``__call__``.
        """
        messages = read_chat(arrays["chat"][row])
        images = read_images(arrays, row)
        wanted = sum(part.get("type") == "image" for part in _parts(messages))
        if wanted != len(images):
            raise ValueError(
                f"a conversation shows {wanted} images and its observation holds {len(images)}: "
                "give image_sizes above 0 to exactly those images that the chat names"
            )
        if self.processor.chat_template is None:
            return self._plain(messages, images), images
        text = self.processor.tokenizer.apply_chat_template(
            messages,
            chat_template=self.processor.chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return text, images

    def _plain(self, messages: list[dict[str, Any]], images: list[Image.Image]) -> str:
        """A prompt of PaliGemma: its images, then what all messages say, nobody being named."""
        text = "\n".join(part["text"] for part in _parts(messages) if part["type"] == "text")
        if images:
            return self.processor.image_token * len(images) + text
        return f"{self.processor.tokenizer.bos_token}{text}\n"

    def _read(self, arrays: dict[str, np.ndarray], row: int) -> TensorDict:
        text, images = self.render(arrays, row)
        if self.processor.chat_template is None and not images:
            output = self.processor.tokenizer(  # a processor without a template wants images
                [text], add_special_tokens=False, return_token_type_ids=True, return_tensors="pt"
            )
        else:
            output = self.processor(
                text=[text], images=[images] if images else None, return_tensors="pt"
            )
        # the prompt is its own label where no answer is given along with it
        return {k: v for k, v in output.items() if isinstance(v, Tensor) and k != "labels"}


def unique_prompts(arrays: dict[str, np.ndarray]) -> tuple[list[int], list[int], list[bytes]]:
    """(prompt of every row, first row of every prompt, digest of every prompt)."""
    seen: dict[bytes, int] = {}
    rows, firsts = [], []
    for row in range(len(arrays["chat"])):
        content = b"".join(value[row].tobytes() for value in arrays.values())
        if content not in seen:
            seen[content] = len(seen)
            firsts.append(row)
        rows.append(seen[content])
    return rows, firsts, [hashlib.blake2b(content, digest_size=16).digest() for content in seen]


def read_chat(data: np.ndarray) -> list[dict[str, Any]]:
    """The messages in zero-padded bytes; no bytes (padding of a rollout) are an empty message.

    Raises:
        ValueError: no JSON list.
    """
    text = data.tobytes().rstrip(b"\0")
    if not text:
        return [{"role": "user", "content": ""}]
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"obs['chat'] must be a JSON list of messages, not {text[:60]!r}: was it cut off?"
        ) from error
    if not isinstance(messages, list):
        raise ValueError(f"obs['chat'] must be a JSON list of messages, not {text[:60]!r}")
    return messages


def read_images(arrays: dict[str, np.ndarray], row: int) -> list[Image.Image]:
    """The images of one row, cut to their sizes."""
    if "images" not in arrays:
        return []
    sizes = arrays["image_sizes"][row]
    frames = arrays["images"][row]
    return [
        Image.fromarray(np.ascontiguousarray(frame[:height, :width]))
        for frame, (height, width) in zip(frames, sizes, strict=True)
        if height > 0
    ]


def collate(prompts: Sequence[TensorDict], *, padding: int) -> TensorDict:
    """One batch of single prompts.

    Tensors per token are filled up on the left (``input_ids`` with ``padding``, others with 0),
    images per prompt ``[1, M, ...]`` with images of zeros, which models leave out; other tensors
    are put one after the other.
    """
    names = sorted({name for prompt in prompts for name in prompt})
    length = max(prompt["input_ids"].shape[1] for prompt in prompts)
    batch: TensorDict = {}
    for name in names:
        values = [prompt[name] for prompt in prompts if name in prompt]
        if name in PER_TOKEN:
            fill = padding if name == "input_ids" else 0
            values = [_fill_left(value, length, fill) for value in values]
        elif _counts_images(name, values[0]):
            most = max(value.shape[1] for value in values)
            empty = {"prompts": prompts, "name": name, "like": values[0][:, :1]}
            values = [_fill_images(value, most) for value in _with_missing(**empty)]
        batch[name] = torch.cat(values)
    return batch


def _counts_images(name: str, value: Tensor) -> bool:
    """Whether a tensor is ``[1, M, ...]``: SmolVLM's pixels and their mask."""
    return (name == "pixel_values" and value.ndim == 5) or name == "pixel_attention_mask"


def _with_missing(*, prompts: Sequence[TensorDict], name: str, like: Tensor) -> list[Tensor]:
    return [prompt.get(name, torch.zeros_like(like)) for prompt in prompts]


def _fill_images(value: Tensor, count: int) -> Tensor:
    shape = (1, count - value.shape[1], *value.shape[2:])
    return torch.cat([value, value.new_zeros(shape)], 1)


def _fill_left(value: Tensor, length: int, fill: int) -> Tensor:
    return torch.cat([value.new_full((1, length - value.shape[1]), fill), value], 1)


def _parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts of all messages; a content that is a string is one text."""
    parts: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


def _bytes(prompt: TensorDict) -> int:
    return sum(value.numel() * value.element_size() for value in prompt.values())
