"""A whole run over faulty worker processes: the right result, and counts that say what happened."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl import rollout as rollouts
from embodied_rl.build import build_policy, policy_spec
from embodied_rl.config import EnvConfig, TrainConfig, component
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.vector import LocalSimulator, WorkerError, make_workers
from embodied_rl.evaluate import evaluate, make_manifest
from embodied_rl.metrics import read_jsonl
from embodied_rl.registry import registry
from embodied_rl.trainer import train

ROWS = Path(__file__).parents[1] / "rows"
WALKS: list[Any] = []
"""The simulators with workers that ``make_walk`` made, newest last."""


def make_walk(
    *,
    num_envs: int,
    seed: int,
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    episode_seeds: Any = None,
    workers: int = 2,
    timeout: float = 20.0,
    max_restart_rate: float = 1000.0,
    fault: str = "",
    every: int = 200,
    delay: float = 0.0,
    marker: str = "",
) -> SimulatorVectorEnv:
    """``Walk`` in worker processes, or in this one with ``workers=0``."""
    from faulty_rows import Walk

    rows: dict[str, Any] = {
        "num_envs": num_envs,
        "seed": seed,
        "group_size": group_size,
        "episode_seeds": episode_seeds,
    }
    if workers:
        options = {"fault": fault, "every": every, "delay": delay, "marker": marker}
        simulator: Any = make_workers(
            "faulty_rows:Walk",
            options,
            **rows,
            num_workers=min(workers, num_envs),
            timeout=timeout,
            max_restart_rate=max_restart_rate,
        )
        WALKS.append(simulator)
    else:
        simulator = LocalSimulator(Walk, **rows)
    return SimulatorVectorEnv(
        simulator,
        chunk_length=chunk_length,
        max_episode_steps=max_episode_steps,
        autoreset=autoreset,
        group_size=group_size,
    )


@pytest.fixture(autouse=True)
def walk_is_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROWS))
    if "walk" not in registry("envs").names():
        registry("envs").add("walk", make_walk)


def config_of(tmp_path: Path, **options: Any) -> TrainConfig:
    grouped = options.pop("grouped", False)
    config = TrainConfig(
        name="walk",
        env=EnvConfig(simulator=component("envs", "walk", **options), num_envs=4),
        policy=component("policies", "gaussian_mlp", hidden_dims=(8,)),
        algorithm=component("algorithms", "ppo", num_epochs=1, num_minibatches=1),
        advantage=component("advantages", "gae"),
        num_steps=20,
        total_env_steps=400,
        runs=str(tmp_path),
    )
    if not grouped:
        return config
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, group_size=2),
        advantage=component("advantages", "group_relative"),
        num_steps=0,
    )


@pytest.mark.parametrize("fault", ["raise", "kill", "hang"])
def test_training_goes_on_and_counts_what_it_lost(fault: str, tmp_path: Path) -> None:
    timeout = 1.0 if fault == "hang" else 20.0
    config = config_of(tmp_path, fault=fault, every=60, timeout=timeout)
    folder = train(config, final=False)
    last = read_jsonl(folder / "metrics.jsonl")[-1]
    assert last["time/env_steps"] >= 400
    # 100 steps per row in two workers of two rows each, which fail at the 60th step of a row.
    assert last["env/worker_restarts"] == 2 and last["env/dropped_episodes"] == 4


def test_groups_of_whole_episodes_survive_a_fault(tmp_path: Path) -> None:
    config = config_of(tmp_path, fault="raise", every=40, grouped=True)
    folder = train(config, final=False)
    records = read_jsonl(folder / "metrics.jsonl")
    assert records[-1]["env/dropped_episodes"] >= 4
    assert sum(record.get("rollout/episodes", 0) for record in records) > 0


def test_a_dropped_episode_is_no_part_of_the_rollout(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    env = make_walk(num_envs=4, seed=0, fault="raise", every=12, marker=str(tmp_path / "once"))
    calm = make_walk(num_envs=4, seed=0, workers=0)
    policy = build_policy(config, policy_spec(env, config.env))
    parts = []
    for each in (env, calm):
        cursor = rollouts.start(each)
        generator = torch.Generator().manual_seed(0)
        parts.append(
            (rollouts.collect(each, policy, cursor, num_steps=20, generator=generator), cursor)
        )
        each.close()
    (rollout, cursor), (expected, calm_cursor) = parts
    lost = ~rollout.valid[0]
    assert int(lost.sum()) == 2 and cursor.dropped_episodes == 2 and cursor.worker_restarts == 1
    assert not bool(rollout.valid[:12, lost].any()) and bool(rollout.valid[12:, lost].all())
    assert bool(rollout.valid[:, ~lost].all()) and bool(expected.valid.all())
    assert bool((rollout.episode_ids[11] != rollout.episode_ids[12])[lost].all())
    for name in ("rewards", "actions", "truncated"):
        ours, theirs = getattr(rollout, name), getattr(expected, name)
        assert torch.equal(ours[:12, ~lost], theirs[:12, ~lost])
    assert len(cursor.finished["return"]) < len(calm_cursor.finished["return"]) + 1
    assert bool((rollout.next_values[11, lost] != 0).all() | rollout.truncated[11, lost].all())


def test_a_fault_in_every_episode_ends_training_with_one_sentence(tmp_path: Path) -> None:
    config = config_of(tmp_path, fault="raise", every=3, max_restart_rate=1.0)
    with pytest.raises(WorkerError, match="max_restart_rate=1 per 1000 allows"):
        train(config, final=False)


def play(tmp_path: Path, mode: Any = "sampled", **options: Any) -> dict[str, Any]:
    config = config_of(tmp_path, **options)
    env = make_walk(num_envs=4, seed=0, workers=0)
    policy = build_policy(config, policy_spec(env, config.env))
    manifest = make_manifest(("near", "far"), episodes=6, split="tune")
    record = evaluate(policy, config.env, manifest, mode=mode)
    # Fingerprints hold the options, of which these runs differ in the fault.
    for scores in record["per_task"].values():
        del scores["fingerprint"]
    return {name: value for name, value in record.items() if name != "fingerprint"}


def test_an_evaluation_with_killed_workers_equals_an_undisturbed_one(tmp_path: Path) -> None:
    expected = play(tmp_path, workers=0)
    WALKS.clear()
    stop = threading.Event()

    def kill_twice() -> None:
        for steps in (30, 80):
            while not (WALKS and WALKS[0]._env_steps >= steps):
                if stop.wait(0.001):
                    return
            os.kill(WALKS[0].worker_pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_twice)
    killer.start()
    try:
        record = play(tmp_path, delay=0.01)
    finally:
        stop.set()
        killer.join()
    assert WALKS[0].worker_restarts == 2
    assert record == expected


def test_an_evaluation_survives_an_environment_that_raises_or_hangs(tmp_path: Path) -> None:
    expected = play(tmp_path, workers=0)
    for fault in ("raise", "hang"):
        options = {"fault": fault, "every": 20, "marker": str(tmp_path / fault)}
        assert play(tmp_path, **options, timeout=1.0 if fault == "hang" else 20.0) == expected


def test_an_evaluation_that_cannot_succeed_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="failed 3 times in its worker process"):
        play(tmp_path, fault="raise", every=5)
