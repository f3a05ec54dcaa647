"""Questions whose answers are short strings, and the loop that trains on them in seconds.

A question is a text; ``score(question, answer)`` is the reward. Environment, rollouts, advantages
and updates are those of every other run: only the simulator is missing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from embodied_rl import rollout as rollouts
from embodied_rl.algorithms.policy_gradient import PolicyGradient
from embodied_rl.policies import make_policy
from embodied_rl.statistics import bootstrap_interval
from embodied_rl.types import Advantages, PolicySpec, Rollout, TensorDict

CHAT_BYTES, ANSWER_BYTES = 160, 24
SPEC = PolicySpec(
    obs_shapes={"chat": (CHAT_BYTES,)}, obs_dtypes={"chat": "uint8"}, text_bytes=ANSWER_BYTES
)
Score = Callable[[str, str], float]


def chats(questions: Sequence[str]) -> TensorDict:
    """Observations ``chat`` uint8 [N, C]."""
    rows = torch.zeros(len(questions), CHAT_BYTES, dtype=torch.uint8)
    for row, question in zip(rows, questions, strict=True):
        content = [{"type": "text", "text": question}]
        data = json.dumps([{"role": "user", "content": content}]).encode()
        row[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    return {"chat": rows}


def texts(actions: Tensor) -> list[str]:
    """The answers of uint8 [N, A]."""
    return [bytes(row).rstrip(b"\0").decode() for row in actions.numpy()]


def to_actions(answers: Sequence[str]) -> Tensor:
    """uint8 [N, A] of answers."""
    rows = torch.zeros(len(answers), ANSWER_BYTES, dtype=torch.uint8)
    for row, answer in zip(rows, answers, strict=True):
        row[: len(answer)] = torch.tensor(list(answer.encode()), dtype=torch.uint8)
    return rows


class Questions:
    """What `rollout.collect` steps: ``num_envs / group`` questions, ``group`` answers to each.

    Args:
        pool: questions to draw from, without repetition within a rollout.
        score: the reward.
        num_envs: N.
        group: answers per question.
        seed: of the draws.
    """

    def __init__(
        self, pool: Sequence[str], score: Score, *, num_envs: int, group: int, seed: int
    ) -> None:
        self.pool, self.score, self.num_envs, self.group = list(pool), score, num_envs, group
        self.device, self.random = torch.device("cpu"), random.Random(seed)
        self.task_ids = torch.zeros(num_envs, dtype=torch.int64)
        self.group_ids = torch.arange(num_envs) // group

    def reset(self, **options: Any) -> tuple[TensorDict, dict[str, Any]]:
        """New questions."""
        drawn = self.random.sample(self.pool, self.num_envs // self.group)
        self.asked = [question for question in drawn for _ in range(self.group)]
        self.obs = chats(self.asked)
        return self.obs, {}

    def send(self, actions: Tensor) -> None:
        """Score the answers."""
        pairs = zip(self.asked, texts(actions), strict=True)
        self.rewards = torch.tensor([self.score(question, answer) for question, answer in pairs])

    def recv(self) -> tuple[TensorDict, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Every episode ends with its answer."""
        yes = torch.ones(self.num_envs, dtype=torch.bool)
        info = {
            "success": self.rewards >= 1,
            "valid": yes,
            "num_env_steps": yes.long(),
            "unit_mask": yes.unsqueeze(1),
            "episode": {"return": self.rewards},
            "_episode": yes,
        }
        return self.obs, self.rewards, yes, ~yes, info


def policy_of(name: str, *, seed: int, **options: Any) -> Any:
    """A registered policy with weights of this seed."""
    torch.manual_seed(seed)
    return make_policy(name, SPEC, **options)


def play(env: Questions, policy: Any, generator: torch.Generator) -> Rollout:
    """One answer per row."""
    world: Any = env
    return rollouts.collect(world, policy, rollouts.start(world), generator=generator)


def learn(
    env: Questions,
    update: PolicyGradient,
    advantage: Callable[[Rollout], Advantages],
    *,
    steps: int,
    seed: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """The loop of a trainer, without folders."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rollout = update.shape_rewards(play(env, update.policy, generator))
        update.update(rollout, advantage(rollout), generator=generator)
        after_step(step)


def imitate(
    policy: Any,
    pairs: Callable[[random.Random], tuple[str, str]],
    *,
    steps: int,
    seed: int,
    rate: float = 3e-3,
) -> None:
    """Imitation of (question, answer) pairs drawn afresh for every step."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        questions, answers = zip(*(pairs(draw) for _ in range(128)), strict=True)
        mask = torch.ones(128, 1, dtype=torch.bool)
        loss = policy.imitation_loss(
            chats(questions), to_actions(answers), mask, generator=generator
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def answers_of(policy: Any, questions: Sequence[str], *, seed: int | None = None) -> list[str]:
    """Answers, greedy without a seed."""
    generator = torch.Generator().manual_seed(seed or 0)
    output = policy.sample(chats(questions), deterministic=seed is None, generator=generator)
    return texts(output.actions)


def mean_score(
    policy: Any, questions: Sequence[str], score: Score, *, seed: int | None = None
) -> float:
    """Mean reward of one answer to each question."""
    answers = answers_of(policy, questions, seed=seed)
    return sum(map(score, questions, answers)) / len(questions)


def interval(values: Sequence[float], *, digits: int = 3) -> str:
    """``mean [low, high]`` with a 95 % bootstrap interval over seeds."""
    low, high = bootstrap_interval(values)
    mean = sum(values) / len(values)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
