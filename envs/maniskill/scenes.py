"""One ManiSkill task in numpy: N scenes that are reset by row and seed and stepped together.

ManiSkill works on torch tensors with a leading axis even for a single scene. ``Scenes`` is the
border: it makes the environment, turns its nested observation into named leaves, and its success,
failure and reward into arrays. ``physx_cuda`` takes any N, and so does ``physx_cpu`` with ``many``,
through the same lines.

An episode is started by ``reset(seed)`` of its row alone, so that its start does not depend on
which other rows were reset with it (ManiSkill draws the starts of a joint reset from the seed of
its first row).

Axes: N scene, n scenes of a partial reset, D action dimension, C channel.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from embodied_rl.envs.maniskill.features import RELATIVE, relative_features
from embodied_rl.envs.maniskill.headless import (
    MissingAssetsError,
    can_draw,
    import_maniskill,
    render_backend,
)
from embodied_rl.envs.maniskill.tasks import (
    CONTROL_MODES,
    UNREPEATABLE,
    download_command,
)
from embodied_rl.envs.spaces import Array, ArrayDict
from embodied_rl.registry import near_names

if TYPE_CHECKING:
    from embodied_rl.envs.maniskill.shapes import ShapeCamera

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

OBS_MODES = ("state", "state_dict", "rgb", "rgbd")
REWARDS = ("sparse", "dense", "normalized_dense", "none")
FEATURES = ("state", "relative")


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a task is set up; see ``embodied_rl.envs.maniskill.make``."""

    obs_mode: str = "state"
    control_mode: str | None = None
    reward: str = "sparse"
    features: str = "state"
    image_size: int = 128
    render: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("obs_mode", self.obs_mode, OBS_MODES),
            ("reward", self.reward, REWARDS),
            ("features", self.features, FEATURES),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}{near_names(value, known)}; give one of {known}")
        if self.features == "relative" and self.pictures:
            raise ValueError(
                f"features='relative' is made of object poses, which obs_mode={self.obs_mode!r} "
                "does not have: set obs_mode='state' or features='state'"
            )

    @property
    def pictures(self) -> bool:
        """Whether observations hold pictures."""
        return self.obs_mode in ("rgb", "rgbd")


@dataclass(frozen=True, slots=True)
class SceneStep:
    """One step of all N scenes; ``success`` is None for a task that has no notion of it."""

    obs: ArrayDict
    rewards: Array
    failed: BoolArray
    success: BoolArray | None

    def of(self, rows: IntArray) -> tuple[ArrayDict, Array, BoolArray, BoolArray, BoolArray | None]:
        """(obs, rewards, terminated, truncated, success) of ``rows`` [n].

        ``terminated`` is failure alone; the time limit is not kept here.
        """
        return (
            {name: value[rows] for name, value in self.obs.items()},
            self.rewards[rows],
            self.failed[rows],
            np.zeros(rows.size, np.bool_),
            None if self.success is None else self.success[rows],
        )


class Scenes:
    """N scenes of one task.

    Args:
        task: id such as ``"PickCube-v1"``.
        options: observations, control and reward.
        num_envs: N; on the CPU more than 1 needs a task of ``TOGETHER``.
        sim_backend: ``"physx_cpu"`` or ``"physx_cuda"``.

    Raises:
        ValueError: an option that the task does not have, or files that it lacks.
    """

    def __init__(
        self,
        task: str,
        *,
        options: SceneOptions,
        num_envs: int = 1,
        sim_backend: str = "physx_cpu",
    ) -> None:
        if options.features == "relative" and task not in RELATIVE:
            raise ValueError(
                f"features='relative' is not known for {task}: set features='state', or take one "
                f"of {', '.join(RELATIVE)}"
            )
        self.task = task
        self.options = options
        self.num_envs = num_envs
        self.env = _build(task, options, num_envs, sim_backend)
        self._shapes: ShapeCamera | None = None
        self._many = num_envs > 1 and sim_backend == "physx_cpu"
        # A new scene for all rows at once is no reset of some of them.
        self._rebuild = task in UNREPEATABLE and num_envs == 1
        _mend_sparse_reward(self.env)
        self._actions = _ActionLayout(self.env.single_action_space)
        self.action_space = self._actions.space
        leaves = self._observe(self.env.reset(seed=[0] * num_envs)[0])
        self.observation_space = spaces.Dict(
            {name: _box(value[0], name) for name, value in leaves.items()}
        )

    def reset(self, rows: IntArray, seeds: IntArray) -> ArrayDict:
        """Start an episode in ``rows`` [n] with ``seeds`` [n]; returns all N observations."""
        raw: Any = None
        with self._quiet():
            for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
                raw = self._reset_row(row, seed)
        return self._observe(self.env.get_obs() if self._many else raw)

    def _reset_row(self, row: int, seed: int) -> Any:
        import torch

        options: dict[str, Any] = {}
        if self.num_envs > 1:
            options["env_idx"] = torch.tensor([row], device=self.env.device)
        if self._rebuild:
            options["reconfigure"] = True
        with self.env.scene.only(row) if self._many else contextlib.nullcontext():
            # Every row's generator gets the seed, since tasks differ in which of them they read.
            return self.env.reset(seed=[seed] * self.num_envs, options=options)[0]

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Rows that start together are observed once."""
        if self._many:
            self.env.quiet = True
        try:
            yield
        finally:
            if self._many:
                self.env.quiet = False

    def step(self, actions: Array, rows: IntArray | None = None) -> SceneStep:
        """Step all scenes with ``actions`` [N, D] in the units of ``action_space``.

        Args:
            actions: of all N.
            rows: those to step (None: all); on the CPU the others stand still, on a GPU they
                are stepped too. What is returned for them means nothing.
        """
        if not self._many or rows is None or rows.size == self.num_envs:
            return self._step(actions)
        from embodied_rl.envs.maniskill.many import kept

        self.env.scene.active = rows.tolist()
        try:
            with kept(self.env, np.delete(np.arange(self.num_envs), rows)):
                return self._step(actions)
        finally:
            self.env.scene.active = list(range(self.num_envs))

    def _step(self, actions: Array) -> SceneStep:
        raw, rewards, _, _, info = self.env.step(self._actions.split(actions))
        success = info.get("success")
        failed = info.get("fail")
        return SceneStep(
            self._observe(raw),
            rewards.cpu().numpy().astype(np.float32),  # sparse ones are bool
            np.zeros(self.num_envs, np.bool_) if failed is None else _flags(failed),
            None if success is None else _flags(success),
        )

    def render(self) -> Array:
        """uint8 [H, W, 3] of the first scene, from the camera for people.

        Raises:
            ValueError: built without ``render`` or pictures.
        """
        if not (self.options.render or self.options.pictures):
            raise ValueError("this environment draws nothing: make it with render=True")
        if can_draw():
            return self.env.render_rgb_array()[0].cpu().numpy()
        # A task that is built anew for an episode has other bodies then.
        if self._shapes is None or self._shapes.scene is not self.env.scene.sub_scenes[0]:
            from embodied_rl.envs.maniskill.shapes import ShapeCamera

            self._close_camera()
            self._shapes = ShapeCamera(self.env)
        return self._shapes.render()

    def _close_camera(self) -> None:
        if self._shapes is not None:
            self._shapes.close()

    def close(self) -> None:
        """Release the scenes."""
        self._close_camera()
        self.env.close()

    def _observe(self, raw: Mapping[str, Any]) -> ArrayDict:
        """Observation leaves [N, ...] as new arrays."""
        if self.options.pictures:
            return self._observe_pictures(raw)
        leaves = _leaves(raw)
        obs = leaves
        if self.options.obs_mode == "state":
            obs = {"state": concatenate(leaves, self.num_envs)}
        if self.options.features == "relative":
            obs = {**obs, "relative": relative_features(leaves, task=self.task)}
        return obs

    def _observe_pictures(self, raw: Mapping[str, Any]) -> ArrayDict:
        """``state`` of what the robot feels, and per camera ``image_*`` (and ``depth_*``)."""
        sensed = {k: v for k, v in raw.items() if k not in ("sensor_data", "sensor_param")}
        obs = {"state": concatenate(_leaves(sensed), self.num_envs)}
        for camera, data in raw["sensor_data"].items():
            obs[f"image_{camera}"] = _channels_first(data["rgb"])
            if self.options.obs_mode == "rgbd":
                millimetres = _channels_first(data["depth"])
                obs[f"depth_{camera}"] = millimetres.astype(np.float32) / 1000
        return obs


def _mend_sparse_reward(env: Any) -> None:
    """ManiSkill 3.0.1 negates a bool tensor where a task can fail and not succeed."""
    from mani_skill.envs.sapien_env import BaseEnv

    if type(env).compute_sparse_reward is not BaseEnv.compute_sparse_reward:
        return

    def sparse_reward(obs: Any, action: Any, info: Mapping[str, Any]) -> Any:
        reward = env.elapsed_steps.float() * 0
        if "success" in info:
            reward = reward + info["success"]
        if "fail" in info:
            reward = reward - info["fail"].float()
        return reward

    env.compute_sparse_reward = sparse_reward


class _ActionLayout:
    """A Box over all arms: actions [N, D] to what ManiSkill takes."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        low, high, self._slices, start = [], [], {}, 0
        for name, part in parts.items():
            assert isinstance(part, spaces.Box)
            low.append(part.low)
            high.append(part.high)
            self._slices[name] = slice(start, start + part.low.size)
            start += part.low.size
        self.space = spaces.Box(
            np.concatenate(low).astype(np.float32), np.concatenate(high).astype(np.float32)
        )

    def split(self, actions: Array) -> Any:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(actions, np.float32))
        if "" in self._slices:
            return tensor
        return {name: tensor[:, part] for name, part in self._slices.items()}


def concatenate(leaves: ArrayDict, num_envs: int) -> Array:
    """Leaves [N, ...] side by side, [N, S] float32, in the order of ManiSkill's flat state."""
    flat = [value.reshape(num_envs, -1).astype(np.float32) for value in leaves.values()]
    return np.concatenate(flat, axis=1)


def _build(task: str, options: SceneOptions, num_envs: int, sim_backend: str) -> Any:
    if download_command(task) is not None:
        _require_package(task)
    spec = _spec(task)
    keywords: dict[str, Any] = dict(spec.default_kwargs)
    control_mode = options.control_mode or CONTROL_MODES.get(task)
    if control_mode is not None:
        keywords["control_mode"] = control_mode
    pictures = options.pictures or (options.render and can_draw())
    if pictures:
        size = options.image_size
        keywords["sensor_configs"] = {"width": size, "height": size}
    _check_reward(task, spec.cls, options.reward)
    make: Any = spec.cls
    if num_envs > 1 and sim_backend == "physx_cpu":
        from embodied_rl.envs.maniskill.many import many

        make = many(spec.cls)
    printed = io.StringIO()  # what it prints before it asks to download
    try:
        with contextlib.redirect_stdout(printed):
            return make(
                num_envs=num_envs,
                obs_mode=options.obs_mode if options.pictures else "state_dict",
                reward_mode=options.reward,
                render_mode="rgb_array" if pictures else None,
                sim_backend=sim_backend,
                render_backend=render_backend(pictures=pictures),
                **keywords,
            )
    except (MissingAssetsError, FileNotFoundError, RuntimeError, AssertionError) as error:
        raise _explained(task, error) from error


def _explained(task: str, error: Exception) -> Exception:
    """One sentence for a task that cannot be built."""
    command = download_command(task)
    if command is not None:
        return ValueError(f"{task} needs files that are not there: run `{command}`")
    if isinstance(error, AssertionError) and "not in supported modes" in str(error):
        mode, _, modes = str(error).partition(" not in supported modes: ")
        return ValueError(f"{task} has no control_mode {mode!r}: set one of {modes}")
    return error


def _require_package(task: str) -> None:
    """Say at once what is missing, before anything is built.

    Raises:
        ValueError: with the command that mends it.
    """
    from importlib.util import find_spec

    command = download_command(task)
    if command is not None and command.startswith("pip "):
        if find_spec(command.split()[-1]) is None:
            raise ValueError(f"{task} needs a package that is not installed: run `{command}`")
        return
    missing = missing_assets(task)
    if missing:
        raise ValueError(
            f"{task} needs {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}, "
            f"which is not there: run `{command}`"
        )


def missing_assets(task: str) -> list[str]:
    """Names of the asset sources that an id asks for and that are not on the disk."""
    import_maniskill()
    from mani_skill.utils import assets

    missing = []
    for name in _spec(task).asset_download_ids or []:
        group = name in assets.DATA_GROUPS
        sources = (
            assets.expand_data_group_into_individual_data_source_ids(name) if group else [name]
        )
        missing += [source for source in sources if not assets.is_data_source_downloaded(source)]
    return missing


def _spec(task: str) -> Any:
    import_maniskill()
    from mani_skill.utils.registration import REGISTERED_ENVS

    if task not in REGISTERED_ENVS:
        raise ValueError(f"this version of ManiSkill has no {task}: pip install mani-skill==3.0.1")
    return REGISTERED_ENVS[task]


def _check_reward(task: str, cls: Any, reward: str) -> None:
    supported = tuple(cls.SUPPORTED_REWARD_MODES)
    if reward not in supported:
        raise ValueError(f"{task} has no reward {reward!r}: set reward to one of {supported}")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> ArrayDict:
    """Tensors of a nested observation by path, [N, ...] float32."""
    leaves: ArrayDict = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(_leaves(value, f"{prefix}{name}/"))
        else:
            leaves[prefix + name] = value.cpu().numpy().astype(np.float32)
    return leaves


def _flags(value: Any) -> BoolArray:
    return value.cpu().numpy().astype(np.bool_)


def _channels_first(picture: Any) -> Array:
    """[N, H, W, C] to a new array [N, C, H, W]."""
    return np.ascontiguousarray(picture.permute(0, 3, 1, 2).cpu().numpy())


def _box(example: Array, name: str) -> spaces.Box:
    if name.startswith("image_"):
        return spaces.Box(0, 255, example.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, example.shape, np.float32)
