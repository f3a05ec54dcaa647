"""embodied-rl: one reinforcement-learning core for policies that act in simulators and in words."""

from pathlib import Path

__version__ = "0.1.0"

# `envs`, `policies`, `configs` and `assets` are symlinks in a checkout. Where Git cannot make them
# it writes plain text files in their place, which Python would report as "no module named ...".
if Path(__file__).with_name("envs").is_file():
    raise ImportError(
        "this checkout has text files where it should have symlinks (embodied_rl/envs and others); "
        "run `git config core.symlinks true && git checkout -- embodied_rl`, or install a wheel"
    )
