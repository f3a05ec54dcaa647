"""Atari: equal seeds and actions, equal games, whatever the threads, the batch or a resume."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from embodied_rl.envs.atari import make
from embodied_rl.types import VectorEnv

pytest.importorskip("ale_py")

LIVES: dict[str, Any] = {"terminal_on_life_loss": True, "clip_rewards": True}
STICKY: dict[str, Any] = {"sticky_actions": 0.25}


def breakout(**options: Any) -> VectorEnv:
    return make(**({"game": "breakout", "num_envs": 3, "seed": 5} | options))


def actions_for(steps: int, rows: int = 3, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 4, (steps, rows), generator=torch.Generator().manual_seed(seed))


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)


@pytest.mark.parametrize("backend", ["ale", "envpool"])
def test_thread_count_does_not_matter(backend: Any) -> None:
    records = []
    for threads in (1, 2, None):
        env = breakout(backend=backend, num_threads=threads, **STICKY)
        first = env.reset()[0]
        records.append([first, *(env.step(action) for action in actions_for(150))])
        env.close()
    assert_same(records[0], records[1])
    assert_same(records[0], records[2])


def test_a_game_does_not_depend_on_its_row_or_its_neighbours() -> None:
    several = breakout(episode_seeds=[7, 8, 9], **STICKY)
    alone = breakout(num_envs=1, episode_seeds=[9], **STICKY)
    assert torch.equal(several.reset()[0]["image"][2:], alone.reset()[0]["image"])
    for action in actions_for(200):
        obs, rewards, *_ = several.step(action)
        expected, reward, *_ = alone.step(action[2:])
        assert torch.equal(obs["image"][2:], expected["image"])
        assert torch.equal(rewards[2:], reward)


@pytest.mark.parametrize("options", [{}, LIVES, STICKY | LIVES], ids=["games", "lives", "both"])
def test_resume_goes_on_where_it_stood(options: dict[str, Any]) -> None:
    env = breakout(**options)
    env.reset()
    for action in actions_for(180):
        obs, *_ = env.step(action)
    buffer = io.BytesIO()
    torch.save(env.state_dict(), buffer)
    buffer.seek(0)
    resumed = breakout(**options, num_threads=1)
    restored = resumed.load_state_dict(torch.load(buffer))
    assert_same(restored, obs)  # type: ignore[reportPossiblyUnbound]
    assert_same(resumed.group_ids, env.group_ids)
    for action in actions_for(120, seed=1):
        assert_same(env.step(action), resumed.step(action))


def test_a_reset_of_all_rows_with_a_seed_starts_over() -> None:
    env, fresh = breakout(), breakout(seed=6)
    env.reset()
    env.step(actions_for(1)[0])
    assert_same(env.reset(seed=6)[0], fresh.reset()[0])
    for action in actions_for(60):
        assert_same(env.step(action), fresh.step(action))
