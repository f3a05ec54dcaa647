"""transformers' own processors, for images and text alone and without torchvision.

A processor turns a conversation and its images into token ids and pixel tensors. Those of models
that also read videos want a video processor, which needs torchvision; nothing here shows a video,
so they are built without one. Images go through the PIL implementation on every machine: pixels are
then the same with and without torchvision.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

OPTIONS = (
    "image_seq_len",
    "image_seq_length",
    "patch_size",
    "vision_feature_select_strategy",
    "num_additional_image_tokens",
)
NO_OPTIONS = ("image_processor", "tokenizer", "video_processor", "processor_class", "auto_map")


def build_processor(model_type: str, **parts: Any) -> Any:
    """The processor of a model type from its tokenizer, image processor and options.

    Args:
        model_type: e.g. ``qwen2_5_vl``.
        parts: ``tokenizer``, ``image_processor`` and further arguments of its class.
    """
    original = _processor_class(model_type)
    if "video_processor" in original.get_attributes():
        processor = _without_video(original)(video_processor=None, **parts)
    else:
        processor = original(**parts)
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    return processor


def load_processor(source: str, model_type: str) -> Any:
    """The processor saved in a folder or on the hub; see ``build_processor``."""
    saved, _ = _processor_class(model_type).get_processor_dict(source)
    options = {name: value for name, value in saved.items() if name not in NO_OPTIONS}
    return build_processor(
        model_type,
        tokenizer=AutoTokenizer.from_pretrained(source, trust_remote_code=False),
        image_processor=AutoImageProcessor.from_pretrained(
            source, backend="pil", trust_remote_code=False
        ),
        **options,
    )


def save_processor(processor: Any, folder: str | Path) -> None:
    """Write what ``load_processor`` reads, in the layout of the hub."""
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    known = inspect.signature(type(processor).__init__).parameters
    options = {name: getattr(processor, name) for name in OPTIONS if name in known}
    (Path(folder) / "processor_config.json").write_text(
        json.dumps({"processor_class": type(processor).__name__, **options})
    )


def _processor_class(model_type: str) -> type[ProcessorMixin]:
    found: Any = PROCESSOR_MAPPING[type(AutoConfig.for_model(model_type))]
    assert issubclass(found, ProcessorMixin)
    return found


def _without_video(original: type[ProcessorMixin]) -> Any:
    """The same class, satisfied with None for its video processor."""

    def check(self: Any, name: str, argument: Any) -> Any:
        is_video = name == "video_processor"
        return None if is_video else original.check_argument_for_proper_class(self, name, argument)

    return type(original.__name__, (original,), {"check_argument_for_proper_class": check})
