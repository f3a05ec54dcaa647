"""The same run on a GPU: every tensor of a rollout lives there, learning, resume and eval work."""

import dataclasses

import pytest
import torch

from embodied_rl import checkpoint, trainer
from embodied_rl.config import CheckpointConfig, EnvConfig, TrainConfig, component
from embodied_rl.evaluate import evaluate_run
from embodied_rl.flow import FlowConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def config(tmp_path, **changes):
    base = TrainConfig(
        name="reach",
        env=EnvConfig(
            simulator=component("envs", "reach"), num_envs=16, chunk_length=2, max_episode_steps=12
        ),
        policy=component("policies", "flow_mlp", flow=FlowConfig(num_denoise_steps=2)),
        algorithm=component("algorithms", "ppo"),
        total_env_steps=1200,
        checkpoint=CheckpointConfig(every=1, keep_last=1000),
        runs=str(tmp_path),
        device="cuda",
    )
    return dataclasses.replace(base, **changes)


GRPO = {
    "algorithm": component("algorithms", "grpo", kl_coef=0.1),
    "advantage": component("advantages", "group_relative"),
}
VARIANTS = {
    "ppo": {},
    "fixed_steps": {"num_steps": 4},
    "normalised": {"normalize_rewards": True, "normalize_values": True, "num_steps": 4},
    "asynchronous": {"asynchronous": True, "num_steps": 4},
    "single_step": {
        "policy": component("policies", "flow_mlp", flow=FlowConfig(chain="single_step"))
    },
    "transformer": {"policy": component("policies", "flow_transformer")},
    "gaussian": {"policy": component("policies", "gaussian_mlp")},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_stays_on_the_device(tmp_path, name):
    session = trainer.open_session(config(tmp_path, **VARIANTS[name]), None)
    rollout, advantages = trainer.gather(session)
    for field in dataclasses.fields(rollout):
        values = getattr(rollout, field.name)
        for value in values.values() if isinstance(values, dict) else [values]:
            assert value.device.type == "cuda", field.name
    assert advantages.advantages.device.type == "cuda"
    session.env.close()
    folder = trainer.train(session.config)
    assert (folder / "checkpoints").is_dir()
    for device in ("cuda", "cpu"):
        assert evaluate_run(folder, episodes=16, device=device)["episodes"] == 16


def test_grouped_run(tmp_path):
    options = config(tmp_path, **GRPO)
    env = dataclasses.replace(options.env, group_size=4)
    policy = options.policy.replace(critic="none")
    trainer.train(dataclasses.replace(options, env=env, policy=policy))


def test_resume(tmp_path):
    options = config(tmp_path)
    folder = trainer.train(options, final=False)
    longer = dataclasses.replace(options, total_env_steps=2400)
    trainer.train(longer, folder=folder, resume=True, final=False)
    assert checkpoint.load(checkpoint.locate(folder))["iteration"] > 0
