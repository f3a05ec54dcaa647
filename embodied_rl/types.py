"""The records that flow between the parts, and the two protocols the parts meet at.

Axes: ``T`` decision step, ``N`` environment (or sampled response), ``B`` minibatch row,
``U`` ratio unit (1 chunk | H action | L token | K denoise step), ``H`` executed actions of a
chunk, ``D`` action dimension, ``K`` denoise steps, ``G`` group size.

A VQA or tool-use conversation is the same record: ``N`` responses, ``T`` turns, ``U`` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TensorDict = dict[str, Tensor]
"""Named tensors that share their leading axes. Observations and replay data are always this."""


@dataclass(frozen=True, kw_only=True)
class PolicyOutput:
    """What ``Policy.sample`` returns for a batch of ``B`` observations.

    Attributes:
        actions: ``[B, ...]`` as sampled, before any clipping.
        log_probs: ``[B, U]`` log-likelihood per ratio unit, or None where the policy has none
            (a deterministic sample).
        values: ``[B]`` state values, or None to have ``collect`` ask ``Policy.value`` once for the
            whole rollout, which is cheaper for critics that share nothing with the actor.
        unit_mask: ``[B, U]`` bool, the units that are real where their number differs between rows
            (tokens of an answer), or None to have ``collect`` ask ``Policy.unit_mask``. U, and the
            second axis of ``replay``, may then differ from one decision to the next; ``collect``
            fills the shorter ones up with False and 0.
        replay: whatever ``log_prob`` needs again (flow chain, denoise index, tokens); every tensor
            leads with ``B``. Two names are for algorithms: ``unfinished`` [B] bool, a limit of
            length cut the answer; ``numeric`` [B, U] bool, the unit is part of a number.
    """

    actions: Tensor
    log_probs: Tensor | None = None
    values: Tensor | None = None
    unit_mask: Tensor | None = None
    replay: TensorDict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LogProbOutput:
    """What ``Policy.log_prob`` returns for a batch of ``B`` stored actions.

    Attributes:
        log_probs: ``[B, U]``, differentiable.
        entropy: ``[B, U]`` in nats per ratio unit.
        values: ``[B]`` from the same trunk pass, or None for a policy without a critic.
        joint_log_probs: ``[B]`` exact log-likelihood of everything that was sampled, for honest
            logging where ``log_probs`` is scaled or partial (``joint_mean``); None means that
            ``log_probs.sum(-1)`` is already exact.
        unit_weight: ``[U]`` factor on the advantage per unit (discount of denoise steps, DPPO), or
            None for ones.
        clip_scale: ``[U]`` factor on the clip range per unit (DPPO), or None for ones.
    """

    log_probs: Tensor
    entropy: Tensor
    values: Tensor | None = None
    joint_log_probs: Tensor | None = None
    unit_weight: Tensor | None = None
    clip_scale: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a task in words: what a policy is asked, and what a reward checks it against.

    Attributes:
        task: name of the task that it is one of.
        prompt: text, in the order in which it is read.
        images: uint8 ``[height, width, 3]`` each, shown before the text.
        answer: the reference answer, as a model would write it.
        data: what else the task's reward needs (choices, boxes, spans, tolerances), by name.
    """

    task: str
    prompt: str
    answer: str
    images: tuple[npt.NDArray[np.uint8], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Experience of ``N`` environments over ``T`` decision steps; every field leads with [T, N].

    Attributes:
        obs: observation the action was sampled from.
        actions: ``[T, N, ...]`` as sampled, before clipping.
        log_probs: ``[T, N, U]`` under the policy that sampled.
        unit_mask: ``[T, N, U]`` bool, False for units that were not executed (actions after
            success inside a chunk, padding tokens).
        values: ``[T, N]`` V(s_t); zeros for a policy without a critic.
        next_values: ``[T, N]`` 0 if terminated, V(final_obs) if truncated, else V(s_{t+1}).
        rewards: ``[T, N]`` summed over the actions of a chunk.
        reward_terms: ``[T, N]`` each, by name; for logging and per-term normalisation.
        terminated, truncated: ``[T, N]`` bool, the episode ended with this step.
        success: ``[T, N]`` bool, the task was solved during this step.
        valid: ``[T, N]`` bool, False where the environment had already finished and was not
            stepped.
        num_env_steps: ``[T, N]`` int64 simulator steps that this decision took (at most H).
        group_ids: ``[T, N]`` int64, equal for trajectories with the same initial state and
            instruction.
        task_ids: ``[T, N]`` int64 index of the task or prompt.
        episode_ids: ``[T, N]`` int64, unique per trajectory over the life of the run.
        policy_version: ``[T, N]`` int64 number of updates behind the sampling parameters.
        replay: ``[T, N, ...]``, see ``PolicyOutput``.
    """

    obs: TensorDict
    actions: Tensor
    log_probs: Tensor
    unit_mask: Tensor
    values: Tensor
    next_values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    success: Tensor
    valid: Tensor
    num_env_steps: Tensor
    group_ids: Tensor
    task_ids: Tensor
    episode_ids: Tensor
    policy_version: Tensor
    reward_terms: TensorDict = field(default_factory=dict)
    replay: TensorDict = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        return self.rewards.shape[0], self.rewards.shape[1]

    @property
    def dones(self) -> Tensor:
        """``[T, N]`` bool: terminated or truncated."""
        return self.terminated | self.truncated


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """What an advantage function returns.

    Attributes:
        advantages: ``[T, N]`` (or ``[T, N, U]`` from token-level shaping).
        returns: ``[T, N]`` regression targets for the value function, or None if the estimator
            has no use for one.
        keep: ``[T, N]`` bool, False for rows that carry no gradient (uninformative groups,
            steps that were not executed). Losses divide by the kept count, so dropping rows never
            shrinks the step.
        stats: scalars to log.
    """

    advantages: Tensor
    keep: Tensor
    returns: Tensor | None = None
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A minibatch: ``B`` kept decision steps with everything a loss may need.

    Shapes are those of ``Rollout`` with [T, N] replaced by [B]; ``unit_mask`` is None where every
    unit was executed.
    """

    obs: TensorDict
    actions: Tensor
    log_probs: Tensor
    unit_mask: Tensor | None
    values: Tensor
    advantages: Tensor
    episode_ids: Tensor
    returns: Tensor | None = None
    replay: TensorDict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy must know of an environment to be built; plain data, saved in checkpoints.

    Attributes:
        obs_shapes: shape of one observation by name, without batch axis.
        obs_dtypes: torch dtype name by observation name (``"float32"``, ``"uint8"``).
        action_dim: D of one continuous action, or 0 for a discrete action space.
        num_actions: number of discrete actions, or 0 for a continuous action space.
        chunk_length: H, actions predicted and executed open loop per decision.
        num_tasks: number of task ids the environment can produce.
        text_bytes: A of an action in words, uint8 [A] with UTF-8 padded with zeros; else 0.
    """

    obs_shapes: Mapping[str, Sequence[int]]
    obs_dtypes: Mapping[str, str]
    action_dim: int = 0
    num_actions: int = 0
    chunk_length: int = 1
    num_tasks: int = 1
    text_bytes: int = 0


@runtime_checkable
class VectorEnv(Protocol):
    """``N`` environments stepped together: gymnasium.vector semantics with torch tensors.

    Observations are always a dict of tensors with leading axis N (a bare Box is named ``"state"``,
    or ``"image"`` if it is uint8 with three axes). A continuous action space is a Box in [-1, 1]
    where the simulator's own is bounded.

    ``metadata["autoreset_mode"]`` is ``gymnasium.vector.AutoresetMode.SAME_STEP`` (a finished row
    is reset inside the ``step`` that finished it, its last observation is in
    ``info["final_obs"]``) or ``DISABLED`` (a finished row is not stepped again until
    ``reset(options={"reset_mask": mask})``; it returns its last observation, zero reward and both
    flags False).

    ``info`` of ``step`` holds tensors: ``success`` [N] bool, solved during this step; ``valid``
    [N] bool, row was stepped; ``num_env_steps`` [N] int64; ``unit_mask`` [N, H] bool, executed
    actions of the chunk; ``step_rewards`` [N, H]; ``final_obs`` (a dense dict like obs) with
    ``_final_obs`` [N] bool; ``reward_terms`` [N] float32 by name, only where rewards have parts;
    ``episode`` = {``return``, ``length``, ``success_once``, ``success_at_end``} [N] with
    ``_episode`` [N] bool. An environment that can lose an episode
    (its process died) ends it as ``truncated``, with ``_episode`` and ``valid`` False and
    ``dropped`` [N] bool True, and counts its ``worker_restarts`` [N] int64 since the last step.
    """

    num_envs: int
    single_observation_space: gymnasium.spaces.Dict
    single_action_space: gymnasium.Space[Any]
    metadata: dict[str, Any]
    device: torch.device
    task_names: tuple[str, ...]
    """Name of every task id."""

    @property
    def task_ids(self) -> Tensor:
        """[N] int64: task of each row in its current episode."""
        ...

    @property
    def group_ids(self) -> Tensor:
        """[N] int64: rows with equal ids started from the same initial state and instruction."""
        ...

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instruction text of every task id."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TensorDict, dict[str, Any]]:
        """Start episodes. Options: ``reset_mask`` [N] bool, ``task_ids`` [N] int64."""
        ...

    def send(self, actions: Tensor) -> None:
        """Start a step without waiting for it; ``recv`` must follow."""
        ...

    def recv(self) -> tuple[TensorDict, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Wait for the step begun by ``send``; returns what ``step`` returns."""
        ...

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, Tensor, dict[str, Any]]:
        """(obs, rewards [N] float32, terminated [N] bool, truncated [N] bool, info)."""
        ...

    def state_dict(self) -> dict[str, Any] | None:
        """Exact state for a bitwise resume, or None if the simulator cannot be restored."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> TensorDict:
        """Restore ``state_dict``; returns the current observation."""
        ...

    def close(self) -> None:
        """Release simulators and worker processes."""
        ...


@runtime_checkable
class Policy(Protocol):
    """An ``nn.Module`` without per-episode state.

    Law, tested on every registered policy: ``log_prob`` of what was just sampled equals the
    sampled ``log_probs``; the same generator gives the same sample; permuting the batch (and its
    noise) permutes the output.
    """

    spec: PolicySpec

    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Draw actions for ``B`` observations."""
        ...

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Re-score stored actions in one trunk pass."""
        ...

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values; zeros for a policy without a critic."""
        ...

    def set_progress(self, progress: float) -> None:
        """Anneal exploration; ``progress`` in [0, 1] of the run."""
        ...

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, U]`` bool from ``executed`` [B, H] bool: which ratio units took effect."""
        ...


@runtime_checkable
class HasReference(Protocol):
    """A policy that knows its own start: adapters can be switched off instead of copying weights.

    ``reference`` is called once, when an algorithm is built. What it returns has ``log_prob``,
    ``state_dict`` and ``load_state_dict``.
    """

    def reference(self) -> Any:
        """The start policy, without gradient."""
        ...
