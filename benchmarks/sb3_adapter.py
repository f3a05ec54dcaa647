"""Stable-Baselines3's PPO on envpool, through the adapter that any environment here can use."""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from torch import nn

from benchmarks.settings import HIDDEN_DIMS, Setting
from embodied_rl.envs import make_env
from embodied_rl.sb3 import SB3VecEnv


def make_vec_env(setting: Setting, *, seed: int) -> SB3VecEnv:
    """The environments of ``setting``, which keep the episode statistics themselves."""
    env = make_env(
        "envpool",
        id=setting.env_id,
        num_envs=setting.num_envs,
        num_threads=setting.num_threads,
        seed=seed,
        env_options=dict(setting.env_options),
        terminate_on_success=False,
    )
    return SB3VecEnv(env)


def make_model(setting: Setting, *, seed: int, folder: str) -> PPO:
    """SB3's PPO with the options of ``setting``, logging to TensorBoard as ours does."""
    model = PPO(
        "MlpPolicy",
        make_vec_env(setting, seed=seed),
        learning_rate=setting.learning_rate,
        n_steps=setting.num_steps,
        batch_size=setting.minibatch_size,
        n_epochs=setting.num_epochs,
        gamma=setting.gamma,
        gae_lambda=setting.gae_lambda,
        clip_range=setting.clip_ratio,
        ent_coef=setting.entropy_coef,
        vf_coef=0.5,
        max_grad_norm=setting.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(HIDDEN_DIMS), "vf": list(HIDDEN_DIMS)},
            "activation_fn": nn.Tanh,
        },
        seed=seed,
        device="cpu",
    )
    model.set_logger(configure(folder, ["tensorboard"]))
    return model
