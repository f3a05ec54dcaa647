"""What every contestant runs: environment, network and PPO options, the same for all.

The options are those of the common PPO setting (2 x 64 tanh, separate actor and critic, 4 epochs of
4 minibatches). Nothing is normalised but the advantages. The value term is 0.5 * (V - R)^2 with
weight 1 everywhere, which is ``vf_coef=0.5`` on Stable-Baselines3's mean squared error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HIDDEN_DIMS = (64, 64)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One environment with the PPO options all contestants share.

    Attributes:
        title: heading of the table.
        env_id: envpool id.
        env_options: further options of ``envpool.make_gymnasium``.
        num_envs: N environments stepped together.
        num_threads: threads of envpool; torch always has one.
        num_steps: T, steps per environment and iteration.
        learning_rate: Adam, constant, eps 1e-5.
        gamma, gae_lambda: of GAE.
        entropy_coef: weight of the entropy bonus.
        round_iterations: iterations of one benchmark round.
        num_epochs, num_minibatches, clip_ratio, max_grad_norm: of PPO.
    """

    title: str
    env_id: str
    env_options: Mapping[str, Any] = field(default_factory=dict)
    num_envs: int
    num_threads: int
    num_steps: int
    learning_rate: float
    gamma: float
    gae_lambda: float
    entropy_coef: float
    round_iterations: int
    num_epochs: int = 4
    num_minibatches: int = 4
    clip_ratio: float = 0.2
    max_grad_norm: float = 0.5

    @property
    def batch_size(self) -> int:
        """Steps of one iteration, T * N."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Rows of one gradient step."""
        return self.batch_size // self.num_minibatches


CARTPOLE = Setting(
    title="CartPole-v1",
    env_id="CartPole-v1",
    num_envs=8,
    num_threads=1,
    num_steps=128,
    learning_rate=1e-3,
    gamma=0.99,
    gae_lambda=0.95,
    entropy_coef=0.01,
    round_iterations=48,
)

REACH = Setting(
    title="Meta-World reach-v3, dense reward",
    env_id="MetaWorld/Reach-v3",
    env_options={"partially_observable": False},
    num_envs=64,
    num_threads=2,
    num_steps=32,
    learning_rate=3e-4,
    gamma=0.99,
    gae_lambda=0.95,
    entropy_coef=0.0,
    round_iterations=16,
)

SETTINGS = {"cartpole": CARTPOLE, "reach": REACH}


def make_pool(setting: Setting, *, seed: int) -> Any:
    """The envpool environments of a setting, with its own gymnasium interface."""
    import envpool

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds that lose precision in float32
        return envpool.make_gymnasium(
            setting.env_id,
            num_envs=setting.num_envs,
            num_threads=setting.num_threads,
            seed=seed,
            **setting.env_options,
        )
