"""A PPO in one file, in the style of CleanRL, to compare with.

Written from the published description (Huang et al. 2022, "CleanRL", JMLR 23(274), and "The 37
Implementation Details of Proximal Policy Optimization", ICLR blog track 2022), not from its code:
buffers [T, N], one network call per step for action, log-probability and value, GAE in a loop over
T, shuffled minibatches, advantages normalised per minibatch, one Adam for both networks, scalars to
TensorBoard after each iteration. Plain torch, nothing of this project but the settings.

Like the other contestants, finished environments are reset inside the step that finished them, and
a step that was cut off by the time limit bootstraps from the value of its last observation.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.utils.tensorboard import SummaryWriter

from benchmarks.settings import HIDDEN_DIMS, Setting, make_pool


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    """Orthogonal weights, zero bias."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, 0.0)
    return layer


class Agent(nn.Module):
    """Separate actor and critic."""

    def __init__(self, obs_dim: int, action_space: Any) -> None:
        super().__init__()
        self.discrete = isinstance(action_space, spaces.Discrete)
        outputs = int(action_space.n) if self.discrete else int(action_space.shape[0])
        first, second = HIDDEN_DIMS
        self.critic = nn.Sequential(
            layer_init(nn.Linear(obs_dim, first)),
            nn.Tanh(),
            layer_init(nn.Linear(first, second)),
            nn.Tanh(),
            layer_init(nn.Linear(second, 1), std=1.0),
        )
        self.actor = nn.Sequential(
            layer_init(nn.Linear(obs_dim, first)),
            nn.Tanh(),
            layer_init(nn.Linear(first, second)),
            nn.Tanh(),
            layer_init(nn.Linear(second, outputs), std=0.01),
        )
        if not self.discrete:
            self.log_std = nn.Parameter(torch.zeros(1, outputs))

    def get_value(self, obs: Tensor) -> Tensor:
        """[B, 1]."""
        return self.critic(obs)

    def get_action_and_value(
        self, obs: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(action, log-probability [B], entropy [B], value [B, 1])."""
        output = self.actor(obs)
        if self.discrete:
            policy = Categorical(logits=output)
            action = policy.sample() if action is None else action
            return action, policy.log_prob(action), policy.entropy(), self.critic(obs)
        normal = Normal(output, self.log_std.expand_as(output).exp())
        action = normal.sample() if action is None else action
        return action, normal.log_prob(action).sum(1), normal.entropy().sum(1), self.critic(obs)


class SingleFilePPO:
    """State of a training run; ``train`` continues it for some iterations."""

    def __init__(self, setting: Setting, *, seed: int, folder: Path) -> None:
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.setting = setting
        self.envs = make_pool(setting, seed=seed)
        self.action_space = self.envs.action_space
        self.agent = Agent(self.envs.observation_space.shape[0], self.action_space)
        self.optimizer = torch.optim.Adam(
            self.agent.parameters(), lr=setting.learning_rate, eps=1e-5
        )
        self.writer = SummaryWriter(folder)
        self.returns: deque[float] = deque(maxlen=100)
        self.global_step = 0
        self.start_time = time.time()

        steps, envs = setting.num_steps, setting.num_envs
        shape = () if self.agent.discrete else self.action_space.shape
        self.obs = torch.zeros((steps, envs, *self.envs.observation_space.shape))
        self.actions = torch.zeros((steps, envs, *shape))
        self.log_probs = torch.zeros((steps, envs))
        self.rewards = torch.zeros((steps, envs))
        self.dones = torch.zeros((steps, envs))
        self.values = torch.zeros((steps, envs))
        self.episode_return = np.zeros(envs)
        self.next_obs = torch.Tensor(self.envs.reset()[0])
        self.next_done = torch.zeros(envs)

    def train(self, num_iterations: int) -> None:
        """Collect and update ``num_iterations`` times."""
        for _ in range(num_iterations):
            self.collect()
            self.update(*self.advantages())

    def collect(self) -> None:
        """Fill the buffers with T steps."""
        for step in range(self.setting.num_steps):
            self.global_step += self.setting.num_envs
            self.obs[step] = self.next_obs
            self.dones[step] = self.next_done
            with torch.no_grad():
                action, log_prob, _, value = self.agent.get_action_and_value(self.next_obs)
                self.values[step] = value.flatten()
            self.actions[step] = action
            self.log_probs[step] = log_prob
            next_obs, reward, terminated, truncated, _ = self.envs.step(self.clip(action))
            self.episode_return += reward
            done = np.logical_or(terminated, truncated)
            self.rewards[step] = torch.tensor(reward).view(-1)
            if done.any():
                next_obs = self.reset_finished(step, next_obs, done, truncated & ~terminated)
            self.next_obs, self.next_done = torch.Tensor(next_obs), torch.Tensor(done)

    def clip(self, action: Tensor) -> np.ndarray:
        """Actions as envpool takes them."""
        if self.agent.discrete:
            return action.numpy()
        return np.clip(action.numpy(), self.action_space.low, self.action_space.high)

    def reset_finished(
        self, step: int, next_obs: np.ndarray, done: np.ndarray, cut: np.ndarray
    ) -> np.ndarray:
        """Bootstrap what was cut off, record returns, reset."""
        if cut.any():
            with torch.no_grad():
                final = self.agent.get_value(torch.Tensor(next_obs[cut])).flatten()
            self.rewards[step, torch.as_tensor(cut)] += self.setting.gamma * final
        for index in np.flatnonzero(done):
            self.returns.append(float(self.episode_return[index]))
            self.writer.add_scalar("charts/episodic_return", self.returns[-1], self.global_step)
        self.episode_return[done] = 0.0
        next_obs = next_obs.copy()
        next_obs[done] = self.envs.reset(np.flatnonzero(done))[0]
        return next_obs

    def advantages(self) -> tuple[Tensor, Tensor]:
        """GAE: (advantages, returns), [T, N]."""
        setting = self.setting
        with torch.no_grad():
            next_value = self.agent.get_value(self.next_obs).reshape(1, -1)
            advantages = torch.zeros_like(self.rewards)
            last = torch.zeros(setting.num_envs)
            for t in reversed(range(setting.num_steps)):
                if t == setting.num_steps - 1:
                    nonterminal, following = 1.0 - self.next_done, next_value
                else:
                    nonterminal, following = 1.0 - self.dones[t + 1], self.values[t + 1]
                delta = self.rewards[t] + setting.gamma * following * nonterminal - self.values[t]
                last = delta + setting.gamma * setting.gae_lambda * nonterminal * last
                advantages[t] = last
        return advantages, advantages + self.values

    def update(self, advantages: Tensor, returns: Tensor) -> None:
        """Epochs of minibatches, then the scalars."""
        setting = self.setting
        b_obs = self.obs.reshape(setting.batch_size, -1)
        b_actions = self.actions.reshape(setting.batch_size, *self.actions.shape[2:])
        b_log_probs, b_values = self.log_probs.reshape(-1), self.values.reshape(-1)
        b_advantages, b_returns = advantages.reshape(-1), returns.reshape(-1)
        indices = np.arange(setting.batch_size)
        clip_fractions: list[float] = []
        losses: dict[str, Tensor] = {}
        for _ in range(setting.num_epochs):
            self.rng.shuffle(indices)
            for start in range(0, setting.batch_size, setting.minibatch_size):
                rows = indices[start : start + setting.minibatch_size]
                _, new_log_prob, entropy, new_value = self.agent.get_action_and_value(
                    b_obs[rows], b_actions[rows]
                )
                log_ratio = new_log_prob - b_log_probs[rows]
                ratio = log_ratio.exp()
                with torch.no_grad():
                    old_approx_kl = (-log_ratio).mean()
                    approx_kl = ((ratio - 1) - log_ratio).mean()
                    outside = ((ratio - 1.0).abs() > setting.clip_ratio).float().mean()
                    clip_fractions.append(outside.item())
                mb_advantages = b_advantages[rows]
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (
                    mb_advantages.std() + 1e-8
                )
                pg_loss1 = -mb_advantages * ratio
                pg_loss2 = -mb_advantages * torch.clamp(
                    ratio, 1 - setting.clip_ratio, 1 + setting.clip_ratio
                )
                pg_loss = torch.max(pg_loss1, pg_loss2).mean()
                v_loss = 0.5 * ((new_value.view(-1) - b_returns[rows]) ** 2).mean()
                entropy_loss = entropy.mean()
                loss = pg_loss - setting.entropy_coef * entropy_loss + v_loss
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), setting.max_grad_norm)
                self.optimizer.step()
                losses = {
                    "losses/value_loss": v_loss,
                    "losses/policy_loss": pg_loss,
                    "losses/entropy": entropy_loss,
                    "losses/old_approx_kl": old_approx_kl,
                    "losses/approx_kl": approx_kl,
                }
        self.log(losses, clip_fractions, b_values.numpy(), b_returns.numpy())

    def log(
        self,
        losses: dict[str, Tensor],
        clip_fractions: list[float],
        y_pred: np.ndarray,
        y_true: np.ndarray,
    ) -> None:
        """Scalars of an update; the losses are those of its last minibatch."""
        var_y = np.var(y_true)
        explained = np.nan if var_y == 0 else 1 - np.var(y_true - y_pred) / var_y
        scalars = {name: loss.item() for name, loss in losses.items()} | {
            "losses/clipfrac": float(np.mean(clip_fractions)),
            "losses/explained_variance": float(explained),
            "charts/SPS": self.global_step / (time.time() - self.start_time),
        }
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, self.global_step)

    def close(self) -> None:
        """Close environments and log."""
        self.envs.close()
        self.writer.close()
