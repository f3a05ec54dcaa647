"""Other libraries on our environments, and saved Stable-Baselines3 models in ours."""

# pyright: reportPossiblyUnboundVariable=false
# The last step of a loop is looked at behind the loop.

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from embodied_rl.config import EnvConfig, TrainConfig, component
from embodied_rl.envs import make_env
from embodied_rl.interop import GymnasiumVectorEnv, import_sb3, read_sb3

sb3 = pytest.importorskip("stable_baselines3")


def vec_env(name: str = "reach", **options: Any) -> Any:
    from embodied_rl.sb3 import SB3VecEnv

    chunk = options.get("chunk_length", 1)
    arguments: dict[str, Any] = {"num_envs": 4, "seed": 3} | options
    env = make_env(name, **arguments)
    return SB3VecEnv(env, chunk_length=chunk)


def test_gymnasium_vector_env_steps_as_gymnasium_itself() -> None:
    ours = GymnasiumVectorEnv(
        make_env("gymnasium", id="CartPole-v1", num_envs=3, seed=0, max_episode_steps=12)
    )
    theirs = gymnasium.make_vec(
        "CartPole-v1",
        3,
        "sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        max_episode_steps=12,
    )
    seeds: Any = [4, 5, 6]
    first = ours.reset(seed=seeds)[0]["state"]
    assert np.array_equal(first, theirs.reset(seed=seeds)[0])
    ended = 0
    actions = np.random.default_rng(0).integers(0, 2, (12, 3))
    alive = np.ones(3, bool)  # seeds of second episodes differ
    for action in actions:
        obs, rewards, terminated, truncated, infos = ours.step(action)
        expected = theirs.step(action)
        done = expected[2] | expected[3]
        assert np.array_equal(terminated[alive], expected[2][alive])
        assert np.array_equal(truncated[alive], expected[3][alive])
        assert np.array_equal(rewards[alive], expected[1][alive])
        assert np.array_equal(obs["state"][alive & ~done], expected[0][alive & ~done])
        for row in np.flatnonzero(done & alive):
            final = infos["final_obs"][row]["state"]
            assert infos["_final_obs"][row]
            assert np.array_equal(final, expected[4]["final_obs"][row])
            ended += 1
        alive &= ~done
    assert ended == 3
    space: Any = ours.observation_space
    assert space["state"].shape == (3, 4)
    ours.close()


def test_gymnasium_wrappers_accept_it() -> None:
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        GymnasiumVectorEnv(make_env("reach", num_envs=2, seed=0, max_episode_steps=5))
    )
    env.reset(seed=1)
    for _ in range(5):
        info = env.step(np.zeros((2, 2), np.float32))[4]
    assert info["episode"]["l"].tolist() == [5, 5]
    env.close()


def test_vec_env_reports_episodes_as_stable_baselines3_expects() -> None:
    env = vec_env(max_episode_steps=6)
    reference = make_env("reach", num_envs=4, seed=3, max_episode_steps=6)
    assert np.array_equal(env.reset(), reference.reset()[0]["state"].numpy())
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 4, 2)).astype(np.float32)
    for action in actions:
        obs, rewards, dones, infos = env.step(action)
        expected = reference.step(torch.from_numpy(action))
        assert np.array_equal(obs, expected[0]["state"].numpy())
        assert np.array_equal(rewards, expected[1].numpy())
    assert dones.all()
    final = expected[4]["final_obs"]["state"].numpy()
    for row, info in enumerate(infos):
        assert np.array_equal(info["terminal_observation"], final[row])
        assert info["TimeLimit.truncated"] == bool(expected[3][row])
        assert info["episode"]["l"] == 6
        assert info["is_success"] == bool(expected[4]["episode"]["success_once"][row])
    env.close()


def test_vec_env_passes_the_checks_of_stable_baselines3() -> None:
    from stable_baselines3.common.vec_env import VecCheckNan, VecNormalize

    env: Any = VecNormalize(VecCheckNan(vec_env(chunk_length=3), raise_exception=True))
    assert env.action_space.shape == (3, 2)
    env.seed(7)
    first = env.reset()
    for _ in range(30):
        obs, *_ = env.step(np.stack([env.action_space.sample() for _ in range(4)]))
    assert obs.shape == first.shape == (4, 4)
    env.close()


def test_several_observations_make_a_dict() -> None:
    env = vec_env("metaworld", tasks="reach", features="relative")
    assert set(env.observation_space.spaces) == set(env.reset()) == {"state", "relative"}
    with pytest.raises(ValueError, match="there is no observation 'image'"):
        from embodied_rl.sb3 import SB3VecEnv

        SB3VecEnv(env.env, observations=("image",))
    env.close()


MODELS = {
    "ppo": ("reach", {}, lambda env: sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=8)),
    "ppo-relu": (
        "reach",
        {"chunk_length": 2},
        lambda env: sb3.PPO(
            "MlpPolicy",
            env,
            n_steps=8,
            batch_size=8,
            policy_kwargs={"activation_fn": torch.nn.ReLU, "net_arch": [9, 7]},
        ),
    ),
    "a2c-discrete": ("identity", {}, lambda env: sb3.A2C("MlpPolicy", env)),
    "sac": ("reach", {}, lambda env: sb3.SAC("MlpPolicy", env)),
    "td3": ("reach", {}, lambda env: sb3.TD3("MlpPolicy", env)),
    "dqn": ("identity", {}, lambda env: sb3.DQN("MlpPolicy", env)),
    "dict": (
        "metaworld",
        {"tasks": "reach", "features": "relative"},
        lambda env: sb3.PPO("MultiInputPolicy", env, n_steps=8, batch_size=8),
    ),
}


def config_of(name: str, options: dict[str, Any]) -> TrainConfig:
    options = dict(options)
    chunk = options.pop("chunk_length", 1)
    return TrainConfig(
        name="imported",
        env=EnvConfig(
            simulator=component("envs", name, **options),
            num_envs=4,
            chunk_length=chunk,
            max_episode_steps=20,
        ),
        policy=component("policies", "gaussian_mlp"),
        algorithm=component("algorithms", "ppo"),
    )


@pytest.mark.parametrize("kind", MODELS)
def test_an_imported_model_acts_as_the_original(kind: str, tmp_path: Path) -> None:
    from embodied_rl.build import load_policy

    name, options, make = MODELS[kind]
    env = vec_env(name, **options)
    model = make(env)
    with torch.no_grad():  # away from the small initial outputs
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save(tmp_path / "model")
    run = import_sb3(tmp_path / "model.zip", config_of(name, options), folder=tmp_path / "run")
    policy, _, _ = load_policy(run)
    for _ in range(4):
        raw = env.reset()
        obs = raw if isinstance(raw, dict) else {next(iter(policy.spec.obs_shapes)): raw}
        tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
        actions = policy.sample(tensors, deterministic=True, generator=None).actions
        expected = model.predict(raw, deterministic=True)[0]
        if actions.is_floating_point():
            actions = actions.clamp(-1, 1)
        np.testing.assert_allclose(actions.detach().numpy(), expected, atol=1e-5)
    env.close()


@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_sampled_actions_have_the_spread_of_the_original(kind: str, tmp_path: Path) -> None:
    from embodied_rl.build import load_policy

    name, options, make = MODELS[kind]
    model = make(vec_env(name, **options))
    model.save(tmp_path / "model")
    run = import_sb3(tmp_path / "model.zip", config_of(name, options), folder=tmp_path / "run")
    policy, _, _ = load_policy(run)
    obs = np.tile(np.array([[0.1, -0.2, 0.3, 0.4]], np.float32), (20_000, 1))
    generator = torch.Generator().manual_seed(0)
    ours = policy.sample({"state": torch.from_numpy(obs)}, generator=generator).actions.detach()
    theirs = model.predict(obs, deterministic=False)[0]
    ours = ours.clamp(-1, 1).numpy()
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.03)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.03)


def test_nothing_in_a_model_is_unpickled(tmp_path: Path) -> None:
    import base64
    import json
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    sb3.PPO("MlpPolicy", vec_env(), n_steps=8, batch_size=8).save(tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "good.zip") as good:
        data = json.loads(good.read("data"))
        weights = good.read("policy.pth")
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = base64.b64encode(pickle.dumps(Bomb())).decode()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as bomb:
        bomb.writestr("data", json.dumps(data))
        bomb.writestr("policy.pth", weights)
    read_sb3(tmp_path / "bomb.zip")
    torch.save(Bomb(), tmp_path / "weights")
    with zipfile.ZipFile(tmp_path / "bomb2.zip", "w") as bomb:
        bomb.writestr("data", json.dumps(data))
        bomb.write(tmp_path / "weights", "policy.pth")
    with pytest.raises(ValueError, match="it could run code"):
        read_sb3(tmp_path / "bomb2.zip")
    assert not (tmp_path / "exploded").exists()


def test_models_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path) -> None:
    sb3.PPO("MlpPolicy", vec_env(), n_steps=8, batch_size=8).save(tmp_path / "model")
    with pytest.raises(ValueError, match="other observations or actions"):
        import_sb3(tmp_path / "model.zip", config_of("reach", {"dim": 3}), folder=tmp_path / "run")
    with pytest.raises(ValueError, match="does not fit discrete actions"):
        import_sb3(tmp_path / "model.zip", config_of("identity", {}), folder=tmp_path / "run")
    (tmp_path / "text.zip").write_text("nothing")
    with pytest.raises(ValueError, match="no saved Stable-Baselines3 model"):
        read_sb3(tmp_path / "text.zip")
