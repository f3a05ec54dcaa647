"""Importing ManiSkill so that it neither prompts nor needs a graphics driver for states.

SAPIEN makes materials, textures and lights through Vulkan even where nothing is drawn, and fails
without a driver. Where it finds none, those classes are replaced by ``Placeholder`` before
ManiSkill is imported, and scenes are built with ``render_backend="none"``: physics and states are
the same, pictures are impossible. With a driver nothing is replaced.

ManiSkill asks on the terminal before it downloads files; here the question is an error instead.
"""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

KEPT = ("RenderBodyComponent", "RenderCameraComponent", "RenderSystem", "RenderSystemGroup")
"""Render classes that ManiSkill looks up by type, which works without a driver."""
INSTALL = "ManiSkill is not installed: pip install 'embodied-rl[maniskill]'"
NO_DRIVER = (
    "pictures need a Vulkan driver, and SAPIEN finds none here (`embodied-rl doctor` says how to "
    "get one); states work without"
)


class MissingAssetsError(ValueError):
    """A task needs files that are not there."""


class Placeholder:
    """Takes any arguments, has any attribute, does nothing; stands for a material or a light."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Placeholder:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder()

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        """Any method call."""
        return Placeholder()


@functools.cache
def can_draw() -> bool:
    """Whether SAPIEN finds a device to draw with, CPU or GPU.

    Raises:
        ValueError: SAPIEN is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes its own libvulkan
        try:
            import sapien
        except ImportError as error:
            raise ValueError(INSTALL) from error
        try:
            return bool(sapien.pysapien.render.get_device_summary())
        except RuntimeError:
            return False


@functools.cache
def import_maniskill() -> Any:
    """The module ``mani_skill``, with its tasks registered.

    Raises:
        ValueError: ManiSkill is not installed.
    """
    if not can_draw():
        _replace_render_classes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import mani_skill
            import mani_skill.envs
            from mani_skill.utils import download_asset
        except ImportError as error:
            raise ValueError(INSTALL) from error
    download_asset.prompt_yes_no = _refuse
    if not can_draw():
        _adapt_maniskill()
    # It logs a warning for every body that a task places after building it.
    mani_skill.logger.setLevel(logging.ERROR)
    return mani_skill


def render_backend(*, pictures: bool) -> str:
    """What a scene is built with: ``"none"`` unless pictures are wanted.

    Raises:
        ValueError: pictures are wanted and there is no driver.
    """
    if not pictures:
        return "none"
    if not can_draw():
        raise ValueError(NO_DRIVER)
    import torch

    return "sapien_cuda" if torch.cuda.is_available() else "sapien_cpu"


def _adapt_maniskill() -> None:
    """PushT paints its table white, by way of what was replaced; the physics are the same."""
    from mani_skill.envs.tasks.tabletop import push_t
    from mani_skill.utils.building import _mjcf_loader
    from mani_skill.utils.scene_builder.table import TableSceneBuilder

    push_t.WhiteTableSceneBuilder.build = TableSceneBuilder.build
    # It has names of its own for them if ManiSkill was imported before.
    _mjcf_loader.RenderMaterial = Placeholder
    _mjcf_loader.RenderTexture2D = Placeholder


def _refuse(message: str) -> bool:
    raise MissingAssetsError(message)


def _replace_render_classes() -> None:
    import sapien
    from sapien import pysapien
    from sapien.wrapper import urdf_loader

    for name in dir(pysapien.render):
        if name.startswith("Render") and name not in KEPT:
            setattr(sapien.render, name, Placeholder)
            setattr(pysapien.render, name, Placeholder)
    urdf_loader.RenderMaterial = Placeholder
    urdf_loader.RenderTexture2D = Placeholder
