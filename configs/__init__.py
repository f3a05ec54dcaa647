"""Recipes: named functions that return a ``TrainConfig``, one file per simulator."""

if not __name__.startswith("embodied_rl."):
    raise ImportError("import this package as embodied_rl.configs, not as a top-level package")

from collections.abc import Callable

from embodied_rl.config import TrainConfig

Recipe = Callable[[], TrainConfig]


def builtin_recipes() -> dict[str, Recipe]:
    """Every recipe that ships with the package, by name."""
    from embodied_rl.configs import (
        atari,
        envpool,
        libero,
        maniskill,
        metaworld,
        mixed,
        vqa,
        vqa_systems,
    )

    families = (metaworld, envpool, atari, libero, maniskill, vqa, vqa_systems, mixed)
    return {name: recipe for family in families for name, recipe in family.recipes().items()}
