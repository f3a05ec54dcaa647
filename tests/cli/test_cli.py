"""The command line as a user meets it: a subprocess, its exit status, its last line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = [
    "--env.num-envs",
    "8",
    "--total-env-steps",
    "2000",
    "--evaluation.episodes",
    "8",
    "--env.num-threads",
    "1",
]


def cli(*arguments, timeout=240, cwd=None):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "embodied_rl.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )


def one_sentence(result):
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.strip().splitlines() if "left" not in line]
    return lines[-1]


@pytest.fixture(scope="module")
def cartpole_run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    result = cli("train", "cartpole_ppo", *TINY, "--runs", runs, "--checkpoint.every", "1")
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip().splitlines()[-1])


def test_help_answers_within_a_second():
    started = time.perf_counter()
    result = cli("--help")
    assert result.returncode == 0 and "train" in result.stdout
    assert time.perf_counter() - started < 1.0


def test_train_prints_the_run_folder_and_fills_it(cartpole_run):
    names = {path.name for path in cartpole_run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "evaluations.jsonl", "checkpoints"} <= names


def test_eval_prints_one_json_object_last(cartpole_run):
    result = cli("eval", cartpole_run, "--episodes", "6", "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.strip().splitlines()[-1])
    assert {
        "success_rate",
        "ci_low",
        "ci_high",
        "episodes",
        "mode",
        "manifest_sha256",
        "fingerprint",
        "per_task",
    } <= record.keys()
    assert record["episodes"] == 6
    again = json.loads(
        cli("eval", cartpole_run, "--episodes", "6", "--json").stdout.strip().splitlines()[-1]
    )
    assert again == record


def test_the_saved_configuration_runs_again(cartpole_run, tmp_path):
    result = cli("train", "--config", cartpole_run / "config.yaml", "--no-eval", "--runs", tmp_path)
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip().splitlines()[-1])
    assert (folder / "config.yaml").read_text() == (
        cartpole_run / "config.yaml"
    ).read_text().replace(str(cartpole_run.parent.parent), str(tmp_path))


def test_a_finished_run_can_be_continued_to_more_steps(cartpole_run):
    result = cli("train", "--resume", cartpole_run, "--total-env-steps", "4000", "--no-eval")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "cartpole_pp"], "cartpole_ppo"),
        (["train", "cartpole_ppo", "--algorithm.num-epoch", "3"], "num_epochs"),
        (["train", "cartpole_ppo", "--algorithm.num-epochs", "many"], "number"),
        (["train", "cartpole_ppo", "--advantage.name", "gaee"], "gae"),
        (["train", "cartpole_ppo", "--env.group-size", "4"], "group_relative"),
        (["train", "cartpole_ppo", "--env.simulator.id", "CartPole-v9"], "CartPole-v1"),
        (["train", "metaworld/pick_plac_ppo"], "metaworld/pick_place_ppo"),
        (["train", "metaworld/reach_ppo", "--env.simulator.tasks", "reech-v3"], "reach-v3"),
        (["train", "metaworld/reach_sft", "--imitation.dataset", "/nowhere"], "/nowhere"),
        (["train", "--resume", "/nowhere"], "/nowhere"),
        (["eval", "/nowhere"], "/nowhere"),
        (["eval", "expert"], "--recipe"),
        (["eval", "expert", "--recipe", "cartpole_ppo"], "no scripted expert"),
        (["eval", "expert", "--recipe", "metaworld/reach_sft", "--video"], "--video"),
        (["train"], "recipe"),
        (["plot", "/nowhere"], "/nowhere"),
        (["report", "/nowhere"], "/nowhere"),
        (["list", "envz"], "envs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistake_ends_with_one_sentence_that_helps(arguments, expected):
    assert expected in one_sentence(cli(*arguments))


def test_a_truncated_checkpoint_is_named(cartpole_run, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(cartpole_run, broken)
    for file in broken.glob("checkpoints/*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    assert "checkpoint" in one_sentence(cli("eval", broken))


def test_a_foreign_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"not ours")
    assert "checkpoint" in one_sentence(cli("eval", tmp_path))


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    result = cli(
        "train",
        "cartpole_ppo",
        *TINY,
        "--total-env-steps",
        "100000",
        "--checkpoint.every",
        "1",
        "--algorithm.learning-rate",
        "1e30",
        "--algorithm.max-grad-norm",
        "1e30",
        "--runs",
        tmp_path,
        "--no-eval",
    )
    message = one_sentence(result)
    assert "learning rate" in message or "diverged" in message


def test_explain_and_list(tmp_path):
    text = cli("explain", "metaworld/push_flow_sde").stdout
    assert "gradient steps" in text and "total_env_steps" in text
    recipes = cli("list", "recipes").stdout.split()
    assert len([name for name in recipes if name.startswith("metaworld/")]) >= 250
    assert {"cartpole_ppo", "pong_ppo"} <= set(recipes)


def test_doctor_lists_what_is_there():
    result = cli("doctor")
    assert result.returncode == 0 and "torch" in result.stdout


def test_collect_writes_a_dataset_and_adds_to_it(tmp_path):
    pytest.importorskip("metaworld")
    output = tmp_path / "data"
    for episodes in ("1", "2"):
        result = cli("collect", "metaworld/reach", "--episodes", episodes, "--output", output)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().splitlines()[-1] == str(output)
    info = json.loads((output / "meta" / "info.json").read_text())
    assert info["total_episodes"] == 2 and info["codebase_version"] == "v3.0"


def test_ctrl_c_keeps_the_last_checkpoint_and_the_run_can_be_resumed(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "embodied_rl.cli", "train", "cartpole_ppo"),
            *("--total-env-steps", "50000000", "--checkpoint.every", "1", "--no-eval"),
            *("--env.num-threads", "1", "--runs", str(tmp_path)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and so their children, are started with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/*/checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "last complete checkpoint" in errors
    (folder,) = tmp_path.glob("*/*")
    names = sorted(path.name for path in folder.glob("checkpoints/step_*"))
    steps = str(1024 * (int(names[-1].removeprefix("step_")) + 2))
    result = cli("train", "--resume", folder, "--total-env-steps", steps, "--no-eval")
    assert result.returncode == 0, result.stderr
