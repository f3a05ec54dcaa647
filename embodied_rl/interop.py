"""To and from other libraries: gymnasium.vector and Stable-Baselines3.

``GymnasiumVectorEnv``: one of our vector environments with numpy arrays, for anything that takes a
``gymnasium.vector.VectorEnv``. ``embodied_rl.sb3.SB3VecEnv``: the same for Stable-Baselines3.
``import_sb3``: a saved Stable-Baselines3 model becomes a run folder that ``eval`` takes.

A model file of Stable-Baselines3 is a zip of ``data`` (JSON in which everything that JSON cannot
hold is a pickle, base64) and ``policy.pth`` (torch). Nothing in it is unpickled: of ``data`` only
the plain JSON is read, and the weights with ``weights_only=True``. What a policy needs beyond
those is inferred from the shapes of the weights.

Axes: N row.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from embodied_rl.types import TensorDict, VectorEnv


def arrays(obs: TensorDict) -> dict[str, np.ndarray]:
    """Tensors as arrays, on the CPU."""
    return {name: value.numpy(force=True) for name, value in obs.items()}


def action_space(env: VectorEnv, chunk_length: int) -> gymnasium.Space[Any]:
    """Space of one row's decision: that of ``env``, or [H, D] for chunks of H > 1."""
    space = env.single_action_space
    if chunk_length == 1:
        return space
    if not isinstance(space, spaces.Box):
        raise ValueError("chunks of discrete actions are not offered: set chunk_length to 1")
    shape = (chunk_length, *space.shape)
    low, high = np.broadcast_to(space.low, shape), np.broadcast_to(space.high, shape)
    return spaces.Box(low, high, dtype=np.float32)


def tensor_of(env: VectorEnv, actions: np.ndarray) -> Tensor:
    """Actions [N, ...] as a tensor on the device of ``env``."""
    return torch.from_numpy(np.ascontiguousarray(actions)).to(env.device)


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A ``VectorEnv`` as gymnasium defines it: numpy, ``final_obs`` an object array.

    Observations are a Dict. Info tensors become arrays, ``episode`` is renamed to
    ``episode_metrics``, which leaves that name to ``RecordEpisodeStatistics``.

    Args:
        env: owned from here on, ``close`` closes it.
        chunk_length: H that ``env`` was made with.
    """

    def __init__(self, env: VectorEnv, *, chunk_length: int = 1) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.metadata = env.metadata
        self.single_observation_space = env.single_observation_space
        self.single_action_space = action_space(env, chunk_length)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.vector.VectorEnv.reset``; a list of seeds is one episode seed per row."""
        options = dict(options or {})
        if isinstance(seed, list):
            if None in seed:
                raise ValueError("seeds are all numbers or none: give one number for all rows")
            options["episode_seeds"] = np.array(seed, np.int64)
            seed = None
        obs, _ = self.env.reset(seed=seed, options=options)
        return arrays(obs), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See ``gymnasium.vector.VectorEnv.step``."""
        step = self.env.step(tensor_of(self.env, np.asarray(actions)))
        obs, (rewards, terminated, truncated) = step[0], (t.numpy(force=True) for t in step[1:4])
        info = step[4]
        infos: dict[str, Any] = {
            name: value.numpy(force=True)
            for name, value in info.items()
            if isinstance(value, Tensor) and not name.startswith("_")
        }
        done = terminated | truncated
        if done.any():
            infos["_final_obs"] = infos["_episode_metrics"] = done
            infos["episode_metrics"] = arrays(info["episode"])
            if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
                final = arrays(info["final_obs"])
                infos["final_obs"] = np.full(self.num_envs, None, object)
                for row in np.flatnonzero(done).tolist():
                    infos["final_obs"][row] = {name: value[row] for name, value in final.items()}
        return arrays(obs), rewards, terminated, truncated, infos

    def render(self) -> Any:
        """Pictures of all rows, where the simulator has any."""
        from embodied_rl.envs.base import Renderer

        if not isinstance(self.env, Renderer):
            return None
        return tuple(self.env.render(row) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environment."""
        self.env.close()


# --- saved Stable-Baselines3 models ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the actor of a family of algorithms is in its weights.

    Attributes:
        head: option of the policy ``sb3``.
        trunk: prefix of the Linear layers before the last.
        output: prefix of the last one; empty if it is the last of the trunk.
        log_std: name of the parameter (or prefix of the layer) of log standard deviations.
        activation: default of the algorithm.
    """

    head: str
    trunk: str
    output: str = ""
    log_std: str = ""
    activation: str = "ReLU"


LAYOUTS = (
    _Layout(  # SAC, TQC
        head="squashed", trunk="actor.latent_pi", output="actor.mu", log_std="actor.log_std"
    ),
    _Layout(head="deterministic", trunk="actor.mu"),  # TD3, DDPG
    _Layout(head="greedy", trunk="q_net.q_net"),  # DQN
    _Layout(  # PPO, A2C
        head="gaussian",
        trunk="mlp_extractor.policy_net",
        output="action_net",
        log_std="log_std",
        activation="Tanh",
    ),
)


def read_sb3(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(options, weights) of the policy ``sb3`` for a saved model; nothing is unpickled.

    Raises:
        ValueError: no such file, no Stable-Baselines3 model, or a policy that is not an MLP.
    """
    try:
        with zipfile.ZipFile(path) as file:
            data = json.loads(file.read("data"))
            weights = torch.load(
                io.BytesIO(file.read("policy.pth")), weights_only=True, map_location="cpu"
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights in policy.pth: it is not loaded, since it could run "
            "code"
        ) from error
    except (OSError, KeyError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is no saved Stable-Baselines3 model: {error}") from error
    if any(name.startswith("features_extractor.") for name in weights) or data.get("use_sde"):
        raise ValueError(
            f"{path} holds a policy with images, gSDE or layers of its own: only MlpPolicy and "
            "MultiInputPolicy of vectors can be read"
        )
    for layout in LAYOUTS:
        if any(name.startswith(f"{layout.trunk}.") for name in weights):
            return _convert(layout, data, weights)
    raise ValueError(
        f"{path} is of an algorithm that is not known here (PPO, A2C, SAC, TQC, TD3, "
        "DDPG and DQN are)"
    )


def _convert(
    layout: _Layout, data: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our names for the weights of an actor."""
    numbers = sorted(
        int(match[1])
        for name in weights
        if (match := re.fullmatch(rf"{re.escape(layout.trunk)}\.(\d+)\.weight", name))
    )
    layers = [f"{layout.trunk}.{number}" for number in numbers]
    output = layout.output or layers.pop()
    head = layout.head
    if head == "gaussian" and layout.log_std not in weights:
        head = "categorical"
    found: dict[str, Tensor] = {}
    for target, source in [
        *((f"trunk.{2 * i}", s) for i, s in enumerate(layers)),
        ("output", output),
    ]:
        for part in ("weight", "bias"):
            found[f"{target}.{part}"] = weights[f"{source}.{part}"]
    if head == "gaussian":
        found["log_std"] = weights[layout.log_std]
    elif head == "squashed":
        for part in ("weight", "bias"):
            found[f"log_std_output.{part}"] = weights[f"{layout.log_std}.{part}"]
    options = {
        "head": head,
        "hidden_dims": tuple(found[f"trunk.{2 * i}.weight"].shape[0] for i in range(len(layers))),
        "activation": _activation(data, layout.activation),
    }
    return options, found


def _activation(data: Mapping[str, Any], default: str) -> str:
    """Class name of the activation; SB3 writes the text of it beside the pickle."""
    text = str(data.get("policy_kwargs", {}).get("activation_fn", ""))
    match = re.search(r"activation\.(\w+)'", text)
    return match[1] if match else default


def import_sb3(path: str | Path, config: Any, *, folder: str | Path) -> Path:
    """Make a run folder of a saved Stable-Baselines3 model, for ``eval``, films and reports.

    Args:
        path: the zip that ``model.save`` wrote.
        config: the environment it was trained on, as a ``TrainConfig`` (a recipe); its policy is
            replaced.
        folder: the run folder to make.

    Raises:
        ValueError: a model that cannot be read, or one for another environment.
    """
    from embodied_rl.build import build_env, build_policy, policy_spec
    from embodied_rl.checkpoint import CheckpointManager
    from embodied_rl.config import ConfigError, component, to_yaml

    options, weights = read_sb3(path)
    config = replace(
        config,
        policy=component("policies", "sb3", **options),
        imitation=None,
        init_from="",
        normalize_values=False,
        env=replace(config.env, normalize_obs=False, instruction_embedding="none"),
    )
    env = build_env(config.env, seed=0, autoreset=False, num_envs=1, group_size=1)
    spec, task_names = policy_spec(env, config.env), list(env.task_names)
    env.close()
    policy = build_policy(config, spec)
    assert isinstance(policy, torch.nn.Module)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{path} was trained on other observations or actions than those of this environment "
            f"({str(error).splitlines()[1].strip()}): set env.observations and env.chunk_length"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    state = {
        "config": to_yaml(config),
        "spec": {
            "obs_shapes": {name: list(shape) for name, shape in spec.obs_shapes.items()},
            "obs_dtypes": dict(spec.obs_dtypes),
            "action_dim": spec.action_dim,
            "num_actions": spec.num_actions,
            "chunk_length": spec.chunk_length,
            "num_tasks": spec.num_tasks,
        },
        "policy": policy.state_dict(),
        "task_names": task_names,
        "normalizer": None,
        "cursor": None,
    }
    CheckpointManager(folder / "checkpoints").save(0, state)
    return folder
