"""A batch of answers and a batch of robot actions are the same to everything behind the policy."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embodied_rl import trainer
from embodied_rl.algorithms.policy_gradient import PolicyGradient
from embodied_rl.config import TrainConfig, component
from embodied_rl.flow import FlowConfig
from embodied_rl.registry import registry
from embodied_rl.types import Advantages, LogProbOutput, Rollout, TensorDict

MASKED = [pytest.param(True, id="masked"), pytest.param(False, id="unmasked")]
CORE = ("advantages", "losses", "algorithms")


def words(runs: Path, *, masked: bool) -> TrainConfig:
    """The recipe of questions; answers end at an "e", so that some are shorter than others."""
    pytest.importorskip("transformers", reason="the extra vlm is not installed")
    base = registry("recipes").get("vqa/shapes_grpo")()
    options: dict[str, Any] = {"stop": ("e",)} if masked else {"max_new_tokens": 1}
    return small(replace(base, policy=base.policy.replace(**options)), runs)


def control(runs: Path, *, masked: bool) -> TrainConfig:
    """The recipe of a robot arm; 12 steps end in the middle of the second chunk of 8 actions."""
    pytest.importorskip("metaworld", reason="the extra metaworld is not installed")
    base = registry("recipes").get("metaworld/reach_grpo")()
    env = replace(base.env, max_episode_steps=12 if masked else 16)
    return small(
        replace(base, env=env, policy=base.policy.replace(flow=FlowConfig(units="action"))), runs
    )


def small(config: TrainConfig, runs: Path) -> TrainConfig:
    """One update of four rows without imitation, whose groups count even if nothing was solved."""
    return replace(
        config,
        env=replace(config.env, num_envs=4, group_size=2),
        advantage=config.advantage.replace(drop_uninformative=False),
        imitation=None,
        total_env_steps=4,
        runs=str(runs),
    )


def one_update(config: TrainConfig) -> tuple[Rollout, set[CodeType]]:
    """The rollout of a first iteration, and every function of the core that its update ran."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith(
            tuple(f"embodied_rl.{part}" for part in CORE)
        ):
            seen.add(frame.f_code)

    session = trainer.open_session(config, None)
    try:
        rollout, advantages = trainer.gather(session)
        sys.setprofile(note)
        registry("advantages").get(config.advantage.name)(rollout, **config.advantage.options)
        steps = list(
            session.algorithm.gradient_steps(rollout, advantages, generator=session.generator)
        )
    finally:
        sys.setprofile(None)
        session.env.close()
        session.logger.close()
    assert steps
    return rollout, seen


@pytest.mark.parametrize("masked", MASKED)
def test_answers_and_robot_actions_run_the_same_functions(masked: bool, tmp_path: Path) -> None:
    answers, of_answers = one_update(words(tmp_path, masked=masked))
    actions, of_actions = one_update(control(tmp_path, masked=masked))
    assert of_answers == of_actions
    names = {code.co_name for code in of_answers}
    assert {"group_relative", "clipped_surrogate", "masked_mean", "_gradient_step"} <= names
    for rollout in (answers, actions):
        used = rollout.unit_mask[rollout.valid]
        assert bool(used.any()) and bool(used.all()) != masked
    assert answers.actions.dtype == torch.uint8 and answers.obs.keys() != actions.obs.keys()


class Table(nn.Module):
    """Log-probabilities and values by heart: row r of a rollout has those of ``replay["row"]``."""

    def __init__(self, rollout: Rollout) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        old = rollout.log_probs.flatten(0, 1)
        self.table = nn.Parameter(old + 0.3 * torch.randn(old.shape, generator=generator))
        self.critic = nn.Parameter(torch.randn(len(old), generator=generator))

    def log_prob(self, obs: TensorDict, actions: Tensor, replay: TensorDict) -> LogProbOutput:
        log_probs, values = self.table[replay["row"]], self.critic[replay["row"]]
        return LogProbOutput(log_probs=log_probs, entropy=-0.5 * log_probs, values=values)

    def value(self, obs: TensorDict) -> Tensor:
        return self.critic[: len(next(iter(obs.values())))]


def experience(*, masked: bool) -> Rollout:
    """Three steps of eight rows with four units, two groups of four, in which somebody wins."""
    generator = torch.Generator().manual_seed(0)
    steps, rows, units = 3, 8, 4
    mask = torch.rand(steps, rows, units, generator=generator) < 0.6
    mask[..., 0] = True
    last = torch.zeros(steps, rows, dtype=torch.bool)
    last[-1] = True
    ids = torch.arange(rows).expand(steps, rows)
    no = torch.zeros(steps, rows, dtype=torch.bool)
    return Rollout(
        obs={},
        actions=torch.zeros(steps, rows, 1),
        log_probs=-torch.rand(steps, rows, units, generator=generator),
        unit_mask=mask if masked else torch.ones_like(mask),
        values=torch.randn(steps, rows, generator=generator),
        next_values=torch.randn(steps, rows, generator=generator),
        rewards=torch.randint(0, 3, (steps, rows), generator=generator).float(),
        terminated=last,
        truncated=no,
        success=last & (ids % 2 == 0),
        valid=~no,
        num_env_steps=torch.ones(steps, rows, dtype=torch.int64),
        group_ids=ids // 4,
        task_ids=ids // 4,
        episode_ids=ids,
        policy_version=torch.zeros(steps, rows, dtype=torch.int64),
        replay={"row": torch.arange(steps * rows).view(steps, rows)},
    )


def as_words(rollout: Rollout) -> Rollout:
    """The same experience with a chat and pictures to look at, and bytes for actions."""
    steps, rows, units = rollout.log_probs.shape
    return replace(
        rollout,
        obs={
            "chat": torch.full((steps, rows, 9), 91, dtype=torch.uint8),
            "images": torch.zeros(steps, rows, 1, 5, 5, 3, dtype=torch.uint8),
        },
        actions=torch.full((steps, rows, 16), 65, dtype=torch.uint8),
        replay=rollout.replay | {"tokens": torch.ones(steps, rows, units, dtype=torch.int64)},
    )


def as_motions(rollout: Rollout) -> Rollout:
    """The same experience with a state, and chunks of continuous actions."""
    steps, rows, units = rollout.log_probs.shape
    return replace(
        rollout,
        obs={"state": torch.randn(steps, rows, 7)},
        actions=torch.randn(steps, rows, units, 3),
        replay=rollout.replay | {"chain": torch.randn(steps, rows, 5, units, 3)},
    )


def consequences(
    rollout: Rollout, algorithm: Any, advantage: Any, *, start: Rollout | None = None
) -> tuple[Advantages, dict[str, Tensor], dict[str, float]]:
    """Advantages, parameters and gradients after an update of ``start``'s table, statistics."""
    policy = Table(start or rollout)
    result = registry("advantages").get(advantage.name)(rollout, **advantage.options)
    target: type[PolicyGradient] = registry("algorithms").get(algorithm.name)
    learner = target(policy, target.Config(**algorithm.resolved()))  # type: ignore[attr-defined]
    stats = learner.update(rollout, result, generator=torch.Generator().manual_seed(1))
    tensors = {name: value.detach().clone() for name, value in policy.named_parameters()}
    grads = {f"{n} grad": p.grad for n, p in policy.named_parameters() if p.grad is not None}
    return result, tensors | grads, stats


def grpo_of(recipe: str) -> Callable[[], tuple[Any, Any]]:
    def read() -> tuple[Any, Any]:
        config = registry("recipes").get(recipe)()
        return config.algorithm.replace(num_minibatches=2), config.advantage

    return read


SETTINGS = {
    "as_questions_are_trained": grpo_of("vqa/shapes_grpo"),
    "as_robots_are_trained": grpo_of("metaworld/reach_grpo"),
    "ppo_by_trajectory": lambda: (
        component("algorithms", "ppo", loss_mean="trajectory", entropy_coef=0.01, num_epochs=2),
        component("advantages", "gae"),
    ),
    "grpo_in_micro_batches": lambda: (
        component("algorithms", "grpo", micro_batch_size=3, dual_clip=3.0, loss_mean="chunk"),
        component("advantages", "rloo"),
    ),
}


@pytest.mark.parametrize("masked", MASKED)
@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_tensors_give_equal_bits_whatever_they_are_of(setting: str, masked: bool) -> None:
    shared = experience(masked=masked)
    algorithm, advantage = SETTINGS[setting]()
    said = consequences(as_words(shared), algorithm, advantage)
    done = consequences(as_motions(shared), algorithm, advantage)
    assert torch.equal(said[0].advantages, done[0].advantages)
    assert torch.equal(said[0].keep, done[0].keep) and bool(said[0].advantages.any())
    assert said[1].keys() == done[1].keys() and "table grad" in said[1]
    for name, value in said[1].items():
        assert torch.equal(value, done[1][name]), name
    assert said[2] == done[2] and said[2]["num_gradient_steps"] > 0
    assert bool(said[1]["table grad"].any())


def test_units_that_did_not_happen_change_no_bit() -> None:
    algorithm, advantage = SETTINGS["as_questions_are_trained"]()
    shared = experience(masked=True)
    noise = torch.rand(shared.log_probs.shape)
    other = replace(
        shared, log_probs=torch.where(shared.unit_mask, shared.log_probs, shared.log_probs - noise)
    )
    first, second = (
        consequences(rollout, algorithm, advantage, start=shared) for rollout in (shared, other)
    )
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert not bool(first[1]["table grad"][~shared.unit_mask.flatten(0, 1)].any())
    whole = consequences(experience(masked=False), algorithm, advantage)
    assert not torch.equal(first[1]["table grad"], whole[1]["table grad"])
