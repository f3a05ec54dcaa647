"""Questions and a vision-language model, from the command line: imitation, GRPO, evaluation."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from embodied_rl import cli
from embodied_rl.build import build_env
from embodied_rl.config import ConfigError, component
from embodied_rl.configs.vqa import shapes_sft
from embodied_rl.demonstrations import _seeds, load_demonstrations
from embodied_rl.metrics import read_jsonl
from embodied_rl.rollout import start


def test_the_recipe_trains_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "runs": tmp_path,
        "env.num-envs": 16,
        "total-env-steps": 32,
        "imitation.episodes-per-task": 8,
        "imitation.num-steps": 3,
        "evaluation.episodes": 4,
    }
    words = [str(word) for key, value in changes.items() for word in (f"--{key}", value)]
    assert cli.main(["train", "vqa/shapes_grpo", *words]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    evaluations = read_jsonl(folder / "evaluations.jsonl")
    assert [(e["label"], e["mode"]) for e in evaluations] == [
        (label, mode) for label in ("sft", "rl") for mode in ("greedy", "sampled")
    ]
    metrics = [line for line in read_jsonl(folder / "metrics.jsonl") if "iteration" in line]
    assert metrics[-1]["time/env_steps"] == 32
    control = ["eval", str(folder), "--episodes", "4", "--json", "--env-options"]
    hashes = []
    for options in ("{}", "{pictures: blank}"):
        assert cli.main([*control, options]) == 0
        record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        hashes.append(record["fingerprint"])
    assert hashes[0] != hashes[1]  # scores with and without pictures are not to be compared
    assert cli.main([*control, "pictures"]) == 1
    assert "no mapping" in capsys.readouterr().err


def test_imitated_answers_are_right_and_no_question_comes_twice(tmp_path: Path) -> None:
    config = shapes_sft()
    assert config.imitation is not None
    config = replace(
        config,
        env=replace(
            config.env,
            simulator=component("envs", "vqa", tasks=("shapes_vqa", "timeseries_plot")),
        ),
        imitation=replace(config.imitation, episodes_per_task=40),
    )
    obs, answers, mask = load_demonstrations(config, tmp_path)
    assert answers.shape[0] == 80 and bool(mask.all())
    assert len(torch.unique(obs["images"].flatten(1), dim=0)) == 80
    env = build_env(config.env, seed=0, autoreset=False, num_envs=80, group_size=1, chunk_length=1)
    seeds = [seed for name in env.task_names for seed in _seeds(config, name, 40)]
    cursor = start(env, task_ids=torch.arange(80) // 40, episode_seeds=torch.tensor(seeds))
    assert all(torch.equal(cursor.obs[name], obs[name]) for name in obs)
    _, rewards, _, _, info = env.step(answers)
    assert bool(info["success"].all()) and bool((rewards == 1).all())
    env.close()


def test_noise_on_texts_is_refused(tmp_path: Path) -> None:
    config = shapes_sft()
    assert config.imitation is not None
    config = replace(config, imitation=replace(config.imitation, action_noise=0.3))
    with pytest.raises(ConfigError, match="set it to 0"):
        load_demonstrations(config, tmp_path)
