"""Stable-Baselines3's PPO learns on our environment; its model is evaluated and filmed by ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embodied_rl.commands import run
from embodied_rl.envs import make_env

sb3 = pytest.importorskip("stable_baselines3")


def test_ppo_through_the_adapter_learns_cartpole_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av")
    pytest.importorskip("pygame")
    from embodied_rl.sb3 import SB3VecEnv

    env = SB3VecEnv(make_env("gymnasium", id="CartPole-v1", num_envs=8, seed=0))
    model = sb3.PPO(
        "MlpPolicy",
        env,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gae_lambda=0.8,
        gamma=0.98,
        learning_rate=2e-3,
        seed=0,
    )
    overlays = [
        "--env.simulator.name",
        "gymnasium",
        "--env.simulator.id",
        "CartPole-v1",
        "--env.num-threads",
        "0",
    ]

    def evaluate(name: str, *more: str) -> float:
        model.save(tmp_path / name)
        arguments = [str(tmp_path / f"{name}.zip"), "--recipe", "cartpole_ppo", "--episodes", "20"]
        assert run("eval", [*arguments, "--json", *more, *overlays]) == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        return record["return_mean"]

    assert evaluate("before") < 60
    model.learn(20_000)
    assert model.ep_info_buffer and np.mean([e["r"] for e in model.ep_info_buffer]) > 100
    assert evaluate("after", "--video") > 200
    film = tmp_path / "after" / "videos" / "policy.mp4"
    with av.open(str(film)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) > 400
    assert np.abs(frames[0].astype(int) - frames[100].astype(int)).max() > 60
    env.close()
