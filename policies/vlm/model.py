"""Loading a vision-language model of transformers, and running its decoder on packed tokens.

Merging images into the prompt (features, their places, positions in two dimensions, features that
enter deeper layers) is left to each model: ``decoder_inputs`` lets it do so and takes what it hands
to its decoder. Prompt and answer tokens then go through the decoder as one sequence (``packing``).

Axes: ``P`` prompts, ``L`` tokens of the longest prompt, ``R`` answers, ``U`` tokens of the longest
answer, ``S`` packed tokens, ``E`` hidden features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from embodied_rl.policies.vlm import presets
from embodied_rl.policies.vlm.layers import replace_layers
from embodied_rl.policies.vlm.packing import ATTENTION, Decoding, Packing
from embodied_rl.policies.vlm.processing import load_processor
from embodied_rl.policies.vlm.prompts import Prompts
from embodied_rl.policies.vlm.scoring import Head
from embodied_rl.types import TensorDict


@dataclass(frozen=True)
class Family:
    """What differs between model types beyond what transformers hides.

    Attributes:
        first_position: position of the first token of a prompt.
        both_ways: prompt tokens that see each other in both directions.
    """

    first_position: int = 0
    both_ways: Literal["none", "image", "prompt"] = "none"


FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Family(),
    "qwen3_vl": Family(),
    "smolvlm": Family(),
    "internvl": Family(),
    "gemma3": Family(both_ways="image"),
    "llava": Family(),
    "paligemma": Family(first_position=1, both_ways="prompt"),
}
"""Model types whose outputs are compared with their own ``forward`` by a test."""


@dataclass(frozen=True)
class DecoderInputs:
    """What a decoder gets for prompts.

    Attributes:
        embeddings: ``[P, L, E]``.
        positions: int64 ``[P, L, C]``, C coordinates (1, or 3 for time, height and width).
        extra: further arguments, e.g. features that enter deeper layers at ``visual_pos_masks``.
    """

    embeddings: Tensor
    positions: Tensor
    extra: dict[str, Any] = field(default_factory=dict)


class _CaughtError(Exception):
    """Carries the arguments of a decoder out of the model that called it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def load(source: str, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model, processor) of a folder, a hub name or a preset; nothing is unpickled.

    Raises:
        ValueError: neither a preset nor loadable, or a model type that was never tried.
    """
    if source.startswith(presets.PREFIX):
        model, processor = presets.build(source)
        model.to(dtype)
    else:
        kind = _model_type(source)
        require_family(kind)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        processor = load_processor(source, kind)
    text = model.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        raise ValueError(f"{source} caps its attention scores, which policy vlm does not support")
    model.get_decoder().set_attn_implementation(ATTENTION)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # a ratio of likelihoods needs a likelihood without noise
    replace_layers(model)
    return model, processor


def _model_type(source: str) -> str:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    except (OSError, ValueError) as error:
        hint = "" if Path(source).is_dir() else " (no such folder here)"
        raise ValueError(
            f"policy.model={source!r} cannot be read{hint}: give the folder of a model in the "
            f"layout of the hub, a hub name, or one of {', '.join(presets.names())}"
        ) from error


def require_family(kind: str) -> Family:
    """The family of a model type.

    Raises:
        ValueError: it is not one of those that are tested.
    """
    if kind not in FAMILIES:
        raise ValueError(
            f"policy vlm was never tried with model type {kind!r}: take one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: that of the tokenizer and those of the model's own settings."""
    own = model.generation_config.eos_token_id
    own = [own] if isinstance(own, int) else list(own or ())
    return sorted({tokenizer.eos_token_id, *own})


def output_head(model: Any, *, temperature: float) -> Head:
    """The output layer of a model."""
    text = model.config.get_text_config()
    return Head(
        weight=model.get_output_embeddings().weight,
        temperature=temperature,
        cap=float(getattr(text, "final_logit_softcapping", None) or 0.0),
    )


def decoder_inputs(model: Any, prompts: Prompts) -> DecoderInputs:
    """Embeddings and positions of prompts, with their images in place."""
    decoder = model.get_decoder()

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _CaughtError(kwargs)

    hook = decoder.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.model(**prompts.inputs, use_cache=False)
        raise AssertionError("the model did not call its decoder")
    except _CaughtError as caught:
        given = caught.arguments
    finally:
        hook.remove()
    extra = {
        name: given[name]
        for name in ("visual_pos_masks", "deepstack_visual_embeds")
        if given.get(name) is not None
    }
    return DecoderInputs(given["inputs_embeds"], _positions(model, prompts, given), extra)


def _positions(model: Any, prompts: Prompts, given: dict[str, Any]) -> Tensor:
    """``[P, L, C]``: those of the model where they are more than a count of tokens."""
    positions = given.get("position_ids")
    if positions is not None and positions.ndim == 3:
        return positions[-3:].permute(1, 2, 0)  # a fourth one, in front, counts tokens
    first = FAMILIES[model.config.model_type].first_position
    return (prompts.mask.cumsum(1) - 1).clamp(min=0).unsqueeze(2) + first


def next_positions(inputs: DecoderInputs, mask: Tensor) -> Tensor:
    """``[P]`` position of the first token after each prompt, the same in all coordinates."""
    last = inputs.positions.amax(2).masked_fill(~mask, -1)
    return last.amax(1) + 1


def blocks(model: Any, prompts: Prompts) -> Tensor | None:
    """``[P, L]`` number of the block of tokens that see each other in both directions, or -1."""
    both_ways = FAMILIES[model.config.model_type].both_ways
    if both_ways == "none":
        return None
    if both_ways == "prompt":
        return prompts.mask.long() - 1
    image = prompts.inputs["token_type_ids"] == 1
    starts = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    return torch.where(image, starts.cumsum(1) - 1, -1)


def run_packed(
    model: Any, inputs: DecoderInputs, layout: Packing, *, tokens: Tensor, mask: Tensor
) -> Tensor:
    """Hidden states ``[S, E]`` of prompts and answers.

    Args:
        model: of ``load``.
        inputs: of ``decoder_inputs``.
        layout: which answer belongs to which prompt.
        tokens: ``[R, U]`` int64 answer tokens.
        mask: ``[P, L]`` bool, prompt tokens that are real.
    """
    decoder = model.get_decoder()
    answers = decoder.get_input_embeddings()(tokens)
    embeddings = layout.pack(inputs.embeddings, answers.to(inputs.embeddings.dtype))
    units = torch.arange(tokens.shape[1], device=tokens.device)
    following = next_positions(inputs, mask)[layout.rows].unsqueeze(1) + units
    positions = layout.pack(
        inputs.positions, following.unsqueeze(2).expand(-1, -1, inputs.positions.shape[2])
    )
    extra = dict(inputs.extra)
    if "visual_pos_masks" in extra:
        shown = extra["visual_pos_masks"].view(mask.shape)
        extra["visual_pos_masks"] = layout.pack(shown, torch.zeros_like(tokens).bool())[None]
    return _run(decoder, embeddings[None], positions[None], layout, extra)[0]


def run_step(model: Any, layout: Decoding, *, tokens: Tensor, positions: Tensor) -> Tensor:
    """Hidden states ``[R, E]`` after one more token ``[R]`` at ``positions`` ``[R, C]``."""
    decoder = model.get_decoder()
    embeddings = decoder.get_input_embeddings()(tokens).unsqueeze(1)
    hidden = _run(decoder, embeddings, positions.unsqueeze(1), layout, {})[:, 0]
    layout.advance()
    return hidden


def _run(
    decoder: Any, embeddings: Tensor, positions: Tensor, layout: Any, extra: TensorDict
) -> Tensor:
    """``[rows, tokens, E]``; ``positions`` are ``[rows, tokens, C]``."""
    coordinates = positions.shape[2]
    positions = positions.permute(2, 0, 1) if coordinates > 1 else positions[..., 0]
    # a mask with four axes is passed on as it is, and ``layout`` knows better
    no_mask = embeddings.new_zeros((1, 1, 1, 1))
    output = decoder(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=no_mask,
        use_cache=False,
        layout=layout,
        **extra,
    )
    return output.last_hidden_state
