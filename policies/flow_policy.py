"""What every flow-matching policy shares: sampling, re-scoring and imitation around a velocity.

A subclass supplies the velocity field over action chunks; ``embodied_rl.flow`` supplies the
samplers and likelihoods. What does not depend on the denoising time (the ``encoding`` of an
observation) is computed once per decision and shared by all denoise steps.

Axes: ``B`` rows, ``K`` denoise steps, ``S`` steps evaluated together, ``H`` predicted actions,
``D`` action dimension, ``U`` ratio units.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from embodied_rl import flow
from embodied_rl.flow import FlowConfig
from embodied_rl.losses.flow_matching import flow_matching_loss
from embodied_rl.policies.nn import VectorInput, draw_normal, draw_uniform, require_continuous
from embodied_rl.types import LogProbOutput, PolicyOutput, PolicySpec, TensorDict

EncodingT = TypeVar("EncodingT")
"""What the denoise steps of a decision share; the subclass's own type."""


class FlowPolicy(nn.Module, Generic[EncodingT]):
    """A policy whose chunk is the end of a denoising chain.

    A subclass provides ``encode``, ``denoise``, ``predict_value`` and ``vector_input``.

    Args:
        spec: environment description; continuous actions.
        flow: sampler and likelihood options.
        horizon: predicted actions per chunk, at least ``spec.chunk_length``; 0 means equal to it.
        values_from_encoding: the critic costs little once ``encode`` is done, so that ``sample``
            returns values also.

    Raises:
        ValueError: discrete actions, or a horizon below the chunk length.
    """

    vector_input: VectorInput

    def __init__(
        self, spec: PolicySpec, *, flow: FlowConfig, horizon: int, values_from_encoding: bool
    ) -> None:
        super().__init__()
        require_continuous(spec, "a flow policy")
        if horizon and horizon < spec.chunk_length:
            raise ValueError(
                f"policy.horizon {horizon} is below the chunk length {spec.chunk_length} that the "
                f"environment executes: set it to {spec.chunk_length} or more"
            )
        self.spec, self.flow, self.start_flow = spec, flow, flow
        self.horizon = horizon or spec.chunk_length
        self.values_from_encoding = values_from_encoding

    def encode(self, obs: TensorDict) -> EncodingT:
        """Encode what all denoise steps of a decision share."""
        raise NotImplementedError

    def denoise(self, encoding: EncodingT) -> flow.Denoise:
        """Bind the velocity field to an encoding."""
        raise NotImplementedError

    def predict_value(self, encoding: EncodingT) -> Tensor:
        """``[B]`` state values from an encoding, the same at every denoise step."""
        raise NotImplementedError

    def set_progress(self, progress: float) -> None:
        """Anneal the noise of the sampler linearly to ``anneal_to`` times its start."""
        self.flow = flow.annealed(self.start_flow, progress)

    def noise_mask(self, like: Tensor) -> Tensor | None:
        """``[H, D]`` bool on ``like``'s device: numbers that receive noise; None for all."""
        if self.flow.noise_dims == "all" or self.horizon == self.spec.chunk_length:
            return None
        shape = (self.horizon, self.spec.action_dim)
        mask = torch.zeros(shape, dtype=torch.bool, device=like.device)
        mask[: self.spec.chunk_length] = True
        return mask

    @torch.no_grad()
    def sample(
        self, obs: TensorDict, *, deterministic: bool = False, generator: torch.Generator | None
    ) -> PolicyOutput:
        """Draw chunks [B, H, D]; a deterministic sample follows the ode and has no likelihood.

        ``replay`` holds ``chain`` [B, K+1, H, D], ``joint_log_probs`` [B] and, for
        ``chain="single_step"``, ``step_index`` [B].
        """
        like = next(iter(obs.values()))
        encoding = self.encode(obs)
        denoise = self.denoise(encoding)
        values = self.predict_value(encoding) if self.values_from_encoding else None
        steps, executed = self.flow.num_denoise_steps, self.spec.chunk_length
        if deterministic:
            initial = self._initial(like, generator)
            actions = flow.ode_sample(denoise, initial, num_denoise_steps=steps)
            return PolicyOutput(actions=actions[:, :executed], values=values)
        shape = (len(like), 1 + steps, self.horizon, self.spec.action_dim)
        noise = draw_normal(shape, like=like, generator=generator)
        index = flow.draw_step_index(len(like), self.flow, generator=generator)
        if index is not None:
            index = index.to(like.device)
        mask = self.noise_mask(like)
        chain = flow.run_chain(
            denoise, noise[:, 0], noise[:, 1:], self.flow, noise_mask=mask, step_index=index
        )
        actions = chain.states[:, -1, :executed]
        replay = {"chain": chain.states}
        if index is not None:
            replay["step_index"] = index
        if self.flow.num_stochastic_steps == 0:
            return PolicyOutput(actions=actions, values=values, replay=replay)
        replay["joint_log_probs"] = _joint(chain.log_probs, mask)
        units = flow.reduce_units(chain.log_probs, self.flow, noise_mask=mask)
        return PolicyOutput(actions=actions, log_probs=units, values=values, replay=replay)

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        """Re-score stored chains; ``actions`` are their last state and are not used again."""
        encoding, chain = self.encode(obs), replay["chain"]
        log_probs, entropy = flow.score_chain(
            self.denoise(encoding), chain, self.flow, step_index=replay.get("step_index")
        )
        mask = self.noise_mask(chain)
        units = flow.reduce_units(log_probs, self.flow, noise_mask=mask)
        weights = flow.two_layer_weights(self.flow, units.shape[1])
        return LogProbOutput(
            log_probs=units,
            entropy=flow.reduce_units(entropy, self.flow, noise_mask=mask),
            values=self.predict_value(encoding),
            joint_log_probs=_joint(log_probs, mask),
            unit_weight=None if weights is None else weights[0].to(units.device),
            clip_scale=None if weights is None else weights[1].to(units.device),
        )

    def value(self, obs: TensorDict) -> Tensor:
        """``[B]`` state values."""
        return self.predict_value(self.encode(obs))

    def unit_mask(self, executed: Tensor) -> Tensor:
        """``[B, U]`` ratio units that took effect, from executed actions [B, H]."""
        return flow.unit_mask(
            executed, self.flow, horizon=self.horizon, action_dim=self.spec.action_dim
        )

    def ode_actions(self, obs: TensorDict, initial: Tensor) -> Tensor:
        """Differentiable ode samples [B, H, D] from given noise, for the W2 anchor (ReinFlow)."""
        denoise = self.denoise(self.encode(obs))
        return flow.ode_sample(denoise, initial, num_denoise_steps=self.flow.num_denoise_steps)

    def imitation_loss(
        self, obs: TensorDict, actions: Tensor, mask: Tensor, *, generator: torch.Generator | None
    ) -> Tensor:
        """Conditional flow matching on expert chunks.

        Args:
            obs: [B, ...] observations.
            actions: [B, H, D] expert chunks of the policy's horizon.
            mask: [B, H] bool, False past the end of the episode.
            generator: source of t and noise.

        Raises:
            ValueError: chunks of another length than the policy predicts.
        """
        if actions.shape[1:] != (self.horizon, self.spec.action_dim):
            raise ValueError(
                f"expert chunks are {list(actions.shape[1:])}, this policy predicts "
                f"{[self.horizon, self.spec.action_dim]}: cut the demonstrations into chunks of "
                f"{self.horizon} actions"
            )
        noise = draw_normal(actions.shape, like=actions, generator=generator)
        t = draw_uniform((len(actions), 1), like=actions, generator=generator)
        mixed = (1 - t[..., None]) * actions + t[..., None] * noise
        velocity, _ = self.denoise(self.encode(obs))(mixed.unsqueeze(1), t)
        loss, _ = flow_matching_loss(velocity.squeeze(1), noise, actions, mask=mask)
        return loss

    def _initial(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """x_1 of a deterministic sample, [B, H, D]."""
        shape = (len(like), self.horizon, self.spec.action_dim)
        if self.flow.greedy_start == "zero":
            return torch.zeros(shape, device=like.device)
        return draw_normal(shape, like=like, generator=generator)


def _joint(log_probs: Tensor, noise_mask: Tensor | None) -> Tensor:
    """Exact log-likelihood [B] of the noised numbers from terms [B, S, H, D]."""
    noised = log_probs if noise_mask is None else log_probs * noise_mask
    return noised.sum((1, 2, 3))
