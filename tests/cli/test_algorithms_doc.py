"""docs/algorithms.md: the options of every row are taken, and what only a run can show."""

import json
import re
from pathlib import Path

import pytest

from embodied_rl.algorithms.policy_gradient import require_consistent
from embodied_rl.config import EnvConfig, EvalConfig, TrainConfig, component, overlay
from embodied_rl.configs.vqa import shapes_grpo
from embodied_rl.metrics import read_jsonl
from embodied_rl.registry import registry
from embodied_rl.trainer import train

TABLE = Path(__file__).parents[2] / "docs" / "algorithms.md"
ROWS = re.findall(r"^\| ([^|]+) \| `(--[^`]+)` \|", TABLE.read_text(), re.MULTILINE)


def test_every_row_of_the_table_is_read():
    assert len(ROWS) == TABLE.read_text().count("\n| ") - 1 == 11


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_options_of_a_row_fit_the_recipe_that_the_page_names(name, options):
    config = overlay(shapes_grpo(), options.split())
    algorithm = registry("algorithms").get(config.algorithm.name)
    require_consistent(algorithm.Config(**config.algorithm.resolved()))
    assert config != shapes_grpo(), name


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_options_of_a_row_train(tmp_path, name, options):
    questions = tmp_path / "bits.jsonl"
    rows = [{"prompt": str(n), "answer": str(n % 2), "task": "bits"} for n in range(40)]
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    base = TrainConfig(
        name="row",
        env=EnvConfig(
            simulator=component("envs", "vqa", file=str(questions)), num_envs=64, group_size=8
        ),
        policy=component(
            "policies", "string_generator", alphabet="01", max_new_tokens=2, dim=8, prompt_length=2
        ),
        algorithm=component("algorithms", "grpo"),
        advantage=component("advantages", "group_relative"),
        total_env_steps=1,
        evaluation=EvalConfig(episodes=2, modes=("greedy",)),
        runs=str(tmp_path),
    )
    line = read_jsonl(train(overlay(base, options.split())) / "metrics.jsonl")[0]
    if "masked_diffusion" in options:  # eight characters are never right by chance
        assert line["train/kept_group_fraction"] == 0, name
    else:
        assert line["train/grad_norm"] > 0, name


@pytest.mark.parametrize("max_refills", [0, 3])
def test_dynamic_sampling_rolls_out_again_for_groups_without_gradient(tmp_path, max_refills):
    config = TrainConfig(
        name="refills",
        env=EnvConfig(
            simulator=component("envs", "reach"), num_envs=16, group_size=4, max_episode_steps=8
        ),
        policy=component("policies", "gaussian_mlp", hidden_dims=(8,), critic="none"),
        algorithm=component("algorithms", "grpo", num_epochs=1),
        advantage=component("advantages", "group_relative"),
        total_env_steps=1,
        max_refills=max_refills,
        evaluation=EvalConfig(episodes=2),
        runs=str(tmp_path),
    )
    line = read_jsonl(train(config) / "metrics.jsonl")[0]
    rollouts = line["train/num_groups"] / 4
    kept = line["train/kept_group_fraction"] * line["train/num_groups"]
    assert line["train/informative_group_fraction"] < 1
    assert rollouts == 1 if max_refills == 0 else 1 < rollouts <= 4
    assert kept >= 4 or rollouts == 1 + max_refills
