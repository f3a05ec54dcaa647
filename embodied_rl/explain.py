"""``explain``: what a configuration means in numbers, before anything is run."""

from __future__ import annotations

import torch
from torch import nn

from embodied_rl.build import build_env, build_policy, policy_spec
from embodied_rl.config import TrainConfig, to_yaml
from embodied_rl.types import Policy, PolicySpec


def explain(config: TrainConfig) -> str:
    """Samples and gradient steps per iteration, parameters, memory, and the resolved YAML."""
    env = build_env(config.env, seed=0, autoreset=config.num_steps > 0, num_envs=1, group_size=1)
    spec = policy_spec(env, config.env)
    limit = config.env.max_episode_steps
    num_tasks = len(env.task_names)
    env.close()
    policy = build_policy(config, spec)
    lines = [f"# {config.name}", *_imitation(config, num_tasks)]
    if config.total_env_steps:
        lines += _iteration(config, limit)
    lines += _policy(policy, spec)
    return "\n".join(lines) + "\n\n" + to_yaml(config)


def _imitation(config: TrainConfig, num_tasks: int) -> list[str]:
    if config.imitation is None:
        return []
    source = config.imitation.dataset or (
        f"{config.imitation.episodes_per_task * num_tasks} expert episodes to be collected"
    )
    return [
        f"imitation: {config.imitation.num_steps} gradient steps of {config.imitation.batch_size} "
        f"chunks from {source}"
    ]


def _iteration(config: TrainConfig, limit: int) -> list[str]:
    envs, chunk = config.env.num_envs, config.env.chunk_length
    options = config.algorithm.resolved()
    if config.num_steps:
        rows = envs * config.num_steps
        rollout = f"{config.num_steps} decisions x {envs} environments = {rows} decisions"
        steps = f"at most {rows * chunk} simulator steps"
    else:
        rows = envs * -(-(limit or 500) // chunk)
        groups = envs // config.env.group_size
        rollout = f"{envs} whole episodes in {groups} groups, at most {rows} decisions"
        steps = f"at most {envs * (limit or 500)} simulator steps"
    gradient_steps = options["num_epochs"] * options["num_minibatches"]
    return [
        f"iteration: {rollout} of {chunk} actions, {steps}",
        f"update: {options['num_epochs']} epochs x {options['num_minibatches']} minibatches = "
        f"{gradient_steps} gradient steps of at most {-(-rows // options['num_minibatches'])} rows",
        f"run: {config.total_env_steps} simulator steps",
    ]


def _policy(policy: Policy, spec: PolicySpec) -> list[str]:
    assert isinstance(policy, nn.Module)
    parameters = sum(value.numel() for value in policy.parameters())
    obs = {name: torch.zeros(1, *shape) for name, shape in spec.obs_shapes.items()}
    output = policy.sample(obs, generator=torch.Generator().manual_seed(0))
    row_bytes = sum(t.numel() * t.element_size() for t in (*obs.values(), output.actions))
    row_bytes += sum(t.numel() * t.element_size() for t in output.replay.values())
    units = 0 if output.log_probs is None else output.log_probs.shape[1]
    return [
        f"policy: {parameters:,} parameters ({parameters * 16 / 2**20:.1f} MiB with gradients and "
        f"Adam), {units} ratio unit(s) per decision, {row_bytes:,} bytes per stored decision",
    ]
