"""Tiny randomly initialised vision-language models, 0.7 to 2 million parameters, for tests.

Each has the architecture of its model type, a tokenizer made on the spot (``tokenizer.py``) and
images of 56x56 pixels, or 64x64, that become 4 tokens; ``qwen2_5_vl_small`` has half the layers and
a token per 14x14 pixels. Weights are drawn with standard deviation ``INIT_STD`` = 128**-0.5, the
width of the decoder: with the 0.02 of the large models these narrow ones were still at chance after
300 steps of imitation on questions that they answer after 200 with this. ``save`` writes one in the
layout of the hub:

    python -m embodied_rl.policies.vlm.presets qwen2_5_vl FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from embodied_rl.policies.vlm import efficientnet
from embodied_rl.policies.vlm.processing import build_processor, save_processor
from embodied_rl.policies.vlm.tokenizer import chat_tokenizer

PREFIX = "tiny/"
INIT_STD = 128**-0.5
TEXT: dict[str, Any] = {
    "initializer_range": INIT_STD,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
VISION: dict[str, Any] = {
    "initializer_range": INIT_STD,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_channels": 3,
}
QWEN_VISION: dict[str, Any] = {
    "initializer_range": INIT_STD,
    "hidden_size": 64,
    "intermediate_size": 128,
    "depth": 2,
    "num_heads": 4,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": TEXT["hidden_size"],
}
Preset = tuple[dict[str, Any], Any]
"""(keyword arguments of the configuration, processor)."""


def names() -> tuple[str, ...]:
    """What ``policy.model`` may be instead of a folder: ``tiny/<model type>``."""
    return tuple(PREFIX + kind for kind in PRESETS)


def build(name: str) -> tuple[Any, Any]:
    """(model, processor); the weights are drawn from torch's global generator.

    Raises:
        ValueError: unknown name.
    """
    kind = name.removeprefix(PREFIX)
    if kind not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: take one of {', '.join(names())}")
    options, processor = PRESETS[kind]()
    tokenizer = processor.tokenizer
    model_type = options.pop("model_type", kind)
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **options.pop("text_config", {}),
    }
    config = AutoConfig.for_model(model_type, text_config=text, tie_word_embeddings=True, **options)
    return AutoModelForImageTextToText.from_config(config), processor


def save(name: str, folder: str | Path) -> None:
    """Write a preset to ``folder`` as ``save_pretrained`` does (safetensors and JSON)."""
    model, processor = build(name)
    model.save_pretrained(folder)
    save_processor(processor, folder)


def _qwen(kind: str, patch: int, vision: dict[str, Any], least_side: int = 0) -> Preset:
    marks = ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer = chat_tokenizer(
        image="<|vision_start|><|image_pad|><|vision_end|>",
        special=marks,
        named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    ids = tokenizer.convert_tokens_to_ids
    side = least_side or 4 * patch
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": side**2, "longest_edge": 64 * (4 * patch) ** 2},
    )
    options = {
        "vision_config": {**QWEN_VISION, "patch_size": patch, **vision},
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    return options, build_processor(kind, tokenizer=tokenizer, image_processor=images)


def _qwen2_5_vl(patch: int = 14, least_side: int = 0) -> Preset:
    vision = {"window_size": 4 * patch, "fullatt_block_indexes": [1]}
    options, processor = _qwen("qwen2_5_vl", patch, vision, least_side)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    return {**options, "text_config": {"rope_parameters": rope}}, processor


def _qwen2_5_vl_small() -> Preset:
    options, processor = _qwen2_5_vl(patch=7, least_side=14)
    # 0.08 is about 1 / sqrt(width): with transformers' 0.02 such a narrow model learns next to
    # nothing in the first hundreds of steps
    start = {"initializer_range": 0.08}
    vision = {**options["vision_config"], **start}
    text = {**options["text_config"], **start, "num_hidden_layers": 2}
    return {
        **options,
        "model_type": "qwen2_5_vl",
        "vision_config": vision,
        "text_config": text,
    }, processor


def _qwen3_vl() -> Preset:
    vision = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    options, processor = _qwen("qwen3_vl", 16, vision)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5]}
    return {**options, "text_config": {"rope_parameters": rope, "head_dim": 32}}, processor


def _smolvlm() -> Preset:
    marks = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "video_token": "<video>",
    }
    tokenizer = chat_tokenizer(image="<image>", special=[], named=marks)
    images = transformers.SmolVLMImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}, do_image_splitting=False
    )
    processor = build_processor(
        "smolvlm", tokenizer=tokenizer, image_processor=images, image_seq_len=4
    )
    options = {
        "vision_config": {**VISION, "image_size": 56, "patch_size": 14},
        "text_config": {"model_type": "llama"},
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }
    return options, processor


def _internvl() -> Preset:
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = chat_tokenizer(image="<IMG_CONTEXT>", special=[], named=marks)
    images = transformers.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56})
    processor = build_processor(
        "internvl", tokenizer=tokenizer, image_processor=images, image_seq_length=4
    )
    options = {
        "vision_config": {**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        "text_config": {"model_type": "qwen2"},
        "image_seq_length": 4,
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    }
    return options, processor


def _gemma3() -> Preset:
    marks = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = chat_tokenizer(image="<start_of_image>", special=[], named=marks)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = build_processor(
        "gemma3", tokenizer=tokenizer, image_processor=images, image_seq_length=4
    )
    ids = tokenizer.convert_tokens_to_ids
    options = {
        "vision_config": {**VISION, "image_size": 56, "patch_size": 14},
        "text_config": {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "mm_tokens_per_image": 4,
        "boi_token_index": ids("<start_of_image>"),
        "eoi_token_index": ids("<end_of_image>"),
        "image_token_index": ids("<image_soft_token>"),
    }
    return options, processor


def _llava() -> Preset:
    tokenizer = chat_tokenizer(image="<image>", special=[], named={"image_token": "<image>"})
    images = transformers.ViTImageProcessorPil(size={"height": 64, "width": 64})
    processor = build_processor(
        "llava",
        tokenizer=tokenizer,
        image_processor=images,
        patch_size=32,
        vision_feature_select_strategy="full",
    )
    stages = [(1, 8, 1, 2, 3), (4, 16, 2, 2, 5), (4, 32, 1, 2, 3), (4, 64, 1, 2, 3)]
    options = {
        "vision_config": {
            "model_type": efficientnet.MODEL_TYPE,
            "stem": 8,
            "stages": stages,
            "taps": (2, 3),
            "image_size": 64,
        },
        "text_config": {"model_type": "llama"},
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": 4,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    return options, processor


def _paligemma() -> Preset:
    tokenizer = chat_tokenizer(image="", special=[], named={"image_token": "<image>"})
    tokenizer.chat_template = None  # its prompts are images, then text (see ``prompts``)
    images = transformers.SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, image_seq_length=4
    )
    options = {
        "vision_config": {**VISION, "image_size": 56, "patch_size": 28},
        "text_config": {"model_type": "gemma", "head_dim": 32},
        "projection_dim": TEXT["hidden_size"],
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    return options, build_processor("paligemma", tokenizer=tokenizer, image_processor=images)


PRESETS: dict[str, Callable[[], Preset]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_5_vl_small": _qwen2_5_vl_small,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "llava": _llava,
    "paligemma": _paligemma,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(PRESETS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    save(options.name, options.folder)
