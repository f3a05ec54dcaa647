"""Policies: one file or folder per family, each registered in ``embodied_rl/registry.py``."""

if not __name__.startswith("embodied_rl."):
    raise ImportError("import this package as embodied_rl.policies, not as a top-level package")

from typing import Any

from embodied_rl.registry import registry
from embodied_rl.types import Policy, PolicySpec

__all__ = ["make_policy"]


def make_policy(name: str, spec: PolicySpec, **options: Any) -> Policy:
    """Build a registered policy for the environment described by ``spec``.

    Raises:
        RegistryError: unknown name.
        ValueError: options or spec that the policy cannot serve.
    """
    return registry("policies").get(name)(spec, **options)
