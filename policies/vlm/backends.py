"""Who generates answers: the policy's own model, or an inference engine that follows its weights.

An engine samples from its own copy of the weights, in its own arithmetic: pi_backend instead of
the pi_old that is differentiated. The policy scores the answers and records log-probabilities of
pi_old; those of the engine are kept beside them (``replay["backend_log_probs"]``), so that a loss
can correct for the difference (``losses.mismatch``).

* Weights are pushed when they have changed since the last push, before anything is generated.
* Before its first answers, an engine answers a few of the questions at hand, and the run is refused
  if the two log-probabilities of those tokens differ by more than ``parity_tolerance`` on average.

Axes: ``B`` rows, ``U`` tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from embodied_rl.policies.vlm.adapters import merged_weights
from embodied_rl.policies.vlm.generation import Answers
from embodied_rl.types import LogProbOutput, TensorDict

PARITY_ROWS, PARITY_TOKENS = 8, 16


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Options of a backend.

    Attributes:
        backend: ``transformers``, the policy's own model, or ``vllm``.
        parity_tolerance: largest mean difference of the log-probabilities of an engine and of the
            policy, in nats per token, with which a run may start.
        context: longest prompt and answer together, in tokens, that an engine has room for; at most
            the positions of the model.
        gpu_memory: share of a GPU's memory that an engine takes; on a CPU its keys and values take
            1 GiB, or the GiB in the environment variable VLLM_CPU_KVCACHE_SPACE.
    """

    backend: Literal["transformers", "vllm"] = "transformers"
    parity_tolerance: float = 0.05
    context: int = 4096
    gpu_memory: float = 0.3

    def __post_init__(self) -> None:
        """Refuse options that do nothing."""
        names = ("parity_tolerance", "context", "gpu_memory")
        unused = [name for name in names if getattr(self, name) != getattr(Generation, name)]
        if self.backend == "transformers" and unused:
            raise ValueError(
                f"{unused[0]} is unused with backend transformers: leave it out, or set backend to "
                "vllm"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn; see ``policy.VLM``.

    Attributes:
        max_new_tokens: longest answer.
        temperature: divides the logits.
        top_k, top_p: words that sampling is narrowed to; 0 and 1 keep all.
        stop: strings that end an answer, of which they stay a part.
        end_tokens: tokens that end an answer, of which they stay a part.
        greedy: take the most probable word; temperature, top_k and top_p do not matter then.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = ()
    greedy: bool = False


class Engine(Protocol):
    """What a backend must do."""

    def generate(self, obs: TensorDict, sampling: Sampling, *, seeds: Tensor) -> Answers:
        """Answer B conversations with their images.

        Args:
            obs: [B, ...] conversations, see ``policies/vlm/prompts.py``.
            sampling: how.
            seeds: int64 [B], of the noise of every row; equal seeds and weights give equal answers.

        Returns:
            Tokens, and log-probabilities over all words at ``sampling.temperature``.
        """
        ...

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over weights, under the names that transformers has for them, in place."""
        ...


class FollowingEngine:
    """An engine that is started when it is first asked and kept at the weights of a policy.

    Args:
        start: makes the engine of a policy; its weights need not be those of the policy.
        name: of the backend, for messages.
        tolerance: see ``Generation.parity_tolerance``.
    """

    def __init__(self, start: Callable[[Any], Engine], *, name: str, tolerance: float) -> None:
        self.start, self.name, self.tolerance = start, name, tolerance
        self.engine: Engine | None = None
        self._pushed: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> FollowingEngine:
        """One that is not started: a copy of a policy has weights of its own."""
        return FollowingEngine(self.start, name=self.name, tolerance=self.tolerance)

    def generate(
        self, policy: Any, obs: TensorDict, sampling: Sampling, *, seeds: Tensor
    ) -> Answers:
        """Answers [B] of the engine at the present weights of ``policy``.

        Args:
            policy: has ``model`` and ``log_prob``.
            obs: see ``Engine.generate``, as the other arguments.
            sampling: how.
            seeds: of the rows.

        Raises:
            ValueError: the log-probabilities of engine and policy differ too much.
        """
        first = self.engine is None
        if self.engine is None:
            self.engine = self.start(policy)
        present = _content(policy.model)
        if present != self._pushed:
            self.engine.update(merged_weights(policy.model))
            self._pushed = present
        if first:
            self._check(policy, obs, sampling)
        return self.engine.generate(obs, sampling, seeds=seeds)

    def _check(self, policy: Any, obs: TensorDict, sampling: Sampling) -> None:
        assert self.engine is not None
        rows = {name: value[:PARITY_ROWS] for name, value in obs.items()}
        probe = Sampling(
            max_new_tokens=min(PARITY_TOKENS, sampling.max_new_tokens),
            temperature=sampling.temperature,
            end_tokens=sampling.end_tokens,
        )
        answers = self.engine.generate(rows, probe, seeds=torch.arange(len(rows["chat"])))
        found = score(policy, rows, answers).log_probs
        difference = (found - answers.log_probs).abs()[answers.mask]
        mean = float(difference.mean())
        if not mean <= self.tolerance:
            raise ValueError(
                f"{self.name} and the policy disagree: the log-probabilities of "
                f"{len(difference)} tokens differ by {mean:.3g} nats on average (at most "
                f"{float(difference.max()):.3g}), more than policy.generation.parity_tolerance="
                f"{self.tolerance:g}: raise it if policy.dtype rounds as much, or set "
                "policy.generation.backend to transformers"
            )


@torch.no_grad()
def score(policy: Any, obs: TensorDict, answers: Answers) -> LogProbOutput:
    """The answers B under a policy."""
    replay = {"tokens": answers.tokens, "num_tokens": answers.lengths}
    return policy.log_prob(obs, answers.tokens, replay)


@torch.no_grad()
def _content(model: Any) -> list[int]:
    """One number per weight, of its bits; version counters miss what fused optimisers write."""
    hashes = [torch.hash_tensor(weight).view(torch.int64) for weight in model.parameters()]
    return torch.stack(hashes).tolist()
