"""Stable-Baselines3's PPO learns on our environment; its model is evaluated and filmed by ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.commands import run
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.vector import LocalSimulator
from embodied_rl.registry import registry

sb3 = pytest.importorskip("stable_baselines3")
av = pytest.importorskip("av")


def make_walk(
    *,
    num_envs: int,
    seed: int,
    autoreset: bool = True,
    episode_seeds: Any = None,
    max_episode_steps: int | None = None,
    num_threads: int | None = None,
) -> SimulatorVectorEnv:
    from faulty_rows import Walk

    simulator = LocalSimulator(Walk, num_envs=num_envs, seed=seed, episode_seeds=episode_seeds)
    return SimulatorVectorEnv(simulator, autoreset=autoreset, max_episode_steps=max_episode_steps)


def test_ppo_through_the_adapter_learns_and_its_model_is_evaluated_and_filmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from embodied_rl.sb3 import SB3VecEnv

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "rows"))
    if "local_walk" not in registry("envs").names():
        registry("envs").add("local_walk", make_walk)
    torch.set_num_threads(1)
    env = SB3VecEnv(make_walk(num_envs=8, seed=0))
    model = sb3.PPO(
        "MlpPolicy",
        env,
        n_steps=64,
        batch_size=128,
        gamma=0.9,
        learning_rate=2e-3,
        seed=0,
        device="cpu",
    )

    def evaluate(name: str, *more: str) -> float:
        model.save(tmp_path / name)
        zipped = str(tmp_path / f"{name}.zip")
        environment = ["--recipe", "cartpole_ppo", "--env.simulator.name", "local_walk"]
        assert run("eval", [zipped, *environment, "--episodes", "40", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["success_rate"]

    assert evaluate("before") < 0.5
    model.learn(12_000)
    assert evaluate("after", "--video") > 0.9
    with av.open(str(tmp_path / "after" / "videos" / "policy.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) > 30
    picture = np.stack(frames)[:, :160].astype(int)
    columns = picture.mean((1, 3)).argmax(1)
    assert len(set(columns.tolist())) > 5  # the walker moves across the picture
    assert frames[0].shape[1] == 256  # 64 pixels, enlarged so that the caption below fits
    assert frames[0].shape[0] > 192 + 30
    env.close()
