"""The only loop that steps a training environment.

``collect`` records ``T`` decisions of ``N`` environments into one ``Rollout``. Two modes:

* fixed length: ``num_steps`` decisions from where the environments stand (SAME_STEP autoreset);
* whole episodes (``num_steps=0``): every environment plays one episode and then waits, unstepped,
  with ``valid`` False (autoreset DISABLED).

The shards of a ``ShardedVectorEnv`` take turns: one is acted for while the others simulate.

Values are asked for once, in one batch after the loop, unless the policy returned them while
sampling. ``next_values`` is filled here and nowhere else: 0 if terminated, V(final_obs) if
truncated, else V(s_{t+1}).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from embodied_rl.envs.shards import ShardedVectorEnv
from embodied_rl.types import Policy, PolicyOutput, Rollout, TensorDict, VectorEnv

VALUE_BATCH = 16_384
"""Rows per forward pass when values are computed, to bound memory."""


@dataclass
class Cursor:
    """Where collection stands between two rollouts; checkpointed.

    Attributes:
        obs: current observation of every row.
        episode_ids: [N] int64 running trajectory of every row.
        next_episode_id: first id that was never used.
        env_steps: simulator steps taken since the start of the run.
        finished: return, length, success_once, success_at_end and task_ids of the episodes that
            ended in the last rollout, [E] each on the CPU; not checkpointed.
        worker_restarts, dropped_episodes: simulator processes that failed since this process
            started, and the episodes lost with them; not checkpointed.
    """

    obs: TensorDict
    episode_ids: Tensor
    next_episode_id: int
    env_steps: int = 0
    finished: TensorDict = field(default_factory=dict)
    worker_restarts: int = 0
    dropped_episodes: int = 0


def start(
    env: VectorEnv, *, task_ids: Tensor | None = None, episode_seeds: Tensor | None = None
) -> Cursor:
    """Reset every row (to ``task_ids`` [N] and ``episode_seeds`` [N] if given); a fresh cursor."""
    options = {"task_ids": task_ids, "episode_seeds": episode_seeds}
    obs, _ = env.reset(options={k: v for k, v in options.items() if v is not None})
    episode_ids = torch.arange(env.num_envs, device=env.device)
    return Cursor(obs=obs, episode_ids=episode_ids, next_episode_id=env.num_envs)


def restart(env: VectorEnv, cursor: Cursor, *, task_ids: Tensor | None = None) -> None:
    """Begin a new episode in every row, in place."""
    options = None if task_ids is None else {"task_ids": task_ids}
    cursor.obs, _ = env.reset(options=options)
    everywhere = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    _new_episodes(cursor, slice(None), everywhere)


@torch.no_grad()
def collect(
    env: VectorEnv,
    policy: Policy,
    cursor: Cursor,
    *,
    num_steps: int = 0,
    generator: torch.Generator | None,
    policy_version: Callable[[], int] = lambda: 0,
    deterministic: bool = False,
    while_stepping: Callable[[], Any] | None = None,
) -> Rollout:
    """Step ``env`` with ``policy`` and record what happened.

    Args:
        env: environments; autoreset SAME_STEP for fixed length, DISABLED for whole episodes.
        policy: samples actions, without gradient.
        cursor: advanced in place.
        num_steps: T, or 0 for whole episodes.
        generator: source of all sampling noise.
        policy_version: number of updates behind the policy; asked before every decision.
        deterministic: greedy actions (evaluation).
        while_stepping: called between ``send`` and ``recv`` of every decision, with gradients
            off; overlaps other work with simulation.

    Returns:
        A rollout of T decisions; in whole-episode mode T is the longest episode.
    """
    sample = partial(policy.sample, deterministic=deterministic, generator=generator)
    tracks: list[_Track] = []
    running: list[Iterator[bool]] = []
    first = 0
    for shard in env.shards if isinstance(env, ShardedVectorEnv) else (env,):
        rows = slice(first, first + shard.num_envs)
        first = rows.stop
        track = _Track({name: value[rows] for name, value in cursor.obs.items()})
        tracks.append(track)
        running.append(_steps(shard, sample, track, cursor, rows, num_steps, policy_version))
    while running:
        running = [steps for steps in running if next(steps, False)]
        if running and while_stepping is not None:
            while_stepping()
    parts = [_without_dropped(_assemble(track, policy), track.records) for track in tracks]
    for record in itertools.chain.from_iterable(track.records for track in tracks):
        if "dropped" in record["info"]:
            cursor.worker_restarts += int(record["info"]["worker_restarts"].sum())
            cursor.dropped_episodes += int(record["info"]["dropped"].sum())
    rollout = concat_rollouts(parts)
    cursor.obs = {k: torch.cat([track.obs[k] for track in tracks]) for k in cursor.obs}
    cursor.env_steps += int(rollout.num_env_steps.sum())
    ended = [record for track in tracks for record in track.ended]
    cursor.finished = _finished_episodes(ended or tracks[-1].records[-1:])
    return rollout


@dataclass
class _Track:
    """What one shard of the environments went through.

    Attributes:
        obs: its current observation.
        records: every decision.
        ended: those of ``records`` with which an episode ended.
    """

    obs: TensorDict
    records: list[dict[str, Any]] = field(default_factory=list)
    ended: list[dict[str, Any]] = field(default_factory=list)


def _steps(
    env: VectorEnv,
    sample: Callable[[TensorDict], PolicyOutput],
    track: _Track,
    cursor: Cursor,
    rows: slice,
    num_steps: int,
    policy_version: Callable[[], int],
) -> Iterator[bool]:
    """Fill ``track`` with the decisions of ``env``, which has these ``rows`` of ``cursor``.

    Yields True whenever the environment has been sent actions and not been waited for.
    """
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while len(track.records) < num_steps or (num_steps == 0 and bool(running.any())):
        version = policy_version()
        output = sample(track.obs)
        env.send(output.actions)
        record = {
            "obs": track.obs,
            "output": output,
            "policy_version": version,
            "episode_ids": cursor.episode_ids[rows],
            "task_ids": env.task_ids,
            "group_ids": env.group_ids,
        }
        yield True
        track.obs, record["rewards"], terminated, truncated, info = env.recv()
        record |= {"terminated": terminated, "truncated": truncated, "info": info}
        track.records.append(record)
        done = terminated | truncated
        if bool(done.any()):
            track.ended.append(record)
            if num_steps == 0:
                running &= ~done
            else:
                _new_episodes(cursor, rows, done)


def _without_dropped(rollout: Rollout, records: list[dict[str, Any]]) -> Rollout:
    """Episodes that the simulator lost are not valid, from their first step in this rollout on."""
    dropped = [
        record["episode_ids"][record["info"]["dropped"]]
        for record in records
        if "dropped" in record["info"] and bool(record["info"]["dropped"].any())
    ]
    if not dropped:
        return rollout
    lost = torch.isin(rollout.episode_ids, torch.cat(dropped))
    return replace(rollout, valid=rollout.valid & ~lost)


def _finished_episodes(records: list[dict[str, Any]]) -> TensorDict:
    """Metrics of the episodes that ended in ``records``, at least one record."""
    parts: dict[str, list[Tensor]] = {}
    for record in records:
        ended = record["info"]["_episode"]
        for name, value in (*record["info"]["episode"].items(), ("task_ids", record["task_ids"])):
            parts.setdefault(name, []).append(value[ended])
    return {name: torch.cat(values).cpu() for name, values in parts.items()}


def concat_rollouts(parts: list[Rollout]) -> Rollout:
    """Put rollouts side by side along N; shorter ones are padded with invalid steps and units."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.shape[0] for part in parts)

    def join(values: list[Tensor]) -> Tensor:
        values = _equal_units(values, axis=2)
        return torch.cat([_pad_steps(value, longest) for value in values], 1)

    merged: dict[str, Any] = {}
    for f in fields(Rollout):
        values = [getattr(part, f.name) for part in parts]
        if isinstance(values[0], dict):
            merged[f.name] = {key: join([value[key] for value in values]) for key in values[0]}
        else:
            merged[f.name] = join(values)
    return Rollout(**merged)


def _pad_steps(value: Tensor, steps: int) -> Tensor:
    """Zeros after the last step; ids are repeated so that padding belongs to its own episode."""
    missing = steps - value.shape[0]
    if missing == 0:
        return value
    if value.dtype == torch.int64:
        return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])
    return torch.cat([value, value.new_zeros((missing, *value.shape[1:]))])


def _stack_units(values: list[Tensor]) -> Tensor:
    """``[T, N, ...]`` of the ``[N, U, ...]`` of T decisions, whose numbers of units may differ."""
    return torch.stack(_equal_units(values, axis=1))


def _equal_units(values: list[Tensor], *, axis: int) -> list[Tensor]:
    """``values`` with 0 or False after the last unit, so that ``axis`` is equally long in all."""
    if values[0].ndim <= axis or len({value.shape[axis] for value in values}) == 1:
        return values
    longest = max(value.shape[axis] for value in values)
    padded = []
    for value in values:
        shape = (*value.shape[:axis], longest - value.shape[axis], *value.shape[axis + 1 :])
        padded.append(torch.cat([value, value.new_zeros(shape)], axis))
    return padded


def _new_episodes(cursor: Cursor, rows: slice, done: Tensor) -> None:
    """New episode ids for those of ``rows`` that are ``done``."""
    count = int(done.sum())
    ids = cursor.episode_ids.clone()  # records keep the old ones
    fresh = torch.arange(cursor.next_episode_id, cursor.next_episode_id + count)
    ids[rows][done] = fresh.to(ids.device)
    cursor.episode_ids = ids
    cursor.next_episode_id += count


def _assemble(track: _Track, policy: Policy) -> Rollout:
    records = track.records

    def stack(name: str) -> Tensor:
        return torch.stack([record[name] for record in records])

    def stack_info(name: str) -> Tensor:
        return torch.stack([record["info"][name] for record in records])

    outputs: list[PolicyOutput] = [record["output"] for record in records]
    obs = {name: torch.stack([r["obs"][name] for r in records]) for name in track.obs}
    rewards, terminated, truncated = stack("rewards"), stack("terminated"), stack("truncated")
    values, next_values = _values(track, outputs, obs, policy, terminated, truncated)
    steps, envs = rewards.shape
    if outputs[0].log_probs is None:
        log_probs = rewards.new_zeros((steps, envs, 1))
        unit_mask = rewards.new_ones((steps, envs, 1), dtype=torch.bool)
    else:
        log_probs = _stack_units([o.log_probs for o in outputs if o.log_probs is not None])
        if outputs[0].unit_mask is None:
            unit_mask = policy.unit_mask(stack_info("unit_mask").flatten(0, 1))
            unit_mask = unit_mask.unflatten(0, (steps, envs))
        else:
            unit_mask = _stack_units([o.unit_mask for o in outputs if o.unit_mask is not None])
    replay = {name: _stack_units([o.replay[name] for o in outputs]) for name in outputs[0].replay}
    versions = torch.tensor([r["policy_version"] for r in records], device=rewards.device)
    return Rollout(
        obs=obs,
        actions=torch.stack([output.actions for output in outputs]),
        log_probs=log_probs,
        unit_mask=unit_mask,
        values=values,
        next_values=next_values,
        rewards=rewards,
        reward_terms=_reward_terms(records),
        terminated=terminated,
        truncated=truncated,
        success=stack_info("success"),
        valid=stack_info("valid"),
        num_env_steps=stack_info("num_env_steps"),
        group_ids=stack("group_ids"),
        task_ids=stack("task_ids"),
        episode_ids=stack("episode_ids"),
        policy_version=versions.unsqueeze(1).repeat(1, envs),
        replay=replay,
    )


def _reward_terms(records: list[dict[str, Any]]) -> TensorDict:
    """[T, N] each, by name; empty where rewards have no parts."""
    terms = [record["info"].get("reward_terms", {}) for record in records]
    return {name: torch.stack([values[name] for values in terms]) for name in terms[0]}


@torch.no_grad()
def _values(
    track: _Track,
    outputs: list[PolicyOutput],
    obs: TensorDict,
    policy: Policy,
    terminated: Tensor,
    truncated: Tensor,
) -> tuple[Tensor, Tensor]:
    """V(s_t) and the bootstrap value of every step, both [T, N]."""
    steps, envs = terminated.shape
    if outputs[0].values is None:
        values = batched_value(policy, {k: v.flatten(0, 1) for k, v in obs.items()})
        values = values.view(steps, envs)
    else:
        values = torch.stack([output.values for output in outputs if output.values is not None])
    last = batched_value(policy, track.obs)
    next_values = torch.cat([values[1:], last.unsqueeze(0)])
    next_values = next_values.masked_fill(terminated, 0.0)
    cut = (truncated & ~terminated).nonzero()
    if len(cut):
        # A truncated row's successor is its final observation, not the first of the next episode.
        final = {
            name: torch.stack([_final_obs(track, int(t), name)[n] for t, n in cut]) for name in obs
        }
        next_values[cut[:, 0], cut[:, 1]] = batched_value(policy, final)
    return values, next_values


def _final_obs(track: _Track, t: int, name: str) -> Tensor:
    """[N, ...] observations that step ``t`` led to, before any automatic reset."""
    info = track.records[t]["info"]
    if "final_obs" in info:
        return info["final_obs"][name]
    return track.records[t + 1]["obs"][name] if t + 1 < len(track.records) else track.obs[name]


def batched_value(policy: Policy, obs: TensorDict) -> Tensor:
    """``policy.value`` over any number of rows in bounded memory."""
    rows = next(iter(obs.values())).shape[0]
    parts = [
        policy.value({name: value[i : i + VALUE_BATCH] for name, value in obs.items()})
        for i in range(0, rows, VALUE_BATCH)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
