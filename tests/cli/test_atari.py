from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ale_py")

from embodied_rl.atari_chat.__main__ import main
from embodied_rl.atari_chat.players import PLAYERS, _find, _last_screens, _reflect
from embodied_rl.atari_chat.protocol import (
    ChatProtocol,
    Message,
    enlarge,
    parse_answer,
    play,
    user_message,
)
from embodied_rl.atari_chat.table import markdown, tabulate
from embodied_rl.config import overlay
from embodied_rl.envs.atari import make, native_actions
from embodied_rl.envs.atari_scores import human_normalized
from embodied_rl.evaluate import evaluate_run
from embodied_rl.registry import registry
from embodied_rl.trainer import train

SHORT = ChatProtocol(steps=30, side=240)
TINY_RUN = (
    "--env.num-envs 2 --num-steps 16 --total-env-steps 32 --algorithm.num-epochs 1 "
    "--policy.precision float32 --num-threads 1"
)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('{"reasoning": "the ball is low", "action": 3}', 3),
        ('Sure!\n```json\n{"action": 0, "reasoning": ""}\n```', 0),
        ('{"reasoning": "x", "action": 6}', None),
        ('{"reasoning": "x", "action": -1}', None),
        ('{"reasoning": "x", "action": "3"}', None),
        ('{"reasoning": "x", "action": 3.0}', None),
        ('{"reasoning": "x", "action": true}', None),
        ('{"reasoning": "x"}', None),
        ('{"action": 3}', None),
        ('{"reasoning": 1, "action": 3}', None),
        ("[3]", None),
        ("I move up", None),
        ("}{", None),
        ("", None),
    ],
)
def test_only_well_formed_answers_are_played(text: str, action: int | None) -> None:
    assert parse_answer(text, num_actions=6)[0] == action


def test_a_malformed_answer_is_a_counted_noop() -> None:
    said = iter(range(100))

    def mumble(messages: Sequence[Message]) -> str:
        return ["hm", "{}", '{"reasoning": "", "action": 99}'][next(said) % 3]

    def nothing(messages: Sequence[Message]) -> str:
        return json.dumps({"reasoning": "", "action": native_actions("breakout").index("NOOP")})

    mumbled = play("breakout", mumble, seed=2, protocol=SHORT, film=True)
    still = play("breakout", nothing, seed=2, protocol=SHORT, film=True)
    assert (mumbled.answers, mumbled.malformed) == (15, 15)
    assert (still.answers, still.malformed) == (15, 0)
    assert np.array_equal(mumbled.frames, still.frames)
    assert mumbled.captions[-1].splitlines()[1].endswith("malformed 15/15")


def test_a_model_sees_the_last_screens_every_second_step_and_noop_is_between() -> None:
    seen: list[list[np.ndarray]] = []

    def fire(messages: Sequence[Message]) -> str:
        assert [message["role"] for message in messages] == ["system", "user"]
        assert "2: RIGHT" in messages[0]["content"][0]["text"]
        parts = messages[1]["content"]
        seen.append([part["image"] for part in parts if part["type"] == "image"])
        return '{"reasoning": "up", "action": 2}'

    result = play("pong", fire, seed=0, protocol=replace(SHORT, sticky_actions=0.0), film=True)
    assert len(seen) == 15 and {len(pictures) for pictures in seen} == {4}
    assert all(picture.shape == (240, 240, 3) for picture in seen[0])
    # The model saw what was filmed: at its k-th turn, frames 2k-4 to 2k-1.
    for turn in range(2, 15):
        for picture, frame in zip(seen[turn], result.frames[2 * turn - 4 : 2 * turn], strict=True):
            assert np.array_equal(picture, enlarge(frame, side=240))
    # The same game by hand: RIGHT, NOOP, RIGHT, NOOP, ...
    env = make(
        game="pong",
        num_envs=1,
        seed=0,
        frame_stack=1,
        image_size=(210, 160),
        grayscale=False,
        fire_reset=False,
    )
    env.reset()
    for step, frame in enumerate(result.frames):
        obs = env.step(torch.tensor([2 if step % 2 == 0 else 0]))[0]
        assert np.array_equal(obs["image"][0].permute(1, 2, 0).numpy(), frame)


@pytest.mark.parametrize("side", [210, 240, 512])
def test_rules_read_back_the_screen_that_was_enlarged(side: int) -> None:
    screens = np.random.default_rng(0).integers(0, 256, (2, 210, 160, 3), np.uint8)
    message = user_message([enlarge(screen, side=side) for screen in screens])
    assert np.array_equal(_last_screens([message]), screens)


def test_a_ball_is_found_by_its_colour_and_bounces_between_walls() -> None:
    region = np.zeros((20, 30, 3), np.uint8)
    assert _find(region, (1, 2, 3)) is None
    region[4:6, 10:13] = (1, 2, 3)
    assert _find(region, (1, 2, 3)) == (4.5, 11.0)
    positions = [_reflect(x, 10, 20) for x in (12, 20, 23, 30, 33, 7, -3)]
    assert positions == [12, 20, 17, 10, 13, 13, 17]


@pytest.mark.parametrize(("game", "steps"), [("pong", 700), ("breakout", 350)])
def test_following_the_ball_beats_chance(game: str, steps: int) -> None:
    protocol = ChatProtocol(steps=steps, side=240)
    scores = {
        player: play(game, PLAYERS[player](game, 5), seed=5, protocol=protocol).score
        for player in ("random", "scripted")
    }
    assert scores["scripted"] >= scores["random"] + 3


def test_the_table_normalises_by_random_play_and_films(tmp_path: Path) -> None:
    pytest.importorskip("av")
    rows = tabulate(
        ["pong", "tetris"], ["random"], plays=2, seed=0, protocol=SHORT, videos=tmp_path
    )
    assert [row.game for row in rows] == ["pong", "tetris"] and rows[0].malformed == 0
    assert np.isnan(rows[1].normalized)
    assert "| tetris | random | 2 | " in markdown(rows) and "no human score" in markdown(rows)
    assert {path.name for path in tmp_path.iterdir()} == {"pong-random.mp4", "tetris-random.mp4"}


def test_the_command_prints_the_table_and_one_sentence_on_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--output", str(tmp_path), "--no-video", "--steps", "4", "--plays", "1"]
    assert main(["--games", "pong", *common]) == 0
    assert "| pong | scripted | 1 | 0.0 |" in capsys.readouterr().out
    assert (tmp_path / "scores.md").exists()
    assert main(["--players", "scriptd", *common]) == 1
    assert "did you mean 'scripted'" in capsys.readouterr().err
    assert main(["--games", "alien", "--players", "scripted", *common]) == 1
    assert "no scripted player of 'alien'" in capsys.readouterr().err


def test_a_vision_language_model_plays(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    result = play("pong", PLAYERS["tiny"]("pong", 0), seed=0, protocol=replace(SHORT, steps=6))
    again = play("pong", PLAYERS["tiny"]("pong", 0), seed=0, protocol=replace(SHORT, steps=6))
    assert (result.answers, result.malformed) == (3, 3)
    assert result.score == again.score


def test_training_is_on_lives_and_evaluation_on_whole_games(tmp_path: Path) -> None:
    config = overlay(
        registry("recipes").get("breakout_ppo")(),
        f"{TINY_RUN} --policy.trunk small --runs {tmp_path}".split(),
    )
    run = train(config, final=False)
    # The first life of a random game ends within 60 decisions.
    for options, expected in (({}, {"human_normalized"}), ({"clip_rewards": True}, set())):
        record = evaluate_with(run, options)
        assert set(record) & {"human_normalized"} == expected
        assert record["length_mean"] > 60


def evaluate_with(run: Path, options: dict[str, Any]) -> dict[str, Any]:
    import embodied_rl.evaluate as module
    from embodied_rl.build import load_policy
    from embodied_rl.config import evaluation_env

    policy, config, _ = load_policy(run)
    env = evaluation_env(config)
    assert env.simulator.options["terminal_on_life_loss"] is False
    env = replace(env, simulator=env.simulator.replace(**options), max_episode_steps=120)
    manifest = module.make_manifest(["breakout"], episodes=2, split="tune")
    return module.evaluate(policy, env, manifest, mode="sampled")


def test_eval_of_a_run_reports_the_normalised_score(tmp_path: Path) -> None:
    config = overlay(
        registry("recipes").get("pong_ppo")(),
        f"{TINY_RUN} --env.max-episode-steps 80 --runs {tmp_path}".split(),
    )
    record = evaluate_run(train(config, final=False), episodes=1)
    assert record["human_normalized"] == human_normalized(record["return_mean"], "pong")
