"""From configuration to objects: environments, policies, and policies out of checkpoints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import nn

from embodied_rl import checkpoint
from embodied_rl.checkpoint import CheckpointError
from embodied_rl.config import ConfigError, EnvConfig, TrainConfig, from_yaml
from embodied_rl.envs import make_env
from embodied_rl.envs.shards import ShardedVectorEnv
from embodied_rl.envs.spaces import MixedSpace, TextSpace
from embodied_rl.policies import make_policy
from embodied_rl.policies.nn import ScaledCritic
from embodied_rl.registry import near_names, options_of, registry
from embodied_rl.seeding import derive_seed
from embodied_rl.types import Policy, PolicySpec, VectorEnv


def build_env(
    config: EnvConfig,
    *,
    seed: int,
    autoreset: bool,
    num_envs: int | None = None,
    group_size: int | None = None,
    chunk_length: int | None = None,
    device: str | torch.device = "cpu",
    episode_seeds: Sequence[int] | None = None,
    normalize: bool = True,
    options: dict[str, Any] | None = None,
) -> VectorEnv:
    """The environment a configuration describes, wrappers included.

    Args:
        config: simulator and wrapper options.
        seed: root of the per-environment streams.
        autoreset: SAME_STEP if True, else DISABLED.
        num_envs: replaces that of ``config`` (evaluation, collection).
        group_size: likewise.
        chunk_length: likewise.
        device: of observations, rewards and flags.
        episode_seeds: [N] simulator seed of each row's episode (evaluation).
        normalize: wrap with the running observation statistics that ``config`` asks for.
        options: further options of the simulator.

    Raises:
        ValueError: options that the simulator refuses.
    """
    from embodied_rl.envs.wrappers import InstructionEmbedding, NormalizeObservation

    env = make_env(
        config.simulator.name,
        num_envs=num_envs or config.num_envs,
        seed=seed,
        chunk_length=chunk_length or config.chunk_length,
        max_episode_steps=config.max_episode_steps or None,
        autoreset=autoreset,
        group_size=group_size or config.group_size,
        device=str(device),  # as the option is written, so that "cpu" is its default
        num_threads=config.num_threads or None,
        episode_seeds=episode_seeds,
        **{**config.simulator.options, **(options or {})},
    )
    if config.instruction_embedding != "none":
        from embodied_rl.instructions import embed_instructions

        table = embed_instructions(env.instructions, kind=config.instruction_embedding)
        env = InstructionEmbedding(env, table=table)
    if config.normalize_obs and normalize:
        env = NormalizeObservation(env)
    return env


def build_training_env(
    config: EnvConfig, *, seed: int, autoreset: bool, device: str | torch.device
) -> VectorEnv:
    """The environment that a run trains on: ``config.num_shards`` environments taking turns.

    Threads or worker processes are shared out among the shards; see ``build_env``.
    """
    count = config.num_shards
    if count == 1:
        return build_env(config, seed=seed, autoreset=autoreset, device=device)
    part = dataclasses.replace(config, num_envs=config.num_envs // count)
    if "num_threads" in options_of(registry("envs").get(config.simulator.name)):
        threads = config.num_threads or len(os.sched_getaffinity(0))
        part = dataclasses.replace(part, num_threads=max(threads // count, 1))
    envs = [
        build_env(part, seed=derive_seed(seed, "shard", i), autoreset=autoreset, device=device)
        for i in range(count)
    ]
    return ShardedVectorEnv(envs, group_size=config.group_size)


def usable_device(name: str) -> torch.device:
    """The device called ``name``, checked to be there.

    Raises:
        ConfigError: no such device on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        usable = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        raise ConfigError(
            f"device={name!r} cannot be used here ({str(error).splitlines()[0]}): take one of "
            f"{', '.join(usable)}, see `embodied-rl doctor`"
        ) from error
    return device


def policy_spec(env: VectorEnv, config: EnvConfig) -> PolicySpec:
    """What a policy must know of an environment.

    Raises:
        ConfigError: ``config.observations`` names one that the environment does not have.
        ValueError: an action space that is no flat Box, Discrete or text.
    """
    spaces = dict(env.single_observation_space.spaces)
    for name in config.observations:
        if name not in spaces:
            hint = near_names(name, spaces)
            raise ConfigError(
                f"env.observations: there is no {name!r}{hint} (there are: {', '.join(spaces)})"
            )
    if config.observations:
        spaces = {name: spaces[name] for name in config.observations}
    action = env.single_action_space
    text = action.shape[0] if isinstance(action, TextSpace) else 0
    if text:
        continuous, discrete = 0, 0
    elif isinstance(action, MixedSpace):
        continuous, discrete, text = action.numbers, 0, action.text_bytes
    elif isinstance(action, gymnasium.spaces.Discrete):
        continuous, discrete = 0, int(action.n)
    elif isinstance(action, gymnasium.spaces.Box) and len(action.shape) == 1:
        continuous, discrete = action.shape[0], 0
    else:
        raise ValueError(f"policies take a flat Box, Discrete or text action space, not {action}")
    return PolicySpec(
        obs_shapes={name: tuple(space.shape or ()) for name, space in spaces.items()},
        obs_dtypes={name: str(space.dtype) for name, space in spaces.items()},
        action_dim=continuous,
        num_actions=discrete,
        chunk_length=config.chunk_length,
        num_tasks=len(env.task_names),
        text_bytes=text,
    )


def build_policy(config: TrainConfig, spec: PolicySpec) -> Policy:
    """A freshly initialised policy; its weights are a function of the seed alone."""
    state = torch.random.get_rng_state()
    torch.manual_seed(derive_seed(config.seed, "policy"))
    try:
        policy = make_policy(config.policy.name, spec, **config.policy.resolved())
    finally:
        torch.random.set_rng_state(state)
    if config.normalize_values:
        assert isinstance(policy, nn.Module)
        if not isinstance(policy.critic, nn.Module):
            raise ConfigError("normalize_values is unused without a critic: set it to false")
        policy.critic = ScaledCritic(policy.critic)
    return policy


def load_policy(
    path: str | Path, *, device: str = "cpu"
) -> tuple[Policy, TrainConfig, dict[str, Any]]:
    """(policy on ``device``, configuration of its run, checkpoint state) of a run or checkpoint.

    Raises:
        CheckpointError: no checkpoint there, or one that is unreadable, truncated or foreign.
    """
    state = checkpoint.load(checkpoint.locate(path))
    if not isinstance(state, dict) or "policy" not in state or "config" not in state:
        raise CheckpointError(f"{path} is a checkpoint, but not one of a training run")
    config = from_yaml(state["config"])
    policy = build_policy(config, PolicySpec(**state["spec"]))
    assert isinstance(policy, nn.Module)
    policy.load_state_dict(state["policy"])
    policy.to(usable_device(device)).eval()
    if state["cursor"] is not None and config.total_env_steps:
        policy.set_progress(min(state["cursor"]["env_steps"] / config.total_env_steps, 1.0))
    return policy, config, state
